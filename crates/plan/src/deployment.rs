//! Pool → Deployment, without its size.
//!
//! Each revision of the template has a Deployment of its own, named and selected by a hash of the template. One made by an
//! operator that had a single Deployment for a pool is taken for the revision whose template it has.
//!
//! The template is opaque and stays JSON, so that fields newer than this program survive. What is set in it is
//! listed here and is nothing else: on the worker's container environment, probes and the mount of the broker's
//! Secrets; on the pod their volume, ServiceAccount, token, grace period, labels and a low deletion cost.
//!
//! The size never appears: whoever applies a Deployment with a size would set it back.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use serde::Serialize;
use serde_json::{Map, Value, json};
use umbel_api::Span;
use umbel_api::TaskQueueSpec;
use umbel_api::names::{
    ANNOTATION_DELETION_COST, LABEL_COMPONENT, LABEL_INSTANCE, LABEL_MANAGED_BY, LABEL_NAME, LABEL_PART_OF, LABEL_POOL,
    LABEL_REVISION, WORKER_CONTAINER,
};
use umbel_api::taskqueue::{DeadLetter, KeyLimit, Results, Sentinel, Tls};
use umbel_api::workerpool::{Recycle, Runtime};
use uuid::Uuid;

use crate::access;
use crate::pool::Pool;

/// Cost of a pod that nobody admitted: below every admitted one's.
pub const COST_UNADMITTED: i32 = -1000;
/// Cost of an admitted pod; busy ones are raised above it.
pub const COST_ADMITTED: i32 = 0;
/// Cost of a pod that has been busy for a while.
pub const COST_BUSY: i32 = 1000;
/// The volume with the Secrets of the broker, and where it is mounted.
const SECRETS: &str = "umbel-broker";
const SECRETS_PATH: &str = "/var/run/umbel/broker";
/// Where the Secrets for arguments are, a folder each: the default of the worker's `--secrets-dir`.
const ARGS_PATH: &str = "/var/run/umbel/secrets";
/// Where the sources of manifests are, a folder each: the default of the worker's `--sources-dir`.
const SOURCES_PATH: &str = "/var/run/umbel/sources";
/// Where a worker answers its probes.
const ADMIN_PORT: u16 = 8080;

/// The labels on every child of a pool.
pub fn labels(pool: &Pool) -> Value {
    json!({
        LABEL_POOL: pool.name,
        LABEL_NAME: "umbel-worker",
        LABEL_INSTANCE: pool.name,
        LABEL_COMPONENT: "worker",
        LABEL_PART_OF: "umbel",
        LABEL_MANAGED_BY: "umbel-operator",
    })
}

/// The label selector of a pool's pods, as text.
pub fn selector(pool: &str) -> String {
    format!("{LABEL_POOL}={pool}")
}

/// A revision of a pool's template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its name: ten digits of a hash.
    pub name: String,
    /// The name of its Deployment.
    pub deployment: String,
    /// Of a Deployment that was made when a pool had but one: what its pods take for their revision.
    adopted: Option<String>,
}

impl Revision {
    /// That of the template as it is now.
    pub fn present(pool: &Pool) -> Self {
        let mut template = template(pool, "");
        if let Some(container) = template
            .pointer_mut("/spec")
            .and_then(Value::as_object_mut)
            .and_then(worker)
        {
            // Another pool of the same name has other Deployments anyway.
            let env = container.get_mut("env").and_then(Value::as_array_mut);
            env.into_iter()
                .for_each(|env| env.retain(|one| one["name"] != "UMBEL_POOL_UID"));
        }
        let name = digits(&sorted(&template));
        Self {
            deployment: format!("{}-{name}", pool.name),
            name,
            adopted: None,
        }
    }

    /// That of a Deployment, as it says itself.
    pub fn of(stored: &Deployment) -> Self {
        let deployment = stored.metadata.name.clone().unwrap_or_default();
        let labels = stored.spec.selector.match_labels.as_ref();
        let selected = labels.and_then(|labels| labels.get(LABEL_REVISION));
        match selected {
            Some(name) => Self {
                name: name.clone(),
                deployment,
                adopted: None,
            },
            None => Self {
                name: "first".to_owned(),
                deployment,
                adopted: Some(told(&stored.spec).unwrap_or_default()),
            },
        }
    }

