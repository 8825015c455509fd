//! What a registry's refusal means, in words that say what to mend.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::http_client::{BodyError, FailureClass, TransportFailure, retry_after};
use crate::text::plain_text;

/// A failed exchange with a registry. `Display` is for the user: what was attempted, where, why it failed, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not {action} at {registry}: {cause}")]
pub struct Error {
    pub(super) kind: ErrorKind,
    pub(super) registry: String,
    pub(super) action: String,
    pub(super) cause: String,
    pub(super) status: Option<u16>,
    pub(super) retry_after: Option<Duration>,
}

/// What went wrong with a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No credential, or a refused one.
    Unauthorized,
    /// The credential is good but lacks the right.
    Denied,
    /// The manifest or blob does not exist.
    NotFound,
    /// The repository does not exist, or nothing there is a registry.
    NameUnknown,
    /// The registry does not allow such a repository name.
    NameInvalid,
    /// The tag exists and the registry does not let it move.
    TagImmutable,
    /// Someone else keeps moving the tag.
    TagContended,
    /// There is no room for more: a quota is used up.
    Quota,
    /// It does not take such a manifest.
    Unsupported,
    /// Too many requests.
    RateLimited,
    /// No connection, no answer in time, or a server error.
    Unavailable,
    /// It does not find what a manifest names.
    BlobUnknown,
    /// No trusted CA issued the registry's certificate.
    CertificateUntrusted,
    /// The registry's certificate is for other names.
    CertificateNameMismatch,
    /// The host is at an address that may not be reached.
    AddressForbidden,
    /// An answer that is no registry's, or a refusal that fits nothing else.
    Protocol,
    /// It speaks no TLS.
    NotTls,
    /// It has uploads sent to another place.
    Elsewhere,
}

impl Error {
    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Who can mend it, and so whether to try again.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self.kind {
            ErrorKind::Unauthorized | ErrorKind::Denied => FailureClass::Credential,
            ErrorKind::NotFound
            | ErrorKind::NameUnknown
            | ErrorKind::NameInvalid
            | ErrorKind::TagImmutable
            | ErrorKind::Quota
            | ErrorKind::Unsupported
            | ErrorKind::CertificateUntrusted
            | ErrorKind::CertificateNameMismatch
            | ErrorKind::NotTls
            | ErrorKind::Elsewhere
            | ErrorKind::AddressForbidden => FailureClass::User,
            ErrorKind::TagContended
            | ErrorKind::RateLimited
            | ErrorKind::Unavailable
            | ErrorKind::BlobUnknown
            | ErrorKind::Protocol => FailureClass::Infrastructure,
        }
    }

    /// The HTTP status, where there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// How long the registry asks to wait; at most an hour.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether what was asked is not done, and will not be: the registry said so, or was not asked at all. Where it is not,
    /// nobody knows.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self.status {
            // With 408 it has lost patience with a request that may be on its way.
            Some(status) => (400..500).contains(&status) && status != 408,
            None => self.class() == FailureClass::User,
        }
    }

    /// The registry's host.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }
}

/// What is being done, for the text of errors.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) registry: String,
    pub(super) action: String,
    /// Whether it writes a tag, which registries refuse in their own ways.
    pub(super) writes_tag: bool,
    /// Whether a credential goes with it.
    pub(super) has_login: bool,
}

impl Attempt {
    pub(super) fn fail(&self, kind: ErrorKind, cause: impl Into<String>) -> Error {
        Error {
            kind,
            registry: self.registry.clone(),
            action: self.action.clone(),
            cause: cause.into(),
            status: None,
            retry_after: None,
        }
    }

    pub(super) fn protocol(&self, cause: impl Into<String>) -> Error {
        self.fail(ErrorKind::Protocol, cause)
    }

