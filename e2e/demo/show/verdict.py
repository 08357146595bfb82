"""What the demo claims at its end. Each claim is a number and a condition on it, so that the demo is a test as well."""

import collections
import dataclasses

from . import kube, stage
from .screen import table
from .view import LARGEST, POOL, SLOTS
from .weather import KILLS, Rough


@dataclasses.dataclass
class Claim:
    what: str
    value: str
    holds: bool


def scale_events(scene):
    """The operator's own words on each step, oldest first."""
    events = scene.client.items(f"/apis/events.k8s.io/v1/namespaces/{stage.NAMESPACE}/events")
    ours = [event for event in events if event.get("regarding", {}).get("kind") == "WorkerPool"
            and event["regarding"]["name"] == POOL and event.get("reason", "").startswith("Scaled")]
    return sorted(ours, key=lambda event: event.get("eventTime") or event["metadata"]["creationTimestamp"])


def operator_health(scene):
    """How often a container of the release ended, and how often the API server refused the operator."""
    path = f"/api/v1/namespaces/{stage.NAMESPACE}/pods?labelSelector=app.kubernetes.io%2Finstance%3Dumbel"
    restarts = sum(status["restartCount"] for pod in scene.client.items(path) for status in pod["status"].get("containerStatuses", []))
    log = kube.kubectl(scene.config, "-n", stage.NAMESPACE, "logs", "-l", "app.kubernetes.io/component=operator", "--tail=-1")
    return restarts, sum("forbidden" in line.lower() for line in log.splitlines())


def claims(scene, picture, producer, history, weather):
    workers = history.of(POOL)
    started = collections.Counter(one for worker in workers for one in worker.started)
    ended = collections.Counter(one for worker in workers for one in worker.ended)
    busy = [worker.pod for worker in workers if worker.gone is not None and worker.running]
    counters = picture.pool.get("counters", {})
    total, lost = producer.total, producer.total - producer.read - producer.wrong
    twice = sum(count - 1 for count in ended.values())
    listed = [
        Claim("tasks sent by Celery", f"{producer.sent:,}", producer.sent == total),
        Claim("succeeded, as AsyncResult says", f"{producer.read:,}", producer.read == total),
        Claim("lost", str(lost), lost == 0),
        Claim("started and ended in the workers' logs", f"{len(started):,} and {len(ended):,}", len(started) == len(ended) == total),
        # A killed worker may have ended a task and not said so to the broker.
        Claim("ran more than once", str(twice), twice <= weather.worker_kills * SLOTS),
        Claim("busy pods stopped, by the workers' logs", f"{len(busy)} of {len(workers)} pods", not busy and len(workers) > 1),
        Claim("busy pods stopped, by the operator", str(counters.get("busyStopped", 0)), counters.get("busyStopped", 0) == 0),
        Claim("wrong victims", str(counters.get("wrongVictims", 0)), counters.get("wrongVictims", 0) == 0),
        Claim("pool size", f"0 → {picture.largest} → {picture.size}", 1 < picture.largest <= LARGEST and picture.size == 0),
        Claim("steps down", str(counters.get("scaleDowns", 0)), counters.get("scaleDowns", 0) > 0),
        Claim("sync runs fired", str(runs(picture, "sync")), runs(picture, "sync") >= 3),
    ]
    restarts, refusals = operator_health(scene)
    listed += [
        Claim("restarts of operator and Redis", str(restarts), restarts == weather.leader_kills),
        Claim("calls for which the operator has no right", str(refusals), refusals == 0),
    ]
    if isinstance(weather, Rough):
        listed += [
            Claim("workers killed while they held tasks", str(weather.worker_kills), weather.worker_kills == len(KILLS)),
            Claim("leading operators killed", str(weather.leader_kills), weather.leader_kills == 1),
            Claim("outages of Redis", str(weather.outages), weather.outages == 1),
            Claim("times that the controller-manager stood still", str(weather.lags), weather.lags >= 4),
        ]
    for name, labels in scene.targets.items():
        target = scene.at(name)
        applied = [path for path in APPLIED if target.exists(path.format(scene.place))]
        wanted = len(APPLIED) if name in scene.edge else 0
        listed.append(Claim(f"objects applied at {name} ({labels['tier']})", f"{len(applied)} of {wanted}", len(applied) == wanted))
    for name in scene.targets:
        status = picture.targets.get(name, {})
        nodes = status.get("nodes", {})
        seen = bool(status.get("version")) and nodes.get("ready") == nodes.get("total") == scene.nodes(name) and "apiLatencyMs" in status
        listed.append(Claim(f"state of {name} is known", "yes" if seen else "no", seen))
    return listed


APPLIED = ["/api/v1/namespaces/{}/configmaps/greeting", "/apis/apps/v1/namespaces/{}/deployments/greeter"]


def runs(picture, name):
    return picture.periodic.get(name, {}).get("runs", 0)


def rows(screen, listed):
    width = max(len(claim.what) for claim in listed)
    for claim in listed:
        yield f"  {screen.good('✓') if claim.holds else screen.bad('✗')} {claim.what.ljust(width)}  {claim.value}"


def cluster_rows(scene, picture):
    head = [("cluster", "labels", "version", "nodes", "latency")]
    for name, status in sorted(picture.targets.items()):
        nodes = status.get("nodes", {})
        labels = ",".join(f"{key}={value}" for key, value in scene.targets.get(name, {}).items())
        head.append((name, labels, status.get("version", "?"), f"{nodes.get('ready', 0)}/{nodes.get('total', 0)} ready", f"{status.get('apiLatencyMs', '?')} ms"))
    return table(head)


def step_rows(scene, picture):
    """Each change of size with its reason: from Events, and where there are none from the pool's status as it was seen."""
    events = scale_events(scene)
    if events:
        return [f"  {(event.get('eventTime') or event['metadata']['creationTimestamp'])[11:19]}  {event['note']}" for event in events]
    return [f"  {step['time'][11:19]}  {step['from']} → {step['to']}: {step['reason']}" for step in picture.steps]
