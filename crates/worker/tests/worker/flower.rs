//! Flower as people run it: what it shows of our worker, and what each of its buttons does.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Celery, Process, Redis, celery_process, eventually, free_port, within};

use crate::support::{LATER, SOON, admitted, umbel_worker};

const NODE: &str = "w1@lab";

struct Flower {
    port: u16,
    process: Process,
}

impl Flower {
    async fn start(broker: &str) -> Flower {
        let port = free_port();
        let (address, at) = ("--address=127.0.0.1", format!("--port={port}"));
        let process = celery_process(
            broker,
            &["flower", address, &at],
            &[("FLOWER_UNAUTHENTICATED_API", "true")],
        );
        let mut flower = Flower { port, process };
        flower.process.says(LATER, "Visit me at").await;
        flower
    }

    /// Status and body of an answer.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let answer = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let form = "application/x-www-form-urlencoded";
            let head = format!(
                "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: {form}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let Ok(answer) = within(LATER, "Flower answers", answer).await else {
            return (0, String::new());
        };
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, body.to_owned())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "").await;
        let value = serde_json::from_str(&body).ok().filter(|_| status == 200);
        value.unwrap_or_else(|| json!({"status": status, "body": body}))
    }

    /// Presses a button; panics unless Flower says that it worked.
    async fn press(&self, path: &str, form: &str) -> String {
        let (status, body) = self.ask("POST", path, form).await;
        assert_eq!(status, 200, "{path} {form}: {body}\n{}", self.process.tail());
        body
    }
}

async fn stats(celery: &mut Celery) -> Value {
    celery.inspect(&[NODE], "stats", json!([])).await[NODE].clone()
}

async fn queues(celery: &mut Celery) -> String {
    celery.inspect(&[NODE], "active_queues", json!([])).await[NODE].to_string()
}

