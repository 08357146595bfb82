//! The rows of the table.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use umbel_client::{Task, chain, chord, chunks, group, map, starmap};
use umbel_protocol::json::Json;

use crate::cell::{Case, Expected, Node};
use crate::ours::Sends;

const NODE_HAS_NO_CANVAS: &str = "celery-node has no workflows";
const NODE_HAS_NO_OPTIONS: &str = "celery-node sends a name and arguments, no options";
const NODE_HAS_NO_SERIALIZERS: &str = "celery-node writes plain JSON only";
const JAVASCRIPTS_NUMBERS: &str = "JSON.stringify of Node has no NaN, no infinity and no large integers";
const JAVASCRIPTS_TYPES: &str = "celery-node has JSON's types only";

/// The rows that run on every server.
pub(crate) const CORE: [&str; 12] = [
    "plain",
    "kwargs",
    "numbers",
    "protocol 1",
    "failure",
    "chain",
    "group",
    "chord",
    "nested chord",
    "link",
    "countdown",
    "expired",
];

fn json(text: &str) -> Json {
    Json::parse(text).expect("the table has JSON")
}

/// `umbel.echo` with these positional arguments.
fn e(args: &str) -> Task {
    Task::new("umbel.echo").json(json(args), Json::empty_object())
}

/// `umbel.sleep`, for so many seconds where they are given.
fn s(args: &str) -> Task {
    Task::new("umbel.sleep").json(json(args), Json::empty_object())
}

const BLANK: Case = Case {
    name: "",
    python: "",
    python52: None,
    settings: "{}",
    node: Err(NODE_HAS_NO_OPTIONS),
    ours: Err(""),
    expected: Expected::Value(""),
    ours_expects: None,
    gaps: &[],
};

