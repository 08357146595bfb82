//! A real control plane: etcd, API server and controllers on loopback ports, without nodes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;

use crate::{TempDir, repository};

/// A private control plane; taken down when dropped, and when the test is killed.
pub struct ControlPlane {
    folder: PathBuf,
    _parent: TempDir,
}

/// An API server of its own, as a target of jobs.
#[derive(Debug, Clone)]
pub struct Target {
    /// Administrator's access.
    pub kubeconfig: PathBuf,
}

#[derive(Deserialize)]
struct State {
    pids: BTreeMap<String, u32>,
    server: String,
}

fn tool(args: &[&str], folder: &Path) {
    let program = repository().join("e2e/cluster/cluster");
    let output = Command::new(&program).args(args).arg("--dir").arg(folder).output();
    let output = output.unwrap_or_else(|err| panic!("{}: {err}", program.display()));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cluster {}: {errors}\n(`make setup` installs what it needs)",
        args.join(" ")
    );
}

async fn tool_apart(args: Vec<String>, folder: PathBuf) {
    let run = tokio::task::spawn_blocking(move || tool(&args.iter().map(String::as_str).collect::<Vec<_>>(), &folder));
    if let Err(failure) = run.await {
        std::panic::resume_unwind(failure.into_panic());
    }
}

impl ControlPlane {
    /// Starts one; some 4 s.
    pub async fn start() -> ControlPlane {
        ControlPlane::start_with(&[]).await
    }

    /// Starts one with further arguments for `cluster up`, e.g. `--cm-arg=--concurrent-deployment-syncs=1`.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_with(arguments: &[&str]) -> ControlPlane {
        let parent = TempDir::new("cluster");
        let folder = parent.path().join("c");
        let pid = std::process::id().to_string();
        let mut args: Vec<String> = ["up", "--disposable-parent", &pid]
            .iter()
            .map(|&arg| arg.to_owned())
            .collect();
        args.extend(arguments.iter().map(|&arg| arg.to_owned()));
        tool_apart(args, folder.clone()).await;
        ControlPlane {
            folder,
            _parent: parent,
        }
    }

    /// Administrator's access.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// A client with administrator's rights.
    pub async fn client(&self) -> kube::Client {
        client(&self.kubeconfig()).await
    }

    fn state(&self) -> State {
        let file = self.folder.join("state.json");
        let text = std::fs::read_to_string(&file).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("{}: {err}", file.display()))
    }

    /// Address of the API server.
    pub fn server(&self) -> String {
        self.state().server
    }

    /// Process id of a component: `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-apiserver-<target>`.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn pid(&self, component: &str) -> u32 {
        *self
            .state()
            .pids
            .get(component)
            .unwrap_or_else(|| panic!("no component {component}"))
    }

    /// Starts one more API server, with its own authority and objects; some 2.5 s.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn target(&self, name: &str) -> Target {
        let args = ["target", "--name", name].iter().map(|&arg| arg.to_owned()).collect();
        tool_apart(args, self.folder.clone()).await;
        Target {
            kubeconfig: self.folder.join("targets").join(name).join("kubeconfig"),
        }
    }
}

impl Target {
    /// A client with administrator's rights.
    pub async fn client(&self) -> kube::Client {
        client(&self.kubeconfig).await
    }
}

async fn client(kubeconfig: &Path) -> kube::Client {
    let file = Kubeconfig::read_from(kubeconfig).expect("the tool writes a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .expect("it is complete");
    kube::Client::try_from(config).expect("a client can be made of it")
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let program = repository().join("e2e/cluster/cluster");
        let _ = Command::new(program)
            .arg("down")
            .arg("--dir")
            .arg(&self.folder)
            .output();
    }
}
