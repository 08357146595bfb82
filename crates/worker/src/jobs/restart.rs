//! `umbel.cluster.restart`: new pods for a Deployment, a `StatefulSet` or a `DaemonSet`, as `kubectl rollout restart` does it.
//!
//! The annotation says the run's order, so that a second delivery of the same run restarts nothing again, and the fence
//! keeps an older run from restarting after a newer one.

use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;
use umbel_clusters::Registry;

use super::rules::{Allow, ObjectRules};
use super::site::{self, Fault, Reference, Site};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

const FENCE: &str = "umbel.dev/restart-fence";
const MANAGER: &str = "umbel-restart";
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";
const KINDS: [&str; 3] = ["Deployment", "StatefulSet", "DaemonSet"];

/// The job.
pub(super) struct Restart {
    clusters: Registry,
    rules: ObjectRules,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Keywords {
    cluster: Option<String>,
    #[serde(alias = "api_version", default = "site::apps")]
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
}

impl Restart {
    pub(super) fn new(clusters: Registry, rules: ObjectRules) -> Restart {
        Restart { clusters, rules }
    }

    async fn restart(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let (keywords, cluster) = site::one_cluster(self.name(), ctx, arguments, |keywords: &mut Keywords| {
            keywords.cluster.take()
        })?;
        let allow = Allow {
            job: "restart",
            rules: &self.rules,
        };
        let Keywords {
            cluster: _,
            api_version,
            kind,
            namespace,
            name,
        } = keywords;
        let reference = Reference {
            api_version,
            kind,
            namespace: Some(namespace),
            name,
        };
        let mut manifest = reference.read(allow)?;
        if manifest.group != "apps" || !KINDS.contains(&manifest.kind.as_str()) {
            let text = format!("{manifest}: only {} of apps are restarted", KINDS.join(", "));
            return Err(Failure::permanent("ValueError", text));
        }
        let fence = site::fence(ctx)?;
        let at = jiff::Timestamp::from_millisecond(fence.order())
            .map_err(|_| Failure::permanent("RuntimeError", "the run's order is no time"))?
            .to_string();
        let run = async {
            let site = Site::enter(&self.clusters, &cluster, ctx, fence).await?;
            let api = site.place(&mut manifest, allow).await?;
            let changed = site
                .change(&manifest, &api, FENCE, MANAGER, |object, stored| {
                    let is_done = stored.is_some_and(|stored| !stored.is_of_earlier_run(fence));
                    let template = &object.data["spec"]["template"]["metadata"]["annotations"];
                    (!is_done || template[RESTARTED] != at.as_str())
                        .then(|| json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED: at}}}}}))
                })
                .await?;
            Ok::<_, Fault>(changed.1)
        };
        Ok(match Box::pin(run).await {
            Ok(is_new) => {
                let action = if is_new { "restarted" } else { "unchanged" };
                Outcome::done(&json!({ "cluster": cluster, "object": manifest.to_string(), "action": action }))
            }
            Err(fault) => fault.outcome(),
        })
    }
}

impl Job for Restart {
    fn name(&self) -> &'static str {
        "umbel.cluster.restart"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.restart(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}
