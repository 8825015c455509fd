//! Git URLs that Kiln fetches from: https, and ssh in both of its forms.

use std::fmt;

use url::Url;

/// A valid URL of a repository: https without credentials, `ssh://user@host[:port]/path`, or `user@host:path`
/// (<https://git-scm.com/docs/git-clone#_git_urls>). Without query and fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GitUrl {
    text: String,
    server: Server,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Server {
    Https(Url),
    Ssh(SshUrl),
}

/// The parts of an ssh URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SshUrl {
    /// The account on the server; `git` where the URL names none.
    pub user: String,
    /// A name or an IPv4 address, in lower case.
    pub host: String,
    /// 22 where the URL names none.
    pub port: u16,
    /// As it is given to `git-upload-pack`: absolute, or relative to the account's home directory.
    pub path: String,
}

impl SshUrl {
    /// The host as files of known hosts have it: `[host]:port` where the port is not 22 (sshd(8)).
    #[must_use]
    pub fn known_host(&self) -> String {
        if self.port == 22 { self.host.clone() } else { format!("[{}]:{}", self.host, self.port) }
    }
}

/// Why a text is no URL that Kiln fetches from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum UrlError {
    /// Neither empty text nor whatever `git` would read as an option.
    #[error("the Git URL is empty or begins with '-': write https://host/path.git")]
    LeadingDash,
    /// Control characters, spaces or backslashes.
    #[error("the Git URL holds control characters, spaces or backslashes: write https://host/path.git")]
    Characters,
    /// An ssh URL of another form.
    #[error(
        "an ssh URL is ssh://user@host[:port]/path or user@host:path, and its path has no part that begins with '-'"
    )]
    Ssh,
    /// Another scheme, or none.
    #[error("the Git URL must begin with https:// or ssh://, or be of the form git@host:path")]
    Scheme,
    /// It cannot be parsed.
    #[error("the Git URL is not valid: write https://host/path.git")]
    Malformed,
    /// A user name or password in the URL, where everybody can read it.
    #[error(
        "the Git URL must hold no user name or password: put them into a Secret (keys username and password) and name it in secretRef"
    )]
    Credentials,
    /// A password in an ssh URL.
    #[error(
        "the Git URL must hold no password: put an ssh key into a Secret (keys ssh-privatekey and known_hosts) and name it in secretRef"
    )]
    SshPassword,
    /// A query or fragment.
    #[error("the Git URL must hold neither ? nor #: name branch, tag or commit in ref, and a folder in path")]
    QueryOrFragment,
    /// Nothing after the host.
    #[error("the Git URL names no repository: write https://host/path.git")]
    NoPath,
}