    /// Whether its Deployment was made when a pool had but one.
    pub fn is_of_before(&self) -> bool {
        self.adopted.is_some()
    }

    /// The present revision in a Deployment that was made when a pool had but one; nothing where this is another's.
    pub fn adopting(&self, stored: &Deployment) -> Option<Self> {
        let found = Self::of(stored);
        found.adopted.is_some().then(|| Self {
            name: self.name.clone(),
            ..found
        })
    }
}

/// The revision that a Deployment's pods are told.
fn told(spec: &DeploymentSpec) -> Option<String> {
    let containers = &spec.template.spec.as_ref()?.containers;
    let env = containers.iter().flat_map(|container| container.env.iter().flatten());
    env.into_iter().find(|one| one.name == "UMBEL_REVISION")?.value.clone()
}

/// The Deployment of a revision of this pool's template, without its size.
pub fn plan(pool: &Pool, revision: &Revision) -> Value {
    let mut selector = json!({ LABEL_POOL: pool.name });
    let mut labels = labels(pool);
    let mut template = template(pool, revision.adopted.as_deref().unwrap_or(&revision.name));
    if revision.adopted.is_none() {
        selector[LABEL_REVISION] = json!(revision.name);
        labels[LABEL_REVISION] = json!(revision.name);
        template["metadata"]["labels"][LABEL_REVISION] = json!(revision.name);
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": revision.deployment,
            "namespace": pool.namespace,
            "labels": labels,
            "ownerReferences": [pool.owner],
        },
        "spec": {
            "selector": { "matchLabels": selector },
            // The template changes only when somebody else changed it. A pod that works is then taken away only for one
            // that was admitted in its place.
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": 0 } },
            "template": template,
        },
    })
}

fn digits(value: &Value) -> String {
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, value.to_string().as_bytes());
    hash.simple().to_string()[..10].to_owned()
}

/// The same with the fields of each object in order: how they come is nobody's promise.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<&String, Value> = fields.iter().map(|(key, value)| (key, sorted(value))).collect();
            json!(fields)
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn template(pool: &Pool, revision: &str) -> Value {
    let mut template = pool.template.clone();
    let metadata = object(entry(&mut template, "metadata"));
    merge(object(entry_of(metadata, "labels")), labels(pool));
    merge(
        object(entry_of(metadata, "annotations")),
        json!({ ANNOTATION_DELETION_COST: COST_UNADMITTED.to_string() }),
    );
    let spec = object(entry(&mut template, "spec"));
    spec.insert("serviceAccountName".into(), json!(access::name(&pool.name)));
    spec.insert("automountServiceAccountToken".into(), json!(!pool.clusters.is_empty()));
    spec.insert("terminationGracePeriodSeconds".into(), json!(pool.grace.as_secs()));
    match pool.runtime {
        Runtime::Umbel => umbel(pool, revision, spec),
        Runtime::Celery => celery(pool, revision, spec),
    }
    template
}

/// What an Umbel worker needs in its container and beside it.
fn umbel(pool: &Pool, revision: &str, spec: &mut Map<String, Value>) {
    if let Some(container) = worker(spec) {
        set_named(container, "env", environment(pool, revision));
        // Ready is admission: it must show within a second and depend on nothing else.
        container.insert("readinessProbe".into(), probe("/readyz", 1, 1));
        container.insert("livenessProbe".into(), probe("/livez", 10, 6));
        let mut mounts = vec![json!({ "name": SECRETS, "mountPath": SECRETS_PATH, "readOnly": true })];
        let mut volumes = vec![secrets(pool)];
        // Each as a volume of its own: which keys a Secret has is its owner's business, and one that is missing stops no pod.
        let named = pool.jobs.secrets.iter().flat_map(|secrets| &secrets.names);
        for (number, secret) in named.enumerate() {
            let name = format!("umbel-secret-{number}");
            mounts.push(json!({ "name": name, "mountPath": format!("{ARGS_PATH}/{secret}"), "readOnly": true }));
            volumes.push(json!({ "name": name, "secret": { "secretName": secret, "optional": true } }));
        }
        for sources in pool.jobs.apply.iter().filter_map(|apply| apply.sources.as_ref()) {
            let maps = sources.config_maps.iter().enumerate();
            let secrets = sources.secrets.iter().enumerate();
            let maps = maps.map(|(number, map)| {
                (
                    format!("umbel-source-map-{number}"),
                    format!("configmaps/{map}"),
                    json!({ "configMap": { "name": map, "optional": true } }),
                )
            });
            let secrets = secrets.map(|(number, secret)| {
                (
                    format!("umbel-source-secret-{number}"),
                    format!("secrets/{secret}"),
                    json!({ "secret": { "secretName": secret, "optional": true } }),
                )
            });
            for (name, folder, mut volume) in maps.chain(secrets) {
                mounts.push(json!({ "name": name, "mountPath": format!("{SOURCES_PATH}/{folder}"), "readOnly": true }));
                volume["name"] = json!(name);
                volumes.push(volume);
            }
        }
        set_named(container, "volumeMounts", mounts);
        set_named(spec, "volumes", volumes);
    }
}

