//! Servers, a worker of each kind, a client of each producer.

use serde_json::{Value, json};
use umbel_client::Options;
use umbel_testkit::{App, Celery, CeleryNode, CeleryOptions, CeleryWorker, History, Process, Redis, ServerKind};

use crate::cell::{Producer, Runner};
use crate::ours::Ours;
use crate::support::{admitted, test_worker};

/// A client.
pub(crate) enum Client {
    Umbel(Box<Ours>),
    Celery(Celery),
    Node(CeleryNode),
}

/// How everybody on a stage is configured: the same in three languages.
pub(crate) struct Setup {
    pub(crate) kind: ServerKind,
    pub(crate) runners: Vec<Runner>,
    /// Our worker's flags.
    pub(crate) flags: Vec<String>,
    /// Settings of Celery's workers.
    pub(crate) worker: Value,
    /// Settings of all clients, by Celery's names.
    pub(crate) client: Value,
    /// What our client has beside these.
    pub(crate) options: Options,
    pub(crate) results: Results,
}

/// Where results go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Results {
    Beside,
    OtherDatabase,
    OtherServer,
}

impl Setup {
    pub(crate) fn plain(kind: ServerKind, runners: &[Runner]) -> Setup {
        Setup {
            kind,
            runners: runners.to_vec(),
            flags: vec!["--accept".into(), "json,msgpack,yaml".into()],
            worker: json!({"accept_content": ["json", "msgpack", "yaml"]}),
            client: json!({}),
            options: Options::default(),
            results: Results::Beside,
        }
    }
}

/// All that runs; ends with the test.
pub(crate) struct Stage {
    pub(crate) clients: Vec<(Producer, Client)>,
    /// What a client is told to reach each worker.
    apps: Vec<(Runner, App)>,
    /// The broker, and the server of results where that is another.
    _servers: (Redis, Redis),
    _history: History,
    _ours: Option<Process>,
    _theirs: Option<CeleryWorker>,
}

impl Stage {
    /// Ours serves database 0, Celery's worker database 1; other databases have their results there plus 4.
    pub(crate) async fn start(setup: &Setup) -> Stage {
        let (redis, other) = tokio::join!(Redis::start_kind(setup.kind, &[]), Redis::start_kind(setup.kind, &[]));
        let apps: Vec<(Runner, App)> = (setup.runners.iter())
            .map(|&runner| {
                let app = App {
                    broker: database(&redis, runner),
                    results: match (setup.results, runner) {
                        (Results::Beside, _) => database(&redis, runner),
                        (Results::OtherDatabase, Runner::Umbel) => redis.database(4),
                        (Results::OtherDatabase, Runner::Celery57) => redis.database(5),
                        (Results::OtherServer, _) => database(&other, runner),
                    },
                    settings: setup.client.clone(),
                };
                (runner, app)
            })
            .collect();
        let of = |runner| apps.iter().find(|(of, _)| *of == runner).map(|(_, app)| app);
        let history = History::new();
        let ours = of(Runner::Umbel).map(|app| {
            let mut flags = vec!["--concurrency", "4", "--result-url", &app.results];
            flags.extend(setup.flags.iter().map(String::as_str));
            test_worker(&app.broker, &history, &flags)
        });
        let theirs = async {
            let app = of(Runner::Celery57)?;
            let options = CeleryOptions {
                settings: setup.worker.clone(),
                results: Some(&app.results),
                ..CeleryOptions::default()
            };
            Some(CeleryWorker::start(&app.broker, &options).await)
        };
        let started = Producer::ALL.map(|producer| client(producer, &apps[0].1, &setup.options));
        let ready = async {
            if ours.is_some() && setup.client == json!({}) {
                admitted(&redis, 1).await;
            }
        };
        let (theirs, clients, ()) = tokio::join!(theirs, futures::future::join_all(started), ready);
        Stage {
            clients: Producer::ALL.into_iter().zip(clients).collect(),
            apps,
            _servers: (redis, other),
            _history: history,
            _ours: ours,
            _theirs: theirs,
        }
    }

    /// The clients, and how they reach each worker.
    #[allow(clippy::type_complexity)] // Two lists of pairs.
    pub(crate) fn parts(&mut self) -> (&mut [(Producer, Client)], &[(Runner, App)]) {
        (&mut self.clients, &self.apps)
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
pub(crate) async fn client(producer: Producer, app: &App, options: &Options) -> Client {
    match producer {
        Producer::Umbel => Client::Umbel(Box::new(Ours::with(options.clone()))),
        Producer::Celery(version) => Client::Celery(Celery::client_of(version, app).await),
        Producer::Node => Client::Node(CeleryNode::client().await),
    }
}
