//! Wiring: watches first, then the election, then everything that writes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use umbel_plan::shield;
use umbel_telemetry::metrics::Registry;
use umbel_telemetry::{Readiness, admin, shutdown};

use crate::args::Config;
use crate::beat;
use crate::brokers::Brokers;
use crate::celery;
use crate::claims::{self, Claims};
use crate::context::Context;
use crate::controllers;
use crate::discovery;
use crate::leader::{Campaign, Leader};
use crate::metrics::Metrics;
use crate::sampler;
use crate::secrets::Secrets;
use crate::watch::Scope;

/// No answer of the API server may hold up a step for longer: the term ends after that time, too.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A request whose answer stays away for so long is lost, and its reconcile is tried again.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Above the time after which a watch ends, or is given up.
const WATCH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long running reconciles may take to end after a signal.
const FAREWELL: Duration = Duration::from_secs(10);

/// Runs until a signal (fine) or the loss of the Lease (an error: the process must end).
pub async fn run(config: Config) -> Result<()> {
    let Config {
        namespaces,
        release,
        election,
        sample_interval,
        discover,
        claim,
        admin_addr,
    } = config;
    let stop = shutdown::token().context("listen for signals")?;
    let mut registry = Registry::new("umbel-operator");
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::new();
    let admin_stop = CancellationToken::new();
    admin::serve(admin_addr, readiness.clone(), registry.done(), admin_stop.clone())
        .await
        .with_context(|| format!("listen on {admin_addr}"))?;

    let client = connect(READ_TIMEOUT).await?;
    // A watch is silent for as long as nothing changes; the server ends it before this.
    let watching = connect(WATCH_TIMEOUT).await?;
    let Some(install) = patient(&stop, || install_id(&client, &election.namespace, &election.name)).await else {
        return Ok(());
    };
    let leader = Leader::new(install, election.holder.clone());
    let everywhere = vec![None];
    let wanted = if namespaces.is_empty() {
        everywhere
    } else {
        namespaces.into_iter().map(Some).collect()
    };
    let scopes = wanted
        .into_iter()
        .map(|namespace| Scope::start(&watching, namespace, &stop))
        .collect();
    let reporter = Reporter {
        controller: "umbel-operator".into(),
        instance: Some(election.holder.clone()),
    };
    let context = Arc::new(Context {
        client: client.clone(),
        scopes,
        brokers: Brokers::new(client.clone(), release.clone()),
        celery: celery::Celery::default(),
        leader: leader.clone(),
        claims: Claims::new(claim, discover.clone()),
        recorder: Recorder::new(client.clone(), reporter),
        metrics: metrics.clone(),
        release,
        marks: Mutex::new(shield::Turns::new(Instant::now())),
    });
    let synced = async {
        for scope in &context.scopes {
            scope.synced().await;
        }
    };
    tokio::select! {
        () = synced => {}
        () = stop.cancelled() => return Ok(()),
    }
    readiness.set_ready();

    let mut campaign = Campaign::new(client, election, leader.clone());
    if !campaign.win(&stop).await {
        return Ok(());
    }
    metrics.leads(true);
    let quiet = stop.child_token();
    let secrets = Secrets::new(watching.clone());
    let mut work = lead(&context, secrets, sample_interval, &quiet);
    for namespace in discover {
        work.spawn(discovery::run(
            context.clone(),
            watching.clone(),
            namespace,
            quiet.clone(),
        ));
    }
    let lost = leader.lost().clone();
    tokio::select! {
        () = campaign.hold(&stop) => {}
        ended = work.join_next() => tracing::error!(?ended, "a part of the operator ended"),
    }
    quiet.cancel();
    metrics.leads(false);
    if lost.is_cancelled() {
        // Whatever still runs finds no term; the process must not linger.
        bail!("the lease was lost");
    }
    let _ = tokio::time::timeout(FAREWELL, async { while work.join_next().await.is_some() {} }).await;
    work.abort_all();
    campaign.release().await;
    admin_stop.cancel();
    if stop.is_cancelled() {
        Ok(())
    } else {
        bail!("a part of the operator ended")
    }
}

/// Starts everything that only the leader does.
fn lead(context: &Arc<Context>, secrets: Secrets, interval: Duration, stop: &CancellationToken) -> JoinSet<()> {
    let mut work = JoinSet::new();
    work.spawn(claims::run(context.clone(), stop.clone()));
    work.spawn(beat::run(context.clone(), stop.clone()));
    work.spawn(sampler::run(context.clone(), secrets, interval, stop.clone()));
    work.spawn(celery::run(context.clone(), stop.clone()));
    for scope in 0..context.scopes.len() {
        work.spawn(controllers::workerpool::run(context.clone(), scope, stop.clone()));
        work.spawn(controllers::taskqueue::run(context.clone(), scope, stop.clone()));
        work.spawn(controllers::targetcluster::run(context.clone(), scope, stop.clone()));
        work.spawn(controllers::task::run(context.clone(), scope, stop.clone()));
    }
    work
}

async fn connect(read_timeout: Duration) -> Result<Client> {
    // Both a test's and a person's choice of TLS provider: there is one in the tree.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = kube::Config::infer().await.context("find the cluster")?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.write_timeout = Some(REQUEST_TIMEOUT);
    config.read_timeout = Some(read_timeout);
    Client::try_from(config).context("make a client")
}

/// The install id: the uid of the Lease's namespace, and the Lease's name.
async fn install_id(client: &Client, namespace: &str, lease: &str) -> Result<String, kube::Error> {
    let found = Api::<Namespace>::all(client.clone()).get(namespace).await?;
    Ok(format!("{}.{lease}", found.uid().unwrap_or_default()))
}

/// Asks again every two seconds until there is an answer; nothing if `stop` came first.
async fn patient<T, F>(stop: &CancellationToken, ask: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    loop {
        match ask().await {
            Ok(answer) => return Some(answer),
            Err(error) => tracing::warn!(error = %umbel_telemetry::chain(&error), "waiting for the API server"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}
