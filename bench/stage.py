"""What a measurement is made of: servers, workers of either kind, and the load."""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment():
    """Continues under the Python that has Celery and redis-py."""
    lines = subprocess.run([ROOT / "hack" / "env.sh"], capture_output=True, text=True, check=True).stdout
    venv = next(line.split("'")[1] for line in lines.splitlines() if line.startswith("export UMBEL_VENV="))
    python = pathlib.Path(os.environ.get("UMBEL_VENV", venv)) / "bin" / "python"
    if not python.exists():
        sys.exit(f"no Python environment at {python}: run hack/setup.sh venv")
    if pathlib.Path(sys.prefix) != python.parents[1].resolve() and os.environ.get("UMBEL_BENCH_PYTHON") != str(python):
        os.environ["UMBEL_BENCH_PYTHON"] = str(python)
        os.execv(python, [str(python), *sys.argv])


environment()

import redis  # noqa: E402

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WORKER = TARGET / "release" / "umbel-worker"
TASKS = TARGET / "release" / "examples" / "test_tasks"
ENQUEUE = TARGET / "release" / "examples" / "enqueue"
CHORD = TARGET / "release" / "examples" / "chord"
OPERATOR = TARGET / "release" / "umbel-operator"
TARGETS = TARGET / "release" / "examples" / "targets"
FLOOR = ROOT / "bench" / "floor" / "target" / "release" / "umbel-bench-floor"
PEERS = ROOT / "e2e" / "peers"
PROGRAMS = (WORKER, OPERATOR, TASKS, ENQUEUE, CHORD, TARGETS, FLOOR)
CORES = os.cpu_count()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait(what, condition, seconds=60, pause=0.001):
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(pause)


class Server:
    """A Redis of its own."""

    def __init__(self, *settings):
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="umbel-bench-")
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder, *settings],
            stdout=subprocess.DEVNULL,
        )
        self.client = redis.Redis(port=self.port)
        wait("redis answers", self.answers)
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def answers(self):
        try:
            return self.client.ping()
        except redis.ConnectionError:
            return False

    def calls(self, seconds):
        """Calls a second that arrive; the commands inside of a script are part of its call."""
        with socket.create_connection(("127.0.0.1", self.port)) as s:
            s.sendall(b"MONITOR\r\n")
            until, text = time.monotonic() + seconds, b""
            while (left := until - time.monotonic()) > 0:
                s.settimeout(left)
                try:
                    text += s.recv(65536)
                except TimeoutError:
                    break
        lines = [line for line in text.splitlines() if line.startswith(b"+") and line != b"+OK"]
        return sum(b" lua] " not in line for line in lines) / seconds

    def cpu(self):
        """Seconds of processor time used so far."""
        used = self.client.info("cpu")
        return used["used_cpu_user"] + used["used_cpu_sys"]

    def busy(self, seconds):
        """Share of a core that is used, over so many seconds."""
        begin, used = time.monotonic(), self.cpu()
        time.sleep(seconds)
        return (self.cpu() - used) / (time.monotonic() - begin)

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


class Worker:
    """A worker of either kind on a queue of its own; `held` is the key of what it has taken."""

    def __init__(self, name, command, env, server, queue, held):
        self.name, self.server, self.queue, self.held = name, server, queue, held
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def is_idle(self):
        pipe = self.server.client.pipeline(transaction=False)
        pipe.llen(self.queue)
        pipe.hlen(self.held)
        return pipe.execute() == [0, 0]

    def rss(self):
        """Resident memory of the process and its children, in MiB."""
        total = 0
        for status in pathlib.Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            except OSError:
                continue
            if self.process.pid in (int(fields["Pid"]), int(fields["PPid"])):
                total += int(fields.get("VmRSS", "0 kB").split()[0])
        return total / 1024


def umbel(server, queue, concurrency=256, program=WORKER, *more):
    flags = ["--redis-url", server.url, "--queue", queue, "--concurrency", str(concurrency), "--standalone"]
    return Worker("umbel", [program, *flags, *more], {"RUST_LOG": "warn"}, server, queue, "umbel:unacked")


