//! What measurements of many target clusters need beside the worker.
//!
//! ```text
//! targets relay COUNT HOST:PORT ...   COUNT ports that lead to these servers by turns, printed as one line of JSON; then
//!                                     each line `holes N` of standard input makes the first N of them black holes
//! targets sync FOLDER CONCURRENCY ROUNDS   what umbel.cluster.sync asks, by bare kube clients: one for each kubeconfig of
//!                                     the folder; prints the seconds of each round
//! targets apply KUBECONFIG FILE ROUNDS     one server-side dry run for each object of a JSON list; prints the seconds of each
//!                                     round
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, Request};
use kube::{Client, Config, discovery};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Done {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match *args.as_slice() {
        ["relay", count, ref servers @ ..] if !servers.is_empty() => relay(count.parse()?, servers).await,
        ["sync", folder, concurrency, rounds] => sync(Path::new(folder), concurrency.parse()?, rounds.parse()?).await,
        ["apply", kubeconfig, file, rounds] => apply(kubeconfig.into(), Path::new(file), rounds.parse()?).await,
        _ => Err("relay COUNT HOST:PORT ..., sync FOLDER CONCURRENCY ROUNDS, or apply KUBECONFIG FILE ROUNDS".into()),
    }
}

async fn relay(count: usize, servers: &[&str]) -> Done {
    let holes = Arc::new(AtomicUsize::new(0));
    let mut ports = Vec::with_capacity(count);
    for (index, server) in servers.iter().cycle().take(count).enumerate() {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        ports.push(listener.local_addr()?.port());
        tokio::spawn(listen(listener, index, (*server).to_owned(), holes.clone()));
    }
    println!("{}", json!(ports));
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines() {
            let line = line?;
            let count = line.strip_prefix("holes ").ok_or("no command")?;
            holes.store(count.trim().parse()?, Ordering::Release);
            println!("{count}");
        }
        Ok(())
    })
    .await?
}

async fn listen(listener: TcpListener, index: usize, server: String, holes: Arc<AtomicUsize>) {
    while let Ok((near, _)) = listener.accept().await {
        let (server, holes) = (server.clone(), holes.clone());
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(&server).await else {
                return;
            };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            let up = carry(near_read, far_write, index, &holes);
            let down = carry(far_read, near_write, index, &holes);
            tokio::join!(up, down);
        });
    }
}

/// Carries bytes on, or drops them while the port is a hole.
async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    index: usize,
    holes: &AtomicUsize,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if index >= holes.load(Ordering::Acquire) && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn client(path: PathBuf) -> Done<Client> {
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn sync(folder: &Path, concurrency: usize, rounds: usize) -> Done {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let clients: Vec<Client> = stream::iter(files).then(client).try_collect().await?;
    for round in 0..rounds {
        let begin = Instant::now();
        stream::iter(&clients)
            .map(|client| look(client, round == 0))
            .buffer_unordered(concurrency)
            .try_collect::<Vec<()>>()
            .await?;
        println!("{}", json!({ "seconds": begin.elapsed().as_secs_f64() }));
    }
    Ok(())
}

/// What the job asks of one cluster, the answers decoded as little as can be.
async fn look(client: &Client, is_first: bool) -> Done {
    if is_first {
        get(client, "/api/v1/namespaces/kube-system").await?;
    }
    for path in ["/version", "/version", "/readyz"] {
        get(client, path).await?;
    }
    for path in ["/api/v1/nodes", "/api/v1/pods"] {
        let request = Request::new(path).list(&ListParams::default().limit(500))?;
        let list: Value = serde_json::from_str(&client.request_text(request).await?)?;
        list["items"].as_array().ok_or("a list")?;
    }
    // Served by few.
    let _ = get(client, "/apis/metrics.k8s.io/v1beta1/nodes").await;
    Ok(())
}

async fn get(client: &Client, path: &str) -> Done {
    let request = http::Request::get(path).body(Vec::new())?;
    tokio::time::timeout(Duration::from_secs(15), client.request_text(request)).await??;
    Ok(())
}

async fn apply(kubeconfig: PathBuf, file: &Path, rounds: usize) -> Done {
    let client = client(kubeconfig).await?;
    let objects: Vec<DynamicObject> = serde_json::from_slice(&std::fs::read(file)?)?;
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::apply("umbel-apply").force()
    };
    for _ in 0..rounds {
        let begin = Instant::now();
        let mut kinds: Vec<(String, ApiResource)> = Vec::new();
        for object in &objects {
            let types = object.types.clone().ok_or("a kind")?;
            let known = kinds.iter().find(|(kind, _)| *kind == types.kind).cloned();
            let resource = if let Some((_, resource)) = known {
                resource
            } else {
                let kind = GroupVersionKind::try_from(&types)?;
                let (resource, _) = discovery::pinned_kind(&client, &kind).await?;
                kinds.push((types.kind.clone(), resource.clone()));
                resource
            };
            let namespace = object.metadata.namespace.as_deref().ok_or("a namespace")?;
            let name = object.metadata.name.as_deref().ok_or("a name")?;
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
            api.patch(name, &params, &Patch::Apply(object)).await?;
        }
        println!("{}", json!({ "seconds": begin.elapsed().as_secs_f64() }));
    }
    Ok(())
}
