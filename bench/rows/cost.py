"""What a task costs Redis: processor time of the server, in microseconds."""

from stage import Server, celery, drain, floor, ready, umbel

BATCHED, SINGLE = "Redis CPU a task, reserve and ack, batched (µs)", "Redis CPU a task, reserve and ack, one slot (µs)"
PAYLOADS = ((100, "100 B"), (1 << 10, "1 KiB"), (16 << 10, "16 KiB"), (64 << 10, "64 KiB"), (256 << 10, "256 KiB"))
QUEUES = (1, 10, 100, 1_000)
# Bytes of all messages of a run with payloads.
VOLUME = 256 << 20


def cost(figures, sizes):
    """Messages of 1.1 KiB that wait: reserving and acknowledging them, without their enqueueing."""
    server = Server()
    batched, single = umbel(server, "many"), umbel(server, "one", 1)
    # Its pop and its record of each message, as one slot makes them.
    peers = [celery(server, "solo", "solo")] if sizes.peers else []
    try:
        for worker in (batched, single, *peers):
            ready(worker)
        for _ in range(sizes.few):
            lines = floor("round", "--port", server.port, "--messages", sizes.floor)
            best = min(line["redis_us"] for line in lines if line["name"] == "work")
            figures.note(BATCHED, "floor", best)
            figures.note(BATCHED, "umbel", drain(batched, sizes.ours))
            figures.note(SINGLE, "umbel", drain(single, sizes.ours // 10))
            for peer in peers:
                figures.note(SINGLE, peer.name, drain(peer, sizes.celery))
    finally:
        for worker in (batched, single, *peers):
            worker.stop()
        server.close()


def growth(figures, sizes):
    """Over the length of the argument, and over the number of queues of one worker."""
    server = Server()
    worker = umbel(server, "q")
    try:
        ready(worker)
        for size, name in PAYLOADS:
            count = min(sizes.ours, VOLUME // (size * 3 // 2 + 900))
            figures.note(f"Redis CPU a task, payload of {name} (µs)", "umbel", drain(worker, count, "--bytes", size))
    finally:
        worker.stop()
        server.close()
    for queues in QUEUES:
        server = Server()
        names = ",".join(f"q{n}" for n in range(queues)) if queues > 1 else "q"
        worker = umbel(server, names)
        try:
            worker.queue = "q" if queues == 1 else "q0"
            ready(worker)
            rate = drain(worker, sizes.ours, "--keys", queues, key="q")
            figures.note(f"Redis CPU a task, {queues:,} queue{'s' if queues > 1 else ''} (µs)", "umbel", rate)
        finally:
            worker.stop()
            server.close()
