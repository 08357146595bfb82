//! The way from what a person says to a broker: an address, or a TaskQueue whose Secret holds one.

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use umbel_api::TaskQueue;
use umbel_api::refs::SecretKeyRef;
use umbel_broker::{Broker, Config, Pem, ResultStore, Tls};
use umbel_client::{Client, Options};

use crate::args::Global;
use crate::home::{Home, said};
use crate::tunnel::{self, Reached};
use crate::usage;

/// Celery's default queue, where an address is given and no queue.
const DEFAULT_QUEUE: &str = "celery";
/// Marks the Secret of the Redis that comes with a release.
const BUNDLED: &str = "app.kubernetes.io/part-of=umbel,app.kubernetes.io/component=redis";

/// A broker and a queue on it.
pub(crate) struct Way {
    pub(crate) broker: Broker,
    pub(crate) queue: String,
    /// Another place of results, where a TaskQueue names one.
    results: Option<Config>,
}

impl Way {
    /// A client for the queue.
    pub(crate) async fn client(self, global: &Global, options: Options) -> anyhow::Result<Client> {
        let Way { broker, queue, results } = self;
        let results = match (named_results(global)?, results) {
            (Some(named), _) => ResultStore::connect(&named).await?,
            (None, Some(results)) => ResultStore::connect(&results).await?,
            (None, None) => ResultStore::of(&broker),
        };
        Ok(Client::over(broker, results, Options { queue, ..options }))
    }
}

/// The broker and the name of a queue.
pub(crate) async fn of_queue(global: &Global, queue: Option<&str>) -> anyhow::Result<Way> {
    if global.server.is_given() {
        return Ok(Way {
            broker: connect(&named_broker(global)?).await?,
            queue: queue.unwrap_or(DEFAULT_QUEUE).to_owned(),
            results: None,
        });
    }
    let home = Home::open(global).await?;
    let queue = one_queue(&home, queue).await?;
    let results = match queue
        .spec
        .results
        .backend
        .as_ref()
        .and_then(|backend| backend.url_secret_ref.as_ref())
    {
        Some(reference) => Some(of_backend(&home, &queue, reference).await?),
        None => None,
    };
    Ok(Way {
        broker: of_object(global, &home, &queue).await?,
        queue: queue.queue_name(),
        results,
    })
}

/// The queues of these names, each with its broker: one connection where they share an address.
pub(crate) async fn of_queues(global: &Global, names: &[String]) -> anyhow::Result<Vec<(String, Way)>> {
    let mut ways: Vec<(String, Way)> = Vec::with_capacity(names.len());
    for name in names {
        let way = match ways.first().filter(|_| global.server.is_given()) {
            Some((_, first)) => Way {
                broker: first.broker.clone(),
                queue: name.clone(),
                results: None,
            },
            None => of_queue(global, Some(name)).await?,
        };
        if ways.iter().all(|(known, _)| known != name) {
            ways.push((name.clone(), way));
        }
    }
    Ok(ways)
}

/// A client for a queue, and the queue's name.
pub(crate) async fn client(global: &Global, queue: Option<&str>) -> anyhow::Result<(Client, String)> {
    sender(global, queue, Options::default()).await
}

/// A client that sends as the options say, and its queue's name.
pub(crate) async fn sender(global: &Global, queue: Option<&str>, options: Options) -> anyhow::Result<(Client, String)> {
    let way = of_queue(global, queue).await?;
    let queue = way.queue.clone();
    Ok((way.client(global, options).await?, queue))
}

/// A client that reads results and revokes: with a result database alone, no broker is asked for.
pub(crate) async fn reader(global: &Global, queue: Option<&str>) -> anyhow::Result<Client> {
    match (named_results(global)?, global.server.is_given()) {
        (Some(named), false) => {
            let results = ResultStore::connect(&named).await?;
            let broker = connect(&named).await?;
            Ok(Client::over(broker, results, Options::default()))
        }
        _ => Ok(client(global, queue).await?.0),
    }
}

/// The broker of a TaskQueue.
pub(crate) async fn of_object(global: &Global, home: &Home, queue: &TaskQueue) -> anyhow::Result<Broker> {
    let namespace = queue.namespace().unwrap_or_else(|| home.namespace.clone());
    let (secret, key) = match queue.url_secret() {
        Some(reference) => (reference.name.clone(), reference.key.as_str()),
        None => (bundled(home, &namespace).await?, "url"),
    };
    let url = text(value(home, &namespace, &secret, key).await?)?;
    let mut config = reached(home, queue, &url).await?;
    queue.key_prefix().clone_into(&mut config.key_prefix);
    config.result_prefix = result_prefix(queue);
    config.priority_steps.clone_from(&queue.spec.priority_steps);
    global.name_channels(&mut config);
    connect(&config).await
}

