//! `umbel periodic import`: schedules of a real Celery app, and what django_celery_beat dumps.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests fail as tests do.

use std::process::{Command, Output};

use jiff::Timestamp;
use serde_json::Value;
use umbel_api::PeriodicTask;
use umbel_plan::cron::Timetable;
use umbel_testkit::{CeleryVersion, TempDir};

/// An app with schedules of all kinds, and when Celery itself finds each crontab due, from a given time on.
const APP: &str = r#"
import datetime, json, sys
from celery import Celery
from celery.schedules import crontab, schedule, solar

app = Celery("proj", broker="memory://")
app.conf.timezone = "Europe/Berlin"
CRONTABS = {
    "every minute": crontab(),
    "office": crontab(minute="*/20", hour="8-17/3", day_of_week="mon-fri"),
    "friday the 13th": crontab(minute=0, hour=12, day_of_month=13, day_of_week="fri"),
    "night shift": crontab(minute=30, hour="22-2"),
    "tens": crontab(minute=0, hour=0, day_of_month="*/10"),
    "quarters": crontab(minute=0, hour=6, day_of_month=1, month_of_year="*/3"),
    "weekend": crontab(minute=15, hour=12, day_of_week="sat,sun"),
    "sets": crontab(minute={5, 10, 50}, hour=[1, 2]),
}
app.conf.beat_schedule = {name: {"task": "proj.cron", "schedule": each} for name, each in CRONTABS.items()}
app.conf.beat_schedule.update({
    "Every 30 Seconds!": {"task": "proj.add", "schedule": 30.0, "args": (16, 16)},
    "delta": {"task": "proj.add", "schedule": datetime.timedelta(hours=36), "kwargs": {"x": 1},
              "options": {"queue": "bulk_mail", "priority": 3, "expires": 90.0, "routing_key": "x"}},
    "sunset": {"task": "proj.lights", "schedule": solar("sunset", -37.81753, 144.96715)},
    "relative": {"task": "proj.rel", "schedule": schedule(3600, relative=True), "relative": True},
    "too fast": {"task": "proj.fast", "schedule": 0.5},
})

if __name__ == "__main__":
    from zoneinfo import ZoneInfo
    begin = datetime.datetime(2026, 6, 1, 12, 0, tzinfo=ZoneInfo("UTC"))
    found = {}
    for name, each in CRONTABS.items():
        at, times = begin.astimezone(ZoneInfo("Europe/Berlin")), []
        for _ in range(12):
            each.app, each.nowfun = app, lambda: at
            start, delta, now = each.remaining_delta(at, tz=ZoneInfo("Europe/Berlin"))
            at = start + delta
            times.append(at.astimezone(ZoneInfo("UTC")).strftime("%Y-%m-%dT%H:%M:%SZ"))
        found[name] = times
    json.dump(found, sys.stdout)
"#;

fn umbel(folder: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_umbel"));
    command.args(args).current_dir(folder.path()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn items(output: &Output) -> Vec<PeriodicTask> {
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(list["items"].clone()).unwrap()
}

fn named<'a>(items: &'a [PeriodicTask], name: &str) -> &'a PeriodicTask {
    let found = items.iter().find(|item| item.metadata.name.as_deref() == Some(name));
    found.expect(name)
}

#[test]
fn an_apps_schedule_fires_when_celerys_beat_would() {
    let folder = TempDir::new("import");
    let app = folder.path().join("proj_schedules.py");
    std::fs::write(&app, APP).unwrap();
    let python = CeleryVersion::V5_7.python();
    let python = python.to_str().unwrap();
    let done = umbel(
        &folder,
        &[
            "periodic",
            "import",
            "--app",
            "proj_schedules:app",
            "--python",
            python,
            "-o",
            "json",
        ],
    );
    let notes = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "one has no equal: {notes}");
    for note in [
        "too fast: left out: an interval of 0.5 s",
        "relative: relative is left out",
        "delta: queue \"bulk_mail\" is TaskQueue bulk-mail",
        "delta: the option routing_key is left out",
        "12 PeriodicTasks, 1 entries left out",
    ] {
        assert!(notes.contains(note), "{note}: {notes}");
    }
    let items = items(&done);

    // Crontabs: the next twelve times as Celery computes them.
    let due = Command::new(python).arg(&app).output().unwrap();
    assert!(due.status.success(), "{}", text(&due.stderr));
    let due: std::collections::BTreeMap<String, Vec<Timestamp>> = serde_json::from_slice(&due.stdout).unwrap();
    assert_eq!(due.len(), 8);
    let begin: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
    for (name, expected) in due {
        let item = named(&items, &name.replace(' ', "-"));
        let timetable = Timetable::of(&item.spec, begin).unwrap();
        let found = timetable.between(begin, Timestamp::MAX, 12);
        assert_eq!(found, expected, "{name}: {:?}", item.spec.schedule.cron);
    }

    let plain = named(&items, "every-30-seconds");
    assert_eq!(
        plain.metadata.annotations.as_ref().unwrap()["umbel.dev/imported-as"],
        "Every 30 Seconds!"
    );
    let spec = serde_json::to_value(&plain.spec).unwrap();
    assert_eq!(spec["schedule"]["every"], "30s");
    assert_eq!(spec["taskTemplate"]["args"], serde_json::json!([16, 16]));
    assert_eq!(spec["taskTemplate"]["queueRef"]["name"], "celery");
    assert_eq!(spec["overlap"], "Allow");
    let delta = serde_json::to_value(&named(&items, "delta").spec).unwrap();
    assert_eq!(delta["schedule"]["every"], "36h");
    assert_eq!(delta["taskTemplate"]["expiresAfter"], "1m30s");
    assert_eq!(
        (
            &delta["taskTemplate"]["priority"],
            &delta["taskTemplate"]["kwargs"]["x"]
        ),
        (&3.into(), &1.into())
    );
    let sunset = serde_json::to_value(&named(&items, "sunset").spec).unwrap();
    assert_eq!(sunset["schedule"]["solar"]["event"], "sunset");
}

