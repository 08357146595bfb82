//! Remote control against captures of Celery 5.7 and 5.6: requests read and written again byte for byte, answers built
//! from values and compared.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;
use umbel_protocol::control::{
    Broker, Call, Command, Configuration, Consumed, Fanout, Names, Pool, Refusal, Reply, Request, Stats, TaskRequest,
    Usage, answer,
};
use umbel_protocol::json::Json;

struct Exchange {
    name: String,
    channel: String,
    request: String,
    replies: Vec<(String, String)>,
}

/// The first request of a capture and what was pushed in reply.
fn exchange(name: &str) -> Exchange {
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join(format!("tests/golden/{name}.json"));
    let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let commands = vector["redis"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["cmd"].as_array());
    let commands: Vec<Vec<String>> = commands
        .map(|command| {
            command
                .iter()
                .map(|part| part.as_str().unwrap_or_default().to_owned())
                .collect()
        })
        .collect();
    let request = commands
        .iter()
        .find(|command| command[0] == "PUBLISH" && command[1].ends_with(".pidbox"));
    let request = request.unwrap();
    let replies = commands
        .iter()
        .filter(|command| command[0] == "LPUSH" && command[1].contains(".reply."));
    Exchange {
        name: name.to_owned(),
        channel: request[1].clone(),
        request: request[2].clone(),
        replies: replies
            .map(|command| (command[1].clone(), command[2].clone()))
            .collect(),
    }
}

const REQUESTS: [&str; 46] = [
    "control-01-ping-full-trace",
    "control-02-ping-destination",
    "control-03-ping-pattern",
    "control-04-ping-pcre",
    "control-05-no-match",
    "control-06-active",
    "control-07-active-safe",
    "control-08-reserved",
    "control-09-scheduled",
    "control-10-stats",
    "control-11-registered",
    "control-12-active-queues",
    "control-13-query-task",
    "control-14-conf",
    "control-15-report",
    "control-16-clock",
    "control-17-revoke",
    "control-18-revoke-list-reply",
    "control-19-revoked",
    "control-20-revoke-terminate",
    "control-21-terminate",
    "control-22-rate-limit",
    "control-23-rate-limit-unknown",
    "control-24-time-limit",
    "control-25-pool-grow",
    "control-26-pool-shrink",
    "control-27-autoscale-off",
    "control-28-add-consumer",
    "control-29-cancel-consumer",
    "control-30-enable-events",
    "control-31-disable-events",
    "control-32-enable-events-again",
    "control-33-hello",
    "control-34-heartbeat",
    "control-35-unknown-command",
    "control-36-bad-arguments",
    "control-37-pool-restart",
    "control-38-revoke-by-stamped-headers",
    "control-40-shutdown",
    "control-41-enable-events-off-to-on",
    "control-42-disable-events-on-to-off",
    "control-43-autoscale",
    "control-44-pool-grow-with-autoscale",
    "control-45-cast-not-for-us",
    "control-46-election-two-workers",
    "compat-04-mingle-hello-celery-5.6",
];

fn request(name: &str) -> Request {
    Request::parse(exchange(name).request.as_bytes()).unwrap()
}

fn tag(payload: &str) -> String {
    let envelope: Value = serde_json::from_str(payload).unwrap();
    envelope["properties"]["delivery_tag"].as_str().unwrap().to_owned()
}

#[test]
fn requests_are_written_as_celery_wrote_them() {
    for name in REQUESTS {
        let exchange = exchange(name);
        let request = Request::parse(exchange.request.as_bytes()).unwrap();
        let call = Call {
            method: request.method.clone(),
            arguments: request.arguments.clone(),
            destination: request.destination.clone(),
            pattern: request.pattern.clone().zip(request.matcher.clone()),
            reply: request
                .ticket
                .clone()
                .zip(request.reply_to.clone().map(|to| to.routing_key)),
            clock: request.clock,
            expires: request.expires.unwrap(),
        };
        let ours = call.publication(&Names::default(), &tag(&exchange.request));
        assert_eq!(std::str::from_utf8(&ours.payload).unwrap(), exchange.request, "{name}");
        assert_eq!(
            Fanout::database(0).channel(&ours.exchange, &ours.routing_key),
            exchange.channel
        );
    }
}

