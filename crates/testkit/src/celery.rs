//! Real Celery beside ours: a client that sends and reads results, and workers.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::leash::Leash;
use crate::wait::patient;
use crate::{Process, repository, within};

/// The Python of the environment that has Celery.
///
/// # Panics
/// When it is missing; the message says how to make it.
pub(crate) fn python() -> PathBuf {
    let folder = std::env::var_os("UMBEL_VENV").map_or_else(folder_of_setup, PathBuf::from);
    let python = folder.join("bin/python");
    assert!(
        python.exists(),
        "no Python environment at {}: run `hack/setup.sh venv`",
        folder.display()
    );
    python
}

/// Where `hack/setup.sh venv` puts it.
fn folder_of_setup() -> PathBuf {
    let script = repository().join("hack/env.sh");
    let output = std::process::Command::new(&script)
        .output()
        .unwrap_or_else(|err| panic!("{}: {err}", script.display()));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let quoted = lines.lines().find_map(|line| line.strip_prefix("export UMBEL_VENV="));
    PathBuf::from(
        quoted
            .unwrap_or_else(|| panic!("{} names no UMBEL_VENV", script.display()))
            .trim_matches('\''),
    )
}

fn peers() -> PathBuf {
    repository().join("e2e/peers")
}

/// Python and Celery take about a second to start, more on a machine that compiles.
const START: Duration = Duration::from_mins(1);

/// A Celery client: one Python process that sends tasks and reads their results with `AsyncResult`.
pub struct Celery {
    requests: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
    _leash: Leash,
    _child: Child,
}

/// An exception as `AsyncResult.get` raised it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Raised {
    /// Class name.
    #[serde(rename = "type")]
    pub exc_type: String,
    /// Module of the class.
    pub module: String,
    /// `str(exception)`.
    pub message: String,
    /// The remote traceback, where there is one.
    pub traceback: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Ok(Value),
    Raised(Raised),
}

impl Celery {
    /// Starts a client of a broker that keeps results in the same database.
    pub async fn client(broker: &str) -> Celery {
        Celery::client_with(broker, broker, &json!({})).await
    }

    /// Starts a client with a result backend and further settings, by Celery's own names.
    ///
    /// # Panics
    /// When Python or Celery is missing.
    pub async fn client_with(broker: &str, results: &str, settings: &Value) -> Celery {
        let mut child = tokio::process::Command::new(python())
            .arg("-u")
            .arg(peers().join("client.py"))
            .env("UMBEL_PEER_BROKER", broker)
            .env("UMBEL_PEER_RESULTS", results)
            .env("UMBEL_PEER_SETTINGS", settings.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python can be started");
        let leash = Leash::on(child.id().expect("it was just started"), None);
        let requests = child.stdin.take().expect("it is a pipe");
        let replies = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let mut client = Celery {
            requests,
            replies,
            _leash: leash,
            _child: child,
        };
        client
            .ask(START, &json!({"op": "ready"}))
            .await
            .expect("a client that is ready says so");
        client
    }

    async fn ask(&mut self, deadline: Duration, request: &Value) -> Result<Value, Raised> {
        let what = format!("the Celery client answers {request:.200}");
        within(deadline, &what, async {
            self.requests
                .write_all(format!("{request}\n").as_bytes())
                .await
                .expect("the client runs");
            let line = self
                .replies
                .next_line()
                .await
                .expect("the client runs")
                .expect("the client runs");
            match serde_json::from_str(&line) {
                Ok(Reply::Ok(value)) => Ok(value),
                Ok(Reply::Raised(raised)) => Err(raised),
                Err(err) => panic!("the client wrote {line:?}: {err}"),
            }
        })
        .await
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

/// Runs the command line, e.g. `celery inspect ping`; whether it succeeded, and what it printed.
///
/// # Panics
/// When it cannot be started.
pub async fn celery_command(broker: &str, args: &[&str]) -> (bool, String) {
    let output = tokio::process::Command::new(python())
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

/// How a Celery worker is started.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Its queues, separated by commas.
    pub queues: &'a str,
    /// `solo` or `prefork`.
    pub pool: &'a str,
    /// Child processes of `prefork`.
    pub concurrency: usize,
    /// Further settings, by Celery's own names.
    pub settings: Value,
    /// More environment, e.g. where to write a history.
    pub environment: Vec<(&'a str, &'a str)>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            queues: "celery",
            pool: "solo",
            concurrency: 1,
            settings: json!({}),
            environment: Vec::new(),
        }
    }
}

/// A real Celery worker with the tasks of `e2e/peers/tasks.py`.
pub struct CeleryWorker {
    /// The process; SIGTERM stops it in order.
    pub process: Process,
}

impl CeleryWorker {
    /// Starts one and waits until it takes work.
    ///
    /// # Panics
    /// When it does not get there.
    pub async fn start(broker: &str, options: &Options<'_>) -> CeleryWorker {
        let Options {
            queues,
            pool,
            concurrency,
            settings,
            environment,
        } = options;
        let (settings, concurrency, tasks) = (settings.to_string(), concurrency.to_string(), peers());
        let node = format!("celery-{}@%h", crate::free_port()); // Celery wants names that differ.
        let args = [
            "-m",
            "celery",
            "-A",
            "tasks",
            "worker",
            "-Q",
            queues,
            "-P",
            pool,
            "-c",
            &concurrency,
            "-n",
            &node,
        ];
        let quiet = [
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "-l",
            "INFO",
        ];
        let mut env = vec![
            ("UMBEL_PEER_BROKER", broker),
            ("UMBEL_PEER_RESULTS", broker),
            ("UMBEL_PEER_SETTINGS", &settings),
            ("PYTHONPATH", tasks.to_str().expect("the checkout's path is text")),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ];
        env.extend(environment.iter().copied());
        let mut process = Process::start(Path::new(&python()), args.iter().chain(&quiet), &env);
        process.says(START, " ready.").await;
        CeleryWorker { process }
    }
}
