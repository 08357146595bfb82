"""The state of everything while it runs: gathered from the API server, the producer and the workers' logs, and drawn."""

import json
import threading
import time

import redis

from . import kube, stage
from .screen import bar, spark

POOL = "work"
# The lists that Celery's Redis transport makes of one queue.
PRIORITIES = ["", "\x06\x163", "\x06\x166", "\x06\x169"]
SLOTS = 4
LARGEST = 6


class Producer:
    """The Celery program's own account of itself."""

    def __init__(self, process, total):
        self.process, self.total = process, total
        self.sent = self.read = self.wrong = 0
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            account = json.loads(line)
            self.sent, self.read, self.wrong = account["sent"], account["read"], account["wrong"]

    @property
    def is_done(self):
        return self.process.poll() is not None and self.read + self.wrong >= self.total


class Picture:
    """What is known now, and the sizes that the pool went through."""

    def __init__(self, scene, broker):
        self.stage, self.broker = scene, broker
        self.waiting = 0
        self.begin = time.monotonic()
        self.sizes, self.steps = [], []
        self.queue = self.pool = {}
        self.periodic, self.targets = {}, {}

    def refresh(self):
        try:
            named = {kind: {one["metadata"]["name"]: one for one in self.stage.list(kind)}
                     for kind in ("taskqueues", "workerpools", "periodictasks", "targetclusters")}
            # The queue's own status is for people and written seldom.
            self.waiting = sum(self.broker.llen(POOL + suffix) for suffix in PRIORITIES)
        except (OSError, kube.Refused, ValueError, redis.RedisError):
            return
        self.queue = named["taskqueues"].get(POOL, {}).get("status", {})
        self.pool = named["workerpools"].get(POOL, {}).get("status", {})
        self.periodic = {name: one.get("status", {}) for name, one in named["periodictasks"].items()}
        self.targets = {name: one.get("status", {}) for name, one in named["targetclusters"].items()}
        self.sizes.append(self.size)
        last = self.pool.get("lastScale")
        if last and (not self.steps or self.steps[-1] != last):
            self.steps.append(last)

    @property
    def size(self):
        return self.pool.get("replicas", 0)

    @property
    def largest(self):
        return max(self.sizes, default=0)

    @property
    def elapsed(self):
        return int(time.monotonic() - self.begin)


def target_words(status):
    if not status.get("version"):
        return status.get("lastError") or "not seen yet"
    nodes = status.get("nodes", {})
    return f"{status['version']} {nodes.get('ready', 0)}/{nodes.get('total', 0)} nodes {status.get('apiLatencyMs', '?')} ms"


def block(screen, picture, producer, history):
    """The picture as rows for a terminal."""
    pool, depth = picture.pool, picture.queue.get("depth", {})
    alive = [worker for worker in history.of(POOL) if worker.gone is None]
    running = sum(len(worker.running) for worker in alive)
    rows = [
        "",
        f"  {screen.bold('Umbel')} {screen.dim(f'{picture.elapsed // 60}:{picture.elapsed % 60:02}')}",
        "",
        f"  Celery     {bar(producer.read, producer.total, 32)} {producer.sent:5} sent, {producer.read:5} results read"
        + (screen.bad(f", {producer.wrong} wrong") if producer.wrong else ""),
        f"  queue      {picture.waiting:5} waiting {running:4} running {depth.get('dead', 0):3} dead",
        f"  pool       {spark(picture.sizes[-32:], LARGEST):>32} {picture.size} pods, {pool.get('busyReplicas', 0)} busy, "
        f"{pool.get('drainingReplicas', 0)} draining, wants {pool.get('desiredReplicas', 0)}",
    ]
    for index in range(LARGEST):
        if index < len(alive):
            worker = alive[index]
            busy = min(len(worker.running), SLOTS)
            rows.append(f"             {screen.good('■' * busy)}{'□' * (SLOTS - busy)} {worker.pod:24} {len(worker.ended):4} done")
        else:
            rows.append("")
    last = picture.steps[-1] if picture.steps else None
    rows.append(f"  last step  {last['from']} → {last['to']}: {last['reason']}" if last else "  last step  none yet")
    sync, rollout = picture.periodic.get("sync", {}), picture.periodic.get("rollout", {})
    rows.append(f"  schedules  sync every 10 s: {sync.get('runs', 0)} fired; rollout to tier=edge: {rollout_words(rollout)}")
    for name in picture.stage.targets:
        rows.append(f"  {name:10} {target_words(picture.targets.get(name, {}))}")
    return rows


def rollout_words(status):
    run = status.get("lastRun")
    return f"{run.get('succeeded', 0)} of {run['total']} clusters" if run else "soon"


def line(picture, producer, history):
    """The picture in one line, for a log."""
    running = sum(len(worker.running) for worker in history.of(POOL))
    return (f"  {picture.elapsed:4} s  sent {producer.sent:4}  read {producer.read:4}  waiting {picture.waiting:4}  running {running:3}  "
            f"pods {picture.size} (wants {picture.pool.get('desiredReplicas', 0)})  sync runs {picture.periodic.get('sync', {}).get('runs', 0)}  "
            f"rollout {rollout_words(picture.periodic.get('rollout', {}))}")
