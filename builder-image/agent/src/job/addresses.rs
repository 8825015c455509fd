//! Which addresses a job may reach; and a look at those of the registries that BuildKit asks, which looks at none itself.

use std::collections::{BTreeMap, BTreeSet};

use kiln_agent_proto::Job as Spec;
use kiln_registry::http_client::{AddressForbidden, AddressPolicy, ClusterNetwork, HostPort};
use kiln_registry::{Reference, ReferenceError, Repository};
use url::{Host, Url};

/// Of how many registries that a Dockerfile names the addresses are looked at: an honest build has a few.
pub const MOST_REGISTRIES: usize = 64;

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

/// A registry that BuildKit may not ask.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The job may not reach its address.
    #[error("the registry of {}: {why}", .image.reference)]
    Forbidden {
        /// The image that it has.
        image: Image,
        /// The address.
        why: AddressForbidden,
    },
    /// The ImageBuild's name of an image cannot be read, so nobody knows whom BuildKit would ask.
    #[error(transparent)]
    Unreadable(#[from] ReferenceError),
}

/// What came of an image that BuildKit was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Its registry may be asked from now on.
    Permitted,
    /// Its registry might have been asked before.
    Nothing,
    /// Its name cannot be read.
    Unreadable,
    /// The build has asked as many registries as it may.
    TooMany,
}

/// The registries that BuildKit may ask.
pub struct Permitted<'a> {
    spec: &'a Spec,
    policy: AddressPolicy,
    /// The pool's own: it names where they are mirrored.
    mirrored: BTreeSet<String>,
    /// Of how many addresses are looked at.
    most: usize,
    /// Those whose addresses were looked at.
    looked_at: BTreeSet<String>,
}

impl<'a> Permitted<'a> {
    /// Looks the registries up before BuildKit does: those that the ImageBuild names, and some of those that the Dockerfile
    /// seems to. What it asks for beside them is learned when it is refused. Caches and the push it is never refused.
    pub async fn of(spec: &'a Spec, named: Vec<String>, guessed: Vec<Image>) -> Result<Self, Refused> {
        let mirrored = spec.registry_mirrors.iter().map(|mirrors| mirrors.registry.clone()).collect();
        let mut found: BTreeMap<String, (Repository, Image)> = BTreeMap::new();
        for reference in named {
            let Reference { repository, .. } = reference.parse()?;
            let image = Image { reference, line: None };
            found.entry(repository.registry.clone()).or_insert((repository, image));
        }
        let most = found.len() + MOST_REGISTRIES;
        let mut permitted = Self { spec, policy: policy(spec), mirrored, most, looked_at: BTreeSet::new() };
        for image in guessed {
            if let Ok(Reference { repository, .. }) = image.reference.parse()
                && (found.len() < most || found.contains_key(&repository.registry))
            {
                found.entry(repository.registry.clone()).or_insert((repository, image));
            }
        }
        found.retain(|registry, _| !permitted.mirrored.contains(registry));
        let looks =
            found.into_values().map(|(repository, image)| permitted.look(repository, image)).collect::<Vec<_>>();
        permitted.looked_at = futures::future::try_join_all(looks).await?.into_iter().collect();
        Ok(permitted)
    }

    /// Looks at the registry of an image that BuildKit was refused.
    pub async fn learn(&mut self, image: Image) -> Result<Learned, Refused> {
        let Ok(Reference { repository, .. }) = image.reference.parse() else { return Ok(Learned::Unreadable) };
        if self.registries().any(|known| known == repository.registry) {
            return Ok(Learned::Nothing);
        }
        if self.looked_at.len() >= self.most {
            return Ok(Learned::TooMany);
        }
        let registry = self.look(repository, image).await?;
        self.looked_at.insert(registry);
        Ok(Learned::Permitted)
    }

    /// As Kiln calls them, such as `docker.io`.
    pub fn registries(&self) -> impl Iterator<Item = &str> {
        self.mirrored.union(&self.looked_at).map(String::as_str)
    }

    async fn look(&self, repository: Repository, image: Image) -> Result<String, Refused> {
        let host = repository.api_host();
        let scheme = if self.spec.plain_http_registries.iter().any(|plain| plain == host) { "http" } else { "https" };
        match look(&self.policy, scheme, host).await {
            Ok(()) => Ok(repository.registry),
            Err(why) => Err(Refused::Forbidden { image, why }),
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

    fn image(number: usize) -> Image {
        Image { reference: format!("10.0.0.{number}/x"), line: Some(1) }
    }

    #[tokio::test]
    async fn no_more_than_an_honest_build_has() {
        let mirrors =
            (100..200).map(|number| RegistryMirrors { registry: format!("10.0.0.{number}"), mirrors: Vec::new() });
        let spec = Spec { allow_private_addresses: true, registry_mirrors: mirrors.collect(), ..Spec::default() };
        let named = ["192.168.0.1/cache".to_owned(), "192.168.0.2/push".to_owned()];
        let mut permitted = Permitted::of(&spec, named.to_vec(), (0..90).map(image).collect()).await.unwrap();
        let (looked_at, mirrored) = (MOST_REGISTRIES + named.len(), 100);
        assert_eq!(permitted.registries().count(), looked_at + mirrored);
        assert_eq!(permitted.learn(image(201)).await.unwrap(), Learned::TooMany);
        assert_eq!(permitted.registries().count(), looked_at + mirrored);

        let mut permitted = Permitted::of(&spec, Vec::new(), Vec::new()).await.unwrap();
        assert_eq!(permitted.learn(image(1)).await.unwrap(), Learned::Permitted, "mirrors do not count");
        assert_eq!(permitted.learn(image(1)).await.unwrap(), Learned::Nothing);
        assert_eq!(permitted.learn(image(100)).await.unwrap(), Learned::Nothing);
        let odd = Image { reference: "10.0.0.1:0443/x".into(), line: None };
        assert_eq!(permitted.learn(odd).await.unwrap(), Learned::Unreadable);
    }

    #[tokio::test]
    async fn what_the_imagebuild_names_is_looked_at_whatever_the_dockerfile_names() {
        let spec =
            Spec { cluster_ranges: vec!["192.168.0.0/16".into()], allow_private_addresses: true, ..Spec::default() };
        let cache = "192.168.0.1:5000/cache".to_owned();
        let same = Image { reference: cache.clone(), line: Some(1) };
        let guessed = || (0..90).map(image).chain([same.clone()]).collect();
        let refused = Permitted::of(&spec, vec![cache.clone()], guessed()).await.err().unwrap();
        assert!(matches!(&refused, Refused::Forbidden { image: Image { line: None, .. }, .. }), "{refused}");
        // BuildKit would take it, and is never refused a cache.
        let refused = Permitted::of(&spec, vec!["192.168.0.1:05000/cache".to_owned()], guessed()).await.err().unwrap();
        assert!(matches!(refused, Refused::Unreadable(_)), "{refused}");
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
            let said = Permitted::of(&spec, Vec::new(), vec![image.clone()]).await.map(registries);
            let mut none = Permitted::of(&spec, Vec::new(), Vec::new()).await.unwrap();
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
