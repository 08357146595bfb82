"""Tasks that do nothing."""

from stage import Server, celery, floor, ready, throughput, umbel

PLAIN, STORED = "no-op tasks/s, no results", "no-op tasks/s, with results"


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


def best_of(lines):
    best = {}
    for line in lines:
        best[line["name"]] = max(best.get(line["name"], 0), line["per_second"])
    return best