/// The other place of a TaskQueue's results.
async fn of_backend(home: &Home, queue: &TaskQueue, reference: &SecretKeyRef) -> anyhow::Result<Config> {
    let namespace = queue.namespace().unwrap_or_else(|| home.namespace.clone());
    let url = value(home, &namespace, &reference.name, &reference.key).await?;
    // The name is the broker's, not this one's.
    let mut nameless = queue.clone();
    if let Some(tls) = nameless
        .spec
        .broker
        .as_mut()
        .and_then(|broker| broker.redis.tls.as_mut())
    {
        tls.server_name = None;
    }
    let mut config = reached(home, &nameless, &text(url)?).await?;
    let is_clear = config.url.starts_with("redis://") || config.url.starts_with("unix://");
    if is_clear {
        // As for the workers: the certificates count where the address asks for them.
        config.tls = None;
    }
    config.result_prefix = result_prefix(queue);
    Ok(config)
}

/// How an address of a TaskQueue is reached: with its certificates and its Sentinels' name for the primary.
async fn reached(home: &Home, queue: &TaskQueue, url: &str) -> anyhow::Result<Config> {
    let namespace = queue.namespace().unwrap_or_else(|| home.namespace.clone());
    let Reached { url, forwarded } = tunnel::reachable(&home.client, url).await?;
    let mut config = Config::new(&url);
    let redis = queue.redis().cloned().unwrap_or_default();
    config.sentinel.master = redis.sentinel.map(|sentinel| sentinel.master_name).unwrap_or_default();
    if let Some(tls) = redis.tls {
        let pem = async |secret: &str, key: &str| value(home, &namespace, secret, key).await.map(Pem::Text);
        config.tls = Some(Tls {
            authorities: match &tls.ca_secret_ref {
                Some(ca) => Some(pem(&ca.name, &ca.key).await?),
                None => None,
            },
            certificate: match &tls.client_cert_secret_ref {
                Some(client) => Some((pem(&client.name, "tls.crt").await?, pem(&client.name, "tls.key").await?)),
                None => None,
            },
            server_name: tls.server_name,
        });
    }
    if let Some(host) = forwarded
        && url.starts_with("rediss://")
    {
        // Its certificate is for the name that was asked for, not for the end of the tunnel.
        config.tls.get_or_insert_default().server_name.get_or_insert(host);
    }
    Ok(config)
}

/// What stands under a key of a Secret.
async fn value(home: &Home, namespace: &str, secret: &str, key: &str) -> anyhow::Result<Vec<u8>> {
    let secrets = Api::<Secret>::namespaced(home.client.clone(), namespace);
    let found = secrets
        .get(secret)
        .await
        .map_err(|err| said(err, format!("read Secret {namespace}/{secret}")))?;
    let value = found.data.and_then(|mut data| data.remove(key));
    let value = value.with_context(|| format!("Secret {namespace}/{secret} has no key {key}"))?;
    Ok(value.0)
}

fn result_prefix(queue: &TaskQueue) -> String {
    let backend = queue.spec.results.backend.as_ref();
    umbel_broker::result_prefix(backend.map_or("", |backend| &backend.key_prefix))
}

/// An address. It holds a password, so no message repeats it.
fn text(url: Vec<u8>) -> anyhow::Result<String> {
    let url = String::from_utf8(url).ok().context("the Secret's address is no text")?;
    Ok(url.trim().to_owned())
}

/// Name of the Secret of the Redis that came with the release.
async fn bundled(home: &Home, namespace: &str) -> anyhow::Result<String> {
    let found = Api::<Secret>::namespaced(home.client.clone(), namespace)
        .list(&ListParams::default().labels(BUNDLED))
        .await
        .map_err(|err| {
            said(
                err,
                format!("look for the bundled Redis' Secret in namespace {namespace}"),
            )
        })?;
    match <[Secret; 1]>::try_from(found.items) {
        Ok([secret]) => Ok(secret.name_any()),
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

/// The broker that somebody named.
pub(crate) fn named_broker(global: &Global) -> anyhow::Result<Config> {
    said_of(global, global.server.broker()?)
}

/// The results' server that somebody named.
fn named_results(global: &Global) -> anyhow::Result<Option<Config>> {
    let named = global.server.results()?;
    named.map(|config| said_of(global, config)).transpose()
}

/// With what somebody said of it.
fn said_of(global: &Global, mut config: Config) -> anyhow::Result<Config> {
    config.key_prefix.clone_from(&global.key_prefix);
    global.name_channels(&mut config);
    config.result_prefix = umbel_broker::result_prefix(&global.result_key_prefix);
    match umbel_broker::parse_steps(&global.priority_steps) {
        Ok(steps) => config.priority_steps = steps,
        Err(err) => return usage(format!("--priority-steps: {err}")),
    }
    if let Some(separator) = global.separator.as_deref().filter(|separator| !separator.is_empty()) {
        match umbel_broker::parse_separator(separator) {
            Ok(separator) => config.separator = separator,
            Err(err) => return usage(format!("--separator: {err}")),
        }
    }
    Ok(config)
}

pub(crate) async fn connect(config: &Config) -> anyhow::Result<Broker> {
    Ok(Broker::connect(config).await?)
}