    pub(super) fn transport(&self, failure: &TransportFailure) -> Error {
        let kind = match failure {
            TransportFailure::AddressForbidden(_) => ErrorKind::AddressForbidden,
            TransportFailure::CertificateUntrusted | TransportFailure::CertificateInvalid(_) => {
                ErrorKind::CertificateUntrusted
            }
            TransportFailure::CertificateNameMismatch { .. } => ErrorKind::CertificateNameMismatch,
            TransportFailure::NotTls(_) => ErrorKind::NotTls,
            TransportFailure::Dns(_) | TransportFailure::Timeout | TransportFailure::Connection(_) => {
                ErrorKind::Unavailable
            }
        };
        self.fail(kind, failure.to_string())
    }

    pub(super) fn body(&self, error: &BodyError) -> Error {
        match error {
            BodyError::Transport(failure) => self.transport(failure),
            BodyError::TooLarge(_) => self.protocol(error.to_string()),
        }
    }

    /// Reads a refusal: status, headers and the body's beginning.
    pub(super) fn refused(&self, status: StatusCode, headers: &HeaderMap, body: &[u8], now: jiff::Timestamp) -> Error {
        let answer = Answer::read(body);
        let kind = classify(status, &answer, self.writes_tag, &self.action);
        let said = answer.said();
        let advice = match kind {
            ErrorKind::Unauthorized if self.has_login => "the registry refused the credential",
            ErrorKind::Unauthorized => "the registry wants a credential",
            ErrorKind::Denied if self.has_login => {
                "the credential does not have the right to: give its account access to the repository"
            }
            ErrorKind::Denied => "this is not allowed without a credential",
            ErrorKind::NotFound => "it does not exist there",
            ErrorKind::NameUnknown => {
                "the repository does not exist there, or the host is no registry: check its name, or create it first"
            }
            ErrorKind::NameInvalid => "the registry does not allow this repository name",
            ErrorKind::TagImmutable => {
                "the tag exists and the registry does not let it be moved: use a new tag, or allow overwriting there"
            }
            ErrorKind::Quota => {
                "the registry has no room for more: delete images there, or have the quota of the project or user raised"
            }
            ErrorKind::Unsupported => {
                "the registry does not take this manifest: one that knows no OCI images takes it with spec.image.mediaTypes: Docker"
            }
            ErrorKind::RateLimited => "the registry limits requests",
            ErrorKind::Unavailable => "the registry failed",
            ErrorKind::BlobUnknown => "the registry does not find a layer of the image",
            _ => "the registry gave an unexpected answer",
        };
        Error {
            status: Some(status.as_u16()),
            retry_after: retry_after(headers, now),
            ..self.fail(kind, format!("{advice} (HTTP {}{said})", status.as_u16()))
        }
    }
}

/// What a registry says in an error's body
/// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes>).
struct Answer {
    code: String,
    message: String,
}

#[derive(Deserialize)]
struct Body {
    errors: Vec<Item>,
}

#[derive(Default, Deserialize)]
struct Item {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Answer {
    fn read(body: &[u8]) -> Self {
        if let Ok(Body { errors }) = serde_json::from_slice(body) {
            let first = errors.into_iter().next().unwrap_or_default();
            return Self { code: plain_text(&first.code, 60), message: plain_text(&first.message, 300) };
        }
        // An HTML page helps nobody; a short text may.
        let text = plain_text(&String::from_utf8_lossy(body), 120);
        Self { code: String::new(), message: if text.starts_with(['<', '{']) { String::new() } else { text } }
    }

