//! One run at one cluster: how kinds are served there, what objects look like, whether a newer run wrote them; and what
//! each failure means to the task.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use umbel_clusters::{Error, Registry, Target};

use super::discovery;
use super::fence::{ANNOTATION, Fence};
use super::manifest::{self, Manifest, Rejected};
use super::rules::Allow;
use super::target;
use super::writer::MANAGER;
use crate::job::{Arguments, Failure, JobContext, Outcome};
use crate::lease::Lost;

/// One request. The API server's own limit is a minute; a healthy one answers in a tenth of a second.
pub(super) const REQUEST: Duration = Duration::from_secs(15);
/// Requests for one object: a create takes three, and each time that it changes between our read and our write one more.
pub(super) const STEPS: usize = 8;
/// Conflicts that a failure lists.
const LISTED: usize = 20;

/// Why a cluster's part ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Target(#[from] Error),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("cluster `{cluster}`: {object}: {source}")]
    Object {
        cluster: String,
        object: String,
        source: Error,
    },
    #[error("cluster `{cluster}`: fields of other managers: {}", listed(.conflicts))]
    Conflicts { cluster: String, conflicts: Vec<String> },
    #[error("cluster `{cluster}`: {object}: the cluster has no kind {kind}")]
    NoKind {
        cluster: String,
        object: String,
        kind: String,
    },
    #[error(
        "cluster `{cluster}`: {object}: {kind} is cluster-scoped there, and cluster-scoped kinds are not allowed by this pool \
         unless it names them (spec.jobs.{job}.clusterKinds)"
    )]
    NotNamespaced {
        cluster: String,
        object: String,
        kind: String,
        job: &'static str,
    },
    /// A rule that could be asked only once the cluster had said what the kind is.
    #[error("cluster `{cluster}`: {object}: {why}")]
    NotAllowed {
        cluster: String,
        object: String,
        why: String,
    },
    #[error("cluster `{cluster}`: {object}: {stored} wrote it, which is newer than this run ({ours})")]
    Newer {
        cluster: String,
        object: String,
        stored: String,
        ours: Fence,
    },
    #[error(
        "cluster `{cluster}`: {object}: its annotation {annotation} is `{stored}`, which is no fence; remove it to go on"
    )]
    NoFence {
        cluster: String,
        object: String,
        annotation: &'static str,
        stored: String,
    },
    #[error("cluster `{cluster}`: {object}: it kept changing while it was written")]
    Restless { cluster: String, object: String },
    #[error("cluster `{cluster}`: {object}: {why}")]
    Refused {
        cluster: String,
        object: String,
        why: String,
    },
    #[error("cluster `{cluster}`: {object}: it does not exist")]
    Absent { cluster: String, object: String },
    #[error("cluster `{cluster}`: {object}: {why}")]
    Late {
        cluster: String,
        object: String,
        why: String,
    },
}

fn listed(conflicts: &[String]) -> String {
    let mut text = conflicts
        .iter()
        .take(LISTED)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("; ");
    if conflicts.len() > LISTED {
        text = format!("{text}; and {} more", conflicts.len() - LISTED);
    }
    text
}

impl Fault {
    pub(super) fn failure(&self) -> Failure {
        match self {
            Fault::Target(source) | Fault::Object { source, .. } => {
                // A conflict with another field manager stays until a person decides.
                let is_retryable = !source.is_permanent() && !is_field_conflict(source);
                Failure {
                    is_retryable,
                    ..Failure::permanent(&target::failure(source).exc_type, self.to_string())
                }
            }
            Fault::Lost(_) | Fault::Restless { .. } => Failure::transient(self.to_string()),
            Fault::Late { .. } => Failure {
                is_retryable: true,
                ..Failure::permanent("TimeoutError", self.to_string())
            },
            Fault::NoKind { .. } | Fault::Absent { .. } => Failure::permanent("LookupError", self.to_string()),
            Fault::NotNamespaced { .. } | Fault::NotAllowed { .. } => {
                Failure::permanent("PermissionError", self.to_string())
            }
            Fault::Newer { .. } | Fault::NoFence { .. } | Fault::Conflicts { .. } | Fault::Refused { .. } => {
                Failure::permanent("RuntimeError", self.to_string())
            }
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Fault::Target(source) | Fault::Object { source, .. } => source.retry_after(),
            _ => None,
        }
    }

    /// How a run at one cluster ends with it.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Fault::Lost(lost) => return (*lost).into(),
            Fault::Target(source) | Fault::Object { source, .. } => {
                if let Some(parked) = target::parked(source) {
                    return parked;
                }
            }
            _ => {}
        }
        let why = self.failure();
        if why.is_retryable {
            Outcome::Retry {
                after: self.retry_after(),
                why,
            }
        } else {
            Outcome::Failed(why)
        }
    }
}

