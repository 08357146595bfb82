"""etcd, kube-apiserver and kube-controller-manager, for the cluster itself and for further target clusters."""

import pathlib

from . import pki, process, state
from .process import binary

SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"


class Cluster:
    """A cluster while it is being made: every process that it starts is recorded at once."""

    def __init__(self, record, seconds):
        self.record = record
        self.dir = pathlib.Path(record["dir"])
        self.seconds = seconds

    def start(self, name, argv, inside=True):
        """Starts a process, in the node's namespace if there is one."""
        pid = process.spawn(self.dir, name, argv, self.record["netns"] if inside else None)
        with state.locked(self.dir) as record:
            record["pids"][name] = pid
            record["starts"][name] = process.started_at(pid)
        self.record = record

    def forget(self, name):
        with state.locked(self.dir) as record:
            del record["pids"][name], record["starts"][name]
        self.record = record

    def note(self, **facts):
        with state.locked(self.dir) as record:
            record.update(facts)
        self.record = record

    def wait(self, name, what, condition):
        """Waits for `condition`, and fails early when the process `name` ends."""
        def ready():
            if condition():
                return True
            if not process.is_running(self.record["pids"][name], self.record["starts"][name]):
                raise state.Fault(f"{name} ended while waiting for {what}:\n{process.last_words(self.dir, name)}")
            return False

        try:
            process.wait(what, ready, self.seconds)
        except state.Fault as fault:
            if "waited" in str(fault):
                raise state.Fault(f"{fault}; last lines of {name}.log:\n{process.last_words(self.dir, name)}") from None
            raise


def etcd(cluster, arguments):
    client, peer = cluster.record["ports"]["etcd"], cluster.record["ports"]["etcdPeer"]
    # Nothing here outlives the machine, so nothing is worth an fsync.
    cluster.start("etcd", [
        binary("etcd"), "--name=umbel", f"--data-dir={cluster.dir}/etcd", "--unsafe-no-fsync",
        f"--listen-client-urls=http://127.0.0.1:{client}", f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=umbel=http://127.0.0.1:{peer}", "--quota-backend-bytes=8589934592", *arguments,
    ])


class ApiServer:
    """One kube-apiserver: the cluster's own, or a target's with an etcd prefix and an authority of its own."""

    def __init__(self, cluster, name, folder, port):
        self.cluster = cluster
        self.process = "kube-apiserver" if name is None else f"kube-apiserver-{name}"
        self.context = name or "umbel"
        self.prefix = "/registry" if name is None else f"/{name}"
        self.port = port
        self.address = cluster.record["address"]
        self.server = f"https://{self.address}:{port}"
        self.authority = pki.Authority(folder)
        self.token_key = pki.service_account_key(folder)
        self.admin = self.authority.issue("admin", "/O=system:masters/CN=admin")

    def start(self, arguments):
        record = self.cluster.record
        certificate, key = self.authority.issue("serving", "/CN=kube-apiserver", [
            "127.0.0.1", *({self.address} - {"127.0.0.1"}), "10.96.0.1", "localhost", "kubernetes", "kubernetes.default",
            "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
        ])
        if record["level"] == "node":
            bind = ["--bind-address=0.0.0.0", f"--advertise-address={self.address}"]
        else:
            # A loopback address may not be advertised; nobody asks for the endpoint here.
            bind = ["--bind-address=127.0.0.1", "--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"]
        if record["level"] == "node" and self.context == "umbel":
            # Logs and exec go from here to the kubelet.
            client = self.authority.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
            bind += ["--kubelet-preferred-address-types=InternalIP", f"--kubelet-client-certificate={client[0]}",
                     f"--kubelet-client-key={client[1]}", f"--kubelet-certificate-authority={self.authority.certificate}"]
        self.cluster.start(self.process, [
            binary("kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{record['ports']['etcd']}", f"--etcd-prefix={self.prefix}",
            f"--secure-port={self.port}", *bind, f"--cert-dir={self.authority.folder}",
            f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}", f"--client-ca-file={self.authority.certificate}",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-signing-key-file={self.token_key}",
            f"--service-account-key-file={self.token_key}", f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC", "--allow-privileged=true", "--profiling=false", *arguments,
        ])

    def get(self, path):
        return process.fetch(self.server, path, self.authority.certificate, *self.admin)

    def wait(self):
        self.cluster.wait(self.process, "the API server to be ready", lambda: self.get("/readyz"))

    def user(self, name, subject):
        """A kubeconfig for a component."""
        files = self.authority.issue(name, subject)
        return self.authority.kubeconfig(self.authority.folder / f"{name}.kubeconfig", self.context, self.server, *files)


def controller_manager(cluster, api, arguments):
    name = "kube-controller-manager" + api.process.removeprefix("kube-apiserver")
    # An account for each controller would be 40 objects made one after the other: 4 s more.
    config = api.user("controller-manager", "/O=system:masters/CN=system:kube-controller-manager")
    cluster.start(name, [
        binary("kube-controller-manager"), f"--kubeconfig={config}", "--leader-elect=false", "--secure-port=0",
        f"--service-account-private-key-file={api.token_key}",
        f"--root-ca-file={api.authority.certificate}", f"--cluster-signing-cert-file={api.authority.certificate}",
        f"--cluster-signing-key-file={api.authority.key}", f"--cluster-cidr={PODS}", f"--service-cluster-ip-range={SERVICES}",
        "--profiling=false", *arguments,
    ])
    return name


def wait_for_controllers(cluster, api, name):
    cluster.wait(name, "the controllers to work", lambda: api.get("/api/v1/namespaces/default/serviceaccounts/default"))
