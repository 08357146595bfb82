# What the outcomes' test asks a real Celery client: the tasks are Celery's own integration tasks, run by our worker.
import json
import sys
import time
import types

import redis
from celery.canvas import StampingVisitor
from celery.result import AsyncResult, GroupResult, result_from_tuple

SOON = 20
NAMES = "t.integration.tasks."
server = redis.Redis.from_url(app.conf.broker_url, decode_responses=True)

# The client's program has the module whose exceptions the tasks raise.
for name in ["t", "t.integration", "t.integration.tasks"]:
    sys.modules.setdefault(name, types.ModuleType(name))


class ExpectedException(Exception):
    pass


ExpectedException.__module__ = "t.integration.tasks"
sys.modules["t.integration.tasks"].ExpectedException = ExpectedException


def sig(task, *args, **kwargs):
    return app.signature(NAMES + task, args=args, kwargs=kwargs)


def si(task, *args, **kwargs):
    return app.signature(NAMES + task, args=args, kwargs=kwargs, immutable=True)


def ended(result):
    """The value, or the exception by class and arguments."""
    try:
        return result.get(timeout=SOON)
    except Exception as err:
        return [f"{type(err).__module__}.{type(err).__name__}", list(err.args)]


def run(workflow, **options):
    return ended(workflow.apply_async(**options))


def named(error):
    return error[0] if isinstance(error, list) else error


def until(condition):
    deadline = time.monotonic() + SOON
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.01)


def echoed(count, key="redis-echo"):
    until(lambda: server.llen(key) >= count)
    messages = server.lrange(key, 0, -1)
    server.delete(key)
    return messages


def meta(result):
    return app.backend.get_task_meta(result.id)
