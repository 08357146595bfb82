//! Writing one object by server-side apply, fenced.
//!
//! Each write carries the fence and the resourceVersion that it was decided on, and a first write is a create, which fails
//! if somebody was faster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use umbel_clusters::Error;

use super::fence::ANNOTATION;
use super::inventory;
use super::manifest::Manifest;
use super::set::{self, SetRef};
use super::site::{Fault, REQUEST, STEPS, Site, is_field_conflict};

/// Our field manager.
pub(super) const MANAGER: &str = "umbel-apply";

/// A manifest with what its cluster says about it.
pub(super) struct Planned {
    pub(super) manifest: Manifest,
    pub(super) api: Api<DynamicObject>,
    /// As it was read; `None` if it was not there.
    pub(super) current: Option<DynamicObject>,
    /// Would a write change nothing but the fence, and is no older run held off by it?
    pub(super) is_settled: bool,
}

/// How objects are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner<'a> {
    /// Take fields over from other field managers.
    pub(super) force: bool,
    /// The apply set that they belong to.
    pub(super) set: Option<&'a SetRef>,
}

impl Site<'_> {
    /// Writes the object for good, reading it again as often as somebody else was faster.
    pub(super) async fn settle(&self, planned: &Planned, manner: Manner<'_>) -> Result<&'static str, Fault> {
        let Planned {
            manifest,
            api,
            current,
            is_settled,
        } = planned;
        if *is_settled {
            return Ok("unchanged");
        }
        let mut current = current.clone();
        let mut is_new = false;
        for _ in 0..STEPS {
            self.ctx.checkpoint().await?;
            let written = match &current {
                None => self.create(planned, manner).await,
                Some(object) if created_by_us(object) => self.adopt(planned, object).await,
                Some(_) => self.write(manifest, api, current.as_ref(), manner, false).await,
            };
            match written {
                Ok(written) => {
                    let had = current.replace(written);
                    match had {
                        None => is_new = true,
                        Some(had) if created_by_us(&had) => {}
                        Some(_) if is_new => return Ok("created"),
                        Some(had) if same(Some(&had), current.as_ref()) => return Ok("unchanged"),
                        Some(_) => return Ok("configured"),
                    }
                }
                Err(err) if err.code() == Some(409) && !is_field_conflict(&err) => {
                    current = self.read_again(planned, manner).await?;
                }
                // Deleted since it was read.
                Err(err) if err.code() == Some(404) && current.is_some() => {
                    current = self.read_again(planned, manner).await?;
                }
                Err(source) => return Err(self.about(manifest, source)),
            }
        }
        Err(self.restless(manifest))
    }

    async fn read_again(&self, planned: &Planned, manner: Manner<'_>) -> Result<Option<DynamicObject>, Fault> {
        let current = self.read(&planned.manifest, &planned.api).await?;
        self.applied(&planned.manifest, current.as_ref())?;
        self.belongs(&planned.manifest, current.as_ref(), manner)?;
        Ok(current)
    }

    /// Refuses an object of another apply set: two sets would take it from each other, and one would prune it.
    pub(super) fn belongs(
        &self,
        manifest: &Manifest,
        current: Option<&DynamicObject>,
        manner: Manner<'_>,
    ) -> Result<(), Fault> {
        let Some(current) = current else { return Ok(()) };
        let labels = current.metadata.labels.as_ref();
        let Some(other) = labels.and_then(|labels| labels.get(inventory::LABEL)) else {
            return Ok(());
        };
        // A set is its name and the namespace of its inventory.
        let of = set::of(current);
        if manner.force || (of.is_some() && of.as_ref() == manner.set) {
            return Ok(());
        }
        let place = of.map(|set| format!("{}/", set.namespace)).unwrap_or_default();
        Err(self.refused(
            manifest,
            format!("it belongs to the apply set `{place}{other}`: name that one, or delete the object first"),
        ))
    }

    /// The object as it is sent: with the fence, with its set, and with the version that it was decided on.
    fn body(&self, manifest: &Manifest, current: Option<&DynamicObject>, manner: Manner<'_>) -> Value {
        let mut object = manifest.object.clone();
        object["metadata"]["annotations"][ANNOTATION] = json!(self.fence.to_string());
        if let Some(set) = manner.set {
            object["metadata"]["labels"][inventory::LABEL] = json!(set.name);
            object["metadata"]["annotations"][inventory::PLACE] = json!(set.namespace);
        }
        if let Some(version) = current.and_then(|object| object.metadata.resource_version.as_ref()) {
            object["metadata"]["resourceVersion"] = json!(version);
        }
        object
    }

    /// A first write. An apply would overwrite what a newer run created in between; a create meets a conflict.
    async fn create(&self, planned: &Planned, manner: Manner<'_>) -> Result<DynamicObject, Error> {
        let Planned { manifest, api, .. } = planned;
        let params = PostParams {
            dry_run: false,
            field_manager: Some(MANAGER.to_owned()),
        };
        let create = async {
            let object = serde_json::from_value(self.body(manifest, None, manner)).map_err(kube::Error::SerdeError)?;
            api.create(&params, &object).await
        };
        self.target.ask("create it", REQUEST, create).await
    }

    /// Makes the fields of a create of ours those of an apply of ours. Otherwise they would have two owners, and what a
    /// later manifest leaves out would stay.
    async fn adopt(&self, planned: &Planned, object: &DynamicObject) -> Result<DynamicObject, Error> {
        let metadata = &object.metadata;
        let mut fields = metadata.managed_fields.clone().unwrap_or_default();
        let is_applied = fields.iter().any(|entry| is_ours(entry, "Apply"));
        if is_applied {
            fields.retain(|entry| !is_ours(entry, "Update"));
        }
        for entry in &mut fields {
            if is_ours(entry, "Update") {
                entry.operation = Some("Apply".to_owned());
            }
        }
        let body = json!({"metadata": {"resourceVersion": metadata.resource_version, "managedFields": fields}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&body));
        let request = planned.api.patch(&planned.manifest.name, &params, &patch);
        self.target.ask("own it by apply", REQUEST, request).await
    }

    /// A server-side apply, or its dry run.
    pub(super) async fn write(
        &self,
        manifest: &Manifest,
        api: &Api<DynamicObject>,
        current: Option<&DynamicObject>,
        manner: Manner<'_>,
        dry_run: bool,
    ) -> Result<DynamicObject, Error> {
        // Before `adopt`, our own create would be a conflict; a dry run takes nothing over.
        let force = manner.force || (dry_run && current.is_some_and(created_by_us));
        let params = PatchParams {
            dry_run,
            force,
            ..PatchParams::apply(MANAGER)
        };
        let patch = Patch::Apply(self.body(manifest, current, manner));
        self.target
            .ask("apply it", REQUEST, api.patch(&manifest.name, &params, &patch))
            .await
    }
}

