"""A worker that has nothing to do, and how long it takes to be one."""

import time

from stage import Server, apart, floor, umbel, wait


def idle(figures, sizes):
    for _ in range(sizes.few):
        for kind in sizes.kinds():
            server = Server()
            floor("fill", "--port", server.port, "--key", "q", "--messages", 1, "--results")
            worker = umbel(server, "q", 10) if kind == "umbel" else apart(kind, "q", server)
            try:
                done = lambda: any(server.client.scan_iter("celery-task-meta-*"))  # noqa: B023, E731
                wait(f"{kind} starts", done)
                figures.note("start to first result (ms)", kind, (time.monotonic() - worker.begin) * 1000)
                wait(f"{kind} is idle", worker.is_idle)
                time.sleep(3)
                figures.note("idle Redis calls/s", kind, server.calls(sizes.seconds))
                figures.note("idle memory, RSS (MiB)", kind, worker.rss())
            finally:
                worker.stop()
                server.close()