/// Is the 409 about fields of another manager, rather than about a version?
pub(super) fn is_field_conflict(err: &Error) -> bool {
    !conflicts(err).is_empty()
}

/// The owner and the field of each conflict with others: `conflict with "kubectl" using v1: .data.a`.
pub(super) fn conflicts(err: &Error) -> Vec<String> {
    let details = err.status().and_then(|status| status.details.as_ref());
    let causes = details.map(|details| details.causes.as_slice()).unwrap_or_default();
    let ours = format!("conflict with \"{MANAGER}\" ");
    causes
        .iter()
        .filter(|cause| cause.reason == "FieldManagerConflict")
        // What another run of ours has just created is not its own by apply yet.
        .filter(|cause| !cause.message.starts_with(&ours))
        .map(|cause| format!("{}: {}", cause.message, cause.field))
        .collect()
}

/// The failure of arguments that are refused before any cluster is asked.
pub(super) fn rejected(rejected: &Rejected) -> Failure {
    let exc_type = match rejected {
        Rejected::NotAllowed { .. } => "PermissionError",
        Rejected::TooLarge { .. }
        | Rejected::TooMany { .. }
        | Rejected::NotYaml { .. }
        | Rejected::Shape { .. }
        | Rejected::Document { .. } => "ValueError",
    };
    Failure::permanent(exc_type, rejected.to_string())
}

/// A thing at a cluster that a message names: `apiVersion`, `kind`, `namespace`, `name`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Reference {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl Reference {
    /// Within what the pool allows.
    pub(super) fn read(&self, allow: Allow<'_>) -> Result<Manifest, Failure> {
        let Reference {
            api_version,
            kind,
            namespace,
            name,
        } = self;
        manifest::reference(api_version, kind, namespace.as_deref(), name, allow).map_err(|why| rejected(&why))
    }
}

/// The keyword arguments of a job at one cluster, and the cluster's name.
pub(super) fn one_cluster<T: serde::de::DeserializeOwned>(
    task: &str,
    ctx: &JobContext,
    arguments: &Arguments,
    cluster: impl FnOnce(&mut T) -> Option<String>,
) -> Result<(T, String), Failure> {
    let mut keywords: T = target::keywords(task, arguments)?;
    let named = cluster(&mut keywords);
    let name = target::cluster(ctx, named)?
        .ok_or_else(|| Failure::type_error(format!("{task} needs a cluster: keyword `cluster` or a fan-out")))?;
    Ok((keywords, name))
}

/// The `apiVersion` of jobs for what has pods.
pub(super) fn apps() -> String {
    "apps/v1".to_owned()
}

/// The fence of this delivery.
pub(super) fn fence(ctx: &JobContext) -> Result<Fence, Failure> {
    Fence::of(ctx.order, &ctx.token())
        .ok_or_else(|| Failure::permanent("RuntimeError", "the delivery carries no fencing token"))
}

/// How a cluster serves a kind.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) resource: ApiResource,
    pub(super) is_namespaced: bool,
}

/// A kind's group, version and name.
pub(super) type Gvk = (String, String, String);

/// One run at one cluster.
pub(super) struct Site<'a> {
    pub(super) ctx: &'a JobContext,
    pub(super) target: Target,
    pub(super) fence: Fence,
    kinds: tokio::sync::Mutex<BTreeMap<(Gvk, Version), Option<Served>>>,
}

/// In which version an object is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    /// That of the manifest: what is written is written in it.
    Exact,
    /// Another one where that is not served any more: it is the same object in all.
    Any,
}

