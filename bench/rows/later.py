"""Tasks that are due later: parked in Redis, started when they are due."""

import json
import subprocess
import time

from stage import FLOOR, TASKS, Server, floor, quantile, ready, umbel, wait

PARKED, STEADY, BURST = 100_000, 10_000, 100_000
MEMORY = "100,000 parked ETAs, growth of the worker (MiB)"
LATE = "start after due, p99 at 1,000 due/s (ms)"
ALL = "100,000 due at once, the last started after (s)"
FRESH = "fresh messages meanwhile, p99 (ms)"


def later(figures, sizes):
    scale = 1 if sizes.rounds > 1 else 10
    server = Server()
    worker = umbel(server, "q", 256, TASKS)
    try:
        ready(worker)
        before = worker.rss()
        steady, burst = STEADY // scale, BURST // scale
        # First 1,000 a second, then all at once; there is time to park them.
        begin = time.time() + 25 / scale + 5
        at_once = begin + steady / 1_000 + 5
        fill = ["fill", "--port", server.port, "--task", "bench.stamp", "--results"]
        floor(*fill, "--key", "burst", "--messages", burst, "--eta", at_once, "--ids", "burst")
        floor(*fill, "--key", "steady", "--messages", steady, "--eta", begin, "--ids", "steady", "--spread", steady // 1_000)
        for key in ("steady", "burst"):
            server.client.rename(key, "q")
            wait("all are parked", worker.is_idle, 60)
        if time.time() > begin:
            raise TimeoutError("parking took longer than there was time for it")
        figures.note(MEMORY, "umbel", max(worker.rss() - before, 0.1))
        time.sleep(max(0, at_once - 1 - time.time()))
        fresh = subprocess.Popen(
            [str(part) for part in (FLOOR, "latency", "--port", server.port, "--queue", "q", "--task", "bench.stamp", "--count", 220)],
            stdout=subprocess.PIPE,
            text=True,
        )
        wait("all have run", lambda: server.client.zcard("umbel:delayed:q") == 0 and worker.is_idle(), 120, 0.01)
        lines = [json.loads(line) for line in fresh.communicate()[0].splitlines()]
        figures.note(FRESH, "umbel", next(line["p99_us"] for line in lines if line["name"] == "enqueue_to_start") / 1000)
        late = [start - (begin + n / 1_000) for n, start in starts(server.client, steady, "steady")]
        figures.note(LATE, "umbel", max(quantile(late, 0.99) * 1000, 0.1))
        last = max(start for _, start in starts(server.client, burst, "burst"))
        figures.note(ALL, "umbel", last - at_once)
    finally:
        worker.stop()
        server.close()


def starts(client, count, ids):
    """Numbers of tasks, and when each has started."""
    for first in range(0, count, 5_000):
        some = range(first, min(first + 5_000, count))
        for n, raw in zip(some, client.mget([f"celery-task-meta-{ids}{n}" for n in some])):
            yield n, json.loads(raw)["result"] / 1e6
