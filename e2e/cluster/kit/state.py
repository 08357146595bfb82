"""What one cluster consists of, kept in DIR/state.json so that any process can use it or take it down.

The file is replaced atomically after every step: a half-made cluster can be
taken down as well as a whole one.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib


class Fault(Exception):
    """Something the caller must act on; printed as one line."""


def path(directory):
    return pathlib.Path(directory) / "state.json"


def identity(directory):
    """A short name for the cluster in `directory`, the same in every process."""
    return hashlib.sha256(str(directory).encode()).hexdigest()[:8]


def load(directory):
    """The recorded state, or None when there is no cluster in `directory`."""
    try:
        return json.loads(path(directory).read_text())
    except FileNotFoundError:
        return None


def save(state):
    target = path(state["dir"])
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(state, indent=1) + "\n")
    scratch.replace(target)


@contextlib.contextmanager
def locked(directory):
    """The state for changing, saved at the end; one process at a time."""
    with open(pathlib.Path(directory) / "state.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = load(directory)
        if state is None:
            raise Fault(f"no cluster in {directory}")
        yield state
        save(state)
