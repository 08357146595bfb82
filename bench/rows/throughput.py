"""Tasks that do nothing."""

from stage import WORKER, Server, celery, floor, ready, throughput, umbel

PLAIN, STORED = "no-op tasks/s, no results", "no-op tasks/s, with results"
LOGGED = "no-op tasks/s, append-only file every second"
OFF, ON, COST = "no-op tasks/s, results, events off", "no-op tasks/s, results, events on", "events, cost of throughput (%)"


def noop(figures, sizes):
    server = Server()
    workers = [umbel(server, "ours")]
    if sizes.peers:
        workers += [celery(server, "prefork", "prefork"), celery(server, "solo", "solo")]
    try:
        for worker in workers:
            ready(worker)
        for _ in range(sizes.rounds):
            best = best_of(floor("round", "--port", server.port, "--messages", sizes.floor))
            figures.note(PLAIN, "floor", best["work"])
            figures.note(STORED, "floor", best["work_with_results"])
            for worker in workers:
                count = sizes.ours if worker.name == "umbel" else sizes.celery
                figures.note(PLAIN, worker.name, throughput(worker, count, False))
                figures.note(STORED, worker.name, throughput(worker, count, True))
    finally:
        for worker in workers:
            worker.stop()
        server.close()


def logged(figures, sizes):
    """With Redis' append-only file, written out every second."""
    server = Server("--appendonly", "yes", "--appendfsync", "everysec")
    worker = umbel(server, "ours")
    try:
        ready(worker)
        for _ in range(sizes.few):
            best = best_of(floor("round", "--port", server.port, "--messages", sizes.floor))
            figures.note(LOGGED, "floor", best["work"])
            figures.note(LOGGED, "umbel", throughput(worker, sizes.ours, False))
    finally:
        worker.stop()
        server.close()


def events(figures, sizes):
    """Nobody listens: what is measured is the worker, and Redis, not who reads them."""
    server = Server()
    workers = {OFF: umbel(server, "quiet"), ON: umbel(server, "loud", 256, WORKER, "--task-events")}
    try:
        for worker in workers.values():
            ready(worker)
        for _ in range(sizes.rounds):
            rates = {what: throughput(worker, sizes.ours, True) for what, worker in workers.items()}
            for what, rate in rates.items():
                figures.note(what, "umbel", rate)
            figures.note(COST, "umbel", 100 * (1 - rates[ON] / rates[OFF]))
    finally:
        for worker in workers.values():
            worker.stop()
        server.close()


def processes(figures, sizes):
    """More processes on one queue."""
    for count in (1, 2, 4):
        server = Server()
        workers = [umbel(server, "ours") for _ in range(count)]
        try:
            for worker in workers:
                ready(worker)
            for _ in range(sizes.few):
                what = f"no-op tasks/s, {count} process{'es' if count > 1 else ''}"
                figures.note(what, "umbel", throughput(workers[0], sizes.ours, False))
        finally:
            for worker in workers:
                worker.stop()
            server.close()


def best_of(lines):
    best = {}
    for line in lines:
        best[line["name"]] = max(best.get(line["name"], 0), line["per_second"])
    return best
