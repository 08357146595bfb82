//! Routes: where Celery's own router and producer send the same calls, ours does.

use serde_json::{Value, json};
use umbel_client::{Exchange, ExchangeKind, Json, Options, Routes, Task, chain, chord, group, starmap};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Redis};

use crate::support::{SOON, client_with};

/// As `task_routes` has them, but that a regular expression is a name with `re:` before it.
const ROUTES: &str = r#"[
    {
        "proj.add": "sums",
        "proj.mail": {"queue": "mail", "priority": 3, "headers": {"a": 1}},
        "proj.video.*": {"exchange": "media", "routing_key": "video"},
        "proj.v*": "not for video",
        "proj.[ab]*": "ab",
        "proj.[x]": "a name like any other",
        "*.big": {"queue": "big", "compression": "zlib", "delivery_mode": 1},
        "re:proj\\.(up|down)": {"queue": "net", "serializer": "yaml"},
        "proj.empty": {},
        "proj.key": {"routing_key": "k"},
        "proj.both": {"queue": "q", "exchange": "media", "routing_key": "video"},
        "proj.half": {"queue": "half", "exchange": "media"},
        "proj.typed": {"exchange": "media", "exchange_type": "direct", "routing_key": "audio", "argsrepr": "(hidden)"},
        "proj.null": {"queue": "null", "priority": null}
    },
    {"proj.add": "too late", "proj.one": "second", "proj.o*": "rest"},
    [["zz.*", "pairs"], ["zz.top", "exact"], ["zz.*", "said again"]]
]"#;

/// Names, and what their callers say.
fn calls() -> Vec<(&'static str, Value)> {
    let names = [
        "proj.add",
        "proj.mail",
        "proj.video.encode",
        "proj.video",
        "proj.vast",
        "proj.apple",
        "proj.x",
        "proj.[x]",
        "shop.big",
        "proj.up",
        "proj.downwards",
        "its.proj.up",
        "proj.empty",
        "proj.key",
        "proj.both",
        "proj.half",
        "proj.typed",
        "proj.null",
        "proj.one",
        "proj.other",
        "zz.top",
        "zz.bottom",
        "nobody",
        "PROJ.ADD",
    ];
    let said = [
        json!({}),
        json!({"queue": "mine"}),
        json!({"priority": 9, "headers": {"b": 2}}),
        json!({"exchange": "media", "routing_key": "audio"}),
        json!({"serializer": "json", "compression": "bzip2"}),
    ];
    let each = |name| said.iter().map(move |said| (name, said.clone()));
    names.into_iter().flat_map(each).collect()
}

/// Two queues of an exchange that nobody declares: kombu delivers as by a direct one.
async fn bind(redis: &Redis) {
    for (key, queue) in [("video", "films"), ("audio", "songs")] {
        let member = format!("{key}\u{6}\u{16}\u{6}\u{16}{queue}");
        let _: () = redis
            .connection()
            .await
            .sadd("_kombu.binding.media", member)
            .await
            .unwrap();
    }
}

/// All messages in lists: by list, what tells where and how they were sent. The lists are empty then.
async fn taken(redis: &Redis) -> Value {
    let mut connection = redis.connection().await;
    let mut keys: Vec<String> = connection.keys("*").await.unwrap();
    keys.sort();
    let mut found = Vec::new();
    for key in keys {
        let kind: String = umbel_testkit::redis::cmd("TYPE")
            .arg(&key)
            .query_async(&mut connection)
            .await
            .unwrap();
        if kind != "list" {
            continue;
        }
        let raws: Vec<String> = connection.lrange(&key, 0, -1).await.unwrap();
        let _: () = connection.del(&key).await.unwrap();
        for raw in raws {
            let message: Value = serde_json::from_str(&raw).unwrap();
            let (headers, properties) = (&message["headers"], &message["properties"]);
            found.push(json!({
                "list": key, "task": headers["task"], "to": properties["delivery_info"], "priority": properties["priority"],
                "mode": properties["delivery_mode"], "type": message["content-type"], "compression": headers["compression"],
                "a": headers["a"], "b": headers["b"], "argsrepr": headers["argsrepr"],
            }));
        }
    }
    Value::Array(found)
}

async fn celery(redis: &Redis) -> Celery {
    let mut celery = Celery::client(&redis.url()).await;
    let lines = format!(
        "import json, re
def name(key):
    return re.compile(key[3:]) if key.startswith('re:') else key
def router(routes):
    if isinstance(routes, dict):
        return {{name(key): route for key, route in routes.items()}}
    return [(name(key), route) for key, route in routes]
app.conf.task_routes = [router(routes) for routes in json.loads({ROUTES:?})]
app.amqp.flush_routes()
app.amqp.router = app.amqp.Router()
answer = len(app.amqp.routes)"
    );
    assert_eq!(celery.script(&lines, SOON).await, Ok(json!(3)));
    celery
}

