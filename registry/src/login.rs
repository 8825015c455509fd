//! What is shown to registries, and which of several logins is for a repository.

use std::cmp::Reverse;

use super::reference::Repository;
use crate::http_client::SecretString;

/// What is shown to a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Login {
    /// Host with optional port, `docker.io` for Docker Hub. The login is sent to this registry only. As in a kubelet's
    /// configuration, `*` stands for any part of a name between two dots.
    pub registry: String,
    /// The path of the repositories that it is for: this one, and all beneath it. Empty: all of the registry's.
    pub path: String,
    /// The account's name.
    pub username: String,
    /// What proves it.
    pub secret: LoginSecret,
}

/// What proves an account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LoginSecret {
    /// A password or access token, for Basic authentication.
    Password(SecretString),
    /// A refresh token that the token service exchanges (OAuth 2).
    IdentityToken(SecretString),
}

impl LoginSecret {
    pub(super) fn expose(&self) -> &str {
        match self {
            Self::Password(secret) | Self::IdentityToken(secret) => secret.expose(),
        }
    }
}

impl Login {
    /// The one of `logins` for `repository`, as the kubelet chooses: that with the longest path, then one that names the
    /// whole host, then the first.
    pub fn find<'a>(logins: impl IntoIterator<Item = &'a Self>, repository: &Repository) -> Option<&'a Self> {
        let fitting = logins.into_iter().filter(|login| {
            is_of_host(&login.registry, &repository.registry) && is_beneath(&repository.path, &login.path)
        });
        fitting.min_by_key(|login| (Reverse(login.path.len()), login.registry.contains('*')))
    }

    /// [`Self::find`], to be shown to the repository's registry.
    pub fn choose<'a>(logins: impl IntoIterator<Item = &'a Self>, repository: &Repository) -> Option<Self> {
        let found = Self::find(logins, repository)?;
        Some(Self { registry: repository.registry.clone(), ..found.clone() })
    }

    /// Host and path, as a key of Docker's configuration file has them.
    #[must_use]
    pub fn key(&self) -> String {
        let Self { registry, path, .. } = self;
        if path.is_empty() { registry.clone() } else { format!("{registry}/{path}") }
    }

    /// Whether it is for something at a registry.
    #[must_use]
    pub fn is_of(&self, registry: &str) -> bool {
        is_of_host(&self.registry, registry)
    }

    /// Whether it is for all repositories that `other` is for.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        is_of_host(&self.registry, &other.registry) && is_beneath(&other.path, &self.path)
    }

    /// Whether both show the same.
    #[must_use]
    pub fn is_same_account(&self, other: &Self) -> bool {
        (&self.username, &self.secret) == (&other.username, &other.secret)
    }
}

fn is_beneath(path: &str, above: &str) -> bool {
    above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_of_host(pattern: &str, host: &str) -> bool {
    pattern == host
        || pattern.contains('*') && {
            let parts = |host: &'_ str| host.matches('.').count();
            let with_port = |host| str::split_once(host, ':').unwrap_or((host, ""));
            let ((pattern, port), (host, its_port)) = (with_port(pattern), with_port(host));
            port == its_port
                && parts(pattern) == parts(host)
                && pattern.split('.').zip(host.split('.')).all(|(part, text)| fits(part, text))
        }
}

/// Whether `text` is `part`, in which a first `*` stands for anything.
fn fits(part: &str, text: &str) -> bool {
    part.split_once('*')
        .map_or(part == text, |(before, after)| text.strip_prefix(before).is_some_and(|rest| rest.ends_with(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_then_the_whole_host_then_the_first() {
        let login = |(user, key): (&str, &str)| {
            let (registry, path) = key.split_once('/').unwrap_or((key, ""));
            let secret = LoginSecret::Password(SecretString::new("p"));
            Login { registry: registry.into(), path: path.into(), username: user.into(), secret }
        };
        let logins = [
            ("any", "*.r.example"),
            ("whole", "a.r.example"),
            ("second", "a.r.example"),
            ("team", "a.r.example/team"),
            ("glob", "*.r.example/team/app"),
            ("port", "prod-*.example:5000"),
        ]
        .map(login);
        for (repository, expected) in [
            ("a.r.example/other", "whole"),
            ("a.r.example/teams", "whole"),
            ("a.r.example/team", "team"),
            ("a.r.example/team/web", "team"),
            ("a.r.example/team/app/sub", "glob"),
            ("b.r.example/x", "any"),
            ("r.example/x", "-"),
            ("a.b.r.example/x", "-"),
            ("prod-1.example:5000/x", "port"),
            ("prod-1.example/x", "-"),
            ("prod.example:5000/x", "-"),
        ] {
            let chosen = Login::choose(&logins, &Repository::parse(repository).unwrap());
            assert!(chosen.iter().all(|login| repository.starts_with(&login.registry)), "{repository}");
            assert_eq!(chosen.as_ref().map_or("-", |login| &login.username), expected, "{repository}");
        }
        assert!(logins[1].covers(&logins[3]) && !logins[3].covers(&logins[1]));
    }

    /// As the kubelet has it: another port is another server.
    #[test]
    fn any_part_of_a_name_is_no_port() {
        for (pattern, host, expected) in [
            ("10.0.0.*", "10.0.0.7", true),
            ("10.0.0.*", "10.0.0.7:5000", false),
            ("*", "localhost", true),
            ("*", "localhost:5000", false),
            ("prod-*.r.example:5000", "prod-1.r.example:5000", true),
            ("prod-*.r.example:5000", "prod-1.r.example", false),
        ] {
            assert_eq!(is_of_host(pattern, host), expected, "{pattern} {host}");
        }
    }
}