impl<'a> Site<'a> {
    /// Takes a turn at the cluster.
    pub(super) async fn enter(
        clusters: &Registry,
        cluster: &str,
        ctx: &'a JobContext,
        fence: Fence,
    ) -> Result<Site<'a>, Error> {
        Ok(Site {
            ctx,
            target: clusters.target(cluster).await?,
            fence,
            kinds: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn cluster(&self) -> String {
        self.target.name().to_owned()
    }

    /// What the API server said of an object that was sent or asked for.
    pub(super) fn about(&self, manifest: &Manifest, source: Error) -> Fault {
        // One that cannot read a Secret quotes it.
        let source = if manifest.kind == "Secret" {
            source.without_words()
        } else {
            source
        };
        self.about_other(manifest, source)
    }

    /// What it said of something of which nothing is a secret.
    pub(super) fn about_other(&self, object: &impl std::fmt::Display, source: Error) -> Fault {
        Fault::Object {
            cluster: self.cluster(),
            object: object.to_string(),
            source,
        }
    }

    pub(super) fn refused(&self, object: &impl std::fmt::Display, why: impl Into<String>) -> Fault {
        Fault::Refused {
            cluster: self.cluster(),
            object: object.to_string(),
            why: why.into(),
        }
    }

    pub(super) fn restless(&self, object: &impl std::fmt::Display) -> Fault {
        Fault::Restless {
            cluster: self.cluster(),
            object: object.to_string(),
        }
    }

    /// How the cluster serves a kind; `None` if it does not. Asked once a run.
    async fn served(&self, gvk: &Gvk, version: Version) -> Result<Option<Served>, Fault> {
        let mut kinds = self.kinds.lock().await;
        let key = (gvk.clone(), version);
        if let Some(served) = kinds.get(&key) {
            return Ok(served.clone());
        }
        let served = match version {
            Version::Exact => look_up(&self.target, gvk).await?,
            Version::Any => look_up_any(&self.target, gvk).await?,
        };
        kinds.insert(key, served.clone());
        Ok(served)
    }

    /// Asks anew for kinds that were not there.
    pub(super) async fn forget_missing_kinds(&self) {
        self.kinds.lock().await.retain(|_, served| served.is_some());
    }

    /// Where the object is, with its namespace as its kind wants it; refuses what only the cluster can tell to be
    /// outside of the rules.
    pub(super) async fn place(&self, manifest: &mut Manifest, allow: Allow<'_>) -> Result<Api<DynamicObject>, Fault> {
        self.place_in(manifest, allow, Version::Exact).await
    }

    /// The same for an object that is not to be written: where the version of the manifest is not served any more, in
    /// another one.
    pub(super) async fn find(&self, manifest: &mut Manifest, allow: Allow<'_>) -> Result<Api<DynamicObject>, Fault> {
        self.place_in(manifest, allow, Version::Any).await
    }

    async fn place_in(
        &self,
        manifest: &mut Manifest,
        allow: Allow<'_>,
        version: Version,
    ) -> Result<Api<DynamicObject>, Fault> {
        let gvk = gvk(manifest);
        let kind = || format!("{} {}", manifest.api_version(), manifest.kind);
        let Some(served) = self.served(&gvk, version).await? else {
            return Err(Fault::NoKind {
                cluster: self.cluster(),
                object: manifest.to_string(),
                kind: kind(),
            });
        };
        if !served.is_namespaced {
            if !allow.is_cluster_kind(&manifest.group, &manifest.kind) {
                return Err(Fault::NotNamespaced {
                    cluster: self.cluster(),
                    object: manifest.to_string(),
                    kind: kind(),
                    job: allow.job,
                });
            }
            manifest.without_namespace();
            return Ok(Api::all_with(self.target.client(), &served.resource));
        }
        let admitted = if manifest.namespace.is_empty() {
            Err("it has no namespace, and its kind needs one".to_owned())
        } else {
            allow.namespace(&manifest.namespace)
        };
        admitted.map_err(|why| Fault::NotAllowed {
            cluster: self.cluster(),
            object: manifest.to_string(),
            why,
        })?;
        Ok(Api::namespaced_with(
            self.target.client(),
            &manifest.namespace,
            &served.resource,
        ))
    }

    /// Reads the object.
    pub(super) async fn read(
        &self,
        manifest: &Manifest,
        api: &Api<DynamicObject>,
    ) -> Result<Option<DynamicObject>, Fault> {
        let read = self.target.ask("read it", REQUEST, get(api, &manifest.name)).await;
        if_there(read, &manifest.name).map_err(|source| self.about(manifest, source))
    }

    /// The fence in this annotation; refuses an object on which it is a newer run's.
    pub(super) fn held(
        &self,
        manifest: &impl std::fmt::Display,
        annotation: &'static str,
        stored: Option<&str>,
    ) -> Result<Option<Fence>, Fault> {
        let Some(stored) = stored else { return Ok(None) };
        let (cluster, object) = (self.cluster(), manifest.to_string());
        match Fence::parse(stored) {
            Some(newer) if newer > self.fence => Err(Fault::Newer {
                cluster,
                object,
                stored: stored.to_owned(),
                ours: self.fence,
            }),
            Some(fence) => Ok(Some(fence)),
            None => Err(Fault::NoFence {
                cluster,
                object,
                annotation,
                stored: stored.chars().take(64).collect(),
            }),
        }
    }

    /// Changes an object by a merge patch that carries the fence of this job in an annotation of its own. `change` gets
    /// the object and the fence on it, and returns `None` where there is nothing to do. Answers the object, and whether it
    /// was written.
    pub(super) async fn change(
        &self,
        manifest: &Manifest,
        api: &Api<DynamicObject>,
        annotation: &'static str,
        manager: &str,
        change: impl Fn(&DynamicObject, Option<Fence>) -> Option<Value>,
    ) -> Result<(DynamicObject, bool), Fault> {
        let params = PatchParams {
            field_manager: Some(manager.to_owned()),
            ..PatchParams::default()
        };
        for _ in 0..STEPS {
            let Some(object) = self.read(manifest, api).await? else {
                return Err(self.absent(manifest));
            };
            let stored = self.held(manifest, annotation, self::annotation(&object, annotation))?;
            let Some(mut body) = change(&object, stored) else {
                return Ok((object, false));
            };
            body["metadata"]["annotations"][annotation] = json!(self.fence.to_string());
            body["metadata"]["resourceVersion"] = json!(object.metadata.resource_version);
            self.ctx.checkpoint().await?;
            let patch = Patch::Merge(&body);
            let request = api.patch(&manifest.name, &params, &patch);
            match self.target.ask("change it", REQUEST, request).await {
                Ok(written) => return Ok((written, true)),
                Err(err) if matches!(err.code(), Some(404 | 409)) => {}
                Err(source) => return Err(self.about(manifest, source)),
            }
        }
        Err(self.restless(manifest))
    }

    pub(super) fn absent(&self, manifest: &Manifest) -> Fault {
        Fault::Absent {
            cluster: self.cluster(),
            object: manifest.to_string(),
        }
    }

    /// As [`Site::held`], of what an apply wrote.
    pub(super) fn applied(&self, manifest: &Manifest, object: Option<&DynamicObject>) -> Result<Option<Fence>, Fault> {
        self.held(
            manifest,
            ANNOTATION,
            object.and_then(|object| annotation(object, ANNOTATION)),
        )
    }
}

pub(super) fn annotation<'o>(object: &'o DynamicObject, name: &str) -> Option<&'o str> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

pub(super) fn gvk(manifest: &Manifest) -> Gvk {
    let Manifest {
        group, version, kind, ..
    } = manifest;
    (group.clone(), version.clone(), kind.clone())
}

/// Did an API server say that the object of this name is not there? A 404 without these words is somebody else's, or of a
/// path that is served no more, and says nothing of the object.
pub(super) fn is_absent(err: &Error, name: &str) -> bool {
    err.status().is_some_and(|status| {
        let details = status.details.as_ref();
        status.code == 404 && status.reason == "NotFound" && details.is_some_and(|details| details.name == name)
    })
}

/// Reads the object of this name. Something else that is sent in its place is no object of somebody else.
pub(super) async fn get<K>(api: &Api<K>, name: &str) -> Result<K, kube::Error>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let found = api.get(name).await?;
    if found.meta().name.as_deref() == Some(name) {
        return Ok(found);
    }
    let text = "the answer is no object of this name";
    Err(kube::Error::SerdeError(serde::de::Error::custom(text)))
}

