"""A large chord: the last of its members fetches all results and sends the body."""

import json
import subprocess

from stage import CHORD, Server, apart, ready

MEMBERS = 10_000
ROW = "chord of 10,000, last member sent to result (s)"


def chord(figures, sizes):
    members = MEMBERS if sizes.rounds > 1 else MEMBERS // 10
    for kind in sizes.kinds()[:2]:
        server = Server()
        worker = apart(kind, "q", server)
        try:
            ready(worker)
            # Once: Celery's takes most of a minute.
            output = subprocess.check_output([CHORD, server.url, "q", str(members)])
            figures.note(ROW, kind, json.loads(output)["seconds"])
        finally:
            worker.stop()
            server.close()
