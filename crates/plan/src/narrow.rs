//! What a pool's template may ask for: the administrator's rules, by the levels of Kubernetes' Pod Security Standards.
//!
//! Who may write a WorkerPool has pods made by the operator. The rules hold what those pods may be, whatever the namespace
//! enforces; nothing that they refuse is ever sent to the API server. Fields that are newer than this program pass.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

/// How far templates are narrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Not at all.
    Privileged,
    /// Nothing of the node's, nothing that widens what a container may do.
    #[default]
    Baseline,
    /// Besides, each container must give up what it does not need.
    Restricted,
}

/// There is no such level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of privileged, baseline and restricted")]
pub struct NoLevel(String);

impl FromStr for Level {
    type Err = NoLevel;

    fn from_str(text: &str) -> Result<Self, NoLevel> {
        match text {
            "privileged" => Ok(Self::Privileged),
            "baseline" => Ok(Self::Baseline),
            "restricted" => Ok(Self::Restricted),
            other => Err(NoLevel(other.to_owned())),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

/// The one capability that a container may add: it takes nothing from others.
const CAPABILITIES: [&str; 1] = ["NET_BIND_SERVICE"];
/// Sysctls that concern nobody but the pod.
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];
/// Types of SELinux that contain.
const SELINUX: [&str; 5] = [
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];
/// Volumes at the level restricted.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
/// Annotations that once said what `appArmorProfile` says now.
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What of `template` the level does not allow, each with its field. `secrets`: those of target clusters, which no
/// template may read.
pub fn refused(template: &Value, level: Level, secrets: &BTreeSet<&str>) -> Vec<String> {
    let mut found = Refused::default();
    found.secrets(template, "", secrets);
    if level == Level::Privileged {
        return found.0;
    }
    let spec = &template["spec"];
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        found.when(is_set(&spec[field]), || format!("spec.{field} is not allowed"));
    }
    for (key, value) in template["metadata"]["annotations"].as_object().into_iter().flatten() {
        let profile = value.as_str().unwrap_or_default();
        let contains = profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/");
        found.when(key.starts_with(APPARMOR) && !contains, || {
            format!("metadata.annotations[{key}] must not be {value}")
        });
    }
    found.context(&spec["securityContext"], "spec.securityContext");
    for (number, sysctl) in items(&spec["securityContext"]["sysctls"]) {
        let name = text(&sysctl["name"]);
        found.when(!SYSCTLS.contains(&name), || {
            format!("spec.securityContext.sysctls[{number}] {name:?} is not allowed")
        });
    }
    for (number, volume) in items(&spec["volumes"]) {
        found.volume(volume, &format!("spec.volumes[{number}]"), level);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (number, container) in items(&spec[list]) {
            let at = format!("spec.{list}[{number}]");
            found.container(container, &at);
            if level == Level::Restricted {
                found.restricted(container, &at, &spec["securityContext"]);
            }
        }
    }
    found.0
}

/// What was found, in words.
#[derive(Default)]
struct Refused(Vec<String>);

impl Refused {
    fn when(&mut self, is_so: bool, words: impl FnOnce() -> String) {
        if is_so {
            self.0.push(words());
        }
    }

