//! Git URLs that Kiln fetches from.

use std::fmt;

use ::url::Url;

/// A valid https URL of a repository, without credentials, query and fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GitUrl {
    url: Url,
    text: String,
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
    /// `ssh://` or `user@host:path`.
    #[error("Git by ssh is not supported yet: write the https URL, with a token in secretRef for a private repository")]
    Ssh,
    /// Another scheme, or none.
    #[error("the Git URL must begin with https://")]
    Scheme,
    /// It cannot be parsed.
    #[error("the Git URL is not valid: write https://host/path.git")]
    Malformed,
    /// A user name or password in the URL, where everybody can read it.
    #[error(
        "the Git URL must hold no user name or password: put them into a Secret (keys username and password) and name it in secretRef"
    )]
    Credentials,
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
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("https") => {}
            Some("ssh" | "git+ssh" | "ssh+git") => return Err(UrlError::Ssh),
            // git's own short form, user@host:path; but ext::command is a scheme, too.
            None if text.contains('@') && text.contains(':') && !text.contains("::") => return Err(UrlError::Ssh),
            _ => return Err(UrlError::Scheme),
        }
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
        if text.contains(['?', '#']) {
            return Err(UrlError::QueryOrFragment);
        }
        if url.host_str().is_none_or(|host| host.is_empty() || host.starts_with('-')) {
            return Err(UrlError::Malformed);
        }
        if url.path().trim_matches('/').is_empty() {
            return Err(UrlError::NoPath);
        }
        let text = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { url, text })
    }

    /// The URL as given to `git`: normalised, without trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The server's host name, without port.
    #[must_use]
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// For tests against a server without TLS.
    #[cfg(test)]
    pub(super) fn plain(text: &str) -> Self {
        Self { url: text.parse().unwrap(), text: text.to_owned() }
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
            ("git@github.com:a/b.git", Err(UrlError::Ssh)),
            ("ssh://git@github.com/a/b.git", Err(UrlError::Ssh)),
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

    proptest! {
        #[test]
        fn what_parses_is_https_without_credentials(text in "(https://)?[ -~]{0,40}") {
            if let Ok(url) = GitUrl::parse(&text) {
                let read: Url = url.as_str().parse().unwrap();
                prop_assert_eq!(read.scheme(), "https");
                prop_assert!(read.username().is_empty() && read.password().is_none());
                prop_assert_eq!(&GitUrl::parse(url.as_str()).unwrap().text, &url.text);
            }
        }
    }
}
