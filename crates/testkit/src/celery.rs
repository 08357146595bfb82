//! Real Celery beside ours: a client that sends and reads results.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::peer::{Peer, peers};
use crate::wait::patient;
use crate::{CeleryVersion, Process, within};

pub use crate::peer::Raised;

/// Python and Celery take about a second to start, more on a machine that compiles.
pub(crate) const START: Duration = Duration::from_mins(1);

/// A Celery client: one Python process that sends tasks and reads their results with `AsyncResult`.
pub struct Celery {
    peer: Peer,
}

/// Where an application sends to and reads from, and how it is set up.
#[derive(Debug, Clone)]
pub struct App {
    /// The broker's address.
    pub broker: String,
    /// The result backend's.
    pub results: String,
    /// Further settings, by Celery's own names.
    pub settings: Value,
}

impl App {
    /// One that keeps results beside the messages.
    pub fn at(broker: &str) -> App {
        App {
            broker: broker.to_owned(),
            results: broker.to_owned(),
            settings: json!({}),
        }
    }
}

/// A workflow that a client has sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Sent {
    /// By what the client knows it.
    handle: u64,
    /// Its id: of its last task, or of the group.
    pub id: String,
}

impl Celery {
    /// Starts a client of a broker that keeps results in the same database.
    pub async fn client(broker: &str) -> Celery {
        Celery::client_with(broker, broker, &json!({})).await
    }

    /// Starts a client with a result backend and further settings, by Celery's own names.
    pub async fn client_with(broker: &str, results: &str, settings: &Value) -> Celery {
        let app = App {
            broker: broker.to_owned(),
            results: results.to_owned(),
            settings: settings.clone(),
        };
        Celery::client_of(CeleryVersion::V5_7, &app).await
    }

    /// Starts a client of some version.
    ///
    /// # Panics
    /// When Python or that Celery is missing.
    pub async fn client_of(version: CeleryVersion, app: &App) -> Celery {
        let mut command = tokio::process::Command::new(version.python());
        command.arg("-u").arg(peers().join("client.py"));
        command.env("UMBEL_PEER_BROKER", &app.broker);
        command.env("UMBEL_PEER_RESULTS", &app.results);
        command.env("UMBEL_PEER_SETTINGS", app.settings.to_string());
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let mut peer = Peer::start(command);
        peer.ask(START, &json!({"op": "ready"}))
            .await
            .expect("a client that is ready says so");
        Celery { peer }
    }

    async fn ask(&mut self, deadline: Duration, request: &Value) -> Result<Value, Raised> {
        self.peer.ask(deadline, request).await
    }

    /// Sends a workflow, written as for [`Celery::canvas`], without waiting for it, from another application than the
    /// client's own where `app` says so.
    ///
    /// # Panics
    /// When Celery refuses it.
    pub async fn apply(&mut self, workflow: &str, app: Option<&App>) -> Sent {
        let app = app.map(|app| json!({"broker": app.broker, "results": app.results, "settings": app.settings}));
        let request = json!({"op": "apply", "workflow": workflow, "app": app});
        let sent = self.ask(Duration::from_mins(1), &request).await;
        let sent = sent.unwrap_or_else(|raised| panic!("{workflow}: {raised:?}"));
        serde_json::from_value(sent).expect("a handle and an id")
    }

    /// The result of a workflow as JSON text: sorted keys, no blanks, and what JSON has no form for as Python's `repr`.
    ///
    /// # Errors
    /// What `get` raised.
    ///
    /// # Panics
    /// When the client is gone.
    pub async fn result(&mut self, sent: &Sent, timeout: Duration) -> Result<String, Raised> {
        let request =
            json!({"op": "result", "handle": sent.handle, "id": sent.id, "timeout": patient(timeout).as_secs_f64()});
        let text = self.ask(timeout + Duration::from_secs(30), &request).await?;
        Ok(serde_json::from_value(text).expect("it is text"))
    }

    /// `app.send_task(task, args, **options)`; returns the id. `kwargs` is one of the options.
    ///
    /// # Panics
    /// When Celery refuses it.
    pub async fn send(&mut self, task: &str, args: Value, options: Value) -> String {
        let mut ids = self.send_all(task, vec![args], options).await;
        ids.remove(0)
    }

    /// One `send_task` for each element of `args`, over one connection; returns the ids.
    ///
    /// # Panics
    /// When Celery refuses one.
    pub async fn send_all(&mut self, task: &str, args: Vec<Value>, options: Value) -> Vec<String> {
        let request = json!({"op": "send", "task": task, "calls": args, "options": options});
        let ids = self
            .ask(Duration::from_mins(2), &request)
            .await
            .unwrap_or_else(|raised| panic!("{raised:?}"));
        serde_json::from_value(ids).expect("ids are text")
    }

    /// `AsyncResult(id).get(timeout)`.
    ///
    /// # Errors
    /// What it raised: the task's own exception, or `celery.exceptions.TimeoutError`.
    pub async fn get(&mut self, id: &str, timeout: Duration) -> Result<Value, Raised> {
        let request = json!({"op": "get", "id": id, "timeout": patient(timeout).as_secs_f64()});
        self.ask(timeout + Duration::from_secs(30), &request).await
    }