fn plain() -> Vec<Case> {
    vec![
        Case {
            name: "plain",
            python: "e(1, 'zwölf ☂ 🎉', [None, 2.5, True, {}])",
            node: Ok(Node {
                protocol: 2,
                task: "umbel.echo",
                args: r#"[1, "zwölf ☂ 🎉", [null, 2.5, true, {}]]"#,
                kwargs: "{}",
            }),
            ours: Ok(|| Sends::Task(Task::new("umbel.echo").args(&(1, "zwölf ☂ 🎉", json!([null, 2.5, true, {}]))))),
            expected: Expected::Value(r#"{"args":[1,"zwölf ☂ 🎉",[null,2.5,true,{}]],"kwargs":{}}"#),
            ..BLANK
        },
        Case {
            name: "kwargs",
            python: "e(1, a={'b': []}, ключ='ß')",
            node: Ok(Node {
                protocol: 2,
                task: "umbel.echo",
                args: "[1]",
                kwargs: r#"{"a": {"b": []}, "ключ": "ß"}"#,
            }),
            ours: Ok(|| {
                let kwargs = json!({"a": {"b": []}, "ключ": "ß"});
                Sends::Task(Task::new("umbel.echo").args(&[1]).kwargs(&kwargs))
            }),
            expected: Expected::Value(r#"{"args":[1],"kwargs":{"a":{"b":[]},"ключ":"ß"}}"#),
            ..BLANK
        },
        Case {
            name: "numbers",
            python: "e(2**70, -2**70, nan, inf, -inf, 1e300, 0.1, 0.0)",
            node: Err(JAVASCRIPTS_NUMBERS),
            ours: Ok(|| {
                let large = "1180591620717411303424";
                Sends::Task(e(&format!(
                    "[{large}, -{large}, NaN, Infinity, -Infinity, 1e+300, 0.1, 0.0]"
                )))
            }),
            expected: Expected::Value(
                r#"{"args":[1180591620717411303424,-1180591620717411303424,NaN,Infinity,-Infinity,1e+300,0.1,0.0],"kwargs":{}}"#,
            ),
            ..BLANK
        },
        Case {
            name: "special types",
            python: "e(datetime(2026, 11, 20, 12, 30, 0, 5, tzinfo=utc), date(2026, 11, 20), clock(1, 2, 3), Decimal('1.50'), \
                     UUID('00000000-0000-4000-8000-00000000000a'), b'text', b'\\x00\\xff')",
            // kombu 5.2 writes them as plain text.
            python52: Some((
                "e(datetime(2026, 11, 20, 12, 30, 0, 5, tzinfo=utc), date(2026, 11, 20), Decimal('1.50'), \
                 UUID('00000000-0000-4000-8000-00000000000a'))",
                r#"{"args":["2026-11-20T12:30:00.000005Z","2026-11-20T00:00:00","1.50","00000000-0000-4000-8000-00000000000a"],"kwargs":{}}"#,
            )),
            node: Err(JAVASCRIPTS_TYPES),
            ours: Err(
                "Rust programs have no types of these that Celery would know; they may write kombu's JSON for them",
            ),
            expected: Expected::Value(concat!(
                r#"{"args":["datetime.datetime(2026, 11, 20, 12, 30, 0, 5, tzinfo=datetime.timezone.utc)","#,
                r#""datetime.date(2026, 11, 20)","datetime.time(1, 2, 3)","Decimal('1.50')","#,
                r#""UUID('00000000-0000-4000-8000-00000000000a')","b'text'","b'\\x00\\xff'"],"kwargs":{}}"#
            )),
            ..BLANK
        },
        Case {
            name: "protocol 1",
            python: "e(1, 'ß☂', k=[None])",
            settings: r#"{"task_protocol": 1}"#,
            node: Ok(Node {
                protocol: 1,
                task: "umbel.echo",
                args: r#"[1, "ß☂"]"#,
                kwargs: r#"{"k": [null]}"#,
            }),
            ours: Err("ours sends protocol 2 only, as Celery does unless told otherwise"),
            expected: Expected::Value(r#"{"args":[1,"ß☂"],"kwargs":{"k":[null]}}"#),
            ..BLANK
        },
        Case {
            name: "failure",
            python: "s('no number')",
            node: Ok(Node {
                protocol: 2,
                task: "umbel.sleep",
                args: r#"["no number"]"#,
                kwargs: "{}",
            }),
            ours: Ok(|| Sends::Task(s(r#"["no number"]"#))),
            expected: Expected::Raises("TypeError"),
            ..BLANK
        },
    ]
}

fn times() -> Vec<Case> {
    let row = |name, python, ours, expected| Case {
        name,
        python,
        ours: Ok(ours),
        expected,
        ..BLANK
    };
    vec![
        row(
            "countdown",
            "sig('bench.stamp').set(countdown=1)",
            || Sends::Task(Task::new("bench.stamp").countdown(Duration::from_secs(1))),
            Expected::After(1.0),
        ),
        row(
            "eta",
            "sig('bench.stamp').set(eta=in_seconds(1.2))",
            || Sends::Task(Task::new("bench.stamp").eta(Timestamp::now() + SignedDuration::from_millis(1200))),
            Expected::After(1.2),
        ),
        row(
            "expired",
            "e(1).set(expires=in_seconds(-1))",
            || Sends::Task(e("[1]").expires(Timestamp::now() - SignedDuration::from_secs(1))),
            Expected::Raises("TaskRevokedError"),
        ),
        row(
            "expires later",
            "e(1).set(expires=600)",
            || Sends::Task(e("[1]").expires(Duration::from_mins(10))),
            Expected::Value(r#"{"args":[1],"kwargs":{}}"#),
        ),
    ]
}

fn canvas() -> Vec<Case> {
    let row = |name, python, ours, expected| Case {
        name,
        python,
        node: Err(NODE_HAS_NO_CANVAS),
        ours: Ok(ours),
        expected: Expected::Value(expected),
        ..BLANK
    };
    let mut rows = vec![
        row(
            "chain",
            "chain(e(1), e(2, k=3), e('é'))",
            || {
                let second = Task::new("umbel.echo").args(&[2]).kwargs(&json!({"k": 3}));
                Sends::Workflow(chain([e("[1]"), second, e(r#"["é"]"#)]))
            },
            r#"{"args":[{"args":[{"args":[1],"kwargs":{}},2],"kwargs":{"k":3}},"é"],"kwargs":{}}"#,
        ),
        row(
            "immutable chain",
            "chain(e(1), s(0.01).set(immutable=True), e(9))",
            || Sends::Workflow(chain([e("[1]"), s("[0.01]").immutable(), e("[9]")])),
            r#"{"args":[0.01,9],"kwargs":{}}"#,
        ),
        row(
            "group",
            "group(e(i) for i in range(3))",
            || Sends::Workflow(group([e("[0]"), e("[1]"), e("[2]")])),
            r#"[{"args":[0],"kwargs":{}},{"args":[1],"kwargs":{}},{"args":[2],"kwargs":{}}]"#,
        ),
        row(
            "chord",
            "chord([e(1), s(0.01), e(2)], e('body'))",
            || Sends::Workflow(chord([e("[1]"), s("[0.01]"), e("[2]")], e(r#"["body"]"#))),
            r#"{"args":[[{"args":[1],"kwargs":{}},0.01,{"args":[2],"kwargs":{}}],"body"],"kwargs":{}}"#,
        ),
        row(
            "chain with a group",
            "chain(s(0), group(e(2), e(3)), e('end'))",
            || {
                let middle = group([e("[2]"), e("[3]")]);
                Sends::Workflow(chain([s("[0]").into(), middle, e(r#"["end"]"#).into()]))
            },
            r#"{"args":[[{"args":[0,2],"kwargs":{}},{"args":[0,3],"kwargs":{}}],"end"],"kwargs":{}}"#,
        ),
        row(
            "nested chord",
            "chord([chord([s(0), s(0.01)], e('in')), e(3)], e('out'))",
            || {
                let inner = chord([s("[0]"), s("[0.01]")], e(r#"["in"]"#));
                Sends::Workflow(chord([inner, e("[3]").into()], e(r#"["out"]"#)))
            },
            r#"{"args":[[{"args":[[0,0.01],"in"],"kwargs":{}},{"args":[3],"kwargs":{}}],"out"],"kwargs":{}}"#,
        ),
        row(
            "chord of chains",
            "chord([chain(s(0), e(2)), chain(s(0.01), e(4))], e())",
            || {
                Sends::Workflow(chord(
                    [chain([s("[0]"), e("[2]")]), chain([s("[0.01]"), e("[4]")])],
                    e("[]"),
                ))
            },
            r#"{"args":[[{"args":[0,2],"kwargs":{}},{"args":[0.01,4],"kwargs":{}}]],"kwargs":{}}"#,
        ),
        row(
            "chord in a chain",
            "chain(s(0), chord([e(1), e(2)], e('body')), e('end'))",
            || {
                let middle = chord([e("[1]"), e("[2]")], e(r#"["body"]"#));
                Sends::Workflow(chain([s("[0]").into(), middle, e(r#"["end"]"#).into()]))
            },
            r#"{"args":[{"args":[[{"args":[0,1],"kwargs":{}},{"args":[0,2],"kwargs":{}}],"body"],"kwargs":{}},"end"],"kwargs":{}}"#,
        ),
        row(
            "empty chord",
            "chord([], e('empty'))",
            || Sends::Workflow(chord(Vec::<Task>::new(), e(r#"["empty"]"#))),
            r#"{"args":[[],"empty"],"kwargs":{}}"#,
        ),
        row(
            "map",
            "xmap(s(), [0, 0.01])",
            || Sends::Workflow(map(s("[]"), &[json!(0), json!(0.01)])),
            "[0,0.01]",
        ),
        row(
            "starmap",
            "xstarmap(e(), [[1, 2], [3]])",
            || Sends::Workflow(starmap(e("[]"), &[json!([1, 2]), json!([3])])),
            r#"[{"args":[1,2],"kwargs":{}},{"args":[3],"kwargs":{}}]"#,
        ),
        row(
            "chunks",
            "chunks(e(), [[1], [2], [3]], 2)",
            || Sends::Workflow(chunks(e("[]"), &[json!([1]), json!([2]), json!([3])], 2)),
            r#"[[{"args":[1],"kwargs":{}},{"args":[2],"kwargs":{}}],[{"args":[3],"kwargs":{}}]]"#,
        ),
        row(
            "link",
            "linked(s(0.01), e('next'))",
            || {
                let id = uuid::Uuid::new_v4().to_string();
                Sends::Watched(s("[0.01]").link(e(r#"["next"]"#).id(&id)), id)
            },
            r#"{"args":[0.01,"next"],"kwargs":{}}"#,
        ),
        row(
            "link_error",
            "errback(s('no number'), s(0.01).set(immutable=True))",
            || {
                let id = uuid::Uuid::new_v4().to_string();
                Sends::Watched(s(r#"["no number"]"#).link_error(s("[0.01]").immutable().id(&id)), id)
            },
            "0.01",
        ),
        row(
            "failed chord",
            "chord([s(0), s('no number')], e())",
            || Sends::Workflow(chord([s("[0]"), s(r#"["no number"]"#)], e("[]"))),
            "",
        ),
        row(
            "failed chain",
            "chain(e(1), s('no number').set(immutable=True), e(2), e(3))",
            || Sends::Workflow(chain([e("[1]"), s(r#"["no number"]"#).immutable(), e("[2]"), e("[3]")])),
            "",
        ),
    ];
    for failed in rows.iter_mut().filter(|row| row.name.starts_with("failed")) {
        failed.expected = Expected::Raises("TypeError"); // Celery's client looks at a chord's members first.
        if failed.name == "failed chord" {
            failed.ours_expects = Some(Expected::Raises("ChordError"));
        }
    }
    rows
}

fn encodings() -> Vec<Case> {
    fn arguments() -> Task {
        Task::new("umbel.echo")
            .args(&(1, "ß☂", json!([null, 2.5, -70_000])))
            .kwargs(&json!({"n": {}}))
    }
    let row = |name, python, ours| Case {
        name,
        python,
        node: Err(NODE_HAS_NO_SERIALIZERS),
        ours: Ok(ours),
        expected: Expected::Value(r#"{"args":[1,"ß☂",[null,2.5,-70000]],"kwargs":{"n":{}}}"#),
        ..BLANK
    };
    vec![
        row("json", "arguments().set(serializer='json')", || {
            Sends::Task(arguments().serializer("json"))
        }),
        row("msgpack", "arguments().set(serializer='msgpack')", || {
            Sends::Task(arguments().serializer("msgpack"))
        }),
        row("yaml", "arguments().set(serializer='yaml')", || {
            Sends::Task(arguments().serializer("yaml"))
        }),
        row("zlib", "arguments().set(compression='zlib')", || {
            Sends::Task(arguments().compression("zlib"))
        }),
        row("bzip2", "arguments().set(compression='bzip2')", || {
            Sends::Task(arguments().compression("bzip2"))
        }),
        row("lzma", "arguments().set(compression='lzma')", || {
            Sends::Task(arguments().compression("lzma"))
        }),
        row("brotli", "arguments().set(compression='brotli')", || {
            Sends::Task(arguments().compression("brotli"))
        }),
        row("zstd", "arguments().set(compression='zstd')", || {
            Sends::Task(arguments().compression("zstd"))
        }),
        row(
            "msgpack and zstd",
            "arguments().set(serializer='msgpack', compression='zstd')",
            || Sends::Task(arguments().serializer("msgpack").compression("zstd")),
        ),
        row(
            "yaml and lzma",
            "arguments().set(serializer='yaml', compression='lzma')",
            || Sends::Task(arguments().serializer("yaml").compression("lzma")),
        ),
    ]
}

/// All rows.
pub(crate) fn cases() -> Vec<Case> {
    [plain(), times(), canvas(), encodings()].concat()
}
