"""The Celery program of the demo: it knows Celery and a Redis URL, and nothing of Umbel but the names of two tasks.

Prints its progress as JSON lines and, last, what it got wrong: a result that is
not what the task must answer counts as a failure.
"""

import json
import os
import random
import sys
import threading
import time

from celery import Celery

SEED = 7


def tasks(total):
    """Mixed work, the same every time: mostly instant, some waiting, a few long ones."""
    dice = random.Random(SEED)
    for number in range(total):
        draw = dice.random()
        if draw < 0.7:
            yield "umbel.echo", [number], {"from": "celery"}
        elif draw < 0.95:
            yield "umbel.sleep", [round(dice.uniform(0.05, 0.5), 3)], {}
        else:
            yield "umbel.sleep", [round(dice.uniform(1, 3), 3)], {}


def expected(name, args, kwargs):
    return {"args": args, "kwargs": kwargs} if name == "umbel.echo" else args[0]


def pace(number, total):
    """Seconds after the start at which a task is sent: a rush, then a trickle."""
    rush = total * 6 // 10
    return number * 12 / rush if number < rush else 12 + (number - rush) * 18 / (total - rush)


def main():
    url, queue, total = os.environ["DEMO_REDIS_URL"], sys.argv[1], int(sys.argv[2])
    sent, told = [], threading.Condition()
    progress = {"sent": 0, "read": 0, "wrong": 0}

    def say():
        print(json.dumps(progress), flush=True)

    def read():
        app = Celery("reader", broker=url, backend=url)
        for number in range(total):
            with told:
                told.wait_for(lambda: len(sent) > number)
                one, want = sent[number]
            try:
                # A task of a worker that was killed comes back when its lease of a minute has run out and somebody looks.
                if app.AsyncResult(one).get(timeout=150) != want:
                    raise ValueError(f"task {one} answered something else")
                progress["read"] += 1
            except Exception as fault:  # every kind of failure is one thing here: a task that did not succeed
                progress["wrong"] += 1
                print(f"{type(fault).__name__}: {fault}", file=sys.stderr, flush=True)
            if number % 10 == 0:
                say()

    reader = threading.Thread(target=read)
    reader.start()
    app = Celery("producer", broker=url)
    begin = time.monotonic()
    with app.connection_for_write() as connection:
        for number, (name, args, kwargs) in enumerate(tasks(total)):
            time.sleep(max(0, begin + pace(number, total) - time.monotonic()))
            result = app.send_task(name, args, kwargs, queue=queue, connection=connection)
            with told:
                sent.append((result.id, expected(name, args, kwargs)))
                told.notify()
            progress["sent"] += 1
    say()
    reader.join()
    say()


main()
