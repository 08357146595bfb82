//! An apply set at one cluster: its inventory there, and removing what left it.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, DynamicObject, Preconditions, PropagationPolicy};
use serde::Serialize;
use umbel_clusters::Error;

use super::inventory::{self, Inventory, LABEL, MAX_MEMBERS, Member};
use super::manifest::{self, Manifest};
use super::rules::Allow;
use super::site::{Fault, REQUEST, STEPS, Site, get, if_there, is_absent};
use super::writer::{MANAGER, is_written_by_us};

/// Which set, and where its inventory is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetRef {
    pub(super) name: String,
    pub(super) namespace: String,
}

/// An object that was to be removed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Removed {
    #[serde(flatten)]
    pub(super) member: Member,
    pub(super) action: &'static str,
}

/// The apply set that an object says it belongs to.
pub(super) fn of(object: &DynamicObject) -> Option<SetRef> {
    let name = object.metadata.labels.as_ref()?.get(LABEL)?.clone();
    let namespace = object.metadata.annotations.as_ref()?.get(inventory::PLACE)?.clone();
    inventory::name(&name)?;
    Some(SetRef { name, namespace })
}

impl SetRef {
    pub(super) fn title(&self) -> String {
        format!("apply set {}/{}", self.namespace, self.name)
    }

    fn api(&self, site: &Site<'_>) -> Api<ConfigMap> {
        Api::namespaced(site.target.client(), &self.namespace)
    }

    /// Reads the inventory; refuses one of a newer run.
    pub(super) async fn read(&self, site: &Site<'_>) -> Result<Inventory, Fault> {
        let name = format!("{}{}", inventory::PREFIX, self.name);
        let read = site
            .target
            .ask("read the inventory", REQUEST, get(&self.api(site), &name))
            .await;
        let read = if_there(read, &name).map_err(|source| site.about_other(&self.title(), source))?;
        let Some(map) = read else {
            return Ok(Inventory::default());
        };
        let inventory = Inventory::parse(&map)
            .ok_or_else(|| site.refused(&self.title(), format!("ConfigMap {name} is no inventory of ours")))?;
        let stored = inventory.fence.map(|fence| fence.to_string());
        site.held(&self.title(), super::fence::ANNOTATION, stored.as_deref())?;
        Ok(inventory)
    }

    /// Writes the inventory in the place of the one that was read.
    pub(super) async fn write(
        &self,
        site: &Site<'_>,
        had: &Inventory,
        is_open: bool,
        members: &[Member],
    ) -> Result<Inventory, Fault> {
        if members.len() > MAX_MEMBERS {
            let why = format!("it would have {} objects, more than {MAX_MEMBERS}", members.len());
            return Err(site.refused(&self.title(), why));
        }
        site.ctx.checkpoint().await?;
        let request = async {
            let map = inventory::write(
                &self.name,
                &self.namespace,
                had.version.as_deref(),
                site.fence,
                is_open,
                members,
            )
            .map_err(kube::Error::SerdeError)?;
            let params = kube::api::PostParams {
                dry_run: false,
                field_manager: Some(MANAGER.to_owned()),
            };
            if had.version.is_some() {
                let name = map.metadata.name.clone().unwrap_or_default();
                self.api(site).replace(&name, &params, &map).await
            } else {
                self.api(site).create(&params, &map).await
            }
        };
        match site.target.ask("write the inventory", REQUEST, request).await {
            Ok(map) => Inventory::parse(&map).ok_or_else(|| site.restless(&self.title())),
            // Another run was faster. If it is newer, say so; else this one begins anew.
            Err(err) if err.code() == Some(409) => {
                self.read(site).await?;
                Err(site.restless(&self.title()))
            }
            Err(source) => Err(site.about_other(&self.title(), source)),
        }
    }

    /// May all of these be removed by this pool?
    pub(super) fn admit(&self, site: &Site<'_>, members: &[Member], allow: Allow<'_>) -> Result<(), Fault> {
        for member in members {
            manifest_of(member, allow).map_err(|why| Fault::NotAllowed {
                cluster: site.cluster(),
                object: self.title(),
                why,
            })?;
        }
        Ok(())
    }

    /// Removes a member that left, if it is still ours.
    pub(super) async fn remove(
        &self,
        site: &Site<'_>,
        member: &Member,
        allow: Allow<'_>,
    ) -> Result<&'static str, Fault> {
        let mut manifest = manifest_of(member, allow).map_err(|why| Fault::NotAllowed {
            cluster: site.cluster(),
            object: self.title(),
            why,
        })?;
        let api = match site.find(&mut manifest, allow).await {
            Ok(api) => api,
            // Its definition went, and took it along.
            Err(Fault::NoKind { .. }) => return Ok("absent"),
            Err(fault) => return Err(fault),
        };
        let is_in_set = |object: &DynamicObject| of(object).as_ref() == Some(self) && is_written_by_us(object);
        let admit = |object: &DynamicObject| {
            if !is_in_set(object) {
                return Ok(Some("kept, it is no longer ours"));
            }
            site.applied(&manifest, Some(object)).map(|_| None)
        };
        remove(site, &manifest, &api, &PropagationPolicy::Background, admit).await
    }
}

fn manifest_of(member: &Member, allow: Allow<'_>) -> Result<Manifest, String> {
    let Member {
        api_version,
        kind,
        namespace,
        name,
    } = member;
    let namespace = (!namespace.is_empty()).then_some(namespace.as_str());
    manifest::reference(api_version, kind, namespace, name, allow).map_err(|why| why.to_string())
}

/// Removes an object as `admit` saw it, which refuses it, or says why it is kept.
pub(super) async fn remove(
    site: &Site<'_>,
    manifest: &Manifest,
    api: &Api<DynamicObject>,
    propagation: &PropagationPolicy,
    admit: impl Fn(&DynamicObject) -> Result<Option<&'static str>, Fault>,
) -> Result<&'static str, Fault> {
    for _ in 0..STEPS {
        let Some(object) = site.read(manifest, api).await? else {
            return Ok("absent");
        };
        if let Some(kept) = admit(&object)? {
            return Ok(kept);
        }
        site.ctx.checkpoint().await?;
        match delete(site, manifest, api, &object, propagation.clone()).await {
            Ok(()) => return Ok("deleted"),
            Err(err) if is_absent(&err, &manifest.name) => return Ok("absent"),
            Err(err) if err.code() == Some(409) => {}
            Err(source) => return Err(site.about(manifest, source)),
        }
    }
    Err(site.restless(manifest))
}

/// Deletes exactly the object that was read.
async fn delete(
    site: &Site<'_>,
    manifest: &Manifest,
    api: &Api<DynamicObject>,
    object: &DynamicObject,
    propagation: PropagationPolicy,
) -> Result<(), Error> {
    let params = DeleteParams {
        propagation_policy: Some(propagation),
        preconditions: Some(Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: object.metadata.resource_version.clone(),
        }),
        ..DeleteParams::default()
    };
    let request = api.delete(&manifest.name, &params);
    site.target.ask("delete it", REQUEST, request).await.map(|_| ())
}
