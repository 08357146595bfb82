//! A pool's present Deployment (without its size), ServiceAccount, Role and binding: applied only when something differs.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use umbel_api::names::{ANNOTATION_FROZEN, LABEL_POOL, LABEL_TERM, MANAGER, MANAGER_SCALE};
use umbel_plan::deployment::{Revision, contains};
use umbel_plan::pool::Pool;
use umbel_plan::{access, deployment, shield};

use crate::apply::{code, is_at_fault, is_refused, words};
use crate::context::Context;
use crate::failpoint;
use crate::observe::Fleet;
use crate::owners::holds;

/// What the API server refused is sent again after this, should the cause be elsewhere (a quota, a webhook).
pub const REFUSAL_LASTS: Duration = Duration::from_secs(20);

/// ServiceAccounts, roles and budgets are not watched: they are looked at again after this, should somebody have changed one.
const ACCESS_LASTS: Duration = Duration::from_secs(240);

/// What was applied last, so that what the server writes differently (`1000m`, `1`) is not applied for ever.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    deployment: Option<(u64, u64)>,
    adopted: Option<(u64, bool)>,
    access: Option<(u64, Instant)>,
    access_refused: Option<Refused>,
    refused: Option<Refused>,
}

/// What the API server refused: it is not sent again on every wake.
#[derive(Clone, Debug)]
struct Refused {
    wanted: u64,
    at: Instant,
    reason: &'static str,
    why: String,
}

impl Refused {
    /// The answer to what is wanted, while a refusal of just that stands.
    fn standing(refused: Option<&Self>, wanted: u64) -> Option<Outcome> {
        let one = refused.filter(|one| one.wanted == wanted && one.at.elapsed() < REFUSAL_LASTS)?;
        Some(Outcome::Refused {
            reason: one.reason,
            why: one.why.clone(),
        })
    }

    fn of(outcome: &Outcome, wanted: u64) -> Option<Self> {
        match outcome {
            Outcome::Good { .. } => None,
            Outcome::Refused { reason, why } => Some(Self {
                wanted,
                at: Instant::now(),
                reason,
                why: why.clone(),
            }),
        }
    }
}

/// What became of the children.
#[derive(Debug)]
pub enum Outcome {
    /// They are as they shall be; whether anything was written.
    Good {
        /// Something was written.
        wrote: bool,
    },
    /// The API server refused one, in its own words; or an object of that name is not ours.
    Refused {
        /// A condition's reason.
        reason: &'static str,
        /// Kind, name and cause.
        why: String,
    },
}

