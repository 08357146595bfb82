//! Celery for Node: `celery-node` as npm has it. It knows tasks by name, positional and keyword arguments and both
//! protocols; no workflows, times, priorities or serializers.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::celery::START;
use crate::peer::{Peer, Raised, peers};
use crate::setup::made;
use crate::wait::patient;
use crate::{App, Process};

/// A client: one Node process that sends tasks and reads their results.
pub struct CeleryNode {
    peer: Peer,
}

impl CeleryNode {
    /// Starts one.
    ///
    /// # Panics
    /// When Node or celery-node is missing.
    pub async fn client() -> CeleryNode {
        let mut command = Command::new("node");
        command.arg(peers().join("node/client.js")).env("NODE_PATH", modules());
        let mut peer = Peer::start(command);
        peer.ask(START, &json!({"op": "ready"}))
            .await
            .expect("a client that is ready says so");
        CeleryNode { peer }
    }

    /// Sends a task by protocol 1 or 2 to the queue `celery`; returns its id. Of `app.settings` the two
    /// `global_keyprefix` count.
    ///
    /// # Panics
    /// When the client cannot.
    pub async fn send(&mut self, app: &App, protocol: u8, task: &str, args: &Value, kwargs: &Value) -> String {
        let request = json!({
            "op": "send", "broker": app.broker, "results": app.results, "settings": app.settings,
            "protocol": protocol, "task": task, "args": args, "kwargs": kwargs,
        });
        let id = self.peer.ask(Duration::from_mins(1), &request).await;
        serde_json::from_value(id.unwrap_or_else(|raised| panic!("{raised:?}"))).expect("ids are text")
    }

    /// `AsyncResult.get(timeout)` of a task that was sent before, as JSON text with sorted keys and no blanks.
    ///
    /// # Errors
    /// What it raised: an error whose message is the task's state.
    ///
    /// # Panics
    /// When the client is gone.
    pub async fn get(&mut self, id: &str, timeout: Duration) -> Result<String, Raised> {
        let request = json!({"op": "get", "id": id, "timeout": patient(timeout).as_secs_f64()});
        let text = self.peer.ask(timeout + Duration::from_secs(30), &request).await?;
        Ok(serde_json::from_value(text).expect("it is text"))
    }
}

/// Starts a celery-node worker of the queue `celery` that knows `umbel.echo`, and waits until it takes work.
///
/// # Panics
/// When it does not get there.
pub async fn celery_node_worker(broker: &str, results: &str) -> Process {
    let script = peers().join("node/worker.js");
    let modules = modules();
    let env = [
        ("NODE_PATH", modules.as_str()),
        ("UMBEL_PEER_BROKER", broker),
        ("UMBEL_PEER_RESULTS", results),
    ];
    let mut process = Process::start(std::path::Path::new("node"), [script], &env);
    process.says(START, "registered task").await;
    process
}

fn modules() -> String {
    let folder = made("UMBEL_NODE", "peers").join("node_modules");
    folder.to_str().expect("the cache's path is text").to_owned()
}