#[tokio::test]
async fn tasks_go_where_celerys_router_sends_them() {
    let (theirs, ours) = (Redis::start().await, Redis::start().await);
    bind(&theirs).await;
    bind(&ours).await;
    let mut celery = celery(&theirs).await;
    let options = Options {
        routes: ROUTES.parse().unwrap(),
        exchanges: [("media".to_owned(), ExchangeKind::Direct)].into(),
        ..Options::default()
    };
    let client = client_with(&ours, options).await;
    let mut lists = std::collections::BTreeSet::new();
    for (name, said) in calls() {
        let text = |option: &str| said[option].as_str();
        let mut task = Task::new(name).args(&[1]);
        if let Some(queue) = text("queue") {
            task = task.queue(queue);
        }
        if let (Some(exchange), Some(key)) = (text("exchange"), text("routing_key")) {
            task = task.exchange(Exchange::named(exchange), key);
        }
        if let Some(priority) = said["priority"].as_i64() {
            task = task.priority(priority).header("b", &2);
        }
        if let (Some(serializer), Some(compression)) = (text("serializer"), text("compression")) {
            task = task.serializer(serializer).compression(compression);
        }
        let destination = client.destination(&task).unwrap();
        client.send(task).await.unwrap();
        celery.send(name, json!([1]), said.clone()).await;
        let (expected, found) = (taken(&theirs).await, taken(&ours).await);
        assert_eq!(found, expected, "{name} {said}");
        let [one] = found.as_array().unwrap().as_slice() else {
            panic!("{name} {said}: {found}")
        };
        let to = &one["to"];
        let named = if to["exchange"] == "" {
            &to["routing_key"]
        } else {
            &to["exchange"]
        };
        assert_eq!(named, destination.name(), "{name} {said}");
        lists.insert(one["list"].to_string());
    }
    assert!(lists.len() > 15, "{lists:?}");
}

/// A workflow's tasks carry the options of their routes: who sends the later steps needs no routes.
#[tokio::test]
async fn tasks_of_workflows_go_where_their_routes_lead() {
    let redis = Redis::start().await;
    bind(&redis).await;
    let options = Options {
        routes: ROUTES.parse().unwrap(),
        exchanges: [("media".to_owned(), ExchangeKind::Direct)].into(),
        ..Options::default()
    };
    let client = client_with(&redis, options).await;
    let t = Task::new;
    let place = |found: &Value| -> Vec<String> {
        let found = found.as_array().unwrap().iter();
        found
            .map(|one| format!("{} {}", one["list"].as_str().unwrap(), one["task"].as_str().unwrap()))
            .collect()
    };
    client.apply(starmap(t("proj.add"), &[[1, 2]])).await.unwrap();
    client
        .apply(group([t("proj.mail"), t("proj.video.x"), t("nobody")]))
        .await
        .unwrap();
    let found = taken(&redis).await;
    assert_eq!(
        place(&found),
        [
            "celery nobody",
            "films proj.video.x",
            "mail\u{6}\u{16}3 proj.mail",
            "sums celery.starmap"
        ]
    );
    let steps = chain([
        t("proj.add").link(t("zz.top")),
        t("proj.mail").queue("mine"),
        t("proj.up"),
    ]);
    client.apply(steps).await.unwrap();
    client.apply(chord([t("proj.add")], t("proj.both"))).await.unwrap();
    let raws: Vec<String> = redis.connection().await.lrange("sums", 0, -1).await.unwrap();
    let embed = |raw: &str| {
        let message: Value = serde_json::from_str(raw).unwrap();
        let body = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            message["body"].as_str().unwrap(),
        );
        let body: Value = serde_json::from_slice(&body.unwrap()).unwrap();
        body[2].clone()
    };
    let (chorded, chained) = (embed(&raws[0]), embed(&raws[1]));
    assert_eq!(chained["callbacks"][0]["options"]["queue"], "exact");
    let steps = &chained["chain"];
    assert_eq!(
        (&steps[1]["options"]["queue"], &steps[1]["options"]["priority"]),
        (&json!("mine"), &json!(3))
    );
    assert_eq!(
        (&steps[0]["options"]["queue"], &steps[0]["options"]["serializer"]),
        (&json!("net"), &json!("yaml"))
    );
    let body = &chorded["chord"]["options"];
    assert_eq!(
        (&body["exchange"], &body["routing_key"], &body["queue"]),
        (&json!("media"), &json!("video"), &Value::Null)
    );
}

#[test]
fn routes_that_lead_nowhere_are_refused_with_their_place() {
    for (routes, words) in [
        ("[1]", "neither an object nor a list of pairs"),
        ("7", "neither an object of names and routes nor a list of these"),
        (r#"[["a", "b"]]"#, "one that is not a name and its route"),
        (
            r#"{"a": 7}"#,
            "a: a route is neither a queue's name nor an object of options",
        ),
        (
            r#"{"a": {"time_limit": 5}}"#,
            "a: option \"time_limit\" is none that a route may have",
        ),
        (
            r#"{"a": {"priority": "high"}}"#,
            "a: option priority has a value of another type",
        ),
        (r#"{"a": {"serializer": "pickle"}}"#, "a: option serializer: "),
        (
            r#"{"a": {"exchange": "x"}}"#,
            "a: an exchange without a routing_key leads nowhere",
        ),
        (r#"{"re:(": "q"}"#, "re:(: "),
        (r#"{"re:(?=a)": "q"}"#, "re:(?=a): "),
        ("{", "no JSON"),
    ] {
        let refused = routes.parse::<Routes>().unwrap_err().to_string();
        assert!(refused.contains(words), "{routes}: {refused}");
    }
    let routes = Routes::default()
        .route("a.*", "first")
        .unwrap()
        .route("a.b", &json!({"queue": "exact"}))
        .unwrap();
    let queue = |name: &str| {
        routes
            .of(name)
            .map(|options| options.get("queue").map(Json::to_string).unwrap())
    };
    assert_eq!(queue("a.b").as_deref(), Some("\"exact\""));
    assert_eq!(queue("a.c").as_deref(), Some("\"first\""));
    assert_eq!(queue("b"), None);
}
