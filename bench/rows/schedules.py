"""The operator: many schedules that fire every few seconds."""

import json
import time

from plane import HERE, OURS, Operator, Plane
from stage import Server, quantile, wait

SCHEDULES = 10_000
# Seconds between two slots of a schedule, and how long is measured.
EVERY, LONG = 10, 60
# How often the queue is looked at: what is found may have been sent by so much earlier.
LOOK = 0.02

LATE = {"apart": "10,000 schedules every 10 s, slot → sent p99 (ms)", "together": "the same, all in one second, p99 (ms)"}
WRONG = {"apart": "the same, slots lost or sent twice", "together": "the same, all in one second, lost or sent twice"}
WRITES = "the same, statuses written a second"
CPU, RSS = "the same, operator CPU (% of a core)", "the same, operator RSS (MiB)"


def schedules(figures, sizes):
    count = SCHEDULES if sizes.rounds > 1 else SCHEDULES // 20
    for kind in ("apart", "together"):
        plane, server = Plane(), Server()
        try:
            measure(figures, plane, server, kind, count)
        finally:
            plane.close()
            server.close()


def measure(figures, plane, server, kind, count):
    secret = {"metadata": {"name": "redis"}, "stringData": {"url": f"redis://127.0.0.1:{server.port}/0"}}
    plane.create(f"/api/v1{HERE}/secrets", [secret])
    broker = {"redis": {"urlSecretRef": {"name": "redis", "key": "url"}}}
    queue = {"apiVersion": "umbel.dev/v1alpha1", "kind": "TaskQueue", "metadata": {"name": "q"}, "spec": {"broker": broker}}
    plane.create(f"{OURS}{HERE}/taskqueues", [queue])
    begun = time.time()
    # Objects are made while nothing is due yet.
    start = int(begun + 30 + count / 100)
    plane.create(f"{OURS}{HERE}/periodictasks", [schedule(n, start, kind) for n in range(count)])
    operator = Operator(plane)
    try:
        wait("all are understood", lambda: understood(plane) == count or time.time() > start - 2, 600, 1)
        server.client.delete("q")
        while time.time() < start + EVERY - 0.5:
            time.sleep(0.05)
        used, writes = operator.cpu(), plane.writes()
        sent = watch(server, start + EVERY, start + EVERY + LONG)
        figures.note(CPU, "umbel", 100 * (operator.cpu() - used) / LONG)
        figures.note(RSS, "umbel", operator.rss())
        changed = plane.writes()
        changed.subtract(writes)
        figures.note(WRITES, "umbel", sum(changed.values()) / LONG)
    finally:
        operator.close()
    slots, lates = {}, []
    for at, (name, slot) in sent:
        slots[name, slot] = slots.get((name, slot), 0) + 1
        lates.append(at - slot)
    expected = {(str(n), start + EVERY + offset(n, kind) + EVERY * k) for n in range(count) for k in range(LONG // EVERY)}
    lost = len(expected - slots.keys())
    doubled = sum(times - 1 for times in slots.values())
    figures.note(WRONG[kind], "umbel", lost + doubled)
    figures.note(LATE[kind], "umbel", 1000 * quantile(lates, 0.99))


def offset(n, kind):
    return n % EVERY if kind == "apart" else 0


def schedule(n, start, kind):
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start + offset(n, kind)))
    return {
        "apiVersion": "umbel.dev/v1alpha1",
        "kind": "PeriodicTask",
        "metadata": {"name": f"s{n}"},
        "spec": {
            "schedule": {"every": f"{EVERY}s"},
            "startTime": at,
            "overlap": "Allow",
            "missedRuns": "RunAll",
            "taskTemplate": {"queueRef": {"name": "q"}, "task": "umbel.echo", "kwargs": {"n": str(n)}},
        },
    }


def understood(plane):
    items = plane.call("GET", f"{OURS}{HERE}/periodictasks")["items"]
    return sum("nextScheduleTime" in item.get("status", {}) for item in items)


def watch(server, begin, end):
    """Every message of these slots, with the time by Redis's clock at which it was found."""
    found, seen = [], 0
    while True:
        seconds, micros = server.client.time()
        now = seconds + micros / 1e6
        length = server.client.llen("q")
        if length > seen:
            # New ones are at the head, and more of them come: counted from the tail, places stay.
            raws = server.client.lrange("q", -length, -seen - 1)
            seconds, micros = server.client.time()
            found += [(seconds + micros / 1e6, raw) for raw in raws]
            seen = length
        if now > end + 5:
            break
        time.sleep(LOOK)
    sent = []
    for at, raw in found:
        message = json.loads(raw)
        slot = message["headers"]["umbel_order"] / 1000
        if begin <= slot < end:
            sent.append((at, (name_of(message), slot)))
    return sent


def name_of(message):
    origin = message["headers"]["origin"]
    return origin.removeprefix("beat@s")
