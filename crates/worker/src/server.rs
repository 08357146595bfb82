//! The servers of a worker: how they are named, what is learned of them, and who is told.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use umbel_broker::{Broker, Elsewhere, Error, ServerOptions, Survey};
use umbel_telemetry::chain;

use crate::app::Shared;
use crate::args::{ConfigError, wrong};
use crate::metrics::Metrics;

/// A server's settings are looked at so often: they change while it runs.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A worker to which nothing has come for so long looks where its messages may be instead.
const SILENCE: Duration = Duration::from_secs(10);

/// Where broker and results are.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Broker: redis://[user:password@]host:port/db, rediss:// for TLS, unix:///path, sentinel://host;sentinel://host
    #[arg(
        long,
        env = "UMBEL_REDIS_URL",
        hide_env_values = true,
        required_unless_present = "redis_url_file"
    )]
    redis_url: Option<String>,
    /// File with the broker's address, instead; a change of it is followed within seconds
    #[arg(long, env = "UMBEL_REDIS_URL_FILE")]
    redis_url_file: Option<PathBuf>,
    /// Another database for results; the broker's if absent
    #[arg(long, env = "UMBEL_RESULT_URL", hide_env_values = true)]
    result_url: Option<String>,
    /// File with that address, instead
    #[arg(long, env = "UMBEL_RESULT_URL_FILE")]
    result_url_file: Option<PathBuf>,
    /// Authorities trusted with TLS, PEM; those of the machine if absent
    #[arg(long, env = "UMBEL_REDIS_CA_FILE")]
    redis_ca_file: Option<PathBuf>,
    /// This client's certificate, PEM
    #[arg(long, env = "UMBEL_REDIS_CERT_FILE")]
    redis_cert_file: Option<PathBuf>,
    /// Its key, PEM; in the certificate's file if absent
    #[arg(long, env = "UMBEL_REDIS_KEY_FILE")]
    redis_key_file: Option<PathBuf>,
    /// Name that the broker's certificate must be for; the host of its address if absent
    #[arg(long, env = "UMBEL_REDIS_SERVER_NAME")]
    redis_server_name: Option<String>,
    /// TLS and nothing else, with Sentinels too; implied by the flags above
    #[arg(long, env = "UMBEL_REDIS_TLS")]
    redis_tls: bool,
    /// What the Sentinels of a sentinel:// address call the primary: kombu's master_name
    #[arg(long, env = "UMBEL_REDIS_SENTINEL_MASTER")]
    redis_sentinel_master: Option<String>,
    /// User at the Sentinels themselves
    #[arg(long, env = "UMBEL_REDIS_SENTINEL_USER")]
    redis_sentinel_user: Option<String>,
    /// Password at the Sentinels themselves
    #[arg(long, env = "UMBEL_REDIS_SENTINEL_PASSWORD", hide_env_values = true)]
    redis_sentinel_password: Option<String>,
    /// Take nothing from a server that would throw keys away when its memory is full
    #[arg(long, env = "UMBEL_REFUSE_EVICTION")]
    pub(crate) refuse_eviction: bool,
}

impl ServerArgs {
    /// The broker, and the server of results where that is another one.
    pub(crate) fn configs(&self) -> Result<(umbel_broker::Config, Option<umbel_broker::Config>), ConfigError> {
        let options = ServerOptions {
            url: self.redis_url.clone(),
            url_file: self.redis_url_file.clone(),
            ca_file: self.redis_ca_file.clone(),
            cert_file: self.redis_cert_file.clone(),
            key_file: self.redis_key_file.clone(),
            server_name: self.redis_server_name.clone(),
            is_tls: self.redis_tls,
            sentinel_master: self.redis_sentinel_master.clone(),
            sentinel_user: self.redis_sentinel_user.clone(),
            sentinel_password: self.redis_sentinel_password.clone(),
        };
        let broker = options.config().map_err(|err| wrong("--redis-url", err.to_string()))?;
        let results = options
            .beside(self.result_url.as_ref(), self.result_url_file.as_ref())
            .map_err(|err| wrong("--result-url", err.to_string()))?;
        Ok((broker, results))
    }
}