/// What a Celery worker gets: the broker's address, as Celery itself looks for it, unless the template says one. Everything
/// else is the template's.
fn celery(pool: &Pool, revision: &str, spec: &mut Map<String, Value>) {
    let Some(container) = worker(spec) else { return };
    let (secret, key) = &pool.secret;
    let address = json!({
        "name": "CELERY_BROKER_URL",
        "valueFrom": { "secretKeyRef": { "name": secret, "key": key } },
    });
    let has = |env: Option<&Value>| {
        let entries = env.and_then(Value::as_array).into_iter().flatten();
        entries.into_iter().any(|one| one["name"] == address["name"])
    };
    let mut env = vec![json!({ "name": "UMBEL_REVISION", "value": revision })];
    if !has(container.get("env")) {
        env.push(address);
    }
    set_named(container, "env", env);
}

/// The container named `worker`, otherwise the first one.
fn worker(spec: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
    let containers = spec.get_mut("containers")?.as_array_mut()?;
    let named = containers
        .iter()
        .position(|container| container.get("name") == Some(&json!(WORKER_CONTAINER)));
    containers.get_mut(named.unwrap_or(0))?.as_object_mut()
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": ADMIN_PORT },
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    })
}

fn environment(pool: &Pool, revision: &str) -> Vec<Value> {
    let text = |name: &str, value: String| json!({ "name": name, "value": value });
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let seconds = |span: Duration| Span::from(span).to_string();
    // A setting that is added to a queue must reach the worker or be named here.
    let TaskQueueSpec {
        broker: _,
        queue_name: _,
        // Workers read it at the broker, where the operator puts it.
        paused: _,
        deletion_policy: _,
        dead_letter,
        limits,
        expires_after,
        lease,
        retry,
        max_deliveries,
        time_limit,
        soft_time_limit,
        results,
        priority_steps,
        accept,
        time_zone,
        ack,
        allowed_tasks,
        on_unknown_task,
    } = &pool.policy;
    let Results {
        store,
        ttl: _,
        max_bytes: _,
        backend,
    } = results;
    let DeadLetter {
        enabled,
        max_length,
        retention,
    } = dead_letter;
    let dead_kept = if *enabled { *max_length } else { 0 };
    let steps: Vec<String> = priority_steps.iter().map(u8::to_string).collect();
    let mut env = vec![
        text("UMBEL_KEY_PREFIX", pool.key_prefix.clone()),
        text("UMBEL_QUEUE", weighted(pool).join(",")),
        text("UMBEL_CONSUMPTION", word(pool.consumption)),
        text("UMBEL_CONCURRENCY", pool.concurrency.to_string()),
        text("UMBEL_GRACE", seconds(pool.grace)),
        text("UMBEL_HAND_BACK_AT", pool.hand_back_at.to_string()),
        text("UMBEL_LEASE", lease.duration.to_string()),
        text("UMBEL_RENEW_EVERY", lease.renew_every.to_string()),
        text("UMBEL_MAX_DELIVERIES", max_deliveries.to_string()),
        text("UMBEL_TIME_LIMIT", time_limit.to_string()),
        text("UMBEL_RESULT_TTL", results.ttl.to_string()),
        text("UMBEL_RESULTS", word(store)),
        text("UMBEL_PRIORITY_STEPS", steps.join(",")),
        text("UMBEL_ACCEPT", words(accept).join(",")),
        text("UMBEL_TIME_ZONE", time_zone.clone()),
        text("UMBEL_ACK", word(ack).to_lowercase()),
        text("UMBEL_ALLOWED_TASKS", allowed_tasks.join(",")),
        text("UMBEL_ON_UNKNOWN_TASK", word(on_unknown_task)),
        text("UMBEL_RETRY_MAX_ATTEMPTS", retry.max_attempts.to_string()),
        text("UMBEL_RETRY_INITIAL_BACKOFF", retry.initial_backoff.to_string()),
        text("UMBEL_RETRY_MAX_BACKOFF", retry.max_backoff.to_string()),
        text("UMBEL_RETRY_FACTOR", retry.factor.to_string()),
        text("UMBEL_RETRY_JITTER", retry.jitter.to_string()),
        text("UMBEL_POOL_UID", pool.uid.clone()),
        text("UMBEL_REVISION", revision.to_owned()),
        text("UMBEL_INSTALL", pool.install.clone()),
        text("UMBEL_ADMIN_ADDR", format!("0.0.0.0:{ADMIN_PORT}")),
        text("UMBEL_CLUSTERS", json!(pool.clusters).to_string()),
        text("UMBEL_JOBS", json!(pool.jobs).to_string()),
        field("UMBEL_NAMESPACE", "metadata.namespace"),
        field("UMBEL_POD_NAME", "metadata.name"),
        field("UMBEL_POD_UID", "metadata.uid"),
    ];
    env.extend(reached(pool));
    // Only where it is asked for: another variable is another revision.
    env.extend(
        pool.counts_as_attempt
            .then(|| text("UMBEL_COUNTS_AS_ATTEMPT", "true".into())),
    );
    let by_default = DeadLetter::default();
    env.extend((dead_kept != by_default.max_length).then(|| text("UMBEL_DEAD_KEPT", dead_kept.to_string())));
    env.extend((*retention != by_default.retention).then(|| text("UMBEL_DEAD_RETENTION", retention.to_string())));
    env.extend(expires_after.map(|after| text("UMBEL_EXPIRES_AFTER", after.to_string())));
    let keys = limits.iter().flat_map(|limits| &limits.per_key);
    let keys: Vec<String> = keys
        .map(|KeyLimit { tasks, key, limit }| format!("{tasks}={key}={limit}"))
        .collect();
    if !keys.is_empty() {
        env.push(text("UMBEL_PER_KEY", keys.join(";")));
    }
    let Recycle {
        max_tasks,
        max_age,
        max_memory,
    } = &pool.recycle;
    env.extend(max_tasks.map(|tasks| text("UMBEL_MAX_TASKS", tasks.to_string())));
    env.extend(max_age.map(|age| text("UMBEL_MAX_AGE", age.to_string())));
    env.extend(
        max_memory
            .as_ref()
            .map(|memory| text("UMBEL_MAX_MEMORY", memory.clone())),
    );
    env.extend(soft_time_limit.map(|limit| text("UMBEL_SOFT_TIME_LIMIT", limit.to_string())));
    env.extend(
        results
            .max_bytes()
            .map(|bytes| text("UMBEL_RESULT_MAX_BYTES", bytes.to_string())),
    );
    if let Some(backend) = backend {
        if backend.url_secret_ref.is_some() {
            env.push(text("UMBEL_RESULT_URL_FILE", format!("{SECRETS_PATH}/result-url")));
        }
        env.push(text("UMBEL_RESULT_KEY_PREFIX", backend.key_prefix.clone()));
    }
    env
}

