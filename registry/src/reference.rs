//! Names of repositories and images, by the rules of Docker's references
//! (<https://pkg.go.dev/github.com/distribution/reference>) and of the distribution specification.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Digest;
use url::Url;

/// The registry that names without a host mean.
pub const DOCKER_HUB: &str = "docker.io";

/// What Docker Hub is called: all are taken for [`DOCKER_HUB`].
pub const DOCKER_HUB_NAMES: [&str; 4] =
    [DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// Where an image is kept, without tag or digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Host with optional port, in lower case; `docker.io` for Docker Hub.
    pub registry: String,
    /// The repository's name there, such as `library/debian`.
    pub path: String,
}

impl Repository {
    /// The same at a mirror: `mirror.example/docker.io` has `docker.io/library/debian` as
    /// `mirror.example/docker.io/library/debian`.
    #[must_use]
    pub fn at_mirror(&self, mirror: &str) -> Self {
        let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
        let prefix = prefix.trim_matches('/');
        let separator = if prefix.is_empty() { "" } else { "/" };
        Self { registry: host.to_ascii_lowercase(), path: format!("{prefix}{separator}{}", self.path) }
    }

    /// Parses `[registry/]path`. Without a registry it is Docker Hub's, and a path of one word is in its `library`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let fail = |cause| ReferenceError { text: text.chars().take(300).collect(), cause };
        if text.is_empty() {
            return Err(fail(Cause::Empty));
        }
        if text.contains("://") {
            return Err(fail(Cause::Scheme));
        }
        if text.contains('@') || text.rsplit('/').next().is_some_and(|last| last.contains(':') && text.contains('/')) {
            return Err(fail(Cause::NotBare));
        }
        let (registry, path) = match text.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first.to_ascii_lowercase(), rest),
            _ => (DOCKER_HUB.to_owned(), text),
        };
        // `Team/app` would be the host `team`, and whoever reads its name in lower case takes it for Docker Hub's `team/app`.
        if registry != DOCKER_HUB && !is_registry(&registry) {
            return Err(fail(Cause::UpperCase));
        }
        let registry = if is_docker_hub(&registry) { DOCKER_HUB.to_owned() } else { registry };
        if !valid_host(&registry) {
            return Err(fail(Cause::Registry));
        }
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(fail(Cause::UpperCase));
        }
        let repository = Self::at(registry, path);
        if repository.path.len() > 255 || !path.split('/').all(valid_component) {
            return Err(fail(Cause::Path));
        }
        Ok(repository)
    }

    /// The path of one word is in Docker Hub's `library`.
    fn at(registry: String, path: &str) -> Self {
        let library = registry == DOCKER_HUB && !path.contains('/');
        Self { registry, path: if library { format!("library/{path}") } else { path.to_owned() } }
    }

    /// The same without the port that https has anyway: two names of one place become equal.
    #[must_use]
    pub fn without_default_port(&self) -> Self {
        let host = self.registry.strip_suffix(":443").unwrap_or(&self.registry);
        Self::at(if is_docker_hub(host) { DOCKER_HUB } else { host }.to_owned(), &self.path)
    }

    /// The host (and port) that answers the registry's API.
    #[must_use]
    pub fn api_host(&self) -> &str {
        if self.registry == DOCKER_HUB { "registry-1.docker.io" } else { &self.registry }
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)
    }
}

/// A tag: a letter, digit or `_`, then up to 127 of these, `.` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// The tag's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let valid =
            text.len() <= 128 && text.starts_with(word) && text.chars().all(|c| word(c) || c == '.' || c == '-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError { text: text.chars().take(300).collect(), cause: Cause::Tag })
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names a manifest within its repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identifier {
    /// A name that can move.
    Tag(Tag),
    /// The content itself.
    Digest(Digest),
}

impl From<Tag> for Identifier {
    fn from(tag: Tag) -> Self {
        Self::Tag(tag)
    }
}

impl From<Digest> for Identifier {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// An image: a repository and which of its manifests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Where it is kept.
    pub repository: Repository,
    /// Which one.
    pub identifier: Identifier,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Parses `repository[:tag][@digest]`. The digest wins over a tag; with neither it is `latest`.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |cause| ReferenceError { text: text.chars().take(300).collect(), cause };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|_| fail(Cause::Digest))?)),
            None => (text, None),
        };
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag.parse::<Tag>()?)),
            _ => (name, None),
        };
        let repository = Repository::parse(repository)?;
        let identifier = match (digest, tag) {
            (Some(digest), _) => digest.into(),
            (None, Some(tag)) => tag.into(),
            (None, None) => Tag("latest".into()).into(),
        };
        Ok(Self { repository, identifier })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self.identifier {
            Identifier::Tag(_) => ':',
            Identifier::Digest(_) => '@',
        };
        write!(f, "{}{separator}{}", self.repository, self.identifier)
    }
}

/// Why a text is no repository, tag or image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {cause}")]
pub struct ReferenceError {
    /// What was written, cut.
    pub text: String,
    cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Cause {
    #[error("names no repository: write registry/path, such as ghcr.io/team/app")]
    Empty,
    #[error("must not begin with a scheme: write registry/path, such as ghcr.io/team/app")]
    Scheme,
    #[error("must name a repository alone: leave out tag and digest")]
    NotBare,
    #[error("does not begin with a valid registry host: write host or host:port")]
    Registry,
    #[error("has capital letters in the repository's path: registries want it in lower case")]
    UpperCase,
    #[error(
        "is not a valid repository: a path is words of lower-case letters and digits, joined by . _ __ or -, separated by /"
    )]
    Path,
    #[error("is not a valid tag: a tag is 1 to 128 letters, digits, _ . and -, and does not begin with . or -")]
    Tag,
    #[error("does not end in a valid digest, such as sha256: and 64 hexadecimal digits")]
    Digest,
}

