"""Prints the beat_schedule of a Celery app, given as module:name, as JSON."""

import datetime
import importlib
import json
import os
import sys


def seconds(value):
    return value.total_seconds() if isinstance(value, datetime.timedelta) else float(value)


def when(schedule):
    kind = type(schedule).__name__
    if isinstance(schedule, (int, float, datetime.timedelta)):
        return {"kind": "interval", "seconds": seconds(schedule)}
    if hasattr(schedule, "_orig_minute"):
        return {"kind": "crontab", "minute": text(schedule._orig_minute), "hour": text(schedule._orig_hour),
                "day_of_month": text(schedule._orig_day_of_month), "month_of_year": text(schedule._orig_month_of_year),
                "day_of_week": text(schedule._orig_day_of_week)}
    if hasattr(schedule, "event") and hasattr(schedule, "lat"):
        return {"kind": "solar", "event": schedule.event, "latitude": float(schedule.lat), "longitude": float(schedule.lon)}
    if hasattr(schedule, "run_every"):
        return {"kind": "interval", "seconds": seconds(schedule.run_every)}
    return {"kind": "unknown", "what": kind}


def text(field):
    if isinstance(field, (str, int)):
        return str(field)
    return ",".join(str(part) for part in field)


def plain(value):
    if isinstance(value, datetime.timedelta):
        return seconds(value)
    return str(value)


sys.path.insert(0, os.getcwd())
module, _, name = sys.argv[1].partition(":")
app = importlib.import_module(module)
for part in (name or "app").split("."):
    app = getattr(app, part)
app.finalize()
entries = []
for entry, fields in (app.conf.beat_schedule or {}).items():
    entries.append({"name": str(entry), "task": str(fields["task"]), "args": list(fields.get("args") or ()),
                    "kwargs": dict(fields.get("kwargs") or {}), "options": dict(fields.get("options") or {}),
                    "relative": bool(fields.get("relative")), "when": when(fields["schedule"])})
zone = "UTC" if app.conf.timezone is None else str(app.conf.timezone)
json.dump({"timezone": zone, "entries": entries}, sys.stdout, default=plain)
