//! Which addresses a job may reach; and a look at those of the registries that BuildKit asks, which looks at none itself.

use std::collections::{BTreeMap, BTreeSet};

use kiln_agent_proto::Job as Spec;
use kiln_registry::Reference;
use kiln_registry::http_client::{AddressForbidden, AddressPolicy, ClusterNetwork, HostPort};
use url::{Host, Url};

/// Of how many registries the addresses are looked at: an honest build has a few.
const MOST_REGISTRIES: usize = 64;

/// What the job may reach.
#[must_use]
pub fn policy(spec: &Spec) -> AddressPolicy {
    let ranges: Vec<_> = spec.cluster_ranges.iter().filter_map(|range| range.parse().ok()).collect();
    let hosts: BTreeSet<HostPort> = spec
        .cluster_hosts
        .iter()
        .filter_map(|known| Some(HostPort { host: known.host.clone(), port: known.port.try_into().ok()? }))
        .collect();
    AddressPolicy::new(spec.allow_private_addresses).with_cluster(ClusterNetwork::new(&ranges, hosts))
}

/// An image that BuildKit is told to read or write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Image {
    /// Its name.
    pub reference: String,
    /// The line of the Dockerfile that names it; `None`: the ImageBuild does.
    pub line: Option<u32>,
}

/// A registry that the job may not reach.
#[derive(Debug, thiserror::Error)]
#[error("the registry of {}: {why}", .image.reference)]
pub struct Forbidden {
    /// The image that it has.
    pub image: Image,
    /// The address.
    pub why: AddressForbidden,
}

/// Looks the registries of `images` up before BuildKit does. Of a name with several addresses all have to be permitted, for
/// BuildKit takes any. A name that is not found is BuildKit's to tell; a registry that the pool mirrors is the pool's.
pub async fn check(spec: &Spec, images: Vec<Image>) -> Result<(), Forbidden> {
    let policy = policy(spec);
    let mut registries: BTreeMap<String, Image> = BTreeMap::new();
    for image in images {
        let Ok(reference) = image.reference.parse::<Reference>() else { continue };
        let repository = reference.repository;
        let is_mirrored = spec.registry_mirrors.iter().any(|mirrors| mirrors.registry == repository.registry);
        if !is_mirrored && registries.len() < MOST_REGISTRIES {
            registries.entry(repository.api_host().to_owned()).or_insert(image);
        }
    }
    let looks = registries.into_iter().map(|(host, image)| {
        let scheme = if spec.plain_http_registries.contains(&host) { "http" } else { "https" };
        let policy = &policy;
        async move { look(policy, scheme, &host).await.map_err(|why| Forbidden { image, why }) }
    });
    futures::future::try_join_all(looks).await.map(drop)
}

async fn look(policy: &AddressPolicy, scheme: &str, host: &str) -> Result<(), AddressForbidden> {
    let Ok(url) = Url::parse(&format!("{scheme}://{host}/")) else { return Ok(()) };
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else { return Ok(()) };
    let policy = policy.of_host(&host, port)?;
    let Host::Domain(name) = host else { return Ok(()) };
    let Ok(found) = tokio::net::lookup_host((name, port)).await else { return Ok(()) };
    found.into_iter().try_for_each(|address| policy.permits(address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_agent_proto::{ClusterHost, RegistryMirrors};

    #[tokio::test]
    async fn registries_of_forbidden_addresses() {
        let spec = Spec {
            allow_private_addresses: true,
            cluster_ranges: vec!["10.96.0.0/16".into(), "fd00:96::/108".into()],
            cluster_hosts: vec![ClusterHost { host: "registry.tools.svc".into(), port: 5000 }],
            registry_mirrors: vec![RegistryMirrors { registry: "localhost:1".into(), mirrors: vec!["m".into()] }],
            ..Spec::default()
        };
        let check = async |reference: &str| {
            let image = Image { reference: reference.into(), line: Some(3) };
            check(&spec, vec![image]).await.map_err(|forbidden| forbidden.to_string())
        };
        for permitted in
            ["10.97.0.1:5000/x", "192.168.1.1/x", "localhost:1/x", "registry.tools.svc:5000/x", "a.invalid/x", "-"]
        {
            assert_eq!(check(permitted).await, Ok(()), "{permitted}");
        }
        for (forbidden, why) in [
            ("10.96.0.1:5000/x", "an address of the cluster"),
            ("[fd00:96::1]:5000/x", "an address of the cluster"),
            ("localhost:5000/x", "a loopback address"),
            ("127.0.0.1:5000/x:latest", "a loopback address"),
            ("169.254.169.254/x", "a link-local address"),
        ] {
            let said = check(forbidden).await.unwrap_err();
            assert!(said.contains(why) && said.starts_with("the registry of "), "{forbidden}: {said}");
        }
    }
}