/// Whether `host` is one of the names that Docker Hub goes by, in images and in old credential files.
pub(super) fn is_docker_hub(host: &str) -> bool {
    DOCKER_HUB_NAMES.contains(&host)
}

/// Docker's rule for telling a host from the first word of a path.
fn is_registry(first: &str) -> bool {
    first.contains('.') || first.contains(':') || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((ip, port)) => {
                let is_one = ip.parse::<std::net::Ipv6Addr>().is_ok_and(|parsed| parsed.to_string() == ip);
                return is_one && valid_port(port.strip_prefix(':'), port);
            }
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    name.len() <= 253 && name.split('.').all(label) && port.is_none_or(|p| valid_port(Some(p), p)) && is_itself(name)
}

/// Whether requests go to the host as it is written: `10.1` and `012.0.0.1` mean an address that has another name too.
fn is_itself(host: &str) -> bool {
    Url::parse(&format!("https://{host}/")).is_ok_and(|url| url.host_str() == Some(host))
}

fn valid_port(port: Option<&str>, rest: &str) -> bool {
    match port {
        Some(port) => !port.starts_with('0') && port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok(),
        None => rest.is_empty(),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the distribution specification.
fn valid_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component
            .split(alphanumeric)
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.chars().all(|c| c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    #[test]
    fn canonical_names() {
        for (text, expected) in [
            ("debian", "docker.io/library/debian"),
            ("team/app", "docker.io/team/app"),
            ("docker.io/debian", "docker.io/library/debian"),
            ("index.docker.io/team/app", "docker.io/team/app"),
            ("localhost/app", "localhost/app"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("GHCR.io/team/app", "ghcr.io/team/app"),
            ("ghcr.io/team/app.web__x-y", "ghcr.io/team/app.web__x-y"),
            ("10.0.0.1:5000/a/b/c/d", "10.0.0.1:5000/a/b/c/d"),
            ("[fd00::1]:5000/app", "[fd00::1]:5000/app"),
            ("[fd00::1]/app", "[fd00::1]/app"),
        ] {
            assert_eq!(Repository::parse(text).unwrap().to_string(), expected, "{text}");
        }
        assert_eq!(Repository::parse("debian").unwrap().api_host(), "registry-1.docker.io");
    }

    #[test]
    fn refused_names() {
        for text in [
            "",
            "https://ghcr.io/team/app",
            "ghcr.io/team/app:v1",
            "ghcr.io/Team/app",
            "ghcr.io/",
            "ghcr.io//app",
            "ghcr.io/team/app/",
            "ghcr.io/te am/app",
            "ghcr.io/../app",
            "ghcr.io/-app",
            "ghcr.io/a..b",
            "ghcr.io:0/app",
            "ghcr.io:x/app",
            "ghcr.io:99999/app",
            "-ghcr.io/app",
            "user@ghcr.io/app",
            "ghcr.io/a___b",
            "[fd00::1/app",
            "ghcr.io:+1/app",
        ] {
            assert!(Repository::parse(text).is_err(), "{text}");
        }
        insta::assert_snapshot!(
            Repository::parse("ghcr.io/team/app:v1").unwrap_err(),
            @r#""ghcr.io/team/app:v1" must name a repository alone: leave out tag and digest"#
        );
        insta::assert_snapshot!(
            Repository::parse("ghcr.io/Team/app").unwrap_err(),
            @r#""ghcr.io/Team/app" has capital letters in the repository's path: registries want it in lower case"#
        );
    }

    #[test]
    fn references() {
        for (text, expected) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:13", "docker.io/library/debian:13".to_owned()),
            ("localhost:5000/app", "localhost:5000/app:latest".to_owned()),
            ("localhost:5000/app:v1", "localhost:5000/app:v1".to_owned()),
            (&format!("ghcr.io/a/b:v1@{DIGEST}"), format!("ghcr.io/a/b@{DIGEST}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), expected, "{text}");
        }
        for text in ["debian:", "debian:-x", "debian@sha256:12", "debian@", ":v1"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn tags() {
        for tag in ["v1.2.3", "_x", "1", &"a".repeat(128)] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
        for tag in ["", ".x", "-x", "a b", "a/b", "ä", "a\n", &"a".repeat(129)] {
            assert!(tag.parse::<Tag>().is_err(), "{tag}");
        }
    }

    proptest! {
        #[test]
        fn canonical_text_parses_to_itself(text in "([a-z]{1,5}\\.io(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,5}(/[a-z0-9]{1,5}([._-][a-z0-9]{1,3}){0,2}){0,3}") {
            let repository = Repository::parse(&text).unwrap();
            prop_assert_eq!(&Repository::parse(&repository.to_string()).unwrap(), &repository);
        }

        #[test]
        fn whatever_parses_is_safe_in_a_url(text in "\\PC{0,40}") {
            if let Ok(repository) = Repository::parse(&text) {
                let url = url::Url::parse(&format!("https://{}/v2/{}/tags", repository.api_host(), repository.path));
                let url = url.unwrap();
                prop_assert_eq!(url.path(), format!("/v2/{}/tags", repository.path));
                prop_assert!(url.username().is_empty() && url.query().is_none());
            }
        }
    }
}