#[tokio::test]
async fn flower_shows_the_worker_and_its_tasks_and_its_buttons_work() {
    let redis = Redis::start().await;
    let mut worker = umbel_worker(
        &redis.url(),
        &[
            "--name",
            NODE,
            "--concurrency",
            "3",
            "--queue",
            "celery,mail",
            "--retry-max-attempts",
            "1",
        ],
    );
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let flower = Flower::start(&redis.url()).await;

    // The worker, as Flower asks for it.
    let mut shown = Value::Null;
    eventually(LATER, "the worker is shown", async || {
        shown = flower.get("/api/workers?refresh=1").await[NODE].clone();
        shown["stats"].is_object() && shown["active_queues"].is_array() && shown["registered"].is_array()
    })
    .await;
    assert_eq!(shown["stats"]["pool"]["max-concurrency"], json!(3), "{shown}");
    assert_eq!(shown["stats"]["broker"]["transport"], json!("redis"));
    let named: Vec<&Value> = shown["active_queues"].as_array().expect("a list").iter().collect();
    assert_eq!(
        named.iter().map(|queue| queue["name"].clone()).collect::<Vec<_>>(),
        [json!("celery"), json!("mail")]
    );
    assert!(shown["registered"].to_string().contains("umbel.echo"), "{shown}");
    eventually(SOON, "it is shown as alive", async || {
        flower.get("/api/workers?status=1").await[NODE] == json!(true)
    })
    .await;

    // Tasks; events are switched on by Flower itself, which asks again every five seconds.
    eventually(SOON, "task events are on", async || {
        let probe = celery.send("umbel.echo", json!(["probe"]), json!({})).await;
        let _ = celery.get(&probe, SOON).await;
        flower.get(&format!("/api/task/info/{probe}")).await["uuid"] == json!(probe)
    })
    .await;
    let good = celery
        .send("umbel.echo", json!(["x"]), json!({"kwargs": {"k": 1}}))
        .await;
    let bad = celery.send("umbel.sleep", json!(["no number"]), json!({})).await;
    let runs = celery.send("umbel.sleep", json!([300]), json!({})).await;
    for (id, state) in [(&good, "SUCCESS"), (&bad, "FAILURE"), (&runs, "STARTED")] {
        eventually(SOON, state, async || {
            flower.get(&format!("/api/task/info/{id}")).await["state"] == json!(state)
        })
        .await;
    }
    let info = flower.get(&format!("/api/task/info/{good}")).await;
    assert_eq!(
        (&info["name"], &info["args"], &info["kwargs"], &info["worker"]),
        (&json!("umbel.echo"), &json!("['x']"), &json!("{'k': 1}"), &json!(NODE)),
        "{info}"
    );
    assert!(info["runtime"].as_f64().is_some_and(|runtime| runtime < 5.0), "{info}");
    assert!(
        info["result"].as_str().is_some_and(|result| result.contains("'x'")),
        "{info}"
    );
    let tasks = flower.get("/api/tasks?state=SUCCESS").await;
    assert_eq!(tasks[&good]["state"], json!("SUCCESS"), "{tasks}");
    let result = flower.get(&format!("/api/task/result/{good}")).await;
    assert_eq!(result["state"], json!("SUCCESS"), "{result}");
    let lengths = flower.get("/api/queues/length").await.to_string();
    assert!(lengths.contains("\"mail\""), "{lengths}");

    // Its pages.
    for page in [
        "/",
        "/workers",
        "/tasks",
        "/broker",
        &format!("/worker/{NODE}"),
        &format!("/task/{good}"),
        "/metrics",
    ] {
        let (status, body) = flower.ask("GET", page, "").await;
        assert_eq!(status, 200, "{page}: {body}");
        assert!(!body.contains("Traceback"), "{page}");
    }
    let (_, page) = flower.ask("GET", &format!("/worker/{NODE}"), "").await;
    for text in [NODE, "mail", "umbel.echo"] {
        assert!(page.contains(text), "the worker's page names {text}");
    }

    // Its buttons.
    flower.press(&format!("/api/worker/pool/grow/{NODE}"), "n=2").await;
    assert_eq!(stats(&mut celery).await["pool"]["max-concurrency"], json!(5));
    flower.press(&format!("/api/worker/pool/shrink/{NODE}"), "n=1").await;
    assert_eq!(stats(&mut celery).await["pool"]["max-concurrency"], json!(4));
    let waits = celery.send("umbel.echo", json!([]), json!({"queue": "extra"})).await;
    flower
        .press(&format!("/api/worker/queue/add-consumer/{NODE}"), "queue=extra")
        .await;
    assert!(celery.get(&waits, SOON).await.is_ok(), "it serves the queue");
    flower
        .press(&format!("/api/worker/queue/cancel-consumer/{NODE}"), "queue=extra")
        .await;
    assert!(!queues(&mut celery).await.contains("extra"));
    flower
        .press(
            "/api/task/rate-limit/umbel.echo",
            &format!("workername={NODE}&ratelimit=7/s"),
        )
        .await;
    let registered = celery.inspect(&[NODE], "registered", json!([])).await.to_string();
    assert!(registered.contains("umbel.echo [rate_limit=7/s]"), "{registered}");
    flower
        .press("/api/task/timeout/umbel.sleep", &format!("workername={NODE}&hard=1"))
        .await;
    let limited = celery.send("umbel.sleep", json!([300]), json!({})).await;
    let raised = celery.get(&limited, SOON).await.expect_err("a second is too short");
    assert_eq!(raised.exc_type, "TimeLimitExceeded");
    flower
        .press(&format!("/api/task/revoke/{runs}"), "terminate=1&signal=SIGKILL")
        .await;
    let raised = celery.get(&runs, SOON).await.expect_err("it was terminated");
    assert_eq!(raised.message, "terminated");
    eventually(SOON, "Flower shows it as revoked", async || {
        flower.get(&format!("/api/task/info/{runs}")).await["state"] == json!("REVOKED")
    })
    .await;
    let later = celery.send("umbel.echo", json!([]), json!({"countdown": 600})).await;
    eventually(SOON, "Flower has seen it", async || {
        flower.get(&format!("/api/task/info/{later}")).await["state"] == json!("RECEIVED")
    })
    .await;
    flower.press(&format!("/api/task/revoke/{later}"), "").await;
    let raised = celery.get(&later, SOON).await.expect_err("it was revoked");
    assert_eq!(raised.message, "revoked");
    // What a worker refuses is shown with the worker's own words.
    for (path, form, reason) in [
        ("/api/worker/pool/restart/", "", "Pool restarts not enabled"),
        ("/api/worker/pool/autoscale/", "min=2&max=5", "Autoscale not enabled"),
    ] {
        let (status, body) = flower.ask("POST", &format!("{path}{NODE}"), form).await;
        assert_eq!(status, 403, "{path}: {body}");
        assert!(body.contains(reason), "{path}: {body}");
    }
    flower.press(&format!("/api/worker/shutdown/{NODE}"), "").await;
    assert!(worker.wait(Duration::from_secs(20)).await.success());
    eventually(SOON, "Flower shows it as gone", async || {
        flower.get("/api/workers?status=1").await[NODE] == json!(false)
    })
    .await;
    let mut connection = redis.connection().await;
    assert_eq!(connection.llen("celery").await, Ok(0));
}

#[tokio::test]
async fn flowers_button_for_autoscaling_works_where_the_worker_scales() {
    let redis = Redis::start().await;
    let _worker = umbel_worker(&redis.url(), &["--name", NODE, "--autoscale", "4,1"]);
    admitted(&redis, 1).await;
    let mut celery = Celery::client(&redis.url()).await;
    let flower = Flower::start(&redis.url()).await;
    eventually(LATER, "the worker is shown", async || {
        flower.get("/api/workers?refresh=1").await[NODE]["stats"].is_object()
    })
    .await;
    flower
        .press(&format!("/api/worker/pool/autoscale/{NODE}"), "min=2&max=6")
        .await;
    let autoscaler = stats(&mut celery).await["autoscaler"].clone();
    assert_eq!(
        (&autoscaler["max"], &autoscaler["min"]),
        (&json!(6), &json!(2)),
        "{autoscaler}"
    );
    eventually(SOON, "there are two slots", async || {
        stats(&mut celery).await["pool"]["max-concurrency"] == json!(2)
    })
    .await;
}
