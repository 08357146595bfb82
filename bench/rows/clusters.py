"""Many target clusters: how soon all are looked at, what dead ones cost the others, and what a worker needs for them."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import uuid

import yaml
from celery import Celery

from plane import Cluster
from stage import TARGETS, WORKER, Server, free_port, wait

CLUSTERS, SERVERS, WORKERS, SLOTS = 500, 3, 5, 20
PODS = 5_000
OBJECTS = 100
WAITS = 5_000

COLD = "sync of 500 clusters, 5 workers, first time (s)"
WARM = "cluster syncs/s, once connected"
FEW, MANY = "10 of 500 clusters dead, the others' syncs take (% of alone)", "100 of 500 clusters dead, the others' syncs take (% of alone)"
CLIENTS = "worker with 500 clusters connected, RSS (MiB)"
LISTING = "sync of a cluster with 5,000 pods, memory above idle (MiB)"
PLACED = "apply, objects/s that are in place already"
WAITING = "memory of one of 5,000 waits (KiB)"


def kubeconfig(cluster, port=None):
    """An administrator's, by another port if one is given."""
    told = yaml.safe_load((cluster.home / "kubeconfig").read_text())
    if port:
        told["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    return yaml.safe_dump(told)


class Relay:
    """As many ports as clusters, each a way to one of the servers; some can be made black holes."""

    def __init__(self, count, servers):
        command = [TARGETS, "relay", str(count), *(urllib.parse.urlsplit(one.server).netloc for one in servers)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ports = json.loads(self.process.stdout.readline())

    def holes(self, count):
        self.process.stdin.write(f"holes {count}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def close(self):
        self.process.kill()
        self.process.wait()


class Fleet:
    """Workers for clusters by these names, whose Secrets are at home."""

    def __init__(self, home, names, count, slots=SLOTS, jobs=None):
        self.server = Server()
        clusters = [
            {"name": name, "secret": name, "key": "kubeconfig", "limits": {"qps": 1000, "burst": 2000, "maxConcurrentTasks": 100}}
            for name in names
        ]
        env = {
            **os.environ,
            "KUBECONFIG": str(home.home / "kubeconfig"),
            "UMBEL_NAMESPACE": "default",
            "UMBEL_CLUSTERS": json.dumps(clusters),
            "UMBEL_JOBS": json.dumps(jobs or {}),
        }
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="umbel-bench-fleet-"))
        command = [WORKER, "--standalone", "--redis-url", self.server.url, "--queue", "q", "--concurrency", str(slots)]
        self.processes = []
        for n in range(count):
            log = open(self.folder / f"log{n}", "w")
            flags = ["--admin-addr", f"127.0.0.1:{free_port()}"]
            self.processes.append(subprocess.Popen([*command, *flags], env=env, stdout=log, stderr=log, start_new_session=True))
        self.app = Celery(broker=self.server.url, backend=self.server.url)
        wait("they are there", lambda: self.server.client.hlen("umbel:workers") >= count, 60, 0.05)

    def send(self, task, every):
        """One task for each of these keyword arguments, all at once; their ids. What it costs Celery to write them is
        not the workers' time: they are sent aside first."""
        ids = [str(uuid.uuid4()) for _ in every]
        with self.app.producer_or_acquire() as producer:
            for one, kwargs in zip(ids, every):
                self.app.send_task(task, kwargs=kwargs, queue="aside", task_id=one, producer=producer)
        messages = self.server.client.lrange("aside", 0, -1)
        self.server.client.delete("aside")
        self.begin = time.monotonic()
        self.server.client.lpush("q", *reversed(messages))
        return ids

    def run(self, task, every, of=None, seconds=300):
        """How long all take, or those of `of`."""
        ids = self.send(task, every)
        awaited = ids if of is None else [one for one, kwargs in zip(ids, every) if of(kwargs)]
        left = list(awaited)

        def ended():
            # One cheap question at a time: to ask for all of them would cost Redis more than the tasks do.
            while left and self.server.client.exists(f"celery-task-meta-{left[-1]}"):
                left.pop()
            return not left

        wait(f"{task} has run {len(awaited)} times", ended, seconds, 0.01)
        took = time.monotonic() - self.begin
        results = [json.loads(text) for text in self.server.client.mget(f"celery-task-meta-{one}" for one in awaited)]
        failed = [one for one in results if one["status"] != "SUCCESS"]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(awaited)} failed: {failed[0]['result']}")
        return took

    def has_opened(self, names):
        """Whether the circuits of all these clusters are open."""
        states = [self.server.client.hget(f"umbel:target:default/{name}", "state") for name in names]
        return all(state in (b"Open", b"HalfOpen") for state in states)

    def credentials(self):
        """How often a worker read a credential: once for each cluster, if all goes well."""
        return sum(path.read_text().count("credential read") for path in self.folder.iterdir())

    def rss(self, n=0, line="VmRSS"):
        lines = pathlib.Path(f"/proc/{self.processes[n].pid}/status").read_text().splitlines()
        return next(int(text.split()[1]) for text in lines if text.startswith(line)) / 1024

    def close(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.server.close()
        shutil.rmtree(self.folder)


def secret(name, text):
    data = base64.b64encode(text.encode()).decode()
    return {"metadata": {"name": name}, "data": {"kubeconfig": data}}


def clusters(figures, sizes):
    count = CLUSTERS if sizes.rounds > 1 else CLUSTERS // 10
    home, targets, relay = Cluster(), [Cluster() for _ in range(SERVERS)], None
    folder = pathlib.Path(tempfile.mkdtemp(prefix="umbel-bench-kubeconfigs-"))
    try:
        relay = Relay(count, targets)
        names = [f"c{n:03}" for n in range(count)]
        texts = [kubeconfig(targets[n % SERVERS], port) for n, port in enumerate(relay.ports)]
        for name, text in zip(names, texts):
            (folder / name).write_text(text)
        home.create("/api/v1/namespaces/default/secrets", map(secret, names, texts))
        every = [{"cluster": name} for name in names]
        for _ in range(sizes.few):
            fleet = Fleet(home, names, WORKERS)
            try:
                figures.note(COLD, "umbel", fleet.run("umbel.cluster.sync", every))
                # Any worker gets any cluster: after some rounds each knows nearly all.
                for _ in range(60):
                    if fleet.credentials() >= 0.99 * WORKERS * count:
                        break
                    fleet.run("umbel.cluster.sync", every)
                bare = floor("sync", folder, WORKERS * SLOTS, 4)
                figures.note(COLD, "floor", bare[0])
                for seconds in bare[1:]:
                    figures.note(WARM, "floor", count / seconds)
                before = [fleet.run("umbel.cluster.sync", every) for _ in range(3)]
                for seconds in before:
                    figures.note(WARM, "umbel", count / seconds)
                for what, share in ((FEW, 50), (MANY, 5)):
                    dead = count // share
                    lives = lambda kwargs: int(kwargs["cluster"][1:]) >= dead  # noqa: E731, B023
                    others = [one for one in every if lives(one)]
                    alone = sorted(fleet.run("umbel.cluster.sync", others) for _ in range(3))[1]
                    relay.holes(dead)
                    # Until all know which are dead.
                    for _ in range(10):
                        if fleet.has_opened(names[:dead]):
                            break
                        fleet.run("umbel.cluster.sync", every, lives)
                        time.sleep(16)
                    took = sorted(fleet.run("umbel.cluster.sync", every, lives) for _ in range(3))[1]
                    figures.note(what, "umbel", 100 * took / alone)
                    relay.holes(0)
                    time.sleep(61)  # The longest rest of a circuit.
                    fleet.run("umbel.cluster.sync", every)
            finally:
                fleet.close()
        fleet = Fleet(home, names, 1, 50)
        try:
            for _ in range(2):
                fleet.run("umbel.cluster.sync", every)
            figures.note(CLIENTS, "umbel", fleet.rss())
        finally:
            fleet.close()
    finally:
        if relay:
            relay.close()
        for one in (home, *targets):
            one.close()
        shutil.rmtree(folder)


def floor(*args):
    """The seconds of each round."""
    done = subprocess.run([TARGETS, *map(str, args)], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line)["seconds"] for line in done.stdout.splitlines()]