/// Does the object carry fields of a create of ours that no apply owns yet?
pub(super) fn created_by_us(object: &DynamicObject) -> bool {
    let entries = object.metadata.managed_fields.iter().flatten();
    entries.into_iter().any(|entry| is_ours(entry, "Update"))
}

/// Did an apply of ours write it, or a create that was to become one?
pub(super) fn is_written_by_us(object: &DynamicObject) -> bool {
    let entries = object.metadata.managed_fields.iter().flatten();
    entries
        .into_iter()
        .any(|entry| is_ours(entry, "Update") || is_ours(entry, "Apply"))
}

fn is_ours(entry: &ManagedFieldsEntry, operation: &str) -> bool {
    entry.manager.as_deref() == Some(MANAGER)
        && entry.operation.as_deref() == Some(operation)
        && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

/// Are two versions of an object the same but for what every write changes?
pub(super) fn same(before: Option<&DynamicObject>, after: Option<&DynamicObject>) -> bool {
    essence(before) == essence(after)
}

/// An object without what every write changes.
pub(super) fn essence(object: Option<&DynamicObject>) -> Option<Value> {
    let mut object = object.cloned()?;
    object.metadata.managed_fields = None;
    object.metadata.resource_version = None;
    object.metadata.generation = None;
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove(ANNOTATION);
    }
    object.metadata.annotations = object
        .metadata
        .annotations
        .filter(|annotations| !annotations.is_empty());
    let mut object = serde_json::to_value(object).ok()?;
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
    Some(object)
}
