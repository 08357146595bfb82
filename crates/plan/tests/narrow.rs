//! A05, I24: templates that ask for more than the administrator allows, and those that do not.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use umbel_plan::narrow::{Level, refused};

/// A template with this much more in its pod.
fn pod(more: &Value) -> Value {
    let mut template = json!({ "spec": { "containers": [{ "name": "worker", "image": "x" }] } });
    let spec = template["spec"].as_object_mut().expect("an object");
    spec.extend(more.as_object().expect("an object").clone());
    template
}

/// A template whose container, and another one beside it, has this much more.
fn container(more: &Value) -> Value {
    let mut one = json!({ "name": "worker", "image": "x" });
    let fields = one.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    pod(&json!({ "containers": [{ "name": "first", "image": "x" }, one] }))
}

fn context(context: &Value) -> Value {
    container(&json!({ "securityContext": context }))
}

fn volume(volume: &Value) -> Value {
    pod(&json!({ "volumes": [{ "name": "a", "emptyDir": {} }, volume] }))
}

fn said(template: &Value, level: Level) -> Vec<String> {
    refused(template, level, &BTreeSet::from(["eu-kubeconfig"]))
}

/// Templates that no level but privileged lets through, and the field that the answer must name.
fn hostile() -> Vec<(Value, &'static str)> {
    let add = |name: &str| context(&json!({ "capabilities": { "add": ["NET_BIND_SERVICE", name] } }));
    let sysctl = |name: &str| pod(&json!({ "securityContext": { "sysctls": [{ "name": name, "value": "1" }] } }));
    let init =
        |context: Value| pod(&json!({ "initContainers": [{ "name": "i", "image": "x", "securityContext": context }] }));
    let host = json!({ "host": "169.254.169.254", "port": 80 });
    let added = "spec.containers[1].securityContext.capabilities.add[1]";
    vec![
        (pod(&json!({ "hostNetwork": true })), "spec.hostNetwork"),
        (pod(&json!({ "hostPID": true })), "spec.hostPID"),
        (pod(&json!({ "hostIPC": true })), "spec.hostIPC"),
        (pod(&json!({ "hostNetwork": "yes" })), "spec.hostNetwork"),
        (
            volume(&json!({ "name": "b", "hostPath": { "path": "/" } })),
            "spec.volumes[1].hostPath",
        ),
        (
            volume(&json!({ "name": "b", "hostPath": { "path": "/run/containerd.sock", "type": "Socket" } })),
            "spec.volumes[1].hostPath",
        ),
        (
            context(&json!({ "privileged": true })),
            "spec.containers[1].securityContext.privileged",
        ),
        (
            init(json!({ "privileged": true })),
            "spec.initContainers[0].securityContext.privileged",
        ),
        (add("SYS_ADMIN"), added),
        (add("NET_ADMIN"), added),
        (add("NET_RAW"), added),
        (add("SYS_PTRACE"), added),
        (add("SYS_MODULE"), added),
        (add("SYS_TIME"), added),
        (add("DAC_READ_SEARCH"), added),
        (add("BPF"), added),
        (add("ALL"), added),
        (add("CAP_SYS_ADMIN"), added),
        (
            init(json!({ "capabilities": { "add": ["SYS_ADMIN"] } })),
            "spec.initContainers[0].securityContext.capabilities.add[0]",
        ),
        (
            container(&json!({ "ports": [{ "containerPort": 80, "hostPort": 80 }] })),
            "spec.containers[1].ports[0].hostPort",
        ),
        (
            context(&json!({ "procMount": "Unmasked" })),
            "spec.containers[1].securityContext.procMount",
        ),
        (
            context(&json!({ "seccompProfile": { "type": "Unconfined" } })),
            "spec.containers[1].securityContext.seccompProfile.type",
        ),
        (
            pod(&json!({ "securityContext": { "seccompProfile": { "type": "Unconfined" } } })),
            "spec.securityContext.seccompProfile.type",
        ),
        (
            context(&json!({ "appArmorProfile": { "type": "Unconfined" } })),
            "spec.containers[1].securityContext.appArmorProfile.type",
        ),
        (
            pod(&json!({ "securityContext": { "appArmorProfile": { "type": "Unconfined" } } })),
            "spec.securityContext.appArmorProfile.type",
        ),
        (
            json!({ "metadata": { "annotations": { "container.apparmor.security.beta.kubernetes.io/worker": "unconfined" } },
                    "spec": { "containers": [{ "name": "worker", "image": "x" }] } }),
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/worker]",
        ),
        (
            context(&json!({ "seLinuxOptions": { "type": "spc_t" } })),
            "spec.containers[1].securityContext.seLinuxOptions.type",
        ),
        (
            pod(&json!({ "securityContext": { "seLinuxOptions": { "type": "unconfined_t" } } })),
            "spec.securityContext.seLinuxOptions.type",
        ),
        (
            context(&json!({ "seLinuxOptions": { "user": "root" } })),
            "spec.containers[1].securityContext.seLinuxOptions.user",
        ),
        (
            context(&json!({ "seLinuxOptions": { "role": "sysadm_r" } })),
            "spec.containers[1].securityContext.seLinuxOptions.role",
        ),
        (sysctl("kernel.msgmax"), "spec.securityContext.sysctls[0]"),
        (sysctl("net.core.somaxconn"), "spec.securityContext.sysctls[0]"),
        (
            pod(&json!({ "securityContext": { "windowsOptions": { "hostProcess": true } } })),
            "spec.securityContext.windowsOptions.hostProcess",
        ),
        (
            context(&json!({ "windowsOptions": { "hostProcess": true } })),
            "spec.containers[1].securityContext.windowsOptions.hostProcess",
        ),
        (
            container(&json!({ "startupProbe": { "httpGet": host } })),
            "spec.containers[1].startupProbe.httpGet.host",
        ),
        (
            container(&json!({ "livenessProbe": { "tcpSocket": host } })),
            "spec.containers[1].livenessProbe.tcpSocket.host",
        ),
        (
            container(&json!({ "lifecycle": { "postStart": { "httpGet": host } } })),
            "spec.containers[1].lifecycle.postStart.httpGet.host",
        ),
    ]
}

