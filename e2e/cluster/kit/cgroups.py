"""The control groups of one cluster's pods, on cgroup v1 and v2: where to find every process of every pod."""

import contextlib
import os
import pathlib

MOUNT = pathlib.Path("/sys/fs/cgroup")


def root(identity):
    return f"/umbel-{identity}"


def hierarchies():
    if (MOUNT / "cgroup.controllers").exists():
        return [MOUNT]
    return [folder for folder in MOUNT.iterdir() if (folder / "cgroup.procs").exists() and not folder.is_symlink()]


def create(identity):
    for hierarchy in hierarchies():
        folder = hierarchy / root(identity)[1:]
        folder.mkdir(exist_ok=True)
        if hierarchy == MOUNT:
            for controller in (MOUNT / "cgroup.controllers").read_text().split():
                # Some may be impossible here; the kubelet says so if it needs one of them.
                with contextlib.suppress(OSError):
                    (MOUNT / "cgroup.subtree_control").write_text(f"+{controller}")
        # A fresh v1 cpuset has no processors and refuses every process.
        for limit in ("cpuset.cpus", "cpuset.mems"):
            if hierarchy != MOUNT and (folder / limit).exists() and not (folder / limit).read_text().strip():
                (folder / limit).write_text((hierarchy / limit).read_text())


def folders(identity):
    """All groups of the cluster, the innermost first."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / root(identity)[1:], topdown=False):
            yield pathlib.Path(folder)


def processes(identity):
    """The ids of all processes in all pods."""
    found = set()
    for folder in folders(identity):
        try:
            found.update(map(int, (folder / "cgroup.procs").read_text().split()))
        except OSError:
            continue
    return found


def remove(identity):
    """Removes the groups; answers whether all are gone."""
    for folder in folders(identity):
        try:
            folder.rmdir()
        except OSError:
            continue
    return not any(True for _ in folders(identity))
