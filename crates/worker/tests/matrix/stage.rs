//! One server, a worker of each kind, a client of each producer.

use serde_json::json;
use umbel_testkit::{App, Celery, CeleryNode, CeleryOptions, CeleryWorker, History, Process, Redis, ServerKind};

use crate::cell::{Producer, Runner};
use crate::ours::Ours;
use crate::support::{admitted, test_worker};

/// A client.
pub(crate) enum Client {
    Umbel(Ours),
    Celery(Celery),
    Node(CeleryNode),
}

/// All that runs; ends with the test.
pub(crate) struct Stage {
    pub(crate) redis: Redis,
    pub(crate) clients: Vec<(Producer, Client)>,
    _history: History,
    _ours: Process,
    _theirs: Option<CeleryWorker>,
}

impl Stage {
    /// Ours serves database 0, Celery's worker database 1.
    pub(crate) async fn start(kind: ServerKind, producers: &[Producer], runners: &[Runner]) -> Stage {
        let redis = Redis::start_kind(kind, &[]).await;
        let history = History::new();
        let ours = test_worker(
            &redis.url(),
            &history,
            &["--concurrency", "4", "--accept", "json,msgpack,yaml"],
        );
        let there = redis.database(1);
        let options = CeleryOptions {
            settings: json!({"accept_content": ["json", "msgpack", "yaml"]}),
            ..CeleryOptions::default()
        };
        let theirs = async {
            if runners.contains(&Runner::Celery57) {
                Some(CeleryWorker::start(&there, &options).await)
            } else {
                None
            }
        };
        let app = App::at(&redis.url());
        let clients = async {
            let started = producers.iter().map(|&producer| client(producer, &app));
            futures::future::join_all(started).await
        };
        let (theirs, clients, ()) = tokio::join!(theirs, clients, admitted(&redis, 1));
        Stage {
            redis,
            clients: producers.iter().copied().zip(clients).collect(),
            _history: history,
            _ours: ours,
            _theirs: theirs,
        }
    }
}

/// The database that a worker serves.
pub(crate) fn database(redis: &Redis, runner: Runner) -> String {
    match runner {
        Runner::Umbel => redis.database(0),
        Runner::Celery57 => redis.database(1),
    }
}

/// A producer's client, whose own application is this one.
pub(crate) async fn client(producer: Producer, app: &App) -> Client {
    match producer {
        Producer::Umbel => Client::Umbel(Ours::default()),
        Producer::Celery(version) => Client::Celery(Celery::client_of(version, app).await),
        Producer::Node => Client::Node(CeleryNode::client().await),
    }
}