/// Connects, and looks at what it has connected to.
///
/// # Errors
/// As [`Broker::connect`]; [`Error::Unsupported`] also where it evicts and must not.
pub(crate) async fn attach(config: &umbel_broker::Config, refuse_eviction: bool) -> Result<(Broker, Survey), Error> {
    let broker = Broker::connect(config).await?;
    let survey = broker.survey().await?;
    match survey.eviction_risk() {
        Some(reason) if refuse_eviction => Err(Error::Unsupported {
            server: broker.server(),
            reason,
        }),
        _ => Ok((broker, survey)),
    }
}

/// Says once what the server is, and again when that has changed.
pub(crate) fn tell(broker: &Broker, survey: &Survey, metrics: &Metrics) {
    let server = broker.server();
    let (software, version) = (&survey.software, &survey.version);
    let level = survey.durability.map_or("unknown", umbel_broker::Durability::word);
    let loses = survey.durability.map_or("", umbel_broker::Durability::loses);
    tracing::info!(server, software, version, durability = level, loses, "server");
    if let Some(risk) = survey.eviction_risk() {
        tracing::error!(server, risk, "messages may be thrown away");
    }
    for weakness in &survey.weaknesses {
        tracing::warn!(
            server,
            software,
            version,
            weakness,
            "this version has a published weakness, unless its distributor has mended it"
        );
    }
    metrics.surveyed(survey);
}

/// Missing rights are asked for no more often than this: somebody is about to give them.
const EXPLAIN_EVERY: Duration = Duration::from_secs(2);

/// When a refusal was explained last.
#[derive(Default)]
pub(crate) struct Explained {
    at: Option<std::time::Instant>,
    missing: Vec<String>,
}

impl Explained {
    /// Says which command or key a refused user lacks, where that is not known yet.
    pub(crate) async fn explain(&mut self, broker: &Broker, queues: &[String], err: &Error) {
        let is_due = self.at.is_none_or(|at| at.elapsed() >= EXPLAIN_EVERY);
        if err.trouble() != umbel_broker::Trouble::NoPermission || !is_due {
            return;
        }
        self.at = Some(std::time::Instant::now());
        let asked = broker.missing_rights(queues);
        let Ok(Ok(missing)) = tokio::time::timeout(EXPLAIN_EVERY, asked).await else {
            return;
        };
        if missing != self.missing {
            tracing::error!(
                server = %broker.server(), missing = %missing.join(", "),
                "the user lacks rights; nothing is taken until it has them"
            );
            self.missing = missing;
        }
    }
}

/// Looks at the server now and then, and tells what has changed.
pub(crate) async fn watch(shared: Arc<Shared>, mut known: Survey) {
    tokio::time::sleep(SILENCE).await;
    hint(&shared).await;
    loop {
        tokio::time::sleep(shared.fleet.stretch(LOOK_EVERY)).await;
        match shared.broker.survey().await {
            Ok(survey) if survey == known => {}
            Ok(survey) => {
                tell(&shared.broker, &survey, &shared.metrics);
                known = survey;
            }
            Err(err) => tracing::debug!(error = %chain(&err), "looking at the server again"),
        }
    }
}

/// A worker that has run nothing says where messages for its queues lie instead, if they do.
async fn hint(shared: &Shared) {
    if shared.started.load(Ordering::Relaxed) > 0 {
        return;
    }
    match shared.broker.elsewhere(&shared.queues.names()).await {
        Ok(found) => {
            for Elsewhere { queue, place, waiting } in found {
                tracing::warn!(
                    server = %shared.broker.server(), queue, waiting,
                    "nothing has come here, but messages wait in {place}: wrong database or key prefix?"
                );
            }
        }
        Err(err) => tracing::debug!(error = %chain(&err), "not looked elsewhere"),
    }
}
