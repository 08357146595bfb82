//! A pool's own ServiceAccount, and the right to read exactly the Secrets of its clusters.

use serde_json::{Value, json};

use crate::deployment::labels;
use crate::pool::Pool;

/// The objects that give a pool's pods their rights.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    /// Every pool has its own ServiceAccount.
    pub service_account: Value,
    /// A Role and its binding, only if its jobs may touch clusters.
    pub grant: Option<Grant>,
}

/// Role and binding.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// `get` and `watch` on the named Secrets.
    pub role: Value,
    /// To the pool's ServiceAccount.
    pub binding: Value,
}

/// The name that a pool's ServiceAccount, Role and binding share.
pub fn name(pool: &str) -> String {
    format!("umbel-pool-{pool}")
}

/// The objects for this pool.
pub fn plan(pool: &Pool) -> Access {
    let name = name(&pool.name);
    let metadata = json!({
        "name": name,
        "namespace": pool.namespace,
        "labels": labels(pool),
        "ownerReferences": [pool.owner],
    });
    let service_account = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        // Pods say for themselves whether they need a token.
        "automountServiceAccountToken": false,
    });
    let mut secrets: Vec<&str> = pool.clusters.iter().map(|cluster| cluster.secret.as_str()).collect();
    secrets.sort_unstable();
    secrets.dedup();
    let grant = (!secrets.is_empty()).then(|| Grant {
        role: json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [{ "apiGroups": [""], "resources": ["secrets"], "resourceNames": secrets, "verbs": ["get", "watch"] }],
        }),
        binding: json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": pool.namespace }],
        }),
    });
    Access { service_account, grant }
}