#[test]
fn replies_are_written_as_celery_wrote_them() {
    let mut seen = 0;
    for name in REQUESTS {
        let exchange = exchange(name);
        let request = Request::parse(exchange.request.as_bytes()).unwrap();
        let Some((list, payload)) = exchange.replies.first() else {
            continue;
        };
        seen += 1;
        let reply = Reply::parse(payload.as_bytes()).unwrap();
        assert_eq!(reply.ticket, request.ticket);
        assert!(request.addressed_to(&reply.node).unwrap(), "{name}");
        let ours = request
            .reply(&reply.node, &reply.answer, reply.clock, &tag(payload))
            .unwrap();
        assert_eq!(std::str::from_utf8(&ours.payload).unwrap(), payload, "{name}");
        // The client's binding leads to the list that Celery pushed to.
        let sep = "\u{6}\u{16}";
        let binding = Names::default().binding(&ours.routing_key, sep);
        let members = ["other\u{6}\u{16}\u{6}\u{16}other.queue", binding.as_str()];
        assert_eq!(ours.queue(members, sep), Some(list.as_str()), "{name}");
        assert_eq!(ours.queue(members[..1].iter().copied(), sep), None);
    }
    assert!(seen > 35, "{seen}");
    assert!(
        request("control-17-revoke")
            .reply("w1@lab", &answer::pong(), 1, "t")
            .is_none()
    );
}

#[test]
fn only_those_addressed_answer() {
    let meant = |name: &str, node: &str| request(name).addressed_to(node);
    assert_eq!(meant("control-01-ping-full-trace", "any@where"), Ok(true));
    assert_eq!(meant("control-02-ping-destination", "w1@lab"), Ok(true));
    assert_eq!(meant("control-02-ping-destination", "w2@lab"), Ok(false));
    assert_eq!(meant("control-03-ping-pattern", "w1@lab"), Ok(true));
    assert_eq!(meant("control-03-ping-pattern", "x1@lab"), Ok(false));
    assert_eq!(meant("control-04-ping-pcre", "w1@lab"), Ok(true));
    assert_eq!(meant("control-04-ping-pcre", "ww@lab"), Ok(false));
    assert_eq!(meant("control-05-no-match", "w1@lab"), Ok(false));
    assert_eq!(meant("control-45-cast-not-for-us", "w1@lab"), Ok(false));
    // A pattern that cannot be read is for nobody.
    let mut request = request("control-04-ping-pcre");
    request.pattern = Some("(".into());
    request.addressed_to("w1@lab").unwrap_err();
}

#[test]
fn a_request_can_be_too_late() {
    let request = request("control-40-shutdown");
    let second = 1_000_000.0;
    #[allow(clippy::cast_possible_truncation)]
    let at = |seconds: f64| Timestamp::from_microsecond((seconds * second) as i64).unwrap();
    let expires = request.expires.unwrap();
    assert!(!request.is_expired(at(expires - 1.0)));
    assert!(request.is_expired(at(expires + 1.0)));
    assert!(
        !Request {
            expires: Some(0.0),
            ..request
        }
        .is_expired(at(expires))
    );
}

