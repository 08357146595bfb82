//! Writes to Kubernetes that several controllers share.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use umbel_api::names::MANAGER;

use crate::failpoint;

/// The API server's own words where it gave some, otherwise the whole chain.
pub fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => umbel_telemetry::chain(other).to_string(),
    }
}

/// The HTTP code of a refusal.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Writes `status` of `object`, if it differs from what the object shows; whether it did.
///
/// The write carries the resourceVersion that it was decided on, so a predecessor's late one meets a conflict.
pub async fn status<K, S>(client: &Client, object: &K, old: Option<&S>, new: &S) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    S: serde::Serialize + PartialEq,
{
    if old == Some(new) {
        return Ok(false);
    }
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let body: Value = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any(), "resourceVersion": object.resource_version() },
        "status": new,
    });
    let params = PatchParams::apply(MANAGER).force();
    failpoint::reach_of("before-status", &K::kind(&()));
    let written = api.patch_status(&object.name_any(), &params, &Patch::Apply(body)).await;
    failpoint::reach_of("after-status", &K::kind(&()));
    written.map(|_| true)
}
