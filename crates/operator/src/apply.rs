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

/// Whether what was sent is at fault. An applied value that its field cannot hold the API server takes for a fault of its own
/// (500); it would be none the next time either.
pub fn is_at_fault(error: &kube::Error) -> bool {
    const UNREADABLE: [&str; 2] = ["failed to create typed patch object", "failed to convert new object"];
    match code(error) {
        Some(400 | 403 | 422) => true,
        Some(500) => UNREADABLE.iter().any(|start| words(error).starts_with(start)),
        _ => false,
    }
}

/// Whether people should see the API server's words: what was sent is at fault, a right is missing, or somebody who has a
/// say says no, or nothing.
pub fn is_refused(error: &kube::Error) -> bool {
    const UNASKED: &str = "Internal error occurred: failed calling webhook";
    is_at_fault(error) || (code(error) == Some(500) && words(error).starts_with(UNASKED))
}

/// Writes `status` of `object`, if it differs from what the object shows; whether it did.
///
/// The write carries the resourceVersion that it was decided on, so a predecessor's late one meets a conflict.
pub async fn status<K, S>(client: &Client, object: &K, old: Option<&S>, new: &S) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + serde::Serialize,
    S: serde::Serialize + PartialEq,
{
    if old == Some(new) {
        return Ok(false);
    }
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let refusal = match write(&api, object, new).await {
        Err(error) if code(&error) == Some(409) => error,
        written => return written.map(|()| true),
    };
    // Whoever writes the object all the time leaves little time between our read and our write. What we say holds on as long
    // as nobody changed what it is about, or what was said.
    let now = api.get(&object.name_any()).await?;
    let about = |object: &K| {
        let (meta, shown) = (object.meta(), serde_json::to_value(object).unwrap_or_default());
        (meta.uid.clone(), meta.generation, shown["status"].clone())
    };
    if about(&now) == about(object) {
        write(&api, &now, new).await.map(|()| true)
    } else {
        Err(refusal)
    }
}

async fn write<K, S>(api: &Api<K>, object: &K, new: &S) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    S: serde::Serialize,
{
    let body: Value = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any(), "resourceVersion": object.resource_version() },
        "status": new,
    });
    let params = PatchParams::apply(MANAGER).force();
    let written = failpoint::around_of(
        "status",
        &K::kind(&()),
        api.patch_status(&object.name_any(), &params, &Patch::Apply(body)),
    )
    .await;
    written.map(|_| ())
}
