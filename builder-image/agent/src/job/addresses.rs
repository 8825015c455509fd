//! Which addresses a job may reach; and a look at those of the registries that BuildKit asks, which looks at none itself.

use std::collections::{BTreeMap, BTreeSet};

use kiln_agent_proto::Job as Spec;
use kiln_registry::http_client::{AddressForbidden, AddressPolicy, ClusterNetwork, HostPort};
use kiln_registry::{Reference, Repository};
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

/// The registries that BuildKit may ask: their addresses were looked at.
pub struct Permitted<'a> {
    spec: &'a Spec,
    policy: AddressPolicy,
    registries: BTreeSet<String>,
}

impl<'a> Permitted<'a> {
    /// Looks the registries of `images` up before BuildKit does. The Dockerfile's are a guess: what it asks for beside them
    /// is learned when it is refused. A registry that the pool mirrors is the pool's.
    pub async fn of(spec: &'a Spec, images: Vec<Image>) -> Result<Self, Forbidden> {
        let mirrored = spec.registry_mirrors.iter().map(|mirrors| mirrors.registry.clone());
        let mut permitted = Self { spec, policy: policy(spec), registries: mirrored.collect() };
        let mut found: BTreeMap<String, (Repository, Image)> = BTreeMap::new();
        for image in images {
            if let Ok(Reference { repository, .. }) = image.reference.parse()
                && !permitted.registries.contains(&repository.registry)
            {
                found.entry(repository.registry.clone()).or_insert((repository, image));
            }
        }
        let some = found.into_values().take(MOST_REGISTRIES);
        let looks = some.map(|(repository, image)| permitted.look(repository, image)).collect::<Vec<_>>();
        let looked_at = futures::future::try_join_all(looks).await?;
        permitted.registries.extend(looked_at);
        Ok(permitted)
    }

    /// Looks at the registry of an image that BuildKit was refused. `false`: nothing is learned.
    pub async fn learn(&mut self, image: Image) -> Result<bool, Forbidden> {
        let Ok(Reference { repository, .. }) = image.reference.parse() else { return Ok(false) };
        if self.registries.contains(&repository.registry) || self.registries.len() >= MOST_REGISTRIES {
            return Ok(false);
        }
        let registry = self.look(repository, image).await?;
        Ok(self.registries.insert(registry))
    }

    /// As BuildKit calls them, such as `docker.io`.
    pub fn registries(&self) -> impl Iterator<Item = &str> {
        self.registries.iter().map(String::as_str)
    }

    async fn look(&self, repository: Repository, image: Image) -> Result<String, Forbidden> {
        let host = repository.api_host();
        let scheme = if self.spec.plain_http_registries.iter().any(|plain| plain == host) { "http" } else { "https" };
        match look(&self.policy, scheme, host).await {
            Ok(()) => Ok(repository.registry),
            Err(why) => Err(Forbidden { image, why }),
        }
    }
}

/// Of a name with several addresses all have to be permitted, for BuildKit takes any. A name that is not found is BuildKit's
/// to tell.
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
    async fn no_more_than_an_honest_build_has() {
        let spec = Spec { allow_private_addresses: true, ..Spec::default() };
        let image = |number: usize| Image { reference: format!("10.0.0.{number}/x"), line: None };
        let mut permitted = Permitted::of(&spec, (0..100).map(image).collect()).await.unwrap();
        assert_eq!(permitted.registries().count(), MOST_REGISTRIES);
        assert!(!permitted.learn(image(200)).await.unwrap());
        assert_eq!(permitted.registries().count(), MOST_REGISTRIES);
    }

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
            let registries = |permitted: Permitted<'_>| permitted.registries().collect::<Vec<_>>().join(" ");
            let said = Permitted::of(&spec, vec![image.clone()]).await.map(registries);
            let mut none = Permitted::of(&spec, Vec::new()).await.unwrap();
            let learned = none.learn(image).await.map(|_| registries(none));
            assert_eq!(said.as_ref().map_err(ToString::to_string), learned.as_ref().map_err(ToString::to_string));
            said.map_err(|forbidden| forbidden.to_string())
        };
        for (permitted, registries) in [
            ("10.97.0.1:5000/x", "10.97.0.1:5000 localhost:1"),
            ("192.168.1.1/x", "192.168.1.1 localhost:1"),
            ("localhost:1/x", "localhost:1"),
            ("registry.tools.svc:5000/x", "localhost:1 registry.tools.svc:5000"),
            ("a.invalid/x", "a.invalid localhost:1"),
            ("-", "localhost:1"),
        ] {
            assert_eq!(check(permitted).await.as_deref(), Ok(registries), "{permitted}");
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