#[test]
fn every_command_is_understood() {
    let is = |name: &str, expected: Command| assert_eq!(Command::of(&request(name)), Ok(expected), "{name}");
    let text = str::to_owned;
    is("control-01-ping-full-trace", Command::Ping);
    is("control-06-active", Command::Active { safe: false });
    is("control-07-active-safe", Command::Active { safe: true });
    is("control-08-reserved", Command::Reserved);
    is("control-09-scheduled", Command::Scheduled);
    is("control-10-stats", Command::Stats);
    is("control-11-registered", Command::Registered { items: vec![] });
    is("control-12-active-queues", Command::ActiveQueues);
    let ids = [
        "75c75852-dce3-43c6-9b17-2f1924c73700",
        "2f15cbe9-0dd0-4321-9ccf-d4a5a4b11944",
        "nope",
    ];
    is(
        "control-13-query-task",
        Command::QueryTask {
            ids: ids.map(text).to_vec(),
        },
    );
    is("control-14-conf", Command::Conf { with_defaults: false });
    is("control-15-report", Command::Report);
    is("control-16-clock", Command::Clock);
    let revoke = |ids: &[&str], terminate, signal: &str| Command::Revoke {
        ids: ids.iter().copied().map(text).collect(),
        terminate,
        signal: Some(text(signal)),
    };
    is("control-17-revoke", revoke(&[ids[1]], false, "SIGTERM"));
    is(
        "control-18-revoke-list-reply",
        revoke(&["id-a", "id-b"], false, "SIGTERM"),
    );
    is("control-19-revoked", Command::Revoked);
    is("control-20-revoke-terminate", revoke(&[ids[0]], true, "SIGTERM"));
    is(
        "control-21-terminate",
        revoke(&["887c2b55-f289-4f1e-8e15-13d89da63cec"], true, "SIGKILL"),
    );
    is(
        "control-22-rate-limit",
        Command::RateLimit {
            task: text("proj.add"),
            rate: text("10/m"),
        },
    );
    let limits = Command::TimeLimit {
        task: text("proj.add"),
        hard: Some(120.0),
        soft: Some(60.0),
    };
    is("control-24-time-limit", limits);
    is("control-25-pool-grow", Command::PoolGrow { by: 1 });
    is("control-26-pool-shrink", Command::PoolShrink { by: 1 });
    is(
        "control-27-autoscale-off",
        Command::Autoscale {
            max: Some(4),
            min: Some(2),
        },
    );
    let add = Command::AddConsumer {
        queue: text("newq"),
        exchange: None,
        exchange_type: Some(text("direct")),
        routing_key: None,
    };
    is("control-28-add-consumer", add);
    is(
        "control-29-cancel-consumer",
        Command::CancelConsumer { queue: text("newq") },
    );
    is("control-30-enable-events", Command::EnableEvents);
    is("control-31-disable-events", Command::DisableEvents);
    let hello = |from: &str, revoked: &[&str]| Command::Hello {
        from_node: text(from),
        revoked: revoked.iter().copied().map(text).collect(),
    };
    is("control-33-hello", hello("other@lab", &["revoked-1", "revoked-2"]));
    is("compat-04-mingle-hello-celery-5.6", hello("w2@lab", &[]));
    is("control-34-heartbeat", Command::Heartbeat);
    is("control-37-pool-restart", Command::PoolRestart);
    let stamps = vec![(text("tenant"), vec![Json::string("acme")])];
    let by_stamps = Command::RevokeByStamps {
        stamps,
        terminate: false,
        signal: Some(text("SIGTERM")),
    };
    is("control-38-revoke-by-stamped-headers", by_stamps);
    is("control-40-shutdown", Command::Shutdown);
    is("control-46-election-two-workers", Command::Election);
    assert_eq!(
        Command::of(&request("control-35-unknown-command")),
        Err(Refusal::Unknown(text("no_such_command")))
    );
}

/// What the first worker answered in a capture.
fn answered(name: &str) -> Value {
    let exchange = exchange(name);
    let reply = Reply::parse(exchange.replies[0].1.as_bytes()).unwrap();
    reply
        .answer
        .to()
        .unwrap_or_else(|err| panic!("{}: {err}", exchange.name))
}