/// The queues, with the weights of those that have one.
fn weighted(pool: &Pool) -> Vec<String> {
    let queues = pool.queues.iter().zip(&pool.weights);
    queues
        .map(|(queue, weight)| match weight {
            1 => queue.clone(),
            weight => format!("{queue}={weight}"),
        })
        .collect()
}

/// A value as the object says it.
fn word(value: impl Serialize) -> String {
    json!(value).as_str().unwrap_or_default().to_owned()
}

fn words<T: Serialize>(values: &[T]) -> Vec<String> {
    values.iter().map(word).collect()
}

/// Ours take the place of entries of the same name; the others stay where they are.
fn set_named(parent: &mut Map<String, Value>, list: &str, ours: Vec<Value>) {
    let theirs = parent
        .remove(list)
        .and_then(|entries| entries.as_array().cloned())
        .unwrap_or_default();
    let foreign = |one: &Value| !ours.iter().any(|our| our["name"] == one["name"]);
    let mut entries: Vec<Value> = theirs.into_iter().filter(foreign).collect();
    entries.extend(ours);
    parent.insert(list.into(), Value::Array(entries));
}

/// The files by which a worker reaches its broker, and the servers of its results: mounted, so that a change of a Secret
/// reaches a running worker. The kubelet replaces all of them in one step.
fn secrets(pool: &Pool) -> Value {
    let (secret, key) = &pool.secret;
    let one = |secret: &str, items: Value| json!({ "secret": { "name": secret, "items": items } });
    let mut sources = vec![one(secret, json!([{ "key": key, "path": "url" }]))];
    let tls = pool.redis.tls.clone().unwrap_or_default();
    sources.extend(
        tls.ca_secret_ref
            .map(|ca| one(&ca.name, json!([{ "key": ca.key, "path": "ca.crt" }]))),
    );
    sources.extend(tls.client_cert_secret_ref.map(|client| {
        let items = json!([{ "key": "tls.crt", "path": "tls.crt" }, { "key": "tls.key", "path": "tls.key" }]);
        one(&client.name, items)
    }));
    let backend = pool.policy.results.backend.as_ref();
    sources.extend(
        backend
            .and_then(|backend| backend.url_secret_ref.as_ref())
            .map(|results| one(&results.name, json!([{ "key": results.key, "path": "result-url" }]))),
    );
    json!({ "name": SECRETS, "projected": { "sources": sources } })
}