/// What was read of this name; `None` if it is not there.
pub(super) fn if_there<T>(read: Result<T, Error>, name: &str) -> Result<Option<T>, Error> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(err) if is_absent(&err, name) => Ok(None),
        Err(err) => Err(err),
    }
}

/// How a cluster serves a kind in this version; `None` if it does not.
pub(super) async fn look_up(target: &Target, gvk: &Gvk) -> Result<Option<Served>, Error> {
    let (group, version, _) = gvk;
    let err = match in_version(target, gvk).await {
        Err(err) if err.code() == Some(404) => err,
        answer => return answer,
    };
    // Anybody says 404. An API server also says what it has.
    if discovery::versions(target, group).await?.contains(version) {
        return Err(err);
    }
    Ok(None)
}

/// How a cluster serves a kind in this version or, where it does not, in another one; `None` if in none.
async fn look_up_any(target: &Target, gvk: &Gvk) -> Result<Option<Served>, Error> {
    let exact = look_up(target, gvk).await?;
    if exact.is_some() {
        return Ok(exact);
    }
    let (group, version, kind) = gvk;
    for other in discovery::versions(target, group).await? {
        if other == *version {
            continue;
        }
        let found = in_version(target, &(group.clone(), other, kind.clone())).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

async fn in_version(target: &Target, (group, version, kind): &Gvk) -> Result<Option<Served>, Error> {
    let resources = discovery::resources(target, group, version).await?;
    let found = resources
        .into_iter()
        .find(|one| one.kind == *kind && !one.name.contains('/'));
    Ok(found.map(|one| Served {
        resource: ApiResource {
            group: group.clone(),
            version: version.clone(),
            api_version: discovery::api_version(group, version),
            kind: one.kind,
            plural: one.name,
        },
        is_namespaced: one.namespaced,
    }))
}