def celery(server, queue, pool):
    env = {
        "UMBEL_PEER_BROKER": server.url,
        "UMBEL_PEER_RESULTS": server.url,
        # No slower than the default of 4 for tasks that do nothing: prefetching shall not be what is measured.
        "UMBEL_PEER_SETTINGS": json.dumps({"worker_prefetch_multiplier": 64}),
        "PYTHONPATH": str(PEERS),
    }
    flags = ["-Q", queue, "-P", pool, "-c", str(CORES), "-n", f"{pool}-{queue}@%h", "-l", "WARNING"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", *flags, *quiet]
    return Worker(f"celery {pool}", command, env, server, queue, "unacked")


def floor(*args):
    # Its errors go where ours go.
    output = subprocess.run([FLOOR, *map(str, args)], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def ready(worker):
    """Runs one task: from here on the worker is warm."""
    floor("fill", "--port", worker.server.port, "--key", worker.queue, "--messages", 1, "--results")
    wait(f"{worker.name} runs its first task", lambda: any(worker.server.client.scan_iter("celery-task-meta-*")) and worker.is_idle())
    return time.monotonic() - worker.begin


def throughput(worker, count, with_results):
    """Tasks a second: the messages appear in the queue all at once; the end is when none is queued or held."""
    fill = ["fill", "--port", worker.server.port, "--key", "staging", "--messages", count]
    floor(*fill, *(["--results"] if with_results else []))
    begin = time.perf_counter()
    worker.server.client.rename("staging", worker.queue)
    # Looked at seldom: on a machine of two cores who asks takes what he measures; the floor is not asked at all.
    wait(f"{worker.name} works", worker.is_idle, 300, 0.01)
    rate = count / (time.perf_counter() - begin)
    worker.server.client.flushdb() if not with_results else clear(worker.server.client)
    return rate


def drain(worker, count, *more, key=None):
    """Processor time of Redis for each of so many messages that appear in the queue all at once, in microseconds."""
    client, key = worker.server.client, key or worker.queue
    floor("fill", "--port", worker.server.port, "--key", "staging", "--messages", count, *more)
    lists = [(name, key + name.decode().removeprefix("staging")) for name in client.scan_iter("staging*", 5000)]
    used = worker.server.cpu()
    pipe = client.pipeline(transaction=False)
    for staged, name in lists:
        pipe.rename(staged, name)
    pipe.execute()
    # Looked at seldom: asking is work for Redis, too.
    empty = lambda: client.exists(*(name for _, name in lists)) == 0 and client.hlen(worker.held) == 0  # noqa: E731
    wait(f"{worker.name} works", empty, 300, 0.05)
    return (worker.server.cpu() - used) * 1e6 / count


def quantile(values, share):
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)]


def clear(client):
    for key in client.scan_iter("celery-task-meta-*", 5000):
        client.unlink(key)


def apart(kind, queue, server):
    """The three workers for measurements in which only one runs."""
    if kind == "umbel":
        return umbel(server, queue, 10, TASKS)
    return celery(server, queue, kind.split()[1])


@dataclasses.dataclass
class Sizes:
    """How much is measured."""

    rounds: int = 3
    few: int = 2
    ours: int = 120_000
    celery: int = 4_000
    floor: int = 65_536
    latency: int = 220
    seconds: int = 8
    peers: bool = True

    def kinds(self):
        return ("umbel", "celery prefork", "celery solo") if self.peers else ("umbel",)


QUICK = {"rounds": 1, "few": 1, "ours": 10_000, "celery": 1_000, "floor": 8_192, "latency": 60, "seconds": 3}


class Figures(collections.defaultdict):
    """Values by what was measured and of whom."""

    def __init__(self):
        super().__init__(lambda: collections.defaultdict(list))

    def note(self, what, who, value):
        self[what][who].append(value)
