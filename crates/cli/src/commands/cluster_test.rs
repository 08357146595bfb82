//! `umbel cluster test`: what works at a target and what is missing, asked with the credential that workers use.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use umbel_api::WorkerPool;
use umbel_api::names::ANNOTATION_ALLOW;
use umbel_clusters::credential::Kind;
use umbel_clusters::kubeconfig;

use super::cluster_ls::find;
use crate::account::{self, Allowed};
use crate::args::{ClusterTest, Format, Global};
use crate::confirm;
use crate::home::{Home, said};
use crate::output;
use crate::target::{Kinds, named};

/// Clusters at a time.
const AT_A_TIME: usize = 8;
/// Questions at a time for one of them.
const QUESTIONS: usize = 8;

/// What a line says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Not needed by anything.
    Lacks,
    Bad,
}

/// What was found of one cluster, line by line.
struct Report {
    name: String,
    lines: Vec<(Verdict, String)>,
}

impl Report {
    fn say(&mut self, verdict: Verdict, text: impl Into<String>) {
        self.lines.push((verdict, text.into()));
    }

    fn is_good(&self) -> bool {
        self.lines.iter().all(|(verdict, _)| *verdict != Verdict::Bad)
    }
}

pub(crate) async fn run(global: &Global, test: &ClusterTest) -> anyhow::Result<ExitCode> {
    let home = Home::open(global).await?;
    let clusters = find(&home, &test.names, test.selector.as_deref(), false).await?;
    let pools = Api::<WorkerPool>::namespaced(home.client.clone(), &home.namespace);
    let pools = pools.list(&ListParams::default()).await;
    let pools = pools.map_err(|err| said(err, "list WorkerPools"))?.items;
    let bar = confirm::progress(clusters.len() as u64, "clusters");
    let reports: Vec<Report> = stream::iter(&clusters)
        .map(|cluster| async {
            let report = look(&home, cluster, &pools, test.timeout).await;
            bar.inc(1);
            report
        })
        .buffered(AT_A_TIME)
        .collect()
        .await;
    bar.finish_and_clear();
    print(global.output, &reports)?;
    let is_good = !reports.is_empty() && reports.iter().all(Report::is_good);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(format: Format, reports: &[Report]) -> anyhow::Result<()> {
    let word = |verdict: Verdict| match verdict {
        Verdict::Good => "ok",
        Verdict::Lacks => "without",
        Verdict::Bad => "MISSING",
    };
    match format {
        Format::Json | Format::Yaml => {
            let items: Vec<Value> = reports
                .iter()
                .map(|report| {
                    let lines = report
                        .lines
                        .iter()
                        .map(|(verdict, text)| json!({ "verdict": word(*verdict), "text": text }));
                    json!({ "name": report.name, "good": report.is_good(), "lines": lines.collect::<Vec<_>>() })
                })
                .collect();
            output::value(format, &json!({ "items": items }))
        }
        Format::Name => reports
            .iter()
            .filter(|report| report.is_good())
            .try_for_each(|report| output::line(&format!("targetcluster.umbel.dev/{}", report.name))),
        Format::Table | Format::Wide => {
            for report in reports {
                output::line(&format!(
                    "{}: {}",
                    report.name,
                    if report.is_good() { "good" } else { "not good" }
                ))?;
                for (verdict, text) in &report.lines {
                    output::line(&format!("  {:<8} {}", word(*verdict), output::plain(text)))?;
                }
            }
            Ok(())
        }
    }
}

/// Looks at one cluster, as far as one can get.
async fn look(home: &Home, cluster: &DynamicObject, pools: &[WorkerPool], timeout: Duration) -> Report {
    let mut report = Report {
        name: cluster.name_any(),
        lines: Vec::new(),
    };
    if let Err(why) = steps(home, cluster, pools, timeout, &mut report).await {
        report.say(Verdict::Bad, why);
    }
    report
}

/// Everything that the next step needs ends the look when it is not there.
async fn steps(
    home: &Home,
    cluster: &DynamicObject,
    pools: &[WorkerPool],
    timeout: Duration,
    report: &mut Report,
) -> Result<(), String> {
    let reference = &cluster.data["spec"]["kubeconfigSecretRef"];
    let (name, key) = (
        reference["name"].as_str().unwrap_or_default(),
        reference["key"].as_str().unwrap_or_default(),
    );
    let secrets = Api::<Secret>::namespaced(home.client.clone(), &home.namespace);
    let secret = secrets.get(name).await;
    let secret = secret.map_err(|err| format!("{:#}", said(err, format!("Secret {name}"))))?;
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    let bytes = bytes.ok_or_else(|| format!("Secret {name} has no key {key}"))?;
    let accepted = kubeconfig::parse(&bytes.0).map_err(|refused| format!("kubeconfig: {refused}"))?;
    report.say(
        Verdict::Good,
        format!("kubeconfig of Secret {name} accepted: {}", accepted.server()),
    );
    let lifetime = accepted.lifetime();
    let what = match lifetime.kind {
        Kind::Token => "token",
        Kind::Certificate => "client certificate",
    };
    match lifetime.until {
        Some(until) if until <= jiff::Timestamp::now() => report.say(Verdict::Bad, format!("{what} ended at {until}")),
        Some(until) => report.say(Verdict::Good, format!("{what} good until {until}")),
        None => report.say(Verdict::Good, format!("{what} without an end")),
    }
    let client = accepted.client().map_err(|refused| format!("kubeconfig: {refused}"))?;

    let version = within(timeout, client.apiserver_version()).await;
    match version {
        Ok(version) => {
            report.say(Verdict::Good, "TLS: the server's certificate is the CA's");
            report.say(Verdict::Good, format!("API server {}", version.git_version));
        }
        Err(Fault::Api(code, why)) => {
            report.say(Verdict::Good, "TLS: the server's certificate is the CA's");
            if code == 401 {
                return Err(format!("login: {why}"));
            }
            report.say(Verdict::Bad, format!("read /version: {why}"));
        }
        Err(Fault::Other(why)) => {
            let is_tls = ["certificate", "tls", "handshake"]
                .iter()
                .any(|word| why.to_lowercase().contains(word));
            return Err(format!("{}: {why}", if is_tls { "TLS" } else { "connection" }));
        }
    }
    let me: Api<SelfSubjectReview> = Api::all(client.clone());
    match within(
        timeout,
        me.create(&PostParams::default(), &SelfSubjectReview::default()),
    )
    .await
    {
        Ok(review) => {
            let user = review
                .status
                .and_then(|status| status.user_info)
                .and_then(|user| user.username);
            report.say(
                Verdict::Good,
                format!("login as {}", user.unwrap_or_else(|| "somebody".to_owned())),
            );
        }
        Err(Fault::Api(401, why)) => return Err(format!("login: {why}")),
        Err(fault) => report.say(
            Verdict::Lacks,
            format!("login: who this is is not told: {}", fault.words()),
        ),
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    match within(timeout, namespaces.get("kube-system")).await {
        Ok(system) => {
            let uid = system.uid().unwrap_or_default();
            report.say(Verdict::Good, format!("identity: kube-system is {uid}"));
            let known = cluster.data["status"]["clusterUid"].as_str();
            if let Some(known) = known.filter(|known| *known != uid) {
                report.say(Verdict::Bad, format!("identity: the TargetCluster is {known}"));
            }
        }
        Err(fault) => report.say(
            Verdict::Bad,
            format!("identity: read Namespace kube-system: {}", fault.words()),
        ),
    }
    let asked = rights(&client, &secret, cluster, pools, report).await?;
    let answers: Vec<(Right, Result<bool, Fault>)> = stream::iter(asked)
        .map(|right| {
            let client = client.clone();
            async move {
                let answer = may(&client, &right, timeout).await;
                (right, answer)
            }
        })
        .buffered(QUESTIONS)
        .collect()
        .await;
    for (right, answer) in answers {
        let verdict = match (&answer, right.is_needed) {
            (Ok(true), _) => Verdict::Good,
            (Ok(false), false) => Verdict::Lacks,
            (Ok(false), true) | (Err(_), _) => Verdict::Bad,
        };
        let mut text = right.text();
        if let Err(fault) = answer {
            text = format!("{text}: {}", fault.words());
        }
        report.say(verdict, text);
    }
    Ok(())
}

enum Fault {
    /// The API server's code and words.
    Api(u16, String),
    Other(String),
}

impl Fault {
    fn words(&self) -> &str {
        match self {
            Fault::Api(_, why) | Fault::Other(why) => why,
        }
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Fault::Api(status.code, status.message.clone())),
        Ok(Err(err)) => Err(Fault::Other(format!("{:#}", said(err, "ask")))),
        Err(_) => Err(Fault::Other(format!("no answer within {} s", limit.as_secs_f32()))),
    }
}

/// One right to ask for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// What needs it.
    why: String,
    namespace: Option<String>,
    /// `deployments.apps`, `deployments.apps/scale`, or a path.
    resource: String,
    name: Option<String>,
    verb: String,
    is_needed: bool,
}

