//! Failures of registries and web servers: what they answered, and what to do.

use super::{
    Circumstances, after,
    answer::{self, Answer},
    between,
};
use crate::reasons::Reason;

/// The registry did not take the image.
pub(super) fn push(cause: &str, build: Circumstances<'_>) -> (Reason, String) {
    let repository = between(cause, "failed to push ", ": ").unwrap_or(build.repository);
    let detail = after(cause, &format!("failed to push {repository}: "));
    match answer::read(detail) {
        Answer::Untrusted => (Reason::RegistryCertificateUntrusted, untrusted(repository)),
        Answer::Quota => (
            Reason::QuotaExceeded,
            format!(
                "the registry has no room for more of {repository}; delete images there, or have its quota raised: {detail}"
            ),
        ),
        Answer::TooLarge => (
            Reason::UploadTooLarge,
            format!(
                "the registry of {repository}, or a proxy before it, takes no layer of this size (HTTP 413); raise the largest body that the proxy takes (client_max_body_size of nginx, proxy-body-size of its ingress), or make layers smaller: {detail}"
            ),
        ),
        Answer::Unsupported => (
            Reason::MediaTypesUnsupported,
            format!(
                "the registry of {repository} does not take this manifest; one that knows no OCI images takes them with spec.image.mediaTypes: Docker: {detail}"
            ),
        ),
        Answer::Unauthorized | Answer::Denied => (
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
    // BuildKit names it once more.
    let said = detail.strip_prefix(&format!("{image}: ")).unwrap_or(detail);
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
    match answer::read(said) {
        Answer::Untrusted => (Reason::RegistryCertificateUntrusted, untrusted(image)),
        Answer::Unauthorized | Answer::Denied => (
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
        _ => (Reason::BuildFailed, cause.to_owned()),
    }
}

/// What ADD names could not be had.
pub(super) fn download(cause: &str) -> (Reason, String) {
    match answer::read(cause) {
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