/// Templates that read a target cluster's Secret, which none may.
fn thieves() -> Vec<(Value, &'static str)> {
    let secret = json!({ "name": "eu-kubeconfig", "key": "value" });
    let value = json!([{ "name": "A", "valueFrom": { "secretKeyRef": secret } }]);
    vec![
        (
            volume(&json!({ "name": "b", "secret": { "secretName": "eu-kubeconfig" } })),
            "spec.volumes[1].secret",
        ),
        (
            volume(&json!({ "name": "b", "projected": { "sources": [{ "secret": { "name": "eu-kubeconfig" } }] } })),
            "spec.volumes[1].projected.sources[0].secret",
        ),
        (
            container(&json!({ "env": value })),
            "spec.containers[1].env[0].valueFrom.secretKeyRef",
        ),
        (
            container(&json!({ "envFrom": [{ "secretRef": { "name": "eu-kubeconfig" } }] })),
            "spec.containers[1].envFrom[0].secretRef",
        ),
        (
            pod(&json!({ "initContainers": [{ "name": "i", "image": "x", "env": value }] })),
            "spec.initContainers[0].env[0].valueFrom.secretKeyRef",
        ),
    ]
}

#[test]
fn a05_hostile_templates_are_refused_with_their_field() {
    let hostile = hostile();
    assert!(hostile.len() + thieves().len() >= 40);
    for (template, field) in &hostile {
        for level in [Level::Baseline, Level::Restricted] {
            let said = said(template, level);
            assert!(
                said.iter().any(|one| one.starts_with(field)),
                "{level} {template}: {said:?}"
            );
        }
        assert_eq!(said(template, Level::Privileged), [""; 0], "{template}");
    }
    for (template, field) in thieves() {
        for level in [Level::Privileged, Level::Baseline, Level::Restricted] {
            let said = said(&template, level);
            assert!(
                said.iter().any(|one| one.starts_with(field)),
                "{level} {template}: {said:?}"
            );
        }
    }
}

