//! Sentinels that look after a primary.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::leash::Leash;
use crate::{TempDir, eventually, free_port};

/// Name under which they know the primary.
const MASTER: &str = "umbel-test";

/// Some Sentinels; they end with the test.
#[derive(Debug)]
pub struct Sentinels {
    running: Vec<(u16, Child, Leash)>,
    _folders: Vec<TempDir>,
}

impl Sentinels {
    /// Starts `count` of them for the primary on this port of loopback; most must agree. They take it for dead after half
    /// a second. `more` are settings of theirs, one a line.
    ///
    /// # Panics
    /// When they do not come to know each other.
    pub async fn watch(primary: u16, count: usize, more: &str) -> Sentinels {
        let (mut running, mut folders) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let folder = TempDir::new("sentinel");
            let port = free_port();
            let quorum = count / 2 + 1;
            let settings = format!(
                "bind 127.0.0.1\nport {port}\nsentinel monitor {MASTER} 127.0.0.1 {primary} {quorum}\n\
                 sentinel down-after-milliseconds {MASTER} 500\nsentinel failover-timeout {MASTER} 3000\n{more}\n"
            );
            let file = folder.path().join("sentinel.conf");
            std::fs::write(&file, settings).expect("the folder is ours");
            let log = File::create(folder.path().join("sentinel.log")).expect("the folder is ours");
            let child = Command::new("redis-server")
                .arg(&file)
                .arg("--sentinel")
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("the log can be shared"))
                .stderr(log)
                .spawn()
                .expect("the server is installed: `make setup`");
            let leash = Leash::on(child.id(), Some(folder.path()));
            running.push((port, child, leash));
            folders.push(folder);
        }
        let sentinels = Sentinels {
            running,
            _folders: folders,
        };
        eventually(
            Duration::from_secs(20),
            "sentinels know each other and the replicas",
            async || {
                for port in sentinels.ports() {
                    let Some(known) = asked(port).await else { return false };
                    let number = |name: &str| known.get(name).and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
                    if number("num-other-sentinels") + 1 < count || number("num-slaves") == 0 {
                        return false;
                    }
                }
                true
            },
        )
        .await;
        sentinels
    }

    /// Their ports.
    pub fn ports(&self) -> Vec<u16> {
        self.running.iter().map(|(port, ..)| *port).collect()
    }

    /// The name of the primary.
    pub fn master(&self) -> &'static str {
        MASTER
    }

    /// The address as kombu writes it, with the primary's name.
    pub fn url(&self) -> String {
        let places: Vec<String> = self
            .ports()
            .iter()
            .map(|port| format!("sentinel://127.0.0.1:{port}"))
            .collect();
        format!("{}/0?master_name={MASTER}", places.join(";"))
    }

    /// Port of the primary as most see it; `None` when they disagree.
    pub async fn primary(&self) -> Option<u16> {
        let mut ports = Vec::new();
        for port in self.ports() {
            if let Some(known) = asked(port).await {
                ports.extend(known.get("port").and_then(|port| port.parse::<u16>().ok()));
            }
        }
        let candidate = *ports.first()?;
        (ports.iter().filter(|&&port| port == candidate).count() * 2 > self.running.len()).then_some(candidate)
    }

    /// Asks one of them to make a replica the primary now.
    ///
    /// # Panics
    /// When it refuses.
    pub async fn fail_over(&self) {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.running[0].0)).expect("an address");
        let mut connection = client.get_multiplexed_async_connection().await.expect("it runs");
        let mut command = redis::cmd("SENTINEL");
        command.arg("FAILOVER").arg(MASTER);
        command.query_async::<()>(&mut connection).await.expect("it fails over");
    }
}

async fn asked(port: u16) -> Option<std::collections::HashMap<String, String>> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).ok()?;
    let mut connection = client.get_multiplexed_async_connection().await.ok()?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("MASTER").arg(MASTER);
    command.query_async(&mut connection).await.ok()
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (_, child, _) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
