//! `umbel.cluster.get`: fields of objects. Reads only, and of Secrets never a value.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use kube::api::{Api, DynamicObject, ListParams};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use umbel_clusters::Registry;

use super::manifest::Manifest;
use super::path::Path;
use super::rules::{Allow, ObjectRules};
use super::site::{self, Fault, REQUEST, Reference, Site};
use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// Fields of one message.
const MOST_FIELDS: usize = 50;
/// Objects of one message.
const MOST_OBJECTS: usize = 1000;
const PAGE: u32 = 200;
/// Tools keep whole manifests there, those of Secrets as well.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The job.
pub(super) struct Get {
    clusters: Registry,
    rules: ObjectRules,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Keywords {
    cluster: Option<String>,
    #[serde(alias = "api_version")]
    api_version: String,
    kind: String,
    namespace: Option<String>,
    /// One object, or with a selector, or without both: all.
    name: Option<String>,
    selector: Option<String>,
    fields: Fields,
}

/// Paths, by the names of results or by themselves.
#[derive(Deserialize)]
#[serde(untagged)]
enum Fields {
    Named(BTreeMap<String, String>),
    Plain(Vec<String>),
}

impl Get {
    pub(super) fn new(clusters: Registry, rules: ObjectRules) -> Get {
        Get { clusters, rules }
    }

    async fn get(&self, ctx: &JobContext, arguments: &Arguments) -> Result<Outcome, Failure> {
        let (keywords, cluster) = site::one_cluster(self.name(), ctx, arguments, |keywords: &mut Keywords| {
            keywords.cluster.take()
        })?;
        let Keywords {
            cluster: _,
            api_version,
            kind,
            namespace,
            name,
            selector,
            fields,
        } = keywords;
        let allow = Allow {
            job: "get",
            rules: &self.rules,
        };
        let fields: BTreeMap<String, String> = match fields {
            Fields::Named(fields) => fields,
            Fields::Plain(paths) => paths.into_iter().map(|path| (path.clone(), path)).collect(),
        };
        if fields.is_empty() || fields.len() > MOST_FIELDS {
            let text = format!("fields: 1 to {MOST_FIELDS} paths");
            return Err(Failure::permanent("ValueError", text));
        }
        let fields = fields
            .into_iter()
            .map(|(name, path)| Ok((name, Path::parse(&path)?)))
            .collect::<Result<Vec<_>, String>>()
            .map_err(|why| Failure::permanent("ValueError", why))?;
        if name.is_some() && selector.is_some() {
            return Err(Failure::type_error(
                "umbel.cluster.get takes a name or a selector, not both",
            ));
        }
        let is_one = name.is_some();
        let reference = Reference {
            api_version,
            kind,
            namespace,
            name: name.unwrap_or_else(|| "all".to_owned()),
        };
        let mut manifest = reference.read(allow)?;
        let fence = site::fence(ctx)?;
        let run = async {
            let site = Site::enter(&self.clusters, &cluster, ctx, fence).await?;
            let api = site.place(&mut manifest, allow).await?;
            if is_one {
                let object = site.read(&manifest, &api).await?;
                let object = object.ok_or_else(|| site.absent(&manifest))?;
                Ok(json!({ "cluster": cluster, "fields": read(&manifest, object, &fields) }))
            } else {
                let items = list(&site, &manifest, &api, selector.as_deref()).await?;
                let items: Vec<Value> = items
                    .into_iter()
                    .map(|object| {
                        let (name, namespace) = (object.metadata.name.clone(), object.metadata.namespace.clone());
                        json!({ "name": name, "namespace": namespace, "fields": read(&manifest, object, &fields) })
                    })
                    .collect();
                Ok::<_, Fault>(json!({ "cluster": cluster, "items": items }))
            }
        };
        Ok(match Box::pin(run).await {
            Ok(result) => Outcome::done(&result),
            Err(fault) => fault.outcome(),
        })
    }
}

async fn list(
    site: &Site<'_>,
    manifest: &Manifest,
    api: &Api<DynamicObject>,
    selector: Option<&str>,
) -> Result<Vec<DynamicObject>, Fault> {
    let mut items = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector = selector.map(str::to_owned);
    loop {
        let page = site
            .target
            .ask("list them", REQUEST, api.list(&params))
            .await
            .map_err(|source| site.about_other(&manifest.kind, source))?;
        items.extend(page.items);
        if items.len() > MOST_OBJECTS {
            let why = format!("more than {MOST_OBJECTS} objects; take a selector");
            return Err(site.refused(&manifest.kind, why));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

fn read(manifest: &Manifest, object: DynamicObject, fields: &[(String, Path)]) -> Map<String, Value> {
    let object = shown(manifest, object);
    fields
        .iter()
        .map(|(name, path)| (name.clone(), path.find(&object)))
        .collect()
}

/// The object without what nobody is to read in a result.
fn shown(manifest: &Manifest, mut object: DynamicObject) -> Value {
    without_values(&manifest.group, &manifest.kind, &mut object);
    let mut object = serde_json::to_value(object).unwrap_or_default();
    object["apiVersion"] = json!(manifest.api_version());
    object["kind"] = json!(manifest.kind);
    object
}

/// Takes away what is long and of no use, and of a Secret its values, wherever they are.
pub(super) fn without_values(group: &str, kind: &str, object: &mut DynamicObject) {
    object.metadata.managed_fields = None;
    if group.is_empty() && kind == "Secret" {
        if let Some(annotations) = &mut object.metadata.annotations {
            annotations.remove(LAST_APPLIED);
        }
        if let Some(data) = object.data.as_object_mut() {
            data.retain(|name, _| name == "type" || name == "immutable");
        }
    }
}

impl Job for Get {
    fn name(&self) -> &'static str {
        "umbel.cluster.get"
    }

    fn run<'a>(&'a self, ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.get(ctx, &args).await.unwrap_or_else(Outcome::Failed) })
    }
}
