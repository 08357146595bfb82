"""The measurements: each function takes `(figures, sizes)`; `bench/run --only` calls them by these names."""

from rows import chord, clusters, cost, enqueue, fleet, idle, latency, later, pools, schedules, throughput

ROWS = {
    "noop": throughput.noop,
    "logged": throughput.logged,
    "events": throughput.events,
    "processes": throughput.processes,
    "enqueue": enqueue.enqueue,
    "chord": chord.chord,
    "latency": latency.latency,
    "idle": idle.idle,
    "later": later.later,
    "cost": cost.cost,
    "growth": cost.growth,
    "fleet": fleet.fleet,
    "pools": pools.pools,
    "schedules": schedules.schedules,
    "clusters": clusters.clusters,
    "cluster": clusters.one_cluster,
}
