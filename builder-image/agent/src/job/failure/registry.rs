//! Failures of registries and web servers: what they answered, and what to do.

use super::{Circumstances, after, between};
use crate::reasons::Reason;

/// The registry did not take the image.
pub(super) fn push(cause: &str, build: Circumstances<'_>) -> (Reason, String) {
    let repository = between(cause, "failed to push ", ": ").unwrap_or(build.repository);
    let detail = after(cause, &format!("failed to push {repository}: "));
    match registry_answer(cause) {
        Answer::Untrusted => (Reason::RegistryCertificateUntrusted, untrusted(repository)),
        Answer::Unauthorized => (
            Reason::PushDenied,
            format!(
                "the registry refuses to take the image for {repository}; check user, password and push right in the Secret that spec.image.secretRef names: {detail}"
            ),
        ),
        Answer::NotFound => (
            Reason::RepositoryNotFound,
            format!("the registry has no repository {repository}; make it, or check spec.image.repository: {detail}"),
        ),
        Answer::Unavailable => (
            Reason::RegistryUnavailable,
            format!("the registry of {repository} cannot be reached or is in trouble: {detail}"),
        ),
        Answer::Other => (Reason::BuildFailed, cause.to_owned()),
    }
}

/// A base image could not be had, which `line` of the Dockerfile names.
pub(super) fn pull(cause: &str, line: &str, build: Circumstances<'_>) -> (Reason, String) {
    let image = between(cause, "failed to resolve source metadata for ", ": ").unwrap_or("the base image");
    let detail = after(cause, &format!("failed to resolve source metadata for {image}: "));
    if cause.contains("no match for platform in manifest") {
        let named = line.split_whitespace().find_map(|word| word.strip_prefix("--platform="));
        if let Some(platform) = named.filter(|platform| !platform.contains('$')) {
            return (
                Reason::BaseImageNotFound,
                format!(
                    "{image} is not there for {platform}, which FROM asks for; choose a base image that has this platform, or leave out --platform"
                ),
            );
        }
        return (
            Reason::BaseImageNotFound,
            format!(
                "{image} is not there for {}; choose a base image that has this platform, or leave it out of spec.platforms; a stage that only gives files away may name a platform that the image has: FROM --platform=linux/amd64",
                build.platform
            ),
        );
    }
    match registry_answer(cause) {
        Answer::Untrusted => (Reason::RegistryCertificateUntrusted, untrusted(image)),
        Answer::Unauthorized => (
            Reason::RegistryUnauthorized,
            format!(
                "the registry does not hand out {image}: it does not exist, or needs a credential; check its name (a stage of that name may be meant) and the Secrets in spec.pullSecretRefs: {detail}"
            ),
        ),
        Answer::NotFound => (
            Reason::BaseImageNotFound,
            format!(
                "there is no image {image}; check its name and tag in FROM or COPY --from, or the name of the stage that is meant"
            ),
        ),
        Answer::Unavailable => (
            Reason::RegistryUnavailable,
            format!("the registry of {image} cannot be reached or is in trouble: {detail}"),
        ),
        Answer::Other => (Reason::BuildFailed, cause.to_owned()),
    }
}

/// What ADD names could not be had.
pub(super) fn download(cause: &str) -> (Reason, String) {
    match registry_answer(cause) {
        Answer::Unavailable => (Reason::DownloadFailed, format!("what ADD downloads cannot be reached: {cause}")),
        Answer::NotFound => (Reason::FileNotFound, format!("what ADD downloads is not there: {cause}")),
        Answer::Untrusted => untrusted_download(cause),
        _ => (Reason::BuildFailed, format!("what ADD downloads cannot be had: {cause}")),
    }
}

/// Nobody that counts for it has signed for the server that ADD downloads from.
pub(super) fn untrusted_download(cause: &str) -> (Reason, String) {
    let message = format!(
        "the certificate of the server that ADD downloads from is not trusted: {cause}; for ADD the CAs in the pool's caRefs \
         count, and no others: have its CA named there"
    );
    (Reason::DownloadCertificateUntrusted, message)
}

fn untrusted(what: &str) -> String {
    format!(
        "the certificate of the registry of {what} is not trusted; name its CA in the pool's caRefs, or, for the registry of \
         spec.image alone, in spec.image.caRef"
    )
}

/// What a registry, or the way to it, meant.
enum Answer {
    Untrusted,
    Unauthorized,
    NotFound,
    Unavailable,
    Other,
}

fn registry_answer(cause: &str) -> Answer {
    let has = |signs: &[&str]| signs.iter().any(|sign| cause.contains(sign));
    if has(&["x509: ", "server gave HTTP response to HTTPS client"]) {
        Answer::Untrusted
    } else if has(&[
        "401 Unauthorized",
        "403 Forbidden",
        "access denied",
        "insufficient_scope",
        "authorization failed",
        "unauthorized",
        "no basic auth credentials",
        "denied: ",
    ]) {
        Answer::Unauthorized
    } else if has(&[
        "429 Too Many Requests",
        "toomanyrequests",
        "dial tcp",
        "no such host",
        "connection refused",
        "connection reset",
        "i/o timeout",
        "TLS handshake timeout",
        "deadline exceeded",
        "unexpected EOF",
        ": EOF",
        "broken pipe",
        "500 Internal",
        "502 Bad",
        "503 Service",
        "504 Gateway",
        "network is unreachable",
        "no route to host",
        "server misbehaving",
        // A manifest is sent after all that it names. Registries that keep files read what a blob is called while another
        // platform's push writes it again; those with several replicas may not have heard of it.
        "blob unknown to registry",
        "blob unknown: ",
    ]) {
        Answer::Unavailable
    } else if has(&["not found", "404 Not Found", "404", "410 Gone", "name unknown", "repository name not known"]) {
        Answer::NotFound
    } else {
        Answer::Other
    }
}
