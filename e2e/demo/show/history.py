"""What each worker itself says it did: its log, followed from its first line to its last.

This is the witness that the operator's own counters are checked against. A pod
whose log ends with a task that was started and did not end was stopped busy.
"""

import json
import threading
import time

from .kube import Refused

STARTED, ENDED = "started", "ended"


class Worker:
    """One pod and the tasks of its log."""

    def __init__(self, pod, pool):
        self.pod, self.pool = pod, pool
        self.born = time.monotonic()
        self.started, self.ended = {}, {}
        self.gone = None
        # Whether somebody killed its process, and what that process held: those tasks end elsewhere.
        self.is_killed, self.orphans = False, set()

    def hear(self, line):
        try:
            entry = json.loads(line)
        except ValueError:
            return
        message = entry.get("message")
        if message in (STARTED, ENDED) and "task.id" in entry:
            one = entry["task.id"]
            (self.started if message == STARTED else self.ended).setdefault(one, entry.get("outcome") or entry.get("task.name"))

    @property
    def running(self):
        return [one for one in list(self.started) if one not in self.ended and one not in self.orphans]

    def mourn(self):
        """The log of a killed process has ended."""
        if self.is_killed:
            self.orphans.update(self.running)
            self.is_killed = False


class History:
    """All worker pods of a namespace, followed in threads that end with the program."""

    def __init__(self, client, namespace):
        self.client, self.namespace = client, namespace
        self.workers = {}
        self.faults = []
        threading.Thread(target=self.watch, daemon=True).start()

    def pods(self):
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=umbel.dev%2Fpool"
        return {pod["metadata"]["uid"]: pod for pod in self.client.items(path)}

    def watch(self):
        """Lists a few times a second: a pod lives for seconds at least, and a list can't be missed as an event can."""
        while True:
            try:
                pods = self.pods()
            except (OSError, Refused, ValueError) as fault:
                self.faults.append(str(fault))
                time.sleep(0.5)
                continue
            for uid, pod in pods.items():
                if uid not in self.workers and has_started(pod):
                    name, pool = pod["metadata"]["name"], pod["metadata"]["labels"]["umbel.dev/pool"]
                    self.workers[uid] = Worker(name, pool)
                    threading.Thread(target=self.follow, args=(uid,), daemon=True).start()
            for uid, worker in list(self.workers.items()):
                if uid not in pods and worker.gone is None:
                    worker.gone = time.monotonic()
            time.sleep(0.3)

    def follow(self, uid):
        worker = self.workers[uid]
        path = f"/api/v1/namespaces/{self.namespace}/pods/{worker.pod}/log?follow=true&container=worker"
        while worker.gone is None:
            try:
                for line in self.client.lines(path, timeout=600):
                    worker.hear(line)
                worker.mourn()
            except (OSError, Refused, ValueError) as fault:
                self.faults.append(f"{worker.pod}: {fault}")
            # The stream ends with the container; lines heard twice change nothing.
            time.sleep(0.2)

    def of(self, pool):
        return [worker for worker in list(self.workers.values()) if worker.pool == pool]


def has_started(pod):
    return any(status.get("started") or "terminated" in status.get("state", {}) or status.get("restartCount")
               for status in pod["status"].get("containerStatuses", []))