impl Outcome {
    /// All refusals as one, under the reason of the first.
    fn of_all(outcomes: Vec<Self>) -> Self {
        let (mut wrote, mut refused) = (false, None::<(&'static str, String)>);
        for outcome in outcomes {
            match (outcome, &mut refused) {
                (Self::Good { wrote: one }, _) => wrote |= one,
                (Self::Refused { why, .. }, Some((_, said))) => *said = format!("{said}; {why}"),
                (Self::Refused { reason, why }, None) => refused = Some((reason, why)),
            }
        }
        match refused {
            Some((reason, why)) => Self::Refused { reason, why },
            None => Self::Good { wrote },
        }
    }
}

/// A child could not be read or written for a reason that is not the pool's.
#[derive(Debug, thiserror::Error)]
#[error("apply {kind} {name}")]
pub struct Error {
    kind: String,
    name: String,
    #[source]
    source: kube::Error,
}

impl Applied {
    /// The revision that the pool's template is now: a new one, or that of a Deployment which was made when a pool had but
    /// one, if its pods are what the template asks for, all of them.
    pub async fn revision(&mut self, context: &Context, pool: &Pool, stored: &[Fleet]) -> Result<Revision, Error> {
        let present = Revision::present(pool);
        let mut first = None;
        for one in stored {
            if one.name() == present.deployment {
                return Ok(present);
            }
            // One that rolls has pods of two templates.
            if !one.is_rolling() && !one.is_paused() {
                first = first.or_else(|| Some((&one.deployment, present.adopting(&one.deployment)?)));
            }
        }
        let Some((stored, adopting)) = first else {
            return Ok(present);
        };
        Ok(if self.adopts(context, pool, stored, &adopting).await? {
            adopting
        } else {
            present
        })
    }

    /// Whether applying this revision would leave the Deployment's template as it is. The server is asked, because only it
    /// knows what it would add, and what would go.
    async fn adopts(
        &mut self,
        context: &Context,
        pool: &Pool,
        stored: &Deployment,
        revision: &Revision,
    ) -> Result<bool, Error> {
        let wanted = deployment::plan(pool, revision);
        let template = |one: &Deployment| {
            let shown = serde_json::to_value(one).unwrap_or_default();
            shown.pointer("/spec/template").cloned().unwrap_or_default()
        };
        let before = template(stored);
        let asked = hash(&json!([wanted, before]));
        if let Some((known, answer)) = self.adopted
            && known == asked
        {
            return Ok(answer);
        }
        let api: Api<Deployment> = Api::namespaced(context.client.clone(), &pool.namespace);
        let mut params = PatchParams::apply(MANAGER).force();
        params.dry_run = true;
        let name = stored.name_any();
        let answer = match api.patch(&name, &params, &Patch::Apply(&wanted)).await {
            Ok(after) => template(&after) == before,
            Err(error) if is_at_fault(&error) => false,
            Err(source) => return Err(failed::<Deployment>(&name, source)),
        };
        self.adopted = Some((asked, answer));
        Ok(answer)
    }

    /// Brings the children to what the pool asks for. `stored` is the Deployment of this revision as it was seen.
    pub async fn bring(
        &mut self,
        context: &Context,
        pool: &Pool,
        revision: &Revision,
        stored: Option<&Deployment>,
    ) -> Result<Outcome, Error> {
        let (access, budgets) = (access::plan(pool), shield::budgets(pool));
        let wanted = hash(&json!([
            access.service_account,
            access.grant.as_ref().map(|grant| [&grant.role, &grant.binding]),
            budgets,
        ]));
        let mut wrote = false;
        let lasts = |(known, at): (u64, Instant)| known == wanted && at.elapsed() < ACCESS_LASTS;
        if !self.access.is_some_and(lasts) {
            if let Some(refused) = Refused::standing(self.access_refused.as_ref(), wanted) {
                return Ok(refused);
            }
            let name = access::name(&pool.name);
            let mut outcomes = vec![bring::<ServiceAccount>(context, pool, &access.service_account).await?];
            if let Some(grant) = &access.grant {
                outcomes.push(bring::<Role>(context, pool, &grant.role).await?);
                outcomes.push(bring::<RoleBinding>(context, pool, &grant.binding).await?);
            } else {
                remove::<RoleBinding>(context, pool, &name).await?;
                remove::<Role>(context, pool, &name).await?;
            }
            for (name, budget) in &budgets {
                match budget {
                    Some(budget) => outcomes.push(bring::<PodDisruptionBudget>(context, pool, budget).await?),
                    None => remove::<PodDisruptionBudget>(context, pool, name).await?,
                }
            }
            let outcome = Outcome::of_all(outcomes);
            self.access_refused = Refused::of(&outcome, wanted);
            match outcome {
                Outcome::Good { wrote: one } => wrote |= one,
                refused @ Outcome::Refused { .. } => return Ok(refused),
            }
            self.access = Some((wanted, Instant::now()));
        }
        let wanted = deployment::plan(pool, revision);
        // Of a Deployment that was somebody else's and is ours now nothing is known yet.
        let sent = hash(&json!([wanted, stored.and_then(ResourceExt::uid)]));
        if let Some(refused) = Refused::standing(self.refused.as_ref(), sent) {
            return Ok(refused);
        }
        let outcome = match stored {
            None => self.create(context, pool, &revision.deployment, &wanted).await?,
            Some(stored) => self.update(context, &wanted, stored).await?,
        };
        self.refused = Refused::of(&outcome, sent);
        Ok(match outcome {
            Outcome::Good { wrote: one } => Outcome::Good { wrote: wrote || one },
            refused @ Outcome::Refused { .. } => refused,
        })
    }

    /// A Deployment without a size is made with one pod, and a size that an applier drops goes back to one. So it is made
    /// at size zero by the size's own field manager; later passes take it over without the size, and then the first one
    /// lets go of the rest. It is made, not applied: a late request must not meet the Deployment that a successor has raised.
    async fn create(&mut self, context: &Context, pool: &Pool, name: &str, wanted: &Value) -> Result<Outcome, Error> {
        let api: Api<Deployment> = Api::namespaced(context.client.clone(), &pool.namespace);
        if let Some(found) = api
            .get_opt(name)
            .await
            .map_err(|source| failed::<Deployment>(name, source))?
        {
            if !is_ours(&found, pool) {
                return Ok(taken::<Deployment>(name));
            }
            // Without its label no watch shows it.
            if found.labels().get(LABEL_POOL) != Some(&pool.name) {
                return self.update(context, wanted, &found).await;
            }
            // The watch is behind: the next pass sees it.
            return Ok(Outcome::Good { wrote: true });
        }
        // What is posted may hold fields that the server does not know and drops; what is applied may not.
        let mut asked = PatchParams::apply(MANAGER).force();
        asked.dry_run = true;
        if let Err(source) = api.patch(name, &asked, &Patch::Apply(wanted)).await {
            return refusal::<Deployment>(name, source);
        }
        let mut sized = wanted.clone();
        sized["spec"]["replicas"] = json!(0);
        let sized: DynamicObject = serde_json::from_value(sized)
            .map_err(|source| failed::<Deployment>(name, kube::Error::SerdeError(source)))?;
        let kind = ApiResource::erase::<Deployment>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &pool.namespace, &kind);
        let params = PostParams {
            field_manager: Some(MANAGER_SCALE.to_owned()),
            ..PostParams::default()
        };
        if context.leader.term().is_none() {
            return Ok(Outcome::Good { wrote: true });
        }
        let made = failpoint::around("create", api.create(&params, &sized)).await;
        context.metrics.wrote("create", "deployments");
        match made {
            Ok(_) => Ok(Outcome::Good { wrote: true }),
            // Somebody made it in between: the next pass sees it.
            Err(error) if code(&error) == Some(409) => Ok(Outcome::Good { wrote: true }),
            Err(source) => refusal::<Deployment>(name, source),
        }
    }

    async fn update(&mut self, context: &Context, wanted: &Value, stored: &Deployment) -> Result<Outcome, Error> {
        let shown = serde_json::to_value(stored).unwrap_or_default();
        let now = (hash(wanted), hash(&kept(&shown)));
        let is_whole = !holds_template(stored, MANAGER_SCALE);
        if is_whole && (contains(&shown, wanted) || self.deployment == Some(now)) {
            return Ok(Outcome::Good { wrote: false });
        }
        if context.leader.term().is_none() {
            return Ok(Outcome::Good { wrote: true });
        }
        let name = stored.name_any();
        // Somebody must own the template before the size's manager lets go of it.
        if !is_whole && holds_template(stored, MANAGER) {
            let body = json!({ "metadata": {
                "resourceVersion": stored.resource_version(),
                "managedFields": without_template(stored),
            } });
            let api: Api<Deployment> = Api::namespaced(context.client.clone(), &stored.namespace().unwrap_or_default());
            let params = PatchParams {
                field_manager: Some(MANAGER_SCALE.to_owned()),
                ..PatchParams::default()
            };
            context.metrics.wrote("patch", "deployments");
            let written = failpoint::around("release", api.patch(&name, &params, &Patch::Merge(&body))).await;
            return match written {
                Ok(_) => Ok(Outcome::Good { wrote: true }),
                Err(error) if code(&error) == Some(409) => Ok(Outcome::Good { wrote: true }),
                Err(source) => Err(failed::<Deployment>(&name, source)),
            };
        }
        let mut body = wanted.clone();
        body["metadata"]["resourceVersion"] = json!(stored.resource_version());
        let api: Api<Deployment> = Api::namespaced(context.client.clone(), &stored.namespace().unwrap_or_default());
        let written = failpoint::around(
            "apply",
            api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&body)),
        )
        .await;
        context.metrics.wrote("patch", "deployments");
        match written {
            Ok(after) => {
                let shown = serde_json::to_value(&after).unwrap_or_default();
                self.deployment = Some((hash(wanted), hash(&kept(&shown))));
                Ok(Outcome::Good {
                    wrote: after.resource_version() != stored.resource_version(),
                })
            }
            // Somebody wrote in between: the next pass sees it.
            Err(error) if code(&error) == Some(409) => Ok(Outcome::Good { wrote: true }),
            Err(source) => refusal::<Deployment>(&name, source),
        }
    }
}

