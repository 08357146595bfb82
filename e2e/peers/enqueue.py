"""How fast Celery makes and enqueues messages, with one connection held open: `enqueue.py QUEUE COUNT`."""

import json
import sys
import time

from app import app

queue, count = sys.argv[1], int(sys.argv[2])
with app.producer_or_acquire() as producer:
    app.send_task("umbel.echo", args=["x" * 100], queue=queue, producer=producer, ignore_result=True)
    begin = time.perf_counter()
    for _ in range(count):
        app.send_task("umbel.echo", args=["x" * 100], queue=queue, producer=producer, ignore_result=True)
    rate = count / (time.perf_counter() - begin)
print(json.dumps({"name": "enqueue", "parameters": "one a call", "per_second": round(rate)}))
