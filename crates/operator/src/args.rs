//! What the operator is told when it starts: flags, and the same names as environment variables.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use umbel_api::Span;
use umbel_plan::narrow::Level;

/// Sizes fleets of workers by demand, fires schedules, and never stops a busy worker.
#[derive(Parser, Debug)]
#[command(name = "umbel-operator", version)]
pub struct Args {
    /// Namespaces to work in, comma separated; none means all
    #[arg(long = "watch-namespaces", env = "UMBEL_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// The operator's own namespace: its Lease is here, and the default broker serves only this one
    #[arg(long, env = "UMBEL_NAMESPACE", default_value = "default")]
    release_namespace: String,
    /// Name of the Lease; two installs in one namespace need two
    #[arg(long, env = "UMBEL_LEASE_NAME", default_value = "umbel-operator")]
    lease_name: String,
    /// After this long without renewal another operator may lead
    #[arg(long, env = "UMBEL_LEASE_DURATION", default_value = "15s")]
    lease_duration: Span,
    /// A leader that could not renew for this long stops
    #[arg(long, env = "UMBEL_RENEW_DEADLINE", default_value = "10s")]
    renew_deadline: Span,
    /// Wait between two looks at the Lease
    #[arg(long, env = "UMBEL_RETRY_PERIOD", default_value = "2s")]
    retry_period: Span,
    /// Wait between two samples of a broker
    #[arg(long, env = "UMBEL_SAMPLE_INTERVAL", default_value = "1s")]
    sample_interval: Span,
    /// Secret with the default broker's URL, in the release's namespace; none means there is no default broker
    #[arg(long, env = "UMBEL_DEFAULT_BROKER_SECRET", default_value = "")]
    default_broker_secret: String,
    /// Key of the URL in that Secret
    #[arg(long, env = "UMBEL_DEFAULT_BROKER_KEY", default_value = "url")]
    default_broker_key: String,
    /// Image of pools that bring no template
    #[arg(long, env = "UMBEL_WORKER_IMAGE", default_value = "umbel-dev/umbel:0.1.0")]
    worker_image: String,
    /// Pull policy of that image
    #[arg(long, env = "UMBEL_WORKER_PULL_POLICY", default_value = "IfNotPresent")]
    worker_pull_policy: String,
    /// What templates of pools may ask for: privileged, baseline or restricted, as Pod Security Standards have them
    #[arg(long, env = "UMBEL_POD_TEMPLATES", default_value_t)]
    pod_templates: Level,
    /// Renew the tokens of joined clusters, in the namespaces where the operator may update Secrets
    #[arg(long, env = "UMBEL_RENEW_TOKENS", default_value_t = true, action = clap::ArgAction::Set)]
    renew_tokens: bool,
    /// Namespaces in which labelled Secrets become target clusters, comma separated; none means that nothing is discovered
    #[arg(long, env = "UMBEL_DISCOVER_NAMESPACES", value_delimiter = ',')]
    discover_namespaces: Vec<String>,
    /// Of two installs that cover one namespace the other one takes it over when this one has been silent for so long
    #[arg(long, env = "UMBEL_CLAIM_DURATION", default_value = "5m")]
    claim_duration: Span,
    /// Where /livez, /readyz and /metrics listen
    #[arg(long, env = "UMBEL_ADMIN_ADDR", default_value = "127.0.0.1:8080")]
    admin_addr: SocketAddr,
    /// Name of this operator in the Lease; the pod's name in a cluster
    #[arg(long, env = "UMBEL_POD_NAME", default_value = "umbel-operator")]
    id: String,
}

/// What the flags mean.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespaces to work in; empty means all.
    pub namespaces: Vec<String>,
    /// What controllers need to know of the release.
    pub release: Release,
    /// The election.
    pub election: Election,
    /// Wait between two samples of a broker.
    pub sample_interval: Duration,
    /// Namespaces in which labelled Secrets become target clusters.
    pub discover: Vec<String>,
    /// After so long without renewal another install may take a namespace.
    pub claim: Duration,
    /// Where the admin port listens.
    pub admin_addr: SocketAddr,
}

/// The release that this operator belongs to.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its namespace.
    pub namespace: String,
    /// Secret name and key of the default broker's URL, if there is one.
    pub default_broker: Option<(String, String)>,
    /// Image of pools that bring no template.
    pub worker_image: String,
    /// Pull policy of that image.
    pub worker_pull_policy: String,
    /// What templates of pools may ask for.
    pub pod_templates: Level,
    /// Whether tokens of joined clusters are renewed.
    pub renews_tokens: bool,
}

/// Names and times of the election.
#[derive(Clone, Debug)]
pub struct Election {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Name of this candidate, new for every process.
    pub holder: String,
    /// After this long without renewal another may lead.
    pub duration: Duration,
    /// A leader that could not renew for this long stops.
    pub deadline: Duration,
    /// Wait between two looks.
    pub retry: Duration,
}

/// The times of the election do not fit together.
#[derive(Debug, thiserror::Error)]
#[error(
    "lease-duration ({duration:?}) must be longer than renew-deadline ({deadline:?}), and that longer than retry-period ({retry:?})"
)]
pub struct BadTimes {
    duration: Duration,
    deadline: Duration,
    retry: Duration,
}

impl TryFrom<Args> for Config {
    type Error = BadTimes;

    fn try_from(args: Args) -> Result<Self, BadTimes> {
        let Args {
            watch_namespaces,
            release_namespace,
            lease_name,
            lease_duration,
            renew_deadline,
            retry_period,
            sample_interval,
            default_broker_secret,
            default_broker_key,
            worker_image,
            worker_pull_policy,
            pod_templates,
            renew_tokens,
            discover_namespaces,
            claim_duration,
            admin_addr,
            id,
        } = args;
        let (duration, deadline, retry) = (lease_duration.get(), renew_deadline.get(), retry_period.get());
        if duration <= deadline || deadline <= retry || retry.is_zero() {
            return Err(BadTimes {
                duration,
                deadline,
                retry,
            });
        }
        Ok(Self {
            namespaces: watch_namespaces.into_iter().filter(|name| !name.is_empty()).collect(),
            election: Election {
                namespace: release_namespace.clone(),
                name: lease_name,
                // A restarted process must not take its predecessor's Lease for its own.
                holder: format!("{id}_{}", uuid::Uuid::new_v4()),
                duration,
                deadline,
                retry,
            },
            release: Release {
                namespace: release_namespace,
                default_broker: (!default_broker_secret.is_empty())
                    .then_some((default_broker_secret, default_broker_key)),
                worker_image,
                worker_pull_policy,
                pod_templates,
                renews_tokens: renew_tokens,
            },
            discover: discover_namespaces
                .into_iter()
                .filter(|name| !name.is_empty())
                .collect(),
            claim: claim_duration.get().max(Duration::from_secs(1)),
            sample_interval: sample_interval.get().max(Duration::from_millis(50)),
            admin_addr,
        })
    }
}