/// Stops Deployments that were made when a pool had but one, and which are in the middle of a rollout of their own: it would
/// go on beside the present revision, and take pods away that work. Whether it wrote anything.
///
/// Paused, a Deployment replaces no pods. But once its newest ReplicaSet is whole it still removes all others, so its
/// template is changed as well, to one that no ReplicaSet has: a paused Deployment makes none.
pub async fn freeze(context: &Context, present: &Revision, all: &[Fleet]) -> Result<bool, Error> {
    let rolls = |fleet: &&Fleet| {
        let is_of_before = Revision::of(&fleet.deployment).is_of_before();
        fleet.name() != present.deployment && is_of_before && fleet.is_rolling() && !fleet.is_paused()
    };
    let Some(fleet) = all.iter().find(rolls) else {
        return Ok(false);
    };
    if context.leader.term().is_none() {
        return Ok(true);
    }
    let (name, deployment) = (fleet.name(), &fleet.deployment);
    let body = json!({
        "metadata": { "uid": deployment.uid(), "resourceVersion": deployment.resource_version() },
        "spec": {
            "paused": true,
            "template": { "metadata": { "annotations": { ANNOTATION_FROZEN: "true" } } },
        },
    });
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), &deployment.namespace().unwrap_or_default());
    let written = failpoint::around("freeze", api.patch(&name, &params, &Patch::Merge(&body))).await;
    context.metrics.wrote("patch", "deployments");
    match written {
        Ok(_) => tracing::info!(deployment = name, "stopped in the middle of its own rollout"),
        // Somebody wrote in between: the next pass sees it.
        Err(error) if matches!(code(&error), Some(404 | 409)) => {}
        Err(source) => return Err(failed::<Deployment>(&name, source)),
    }
    Ok(true)
}