/// What tells a worker where these files are, and what else it must know to use them.
fn reached(pool: &Pool) -> Vec<Value> {
    let text = |name: &str, value: &str| json!({ "name": name, "value": value });
    let file = |name: &str, file: &str| text(name, &format!("{SECRETS_PATH}/{file}"));
    let mut env = vec![file("UMBEL_REDIS_URL_FILE", "url")];
    if let Some(Sentinel { master_name }) = &pool.redis.sentinel {
        env.push(text("UMBEL_REDIS_SENTINEL_MASTER", master_name));
    }
    if let Some(Tls {
        ca_secret_ref,
        client_cert_secret_ref,
        server_name,
    }) = &pool.redis.tls
    {
        if ca_secret_ref.is_some() {
            env.push(file("UMBEL_REDIS_CA_FILE", "ca.crt"));
        }
        if client_cert_secret_ref.is_some() {
            env.push(file("UMBEL_REDIS_CERT_FILE", "tls.crt"));
            env.push(file("UMBEL_REDIS_KEY_FILE", "tls.key"));
        }
        env.extend(server_name.as_ref().map(|name| text("UMBEL_REDIS_SERVER_NAME", name)));
        env.push(text("UMBEL_REDIS_TLS", "true"));
    }
    env
}

fn entry<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    entry_of(object(parent), key)
}

fn entry_of<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Value {
    parent.entry(key).or_insert_with(|| json!({}))
}

/// The value as an object; what is something else becomes an empty one.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made an object above")
}

fn merge(into: &mut Map<String, Value>, from: Value) {
    if let Value::Object(from) = from {
        into.extend(from);
    }
}

/// Whether everything that `wanted` says is in `stored` as well. Lists of objects with a name are matched by it, as
/// server-side apply does; empty values are what the server leaves out.
pub fn contains(stored: &Value, wanted: &Value) -> bool {
    match (stored, wanted) {
        (Value::Object(stored), Value::Object(wanted)) => wanted.iter().all(|(key, value)| match stored.get(key) {
            Some(found) => contains(found, value),
            None => is_empty(value),
        }),
        (Value::Array(stored), Value::Array(wanted)) => {
            let by_name = |item: &Value| item.get("name").is_some();
            if !wanted.is_empty() && wanted.iter().all(by_name) {
                return wanted.iter().all(|item| {
                    stored
                        .iter()
                        .any(|other| other.get("name") == item.get("name") && contains(other, item))
                });
            }
            stored.len() == wanted.len()
                && stored
                    .iter()
                    .zip(wanted)
                    .all(|(stored, wanted)| contains(stored, wanted))
        }
        (stored, wanted) => stored == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