    /// Sends a workflow, e.g. `chord([e(1), s(0.1)], e())` where `e` is `umbel.echo` and `s` is `umbel.sleep`, and waits for
    /// the result of its last task.
    ///
    /// # Errors
    /// What `get` raised.
    pub async fn canvas(&mut self, workflow: &str, timeout: Duration) -> Result<Value, Raised> {
        let request = json!({"op": "canvas", "workflow": workflow, "timeout": patient(timeout).as_secs_f64()});
        self.ask(timeout + Duration::from_secs(30), &request).await
    }

    /// Runs lines of Python with `app`, `chain`, `chord` and `group`; the reply is what they leave in `answer`.
    ///
    /// # Errors
    /// What they raised.
    ///
    /// # Panics
    /// When the client is gone.
    pub async fn script(&mut self, lines: &str, timeout: Duration) -> Result<Value, Raised> {
        self.ask(patient(timeout), &json!({"op": "script", "lines": lines}))
            .await
    }

    /// `AsyncResult(id).state` and `.info` (as text).
    ///
    /// # Panics
    /// When Celery cannot read them.
    pub async fn state(&mut self, id: &str) -> (String, String) {
        let state = self
            .ask(Duration::from_secs(30), &json!({"op": "state", "id": id}))
            .await;
        serde_json::from_value(state.unwrap_or_else(|raised| panic!("{raised:?}"))).expect("state and info are text")
    }

    /// Waits until all of these have a result; returns how many are in each state.
    ///
    /// # Panics
    /// When one has none within `timeout`.
    pub async fn wait_all(&mut self, ids: &[String], timeout: Duration) -> std::collections::BTreeMap<String, usize> {
        let request = json!({"op": "wait_all", "ids": ids, "timeout": patient(timeout).as_secs_f64()});
        let states = self.ask(timeout + Duration::from_secs(30), &request).await;
        serde_json::from_value(states.unwrap_or_else(|raised| panic!("{raised:?}"))).expect("states are text")
    }

    /// `app.control.inspect(destination).<method>(*args)`: answers by node; null if nobody answered.
    ///
    /// # Panics
    /// When Celery raises.
    pub async fn inspect(&mut self, destination: &[&str], method: &str, args: Value) -> Value {
        let request = json!({"kind": "inspect", "method": method, "args": args, "kwargs": {}});
        self.remote(destination, request).await
    }

    /// `app.control.broadcast(method, kwargs, destination, reply=True)`: answers by node.
    ///
    /// # Panics
    /// When Celery raises.
    pub async fn control(&mut self, destination: &[&str], method: &str, kwargs: Value) -> Value {
        let request = json!({"kind": "control", "method": method, "args": [], "kwargs": kwargs});
        self.remote(destination, request).await
    }

    async fn remote(&mut self, destination: &[&str], mut request: Value) -> Value {
        request["op"] = json!("remote");
        request["destination"] = if destination.is_empty() {
            Value::Null
        } else {
            json!(destination)
        };
        request["timeout"] = json!(patient(Duration::from_secs(2)).as_secs_f64());
        let answer = self.ask(Duration::from_mins(1), &request).await;
        answer.unwrap_or_else(|raised| panic!("{raised:?}"))
    }

    /// Listens to events with Celery's own receiver from here on.
    ///
    /// # Panics
    /// When Celery raises.
    pub async fn watch(&mut self) {
        let started = self.ask(Duration::from_mins(1), &json!({"op": "watch"})).await;
        started.unwrap_or_else(|raised| panic!("{raised:?}"));
    }

    /// `events` so far, `tasks` (id to name, state and worker) and `workers` (name to alive) of Celery's event state.
    ///
    /// # Panics
    /// When nothing is watched.
    pub async fn seen(&mut self) -> Value {
        let seen = self.ask(Duration::from_secs(30), &json!({"op": "seen"})).await;
        seen.unwrap_or_else(|raised| panic!("{raised:?}"))
    }
}

/// Starts the command line to go on beside the test, e.g. `celery events --dump` or `celery flower`, with the
/// application whose tasks are those of the Celery workers here.
///
/// # Panics
/// When it cannot be started.
pub fn celery_process(broker: &str, args: &[&str], environment: &[(&str, &str)]) -> Process {
    let app = ["-u", "-m", "celery", "-A", "tasks", "--no-color"];
    let folder = peers();
    let mut env = vec![
        ("UMBEL_PEER_BROKER", broker),
        ("UMBEL_PEER_RESULTS", broker),
        ("PYTHONPATH", folder.to_str().expect("the checkout's path is text")),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ];
    env.extend(environment);
    Process::start(&CeleryVersion::V5_7.python(), app.iter().chain(args), &env)
}

/// Runs the command line, e.g. `celery inspect ping`; whether it succeeded, and what it printed.
///
/// # Panics
/// When it cannot be started.
pub async fn celery_command(broker: &str, args: &[&str]) -> (bool, String) {
    let output = tokio::process::Command::new(CeleryVersion::V5_7.python())
        .args(["-m", "celery", "-A", "app", "--no-color"])
        .args(args)
        .env("UMBEL_PEER_BROKER", broker)
        .env("UMBEL_PEER_RESULTS", broker)
        .env("PYTHONPATH", peers())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within(START, "the command line ends", output)
        .await
        .expect("Python can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}
