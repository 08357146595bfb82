"""The same play on a cluster that a kubeconfig names, with that kubeconfig and a registry and nothing else.

The cluster is its own target: jobs write into one more namespace of it. Everything that is made is in two namespaces, in
one Helm release, or carries the account's label; the folder of the demo says to which cluster it belongs.
"""

import base64
import json
import os
import re
import subprocess
import uuid

from . import kube
from .stage import NAMESPACE, ROOT, Fault, Stage, binary, run, until

PLACE = "demo-target"
LABEL = "umbel.dev/demo"
RECORD = "elsewhere.json"
# As pods reach it, wherever the kubeconfig leads.
INSIDE = "https://kubernetes.default.svc"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Elsewhere(Stage):
    """What the demo made on a cluster that was there before."""

    title = "a cluster of yours, a real Celery program"
    targets = {"here": {"tier": "edge", "env": "demo"}}
    place = PLACE
    staging = "the images, built and pushed"
    needs_root = False

    def __init__(self, directory, config=None, prefix=None):
        super().__init__(directory)
        self.source, self.prefix = config, prefix
        self.config = self.directory / "kubeconfig"
        self.forward = None
        if (self.directory / RECORD).exists():
            self.record = json.loads((self.directory / RECORD).read_text())
        else:
            self.record = {"id": uuid.uuid4().hex}

    @property
    def raising(self):
        return f"the cluster of {self.source}"

    def exists(self):
        return (self.directory / RECORD).exists()

    def note(self, **facts):
        self.record.update(facts)
        (self.directory / RECORD).write_text(json.dumps(self.record))

    def kubectl(self, *arguments, text=None):
        return kube.kubectl(self.config, *arguments, text=text)

    def raise_cluster(self, disposable):
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.directory.stat().st_uid != os.geteuid():
            raise Fault(f"{self.directory} is somebody else's")
        # The context of now, also when another one is chosen before demo-down.
        self.config.touch(mode=0o600)
        self.config.write_text(kube.kubectl(self.source, "config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        context = json.loads(self.config.read_text())["current-context"]
        try:
            self.client = kube.Proxied(self.config, self.directory / "api")
            self.refuse()
        except (Fault, kube.Refused):
            # Nothing was made, and what is there is not for the words of the end.
            self.strike()
            raise
        self.note(context=context)

    def refuse(self):
        """Where something of ours is already, the demo would be in its way."""
        groups = [group["name"] for group in self.client.get("/apis")["groups"]]
        if "umbel.dev" in groups:
            raise Fault("this cluster has Umbel already: two operators would each see to the demo")
        for name in (NAMESPACE, PLACE):
            if self.client.exists(f"/api/v1/namespaces/{name}"):
                raise Fault(f"this cluster has a namespace {name} already")
        ours = ARCHITECTURES.get(os.uname().machine)
        theirs = {node["status"]["nodeInfo"]["architecture"] for node in self.client.items("/api/v1/nodes")}
        if ours not in theirs:
            raise Fault(f"images of this machine are for {ours}, the cluster's nodes are {', '.join(sorted(theirs)) or 'none'}")

    def targets_and_images(self):
        pushed = run(ROOT / "hack" / "images.sh", "push", self.prefix, "umbel", "redis").split()
        self.images = dict(zip(("umbel", "redis"), pushed))

    def nodes(self, name):
        return len(self.client.items("/api/v1/nodes"))

    def at(self, name):
        return self.client

    def target(self, name):
        return self.config

    def install(self, operators):
        for name in (NAMESPACE, PLACE):
            labels = {LABEL: self.record["id"], **{f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn") if name == NAMESPACE}}
            self.kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
        values = {
            "image": parts(self.images["umbel"]), "operator": {"replicas": operators}, "watchNamespaces": [NAMESPACE],
            "rbac": {"aggregate": False}, "crds": {"keep": False},
            "redis": {"image": parts(self.images["redis"]), "persistence": {"enabled": False}},
        }
        file = self.directory / "values.json"
        file.write_text(json.dumps(values))
        said = run(os.environ["HELM"], "install", "umbel", ROOT / "charts" / "umbel", f"--kubeconfig={self.config}",
                   f"--namespace={NAMESPACE}", f"--values={file}", "--wait", "--timeout=180s")
        if "Warning" in said:
            raise Fault(f"the API server warns about the chart: {said}")

    def redis_url(self):
        """The producer is a program outside of the cluster."""
        self.forward = subprocess.Popen([os.environ["KUBECTL"], f"--kubeconfig={self.config}", "-n", NAMESPACE, "port-forward", "service/umbel-redis", ":6379"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        port = re.search(r"127\.0\.0\.1:(\d+)", self.forward.stdout.readline())
        if not port:
            raise Fault("kubectl port-forward to Redis does not start")
        password = self.kubectl("-n", NAMESPACE, "get", "secret", "umbel-redis", "-o", "go-template={{.data.password|base64decode}}")
        return f"redis://default:{password}@127.0.0.1:{port[1]}/0"

    def join_targets(self):
        for name, labels in self.targets.items():
            run(binary("umbel"), "cluster", "join", name, "--from-kubeconfig", self.config, "--from-context", self.record["context"],
                "--namespace", NAMESPACE, "--target-namespace", PLACE, f"--allow={PLACE}:ConfigMap,Deployment",
                *(f"--label={key}={value}" for key, value in labels.items()), environment={"KUBECONFIG": str(self.config)})
            self.from_inside(f"umbel-cluster-{name}")

    def from_inside(self, secret):
        """Workers are pods of the cluster: the address of the kubeconfig need not be one of theirs."""
        authority, scratch = self.directory / "ca.crt", self.directory / "joined"
        authority.write_text(until("the cluster's authority", lambda: self.client.get(
            f"/api/v1/namespaces/{NAMESPACE}/configmaps/kube-root-ca.crt")["data"]["ca.crt"], 30))
        scratch.touch(mode=0o600)
        scratch.write_bytes(base64.b64decode(self.kubectl("-n", NAMESPACE, "get", "secret", secret, "-o", "jsonpath={.data.kubeconfig}")))
        kube.kubectl(scratch, "config", "set-cluster", "target", f"--server={INSIDE}", f"--certificate-authority={authority}", "--embed-certs")
        kubeconfig = {"stringData": {"kubeconfig": scratch.read_text()}}
        scratch.unlink()
        patch = self.directory / "patch"
        patch.touch(mode=0o600)
        patch.write_text(json.dumps(kubeconfig))
        self.kubectl("-n", NAMESPACE, "patch", "secret", secret, "--type=merge", f"--patch-file={patch}")
        patch.unlink()

    def text(self, file):
        text = super().text(file).replace("namespace: default", f"namespace: {PLACE}").replace("namespaces: [default]", f"namespaces: [{PLACE}]")
        text = text.replace("image: umbel:dev", f"image: {self.images['umbel']}").replace("imagePullPolicy: Never", "imagePullPolicy: IfNotPresent")
        # Here its pods are started.
        return text.replace("registry.example.com/greeter:1.0", self.images["redis"])

    def share(self):
        pass

    def close(self):
        if self.forward:
            self.forward.terminate()
            self.forward.wait()
            self.forward = None
        if self.client:
            self.client.close()
            self.client = None

    def strike(self):
        """Takes away what the demo made, and nothing of what was there."""
        if self.exists():
            self.clear()
        self.close()
        if self.directory.exists():
            for rest in self.directory.iterdir():
                rest.unlink()
            self.directory.rmdir()

    def ours(self, name):
        """Whether a namespace is there, and made by this demo."""
        found = self.kubectl("get", "namespace", name, "--ignore-not-found", "-o", "json")
        return bool(found) and json.loads(found)["metadata"].get("labels", {}).get(LABEL) == self.record["id"]

    def clear(self):
        if not self.ours(NAMESPACE):
            return
        at_home = ["-n", NAMESPACE]
        if self.kubectl("get", "crd", "targetclusters.umbel.dev", "--ignore-not-found", "-o", "name"):
            # While the operator runs, it sees its objects off.
            self.kubectl(*at_home, "delete", "periodictasks,tasks,workerpools,taskqueues", "--all", "--timeout=60s")
            for name in json.loads(self.kubectl(*at_home, "get", "targetclusters", "-o", "json"))["items"]:
                run(binary("umbel"), "cluster", "leave", name["metadata"]["name"], "--yes", "--from-kubeconfig", self.config,
                    "--from-context", self.record["context"], *at_home, environment={"KUBECONFIG": str(self.config)})
        run(os.environ["HELM"], "uninstall", "umbel", f"--kubeconfig={self.config}", f"--namespace={NAMESPACE}", "--ignore-not-found",
            "--wait", "--timeout=120s")
        for name in (PLACE, NAMESPACE):
            if self.ours(name):
                self.kubectl("delete", "namespace", name, "--timeout=120s")

    def leftovers(self):
        return [str(self.directory)] if self.directory.exists() else []



def parts(image):
    """As the chart has an image: `registry/path@sha256:…`."""
    repository, _, digest = image.partition("@")
    registry, _, path = repository.partition("/")
    return {"registry": registry, "repository": path, "digest": digest}
