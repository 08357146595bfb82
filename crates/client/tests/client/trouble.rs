//! Servers that refuse, go away and come back: what the library says then.

use std::time::Duration;

use umbel_client::{Client, Config, Options, Replicas, Retry, SendError, Task, Until, chain};
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::{Redis, Relay, eventually, script};

use crate::support::{SOON, client, client_with};

fn task(n: usize) -> Task {
    Task::new("t").args(&(n,)).id(&format!("id-{n}"))
}

async fn waiting(redis: &Redis, list: &str) -> usize {
    redis.connection().await.llen(list).await.unwrap()
}

#[tokio::test]
async fn a_cut_answer_is_told_and_only_what_is_idempotent_is_sent_again() {
    let redis = Redis::start().await;
    let relay = Relay::before(&redis).await;
    let client = Client::connect(Config::new(&relay.url()), Options::default())
        .await
        .unwrap();
    let cut = relay.cut_reply(|command| command.is("LPUSH"));
    let err = client.send(task(1)).await.unwrap_err();
    cut.happened(SOON).await;
    assert!(err.may_have_been_sent(), "{err}");
    assert_eq!(err.to_string(), "task id-1 may have been sent, or not");
    assert_eq!(waiting(&redis, "celery").await, 1);

    let cut = relay.cut_reply(|command| command.is("LPUSH"));
    let sent = client.send(task(2).idempotent()).await.unwrap();
    cut.happened(SOON).await;
    assert_eq!(sent.id(), "id-2");
    assert_eq!(waiting(&redis, "celery").await, 3, "the second one twice, under one id");

    let cut = relay.cut_reply(|command| command.is("LPUSH"));
    let Err(SendError::Undelivered {
        sent, unknown, unsent, ..
    }) = client.send_all((0..1000).map(task)).await
    else {
        panic!("the answer was cut")
    };
    cut.happened(SOON).await;
    assert_eq!((sent.len(), sent.len() + unknown.len() + unsent.len()), (0, 1000));
    assert!(
        !unknown.is_empty() && !unsent.is_empty(),
        "{} {}",
        unknown.len(),
        unsent.len()
    );
    assert_eq!(waiting(&redis, "celery").await, 3 + unknown.len());
}

#[tokio::test]
async fn a_unique_task_that_ends_before_it_is_sent_again_is_sent_once() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let relay = Relay::before(&redis).await;
    let retry = Retry {
        attempts: 3,
        pause: Duration::from_secs(1),
    };
    let options = Options {
        retry,
        ..Options::default()
    };
    let client = Client::connect(Config::new(&relay.url()), options).await.unwrap();
    let unique = |n| task(n).unique(&format!("key-{n}"), Until::Done, Duration::from_mins(1));
    client.send(unique(0)).await.unwrap(); // From now on the server knows the script.
    let cut = relay.cut_reply(script("publish_unique"));
    let sending = tokio::spawn(async move { client.send(unique(1)).await });
    cut.happened(SOON).await;
    assert_eq!(waiting(&redis, "celery").await, 2);
    // A worker has run it within the pause of its sender.
    let _: () = connection.del(&["celery", "umbel:unique:key-1"][..]).await.unwrap();
    assert_eq!(sending.await.unwrap().unwrap().id(), "id-1");
    assert_eq!(waiting(&redis, "celery").await, 0, "it is not run twice");
}

#[tokio::test]
async fn a_refusal_says_that_nothing_was_sent() {
    let redis = Redis::start().await;
    let client = client(&redis).await;
    let mut connection = redis.connection().await;
    let _: () = connection.set("other", "text").await.unwrap();
    let err = client.send(task(1).queue("other")).await.unwrap_err();
    assert!(!err.may_have_been_sent(), "{err}");
    assert_eq!(err.to_string(), "task id-1 was not sent");
    let Err(SendError::Undelivered {
        sent, unknown, unsent, ..
    }) = client.send_all([task(1), task(2).queue("other"), task(3)]).await
    else {
        panic!("one queue is none")
    };
    assert_eq!(
        (sent, unknown, unsent),
        (vec!["id-1".into(), "id-3".into()], vec![], vec!["id-2".into()])
    );

    let _: () = umbel_testkit::redis::cmd("CONFIG")
        .arg("SET")
        .arg("maxmemory")
        .arg(1)
        .query_async(&mut connection)
        .await
        .unwrap();
    let err = client.send(task(4)).await.unwrap_err();
    assert!(!err.may_have_been_sent(), "{err}");
    assert_eq!(waiting(&redis, "celery").await, 2);
}

#[tokio::test]
async fn a_server_that_comes_back_gets_the_message_once() {
    let mut redis = Redis::durable().await;
    let retry = Retry {
        attempts: 30,
        pause: Duration::from_millis(20),
    };
    let client = client_with(
        &redis,
        Options {
            retry,
            ..Options::default()
        },
    )
    .await;
    client.send(task(1)).await.unwrap();
    let once = Retry { attempts: 1, ..retry };
    let impatient = client_with(
        &redis,
        Options {
            retry: once,
            ..Options::default()
        },
    )
    .await;
    redis.kill();
    let _ = impatient.send(task(8)).await.unwrap_err();
    // From here on it is known that the server is away, so nothing is on its way either.
    let err = impatient.send(task(9)).await.unwrap_err();
    assert!(!err.may_have_been_sent(), "{err}");
    client.time().await.unwrap_err();
    let sending = tokio::spawn({
        let client = client.clone();
        async move { client.send(task(2)).await }
    });
    redis.start_again().await;
    sending.await.unwrap().unwrap();
    // Those that were given up are nowhere, the others once each.
    assert_eq!(waiting(&redis, "celery").await, 2);
}

