//! What registries are shown that ask for user and password themselves (Basic): BuildKit shows one login a host and build,
//! whatever repository is asked for.

use std::collections::BTreeMap;

use kiln_agent_proto::Job as Spec;
use kiln_registry::{Login, Repository};

use super::registries::{self, Registries};
use crate::reasons::{JobFailure, Reason};

/// How many registries are asked whether they give tokens: an honest build has two logins for one or two.
const MOST_ASKED: usize = 16;

/// Two repositories of one registry with different logins.
type Differing<'a> = (&'a Repository, &'a Repository);

/// What `kiln-build` calls the login of each registry, for a build of these repositories of which the first is pushed to.
/// Fails where a registry would have to be shown two.
pub async fn of(
    spec: &Spec,
    repositories: &[Repository],
    registries: &Registries,
) -> Result<BTreeMap<String, String>, JobFailure> {
    let (chosen, differing) = choose(repositories, &registries::logins(spec));
    let asked = differing.into_iter().take(MOST_ASKED).map(|(one, other)| async move {
        // Who does not answer here is BuildKit's to tell of.
        let client = registries.client(spec, one).ok()?;
        matches!(client.is_basic(one).await, Ok(true)).then_some((one, other))
    });
    if let Some((one, other)) = futures::future::join_all(asked).await.into_iter().flatten().next() {
        let registry = &one.registry;
        let message = format!(
            "the registry {registry} is shown one login in a build, for it gives no tokens (Basic authentication), but {} and {} have different logins; let the login of {} read the other too, and name no other for {registry}",
            one.path, other.path, one.path
        );
        return Err(JobFailure::new(Reason::RegistryLoginAmbiguous, message));
    }
    Ok(chosen)
}

fn choose<'a>(repositories: &'a [Repository], logins: &[Login]) -> (BTreeMap<String, String>, Vec<Differing<'a>>) {
    let mut of_hosts: BTreeMap<&str, (&Repository, &Login)> = BTreeMap::new();
    let mut differing: Vec<Differing<'_>> = Vec::new();
    for repository in repositories {
        let Some(login) = Login::find(logins, repository) else { continue };
        let (first, shown) = of_hosts.entry(&repository.registry).or_insert((repository, login));
        if !shown.is_same_account(login) && !differing.iter().any(|(one, _)| one.registry == repository.registry) {
            differing.push((*first, repository));
        }
    }
    let keys = of_hosts.into_iter().map(|(host, (_, login))| (host.to_owned(), login.key()));
    (keys.collect(), differing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_registry::{LoginSecret, http_client::SecretString};

    #[test]
    fn one_a_host() {
        let repository = |name: &&str| Repository::parse(name).unwrap();
        let login = |key: &str| {
            let (registry, path) = key.split_once('/').unwrap();
            let secret = LoginSecret::Password(SecretString::new("p"));
            Login { registry: registry.to_owned(), path: path.to_owned(), username: path.to_owned(), secret }
        };
        let logins = ["a.example/a", "*.example/b", "a.example/e", "c.example/d"].map(login);
        for (names, keys, differing) in [
            (&["a.example/b/app", "a.example/b/base", "c.example/d/x"][..], "*.example/b c.example/d", ""),
            (&["a.example/b/app", "a.example/a/base", "a.example/e/x"], "*.example/b", "b/app a/base"),
            (&["a.example/b/app", "a.example/public/base"], "*.example/b", ""),
            (&["a.example/public/app"], "", ""),
        ] {
            let repositories: Vec<_> = names.iter().map(repository).collect();
            let (chosen, found) = choose(&repositories, &logins);
            assert_eq!(chosen.into_values().collect::<Vec<_>>().join(" "), keys, "{names:?}");
            let found: Vec<_> = found.iter().map(|(one, other)| format!("{} {}", one.path, other.path)).collect();
            assert_eq!(found.join(", "), differing, "{names:?}");
        }
    }
}
