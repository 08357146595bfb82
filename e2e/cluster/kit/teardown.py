"""Taking a cluster down so that nothing stays: no process, no mount, no namespace, no file.

Works from what is found as well as from what was recorded, so that a cluster
whose making was cut short goes too.
"""

import os
import pathlib
import shutil

from . import cgroups, network, process, state


def down(directory, keep_logs=False):
    """Stops and removes the cluster in `directory`; does nothing when there is none."""
    record = state.load(directory)
    if record is None:
        return
    recorded = {name: pid for name, pid in record["pids"].items() if process.is_running(pid, record["starts"][name])}

    # Who is still making it first, or more comes up while this goes down.
    stop(recorded, "up")
    # Then the watchdog, or it sees the end of its parent and takes the same cluster down once more.
    stop(recorded, "watch")
    if record["level"] == "node":
        # The kubelet before the pods, or it starts them again; containerd after them, or nobody tears them down.
        stop(recorded, "kubelet")
        pods(record["id"])
        stop(recorded, "containerd")
    # Killed, not asked: an API server without its etcd takes a minute to go, and nothing here is kept.
    process.kill([pid for pid in recorded.values() if pid != os.getpid()])
    process.kill(process.marked(directory))
    if record["level"] == "node":
        pods(record["id"])
        sockets(directory)
        unmount(directory)
        process.wait("the control groups to empty", lambda: cgroups.remove(record["id"]), 10)
        network.delete(record["id"], record["netns"])
        log_links(directory)
        address_notes(record["id"])
    files(pathlib.Path(directory), keep_logs)


def stop(recorded, name):
    pid = recorded.pop(name, None)
    if pid is not None and pid != os.getpid():
        process.kill([pid])


def pods(identity):
    process.kill(cgroups.processes(identity))


def sockets(directory):
    """containerd's shims listen under /run whatever its own folders are."""
    for file in pathlib.Path(directory, "containerd", "state").glob("io.containerd.runtime.v2.task/*/*/address"):
        pathlib.Path(file.read_text().strip().removeprefix("unix://")).unlink(missing_ok=True)


def unmount(directory):
    points = [line.split()[4].replace("\\040", " ") for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([one for one in points if one.startswith(f"{directory}/")]):
        process.run("umount", "--lazy", point)


def log_links(directory):
    """The kubelet links every container's log from here, whatever its own folders are."""
    folder = pathlib.Path("/var/log/containers")
    for link in folder.iterdir() if folder.is_dir() else []:
        if link.is_symlink() and os.readlink(link).startswith(f"{directory}/"):
            link.unlink()


def address_notes(identity):
    """The network plugins note every pod's address here, whatever their own folders are."""
    folder = pathlib.Path("/var/lib/cni/results")
    for note in folder.glob(f"umbel-{identity}-*-eth0"):
        pod = note.name.removeprefix(f"umbel-{identity}-").removesuffix("-eth0")
        (folder / f"cni-loopback-{pod}-lo").unlink(missing_ok=True)
        note.unlink()


def files(directory, keep_logs):
    for entry in directory.iterdir():
        if entry.name == "state.json" or (keep_logs and entry.name == "logs"):
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    # Last, so that a teardown that is cut short can be repeated.
    state.path(directory).unlink()
    if not any(directory.iterdir()):
        directory.rmdir()
