"""Rough weather for the same play: what a cluster does to a fleet on a bad day, at known times and counted.

Signals go to processes found by the uid of their pod, and to nothing else.
"""

import json
import os
import pathlib
import signal
import threading
import time

from . import kube, stage
from .view import POOL

# Seconds after the first task.
LAGS = range(8, 48, 4)
"""The controller-manager stands still for two seconds at each of these times, through all of the scaling down."""
KILLS = (5, 14)
"""A worker that holds tasks is killed."""
OUTAGE = (20, 3)
"""Redis answers nobody, for so long."""
LEADER = 11
"""The leading operator is killed."""


class Calm:
    """Nothing happens."""

    worker_kills = leader_kills = lags = outages = 0

    def start(self, scene, history):
        pass

    def faults(self):
        return []


class Rough(Calm):
    """Everything above, each in a thread of its own."""

    def __init__(self):
        self.complaints = []

    def start(self, scene, history):
        self.scene, self.history = scene, history
        begin = time.monotonic()
        for at, act in [(LEADER, self.kill_leader), (OUTAGE[0], self.pause_redis),
                        *((at, self.kill_worker) for at in KILLS), *((at, self.lag) for at in LAGS)]:
            threading.Thread(target=self.later, args=(begin + at, act), daemon=True).start()

    def later(self, when, act):
        time.sleep(max(0, when - time.monotonic()))
        try:
            act()
        except (OSError, kube.Refused, stage.Fault, KeyError, ValueError) as fault:
            self.complaints.append(f"{act.__name__}: {fault}")

    def faults(self):
        return self.complaints

    def lag(self):
        record = json.loads((self.scene.cluster / "state.json").read_text())
        pause(record["pids"]["kube-controller-manager"], 2)
        self.lags += 1

    def pause_redis(self):
        path = f"/api/v1/namespaces/{stage.NAMESPACE}/pods/umbel-redis-0"
        pause(process_of(self.scene.client.get(path)["metadata"]["uid"], "redis-server"), OUTAGE[1])
        self.outages += 1

    def kill_leader(self):
        lease = self.scene.client.get(f"/apis/coordination.k8s.io/v1/namespaces/{stage.NAMESPACE}/leases/umbel-operator")
        pod = lease["spec"]["holderIdentity"].partition("_")[0]
        uid = self.scene.client.get(f"/api/v1/namespaces/{stage.NAMESPACE}/pods/{pod}")["metadata"]["uid"]
        os.kill(process_of(uid, "umbel-operator"), signal.SIGKILL)
        self.leader_kills += 1

    def kill_worker(self):
        def busiest():
            alive = [(len(worker.running), uid) for uid, worker in list(self.history.workers.items()) if worker.pool == POOL and worker.gone is None]
            return max(alive, default=None)

        held, uid = stage.until("a worker that holds tasks", lambda: (found := busiest()) and found[0] >= 2 and found, 10, 0.01)
        self.history.workers[uid].is_killed = True
        os.kill(process_of(uid, "umbel-worker"), signal.SIGKILL)
        self.worker_kills += 1


def process_of(pod, name):
    """The process with this name in the pod with this uid."""
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "comm").read_text().strip() == name and pod in (entry / "cgroup").read_text():
                return int(entry.name)
        except OSError:
            continue
    raise stage.Fault(f"no process {name} in pod {pod}")


def pause(pid, seconds):
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
