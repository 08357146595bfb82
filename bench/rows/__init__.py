"""The measurements: each function takes `(figures, sizes)`; `bench/run --only` calls them by these names."""

from rows import enqueue, idle, latency, throughput

ROWS = {
    "noop": throughput.noop,
    "enqueue": enqueue.enqueue,
    "latency": latency.latency,
    "idle": idle.idle,
}
