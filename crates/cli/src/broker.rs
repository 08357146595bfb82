//! The way from what a person says to a broker: an address, or a TaskQueue whose Secret holds one.

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use umbel_api::TaskQueue;
use umbel_broker::{Broker, Config};

use crate::args::Global;
use crate::home::{Home, said};
use crate::{tunnel, usage};

/// Celery's default queue, where an address is given and no queue.
const DEFAULT_QUEUE: &str = "celery";
/// Marks the Secret of the Redis that comes with a release.
const BUNDLED: &str = "app.kubernetes.io/part-of=umbel,app.kubernetes.io/component=redis";

/// A broker and a queue on it.
pub(crate) struct Way {
    pub(crate) broker: Broker,
    pub(crate) queue: String,
}

/// The broker and the name of a queue.
pub(crate) async fn of_queue(global: &Global, queue: Option<&str>) -> anyhow::Result<Way> {
    if let Some(url) = &global.redis_url {
        let broker = connect(url, &global.key_prefix).await?;
        return Ok(Way {
            broker,
            queue: queue.unwrap_or(DEFAULT_QUEUE).to_owned(),
        });
    }
    let home = Home::open(global).await?;
    let queue = one_queue(&home, queue).await?;
    Ok(Way {
        broker: of_object(&home, &queue).await?,
        queue: queue.queue_name(),
    })
}

/// Where results are: the given database, else the broker of a queue.
pub(crate) async fn of_results(global: &Global, queue: Option<&str>) -> anyhow::Result<Broker> {
    match &global.result_url {
        Some(url) => connect(url, &global.key_prefix).await,
        None => Ok(of_queue(global, queue).await?.broker),
    }
}

/// The broker of a TaskQueue.
pub(crate) async fn of_object(home: &Home, queue: &TaskQueue) -> anyhow::Result<Broker> {
    let namespace = queue.namespace().unwrap_or_else(|| home.namespace.clone());
    let secrets = Api::<Secret>::namespaced(home.client.clone(), &namespace);
    let (secret, key) = match queue.url_secret() {
        Some(reference) => {
            let secret = secrets
                .get(&reference.name)
                .await
                .map_err(|err| said(err, format!("read Secret {namespace}/{}", reference.name)))?;
            (secret, reference.key.as_str())
        }
        None => (bundled(&secrets, &namespace).await?, "url"),
    };
    let url = secret
        .data
        .as_ref()
        .and_then(|data| data.get(key))
        .with_context(|| format!("Secret {namespace}/{} has no key {key}", secret.name_any()))?;
    // The address holds a password, so no message repeats it.
    let url = std::str::from_utf8(&url.0)
        .ok()
        .map(str::trim)
        .context("the Secret's address is no text")?;
    connect(&tunnel::reachable(&home.client, url).await?, queue.key_prefix()).await
}

async fn bundled(secrets: &Api<Secret>, namespace: &str) -> anyhow::Result<Secret> {
    let found = secrets
        .list(&ListParams::default().labels(BUNDLED))
        .await
        .map_err(|err| {
            said(
                err,
                format!("look for the bundled Redis' Secret in namespace {namespace}"),
            )
        })?;
    match <[Secret; 1]>::try_from(found.items) {
        Ok([secret]) => Ok(secret),
        Err(others) => bail!(
            "{} Secrets of a bundled Redis in namespace {namespace}; say --redis-url",
            others.len()
        ),
    }
}

/// The TaskQueue of that name, or the only one there is.
async fn one_queue(home: &Home, name: Option<&str>) -> anyhow::Result<TaskQueue> {
    let Home { client, namespace } = home;
    let api = Api::<TaskQueue>::namespaced(client.clone(), namespace);
    if let Some(name) = name {
        return api
            .get(name)
            .await
            .map_err(|err| said(err, format!("read TaskQueue {namespace}/{name}")));
    }
    let queues = api
        .list(&ListParams::default())
        .await
        .map_err(|err| said(err, format!("list TaskQueues in {namespace}")))?;
    let names: Vec<String> = queues.items.iter().map(kube::ResourceExt::name_any).collect();
    match <[TaskQueue; 1]>::try_from(queues.items) {
        Ok([queue]) => Ok(queue),
        Err(none) if none.is_empty() => usage(format!("namespace {namespace} has no TaskQueue; say -n or --redis-url")),
        Err(_) => usage(format!(
            "namespace {namespace} has several TaskQueues; say --queue: {}",
            names.join(", ")
        )),
    }
}

pub(crate) async fn connect(url: &str, key_prefix: &str) -> anyhow::Result<Broker> {
    let config = Config {
        key_prefix: key_prefix.to_owned(),
        ..Config::new(url)
    };
    Ok(Broker::connect(&config).await?)
}
