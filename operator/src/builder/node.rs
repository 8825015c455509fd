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
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        let user_namespaces = user_namespaces && info.is_some_and(|info| kernel_maps_ids(&info.kernel_version));
        Some(Self { architecture: labels.get("kubernetes.io/arch")?.clone(), labels, user_namespaces })
    }

    /// Whether the node has all these labels.
    #[must_use]
    pub fn matches(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

/// Whether a kernel can mount a tmpfs, such as that of a Secret, with other ids: Linux 6.3 on. The runtime's word is not
/// enough, for it tells what the runtime could do.
/// <https://kubernetes.io/docs/concepts/workloads/pods/user-namespaces/#before-you-begin>
fn kernel_maps_ids(version: &str) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 3)
}

/// The architectures of these nodes, for a message.
#[must_use]
pub fn architectures(nodes: &[NodeFacts]) -> String {
    let names: BTreeSet<&str> = nodes.iter().map(|node| node.architecture.as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.into_iter().collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_from_6_3_on_map_ids() {
        for (version, expected) in [
            ("6.3.0", true),
            ("6.18.2-amd64", true),
            ("10.0", true),
            ("6.2.0-1018-azure", false),
            ("5.15.0-1075-azure", false),
            ("6", false),
            ("", false),
        ] {
            assert_eq!(kernel_maps_ids(version), expected, "{version}");
        }
    }
}
