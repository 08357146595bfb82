//! Programs of other languages that are driven by lines of JSON: a request on standard input, its answer on standard
//! output.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::leash::Leash;
use crate::{repository, within};

/// Where the programs are.
pub(crate) fn peers() -> PathBuf {
    repository().join("e2e/peers")
}

/// An error as the peer's own client raised it.
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

/// A running one; killed when dropped.
pub(crate) struct Peer {
    requests: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
    _leash: Leash,
    _child: Child,
}

impl Peer {
    pub(crate) fn start(mut command: Command) -> Peer {
        let spawned = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = spawned.unwrap_or_else(|err| panic!("start {command:?}: {err}"));
        let leash = Leash::on(child.id().expect("it was just started"), None);
        let requests = child.stdin.take().expect("it is a pipe");
        let replies = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        Peer {
            requests,
            replies,
            _leash: leash,
            _child: child,
        }
    }

    pub(crate) async fn ask(&mut self, deadline: Duration, request: &Value) -> Result<Value, Raised> {
        let what = format!("a peer answers {request:.200}");
        within(deadline, &what, async {
            self.requests
                .write_all(format!("{request}\n").as_bytes())
                .await
                .expect("the peer runs");
            let line = self
                .replies
                .next_line()
                .await
                .expect("the peer runs")
                .expect("the peer runs");
            match serde_json::from_str(&line) {
                Ok(Reply::Ok(value)) => Ok(value),
                Ok(Reply::Raised(raised)) => Err(raised),
                Err(err) => panic!("the peer wrote {line:?}: {err}"),
            }
        })
        .await
    }
}
