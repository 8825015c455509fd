//! Whether a registry was shown a login for what it refuses, and which.

use kiln_agent_proto::Login as Named;
use kiln_registry::{Login, Reference, Repository};

use super::{super::registries, answer};

/// The host that BuildKit asks for Docker Hub's images.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// The login that was shown for `image`, of which the registry, a mirror or a token realm said this. None: none was.
pub(super) fn shown(logins: &[Named], image: &str, said: &str) -> Option<String> {
    // BuildKit asks for a token without a login in words of their own.
    if is_within(said, "failed to fetch anonymous token: ") {
        return None;
    }
    let repository = asked(said).or_else(|| Some(image.parse::<Reference>().ok()?.repository));
    let found = repository.and_then(|repository| {
        let all: Vec<Login> = logins.iter().map(registries::read).collect();
        let found = Login::find(&all, &repository)?;
        let index = all.iter().position(|login| std::ptr::eq(login, found))?;
        let by = &logins[index].named_by;
        Some(if by.is_empty() { format!("the login for {}", found.key()) } else { format!("the login of {by}") })
    });
    found.or_else(|| is_within(said, "failed to fetch oauth token: ").then(|| "a login".to_owned()))
}

/// Whether these words stand before what a request came to.
fn is_within(said: &str, words: &str) -> bool {
    std::iter::successors(Some(said.trim()), |rest| answer::unwrapped(rest)).any(|rest| rest.starts_with(words))
}

/// The repository that a request was about, by its address: `… request to https://HOST/v2/PATH/manifests/…`.
fn asked(said: &str) -> Option<Repository> {
    let (_, address) = answer::innermost(said).strip_prefix(answer::UNEXPECTED)?.split_once(" request to ")?;
    let (host, path) = address.split_once("://")?.1.split_once("/v2/")?;
    let end = path.find("/manifests/").or_else(|| path.find("/blobs/"))?;
    let host = if host == DOCKER_HUB { "docker.io" } else { host };
    let path = &path[..end];
    let is_plain = !host.contains(char::is_whitespace) && !path.contains(char::is_whitespace);
    is_plain.then(|| Repository { registry: host.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_login_was_shown() {
        let login = |(registry, path, by): (&str, &str, &str)| Named {
            registry: registry.to_owned(),
            path: path.to_owned(),
            named_by: by.to_owned(),
            ..Named::default()
        };
        let logins = [
            ("docker.io", "", "the Secret web/hub, which pullSecretRefs names"),
            ("r.example", "team", ""),
            ("mirror.example", "docker.io", "the mirror's"),
        ]
        .map(login);
        let of =
            |host: &str| format!("unexpected status from HEAD request to https://{host}/manifests/1: 401 Unauthorized");
        for (image, said, expected) in [
            ("docker.io/team/app:1", of("registry-1.docker.io/v2/team/app"), "the login of the Secret web/hub, which pullSecretRefs names"),
            ("docker.io/team/app:1", of("mirror.example/v2/docker.io/team/app"), "the login of the mirror's"),
            ("docker.io/team/app:1", of("other.example/v2/team/app"), "-"),
            ("r.example/team/app:1", of("r.example/v2/team/app"), "the login for r.example/team"),
            ("r.example/other/app:1", of("r.example/v2/other/app"), "-"),
            ("docker.io/team/app:1", "pull access denied, x: server message: insufficient_scope".to_owned(), "the login of the Secret web/hub, which pullSecretRefs names"),
            (
                "r.example/team/app:1",
                "failed to fetch oauth token: unexpected status from POST request to https://t/token: 401 Unauthorized".to_owned(),
                "the login for r.example/team",
            ),
            ("r.example/other:1", "failed to fetch oauth token: unexpected status from POST request to https://t/token: 401 Unauthorized".to_owned(), "a login"),
            ("r.example/team/app:1", "failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://t/: 401".to_owned(), "-"),
            ("the base image", "no".to_owned(), "-"),
        ] {
            assert_eq!(shown(&logins, image, &said).as_deref().unwrap_or("-"), expected, "{image} {said}");
        }
    }
}
