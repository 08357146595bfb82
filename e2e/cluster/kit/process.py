"""Starting, finding and stopping the programs of a cluster, always by process id."""

import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import ssl
import subprocess
import time

from .state import Fault

MARK = "UMBEL_CLUSTER_DIR"
"""Every program started for a cluster carries this variable, so that it is found even if recording it was interrupted."""


def binary(name):
    """Where a program is: prebuilt test assets first, then our cache, then Debian's."""
    for variable in ("KUBEBUILDER_ASSETS", "UMBEL_K8S_BIN", "UMBEL_COREDNS_BIN"):
        folder = os.environ.get(variable)
        if folder and os.access(os.path.join(folder, name), os.X_OK):
            return os.path.join(folder, name)
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Fault(f"{name} is not installed: run hack/setup.sh all")
    return found


def spawn(directory, name, argv, netns=None):
    """Starts `argv` detached from us, its output in DIR/logs/NAME.log, and returns its process id."""
    if netns:
        # Not `ip netns exec`: that remounts /sys and hides the cgroups.
        argv = [binary("nsenter"), f"--net=/run/netns/{netns}", *argv]
    logs = pathlib.Path(directory) / "logs"
    logs.mkdir(exist_ok=True)
    with open(logs / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env={**os.environ, MARK: str(directory)},
            start_new_session=True,
        ).pid


def started_at(pid):
    """The start time of a process in clock ticks, or None when it is gone; a zombie is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_running(pid, start):
    """Whether that very process runs, and not a later one that was given the same number."""
    return started_at(pid) == start is not None


def marked(directory):
    """The ids of all processes that were started for the cluster in `directory`, except ours."""
    wanted = f"{MARK}={directory}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = pathlib.Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and started_at(int(entry)) is not None:
            found.append(int(entry))
    return found


def kill(pids, number=signal.SIGKILL, seconds=10):
    """Signals processes and waits until they are gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    try:
        wait("processes to stop", lambda: not any(started_at(pid) for pid in pids), seconds, 0.01)
    except Fault:
        if number == signal.SIGKILL:
            raise
        kill(pids)


def run(*argv, netns=None, text=None):
    """Runs a program to its end and returns its output; fails with what it said."""
    if netns:
        argv = ("nsenter", f"--net=/run/netns/{netns}", *argv)
    done = subprocess.run([binary(argv[0]), *argv[1:]], input=text, capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait(what, condition, seconds, pause=0.05):
    """Returns the first true answer of `condition`, or fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Fault(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)


reservations = []
"""Held until this process ends; by then the components have taken the ports themselves."""


def free_ports(count):
    """Loopback ports that nobody uses or is about to use for a cluster.

    They lie below the range from which outgoing connections are given theirs.
    """
    found = []
    while len(found) < count:
        port = random.randint(20000, 31000)
        reservation, trial = socket.socket(socket.AF_UNIX), socket.socket()
        try:
            reservation.bind(f"\0umbel-port-{port}")
            trial.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        finally:
            trial.close()
        reservations.append(reservation)
        found.append(port)
    return found


def fetch(server, path, ca, certificate, key):
    """What an API server answers an admin's GET: JSON or text, or None unless it is 200."""
    host, port = server.removeprefix("https://").rsplit(":", 1)
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    connection = http.client.HTTPSConnection(host, int(port), timeout=5, context=context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if response.status != 200:
        return None
    return json.loads(body) if body.startswith("{") else body


def last_words(directory, name, lines=15):
    """The end of a component's log, for a failure report."""
    try:
        text = (pathlib.Path(directory) / "logs" / f"{name}.log").read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