impl Right {
    fn text(&self) -> String {
        let name = self.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        let within = self
            .namespace
            .as_ref()
            .map(|namespace| format!(" in {namespace}"))
            .unwrap_or_default();
        format!("{}: {} {}{name}{within}", self.why, self.verb, self.resource)
    }
}

/// What syncs ask for, what join was told, and what the jobs of pools do that cover the cluster.
async fn rights(
    client: &Client,
    secret: &Secret,
    cluster: &DynamicObject,
    pools: &[WorkerPool],
    report: &mut Report,
) -> Result<Vec<Right>, String> {
    let mut asked = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for rule in account::sync_rules() {
        let strings = |field: &str| rule[field].as_array().cloned().unwrap_or_default();
        let group = rule["apiGroups"][0].as_str().unwrap_or_default();
        for verb in strings("verbs") {
            let right = |resource: String| Right {
                why: "sync".to_owned(),
                namespace: None,
                resource,
                name: rule["resourceNames"][0].as_str().map(str::to_owned),
                verb: text(&verb),
                // Where nobody measures there is nothing to read.
                is_needed: group != "metrics.k8s.io",
            };
            let resources = strings("resources")
                .into_iter()
                .map(|resource| full(&text(&resource), group));
            asked.extend(resources.chain(strings("nonResourceURLs").iter().map(text)).map(right));
        }
    }
    let allowed = secret.annotations().get(ANNOTATION_ALLOW);
    let allowed: Allowed = allowed
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let mut wanted = BTreeSet::new();
    for (namespace, resources) in &allowed {
        for resource in resources {
            for verb in ["get", "list", "watch", "patch"] {
                let namespace = (!namespace.is_empty()).then(|| namespace.clone());
                wanted.insert(job_right("allowed at join", namespace, resource.clone(), verb));
            }
        }
    }
    let labels: BTreeMap<String, String> = cluster.labels().clone();
    let covering = pools.iter().filter(|pool| {
        let access = pool.spec.cluster_access.as_ref();
        access.is_some_and(|access| access.covers(&cluster.name_any(), &labels))
    });
    let mut kinds = None;
    for pool in covering {
        let jobs = serde_json::to_value(&pool.spec.jobs).unwrap_or_default();
        for (job, rules) in jobs.as_object().into_iter().flatten() {
            let Some(verbs) = verbs(job) else { continue };
            let why = format!("pool {}, job {job}", pool.name_any());
            if job == "labelNodes" {
                wanted.extend(verbs.iter().map(|verb| job_right(&why, None, "nodes".to_owned(), verb)));
                continue;
            }
            if kinds.is_none() {
                kinds = Some(Kinds::of(client).await.map_err(|err| format!("{err:#}"))?);
            }
            let Some(kinds) = &kinds else { continue };
            let strings = |field: &str| rules[field].as_array().into_iter().flatten().filter_map(Value::as_str);
            let places = strings("namespaces").map(|namespace| Some(namespace.to_owned()));
            let namespaced = places.flat_map(|place| strings("kinds").map(move |kind| (place.clone(), kind)));
            for (namespace, kind) in namespaced.chain(strings("clusterKinds").map(|kind| (None, kind))) {
                let resource = match kinds.find(kind) {
                    Ok((resource, _)) => named(resource),
                    Err(err) => {
                        report.say(Verdict::Bad, format!("{why}: {err:#}"));
                        continue;
                    }
                };
                for verb in verbs {
                    let (verb, resource) = match verb.strip_suffix("/scale") {
                        Some(verb) => (verb, format!("{resource}/scale")),
                        None => (*verb, resource.clone()),
                    };
                    wanted.insert(job_right(&why, namespace.clone(), resource, verb));
                }
            }
        }
    }
    asked.extend(wanted);
    Ok(asked)
}

