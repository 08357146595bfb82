"""Sets the stage: the cluster, its images, the chart, three target clusters, the objects."""

import datetime
import json
import os
import pathlib
import subprocess
import threading
import time

from . import kube

ROOT = pathlib.Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "e2e" / "cluster" / "cluster"
OBJECTS = ROOT / "e2e" / "demo" / "objects"
NAMESPACE = "demo"
NODE_PORT = 30379
NODES = 2


class Fault(Exception):
    """Something that ends the demo, in words for the person who runs it."""


def run(*argv, text=None, environment=None):
    done = subprocess.run([str(word) for word in argv], input=text, capture_output=True, text=True,
                          env={**os.environ, **(environment or {})})
    if done.returncode:
        raise Fault(f"{pathlib.Path(argv[0]).name} {argv[1]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def until(what, condition, seconds, pause=0.2):
    """The first true answer of `condition`, which may fail meanwhile."""
    deadline, fault = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if answer := condition():
                return answer
        except (OSError, kube.Refused, KeyError) as error:
            fault = error
        time.sleep(pause)
    raise Fault(f"waited {seconds} s for {what}" + (f"; last: {fault}" if fault else ""))


def together(*functions):
    """Runs functions side by side and raises the first fault."""
    faults = []

    def guarded(function):
        try:
            function()
        except Exception as fault:  # raised again below, in the thread that asked
            faults.append(fault)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


class Stage:
    """What exists while the demo is up, at paths that outlive the program: clusters of our own, on this machine."""

    title = "a real Kubernetes, a real Celery program, three more clusters"
    raising = "Kubernetes: etcd, API server, controllers, scheduler, kubelet, containerd, DNS"
    # What the targets are chosen by. Two are at the edge, one is not.
    targets = {"oslo": {"tier": "edge", "env": "prod"}, "lima": {"tier": "edge", "env": "prod"}, "lab": {"tier": "core", "env": "dev"}}
    # Where jobs write at a target.
    place = "default"
    needs_root = True

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.cluster = self.directory / "c"
        self.config = self.cluster / "kubeconfig"
        self.client = None

    @property
    def staging(self):
        return f"three target clusters ({', '.join(self.targets)}) and the images"

    @property
    def edge(self):
        return [name for name, labels in self.targets.items() if labels["tier"] == "edge"]

    def nodes(self, name):
        """How many a target has."""
        return NODES

    def at(self, name):
        """A client for a target."""
        return kube.Client(self.target(name))

    def exists(self):
        return (self.cluster / "state.json").exists()

    def raise_cluster(self, disposable):
        self.directory.mkdir(parents=True, exist_ok=True)
        watchdog = ["--disposable-parent", str(os.getpid())] if disposable else []
        run(CLUSTER, "up", "--level", "node", "--dir", self.cluster, *watchdog)
        self.client = kube.Client(self.config)

    def targets_and_images(self):
        together(self.load_images, self.raise_targets)

    def load_images(self):
        run(ROOT / "hack" / "images.sh", "load", self.cluster, "redis", "umbel")

    def raise_targets(self):
        for name in self.targets:
            run(CLUSTER, "target", "--dir", self.cluster, "--name", name)
        together(*(lambda name=name: self.add_nodes(name) for name in self.targets))

    def target(self, name):
        return self.cluster / "targets" / name / "kubeconfig"

    def add_nodes(self, name):
        config = self.target(name)
        nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{name}-{number}"}} for number in range(1, NODES + 1)]
        kube.kubectl(config, "create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes}))
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = {"status": {
            "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"},
            "allocatable": {"cpu": "7800m", "memory": "30Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
                            "lastHeartbeatTime": now, "lastTransitionTime": now}],
        }}
        kube.kubectl(config, "patch", "nodes", *(node["metadata"]["name"] for node in nodes), "--subresource=status", "--type=merge", "-p", json.dumps(status))

    def install(self, operators):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": NAMESPACE, "labels": {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}}}
        kube.kubectl(self.config, "create", "-f", "-", text=json.dumps(namespace))
        said = run(os.environ["HELM"], "install", "umbel", ROOT / "charts" / "umbel", f"--kubeconfig={self.config}",
                   f"--namespace={NAMESPACE}", f"--values={ROOT / 'charts' / 'umbel' / 'ci' / 'demo-values.yaml'}",
                   f"--set=operator.replicas={operators}", "--wait", "--timeout=60s")
        if "Warning" in said:
            raise Fault(f"the API server warns about the chart: {said}")
        # The producer is a program outside of the cluster.
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "redis-outside", "namespace": NAMESPACE}, "spec": {
            "type": "NodePort", "selector": {"app.kubernetes.io/instance": "umbel", "app.kubernetes.io/component": "redis"},
            "ports": [{"port": 6379, "nodePort": NODE_PORT}]}}
        kube.kubectl(self.config, "create", "-f", "-", text=json.dumps(service))

    def redis_url(self):
        password = kube.kubectl(self.config, "-n", NAMESPACE, "get", "secret", "umbel-redis", "-o", "go-template={{.data.password|base64decode}}")
        address = json.loads((self.cluster / "state.json").read_text())["address"]
        return f"redis://default:{password}@{address}:{NODE_PORT}/0"

    def join_targets(self):
        for name, labels in self.targets.items():
            run(binary("umbel"), "cluster", "join", name, "--from-kubeconfig", self.target(name), "--from-context", name,
                "--namespace", NAMESPACE, f"--allow={self.place}:ConfigMap,Deployment",
                *(f"--label={key}={value}" for key, value in labels.items()), environment={"KUBECONFIG": str(self.config)})

    def text(self, file):
        """The objects of a file."""
        return (OBJECTS / file).read_text()

    def apply_objects(self):
        for file in ("work.yaml", "fleet.yaml"):
            kube.kubectl(self.config, "-n", NAMESPACE, "apply", "-f", "-", text=self.text(file))

    def schedule_rollout(self, seconds):
        at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
        text = self.text("rollout.yaml").replace("AT", at.strftime("%Y-%m-%dT%H:%M:%SZ"))
        kube.kubectl(self.config, "-n", NAMESPACE, "apply", "-f", "-", text=text)

    def list(self, kind):
        return self.client.items(f"/apis/umbel.dev/v1alpha1/namespaces/{NAMESPACE}/{kind}")

    def share(self):
        """Lets the person who called sudo use the kubeconfigs from any shell."""
        if owner := os.environ.get("SUDO_UID"):
            for file in (self.config, *map(self.target, self.targets)):
                os.chown(file, int(owner), -1)

    def close(self):
        """Ends what serves this program alone."""

    def strike(self):
        """Takes everything away."""
        run(CLUSTER, "down", "--dir", self.cluster)
        if self.directory.exists():
            for rest in self.directory.iterdir():
                rest.unlink()
            self.directory.rmdir()

    def leftovers(self):
        """Whatever of the demo can still be found: folders, mounts, processes, network."""
        path = str(self.directory)
        found = [path] if self.directory.exists() else []
        found += [line for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if f" {path}/" in line]
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"{path}/c" in words and entry.name != str(os.getpid()):
                found.append(f"process {entry.name}: {words[:100]}")
        return found

    def last_words(self):
        """What a person needs who looks for the fault."""
        parts = []
        for arguments in (["get", "tq,wp,pt,tc,pods", "-o", "wide"], ["get", "events", "--sort-by=.lastTimestamp"],
                          ["logs", "-l", "app.kubernetes.io/component=operator", "--tail=40", "--all-containers"],
                          ["logs", "-l", "umbel.dev/pool", "--tail=15", "--prefix"]):
            try:
                parts.append(f"$ kubectl {' '.join(arguments)}\n" + kube.kubectl(self.config, "-n", NAMESPACE, *arguments))
            except (kube.Refused, OSError) as fault:
                parts.append(str(fault))
        return "\n".join(parts)


def binary(name):
    folder = pathlib.Path(os.environ.get("BIN_DIR", ROOT / "target" / "debug"))
    return folder / name
