"""What was measured, as text."""

import os
import pathlib
import platform
import subprocess

from asked import asked, verdict

COLUMNS = ("umbel", "celery prefork", "celery solo", "floor")
HIGHER_IS_BETTER = ("no-op", "enqueue/s", "cluster syncs/s", "apply, objects/s")

PAGE = """# Benchmarks

Made by `make bench` (`bench/run --docs`); what is measured how is written there. Redis, all workers and the load share
one machine. Rounds are interleaved and medians shown. *Ratio* is Umbel against Celery's prefork pool, above 1 is better
for Umbel whichever way the figure counts.

The *floor* is what bare Redis work allows: a client of a few hundred lines that does a queue's commands in the best
batches and nothing else: it decodes nothing, schedules nothing and survives nothing. `bench/floor`.

* *Asked* is what the figure shall reach: its own value, a multiple of Celery's prefork pool (×), a share of the floor, or a
  multiple of it. What is not met is said so.
* Messages are 1.1 KiB as Celery sends them, the task is `umbel.echo` with one argument of 100 characters.
* Umbel runs with `--concurrency 256` for throughput, with 10 slots otherwise. Celery runs a child per core, without
  gossip, mingle and heartbeats, and with a prefetch multiplier of 64; the default of 4 measures the same for such tasks.
* Celery acknowledges before it runs a task (its default), Umbel after: a killed worker loses work there and not here.
* Enqueue: Umbel's library (`umbel-client`), 20,000 in a call, and one call after the other; Celery's `send_task` sends one and
  has no call for many, so its figure stands beside both.
* Chord: 10,000 members and a body, sent by Umbel's library to both; from when the last member was sent until the result of
  the body is there. Celery's takes most of a minute, so it runs once.
* Events: nobody listens to them; the cost is that of the worker and of Redis.
* More processes than cores share them with Redis and each other.
* Redis CPU is what the server says it used, over all its threads; for each task, that of reserving and acknowledging messages
  that wait already, without their enqueueing.
* ETAs: 100,000 for the same moment and 10,000 before it, spread over ten seconds; each task returns when it started. Fresh
  messages are sent one by one around the moment in which all are due.
* What a task costs in CPU says more on a busy machine than tasks a second: see the rows of Redis CPU.
* A machine that does other work besides (see its load) slows Celery down more than Umbel: compare runs at rest.
* Pools: a real API server with its controllers and no nodes; each pool has a queue of its own and no pods (`minReplicas: 0`). At
  rest means that the operator has written nothing for 20 s; round trips to Redis are counted by a relay, API writes by the API
  server's audit log, without the Lease. To size: from before a message is sent into an empty queue of any pool, at any time between two
  samples, until a watch shows the size in the pool's Deployment. The operator has the settings that it has by itself (an interval of 1 s).
* Clusters: 500 kubeconfigs whose ports a relay leads to three real API servers; their budgets are set higher than by default, so
  that the program is measured and not its limit. The floor is bare kube clients that ask the same. A dead cluster is a black hole: its
  connections stay open and say nothing. It is measured when the workers have found out which are dead, all of them still getting tasks.
* Memory is RSS, with children. Redis calls are counted as they arrive; a script is one call.

What limits the figures that are not met, by `perf`:

* **Tasks a second.** Two cores hold Redis, the worker and the load. By callgrind a no-op task cost the worker 43,200 instructions until
  2026-12-01, 26,100 of them for reading its message; it is 29,300 since, as messages that are laid out like earlier ones are only compared with
  them, and since reserves and acknowledgements have connections of their own, with fewer changes of threads. Redis spends about a quarter of its
  time on hashing each message as a string of Lua, the floor as well. What is left: by the kernel's counts Redis waits for a core
  for an eighth of the time although there is half a core idle, as threads that wake each other are put on one core; with Redis on one core and the
  worker on the other it is a sixth more. Tried and no better: smaller batches (64: a sixth less; 96: no gain), one runner or one thread of the
  runtime (no change), 512 slots (no gain since).
* **Enqueue to start.** The floor is one blocking pop. A message that must not get lost takes two conversations: Redis reports that the
  list has changed, and a script moves the message under a lease. After the 5 to 55 ms of rest between two messages caches are
  cold, and all code takes about three times as long: of some 700 µs the push and its report take 170, the worker's way from
  the report to its call 130, the script with its 17 commands 190, reading and starting the task 150. Little of it is waiting: the
  loop on a thread and a connection of its own, without any change of threads, took 50 to 140 µs less and a tenth to a
  seventh of the throughput (two designs), so it is not done. No better: to poll for the reply instead of sleeping, and
  to let the run go first where it was started.
* **Redis CPU, one slot.** Two calls a message, each about 20 µs in the kernel for reading, writing and waiting; the 25 commands in the two scripts
  take as much again as both. Many slots share calls, one cannot.

"""


def facts(python):
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    memory = next(int(line.split()[1]) // 1024**2 for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    run = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip()  # noqa: E731
    versions = run(python, "-c", "import celery, kombu, redis; print(celery.__version__, kombu.__version__, redis.__version__)")
    root = pathlib.Path(__file__).resolve().parents[1]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory GiB": memory,
        "kernel": platform.release(),
        "redis": run("redis-server", "--version").split("v=")[1].split()[0],
        "celery, kombu, redis-py": versions,
        "python": platform.python_version(),
        "rust": run("rustc", "--version"),
        "commit": run("git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"),
        "load at the end": round(os.getloadavg()[0], 1),
    }


def number(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def rows(results):
    for what, row in results["medians"].items():
        ours, theirs, floor = row.get("umbel"), row.get("celery prefork"), row.get("floor")
        quantities = {"value": ours}
        if ours is not None and theirs is not None:
            quantities["ratio"] = ours / theirs if what.startswith(HIGHER_IS_BETTER) else theirs / max(ours, 0.05)
        if ours is not None and floor is not None:
            quantities["share"] = ours / floor if what.startswith(HIGHER_IS_BETTER) else floor / ours
            quantities["times"] = ours / floor
        cells = [number(row[name]) if name in row else "" for name in COLUMNS]
        ratio = f"{quantities['ratio']:.1f}×" if "ratio" in quantities else ""
        share = f"{quantities['share']:.0%}" if "share" in quantities else ""
        yield [what, *cells, ratio, share, asked(what), verdict(what, quantities)]


HEAD = ["", "Umbel", "Celery prefork", "Celery solo", "floor", "ratio", "of the floor", "asked", ""]


def text(results):
    table = [HEAD, *rows(results)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in table]
    return "\n".join(lines)


def page(results):
    lines = [PAGE, "| " + " | ".join(HEAD) + " |\n", "|---" + "|--:" * (len(HEAD) - 1) + "|\n"]
    lines += ["| " + " | ".join(row) + " |\n" for row in rows(results)]
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    lines.append(f"\nMeasured {results['at']}, {results['rounds']} rounds. {machine}.\n")
    return "".join(lines)
