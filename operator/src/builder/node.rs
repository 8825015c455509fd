//! What the cluster's nodes can do for builders; pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;

/// The part of a node that matters to builders.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeFacts {
    /// Its label `kubernetes.io/arch`.
    pub architecture: String,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether pods in a user namespace run there.
    pub user_namespaces: bool,
}

impl NodeFacts {
    /// The facts of a Linux node. `None`: another operating system, or no label for its architecture.
    #[must_use]
    pub fn of(node: &Node) -> Option<Self> {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        if labels.get("kubernetes.io/os").is_some_and(|os| os != "linux") {
            return None;
        }
        let handlers = node.status.as_ref().and_then(|status| status.runtime_handlers.as_ref());
        // The handler without a name is the one that pods without a RuntimeClass get.
        let user_namespaces = handlers.into_iter().flatten().any(|handler| {
            handler.name.as_deref().unwrap_or_default().is_empty()
                && handler.features.as_ref().and_then(|features| features.user_namespaces) == Some(true)
        });
        Some(Self { architecture: labels.get("kubernetes.io/arch")?.clone(), labels, user_namespaces })
    }

    /// Whether the node has all these labels.
    #[must_use]
    pub fn matches(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

/// The architectures of these nodes, for a message.
#[must_use]
pub fn architectures(nodes: &[NodeFacts]) -> String {
    let names: BTreeSet<&str> = nodes.iter().map(|node| node.architecture.as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.into_iter().collect::<Vec<_>>().join(", ") }
}
