"""The operator: many pools and queues on one Redis and on several, at rest and when messages come."""

import random
import subprocess
import sys
import time

from plane import HERE, OURS, Deployments, Operator, Plane, Relay
from stage import ENQUEUE, Server, quantile, wait

COUNTS = (20, 200, 2_000)
BROKERS = (1, 10)
# Nothing was written for so long: what was made is settled.
QUIET = 20
# Seconds at rest.
REST = 60
# Messages by either producer, each into a queue that was empty.
MESSAGES = 200
# The longest wait between two of them; they come at any time between two samples.
APART = 0.5


def pools(figures, sizes):
    quick = sizes.rounds == 1
    for brokers in BROKERS:
        stage = Stage(brokers)
        try:
            for count in COUNTS[:2] if quick else COUNTS:
                stage.grow(count)
                stage.rest(figures, 10 if quick else REST)
                # A queue is used once.
                most = min(MESSAGES, count // 2 - 10)
                if brokers == 1 and most > 0:
                    stage.wake(figures, most)
        finally:
            stage.close()


class Stage:
    def __init__(self, brokers):
        self.count, self.used = 0, 0
        self.plane = Plane()
        self.servers = [Server() for _ in range(brokers)]
        self.relays = [Relay(server.port) for server in self.servers]
        secrets = [secret(n, relay.url) for n, relay in enumerate(self.relays)]
        self.plane.create(f"/api/v1{HERE}/secrets", secrets)
        self.deployments = Deployments(self.plane)
        self.operator = Operator(self.plane)

    def name(self):
        return f"{self.count:,} pool{'s' if self.count > 1 else ''} on {len(self.servers)} Redis"

    def grow(self, count):
        """Makes queues and pools until there are so many of either, and waits until the operator writes no more."""
        begin, used = time.monotonic(), self.operator.cpu()
        numbers = range(self.count, count)
        self.plane.create(f"{OURS}{HERE}/taskqueues", [queue(n, n % len(self.servers)) for n in numbers])
        self.plane.create(f"{OURS}{HERE}/workerpools", [pool(n) for n in numbers])
        self.count = count
        made = time.monotonic() - begin
        wait("every pool has its Deployment", lambda: len(self.deployments.present) == count, 1200, 0.5)
        there = time.monotonic() - begin
        self.settle()
        say(
            f"{self.name()}: made in {made:.0f} s, Deployments after {there:.0f} s, at rest after {time.monotonic() - begin - QUIET:.0f} s,"
            f" {self.operator.cpu() - used:.1f} s of CPU, wrote {dict(self.plane.writes())}"
        )

    def settle(self):
        seen, since, until = self.plane.writes(), time.monotonic(), time.monotonic() + 600
        while time.monotonic() < min(since + QUIET, until):
            time.sleep(1)
            now = self.plane.writes()
            if now != seen:
                seen, since = now, time.monotonic()
        if time.monotonic() > until:
            say(f"{self.name()}: the operator has not stopped to write")

    def rest(self, figures, seconds):
        """What it costs while nothing happens."""
        writes, used, begin = self.plane.writes(), self.operator.cpu(), time.monotonic()
        trips = sum(relay.trips for relay in self.relays)
        redis = sum(server.cpu() for server in self.servers)
        calls = sum(server.calls(seconds / len(self.servers)) for server in self.servers)
        passed = time.monotonic() - begin
        trips = sum(relay.trips for relay in self.relays) - trips
        what = self.name()
        figures.note(f"{what}: operator memory, RSS (MiB)", "umbel", self.operator.rss())
        figures.note(f"{what}: operator CPU at rest (% of a core)", "umbel", 100 * (self.operator.cpu() - used) / passed)
        figures.note(f"{what}: Redis CPU at rest (% of a core)", "umbel", 100 * (sum(server.cpu() for server in self.servers) - redis) / passed)
        figures.note(f"{what}: Redis round trips a broker and interval at rest", "umbel", trips / passed / len(self.servers))
        figures.note(f"{what}: Redis calls a broker and second at rest", "umbel", calls / len(self.servers))
        wrote = self.plane.writes() - writes
        figures.note(f"{what}: API writes a minute at rest", "umbel", 60 * wrote.total() / passed)
        if wrote:
            say(f"{what}: wrote at rest {dict(wrote)}")

    def wake(self, figures, messages):
        """From a message that is sent into an empty queue to its pool's Deployment with a size."""
        names = [f"q{n}" for n in random.sample(range(self.used, self.count), 2 * messages)]
        for producer, some in ((Kombu, names[:messages]), (Ours, names[messages:])):
            with producer(self.servers[0].url) as sender:
                sent, used, begin = {}, self.operator.cpu(), time.monotonic()
                writes = self.plane.writes()
                for name in some:
                    sent[name] = time.monotonic()
                    sender.send(name)
                    time.sleep(random.uniform(0, APART))
                wait("every pool has a size", lambda: all(name in self.deployments.raised for name in some), 120, 0.05)  # noqa: B023
                passed = time.monotonic() - begin
                took = [self.deployments.raised[name] - sent[name] for name in some]
                what = f"{self.name()}: message by {producer.title} to size"
                for share, title in ((0.5, "p50"), (0.99, "p99")):
                    figures.note(f"{what}, {title} (ms)", "umbel", 1000 * quantile(took, share))
                cpu = 100 * (self.operator.cpu() - used) / passed
                say(f"{what}: longest {max(took):.2f} s, operator CPU {cpu:.0f} %, wrote {dict(self.plane.writes() - writes)}")
        # Those pools go back to zero.
        self.used = self.count
        for server in self.servers:
            server.client.delete(*names)
        wait("all sizes are zero again", self.is_small, 300, 1)

    def is_small(self):
        found = self.plane.call("GET", "/apis/apps/v1/deployments?labelSelector=umbel.dev%2Fpool")
        return all(one["spec"]["replicas"] == 0 for one in found["items"])

    def close(self):
        self.operator.close()
        self.deployments.is_over = True
        for relay in self.relays:
            relay.close()
        for server in self.servers:
            server.close()
        self.plane.close()


class Kombu:
    """A producer in Python."""

    title = "Celery's producer"

    def __init__(self, url):
        import celery

        self.app = celery.Celery(broker=url)
        self.app.conf.task_ignore_result = True
        # Connects.
        self.send("nobody")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.app.close()

    def send(self, queue):
        self.app.send_task("umbel.echo", args=["x" * 100], queue=queue)


class Ours:
    """Our library: a process that sends one task for each line that it reads."""

    title = "our client"

    def __init__(self, url):
        command = [ENQUEUE, url, "nobody", "0", "asked"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.send("nobody")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def send(self, queue):
        print(queue, file=self.process.stdin, flush=True)
        self.process.stdout.readline()


def secret(n, url):
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"redis{n}"}, "stringData": {"url": url}}


def queue(n, broker):
    reference = {"name": f"redis{broker}", "key": "url"}
    spec = {"broker": {"redis": {"urlSecretRef": reference}}}
    return {"apiVersion": "umbel.dev/v1alpha1", "kind": "TaskQueue", "metadata": {"name": f"q{n}"}, "spec": spec}


def pool(n):
    return {"apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": f"q{n}"}, "spec": {"queues": [{"name": f"q{n}"}]}}


def say(text):
    print(text, file=sys.stderr, flush=True)