    /// Wherever a template names a Secret: volumes, projections, single variables and whole sets of them.
    fn secrets(&mut self, value: &Value, at: &str, secrets: &BTreeSet<&str>) {
        match value {
            Value::Object(fields) => {
                for (key, below) in fields {
                    let at = if at.is_empty() {
                        key.clone()
                    } else {
                        format!("{at}.{key}")
                    };
                    let name = match key.as_str() {
                        "secret" | "secretKeyRef" | "secretRef" | "nodePublishSecretRef" => {
                            below["secretName"].as_str().or_else(|| below["name"].as_str())
                        }
                        _ => None,
                    };
                    if let Some(name) = name.filter(|name| secrets.contains(name)) {
                        self.0
                            .push(format!("{at} names Secret {name}, which is a target cluster's"));
                    }
                    self.secrets(below, &at, secrets);
                }
            }
            Value::Array(all) => {
                for (number, below) in all.iter().enumerate() {
                    self.secrets(below, &format!("{at}[{number}]"), secrets);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn volume(&mut self, volume: &Value, at: &str, level: Level) {
        let kinds = volume.as_object().into_iter().flatten();
        for (kind, _) in kinds.filter(|(kind, value)| *kind != "name" && !value.is_null()) {
            let allowed = match level {
                Level::Privileged => true,
                Level::Baseline => kind != "hostPath",
                Level::Restricted => VOLUMES.contains(&kind.as_str()),
            };
            self.when(!allowed, || format!("{at}.{kind} is not allowed"));
        }
    }

    /// What pods and containers say alike.
    fn context(&mut self, context: &Value, at: &str) {
        for profile in ["seccompProfile", "appArmorProfile"] {
            self.when(context[profile]["type"] == "Unconfined", || {
                format!("{at}.{profile}.type must not be Unconfined")
            });
        }
        let selinux = &context["seLinuxOptions"];
        self.when(!SELINUX.contains(&text(&selinux["type"])), || {
            format!("{at}.seLinuxOptions.type {} is not allowed", selinux["type"])
        });
        for field in ["user", "role"] {
            self.when(!text(&selinux[field]).is_empty(), || {
                format!("{at}.seLinuxOptions.{field} is not allowed")
            });
        }
        self.when(is_set(&context["windowsOptions"]["hostProcess"]), || {
            format!("{at}.windowsOptions.hostProcess is not allowed")
        });
    }

    fn container(&mut self, container: &Value, at: &str) {
        let context = &container["securityContext"];
        let below = format!("{at}.securityContext");
        self.context(context, &below);
        self.when(is_set(&context["privileged"]), || {
            format!("{below}.privileged is not allowed")
        });
        self.when(!matches!(text(&context["procMount"]), "" | "Default"), || {
            format!("{below}.procMount {} is not allowed", context["procMount"])
        });
        for (number, capability) in items(&context["capabilities"]["add"]) {
            self.when(!CAPABILITIES.contains(&text(capability)), || {
                format!("{below}.capabilities.add[{number}] {capability} is not allowed")
            });
        }
        for (number, port) in items(&container["ports"]) {
            self.when(
                !matches!(&port["hostPort"], Value::Null) && port["hostPort"] != 0,
                || format!("{at}.ports[{number}].hostPort is not allowed"),
            );
        }
        let hooks = ["postStart", "preStop"].map(|hook| (format!("lifecycle.{hook}"), &container["lifecycle"][hook]));
        let probes =
            ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| (probe.to_owned(), &container[probe]));
        for (name, probe) in hooks.into_iter().chain(probes) {
            for kind in ["httpGet", "tcpSocket"] {
                self.when(!text(&probe[kind]["host"]).is_empty(), || {
                    format!("{at}.{name}.{kind}.host is not allowed")
                });
            }
        }
    }

    /// What the level restricted asks of each container, by itself or for the whole pod.
    fn restricted(&mut self, container: &Value, at: &str, pod: &Value) {
        let own = &container["securityContext"];
        let either = |field: &str| if own[field].is_null() { &pod[field] } else { &own[field] };
        let at = format!("{at}.securityContext");
        self.when(own["allowPrivilegeEscalation"] != false, || {
            format!("{at}.allowPrivilegeEscalation must be false")
        });
        self.when(either("runAsNonRoot") != true, || {
            format!("{at}.runAsNonRoot must be true, here or in spec.securityContext")
        });
        self.when(either("runAsUser") == 0, || format!("{at}.runAsUser must not be 0"));
        let profile = text(&either("seccompProfile")["type"]);
        self.when(!matches!(profile, "RuntimeDefault" | "Localhost"), || {
            format!("{at}.seccompProfile.type must be RuntimeDefault or Localhost, here or in spec.securityContext")
        });
        let drops_all = items(&own["capabilities"]["drop"]).any(|(_, one)| one == "ALL");
        self.when(!drops_all, || format!("{at}.capabilities.drop must hold ALL"));
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether a switch is on; what is no switch counts as such.
fn is_set(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

fn items(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}