def config_map(n):
    data = {"key": "x" * 1000}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"m{n}", "namespace": "default"}, "data": data}


def one_cluster(figures, sizes):
    pods = PODS if sizes.rounds > 1 else PODS // 10
    waits = WAITS if sizes.rounds > 1 else WAITS // 10
    home = Cluster("--apiserver-arg=--max-mutating-requests-inflight=1000")
    try:
        home.create("/api/v1/namespaces/default/secrets", [secret("c", kubeconfig(home))])
        jobs = {
            "apply": {"namespaces": ["default"], "kinds": ["ConfigMap"]},
            "wait": {"namespaces": ["default"], "kinds": ["apps/Deployment"]},
        }
        manifests = [config_map(n) for n in range(OBJECTS)]
        file = home.folder / "objects"
        file.write_text(json.dumps(manifests))
        fleet = Fleet(home, ["c"], 1, jobs=jobs)
        try:
            apply = [{"cluster": "c", "namespace": "default", "applySet": "bench", "manifests": manifests}]
            fleet.run("umbel.cluster.apply", apply)
            for _ in range(3 * sizes.few):
                figures.note(PLACED, "umbel", OBJECTS / fleet.run("umbel.cluster.apply", apply))
                for seconds in floor("apply", home.home / "kubeconfig", file, 2)[1:]:
                    figures.note(PLACED, "floor", OBJECTS / seconds)
        finally:
            fleet.close()
        fleet = Fleet(home, ["c"], 1, waits + 1, jobs)
        try:
            # It has its client and has looked at the kinds.
            kwargs = {"cluster": "c", "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "default", "for": "rollout", "timeout": 600}
            fleet.send("umbel.cluster.wait", [{**kwargs, "name": "first"}])
            time.sleep(3)
            idle = fleet.rss()
            fleet.send("umbel.cluster.wait", [{**kwargs, "name": f"d{n}"} for n in range(waits)])
            wait("all are parked", lambda: fleet.server.client.llen("q") == 0, 60, 0.1)
            time.sleep(10)
            figures.note(WAITING, "umbel", 1024 * (fleet.rss() - idle) / waits)
        finally:
            fleet.close()
        container = {"name": "c", "image": "registry.example/app:1", "env": [{"name": f"V{n}", "value": "x" * 40} for n in range(20)]}
        home.create(
            "/api/v1/namespaces/default/pods",
            ({"metadata": {"name": f"p{n}", "labels": {"app": "a"}}, "spec": {"containers": [container]}} for n in range(pods)),
        )
        fleet = Fleet(home, ["c"], 1)
        try:
            idle = fleet.rss()
            fleet.run("umbel.cluster.sync", [{"cluster": "c"}])
            figures.note(LISTING, "umbel", fleet.rss(line="VmHWM") - idle)
        finally:
            fleet.close()
    finally:
        home.close()
