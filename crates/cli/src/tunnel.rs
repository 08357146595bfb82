//! A way to a Service of the cluster from outside of it, as `kubectl port-forward` makes one.

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::home::said;
use crate::output;

/// An address that can be reached from here.
pub(crate) struct Reached {
    pub(crate) url: String,
    /// The host that was meant, where the address is the near end of a tunnel to it.
    pub(crate) forwarded: Option<String>,
}

impl Reached {
    fn as_it_is(url: &str) -> Reached {
        Reached {
            url: url.to_owned(),
            forwarded: None,
        }
    }
}

/// The address of a Redis, if it is reachable as it is; else one on loopback that leads there.
///
/// Only names of Services (`name.namespace.svc…`) that this machine cannot resolve are forwarded. The way stays open
/// until the program ends.
pub(crate) async fn reachable(client: &Client, url: &str) -> anyhow::Result<Reached> {
    let Some(Address {
        before,
        host,
        port,
        after,
    }) = split(url)
    else {
        return Ok(Reached::as_it_is(url));
    };
    let Some((service, namespace)) = service(host) else {
        return Ok(Reached::as_it_is(url));
    };
    if tokio::net::lookup_host((host, port)).await.is_ok() {
        return Ok(Reached::as_it_is(url));
    }
    if !url.starts_with("redis://") && !url.starts_with("rediss://") {
        bail!("{host} is a name inside of the cluster, and what it names cannot be forwarded; say --redis-url");
    }
    let (pod, pod_port) = backend(client, service, namespace, port).await?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("open a local port")?;
    let local = listener.local_addr().context("open a local port")?.port();
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (pods, pod) = (pods.clone(), pod.clone());
            tokio::spawn(async move {
                if let Err(err) = forward(near, &pods, &pod, pod_port).await {
                    output::say(&format!("forward to pod {pod}: {err:#}"));
                }
            });
        }
    });
    Ok(Reached {
        url: format!("{before}127.0.0.1:{local}{after}"),
        forwarded: Some(host.to_owned()),
    })
}

async fn forward(mut near: TcpStream, pods: &Api<Pod>, pod: &str, port: u16) -> anyhow::Result<()> {
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    let mut far = forwarder.take_stream(port).context("the API server opened no stream")?;
    let refused = forwarder.take_error(port);
    // Either side may hang up at any time; what the far side refused is told apart.
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    forwarder.abort();
    match refused {
        Some(refused) => refused.await.map_or(Ok(()), |words| Err(anyhow::anyhow!(words))),
        None => Ok(()),
    }
}

/// The pod behind a Service's port, and its own port.
async fn backend(client: &Client, service: &str, namespace: &str, port: u16) -> anyhow::Result<(String, u16)> {
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let found = services
        .get(service)
        .await
        .map_err(|err| said(err, format!("read Service {namespace}/{service}")))?;
    let spec = found.spec.unwrap_or_default();
    let selector = spec.selector.unwrap_or_default();
    if selector.is_empty() {
        bail!("Service {namespace}/{service} has no pods to forward to; say --redis-url");
    }
    let target = spec
        .ports
        .iter()
        .flatten()
        .find(|open| open.port == i32::from(port))
        .map(|open| open.target_port.clone().unwrap_or(IntOrString::Int(open.port)))
        .with_context(|| format!("Service {namespace}/{service} has no port {port}"))?;
    let labels = selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",");
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let pods = pods
        .list(&ListParams::default().labels(&labels))
        .await
        .map_err(|err| said(err, format!("list the pods of Service {namespace}/{service}")))?;
    let pod = pods
        .items
        .into_iter()
        .find(is_ready)
        .with_context(|| format!("no pod of Service {namespace}/{service} is ready"))?;
    let number = match target {
        IntOrString::Int(number) => Some(number),
        IntOrString::String(name) => {
            let ports = pod
                .spec
                .iter()
                .flat_map(|spec| &spec.containers)
                .flat_map(|container| container.ports.iter().flatten());
            ports
                .filter(|open| open.name.as_deref() == Some(name.as_str()))
                .map(|open| open.container_port)
                .next()
        }
    };
    let number = number
        .and_then(|number| u16::try_from(number).ok())
        .with_context(|| format!("the pods of Service {namespace}/{service} do not have its port"))?;
    Ok((pod.name_any(), number))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

struct Address<'a> {
    /// Scheme and credentials.
    before: &'a str,
    host: &'a str,
    port: u16,
    /// Database and options.
    after: &'a str,
}

fn split(url: &str) -> Option<Address<'_>> {
    let authority = url.find("://")? + 3;
    let end = url[authority..].find(['/', '?']).map_or(url.len(), |at| authority + at);
    let host = url[authority..end]
        .rfind('@')
        .map_or(authority, |at| authority + at + 1);
    let (name, port) = url[host..end].rsplit_once(':').unwrap_or((&url[host..end], "6379"));
    Some(Address {
        before: &url[..host],
        host: name,
        port: port.parse().ok()?,
        after: &url[end..],
    })
}

/// `name.namespace.svc`, with or without the cluster's domain.
fn service(host: &str) -> Option<(&str, &str)> {
    let mut labels = host.split('.');
    let (name, namespace, svc) = (labels.next()?, labels.next()?, labels.next()?);
    (svc == "svc").then_some((name, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_without_losing_a_character() {
        let Address {
            before,
            host,
            port,
            after,
        } = split("redis://default:p%40s@umbel-redis.jobs.svc:6380/3?x=y").unwrap();
        assert_eq!(
            (before, host, port, after),
            ("redis://default:p%40s@", "umbel-redis.jobs.svc", 6380, "/3?x=y")
        );
        assert_eq!(service(host), Some(("umbel-redis", "jobs")));
        let bare = split("redis://localhost").unwrap();
        assert_eq!((bare.host, bare.port, bare.after), ("localhost", 6379, ""));
    }

    #[test]
    fn only_names_of_services_are_forwarded() {
        assert_eq!(service("redis.example.com"), None);
        assert_eq!(service("a.b.svc.cluster.local"), Some(("a", "b")));
        assert_eq!(service("svc"), None);
    }
}
