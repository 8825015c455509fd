//! What a request that got no answer means, and whose it is to mend.

use std::error::Error as StdError;

use rustls::CertificateError;

use super::address::AddressForbidden;
use crate::text::plain_text;

/// Who can mend a failure, and so whether trying again by itself helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// A credential is missing or refused: trying again helps once it has changed.
    Credential,
    /// Something the user declared is wrong: trying again does not help.
    User,
    /// Trying again may help.
    Infrastructure,
}

/// Why a request got no answer. `Display` gives the cause and what can be done, without URL and credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportFailure {
    /// The host is, or resolves to, an address that may not be reached.
    #[error(transparent)]
    AddressForbidden(AddressForbidden),
    /// No trusted CA issued the server's certificate.
    #[error(
        "the server's certificate was issued by no CA that counts for it: name its CA in the caRef of this very server, or in the pool's caRefs"
    )]
    CertificateUntrusted,
    /// The certificate is for other names.
    #[error(
        "the server's certificate is not valid for {expected}{}: ask for one that has it as a subject alternative name (the common name alone does not count), or make one: {}",
        presented_names(.presented),
        how_to_make(.expected)
    )]
    CertificateNameMismatch {
        /// The host that was asked for.
        expected: String,
        /// The names in the certificate.
        presented: Vec<String>,
    },
    /// The certificate is expired, not yet valid, revoked or broken.
    #[error("the server's certificate is not acceptable: {0}")]
    CertificateInvalid(String),
    /// The other side does not speak TLS, or none that fits.
    #[error(
        "the server does not speak TLS there ({0}): check the port, or mark a plain-HTTP registry with plainHttp in the BuilderPool's registries"
    )]
    NotTls(String),
    /// The name has no address.
    #[error("its name could not be resolved: {0}")]
    Dns(String),
    /// No answer in time.
    #[error("it did not answer in time")]
    Timeout,
    /// No connection, or a broken one.
    #[error("the connection failed: {0}")]
    Connection(String),
}

/// A command that makes a certificate for this host, and the CA bundle that goes with it.
fn how_to_make(host: &str) -> String {
    let bare = host.trim_matches(['[', ']']);
    let (kind, name) = match bare.parse::<std::net::IpAddr>() {
        Ok(_) => ("IP", bare),
        Err(_) => ("DNS", host),
    };
    format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -keyout tls.key -out tls.crt -subj \
         '/CN={name}' -addext 'subjectAltName={kind}:{name}' (tls.crt, being self-signed, is then what caRef names)"
    )
}

fn presented_names(names: &[String]) -> String {
    // Servers choose this text, so little of it is shown.
    let shown: Vec<String> = names.iter().take(5).map(|n| plain_text(bare_name(n), 100)).collect();
    if shown.is_empty() {
        " (it has no subject alternative names)".into()
    } else {
        format!(" (it is for {})", shown.join(", "))
    }
}

/// `x` of rustls's `DnsName("x")` and `IpAddress(x)`.
fn bare_name(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.map_or(name, |inner| inner.trim_matches('"'))
}

impl TransportFailure {
    /// Reads reqwest's chain of causes.
    #[must_use]
    pub fn from_reqwest(error: &reqwest::Error) -> Self {
        let mut innermost = String::new();
        let mut dns = false;
        let mut cause: Option<&(dyn StdError + 'static)> = error.source();
        while let Some(e) = cause {
            if let Some(forbidden) = e.downcast_ref::<AddressForbidden>() {
                return Self::AddressForbidden(forbidden.clone());
            }
            if let Some(tls) = e.downcast_ref::<rustls::Error>() {
                return Self::from_tls(tls);
            }
            innermost = plain_text(&e.to_string(), 200);
            dns |= innermost.contains("dns error") || innermost.contains("failed to lookup address");
            // An io::Error's `source` skips the error that it carries.
            let carried = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            cause = carried.map(|e| e as &(dyn StdError + 'static)).or_else(|| e.source());
        }
        if error.is_timeout() {
            Self::Timeout
        } else if dns {
            Self::Dns(innermost)
        } else if innermost.is_empty() {
            Self::Connection("the request could not be sent".into())
        } else {
            Self::Connection(innermost)
        }
    }

    fn from_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(e) => match e {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::CertificateUntrusted,
                CertificateError::NotValidForNameContext { expected, presented } => Self::CertificateNameMismatch {
                    expected: expected.to_str().into_owned(),
                    presented: presented.clone(),
                },
                CertificateError::NotValidForName => {
                    Self::CertificateNameMismatch { expected: "the host".into(), presented: Vec::new() }
                }
                e => Self::CertificateInvalid(plain_text(&e.to_string(), 200)),
            },
            rustls::Error::InvalidMessage(e) => Self::NotTls(format!("{e:?}")),
            e => Self::Connection(plain_text(&e.to_string(), 200)),
        }
    }

    /// Who can mend it.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::AddressForbidden(_)
            | Self::CertificateUntrusted
            | Self::CertificateNameMismatch { .. }
            | Self::CertificateInvalid(_)
            | Self::NotTls(_) => FailureClass::User,
            Self::Dns(_) | Self::Timeout | Self::Connection(_) => FailureClass::Infrastructure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_for_another_name_comes_with_how_to_make_one() {
        for (host, name) in [
            ("registry.example", "subjectAltName=DNS:registry.example'"),
            ("10.0.0.1", "subjectAltName=IP:10.0.0.1'"),
            ("fd00::1", "subjectAltName=IP:fd00::1'"),
        ] {
            let failure = TransportFailure::CertificateNameMismatch { expected: host.into(), presented: Vec::new() };
            let text = failure.to_string();
            assert!(text.contains(name) && text.contains("it has no subject alternative names"), "{text}");
        }
    }
}
