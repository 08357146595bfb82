//! A pool's faults, and its children when it has none.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::type_complexity,
    reason = "helpers of tests"
)]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use umbel_api::{TargetCluster, TaskQueue, WorkerPool};
use umbel_plan::deployment::{Revision, contains};
use umbel_plan::narrow::Level;
use umbel_plan::pool::{Defaults, Fault, Pool, QueueFacts, Referred, validate};
use umbel_plan::{access, deployment, shield};

const DEFAULTS: Defaults<'static> = Defaults {
    image: "umbel:1",
    pull_policy: "Never",
    install: "install",
    level: Level::Baseline,
};

fn queue(name: &str, spec: Value) -> TaskQueue {
    let object = json!({ "apiVersion": "umbel.dev/v1alpha1", "kind": "TaskQueue", "metadata": { "name": name, "namespace": "n" }, "spec": spec });
    serde_json::from_value(object).unwrap()
}

fn pool(spec: Value) -> WorkerPool {
    let metadata = json!({ "name": "p", "namespace": "n", "uid": "u-1" });
    serde_json::from_value(
        json!({ "apiVersion": "umbel.dev/v1alpha1", "kind": "WorkerPool", "metadata": metadata, "spec": spec }),
    )
    .unwrap()
}

fn cluster(name: &str, env: &str) -> TargetCluster {
    let metadata = json!({ "name": name, "namespace": "n", "labels": { "env": env } });
    let spec = json!({ "kubeconfigSecretRef": { "name": format!("{name}-kubeconfig"), "key": "value" } });
    serde_json::from_value(
        json!({ "apiVersion": "umbel.dev/v1alpha1", "kind": "TargetCluster", "metadata": metadata, "spec": spec }),
    )
    .unwrap()
}

/// The Deployment of the template as it is now.
fn plan(pool: &Pool) -> Value {
    deployment::plan(pool, &Revision::present(pool))
}

