"""Runs Celery's integration tests without Celery's worker: ours runs, as a process of its own."""

import os
import pathlib
import subprocess

import pytest
from deviations import EXPECTED_FAILURES, NOT_APPLICABLE, PASSED_HERE

import celery.contrib.pytest
from celery.utils.nodenames import anon_nodename

WORKER = None
FLAGS = ["--standalone", "--concurrency", "1", "--result-extended"]


def pytest_sessionstart():
    """The tests of remote control ask for a worker of this name."""
    global WORKER
    with open(os.environ["UMBEL_INTEGRATION_WORKER_LOG"], "wb") as log:
        command = [os.environ["UMBEL_INTEGRATION_WORKER"], *FLAGS, "--name", anon_nodename()]
        WORKER = subprocess.Popen(command, stdout=log, stderr=log)


def pytest_sessionfinish():
    if WORKER.poll() is not None:
        print(pathlib.Path(os.environ["UMBEL_INTEGRATION_WORKER_LOG"]).read_text(errors="replace")[-4000:])
        pytest.exit(f"the worker ended: {WORKER.returncode}", returncode=1)
    WORKER.kill()
    WORKER.wait()


@pytest.fixture(scope="session")
def celery_session_worker(celery_session_app, celery_includes, celery_class_tasks):
    """The tasks are known to the client, as if the worker were here; who runs them is another process."""
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    yield None


# The suite's conftest takes the fixture by name from there.
celery.contrib.pytest.celery_session_worker = celery_session_worker


def reason(table, item):
    """By the name of the test, of its parameters or of its class."""
    parameters = item.callspec.id if hasattr(item, "callspec") else ""
    names = [item.originalname or item.name, item.name, parameters, item.cls.__name__ if item.cls else ""]
    return next((table[name] for name in names if name in table), None)


def pytest_collection_modifyitems(items):
    for item in items:
        if why := reason(NOT_APPLICABLE, item):
            item.add_marker(pytest.mark.skip(reason=why))
        elif why := reason(EXPECTED_FAILURES, item):
            item.add_marker(pytest.mark.xfail(reason=why, strict=False))
        elif reason(PASSED_HERE, item):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "xfail"]
