//! Which security profile a builder gets; pure.

use kiln_crds::image_build::CacheScope;
use kiln_crds::{BuilderPoolSpec, SecurityProfile};

use super::node::NodeFacts;

/// A profile that a pod can be made with.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Profile {
    /// The pod has a user namespace, and buildkitd its full process sandbox.
    UserNamespace,
    /// The pod has the host's user namespace: RUN steps can read what buildkitd holds.
    Rootless,
}

impl Profile {
    /// As in `BuilderPool.spec.securityProfile` and in the builder's environment.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UserNamespace => "UserNamespace",
            Self::Rootless => "Rootless",
        }
    }

    /// The profile's name in the API.
    #[must_use]
    pub const fn in_api(self) -> SecurityProfile {
        match self {
            Self::UserNamespace => SecurityProfile::UserNamespace,
            Self::Rootless => SecurityProfile::Rootless,
        }
    }

    /// How far a cache is shared unless the ImageBuild says it: under Rootless whoever writes a Dockerfile can read what
    /// its builder holds, so a builder is one ImageBuild's alone.
    #[must_use]
    pub const fn default_scope(self) -> CacheScope {
        match self {
            Self::UserNamespace => CacheScope::Namespace,
            Self::Rootless => CacheScope::ImageBuild,
        }
    }
}

/// The profile for a pool's builders of one architecture. Under Auto it is UserNamespace where every node that could take
/// the builder supports it; where there is no such node yet, the cluster's other nodes decide.
#[must_use]
pub fn choose(pool: &BuilderPoolSpec, architecture: &str, nodes: &[NodeFacts], api_drops_host_users: bool) -> Profile {
    match pool.security_profile.unwrap_or_default() {
        SecurityProfile::UserNamespace => Profile::UserNamespace,
        SecurityProfile::Rootless => Profile::Rootless,
        SecurityProfile::Auto if api_drops_host_users => Profile::Rootless,
        SecurityProfile::Auto => {
            let selector = pool.template.as_ref().map(|template| &template.node_selector);
            let mut eligible: Vec<&NodeFacts> = nodes
                .iter()
                .filter(|node| node.architecture == architecture && selector.is_none_or(|wanted| node.matches(wanted)))
                .collect();
            if eligible.is_empty() {
                eligible = nodes.iter().collect();
            }
            if !eligible.is_empty() && eligible.iter().all(|node| node.user_namespaces) {
                Profile::UserNamespace
            } else {
                Profile::Rootless
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(architecture: &str, user_namespaces: bool) -> NodeFacts {
        NodeFacts { architecture: architecture.into(), labels: [].into(), user_namespaces }
    }

    #[test]
    fn auto_follows_the_nodes_that_could_take_the_builder() {
        let auto = BuilderPoolSpec::default();
        for (nodes, expected) in [
            (vec![node("amd64", true), node("arm64", false)], Profile::UserNamespace),
            (vec![node("amd64", true), node("amd64", false)], Profile::Rootless),
            (vec![node("arm64", true)], Profile::UserNamespace),
            (vec![], Profile::Rootless),
        ] {
            assert_eq!(choose(&auto, "amd64", &nodes, false), expected, "{nodes:?}");
        }
        assert_eq!(choose(&auto, "amd64", &[node("amd64", true)], true), Profile::Rootless);
    }

    #[test]
    fn an_explicit_profile_never_falls_back() {
        let pool =
            BuilderPoolSpec { security_profile: Some(SecurityProfile::UserNamespace), ..BuilderPoolSpec::default() };
        assert_eq!(choose(&pool, "amd64", &[node("amd64", false)], true), Profile::UserNamespace);
    }
}