struct World {
    queues: Vec<(TaskQueue, Result<(String, String), String>, Option<&'static str>)>,
    clusters: Vec<TargetCluster>,
}

impl World {
    fn with(queues: &[(&str, Value, &str, Option<&'static str>)]) -> Self {
        let one = |(name, spec, secret, generation): &(&str, Value, &str, Option<&'static str>)| {
            (
                queue(name, spec.clone()),
                Ok(((*secret).to_owned(), "url".to_owned())),
                *generation,
            )
        };
        Self {
            queues: queues.iter().map(one).collect(),
            clusters: vec![cluster("west", "prod"), cluster("east", "prod"), cluster("lab", "dev")],
        }
    }

    fn validate(&self, spec: Value) -> Result<Pool, Fault> {
        let facts = self.queues.iter().map(|(queue, secret, generation)| {
            let facts = QueueFacts {
                queue,
                secret: secret.clone(),
                generation: *generation,
            };
            (queue.metadata.name.clone().unwrap(), facts)
        });
        let queues: BTreeMap<String, QueueFacts<'_>> = facts.collect();
        validate(
            &pool(spec),
            &Referred {
                queues,
                clusters: self.clusters.iter().collect(),
            },
            &DEFAULTS,
        )
    }
}

fn mail() -> World {
    World::with(&[("mail", json!({}), "redis", None)])
}

fn on_mail(more: Value) -> Value {
    let mut spec = json!({ "queues": [{ "name": "mail" }] });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

#[test]
fn each_fault_has_its_word() {
    let reason = |world: &World, spec: Value| world.validate(spec).map(|_| ()).map_err(|fault| fault.reason());
    assert_eq!(reason(&mail(), on_mail(json!({}))), Ok(()));
    assert_eq!(
        reason(
            &mail(),
            on_mail(json!({ "scaling": { "minReplicas": 2, "maxReplicas": 1 } }))
        ),
        Err("MinAboveMax")
    );
    assert_eq!(reason(&mail(), json!({ "queues": [] })), Err("NoQueue"));
    assert_eq!(
        reason(&mail(), json!({ "queues": [{ "name": "post" }] })),
        Err("UnknownQueue")
    );
    assert_eq!(
        reason(&mail(), on_mail(json!({ "template": { "spec": {} } }))),
        Err("TemplateRefused")
    );
    assert_eq!(
        reason(
            &mail(),
            on_mail(json!({ "template": { "spec": { "containers": [] } } }))
        ),
        Err("TemplateRefused")
    );

    let mars = World::with(&[("mail", json!({ "timeZone": "Mars/Base" }), "broker", None)]);
    assert_eq!(reason(&mars, on_mail(json!({}))), Err("UnknownTimeZone"));

    let mut homeless = mail();
    homeless.queues[0].1 = Err("spec.broker.redis.urlSecretRef is required".into());
    assert_eq!(reason(&homeless, on_mail(json!({}))), Err("NoBroker"));

    let mut foreign = mail();
    let ready = json!({ "type": "Ready", "status": "False", "reason": "QueueOwnedElsewhere", "message": "n/old owns it", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    foreign.queues[0].0.status = Some(serde_json::from_value(json!({ "conditions": [ready] })).unwrap());
    assert_eq!(reason(&foreign, on_mail(json!({}))), Err("QueueOwnedElsewhere"));
}

#[test]
fn queues_of_a_pool_lie_on_one_broker_and_agree() {
    let both = json!({ "queues": [{ "name": "a" }, { "name": "b" }] });
    let reason = |queues: &[(&str, Value, &str, Option<&'static str>)]| {
        World::with(queues)
            .validate(both.clone())
            .map(|_| ())
            .map_err(|fault| fault.reason())
    };
    let prefixed = json!({ "broker": { "redis": { "keyPrefix": "x" } } });
    assert_eq!(
        reason(&[("a", json!({}), "one", None), ("b", json!({}), "one", None)]),
        Ok(())
    );
    assert_eq!(
        reason(&[("a", json!({}), "one", None), ("b", json!({}), "two", None)]),
        Err("QueuesOnSeveralBrokers")
    );
    assert_eq!(
        reason(&[("a", json!({}), "one", None), ("b", prefixed, "one", None)]),
        Err("QueuesOnSeveralBrokers")
    );
    // Two names of one server: the id of its data tells.
    assert_eq!(
        reason(&[("a", json!({}), "one", Some("g")), ("b", json!({}), "two", Some("g"))]),
        Ok(())
    );
    assert_eq!(
        reason(&[("a", json!({}), "one", Some("g")), ("b", json!({}), "two", Some("h"))]),
        Err("QueuesOnSeveralBrokers")
    );
    assert_eq!(
        reason(&[
            ("a", json!({}), "one", None),
            ("b", json!({ "maxDeliveries": 9 }), "one", None)
        ]),
        Err("QueuesDiffer")
    );
}

#[test]
fn the_deployment_never_says_a_size_and_changes_only_what_is_ours() {
    let template = json!({
        "metadata": { "labels": { "team": "post" } },
        "spec": {
            "futureField": { "of": "a newer Kubernetes" },
            "containers": [
                { "name": "proxy", "image": "p", "env": [{ "name": "UMBEL_QUEUE", "value": "mine" }] },
                { "name": "worker", "image": "w", "env": [{ "name": "UMBEL_QUEUE", "value": "mine" }, { "name": "KEPT", "value": "1" }] },
            ],
        },
    });
    let valid = mail().validate(on_mail(json!({ "template": template }))).unwrap();
    let deployment = plan(&valid);
    let spec = &deployment["spec"];
    assert!(spec.get("replicas").is_none());
    assert_eq!(spec["template"]["spec"]["futureField"]["of"], "a newer Kubernetes");
    assert_eq!(spec["template"]["metadata"]["labels"]["team"], "post");
    assert_eq!(
        spec["template"]["spec"]["containers"][0],
        template["spec"]["containers"][0]
    );
    let env = spec["template"]["spec"]["containers"][1]["env"].as_array().unwrap();
    let values = |name: &str| {
        env.iter()
            .filter(|one| one["name"] == name)
            .map(|one| one["value"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (values("UMBEL_QUEUE"), values("KEPT")),
        (vec![json!("mail")], vec![json!("1")])
    );
    // One hour of task limit and 30 s to hand back.
    assert_eq!(spec["template"]["spec"]["terminationGracePeriodSeconds"], 3630);
    assert_eq!(spec["template"]["spec"]["automountServiceAccountToken"], false);
    assert_eq!(
        spec["template"]["spec"]["containers"][1]["readinessProbe"]["httpGet"]["path"],
        "/readyz"
    );
}

#[test]
fn what_a_queue_asks_for_reaches_the_worker() {
    let env_of = |spec: Value| {
        let valid = World::with(&[("mail", spec, "broker", None)])
            .validate(on_mail(json!({})))
            .unwrap();
        plan(&valid)["spec"]["template"]["spec"]["containers"][0]["env"].clone()
    };
    let find = |env: &Value, name: &str| {
        let one = env.as_array().unwrap().iter().find(|one| one["name"] == name).cloned();
        one.map(|one| one.get("value").or_else(|| one.get("valueFrom")).cloned().unwrap())
    };
    let default = env_of(json!({}));
    let given = env_of(json!({
        "accept": ["json", "msgpack"], "prioritySteps": [0, 5], "timeZone": "Europe/Berlin", "ack": "Early",
        "allowedTasks": ["proj.*", "umbel.echo"], "onUnknownTask": "DeadLetter", "expiresAfter": "10m",
        "limits": { "perKey": [{ "tasks": "bill.*", "key": "acct-{kwargs.account}" }, { "tasks": "*", "key": "{task}", "limit": 3 }] },
        "results": { "store": "Failures", "maxBytes": "1Mi",
            "backend": { "urlSecretRef": { "name": "results", "key": "address" }, "keyPrefix": "app" } },
    }));
    let mounted = json!("/var/run/umbel/broker/result-url");
    let cases: [(&str, Option<Value>, Value); 12] = [
        ("UMBEL_ACCEPT", Some(json!("json")), json!("json,msgpack")),
        ("UMBEL_PRIORITY_STEPS", Some(json!("0,3,6,9")), json!("0,5")),
        ("UMBEL_TIME_ZONE", Some(json!("UTC")), json!("Europe/Berlin")),
        ("UMBEL_ACK", Some(json!("late")), json!("early")),
        ("UMBEL_ALLOWED_TASKS", Some(json!("")), json!("proj.*,umbel.echo")),
        ("UMBEL_ON_UNKNOWN_TASK", Some(json!("HandBack")), json!("DeadLetter")),
        ("UMBEL_RESULTS", Some(json!("All")), json!("Failures")),
        ("UMBEL_RESULT_MAX_BYTES", Some(json!("262144")), json!("1048576")),
        ("UMBEL_RESULT_URL_FILE", None, mounted),
        ("UMBEL_RESULT_KEY_PREFIX", None, json!("app")),
        ("UMBEL_EXPIRES_AFTER", None, json!("10m")),
        (
            "UMBEL_PER_KEY",
            None,
            json!("bill.*=acct-{kwargs.account}=1;*={task}=3"),
        ),
    ];
    for (name, by_default, as_given) in cases {
        assert_eq!(find(&default, name), by_default, "{name}");
        assert_eq!(find(&given, name), Some(as_given), "{name}");
    }
}

#[test]
fn shares_and_recycling_of_a_pool_reach_the_worker() {
    let world = World::with(&[
        ("mail", json!({}), "broker", None),
        (
            "bulk",
            json!({ "paused": true, "limits": { "maxInFlight": 3 } }),
            "broker",
            None,
        ),
    ]);
    let env_of = |spec: Value| {
        let valid = world.validate(spec).unwrap();
        let env = plan(&valid)["spec"]["template"]["spec"]["containers"][0]["env"].clone();
        env.as_array()
            .unwrap()
            .iter()
            .map(|one| (one["name"].clone(), one["value"].clone()))
            .collect::<Vec<_>>()
    };
    let plain = env_of(json!({ "queues": [{ "name": "mail" }, { "name": "bulk" }] }));
    assert!(plain.contains(&(json!("UMBEL_QUEUE"), json!("mail,bulk"))));
    assert!(plain.contains(&(json!("UMBEL_CONSUMPTION"), json!("Weighted"))));
    assert!(
        plain
            .iter()
            .all(|(name, _)| !name.as_str().unwrap().starts_with("UMBEL_MAX_TASKS"))
    );
    let given = env_of(json!({
        "queues": [{ "name": "mail", "weight": 5 }, { "name": "bulk" }], "consumption": "Strict",
        "recycle": { "maxTasks": 1000, "maxAge": "24h", "maxMemory": "512Mi" },
    }));
    for (name, value) in [
        ("UMBEL_QUEUE", "mail=5,bulk"),
        ("UMBEL_CONSUMPTION", "Strict"),
        ("UMBEL_MAX_TASKS", "1000"),
        ("UMBEL_MAX_AGE", "24h"),
        ("UMBEL_MAX_MEMORY", "512Mi"),
    ] {
        assert!(
            given.contains(&(json!(name), json!(value))),
            "{name} is not {value}: {given:?}"
        );
    }
}

#[test]
fn rights_are_exactly_the_secrets_of_the_clusters_that_are_covered() {
    let named = json!({ "clusterAccess": { "names": ["west", "atlantis", "lab", "eldorado"] } });
    assert_eq!(
        mail().validate(on_mail(named)).unwrap().absent,
        ["atlantis", "eldorado"]
    );
    let none = access::plan(&mail().validate(on_mail(json!({}))).unwrap());
    assert_eq!(none.grant, None);
    let spec = on_mail(json!({ "clusterAccess": { "selector": { "matchLabels": { "env": "prod" } } } }));
    let valid = mail().validate(spec).unwrap();
    let grant = access::plan(&valid).grant.unwrap();
    assert_eq!(
        grant.role["rules"],
        json!([{ "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["east-kubeconfig", "west-kubeconfig"], "verbs": ["get", "watch"] }])
    );
    let template = &plan(&valid)["spec"]["template"]["spec"];
    assert_eq!(template["automountServiceAccountToken"], true);
    assert_eq!(template["serviceAccountName"], grant.binding["subjects"][0]["name"]);
}

#[test]
fn secrets_for_arguments_are_mounted_and_those_of_clusters_and_brokers_are_refused() {
    let named = |names: Value| on_mail(json!({ "jobs": { "secrets": { "names": names } } }));
    let valid = mail().validate(named(json!(["smtp", "api.keys"]))).unwrap();
    let template = &plan(&valid)["spec"]["template"]["spec"];
    let mounts = &template["containers"][0]["volumeMounts"];
    for (number, secret) in ["smtp", "api.keys"].iter().enumerate() {
        let name = format!("umbel-secret-{number}");
        let volume = json!({ "name": name, "secret": { "secretName": secret, "optional": true } });
        assert!(template["volumes"].as_array().unwrap().contains(&volume), "{template}");
        let mount = json!({ "name": name, "mountPath": format!("/var/run/umbel/secrets/{secret}"), "readOnly": true });
        assert!(mounts.as_array().unwrap().contains(&mount), "{mounts}");
    }
    assert_eq!(
        template["automountServiceAccountToken"], false,
        "no token is needed for that"
    );
    assert_eq!(access::plan(&valid).grant, None);
    // Of a cluster that the pool does not reach, too.
    for (secret, whose) in [("lab-kubeconfig", "TargetCluster lab"), ("redis", "the broker")] {
        let fault = mail().validate(named(json!(["smtp", secret]))).map(|_| ()).unwrap_err();
        assert_eq!(fault.reason(), "SecretRefused");
        assert!(
            fault.to_string().contains(secret) && fault.to_string().contains(whose),
            "{fault}"
        );
    }
}

#[test]
fn the_same_pool_gives_the_same_children() {
    let spec = on_mail(json!({ "clusterAccess": { "names": ["lab", "east"] } }));
    let valid = mail().validate(spec.clone()).unwrap();
    assert_eq!(plan(&valid), plan(&mail().validate(spec).unwrap()));
}

#[test]
fn a_revision_is_made_of_what_is_in_the_pods_and_of_nothing_else() {
    let name = |spec: Value| Revision::present(&mail().validate(spec).unwrap()).name;
    let template = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let plain = name(on_mail(json!({})));
    assert_eq!(plain.len(), 10);
    for same in [
        json!({ "scaling": { "maxReplicas": 3 } }),
        json!({ "replicas": 7, "suspend": true }),
        json!({ "rollout": { "maxSurge": 2 }, "podDisruptionBudget": { "minAvailable": 1 } }),
        json!({ "drain": { "countsAsAttempt": false } }),
    ] {
        assert_eq!(name(on_mail(same.clone())), plain, "{same}");
    }
    for other in [
        json!({ "concurrency": 3 }),
        json!({ "drain": { "countsAsAttempt": true } }),
        json!({ "drain": { "gracePeriod": "9s" } }),
        json!({ "template": { "spec": { "containers": [{ "name": "worker", "image": "x" }] } } }),
    ] {
        assert_ne!(name(on_mail(other.clone())), plain, "{other}");
    }
    // In whatever order its fields come.
    let one = template(r#"{"spec": {"priority": 1, "containers": [{"name": "w", "image": "x"}]}}"#);
    let two = template(r#"{"spec": {"containers": [{"image": "x", "name": "w"}], "priority": 1}}"#);
    assert_eq!(
        name(on_mail(json!({ "template": one }))),
        name(on_mail(json!({ "template": two })))
    );
}

#[test]
fn no_budget_of_a_pool_has_the_name_of_anothers() {
    let names = |name: &str| {
        let mut pool = mail().validate(on_mail(json!({}))).unwrap();
        name.clone_into(&mut pool.name);
        shield::budgets(&pool).map(|(name, _)| name)
    };
    let mut all: Vec<String> = ["a", "a-busy", "a-all"].into_iter().flat_map(names).collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "{all:?}");
    let spec = on_mail(json!({ "podDisruptionBudget": { "minAvailable": 1 } }));
    let budgets = shield::budgets(&mail().validate(spec).unwrap());
    let made: Vec<_> = budgets
        .iter()
        .filter_map(|(name, made)| Some((name, made.as_ref()?)))
        .collect();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].1["metadata"]["name"], json!("p-all"));
}

#[test]
fn a_setting_of_a_queue_by_its_default_makes_no_revision() {
    let env = |dead_letter: Value| {
        let world = World::with(&[("mail", json!({ "deadLetter": dead_letter }), "broker", None)]);
        let valid = world.validate(on_mail(json!({}))).unwrap();
        let env = plan(&valid)["spec"]["template"]["spec"]["containers"][0]["env"].clone();
        let of = |name: &str| env.as_array().unwrap().iter().find(|one| one["name"] == name).cloned();
        ["UMBEL_DEAD_KEPT", "UMBEL_DEAD_RETENTION"].map(|name| of(name).map(|one| one["value"].clone()))
    };
    // These are the worker's own defaults: it need not be told, and pods of before, which were not, are the same.
    assert_eq!(env(json!({})), [None, None]);
    assert_eq!(env(json!({ "maxLength": 10_000, "retention": "336h" })), [None, None]);
    assert_eq!(env(json!({ "maxLength": 7 })), [Some(json!("7")), None]);
    assert_eq!(env(json!({ "retention": "1h" })), [None, Some(json!("1h"))]);
    assert_eq!(env(json!({ "enabled": false })), [Some(json!("0")), None]);
}

#[test]
fn a_deployment_of_before_is_adopted_with_what_its_pods_were_told() {
    let pool = mail().validate(on_mail(json!({}))).unwrap();
    let present = Revision::present(&pool);
    let made = plan(&pool);
    assert_eq!(made["metadata"]["name"], json!(format!("p-{}", present.name)));
    assert_eq!(
        made["spec"]["selector"]["matchLabels"]["umbel.dev/revision"],
        json!(present.name)
    );
    let typed = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    assert_eq!(Revision::of(&typed(&made)), present);
    assert_eq!(present.adopting(&typed(&made)), None, "it is another's already");

    let mut before = made.clone();
    before["metadata"]["name"] = json!("p");
    before["spec"]["selector"]["matchLabels"] = json!({ "umbel.dev/pool": "p" });
    let container = &mut before["spec"]["template"]["spec"]["containers"][0];
    let env = container["env"].as_array_mut().unwrap();
    env.iter_mut().find(|one| one["name"] == "UMBEL_REVISION").unwrap()["value"] = json!("0123456789");
    let adopted = present.adopting(&typed(&before)).unwrap();
    assert_eq!(
        (adopted.name.as_str(), adopted.deployment.as_str()),
        (present.name.as_str(), "p")
    );
    let planned = deployment::plan(&pool, &adopted);
    before["metadata"]["labels"]
        .as_object_mut()
        .unwrap()
        .remove("umbel.dev/revision");
    before["spec"]["template"]["metadata"]["labels"]
        .as_object_mut()
        .unwrap()
        .remove("umbel.dev/revision");
    assert_eq!(planned, before);
}

#[test]
fn a_celery_worker_gets_the_address_and_nothing_that_is_not_the_pods() {
    let template =
        json!({ "spec": { "containers": [{ "name": "worker", "image": "python", "args": ["-A", "app"] }] } });
    let celery = |template: &Value| {
        let pool = mail()
            .validate(on_mail(json!({ "runtime": "Celery", "template": template })))
            .unwrap();
        plan(&pool)["spec"]["template"]["spec"].clone()
    };
    let spec = celery(&template);
    let container = &spec["containers"][0];
    assert!(container.get("readinessProbe").is_none() && spec.get("volumes").is_none());
    assert_eq!(spec["terminationGracePeriodSeconds"], 3630);
    let env = container["env"].as_array().unwrap();
    let names: Vec<&str> = env.iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, ["UMBEL_REVISION", "CELERY_BROKER_URL"]);
    assert_eq!(
        env[1]["valueFrom"],
        json!({ "secretKeyRef": { "name": "redis", "key": "url" } })
    );
    let mut own = template;
    own["spec"]["containers"][0]["env"] = json!([{ "name": "CELERY_BROKER_URL", "value": "redis://mine" }]);
    let env = celery(&own)["containers"][0]["env"].clone();
    assert_eq!(env[0], json!({ "name": "CELERY_BROKER_URL", "value": "redis://mine" }));
    assert_eq!(env.as_array().unwrap().len(), 2);
}

#[test]
fn what_the_server_adds_is_no_difference() {
    let wanted = json!({ "a": 1, "list": [{ "name": "x", "v": "" }], "empty": {} });
    assert!(contains(
        &json!({ "a": 1, "b": 2, "list": [{ "name": "y" }, { "name": "x", "w": 3 }] }),
        &wanted
    ));
    assert!(!contains(&json!({ "a": 2, "list": [{ "name": "x" }] }), &wanted));
    assert!(!contains(&json!({ "a": 1, "list": [] }), &wanted));
    assert!(!contains(&json!(["a", "b"]), &json!(["a"])));
}

#[test]
fn how_a_broker_is_reached_is_mounted_and_no_secret_is_in_the_environment() {
    let redis = json!({
        "urlSecretRef": { "name": "redis", "key": "url" },
        "sentinel": { "masterName": "mymaster" },
        "tls": {
            "caSecretRef": { "name": "trusted", "key": "ca.pem" },
            "clientCertSecretRef": { "name": "client" },
            "serverName": "redis.internal",
        },
    });
    let world = World::with(&[("mail", json!({ "broker": { "redis": redis } }), "redis", None)]);
    let pool = world.validate(on_mail(json!({}))).unwrap();
    let deployment = plan(&pool);
    let spec = &deployment["spec"]["template"]["spec"];
    let volumes = spec["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "umbel-broker").unwrap();
    assert_eq!(
        volume["projected"]["sources"],
        json!([
            { "secret": { "name": "redis", "items": [{ "key": "url", "path": "url" }] } },
            { "secret": { "name": "trusted", "items": [{ "key": "ca.pem", "path": "ca.crt" }] } },
            { "secret": { "name": "client", "items": [
                { "key": "tls.crt", "path": "tls.crt" }, { "key": "tls.key", "path": "tls.key" },
            ] } },
        ])
    );
    let container = &spec["containers"][0];
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert!(
        mounts.contains(&json!({ "name": "umbel-broker", "mountPath": "/var/run/umbel/broker", "readOnly": true }))
    );
    let env = container["env"].as_array().unwrap();
    assert!(
        env.iter()
            .all(|variable| variable["valueFrom"]["secretKeyRef"].is_null())
    );
    let value = |name: &str| {
        let variable = env.iter().find(|variable| variable["name"] == name);
        variable
            .and_then(|variable| variable["value"].as_str())
            .unwrap_or_default()
    };
    assert_eq!(value("UMBEL_REDIS_URL_FILE"), "/var/run/umbel/broker/url");
    assert_eq!(value("UMBEL_REDIS_CA_FILE"), "/var/run/umbel/broker/ca.crt");
    assert_eq!(value("UMBEL_REDIS_CERT_FILE"), "/var/run/umbel/broker/tls.crt");
    assert_eq!(value("UMBEL_REDIS_KEY_FILE"), "/var/run/umbel/broker/tls.key");
    assert_eq!(value("UMBEL_REDIS_SERVER_NAME"), "redis.internal");
    assert_eq!(value("UMBEL_REDIS_SENTINEL_MASTER"), "mymaster");
    assert_eq!(value("UMBEL_REDIS_TLS"), "true");
}

#[test]
fn sources_of_manifests_are_mounted_and_secrets_of_clusters_and_brokers_are_refused() {
    let named = |secrets: Value| {
        let sources = json!({ "configMaps": ["site"], "secrets": secrets });
        let apply = json!({ "namespaces": ["shop"], "kinds": ["ConfigMap"], "sources": sources });
        on_mail(json!({ "jobs": { "apply": apply } }))
    };
    let valid = mail().validate(named(json!(["keys"]))).unwrap();
    let template = &plan(&valid)["spec"]["template"]["spec"];
    let mounts = template["containers"][0]["volumeMounts"].as_array().unwrap();
    for (name, volume, folder) in [
        (
            "umbel-source-map-0",
            json!({ "configMap": { "name": "site", "optional": true } }),
            "configmaps/site",
        ),
        (
            "umbel-source-secret-0",
            json!({ "secret": { "secretName": "keys", "optional": true } }),
            "secrets/keys",
        ),
    ] {
        let mut volume = volume;
        volume["name"] = json!(name);
        assert!(template["volumes"].as_array().unwrap().contains(&volume), "{template}");
        let mount = json!({ "name": name, "mountPath": format!("/var/run/umbel/sources/{folder}"), "readOnly": true });
        assert!(mounts.contains(&mount), "{mounts:?}");
    }
    assert_eq!(access::plan(&valid).grant, None, "no right is needed for that");
    for (secret, whose) in [("lab-kubeconfig", "TargetCluster lab"), ("redis", "the broker")] {
        let fault = mail().validate(named(json!(["keys", secret]))).map(|_| ()).unwrap_err();
        let text = format!(
            "spec.jobs.apply.sources.secrets: tasks may not get values of Secret {secret}: it is that of {whose}"
        );
        assert_eq!((fault.reason(), fault.to_string()), ("SecretRefused", text));
    }
}
