"""The figures that are asked, beside which the table puts what was measured.

Of each row: its own value, its ratio to Celery's prefork pool, its share of the floor, or the multiple of the floor.
"""

ASKED = {
    "no-op tasks/s, no results": [("value", ">=", 100_000), ("share", ">=", 0.60), ("ratio", ">=", 65)],
    "no-op tasks/s, with results": [("share", ">=", 0.60)],
    "enqueue/s, in bulk": [("value", ">=", 250_000), ("share", ">=", 0.50)],
    "enqueue/s, one by one": [("value", ">=", 13_000), ("share", ">=", 0.50)],
    "enqueue to start, p50 (µs)": [("times", "<=", 2)],
    "enqueue to start, p99 (µs)": [("times", "<=", 2), ("value", "<=", 1_000)],
    "round trip, p50 (µs)": [("times", "<=", 2.5)],
    "start to first result (ms)": [("value", "<=", 30)],
    "idle Redis calls/s": [("value", "<=", 1.6)],
    "idle memory, RSS (MiB)": [("value", "<=", 15)],
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
