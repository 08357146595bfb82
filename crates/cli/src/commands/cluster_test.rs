//! `umbel cluster test`: what works at a target and what is missing, asked as workers ask: with the same credential and as
//! the same user.

mod rights;

use std::process::ExitCode;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use umbel_api::WorkerPool;
use umbel_api::names::{ANNOTATION_ALLOW, ANNOTATION_RENEW};
use umbel_clusters::credential::{Account, Kind};
use umbel_clusters::{Impersonate, kubeconfig};

use self::rights::Right;
use super::cluster_ls::find;
use crate::account::Allowed;
use crate::args::{ClusterTest, Format, Global};
use crate::confirm;
use crate::home::{Home, said};
use crate::output;

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
    match me(&client, timeout).await {
        Ok(user) => report.say(Verdict::Good, format!("login as {user}")),
        Err(Fault::Api(401, why)) => return Err(format!("login: {why}")),
        Err(fault) => report.say(
            Verdict::Lacks,
            format!("login: who this is is not told: {}", fault.words()),
        ),
    }
    let own = client;
    let client = match serde_json::from_value(cluster.data["spec"]["impersonate"].clone()) {
        Ok(None) => own.clone(),
        Ok(Some(who)) => impersonate(&own, &who, timeout, report).await?,
        Err(err) => return Err(format!("impersonate: {err}")),
    };
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
    if let Some(account) = secret.annotations().get(ANNOTATION_RENEW) {
        match serde_json::from_str::<Account>(account) {
            Ok(account) => ask(&own, vec![rights::to_renew(&account)], timeout, report).await,
            Err(err) => report.say(Verdict::Bad, format!("renewal: annotation {ANNOTATION_RENEW}: {err}")),
        }
    }
    let mut wanted = rights::to_sync();
    let allowed = secret.annotations().get(ANNOTATION_ALLOW);
    let allowed: Allowed = allowed
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    wanted.extend(rights::allowed(&allowed));
    let covering = pools.iter().filter(|pool| {
        let access = pool.spec.cluster_access.as_ref();
        access.is_some_and(|access| access.covers(&cluster.name_any(), cluster.labels()))
    });
    let (of_pools, faults) = rights::of_pools(&client, covering, timeout).await;
    wanted.extend(of_pools);
    ask(&client, wanted, timeout, report).await;
    for fault in faults {
        report.say(Verdict::Bad, fault);
    }
    Ok(())
}

/// Who the target takes us for.
async fn me(client: &Client, timeout: Duration) -> Result<String, Fault> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let (params, review) = (PostParams::default(), SelfSubjectReview::default());
    let review = within(timeout, api.create(&params, &review)).await?;
    let user = review.status.and_then(|status| status.user_info);
    let name = user.and_then(|user| user.username);
    Ok(name.unwrap_or_else(|| "somebody".to_owned()))
}

/// The client of whom workers' requests are made as. Where that is refused, none of them gets any further.
async fn impersonate(
    own: &Client,
    who: &Impersonate,
    timeout: Duration,
    report: &mut Report,
) -> Result<Client, String> {
    let groups = match who.groups.as_slice() {
        [] => String::new(),
        groups => format!(" of {}", groups.join(", ")),
    };
    let title = format!("impersonate {}{groups}", who.user);
    let client = who.client(own).map_err(|why| format!("{title}: {why}"))?;
    match me(&client, timeout).await {
        Ok(user) => {
            report.say(Verdict::Good, format!("{title}: requests are made as {user}"));
            Ok(client)
        }
        Err(Fault::Api(403, why)) => {
            // The target's words name the first right that is missing.
            ask(own, rights::to_impersonate(who), timeout, report).await;
            Err(format!("{title}: {why}"))
        }
        Err(fault) => Err(format!("{title}: {}", fault.words())),
    }
}

/// Asks for these rights, a line each.
async fn ask(client: &Client, rights: Vec<Right>, timeout: Duration, report: &mut Report) {
    let answers: Vec<(Right, Result<bool, Fault>)> = stream::iter(rights)
        .map(|right| async move {
            let answer = right.is_given(client, timeout).await;
            (right, answer)
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
