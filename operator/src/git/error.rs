//! Why a ref could not be resolved, in words that say what to mend.

use std::time::Duration;

use kiln_registry::http_client::{FailureClass, TransportFailure};

/// A failed look at a Git server. `Display` is for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server wants a credential, or refuses the one given.
    #[error("the Git server refuses access to {url} (HTTP {status}): {}", if *.with_credential {
        "check the credential, and its account's right to read the repository"
    } else {
        "it wants a Secret with username and password"
    })]
    Unauthorized {
        /// The repository.
        url: String,
        /// What the server answered.
        status: u16,
        /// Whether a credential was sent.
        with_credential: bool,
    },
    /// The ssh server refuses the key, or there is none.
    #[error("the Git server refuses access to {url}: {}", if *.with_key {
        "register the key's public part there, with the right to read the repository"
    } else {
        "it wants a Secret with the keys ssh-privatekey and known_hosts"
    })]
    KeyRefused {
        /// The repository.
        url: String,
        /// Whether a key was shown.
        with_key: bool,
    },
    /// The ssh server's key is not the one in `known_hosts`, or there is none.
    #[error("{}; put what ssh-keyscan prints into the key known_hosts of the Secret", if *.changed {
        format!("{host} shows another key than known_hosts has for it: somebody may be in between, or the server has a new key. Once you know that it is the server's")
    } else {
        format!("the key of {host} is not known")
    })]
    HostKeyUnknown {
        /// The host, with its port where that is not 22.
        host: String,
        /// Whether there is another key for it.
        changed: bool,
    },
    /// No repository there, as far as one can see.
    #[error("{url} was not found: {}", if *.with_credential {
        "check the URL, and that the credential's account may read the repository"
    } else {
        "check the URL; if the repository is private, it wants a Secret"
    })]
    NotFound {
        /// The repository.
        url: String,
        /// Whether a credential was sent.
        with_credential: bool,
    },
    /// The text can be no ref.
    #[error("{reference:?} is not a valid ref: {cause}")]
    RefInvalid {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// The repository has no such ref.
    #[error("{url} has no {}{}", ref_text(.reference), hint(.reference, .similar, .branches.as_deref()))]
    RefNotFound {
        /// The repository.
        url: String,
        /// What was asked for; `HEAD` where nothing was.
        reference: String,
        /// Refs with names like it.
        similar: Vec<String>,
        /// The first of its branches; none where it is empty. `None`: it is not known, or there are tags alone.
        branches: Option<Vec<String>>,
    },
    /// Too many requests.
    #[error("the Git server of {url} limits requests (HTTP 429)")]
    RateLimited {
        /// The repository.
        url: String,
        /// How long it asks to wait; at most an hour.
        retry_after: Option<Duration>,
    },
    /// The server failed.
    #[error("the Git server of {url} failed (HTTP {status})")]
    Unavailable {
        /// The repository.
        url: String,
        /// What it answered.
        status: u16,
        /// How long it asks to wait; at most an hour.
        retry_after: Option<Duration>,
    },
    /// No answer.
    #[error("could not reach {url}: {failure}")]
    Transport {
        /// The repository.
        url: String,
        /// Why.
        failure: TransportFailure,
    },
    /// An answer that is not a Git server's.
    #[error("{url} does not answer as a Git server does: {cause}")]
    Protocol {
        /// The repository.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
}

fn ref_text(reference: &str) -> String {
    if reference == "HEAD" { "HEAD".into() } else { format!("branch or tag {reference:?}") }
}

fn hint(reference: &str, similar: &[String], branches: Option<&[String]>) -> String {
    if !similar.is_empty() {
        return format!(": did you mean {}?", similar.join(", "));
    }
    match branches {
        Some([]) => ": it is empty".into(),
        None if reference == "HEAD" => ": it is empty, or its default branch does not exist".into(),
        Some(branches) if reference == "HEAD" => {
            format!(
                ": its default branch does not exist; name one of its branches in source.git.ref, such as {}",
                branches.join(", ")
            )
        }
        _ if (7..40).contains(&reference.len()) && reference.bytes().all(|b| b.is_ascii_hexdigit()) => {
            ": a commit must be named by its whole id of 40 or 64 digits".into()
        }
        Some(branches) => format!(": it has branches such as {}", branches.join(", ")),
        None => String::new(),
    }
}

/// What went wrong with a Git server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No credential, or a refused one.
    Unauthorized,
    /// The repository does not exist, or is hidden.
    NotFound,
    /// The text can be no ref.
    RefInvalid,
    /// No such ref.
    RefNotFound,
    /// The ssh server's key is not to be trusted.
    HostKeyUnknown,
    /// Too many requests.
    RateLimited,
    /// No connection, no answer in time, or a server error.
    Unavailable,
    /// No trusted CA issued the server's certificate.
    CertificateUntrusted,
    /// The server's certificate is for other names.
    CertificateNameMismatch,
    /// The host is at an address that may not be reached.
    AddressForbidden,
    /// An answer that is not a Git server's.
    Protocol,
    /// It speaks no TLS.
    NotTls,
}