#[tokio::test]
async fn waiting_goes_on_through_a_restart_of_the_server() {
    let mut redis = Redis::durable().await;
    let client = client(&redis).await;
    let handle = client.handle("late");
    let waiting = tokio::spawn(async move { handle.get(SOON).await });
    let mut connection = redis.connection().await;
    eventually(SOON, "a subscription", async || {
        let channels: Vec<String> = umbel_testkit::redis::cmd("PUBSUB")
            .arg("CHANNELS")
            .query_async(&mut connection)
            .await
            .unwrap();
        !channels.is_empty()
    })
    .await;
    redis.kill();
    redis.start_again().await;
    let document = r#"{"status": "SUCCESS", "result": 1, "task_id": "late"}"#;
    let mut connection = redis.connection().await;
    let _: () = connection.set("celery-task-meta-late", document).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().as_str(), "1");
}

#[tokio::test]
async fn replicas_are_waited_for_and_missed() {
    let redis = Redis::start().await;
    let port = redis.port().to_string();
    let wanted = |count| Options {
        replicas: Some(Replicas {
            count,
            patience: Duration::from_millis(500),
            is_on_disk: false,
        }),
        ..Options::default()
    };
    let err = client_with(&redis, wanted(1)).await.send(task(1)).await.unwrap_err();
    assert!(err.may_have_been_sent(), "{err}");
    let source = std::error::Error::source(&err).unwrap().to_string();
    assert_eq!(source, "0 of 1 replicas have it");
    let _replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    let client = client_with(&redis, wanted(1)).await;
    eventually(SOON, "the replica follows", async || client.send(task(2)).await.is_ok()).await;
    let many = client.send_all((0..300).map(task)).await.unwrap();
    assert_eq!(many.len(), 300);
}

#[tokio::test]
async fn a_full_queue_takes_what_it_has_room_for_and_the_rest_is_told() {
    let redis = Redis::start().await;
    let client = client(&redis).await;
    client.send(task(0)).await.unwrap();
    // As the operator writes it; a client that has just sent may not know of it for five seconds.
    let mut connection = redis.connection().await;
    let _: () = connection.hset("umbel:queue:celery", "max_length", 3).await.unwrap();
    let _: () = connection.sadd("umbel:limited", "celery").await.unwrap();
    let fresh = crate::support::client(&redis).await;
    let refused = fresh.send_all((1..6).map(task)).await;
    let Err(SendError::Undelivered {
        sent,
        unknown,
        unsent,
        source,
    }) = refused
    else {
        panic!("there is room for two: {refused:?}")
    };
    assert_eq!(sent, ["id-1", "id-2"]);
    assert!(unknown.is_empty());
    assert_eq!(unsent, ["id-3", "id-4", "id-5"]);
    assert_eq!(
        source.to_string(),
        "the queue celery is full: 3 messages may wait there"
    );
    let unique = task(7).unique("key", Until::Done, Duration::from_secs(60));
    let err = fresh.send(unique).await.unwrap_err();
    assert!(!err.may_have_been_sent(), "{err}");
    eventually(SOON, "the other one knows of it, too", async || {
        client.send(task(8)).await.is_err()
    })
    .await;
    let _: () = connection.del("celery").await.unwrap();
    fresh.send(task(9)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_a_message_is_refused_before_anything_is_sent() {
    let redis = Redis::start().await;
    let client = client(&redis).await;
    let mut deep = serde_json::json!([]);
    for _ in 0..70 {
        deep = serde_json::json!([deep]);
    }
    let cases = [
        (Task::new("t").args("one"), "no array"),
        (Task::new("t").kwargs(&[1]), "no object"),
        (Task::new("t").args(&deep), "64 levels"),
        (Task::new(""), "the name is empty"),
        (Task::new("t").id(""), "the id is empty"),
        (Task::new("t").serializer("pickle"), "serializer \"pickle\""),
        (Task::new("t").compression("rar"), "compression \"rar\""),
        (Task::new("t").time_limit(Duration::ZERO), "time limit"),
        (Task::new("t").serializer("auth"), "key"),
    ];
    for (bad, words) in cases {
        let err = client.send(bad.clone()).await.unwrap_err();
        assert!(
            err.to_string().contains(words) && !err.may_have_been_sent(),
            "{words}: {err}"
        );
        let err = client.send_all([Task::new("good"), bad.clone()]).await.unwrap_err();
        assert!(
            err.to_string().contains(words) && !err.may_have_been_sent(),
            "{words}: {err}"
        );
    }
    let err = client
        .apply(chain([Task::new("a"), Task::new("b").args("\"one\" \\")]))
        .await
        .unwrap_err();
    assert!(err.to_string().contains("no array"), "{err}");
    let err = client.apply(chain(Vec::<Task>::new())).await.unwrap_err();
    assert!(matches!(err, SendError::Workflow(_)), "{err}");
    assert_eq!(waiting(&redis, "celery").await, 0);
}
