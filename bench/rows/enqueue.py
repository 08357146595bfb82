"""What a producer does in a second."""

import json
import os
import subprocess
import sys

from rows.throughput import best_of
from stage import ENQUEUE, PEERS, Server, floor

BULK, SINGLY = "enqueue/s, in bulk", "enqueue/s, one by one"


def enqueue(figures, sizes):
    server = Server()
    try:
        for _ in range(sizes.rounds):
            # In bulk the floor is LPUSHes pipelined; one by one, each waits for the answer to the one before.
            best = best_of(floor("enqueue", "--port", server.port, "--messages", sizes.floor))
            figures.note(BULK, "floor", best["enqueue"])
            figures.note(SINGLY, "floor", best["enqueue_one"])
            for how, what, count in (("all", BULK, sizes.ours * 4), ("one", SINGLY, sizes.ours // 2)):
                output = subprocess.check_output([ENQUEUE, server.url, "nobody", str(count), how])
                figures.note(what, "umbel", json.loads(output)["per_second"])
                server.client.delete("nobody")
            if not sizes.peers:
                continue
            env = {**os.environ, "UMBEL_PEER_BROKER": server.url, "UMBEL_PEER_RESULTS": server.url}
            command = [sys.executable, PEERS / "enqueue.py", "nobody", str(sizes.celery // 2)]
            rate = json.loads(subprocess.check_output(command, env=env))["per_second"]
            # Celery has no bulk call: its figure stands beside both.
            figures.note(BULK, "celery prefork", rate)
            figures.note(SINGLY, "celery prefork", rate)
            server.client.delete("nobody")
    finally:
        server.close()
