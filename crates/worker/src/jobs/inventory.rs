//! The inventory of an apply set: which objects belong to it, and which run wrote them last. Pure.
//!
//! It is a ConfigMap at the target, `umbel-applyset-<name>`. It is written before the objects are (*open*: the set as it was
//! and as it will be) and after them (*closed*). Its fence is that of the run which wrote it, and a run that finds a newer
//! one does nothing.
//!
//! What that gains: after a set was closed, no older run has a write on its way, for each opens the set before its first
//! one. So objects that are in place need no write that would tell older runs to stay away. After a set was left open,
//! each object is written, and carries the newer fence.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::fence::{ANNOTATION, Fence};
use super::manifest::{Manifest, rank};

/// How the names of inventories begin.
pub(super) const PREFIX: &str = "umbel-applyset-";
/// The label on the objects of a set.
pub(super) const LABEL: &str = "umbel.dev/applyset";
/// The annotation on the objects of a set that says in which namespace its inventory is.
pub(super) const PLACE: &str = "umbel.dev/applyset-namespace";
/// Objects of a set, those included that left it and were not removed: with the longest names some 800 KB.
pub(super) const MAX_MEMBERS: usize = 1000;
const OBJECTS: &str = "objects";
const STATE: &str = "state";
const OPEN: &str = "open";
const CLOSED: &str = "closed";

/// An object of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Member {
    pub(super) api_version: String,
    pub(super) kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Member {
    pub(super) fn of(manifest: &Manifest) -> Member {
        Member {
            api_version: manifest.api_version().to_owned(),
            kind: manifest.kind.clone(),
            namespace: manifest.namespace.clone(),
            name: manifest.name.clone(),
        }
    }

    pub(super) fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// The same object in another version is the same object.
    fn key(&self) -> (&str, &str, &str, &str) {
        (self.group(), &self.kind, &self.namespace, &self.name)
    }

    pub(super) fn is_same_object(&self, other: &Member) -> bool {
        self.key() == other.key()
    }
}

/// An inventory as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    /// None: there is none yet.
    pub(super) version: Option<String>,
    pub(super) fence: Option<Fence>,
    /// Did the run that wrote it last not finish?
    pub(super) is_open: bool,
    pub(super) members: Vec<Member>,
}

impl Inventory {
    /// Reads one.
    pub(super) fn parse(map: &ConfigMap) -> Option<Inventory> {
        let annotations = map.metadata.annotations.as_ref()?;
        let data = map.data.as_ref()?;
        Some(Inventory {
            version: Some(map.metadata.resource_version.clone()?),
            fence: Some(Fence::parse(annotations.get(ANNOTATION)?)?),
            is_open: data.get(STATE).map(String::as_str) != Some(CLOSED),
            members: serde_json::from_str(data.get(OBJECTS)?).ok()?,
        })
    }

    /// What is in it and not among these, the last ones of the order of writing first.
    pub(super) fn left(&self, members: &[Member]) -> Vec<Member> {
        let kept: BTreeSet<_> = members.iter().map(Member::key).collect();
        let mut left: Vec<Member> = self
            .members
            .iter()
            .filter(|one| !kept.contains(&one.key()))
            .cloned()
            .collect();
        left.sort_by_key(|one| std::cmp::Reverse(rank(&one.kind)));
        left
    }

    /// All that is in it, and these.
    pub(super) fn with(&self, members: &[Member]) -> Vec<Member> {
        let mut all = members.to_vec();
        all.extend(self.left(members));
        all
    }
}

/// The name of a set's ConfigMap, if the set may have this name.
pub(super) fn name(set: &str) -> Option<String> {
    let is_of_names = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name =
        (1..=63).contains(&set.len()) && set.bytes().all(is_of_names) && !set.starts_with('-') && !set.ends_with('-');
    is_name.then(|| format!("{PREFIX}{set}"))
}

/// The ConfigMap to write. Its members stand in order, so that the same set is the same text.
pub(super) fn write(
    set: &str,
    namespace: &str,
    version: Option<&str>,
    fence: Fence,
    is_open: bool,
    members: &[Member],
) -> Result<ConfigMap, serde_json::Error> {
    let members: BTreeSet<&Member> = members.iter().collect();
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("{PREFIX}{set}"),
            "namespace": namespace,
            "resourceVersion": version,
            "labels": {"app.kubernetes.io/managed-by": "umbel"},
            "annotations": {ANNOTATION: fence.to_string()},
        },
        "data": {
            STATE: if is_open { OPEN } else { CLOSED },
            OBJECTS: serde_json::to_string(&members)?,
        },
    }))
}

#[cfg(test)]
mod unit {
    use super::*;

    fn member(kind: &str, name: &str) -> Member {
        let (api_version, kind) = kind.split_once(' ').unwrap();
        Member {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let fence = Fence::parse("5/1.9").unwrap();
        let members = [member("apps/v1 Deployment", "web"), member("v1 ConfigMap", "site")];
        let mut map = write("shop", "shop", None, fence, true, &members).unwrap();
        assert_eq!(map.metadata.name.as_deref(), Some("umbel-applyset-shop"));
        map.metadata.resource_version = Some("7".into());
        let mut read = Inventory::parse(&map).unwrap();
        assert_eq!(
            (read.fence, read.is_open, read.version.as_deref()),
            (Some(fence), true, Some("7"))
        );
        read.members.sort();
        assert_eq!(read.members, members);
        let closed = write("shop", "shop", Some("7"), fence, false, &members).unwrap();
        assert!(
            !Inventory::parse(&ConfigMap {
                metadata: map.metadata.clone(),
                ..closed
            })
            .unwrap()
            .is_open
        );
    }

    #[test]
    fn what_left_is_found_whatever_its_version_and_last_kinds_go_first() {
        let had = Inventory {
            members: vec![
                member("v1 ConfigMap", "site"),
                member("apps/v1beta1 Deployment", "web"),
                member("v1 ServiceAccount", "old"),
                member("apps/v1 Deployment", "old"),
            ],
            ..Inventory::default()
        };
        let now = [member("apps/v1 Deployment", "web"), member("v1 ConfigMap", "other")];
        let left: Vec<String> = had
            .left(&now)
            .iter()
            .map(|one| format!("{} {}", one.kind, one.name))
            .collect();
        assert_eq!(left, ["Deployment old", "ConfigMap site", "ServiceAccount old"]);
        assert_eq!(had.with(&now).len(), 5);
    }

    #[test]
    fn a_full_inventory_of_long_names_fits_into_an_object() {
        let long = |n: usize| Member {
            api_version: format!("{}/v1beta1", "g".repeat(250)),
            kind: "K".repeat(63),
            namespace: "n".repeat(63),
            name: format!("{n:0>253}"),
        };
        let members: Vec<Member> = (0..MAX_MEMBERS).map(long).collect();
        let map = write("shop", "shop", None, Fence::parse("1/1.1").unwrap(), true, &members).unwrap();
        assert!(serde_json::to_vec(&map).unwrap().len() < 1_000_000);
    }

    #[test]
    fn names_of_sets_are_names_of_objects() {
        assert_eq!(name("shop-1").as_deref(), Some("umbel-applyset-shop-1"));
        for set in ["", "-a", "a-", "A", "a/b", "a.b", "../x", &"a".repeat(64)] {
            assert_eq!(name(set), None, "{set}");
        }
    }
}