fn job_right(why: &str, namespace: Option<String>, resource: String, verb: &str) -> Right {
    Right {
        why: why.to_owned(),
        namespace,
        resource,
        name: None,
        verb: verb.to_owned(),
        is_needed: true,
    }
}

/// What a job of `spec.jobs` does with the objects that it names; nothing for those that are at work at home.
fn verbs(job: &str) -> Option<&'static [&'static str]> {
    Some(match job {
        "apply" | "diff" => &["get", "create", "patch"],
        "prune" | "delete" => &["get", "delete"],
        "get" => &["get", "list"],
        "restart" => &["get", "patch"],
        "scale" => &["get/scale", "patch/scale"],
        "wait" => &["get", "list", "watch"],
        "labelNodes" => &["get", "list", "patch"],
        _ => return None,
    })
}

fn full(plural: &str, group: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

async fn may(client: &Client, right: &Right, limit: Duration) -> Result<bool, Fault> {
    let spec = if right.resource.starts_with('/') {
        SelfSubjectAccessReviewSpec {
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(right.resource.clone()),
                verb: Some(right.verb.clone()),
            }),
            resource_attributes: None,
        }
    } else {
        let (resource, subresource) = right.resource.split_once('/').unwrap_or((&right.resource, ""));
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(plural.to_owned()),
                subresource: (!subresource.is_empty()).then(|| subresource.to_owned()),
                namespace: right.namespace.clone(),
                name: right.name.clone(),
                verb: Some(right.verb.clone()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        }
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = SelfSubjectAccessReview {
        spec,
        ..SelfSubjectAccessReview::default()
    };
    let answer = within(limit, reviews.create(&PostParams::default(), &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