impl Error {
    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unauthorized { .. } | Self::KeyRefused { .. } => ErrorKind::Unauthorized,
            Self::HostKeyUnknown { .. } => ErrorKind::HostKeyUnknown,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::RefInvalid { .. } => ErrorKind::RefInvalid,
            Self::RefNotFound { .. } => ErrorKind::RefNotFound,
            Self::RateLimited { .. } => ErrorKind::RateLimited,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Protocol { .. } => ErrorKind::Protocol,
            Self::Transport { failure, .. } => match failure {
                TransportFailure::AddressForbidden(_) => ErrorKind::AddressForbidden,
                TransportFailure::CertificateUntrusted | TransportFailure::CertificateInvalid(_) => {
                    ErrorKind::CertificateUntrusted
                }
                TransportFailure::CertificateNameMismatch { .. } => ErrorKind::CertificateNameMismatch,
                TransportFailure::NotTls(_) => ErrorKind::NotTls,
                TransportFailure::Dns(_) | TransportFailure::Timeout | TransportFailure::Connection(_) => {
                    ErrorKind::Unavailable
                }
            },
        }
    }

    /// Who can mend it, and so whether to try again.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self.kind() {
            // The keys that a server may have are in the Secret, too.
            ErrorKind::Unauthorized | ErrorKind::HostKeyUnknown => FailureClass::Credential,
            ErrorKind::NotFound
            | ErrorKind::RefInvalid
            | ErrorKind::RefNotFound
            | ErrorKind::CertificateUntrusted
            | ErrorKind::CertificateNameMismatch
            | ErrorKind::NotTls
            | ErrorKind::AddressForbidden => FailureClass::User,
            ErrorKind::RateLimited | ErrorKind::Unavailable | ErrorKind::Protocol => FailureClass::Infrastructure,
        }
    }

    /// How long the server asks to wait; at most an hour.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let url = || "https://git.example/app.git".to_owned();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let not_found = |reference: &str, similar: &[&str], branches: Option<&[&str]>| Error::RefNotFound {
            url: url(),
            reference: reference.into(),
            similar: owned(similar),
            branches: branches.map(owned),
        };
        let all = [
            Error::Unauthorized { url: url(), status: 401, with_credential: false },
            Error::Unauthorized { url: url(), status: 403, with_credential: true },
            Error::NotFound { url: url(), with_credential: false },
            Error::RefInvalid { reference: "a..b".into(), cause: "it holds \"..\"" },
            not_found("mian", &["main"], Some(&["main", "trunk"])),
            not_found("abcdef01", &[], Some(&["main"])),
            not_found("main", &[], Some(&["trunk"])),
            not_found("main", &[], Some(&[])),
            not_found("main", &[], None),
            not_found("HEAD", &[], None),
            not_found("HEAD", &[], Some(&[])),
            not_found("HEAD", &[], Some(&["trunk"])),
            Error::Transport { url: url(), failure: TransportFailure::CertificateUntrusted },
        ];
        insta::assert_snapshot!(all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"), @r#"
        the Git server refuses access to https://git.example/app.git (HTTP 401): it wants a Secret with username and password
        the Git server refuses access to https://git.example/app.git (HTTP 403): check the credential, and its account's right to read the repository
        https://git.example/app.git was not found: check the URL; if the repository is private, it wants a Secret
        "a..b" is not a valid ref: it holds ".."
        https://git.example/app.git has no branch or tag "mian": did you mean main?
        https://git.example/app.git has no branch or tag "abcdef01": a commit must be named by its whole id of 40 or 64 digits
        https://git.example/app.git has no branch or tag "main": it has branches such as trunk
        https://git.example/app.git has no branch or tag "main": it is empty
        https://git.example/app.git has no branch or tag "main"
        https://git.example/app.git has no HEAD: it is empty, or its default branch does not exist
        https://git.example/app.git has no HEAD: it is empty
        https://git.example/app.git has no HEAD: its default branch does not exist; name one of its branches in source.git.ref, such as trunk
        could not reach https://git.example/app.git: the server's certificate was issued by no CA that counts for it: name its CA in the caRef of this very server, or in the pool's caRefs
        "#);
    }
}
