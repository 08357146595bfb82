"""The figures that are asked, beside which the table puts what was measured.

Of each row: its own value, its ratio to Celery's prefork pool, its share of the floor, or the multiple of the floor.
"""

ASKED = {
    "no-op tasks/s, no results": [("value", ">=", 100_000), ("share", ">=", 0.60), ("ratio", ">=", 65)],
    "no-op tasks/s, with results": [("share", ">=", 0.60)],
    "no-op tasks/s, append-only file every second": [("share", ">=", 0.60)],
    "events, cost of throughput (%)": [("value", "<=", 30)],
    "chord of 10,000, last member sent to result (s)": [("ratio", ">=", 20)],
    "enqueue/s, in bulk": [("value", ">=", 250_000), ("share", ">=", 0.50)],
    "enqueue/s, one by one": [("value", ">=", 13_000), ("share", ">=", 0.50)],
    "enqueue to start, p50 (µs)": [("times", "<=", 2)],
    "enqueue to start, p99 (µs)": [("times", "<=", 2), ("value", "<=", 1_000)],
    "round trip, p50 (µs)": [("times", "<=", 2.5)],
    "start to first result (ms)": [("value", "<=", 30)],
    "idle Redis calls/s": [("value", "<=", 1.6)],
    "idle memory, RSS (MiB)": [("value", "<=", 15)],
    "100,000 parked ETAs, growth of the worker (MiB)": [("value", "<=", 15)],
    "start after due, p99 at 1,000 due/s (ms)": [("value", "<=", 250)],
    "100,000 due at once, the last started after (s)": [("value", "<=", 5)],
    "fresh messages meanwhile, p99 (ms)": [("value", "<=", 250)],
    "Redis CPU a task, reserve and ack, batched (µs)": [("times", "<=", 1.5)],
    "Redis CPU a task, reserve and ack, one slot (µs)": [("value", "<=", 60)],
    "Redis CPU, 1,000 idle workers (% of a core)": [("value", "<=", 2)],
    "Redis CPU, 1,000 workers, 10 messages/s (% of a core)": [("value", "<=", 25)],
    "10,000 schedules every 10 s, slot → sent p99 (ms)": [("value", "<=", 1_000)],
    "the same, slots lost or sent twice": [("value", "<=", 0)],
    "the same, all in one second, p99 (ms)": [("value", "<=", 1_000)],
    "the same, all in one second, lost or sent twice": [("value", "<=", 0)],
    "2,000 pools on 1 Redis: operator memory, RSS (MiB)": [("value", "<=", 200)],
    "2,000 pools on 1 Redis: operator CPU at rest (% of a core)": [("value", "<=", 50)],
    "2,000 pools on 1 Redis: Redis round trips a broker and interval at rest": [("value", "<=", 1)],
    "2,000 pools on 1 Redis: API writes a minute at rest": [("value", "<=", 0)],
    "2,000 pools on 1 Redis: message by Celery's producer to size, p99 (ms)": [("value", "<=", 3_000)],
    "2,000 pools on 1 Redis: message by our client to size, p99 (ms)": [("value", "<=", 1_000)],
    "sync of 500 clusters, 5 workers, first time (s)": [("value", "<=", 30)],
    "cluster syncs/s, once connected": [("value", ">=", 60), ("share", ">=", 0.60)],
    "10 of 500 clusters dead, the others' syncs take (% of before)": [("value", "<=", 105)],
    "100 of 500 clusters dead, the others' syncs take (% of before)": [("value", "<=", 105)],
    "worker with 500 clusters connected, RSS (MiB)": [("value", "<=", 150)],
    "apply, objects/s that are in place already": [("share", ">=", 0.80)],
    "memory of one of 5,000 waits (KiB)": [("value", "<=", 20)],
    "sync of a cluster with 5,000 pods, memory above idle (MiB)": [("value", "<=", 10)],
}

WORDS = {"value": "{0:,g}", "share": "{0:.0%} of the floor", "ratio": "{0:g}×", "times": "{0:g} × the floor"}


def asked(what):
    """What is asked of a row, as text."""
    sign = {">=": "≥", "<=": "≤"}
    return ", ".join(f"{sign[order]} {WORDS[kind].format(limit)}" for kind, order, limit in ASKED.get(what, ()))


def verdict(what, quantities):
    """Is it met? `quantities` are value, ratio, share and times, as far as they were measured."""
    met = []
    for kind, order, limit in ASKED.get(what, ()):
        got = quantities.get(kind)
        met.append(None if got is None else got >= limit if order == ">=" else got <= limit)
    if not met:
        return ""
    if None in met:
        return "not met" if False in met else "not measured"
    return "met" if all(met) else "not met"