#[test]
fn answers_are_in_celerys_words() {
    let refused = |name: &str| Command::of(&request(name)).unwrap_err().answer();
    let cases = [
        ("control-01-ping-full-trace", answer::pong()),
        ("control-16-clock", answer::clock(41)),
        (
            "control-18-revoke-list-reply",
            answer::flagged(&["id-b".into(), "id-a".into()]),
        ),
        (
            "control-19-revoked",
            answer::names(["2f15cbe9-0dd0-4321-9ccf-d4a5a4b11944", "id-b", "id-a"]),
        ),
        (
            "control-20-revoke-terminate",
            answer::terminated(&["75c75852-dce3-43c6-9b17-2f1924c73700".into()]),
        ),
        ("control-22-rate-limit", answer::rate_limit_set("10/m")),
        ("control-23-rate-limit-unknown", answer::unknown_task()),
        ("control-24-time-limit", answer::time_limit_set()),
        ("control-25-pool-grow", answer::pool_grows()),
        ("control-26-pool-shrink", answer::pool_shrinks()),
        ("control-27-autoscale-off", answer::not_autoscaled()),
        ("control-28-add-consumer", answer::consumer_added("newq")),
        ("control-29-cancel-consumer", answer::consumer_cancelled("newq")),
        ("control-30-enable-events", answer::events_enabled(false)),
        ("control-31-disable-events", answer::events_disabled(false)),
        ("control-32-enable-events-again", answer::events_enabled(false)),
        ("control-35-unknown-command", refused("control-35-unknown-command")),
        ("control-36-bad-arguments", refused("control-36-bad-arguments")),
        ("control-37-pool-restart", answer::no_restarts()),
        (
            "control-38-revoke-by-stamped-headers",
            answer::flagged_stamps(
                &request("control-38-revoke-by-stamped-headers")
                    .arguments
                    .get("headers")
                    .unwrap(),
            ),
        ),
        ("control-41-enable-events-off-to-on", answer::events_enabled(true)),
        ("control-42-disable-events-on-to-off", answer::events_disabled(true)),
        ("control-43-autoscale", answer::autoscaled(5, 2)),
        (
            "control-44-pool-grow-with-autoscale",
            answer::pool_is_autoscaled("pool_grow"),
        ),
    ];
    for (name, ours) in cases {
        assert_eq!(ours.to::<Value>().unwrap(), answered(name), "{name}");
    }
    let theirs = answered("control-33-hello");
    let revoked: Vec<&str> = theirs["revoked"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    assert_eq!(answer::hello(revoked, 86).to::<Value>().unwrap(), theirs);
    assert_eq!(
        answer::registered("proj.limited", &[("rate_limit", "2/m")]),
        "proj.limited [rate_limit=2/m]"
    );
    let registered = answered("control-11-registered");
    assert!(
        registered
            .as_array()
            .unwrap()
            .contains(&"proj.limited [rate_limit=2/m]".into())
    );
    let report = answered("control-15-report");
    assert_eq!(
        answer::ok(report["ok"].as_str().unwrap()).to::<Value>().unwrap(),
        report
    );
}

fn held(of: &Value) -> TaskRequest {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let info = &of["delivery_info"];
    TaskRequest {
        shown: (None, None),
        id: text(&of["id"]),
        name: text(&of["name"]),
        task: text(&of["type"]),
        args: Json::of(&of["args"]),
        kwargs: Json::of(&of["kwargs"]),
        hostname: text(&of["hostname"]),
        time_start: of["time_start"].as_f64(),
        acknowledged: of["acknowledged"].as_bool().unwrap(),
        exchange: text(&info["exchange"]),
        routing_key: text(&info["routing_key"]),
        priority: u8::try_from(info["priority"].as_u64().unwrap()).unwrap(),
        redelivered: info["redelivered"].as_bool().unwrap(),
        worker_pid: of["worker_pid"].as_u64().map(|pid| u32::try_from(pid).unwrap()),
    }
}

/// The answer's own text, to compare bytes.
fn answer_text(name: &str) -> Json {
    Reply::parse(exchange(name).replies[0].1.as_bytes()).unwrap().answer
}

#[test]
fn tasks_are_shown_as_celery_shows_them() {
    let active = answered("control-06-active");
    let tasks: Vec<TaskRequest> = active.as_array().unwrap().iter().map(held).collect();
    assert_eq!(answer::tasks(&tasks, false), answer_text("control-06-active"));
    assert_eq!(answer::tasks(&tasks, true), answer_text("control-07-active-safe"));
    let reserved = answered("control-08-reserved");
    let tasks: Vec<TaskRequest> = reserved.as_array().unwrap().iter().map(held).collect();
    assert_eq!(answer::tasks(&tasks, false), answer_text("control-08-reserved"));
    let scheduled = answered("control-09-scheduled");
    let task = held(&scheduled[0]["request"]);
    let eta = scheduled[0]["eta"].as_str().unwrap();
    assert_eq!(answer::scheduled([(eta, &task)]), answer_text("control-09-scheduled"));
    let known = answered("control-13-query-task");
    let known: Vec<(String, TaskRequest)> = known
        .as_object()
        .unwrap()
        .values()
        .map(|task| (task[0].as_str().unwrap().to_owned(), held(&task[1])))
        .collect();
    let ours = answer::query_task(known.iter().map(|(state, task)| (state.as_str(), task)));
    assert_eq!(ours, answer_text("control-13-query-task"));
}

#[test]
fn queues_and_settings_are_shown_as_celery_shows_them() {
    let queues = [Consumed::named("celery").to_json(), Consumed::named("extra").to_json()];
    let theirs = answer_text("control-12-active-queues").elements().unwrap();
    assert_eq!(queues.to_vec(), theirs);

    let theirs = answer_text("control-14-conf");
    let mut settings = Configuration(theirs.entries());
    settings.0[0].1 = Json::string("redis://:hunter2@127.0.0.1:6401/0");
    assert_eq!(settings.to_json(), theirs);
    let secrets = Configuration(vec![
        ("broker_password".into(), Json::string("hunter2")),
        ("my_api_token".into(), Json::of(&5)),
        ("url".into(), Json::string("redis://me:a@b@host:1/0?x=y")),
    ]);
    assert_eq!(
        secrets.to_json().as_str(),
        r#"{"broker_password": "********", "my_api_token": "********", "url": "redis://me:********@host:1/0?x=y"}"#
    );
}

#[test]
fn stats_have_what_flower_needs() {
    let theirs = answered("control-10-stats");
    let (pool, broker, usage) = (&theirs["pool"], &theirs["broker"], &theirs["rusage"]);
    let count = |value: &Value| value.as_u64().unwrap();
    let small = |value: &Value| u32::try_from(count(value)).unwrap();
    let ours = Stats {
        total: vec![("proj.sleeps".into(), 2)],
        pid: small(&theirs["pid"]),
        clock: 27,
        uptime: count(&theirs["uptime"]),
        pool: Pool {
            implementation: pool["implementation"].as_str().unwrap().into(),
            max_concurrency: small(&pool["max-concurrency"]),
            processes: pool["processes"].as_array().unwrap().iter().map(small).collect(),
            max_tasks_per_child: Json::string("N/A"),
            put_guarded_by_semaphore: false,
            timeouts: [0, 0],
        },
        broker: Broker {
            hostname: broker["hostname"].as_str().unwrap().into(),
            userid: None,
            virtual_host: "0".into(),
            port: 6401,
            ssl: false,
            transport: "redis".into(),
        },
        prefetch_count: count(&theirs["prefetch_count"]),
        rusage: Usage {
            utime: usage["utime"].as_f64().unwrap(),
            stime: usage["stime"].as_f64().unwrap(),
            maxrss: count(&usage["maxrss"]),
            minflt: count(&usage["minflt"]),
            majflt: count(&usage["majflt"]),
            inblock: count(&usage["inblock"]),
            oublock: count(&usage["oublock"]),
            nvcsw: count(&usage["nvcsw"]),
            nivcsw: count(&usage["nivcsw"]),
        },
        autoscaler: None,
    };
    let ours: Value = ours.to_json().to().unwrap();
    // All that we say Celery says, too, with the same value.
    let within = |ours: &Value, theirs: &Value| {
        for (key, value) in ours.as_object().unwrap() {
            if !matches!(key.as_str(), "pool" | "broker" | "rusage") {
                assert_eq!(value, &theirs[key], "{key}");
            }
        }
    };
    within(&ours, &theirs);
    for part in ["pool", "broker", "rusage"] {
        within(&ours[part], &theirs[part]);
    }
    assert_eq!(ours.as_object().unwrap().len(), theirs.as_object().unwrap().len());
}

#[test]
fn nonsense_is_refused() {
    for bad in [
        "",
        "5",
        "{}",
        r#"{"content-type": "application/json", "body": "{}", "properties": {}}"#,
    ] {
        Request::parse(bad.as_bytes()).unwrap_err();
    }
    let sealed = |body: &str| {
        let body = serde_json::to_string(body).unwrap();
        format!(r#"{{"content-type": "application/json", "body": {body}, "properties": {{"body_encoding": "utf-8"}}}}"#)
    };
    let read = |body: &str| Request::parse(sealed(body).as_bytes());
    read(r#"{"method": "ping", "arguments": [1]}"#).unwrap_err();
    let request = read(r#"{"method": "rate_limit", "arguments": {"task_name": "t"}}"#).unwrap();
    let refusal = Command::of(&request).unwrap_err();
    assert!(
        refusal
            .answer()
            .as_str()
            .contains("missing 1 required positional argument: 'rate_limit'"),
        "{refusal}"
    );
    let request = read(r#"{"method": "objgraph"}"#).unwrap();
    assert_eq!(Command::of(&request), Err(Refusal::Unavailable("objgraph")));
    Reply::parse(sealed("{}").as_bytes()).unwrap_err();
    let refused = sealed(r#"{"w1@lab": {"error": "no"}}"#);
    assert_eq!(Reply::parse(refused.as_bytes()).unwrap().error().as_deref(), Some("no"));
}
