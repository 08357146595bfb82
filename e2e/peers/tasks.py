"""Tasks of the Celery workers that run beside ours."""

import os
import time

from app import app


def history(event, task_id):
    """One line in the file of this process, in the format of the test kit."""
    folder = os.environ.get("UMBEL_TEST_HISTORY")
    if folder:
        with open(os.path.join(folder, f"process-{os.getpid()}"), "a") as file:
            file.write(f"{time.time_ns() // 1000} {os.getpid()} {event} 0 {task_id}\n")


@app.task(name="umbel.echo")
def echo(*args, **kwargs):
    return {"args": args, "kwargs": kwargs}


@app.task(name="umbel.sleep")
def sleep(seconds):
    time.sleep(seconds)
    return seconds


@app.task(name="test.work", bind=True)
def work(self, seconds=0):
    history("started", self.request.id)
    time.sleep(seconds)
    history("effect", self.request.id)
    history("done", self.request.id)
    return seconds


@app.task(name="peers.work", bind=True, acks_late=True)
def work_late(self, seconds=0):
    history("started", self.request.id)
    time.sleep(seconds)
    history("effect", self.request.id)
    history("done", self.request.id)


@app.task(name="bench.stamp")
def stamp():
    return time.time() * 1e6


@app.task(name="bench.count")
def count(results):
    return len(results)
