"""Many workers that have nothing to do, on one queue."""

import time

from stage import Server, floor, umbel, wait

WORKERS = 1_000
IDLE, BUSY = "Redis CPU, 1,000 idle workers (% of a core)", "Redis CPU, 1,000 workers, 10 messages/s (% of a core)"
ONE = "memory of one of 1,000 idle workers, RSS (MiB)"


def fleet(figures, sizes):
    count = WORKERS if sizes.rounds > 1 else WORKERS // 20
    server = Server("--maxclients", "15000")
    workers = []
    try:
        for _ in range(count):
            workers.append(umbel(server, "q", 10))
            # Those that start all at once would wait for each other.
            if len(workers) % 20 == 0:
                wait("they are there", lambda: server.client.hlen("umbel:workers") >= len(workers), 60, 0.05)
        time.sleep(30)  # Until all have said hello, looked around and told of themselves.
        figures.note(IDLE, "umbel", 100 * server.busy(sizes.seconds))
        messages = 10 * sizes.seconds
        floor("fill", "--port", server.port, "--key", "staging", "--messages", messages)
        begin, used = time.monotonic(), server.cpu()
        for n in range(messages):
            server.client.lmove("staging", "q", "RIGHT", "LEFT")
            time.sleep(max(0, begin + (n + 1) / 10 - time.monotonic()))
        figures.note(BUSY, "umbel", 100 * (server.cpu() - used) / (time.monotonic() - begin))
        wait("all have run", workers[0].is_idle)
        figures.note(ONE, "umbel", workers[0].rss())
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.wait()
        server.close()