#[test]
fn a_fixture_of_django_becomes_objects_to_apply() {
    let fixture = r#"[
        {"model": "auth.user", "pk": 1, "fields": {"username": "x"}},
        {"model": "django_celery_beat.intervalschedule", "pk": 1, "fields": {"every": 10, "period": "minutes"}},
        {"model": "django_celery_beat.crontabschedule", "pk": 4, "fields": {"minute": "0", "hour": "*/4", "day_of_week": "*",
            "day_of_month": "*", "month_of_year": "*", "timezone": "Europe/Paris"}},
        {"model": "django_celery_beat.clockedschedule", "pk": 2, "fields": {"clocked_time": "2030-01-01T00:00:00Z"}},
        {"model": "django_celery_beat.periodictask", "pk": 1, "fields": {"name": "Clean up", "task": "shop.clean",
            "interval": 1, "crontab": null, "solar": null, "clocked": null, "args": "[1, \"a\"]", "kwargs": "{\"deep\": true}",
            "queue": "slow", "exchange": null, "routing_key": null, "headers": "{}", "priority": 9, "expires": null,
            "expire_seconds": 600, "one_off": false, "start_time": null, "enabled": false, "total_run_count": 7}},
        {"model": "django_celery_beat.periodictask", "pk": 2, "fields": {"name": "clean-up", "task": "shop.report",
            "interval": null, "crontab": 4, "args": "[]", "kwargs": "{}", "enabled": true, "start_time": "2026-01-01T00:00:00Z"}},
        {"model": "django_celery_beat.periodictask", "pk": 3, "fields": {"name": "once", "task": "shop.sale", "clocked": 2,
            "one_off": true, "args": "[]", "kwargs": "{}", "enabled": true}},
        {"model": "django_celery_beat.periodictask", "pk": 4, "fields": {"name": "lost", "task": "shop.lost", "crontab": 99,
            "args": "[]", "kwargs": "{}", "enabled": true}}
    ]"#;
    let folder = TempDir::new("import");
    std::fs::write(folder.path().join("dump.json"), fixture).unwrap();
    let done = umbel(&folder, &["periodic", "import", "dump.json", "-o", "json"]);
    let notes = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1));
    assert!(
        notes.contains("lost: left out: a schedule that the fixture does not hold"),
        "{notes}"
    );
    let items = items(&done);
    let of = |name: &str| serde_json::to_value(&named(&items, name).spec).unwrap();
    let clean = of("clean-up");
    assert_eq!(
        (&clean["schedule"]["every"], &clean["suspend"]),
        (&"10m".into(), &true.into())
    );
    assert_eq!(clean["taskTemplate"]["queueRef"]["name"], "slow");
    assert_eq!(clean["taskTemplate"]["args"], serde_json::json!([1, "a"]));
    assert_eq!(
        (
            &clean["taskTemplate"]["priority"],
            &clean["taskTemplate"]["expiresAfter"]
        ),
        (&9.into(), &"10m".into())
    );
    let report = of("clean-up-2");
    assert_eq!(
        (&report["schedule"]["cron"], &report["timeZone"]),
        (&"0 */4 * * *".into(), &"Europe/Paris".into())
    );
    assert_eq!(report["startTime"], "2026-01-01T00:00:00Z");
    let once = of("once");
    assert_eq!(
        (&once["schedule"]["at"], &once["maxRuns"]),
        (&"2030-01-01T00:00:00Z".into(), &1.into())
    );

    // YAML is what one applies.
    let yaml = text(&umbel(&folder, &["periodic", "import", "dump.json"]).stdout);
    assert_eq!(yaml.matches("kind: PeriodicTask").count(), 3, "{yaml}");
    assert!(yaml.starts_with("---\n"), "{yaml}");
    std::fs::write(folder.path().join("bad.json"), "{}").unwrap();
    let bad = umbel(&folder, &["periodic", "import", "bad.json"]);
    assert!(
        text(&bad.stderr).contains("dumpdata django_celery_beat"),
        "{}",
        text(&bad.stderr)
    );
}
