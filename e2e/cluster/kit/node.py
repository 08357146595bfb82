"""The parts that run pods: containerd, kube-scheduler, kubelet, kube-proxy and CoreDNS."""

import json
import os
import pathlib
import subprocess

from . import cgroups, process
from .controlplane import PODS
from .process import binary, run
from .state import Fault

NAME = "node-1"
PAUSE = "docker.io/library/pause:dev"
HACK = pathlib.Path(__file__).resolve().parents[3] / "hack"


def socket(directory):
    return f"{directory}/containerd.sock"


def check(directory):
    """Refuses what would only fail later and obscurely."""
    if os.geteuid() != 0:
        raise Fault("a whole node needs root")
    # The kubelet's sockets lie below; a socket's path is at most 107 bytes.
    if len(str(directory)) > 60:
        raise Fault(f"{directory} is longer than 60 characters")


def containerd(cluster):
    directory = cluster.dir
    (directory / "cni").mkdir()
    (directory / "cni" / "10-umbel.conflist").write_text(json.dumps({
        "cniVersion": "0.4.0",
        "name": f"umbel-{cluster.record['id']}",
        "plugins": [{
            "type": "ptp",
            "ipam": {"type": "host-local", "dataDir": f"{directory}/cni-data",
                     "ranges": [[{"subnet": PODS.replace("/16", "/24")}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }],
    }))
    config = directory / "containerd.toml"
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc may not lower a score and dies.
    config.write_text(f"""version = 2
root = "{directory}/containerd/root"
state = "{directory}/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket(directory)}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{directory}/runc"
      SystemdCgroup = false
""")
    cluster.start("containerd", [binary("containerd"), f"--config={config}"])


def load(directory, archives):
    """Puts image archives where the kubelet finds them."""
    for archive in archives:
        run("ctr", f"--address={socket(directory)}", "--namespace=k8s.io", "images", "import", str(archive))


def load_pause(cluster):
    done = subprocess.run([HACK / "images.sh", "build", "pause"], capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"images.sh: {done.stderr.strip()}")

    def is_up():
        address = socket(cluster.dir)
        return subprocess.run([binary("ctr"), f"--address={address}", "version"], capture_output=True).returncode == 0

    cluster.wait("containerd", "containerd to answer", is_up)
    load(cluster.dir, done.stdout.split())


def scheduler(cluster, api, arguments):
    config = api.user("scheduler", "/CN=system:kube-scheduler")
    cluster.start("kube-scheduler", [
        binary("kube-scheduler"), f"--kubeconfig={config}", "--leader-elect=false", "--profiling=false", *arguments,
    ])


def kubelet(cluster, api, arguments):
    record, directory = cluster.record, cluster.dir
    certificate, key = api.authority.issue("kubelet-serving", f"/CN={NAME}", [record["address"], NAME])
    config = directory / "kubelet.json"
    config.write_text(json.dumps({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True},
                           "x509": {"clientCAFile": str(api.authority.certificate)}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": certificate,
        "tlsPrivateKeyFile": key,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups.root(record["id"]),
        "clusterDNS": [record["address"]],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{socket(directory)}",
        "enforceNodeAllocatable": [],
        # The machine's own disk and memory are not what is tested.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
                         "imagefs.available": "1%", "imagefs.inodesFree": "1%"},
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        "maxPods": 200,
        "oomScoreAdj": 0,
        "podLogsDir": f"{directory}/pods",
        "resolvConf": "",
        "volumePluginDir": f"{directory}/kubelet/volume-plugins",
    }))
    kubeconfig = api.user("kubelet", f"/O=system:nodes/CN=system:node:{NAME}")
    cgroups.create(record["id"])
    cluster.start("kubelet", [
        binary("kubelet"), f"--config={config}", f"--kubeconfig={kubeconfig}", f"--hostname-override={NAME}",
        f"--node-ip={record['address']}", f"--root-dir={directory}/kubelet", f"--cert-dir={directory}/kubelet/pki", *arguments,
    ])


def proxy(cluster, api):
    kubeconfig = api.user("proxy", "/CN=system:kube-proxy")
    config = cluster.dir / "proxy.json"
    config.write_text(json.dumps({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": PODS,
        "clientConnection": {"kubeconfig": kubeconfig},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "hostnameOverride": NAME,
        "oomScoreAdj": 0,
    }))
    cluster.start("kube-proxy", [binary("kube-proxy"), f"--config={config}"])


def dns(cluster, api):
    address = cluster.record["address"]
    kubeconfig = api.user("dns", "/O=system:masters/CN=dns")
    config = cluster.dir / "Corefile"
    # Names outside the cluster do not exist: said at once, instead of a timeout.
    config.write_text(f"""cluster.local:53 in-addr.arpa:53 {{
  bind {address}
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} {api.context}
    ttl 5
  }}
}}
.:53 {{
  bind {address}
  errors
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
""")
    cluster.start("coredns", [binary("coredns"), f"-conf={config}"])


def wait(cluster, api):
    """Waits until a pod could start and find services."""
    def is_ready():
        node = api.get(f"/api/v1/nodes/{NAME}")
        return node and any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", []))

    cluster.wait("kubelet", "the node to be ready", is_ready)

    def has_dns():
        netns = f"--net=/run/netns/{cluster.record['netns']}"
        listens = subprocess.run([binary("nsenter"), netns, binary("ss"), "-Hltn", "sport = :8181"], capture_output=True, text=True)
        return listens.stdout and process.is_running(cluster.record["pids"]["coredns"], cluster.record["starts"]["coredns"])

    cluster.wait("coredns", "CoreDNS to serve", has_dns)
