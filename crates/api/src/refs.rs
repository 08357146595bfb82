//! References to other objects. All are to the object's own namespace: a namespace is the tenancy boundary.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A key of a Secret in the same namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key inside the Secret.
    #[schemars(length(min = 1, max = 253), pattern(r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A key of a ConfigMap in the same namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key inside the ConfigMap.
    #[schemars(length(min = 1, max = 253), pattern(r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// Another object of the same namespace, by name.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// Objects chosen by their labels. Empty matches every object of the namespace.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that must be present with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements that must all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement on a label.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label relates to the values.
    pub operator: Operator,
    /// The values; for `In` and `NotIn` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub values: Vec<String>,
}

/// How a label relates to the values of a requirement.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Selector {
    /// Whether an object with these labels is chosen.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let Self {
            match_labels,
            match_expressions,
        } = self;
        match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let among = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => among,
            Operator::NotIn => !among,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl From<&Selector> for LabelSelector {
    fn from(selector: &Selector) -> Self {
        let requirement = |requirement: &Requirement| LabelSelectorRequirement {
            key: requirement.key.clone(),
            operator: format!("{:?}", requirement.operator),
            values: (!requirement.values.is_empty()).then(|| requirement.values.clone()),
        };
        Self {
            match_labels: Some(selector.match_labels.clone()),
            match_expressions: Some(selector.match_expressions.iter().map(requirement).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn requirement(key: &str, operator: Operator, values: &[&str]) -> Selector {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Selector {
            match_expressions: vec![Requirement {
                key: key.into(),
                operator,
                values,
            }],
            ..Selector::default()
        }
    }

    #[test]
    fn selector_matches_as_kubernetes_does() {
        let prod = labels(&[("env", "prod"), ("region", "eu")]);
        let table = [
            (Selector::default(), true),
            (
                Selector {
                    match_labels: labels(&[("env", "prod")]),
                    ..Selector::default()
                },
                true,
            ),
            (
                Selector {
                    match_labels: labels(&[("env", "dev")]),
                    ..Selector::default()
                },
                false,
            ),
            (requirement("env", Operator::In, &["dev", "prod"]), true),
            (requirement("tier", Operator::In, &["gold"]), false),
            (requirement("env", Operator::NotIn, &["prod"]), false),
            (requirement("tier", Operator::NotIn, &["gold"]), true),
            (requirement("env", Operator::Exists, &[]), true),
            (requirement("tier", Operator::Exists, &[]), false),
            (requirement("tier", Operator::DoesNotExist, &[]), true),
            (requirement("env", Operator::DoesNotExist, &[]), false),
        ];
        for (selector, expected) in table {
            assert_eq!(selector.matches(&prod), expected, "{selector:?}");
            let theirs: kube::core::Selector = LabelSelector::from(&selector).try_into().expect("a valid selector");
            assert_eq!(
                kube::core::SelectorExt::matches(&theirs, &prod),
                expected,
                "{selector:?}"
            );
        }
    }
}