#[test]
fn a05_plain_templates_and_newer_fields_pass() {
    let calm = [
        pod(&json!({})),
        pod(&json!({ "hostNetwork": false, "hostPID": null, "hostUsers": false, "invented": { "by": "nobody" } })),
        pod(&json!({ "initContainers": [{ "name": "sidecar", "image": "x", "restartPolicy": "Always" }] })),
        volume(&json!({ "name": "b", "secret": { "secretName": "mine" } })),
        volume(&json!({ "name": "b", "image": { "reference": "x" } })),
        volume(&json!({ "name": "b", "persistentVolumeClaim": { "claimName": "data" } })),
        context(&json!({ "capabilities": { "add": ["NET_BIND_SERVICE"], "drop": ["ALL"] }, "runAsUser": 0 })),
        context(
            &json!({ "seccompProfile": { "type": "RuntimeDefault" }, "procMount": "Default", "privileged": false }),
        ),
        context(&json!({ "seLinuxOptions": { "type": "container_t", "level": "s0:c1,c2" } })),
        pod(&json!({ "securityContext": { "sysctls": [{ "name": "net.ipv4.tcp_syncookies", "value": "1" }] } })),
        container(&json!({ "ports": [{ "containerPort": 80, "hostPort": 0 }, { "containerPort": 81 }] })),
        container(
            &json!({ "startupProbe": { "httpGet": { "path": "/", "port": 80 } }, "lifecycle": { "preStop": { "exec": { "command": ["x"] } } } }),
        ),
        json!({ "metadata": { "annotations": { "container.apparmor.security.beta.kubernetes.io/worker": "runtime/default" } },
                "spec": { "containers": [{ "name": "worker", "image": "x" }] } }),
    ];
    for template in calm {
        assert_eq!(said(&template, Level::Baseline), [""; 0], "{template}");
    }
}

#[test]
fn a05_the_level_restricted_asks_each_container_to_give_up_what_it_does_not_need() {
    let quiet = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    let of = |pod: Value, container: Value, more: Value| {
        let mut template = json!({ "spec": { "securityContext": pod, "containers": [{ "name": "w", "image": "x", "securityContext": container }] } });
        let spec = template["spec"].as_object_mut().expect("an object");
        spec.extend(more.as_object().expect("an object").clone());
        said(&template, Level::Restricted)
    };
    let pod = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
    assert_eq!(of(pod.clone(), quiet.clone(), json!({})), [""; 0]);
    let mut own = quiet.clone();
    let fields = own.as_object_mut().expect("an object");
    fields.extend(pod.as_object().expect("an object").clone());
    assert_eq!(of(json!({}), own.clone(), json!({})), [""; 0], "each by itself");
    for (change, words) in [
        (
            json!({ "allowPrivilegeEscalation": null }),
            "allowPrivilegeEscalation must be false",
        ),
        (
            json!({ "allowPrivilegeEscalation": true }),
            "allowPrivilegeEscalation must be false",
        ),
        (json!({ "runAsNonRoot": false }), "runAsNonRoot must be true"),
        (json!({ "runAsUser": 0 }), "runAsUser must not be 0"),
        (
            json!({ "seccompProfile": null }),
            "seccompProfile.type must be RuntimeDefault",
        ),
        (
            json!({ "capabilities": { "drop": ["NET_RAW"] } }),
            "capabilities.drop must hold ALL",
        ),
    ] {
        let mut changed = own.clone();
        let fields = changed.as_object_mut().expect("an object");
        fields.extend(change.as_object().expect("an object").clone());
        let said = of(json!({}), changed, json!({}));
        assert!(said.len() == 1 && said[0].contains(words), "{change}: {said:?}");
    }
    let disks =
        json!({ "volumes": [{ "name": "a", "emptyDir": {} }, { "name": "b", "nfs": { "server": "x", "path": "/" } }] });
    assert_eq!(of(pod, quiet, disks), ["spec.volumes[1].nfs is not allowed"]);
}