impl GitUrl {
    /// Validates a repository's URL.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.is_empty() || text.starts_with('-') {
            return Err(UrlError::LeadingDash);
        }
        if text.len() > 2048 || text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err(UrlError::Characters);
        }
        if text.contains(['?', '#']) && !text.starts_with("https:///") {
            return Err(UrlError::QueryOrFragment);
        }
        match text.split_once("://") {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => Self::parse_https(text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ssh") => Self::parse_ssh(rest),
            // But ext::command is a scheme, too.
            None if !text.contains("::") && !text.starts_with('/') => Self::parse_short(text),
            _ => Err(UrlError::Scheme),
        }
    }

    fn parse_https(text: &str) -> Result<Self, UrlError> {
        let url = Url::parse(text).map_err(|_| UrlError::Malformed)?;
        // A "user@" of nothing is in the text only, and so is an empty query.
        let authority = text["https://".len()..].split(['/', '?', '#']).next().unwrap_or_default();
        // The URL standard skips further slashes, and reads a host where the text has none.
        if authority.is_empty() {
            return Err(UrlError::Malformed);
        }
        if authority.contains('@') || !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Credentials);
        }
        // A name with a dot at its end is looked up, but compared and pinned without.
        if url.host_str().is_none_or(|host| host.is_empty() || host.starts_with('-') || host.ends_with('.')) {
            return Err(UrlError::Malformed);
        }
        if url.path().trim_matches('/').is_empty() {
            return Err(UrlError::NoPath);
        }
        Ok(Self { text: url.as_str().trim_end_matches('/').to_owned(), server: Server::Https(url) })
    }

    fn parse_ssh(rest: &str) -> Result<Self, UrlError> {
        let (authority, path) = rest.split_once('/').ok_or(UrlError::NoPath)?;
        let (user, place) = authority.split_once('@').unwrap_or(("git", authority));
        if user.contains(':') {
            return Err(UrlError::SshPassword);
        }
        let (host, port) = match place.split_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0).ok_or(UrlError::Ssh)?),
            None => (place, 22),
        };
        // As git does: ~user and ~ stand at the beginning of what the server is given.
        let path = if path.starts_with('~') { path.to_owned() } else { format!("/{path}") };
        let path = path.trim_end_matches('/').to_owned();
        let ssh = SshUrl { user: user.to_owned(), host: host.to_ascii_lowercase(), port, path };
        let port = if port == 22 { String::new() } else { format!(":{port}") };
        let slash = if ssh.path.starts_with('/') { "" } else { "/" };
        Self::checked(format!("ssh://{user}@{}{port}{slash}{}", ssh.host, ssh.path), ssh)
    }

    /// git's short form, `user@host:path`.
    fn parse_short(text: &str) -> Result<Self, UrlError> {
        let (authority, path) = text.split_once(':').ok_or(UrlError::Scheme)?;
        let (user, host) = authority.split_once('@').ok_or(UrlError::Scheme)?;
        let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
        let ssh = SshUrl { user: user.to_owned(), host: host.to_ascii_lowercase(), port: 22, path: path.to_owned() };
        Self::checked(format!("{user}@{}:{path}", ssh.host), ssh)
    }

    /// Whatever `git` and `ssh` could read as something else than a user, a host and a path is refused.
    fn checked(text: String, ssh: SshUrl) -> Result<Self, UrlError> {
        let plain = |text: &str, more: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let host = plain(&ssh.host, ".-") && !ssh.host.ends_with('.') && !ssh.host.contains('_');
        if ssh.path.trim_matches('/').is_empty() {
            return Err(UrlError::NoPath);
        }
        let quotes = ssh.path.contains(['\'', '"', '`', '$', '!', ';', '|', '&', '<', '>']);
        if !host || !plain(&ssh.user, "._-") || ssh.path.starts_with('-') || quotes {
            return Err(UrlError::Ssh);
        }
        Ok(Self { text, server: Server::Ssh(ssh) })
    }

    /// The URL as given to `git`: normalised, without trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The server's host name, without port.
    #[must_use]
    pub fn host(&self) -> &str {
        match &self.server {
            Server::Https(url) => url.host_str().unwrap_or_default(),
            Server::Ssh(ssh) => &ssh.host,
        }
    }

    /// The server's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match &self.server {
            Server::Https(url) => url.port_or_known_default().unwrap_or(443),
            Server::Ssh(ssh) => ssh.port,
        }
    }

    /// The URL as such, where it is an https one.
    #[must_use]
    pub fn https(&self) -> Option<&Url> {
        match &self.server {
            Server::Https(url) => Some(url),
            Server::Ssh(_) => None,
        }
    }

    /// The parts of an ssh URL.
    #[must_use]
    pub fn ssh(&self) -> Option<&SshUrl> {
        match &self.server {
            Server::Https(_) => None,
            Server::Ssh(ssh) => Some(ssh),
        }
    }

    /// Whether both are reached in the same way at the same host and port, so that a credential holds for both.
    #[must_use]
    pub fn is_same_server(&self, other: &Self) -> bool {
        self.https().is_some() == other.https().is_some() && self.host() == other.host() && self.port() == other.port()
    }

    /// The URL of a submodule of this repository: relative ones (`../x`) start from here, as in gitmodules(5).
    pub fn submodule(&self, url: &str) -> Result<Self, UrlError> {
        if !url.starts_with("./") && !url.starts_with("../") {
            return Self::parse(url);
        }
        let path = match &self.server {
            Server::Https(url) => url.path(),
            Server::Ssh(ssh) => &ssh.path,
        };
        let (before, mut path) = (self.text.strip_suffix(path).unwrap_or(&self.text), path.trim_end_matches('/'));
        let mut rest = url;
        loop {
            if let Some(up) = rest.strip_prefix("../") {
                path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                rest = up;
            } else if let Some(here) = rest.strip_prefix("./") {
                rest = here;
            } else {
                break;
            }
        }
        // A path relative to the home directory has no slash before it.
        let relative = !before.contains("://") && !self.text.contains(":/");
        let slash = if path.is_empty() && relative { "" } else { "/" };
        Self::parse(&format!("{before}{path}{slash}{rest}"))
    }

    /// For tests against a server without TLS.
    #[doc(hidden)]
    #[must_use]
    pub fn plain(url: Url) -> Self {
        Self { text: url.as_str().to_owned(), server: Server::Https(url) }
    }
}

impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        for (text, expected) in [
            ("https://github.com/a/b.git", Ok("https://github.com/a/b.git")),
            ("HTTPS://GitHub.com/a/b/", Ok("https://github.com/a/b")),
            ("https://git.example:8443/x", Ok("https://git.example:8443/x")),
            ("https://10.0.0.1/x", Ok("https://10.0.0.1/x")),
            ("https://dev.azure.com/o/p/_git/r%20x", Ok("https://dev.azure.com/o/p/_git/r%20x")),
            ("", Err(UrlError::LeadingDash)),
            ("--upload-pack=touch /tmp/x", Err(UrlError::LeadingDash)),
            ("https://h/a\nb", Err(UrlError::Characters)),
            ("https://h/a b", Err(UrlError::Characters)),
            ("https://h\\@evil/a", Err(UrlError::Characters)),
            ("https://host./a", Err(UrlError::Malformed)),
            ("git@github.com:a/b.git", Ok("git@github.com:a/b.git")),
            ("git@GitHub.com:/srv/a/", Ok("git@github.com:/srv/a")),
            ("ssh://git@github.com/a/b.git", Ok("ssh://git@github.com/a/b.git")),
            ("ssh://host:22/a", Ok("ssh://git@host/a")),
            ("ssh://me@host:2222/~/a", Ok("ssh://me@host:2222/~/a")),
            ("ssh://me:pw@host/a", Err(UrlError::SshPassword)),
            ("ssh://me@host", Err(UrlError::NoPath)),
            ("ssh://-oProxyCommand=x/a", Err(UrlError::Ssh)),
            ("ssh://me@-oProxyCommand/a", Err(UrlError::Ssh)),
            ("-oProxyCommand@host:a", Err(UrlError::LeadingDash)),
            ("git@-host:a", Err(UrlError::Ssh)),
            ("git@host:-a", Err(UrlError::Ssh)),
            ("git@host:a'b", Err(UrlError::Ssh)),
            ("git@host:", Err(UrlError::NoPath)),
            ("host:a", Err(UrlError::Scheme)),
            ("ssh://host:0/a", Err(UrlError::Ssh)),
            ("http://h/a", Err(UrlError::Scheme)),
            ("git://h/a", Err(UrlError::Scheme)),
            ("file:///etc", Err(UrlError::Scheme)),
            ("/etc", Err(UrlError::Scheme)),
            ("ext::sh -c x", Err(UrlError::Characters)),
            ("ext::sh", Err(UrlError::Scheme)),
            ("https://user:pw@h/a", Err(UrlError::Credentials)),
            ("https://@h/a", Err(UrlError::Credentials)),
            ("https://h/a?x=1", Err(UrlError::QueryOrFragment)),
            ("https://h/a#main", Err(UrlError::QueryOrFragment)),
            ("https://h", Err(UrlError::NoPath)),
            ("https://h//", Err(UrlError::NoPath)),
            ("https:///a", Err(UrlError::Malformed)),
            ("https:///user@h/a", Err(UrlError::Malformed)),
            ("https://h:99999/a", Err(UrlError::Malformed)),
        ] {
            assert_eq!(GitUrl::parse(text).as_ref().map(GitUrl::as_str).map_err(|e| *e), expected, "{text}");
        }
    }

    #[test]
    fn submodules() {
        for (from, url, expected) in [
            ("https://host/group/app.git", "../lib.git", "https://host/group/lib.git"),
            ("https://host/group/app.git", "../../other/lib", "https://host/other/lib"),
            ("https://host/group/app.git", "./sub", "https://host/group/app.git/sub"),
            ("https://host/group/app.git", "https://else/x", "https://else/x"),
            ("https://host/group/app.git", "git@host:x", "git@host:x"),
            ("ssh://git@host:2222/group/app.git", "../lib.git", "ssh://git@host:2222/group/lib.git"),
            ("ssh://git@host/app.git", "../lib.git", "ssh://git@host/lib.git"),
            ("ssh://git@host/~/app.git", "../lib.git", "ssh://git@host/~/lib.git"),
            ("git@host:group/app.git", "../lib.git", "git@host:group/lib.git"),
            ("git@host:app.git", "../lib.git", "git@host:lib.git"),
            ("git@host:/srv/app.git", "../lib.git", "git@host:/srv/lib.git"),
            ("git@host:/app.git", "../lib.git", "git@host:/lib.git"),
        ] {
            let joined = GitUrl::parse(from).unwrap().submodule(url).unwrap();
            assert_eq!(joined.as_str(), expected, "{url} of {from}");
        }
        assert!(GitUrl::parse("https://host/a").unwrap().submodule("/etc").is_err());
    }

    #[test]
    fn servers() {
        let url = |text| GitUrl::parse(text).unwrap();
        let home = url("git@host:a");
        for (other, same) in [
            ("ssh://me@host/b", true),
            ("ssh://git@host:2222/b", false),
            ("https://host/a", false),
            ("git@sub.host:a", false),
        ] {
            assert_eq!(home.is_same_server(&url(other)), same, "{other}");
        }
        assert_eq!(url("ssh://h:2222/a").ssh().unwrap().known_host(), "[h]:2222");
        assert_eq!(home.ssh().unwrap().known_host(), "host");
        assert_eq!((home.ssh().unwrap().path.as_str(), url("ssh://h/~/a").ssh().unwrap().path.as_str()), ("a", "~/a"));
    }

    proptest! {
        #[test]
        fn what_parses_is_https_without_credentials(text in "(https://)?[ -~]{0,40}") {
            if let Some(url) = GitUrl::parse(&text).ok().filter(|url| url.https().is_some()) {
                let read: Url = url.as_str().parse().unwrap();
                prop_assert_eq!(read.scheme(), "https");
                prop_assert!(read.username().is_empty() && read.password().is_none());
                prop_assert_eq!(&GitUrl::parse(url.as_str()).unwrap().text, &url.text);
            }
        }

        #[test]
        fn no_part_of_an_ssh_url_is_an_option(text in "(ssh://)?[a-z@:/.~' -]{0,20}") {
            if let Ok(url) = GitUrl::parse(&text) {
                prop_assert_eq!(&GitUrl::parse(url.as_str()).unwrap(), &url);
                if let Some(ssh) = url.ssh() {
                    prop_assert!(![&ssh.user, &ssh.host, &ssh.path].iter().any(|part| part.starts_with('-')));
                }
            }
        }
    }
}