    fn said(&self) -> String {
        match (self.code.is_empty(), self.message.is_empty()) {
            (true, true) => String::new(),
            (false, true) => format!(", {}", self.code),
            (true, false) => format!(", {:?}", self.message),
            (false, false) => format!(", {}: {:?}", self.code, self.message),
        }
    }
}

/// `action` has the names of repository and tag, which the message may repeat.
fn classify(status: StatusCode, answer: &Answer, writes_tag: bool, action: &str) -> ErrorKind {
    // Harbor, GitLab, Artifactory and others say of a quota what they like, for there is no code.
    const ROOM: [&str; 5] =
        ["quota", "configured upper limit", "storage limit", "insufficient storage", "repositories, limit is"];
    const FIXED: [&str; 2] = ["immutable", "cannot be overwritten"];
    let has = |text: &str, signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
    let names = action.split([' ', '/', ':']).map(str::to_ascii_lowercase);
    let names = names.filter(|name| has(name, &ROOM) || has(name, &FIXED));
    let message = names.fold(answer.message.to_ascii_lowercase(), |message, name| message.replace(&name, ""));
    // Registries that keep tags from moving say so with 400 (ECR), 403, 405, 409 (Quay, GAR) or 412 (Harbor).
    let immutable = matches!(answer.code.as_str(), "TAG_IMMUTABLE" | "TAG_ALREADY_EXISTS")
        || has(&message, &FIXED)
        || (answer.code == "TAG_INVALID" && message.contains("already exists"));
    match status.as_u16() {
        409 | 412 if writes_tag => ErrorKind::TagImmutable,
        400..=499 if writes_tag && immutable => ErrorKind::TagImmutable,
        429 => ErrorKind::RateLimited,
        _ if answer.code == "TOOMANYREQUESTS" => ErrorKind::RateLimited,
        507 => ErrorKind::Quota,
        // Whatever does not know the request will not know it later.
        501 | 505 => ErrorKind::Protocol,
        408 | 425 | 500..=599 => ErrorKind::Unavailable,
        401 => ErrorKind::Unauthorized,
        // Amazon's, whose passwords last for half a day.
        403 if message.contains("authorization token has expired") => ErrorKind::Unauthorized,
        403 if has(&message, &ROOM) => ErrorKind::Quota,
        403 => ErrorKind::Denied,
        415 => ErrorKind::Unsupported,
        _ if answer.code == "MANIFEST_INVALID" => ErrorKind::Unsupported,
        _ if answer.code == "NAME_INVALID" => ErrorKind::NameInvalid,
        // It has taken what a manifest names, and does not find it yet: it answers so to the PUT of the manifest.
        _ if answer.code == "MANIFEST_BLOB_UNKNOWN" => ErrorKind::BlobUnknown,
        404 if matches!(answer.code.as_str(), "MANIFEST_UNKNOWN" | "BLOB_UNKNOWN") => ErrorKind::NotFound,
        404 => ErrorKind::NameUnknown,
        _ => ErrorKind::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(writes_tag: bool) -> Attempt {
        Attempt {
            registry: "reg.example".into(),
            action: "push the tag v1 of team/app".into(),
            writes_tag,
            has_login: true,
        }
    }

    fn kind(status: u16, code: &str, message: &str, writes_tag: bool) -> ErrorKind {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
        let status = StatusCode::from_u16(status).unwrap();
        attempt(writes_tag).refused(status, &HeaderMap::new(), body.as_bytes(), jiff::Timestamp::UNIX_EPOCH).kind
    }

    #[test]
    fn kinds() {
        for (status, code, message, writes_tag, expected) in [
            (401, "UNAUTHORIZED", "authentication required", false, ErrorKind::Unauthorized),
            (403, "DENIED", "requested access to the resource is denied", false, ErrorKind::Denied),
            (404, "NAME_UNKNOWN", "repository name not known to registry", false, ErrorKind::NameUnknown),
            (404, "MANIFEST_UNKNOWN", "manifest unknown", false, ErrorKind::NotFound),
            (400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", false, ErrorKind::BlobUnknown),
            (404, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", true, ErrorKind::BlobUnknown),
            (400, "NAME_INVALID", "invalid repository name", false, ErrorKind::NameInvalid),
            (429, "TOOMANYREQUESTS", "slow down", false, ErrorKind::RateLimited),
            (503, "", "", false, ErrorKind::Unavailable),
            (408, "", "", false, ErrorKind::Unavailable),
            (425, "", "", false, ErrorKind::Unavailable),
            (400, "MANIFEST_INVALID", "manifest invalid", true, ErrorKind::Unsupported),
            // Amazon ECR
            (
                400,
                "TAG_INVALID",
                "The image tag 'v1' already exists in the 'app' repository and cannot be overwritten because the repository is immutable.",
                true,
                ErrorKind::TagImmutable,
            ),
            // Harbor
            (
                412,
                "PRECONDITION",
                "Failed to process request due to 'app:v1' configured as immutable.",
                true,
                ErrorKind::TagImmutable,
            ),
            // Quay
            (409, "TAG_ALREADY_EXISTS", "tag already exists", true, ErrorKind::TagImmutable),
            (409, "", "", false, ErrorKind::Protocol),
        ] {
            assert_eq!(kind(status, code, message, writes_tag), expected, "{status} {code} {message}");
        }
    }

    /// Amazon's registries take a password for twelve hours.
    #[test]
    fn a_password_that_has_expired_lacks_no_right() {
        let said = "Your authorization token has expired. Reauthenticate and try again.";
        assert_eq!(kind(403, "DENIED", said, false), ErrorKind::Unauthorized);
        assert_eq!(kind(403, "DENIED", "access to expired/app is denied", false), ErrorKind::Denied);
    }

    /// What no later try mends.
    #[test]
    fn what_a_server_does_not_do_is_no_failure_of_it() {
        for (status, expected) in [
            (500, ErrorKind::Unavailable),
            (501, ErrorKind::Protocol),
            (503, ErrorKind::Unavailable),
            (505, ErrorKind::Protocol),
            (520, ErrorKind::Unavailable),
        ] {
            assert_eq!(kind(status, "", "", false), expected, "{status}");
        }
    }

    /// A repository or tag may be called anything, and registries repeat its name.
    #[test]
    fn a_name_is_no_reason() {
        let attempt = Attempt { action: "push the tag v1 of team/immutable-infra".into(), ..attempt(true) };
        let said = "requested access to the repository team/immutable-infra is denied";
        for (status, code, expected) in [
            (401, "UNAUTHORIZED", ErrorKind::Unauthorized),
            (403, "DENIED", ErrorKind::Denied),
            (404, "NAME_UNKNOWN", ErrorKind::NameUnknown),
        ] {
            let body = serde_json::json!({"errors": [{"code": code, "message": said}]}).to_string();
            let status = StatusCode::from_u16(status).unwrap();
            let now = jiff::Timestamp::UNIX_EPOCH;
            assert_eq!(attempt.refused(status, &HeaderMap::new(), body.as_bytes(), now).kind, expected, "{status}");
        }
    }

    #[test]
    fn messages() {
        let text = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            attempt(true).refused(status, &HeaderMap::new(), body.as_bytes(), jiff::Timestamp::UNIX_EPOCH).to_string()
        };
        insta::assert_snapshot!(text(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication\u001b[31m required"}]}"#), @r#"could not push the tag v1 of team/app at reg.example: the registry refused the credential (HTTP 401, UNAUTHORIZED: "authentication [31m required")"#);
        // Harbor, where a project's quota is used up: no credential helps.
        let full = r#"{"errors":[{"code":"DENIED","message":"adding 29.0 MiB of storage resource, which when updated to current usage of 150.0 MiB will exceed the configured upper limit of 160.0 MiB."}]}"#;
        assert!(!text(403, full).contains("credential"), "{}", text(403, full));
        insta::assert_snapshot!(text(502, "<html>Bad gateway</html>"), @"could not push the tag v1 of team/app at reg.example: the registry failed (HTTP 502)");
        insta::assert_snapshot!(text(500, "oops"), @r#"could not push the tag v1 of team/app at reg.example: the registry failed (HTTP 500, "oops")"#);
        insta::assert_snapshot!(attempt(false).transport(&TransportFailure::CertificateUntrusted), @"could not push the tag v1 of team/app at reg.example: the server's certificate was issued by no CA that counts for it: name its CA in the caRef of this very server, or in the pool's caRefs");
        insta::assert_snapshot!(
            attempt(false).transport(&TransportFailure::CertificateNameMismatch { expected: "reg.example".into(), presented: vec![] }), @"could not push the tag v1 of team/app at reg.example: the server's certificate is not valid for reg.example (it has no subject alternative names): ask for one that has it as a subject alternative name (the common name alone does not count), or make one: openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -keyout tls.key -out tls.crt -subj '/CN=reg.example' -addext 'subjectAltName=DNS:reg.example' (tls.crt, being self-signed, is then what caRef names)");
    }
}
