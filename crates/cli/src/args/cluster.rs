//! `umbel cluster`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{duration, label};
use crate::account;

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// List target clusters: whether they are reached, what they are, what is wrong
    #[command(after_help = "Example:\n  umbel cluster ls -l env=prod -o wide")]
    Ls(ClusterLs),
    /// Make a cluster of a kubeconfig a target of jobs: an account there, a Secret and a TargetCluster here
    #[command(
        after_help = "At the target it makes a ServiceAccount that may do what syncs do, renew its own token, and touch what\n\
                      --allow names; the operator renews its token. With --as-is nothing is made there, and the context's own\n\
                      credential goes into the Secret: a token or a client certificate. Joining again updates everything.\n\n\
                      Examples:\n  umbel cluster join eu-1 --from-context eu-1-admin --label env=prod\n  \
                      umbel cluster join eu-1 --from-context eu-1-admin --allow shop:Deployment,ConfigMap --allow :nodes\n  \
                      umbel cluster join eu-1 --from-context eu-1-admin --dry-run"
    )]
    Join(Join),
    /// Connect to target clusters, and say line by line what works and what is missing; exit code 1 if something is
    #[command(after_help = "Example:\n  umbel cluster test eu-1\n  umbel cluster test --all")]
    Test(ClusterTest),
    /// Put a new token into the Secret of a joined cluster
    #[command(
        after_help = "The old token is used no more, and ends within an hour; with --key all tokens of the account die now.\n\n\
                      Examples:\n  umbel cluster rotate eu-1\n  umbel cluster rotate eu-1 --key --from-context eu-1-admin"
    )]
    Rotate(Rotate),
    /// Take a target cluster out: the TargetCluster, the Secret that join made, and with --from-context the account there
    #[command(after_help = "Example:\n  umbel cluster leave eu-1 --from-context eu-1-admin")]
    Leave(Leave),
}

/// Clusters to list.
#[derive(Debug, Args)]
pub(crate) struct ClusterLs {
    /// Names of TargetClusters; all if absent
    pub(crate) names: Vec<String>,
    /// Those with these labels, as kubectl takes them
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "names")]
    pub(crate) selector: Option<String>,
    /// In all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub(crate) all_namespaces: bool,
}

/// Where an administrator's access to a target is.
#[derive(Debug, Args)]
pub(crate) struct From {
    /// Context that leads to the cluster
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) from_context: Option<String>,
    /// Kubeconfig that holds the context; without it the one that kubectl uses
    #[arg(long, value_name = "FILE")]
    pub(crate) from_kubeconfig: Option<PathBuf>,
}

/// A cluster to join.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// Name of the TargetCluster
    pub(crate) name: String,
    /// Context that leads to the cluster
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) from_context: String,
    /// Kubeconfig that holds the context; without it the one that kubectl uses
    #[arg(long, value_name = "FILE")]
    pub(crate) from_kubeconfig: Option<PathBuf>,
    /// Label of the TargetCluster; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Kinds that jobs may touch, in a namespace of the target, such as shop:Deployment,ConfigMap; in none such as :nodes. May be repeated
    #[arg(long, value_name = "NAMESPACE:KIND[,KIND]", conflicts_with = "as_is")]
    pub(crate) allow: Vec<String>,
    /// Namespace of the account at the target, made if it is not there
    #[arg(long, value_name = "NAMESPACE", default_value = account::NAMESPACE, conflicts_with = "as_is")]
    pub(crate) target_namespace: String,
    /// Name of the account; without it umbel-NAMESPACE-NAME
    #[arg(long, value_name = "NAME", conflicts_with = "as_is")]
    pub(crate) account: Option<String>,
    /// Life of the account's tokens, 10m to 1h
    #[arg(long, value_name = "DURATION", value_parser = life, default_value = "1h", conflicts_with = "as_is")]
    pub(crate) token_life: Duration,
    /// Make nothing at the target: the context's own credential goes into the Secret
    #[arg(long)]
    pub(crate) as_is: bool,
    /// Print what would be made, and make nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Clusters to connect to.
#[derive(Debug, Args)]
pub(crate) struct ClusterTest {
    /// Names of TargetClusters
    #[arg(required_unless_present_any = ["all", "selector"])]
    pub(crate) names: Vec<String>,
    /// All of the namespace
    #[arg(long, conflicts_with_all = ["names", "selector"])]
    pub(crate) all: bool,
    /// Those with these labels, as kubectl takes them
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "names")]
    pub(crate) selector: Option<String>,
    /// Longest time to wait for one answer
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(crate) timeout: Duration,
}

/// A cluster whose token is replaced.
#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Name of the TargetCluster
    pub(crate) name: String,
    /// Let all tokens of the account die that were ever made; needs --from-context
    #[arg(long, requires = "from_context")]
    pub(crate) key: bool,
    #[command(flatten)]
    pub(crate) from: From,
}

/// A cluster to take out.
#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Name of the TargetCluster
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) from: From,
    /// Go on where the target does not answer: what is there stays there
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not ask although pools cover it
    #[arg(short, long)]
    pub(crate) yes: bool,
}

fn life(text: &str) -> Result<Duration, String> {
    let life = duration(text)?;
    let most = u64::from(umbel_clusters::credential::LONGEST);
    let least = u64::from(umbel_clusters::credential::SHORTEST);
    let fits = (least..=most).contains(&life.as_secs());
    fits.then_some(life).ok_or_else(|| "must be from 10m to 1h".to_owned())
}
