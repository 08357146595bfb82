"""The network namespace of a node: ports never clash, nothing leaves, and deleting it cleans up.

The node's address sits on one end of a veth pair whose other end is on the host,
so that a shell outside reaches the API server, NodePorts and target clusters.
Pods are routed one by one (the ptp plugin), not bridged: an answer between two
pods then passes the service translation whatever the kernel does with bridges.
"""

import contextlib
import fcntl
import ipaddress
import json

from . import process
from .controlplane import PODS, SERVICES
from .process import run
from .state import Fault

# Documentation ranges (RFC 5737): no real network has them.
RANGES = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"]


def host_interface(identity):
    return f"umbel{identity}"


@contextlib.contextmanager
def choosing():
    """One process at a time chooses an address range."""
    with open("/run/lock/umbel-network", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def free_network():
    """The first block of 16 addresses that no interface of the host has a part in."""
    taken = [
        ipaddress.ip_interface(f"{address['local']}/{address['prefixlen']}").network
        for link in json.loads(run("ip", "-json", "-4", "address"))
        for address in link["addr_info"]
    ]
    for wide in RANGES:
        for block in ipaddress.ip_network(wide).subnets(new_prefix=28):
            if not any(block.overlaps(one) for one in taken):
                return block
    raise Fault(f"no free block of addresses in {', '.join(RANGES)}: take a cluster down")


def create(identity, netns):
    """Makes the namespace and its link; returns the node's and the host's address."""
    with choosing():
        block = free_network()
        node, host = str(block[1]), str(block[14])
        run("ip", "netns", "add", netns)
        outside = host_interface(identity)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "node0", "netns", netns)
        run("ip", "address", "add", f"{host}/28", "dev", outside)
        run("ip", "link", "set", outside, "up")
    for line in (f"address add {node}/28 dev node0", "link set lo up", "link set node0 up", f"route add {SERVICES} dev node0"):
        run("ip", *line.split(), netns=netns)
    run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward", netns=netns)
    # The host knows no way back to a pod.
    run("nft", "-f", "-", netns=netns, text=f"""table ip umbel {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {PODS} ip daddr != {PODS} masquerade
  }}
}}""")
    return node, host


def delete(identity, netns):
    if host_interface(identity) in {link["ifname"] for link in json.loads(run("ip", "-json", "link"))}:
        run("ip", "link", "delete", host_interface(identity))
    if netns in run("ip", "netns", "list").split():
        run("ip", "netns", "delete", netns)