/// The owners of a Deployment's fields, where the size's field manager keeps nothing but the size. Else what leaves the
/// template would stay in the Deployment. An apply cannot do this: it is another entry than that of the creation.
fn without_template(stored: &Deployment) -> Vec<ManagedFieldsEntry> {
    let entries = stored.metadata.managed_fields.iter().flatten();
    entries
        .filter_map(|entry| {
            let mut entry = entry.clone();
            if entry.manager.as_deref() == Some(MANAGER_SCALE) && holds(&entry, "/f:spec/f:template") {
                if !holds(&entry, "/f:spec/f:replicas") {
                    return None;
                }
                entry.fields_v1 = Some(FieldsV1(json!({ "f:spec": { "f:replicas": {} } })));
            }
            Some(entry)
        })
        .collect()
}

/// Whether this field manager owns a part of the template.
fn holds_template(stored: &Deployment, manager: &str) -> bool {
    let mut entries = stored.metadata.managed_fields.iter().flatten();
    entries.any(|entry| entry.manager.as_deref() == Some(manager) && holds(entry, "/f:spec/f:template"))
}

async fn bring<K>(context: &Context, pool: &Pool, wanted: &Value) -> Result<Outcome, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &pool.namespace);
    let name = wanted
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let found = api.get_opt(name).await.map_err(|source| failed::<K>(name, source))?;
    let mut body = wanted.clone();
    if let Some(found) = &found {
        if !is_ours(found, pool) {
            return Ok(taken::<K>(name));
        }
        if contains(&serde_json::to_value(found).unwrap_or_default(), wanted) {
            return Ok(Outcome::Good { wrote: false });
        }
        body["metadata"]["resourceVersion"] = json!(found.resource_version());
    }
    let written = failpoint::around_of(
        "access",
        &K::kind(&()),
        api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&body)),
    )
    .await;
    context.metrics.wrote("patch", "access");
    match written {
        Ok(_) => Ok(Outcome::Good { wrote: true }),
        Err(source) => refusal::<K>(name, source),
    }
}

/// Deletes our object of this name, if there is one.
async fn remove<K>(context: &Context, pool: &Pool, name: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &pool.namespace);
    let found = api.get_opt(name).await.map_err(|source| failed::<K>(name, source))?;
    let Some(found) = found.filter(|found| is_ours(found, pool)) else {
        return Ok(());
    };
    let preconditions = Preconditions {
        uid: found.uid(),
        resource_version: found.resource_version(),
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    let removed = failpoint::around_of("remove", &K::kind(&()), api.delete(name, &params)).await;
    context.metrics.wrote("delete", "access");
    match removed {
        Ok(_) => Ok(()),
        Err(error) if code(&error) == Some(404) => Ok(()),
        Err(source) => Err(failed::<K>(name, source)),
    }
}

fn is_ours<K: Resource>(object: &K, pool: &Pool) -> bool {
    object
        .owner_references()
        .iter()
        .any(|owner| owner.controller == Some(true) && owner.uid == pool.uid)
}

fn taken<K: Resource<DynamicType = ()>>(name: &str) -> Outcome {
    let why = format!(
        "{} {name} exists and is not this pool's; it is left alone",
        K::kind(&())
    );
    Outcome::Refused {
        reason: "NameTaken",
        why,
    }
}

/// A refusal of what was sent is the pool's fault and is shown; anything else is tried again.
fn refusal<K: Resource<DynamicType = ()>>(name: &str, source: kube::Error) -> Result<Outcome, Error> {
    if is_refused(&source) {
        return Ok(Outcome::Refused {
            reason: "TemplateRefused",
            why: format!("{} {name}: {}", K::kind(&()), words(&source)),
        });
    }
    Err(failed::<K>(name, source))
}

fn failed<K: Resource<DynamicType = ()>>(name: &str, source: kube::Error) -> Error {
    Error {
        kind: K::kind(&()).into_owned(),
        name: name.to_owned(),
        source,
    }
}

/// What a Deployment shows of what is applied to it. Its size and its leader's term are somebody else's to write.
fn kept(shown: &Value) -> Value {
    let mut labels = shown.pointer("/metadata/labels").cloned().unwrap_or_default();
    if let Some(labels) = labels.as_object_mut() {
        labels.remove(LABEL_TERM);
    }
    let mut spec = shown.pointer("/spec").cloned().unwrap_or_default();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("replicas");
    }
    json!([spec, labels, shown.pointer("/metadata/ownerReferences")])
}

fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}
