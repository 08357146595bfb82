//! `umbel.cluster.scale`: the size of anything that has a scale subresource.
//!
//! That subresource has no annotations, so the fence is written onto the object first, and the size then with the version
//! that this gave: whoever wrote a newer fence in between makes it a conflict.

use futures::future::BoxFuture;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};
use umbel_clusters::Registry;

use super::manifest::Manifest;
use super::rules::{Allow, ObjectRules};
use super::site::{self, Fault, REQUEST, Reference, STEPS, Site};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

const FENCE: &str = "umbel.dev/scale-fence";
const MANAGER: &str = "umbel-scale";
/// No honest size is larger.
const MOST: u32 = 100_000;

/// The job.
pub(super) struct Scale {
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
    replicas: u32,
}

impl Scale {
    pub(super) fn new(clusters: Registry, rules: ObjectRules) -> Scale {
        Scale { clusters, rules }
    }

    async fn scale(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let (keywords, cluster) = site::one_cluster(self.name(), ctx, arguments, |keywords: &mut Keywords| {
            keywords.cluster.take()
        })?;
        let allow = Allow {
            job: "scale",
            rules: &self.rules,
        };
        let Keywords {
            cluster: _,
            api_version,
            kind,
            namespace,
            name,
            replicas,
        } = keywords;
        if replicas > MOST {
            return Err(Failure::permanent("ValueError", format!("replicas: at most {MOST}")));
        }
        let reference = Reference {
            api_version,
            kind,
            namespace: Some(namespace),
            name,
        };
        let mut manifest = reference.read(allow)?;
        let fence = site::fence(ctx)?;
        let run = async {
            let site = Site::enter(&self.clusters, &cluster, ctx, fence).await?;
            let api = site.place(&mut manifest, allow).await?;
            scale_to(&site, &manifest, &api, replicas).await
        };
        Ok(match Box::pin(run).await {
            Ok((from, action)) => {
                let object = manifest.to_string();
                Outcome::done(
                    &json!({ "cluster": cluster, "object": object, "action": action, "from": from, "to": replicas }),
                )
            }
            Err(fault) => fault.outcome(),
        })
    }
}

async fn scale_to(
    site: &Site<'_>,
    manifest: &Manifest,
    api: &Api<DynamicObject>,
    replicas: u32,
) -> Result<(Value, &'static str), Fault> {
    for _ in 0..STEPS {
        let ours = site.fence;
        let (object, _) = site
            .change(manifest, api, FENCE, MANAGER, |_, stored| {
                let is_held = stored.is_some_and(|stored| !stored.is_of_earlier_run(ours));
                (!is_held).then(|| json!({}))
            })
            .await?;
        let from = object.data["spec"]["replicas"].clone();
        if from == json!(replicas) {
            return Ok((from, "unchanged"));
        }
        let body =
            json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "spec": {"replicas": replicas}});
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(&body);
        site.ctx.checkpoint().await?;
        let request = api.patch_scale(&manifest.name, &params, &patch);
        match site.target.ask("scale it", REQUEST, request).await {
            Ok(_) => return Ok((from, "scaled")),
            Err(err) if err.code() == Some(409) => {}
            Err(source) => return Err(site.about(manifest, source)),
        }
    }
    Err(site.restless(manifest))
}

impl Job for Scale {
    fn name(&self) -> &'static str {
        "umbel.cluster.scale"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.scale(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}
