"""A real API server with its controllers, and the operator under load on it."""

import asyncio
import base64
import collections
import concurrent.futures
import http.client
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

import yaml

from stage import OPERATOR, ROOT, free_port, wait

CLUSTER = ROOT / "e2e" / "cluster"
sys.path.insert(0, str(CLUSTER))

from kit import pki, state  # noqa: E402

# As whom the operator is known to the API server: so its requests are told from those of others.
USER = "umbel-operator"
OURS = "/apis/umbel.dev/v1alpha1"
HERE = "/namespaces/default"
THREADS = 8
# Who creates thousands of objects at a time would wait for the controllers' own limit of 20 requests a second.
CONTROLLERS = ("--kube-api-qps=500", "--kube-api-burst=1000", "--concurrent-deployment-syncs=20", "--concurrent-replicaset-syncs=20")
# Only what the operator writes; a line for each request, once it is answered.
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "users": [USER], "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
        {"level": "None"},
    ],
}


class Cluster:
    """A control plane without nodes: pods are made and stay pending."""

    def __init__(self, *flags):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="umbel-bench-cluster-"))
        self.raise_it(flags)

    def raise_it(self, flags):
        self.home = self.folder / "c"
        command = [CLUSTER / "cluster", "up", "--dir", self.home, "--disposable-parent", str(os.getpid()), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.server = state.load(self.home)["server"]
        self.tls = tls(self.home / "kubeconfig")
        self.near = threading.local()

    def connection(self, timeout=60):
        address = urllib.parse.urlsplit(self.server)
        return http.client.HTTPSConnection(address.hostname, address.port, timeout=timeout, context=self.tls)

    def call(self, verb, path, body=None, may_fail=False):
        """One request on this thread's own connection."""
        for attempt in (1, 2):
            connection = getattr(self.near, "connection", None)
            if connection is None:
                connection = self.near.connection = self.connection()
            try:
                kind = "application/merge-patch+json" if verb == "PATCH" else "application/json"
                connection.request(verb, path, json.dumps(body) if body is not None else None, {"content-type": kind})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                self.near.connection = None
                if attempt == 2:
                    raise
                continue
            if answer.status < 300:
                return json.loads(text)
            if may_fail:
                return None
            raise RuntimeError(f"{verb} {path}: {answer.status} {text[:300].decode(errors='replace')}")

    def create(self, path, objects):
        """Creates objects, several at a time."""
        with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda one: self.call("POST", path, one), objects))

    def close(self):
        subprocess.run([CLUSTER / "cluster", "down", "--dir", self.home], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


class Plane(Cluster):
    """One with our kinds, that notes what the operator writes."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="umbel-bench-plane-"))
        policy = self.folder / "audit.json"
        policy.write_text(json.dumps(AUDIT))
        self.audit = self.folder / "audit.log"
        logs = (f"--audit-policy-file={policy}", f"--audit-log-path={self.audit}")
        self.raise_it([f"--apiserver-arg={flag}" for flag in logs] + [f"--cm-arg={flag}" for flag in CONTROLLERS])
        authority = pki.Authority(self.home / "pki")
        pair = authority.issue(USER, f"/O=system:masters/CN={USER}")
        self.kubeconfig = authority.kubeconfig(self.folder / "operator.kubeconfig", USER, self.server, *pair)
        self.install()

    def install(self):
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for file in sorted((ROOT / "crds").glob("*.yaml")):
            definition = yaml.safe_load(file.read_text())
            if definition["kind"] != "CustomResourceDefinition":
                continue
            self.call("POST", crds, definition)
            path = f"{OURS}{HERE}/{definition['spec']['names']['plural']}"
            wait(f"{path} is served", lambda: self.call("GET", path, may_fail=True), 30, 0.1)  # noqa: B023

    def writes(self):
        """What the operator has written so far, by verb and kind; neither dry runs nor its Lease."""
        counts = collections.Counter()
        with open(self.audit) as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break
                event = json.loads(line)
                where = event.get("objectRef", {})
                if "dryRun=" in event["requestURI"] or where.get("resource") == "leases":
                    continue
                kind = "/".join(part for part in (where.get("resource"), where.get("subresource")) if part)
                counts[f"{event['verb']} {kind}"] += 1
        return counts


def tls(kubeconfig):
    """What an administrator shows the API server, and believes of it."""
    told = yaml.safe_load(pathlib.Path(kubeconfig).read_text())
    cluster, user = told["clusters"][0]["cluster"], told["users"][0]["user"]
    plain = lambda text: base64.b64decode(text).decode()  # noqa: E731
    context = ssl.create_default_context(cadata=plain(cluster["certificate-authority-data"]))
    with tempfile.NamedTemporaryFile("w") as pair:
        pair.write(plain(user["client-certificate-data"]) + "\n" + plain(user["client-key-data"]))
        pair.flush()
        context.load_cert_chain(pair.name)
    return context


class Deployments(threading.Thread):
    """Watches the Deployments of pools, and notes when one was given a size first."""

    def __init__(self, plane):
        super().__init__(daemon=True)
        self.plane = plane
        self.present = set()
        self.raised = {}
        self.is_over = False
        self.start()

    def run(self):
        path = "/apis/apps/v1/deployments?labelSelector=umbel.dev%2Fpool"
        while not self.is_over:
            connection = self.plane.connection(timeout=600)
            try:
                connection.request("GET", path)
                found = json.load(connection.getresponse())
                for one in found["items"]:
                    self.see(one)
                version = found["metadata"]["resourceVersion"]
                connection.request("GET", f"{path}&watch=1&resourceVersion={version}")
                for line in connection.getresponse():
                    at, event = time.monotonic(), json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED"):
                        self.see(event["object"], at)
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.1)
            finally:
                connection.close()

    def see(self, deployment, at=None):
        pool = deployment["metadata"]["labels"]["umbel.dev/pool"]
        self.present.add(pool)
        if deployment["spec"].get("replicas", 0) > 0:
            self.raised.setdefault(pool, at or time.monotonic())


class Relay(threading.Thread):
    """A way to a Redis that counts round trips: what is sent after something was answered."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.target, self.port, self.trips = port, free_port(), 0
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.loop = asyncio.new_event_loop()
        self.server = self.loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", self.port))
        self.start()

    def run(self):
        self.loop.run_forever()

    async def serve(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        # Once something was answered, what is sent next is another round trip.
        answered = [True]

        async def up():
            while data := await reader.read(1 << 16):
                if answered[0]:
                    self.trips, answered[0] = self.trips + 1, False
                there_writer.write(data)
                await there_writer.drain()
            there_writer.close()

        async def down():
            while data := await there_reader.read(1 << 16):
                answered[0] = True
                writer.write(data)
                await writer.drain()
            writer.close()

        await asyncio.gather(up(), down(), return_exceptions=True)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)


class Operator:
    """The operator's own process, with the settings that it has by itself."""

    def __init__(self, plane):
        env = {
            **os.environ,
            "KUBECONFIG": plane.kubeconfig,
            "UMBEL_ADMIN_ADDR": f"127.0.0.1:{free_port()}",
            "UMBEL_NAMESPACE": "default",
            "UMBEL_LOG": "warn",
        }
        self.log = open(plane.folder / "operator.log", "w")
        self.process = subprocess.Popen([OPERATOR], env=env, stdout=self.log, stderr=self.log, start_new_session=True)

    def cpu(self):
        """Seconds of processor time used so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self):
        """Resident memory in MiB."""
        lines = pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
