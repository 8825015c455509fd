//! Failures of registries and web servers: what they answered, and what to do.

use super::{
    Circumstances,
    answer::{self, Answer},
};
use crate::reasons::Reason;

/// What BuildKit says before the name of an image that it looks up.
const RESOLVING: &str = "failed to resolve source metadata for ";

/// How BuildKit begins what it says of a token that it did not get.
const OF_TOKENS: [&str; 3] =
    ["failed to authorize: ", "failed to fetch oauth token: ", "failed to fetch anonymous token: "];
/// And of what it did not get from a registry.
const OF_CONTENT: [&str; 5] =
    ["failed to copy: ", "failed to do request: ", "pull access denied, ", "unexpected status from ", "short read: "];

/// Whether a token for a registry could not be had.
pub(super) fn is_of_a_token(cause: &str) -> bool {
    OF_TOKENS.iter().any(|opening| cause.starts_with(opening))
}

/// The registry did not take the image, and why.
pub(super) fn push(repository: &str, detail: &str) -> (Reason, String) {
    let repository = if repository.is_empty() { "the image" } else { repository };
    match answer::read_of(detail, repository) {
        Answer::Untrusted => (Reason::RegistryCertificateUntrusted, untrusted(repository, detail)),
        Answer::NoTls => (Reason::RegistryCertificateUntrusted, no_tls(repository)),
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
                "the registry refuses to take the image for {repository}; check user, password and push right: {detail}"
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
        Answer::Other if detail.starts_with("invalid reference format") => {
            (Reason::ReferenceInvalid, format!("spec.image.repository is not the name of a repository: {detail}"))
        }
        Answer::Other if detail.starts_with("unsupported") => (
            Reason::BuildFailed,
            format!(
                "the registry of {repository} does not do what a push needs; it may be read-only, or keep copies of another one's images: {detail}"
            ),
        ),
        Answer::Other => {
            (Reason::BuildFailed, format!("the registry did not take the image for {repository}: {detail}"))
        }
    }
}

/// A base image could not be had, which `line` of the Dockerfile names. None: it was something else.
pub(super) fn pull(inner: &str, line: &str, build: Circumstances<'_>) -> Option<(Reason, String)> {
    // Before that stands what the Dockerfile says: a name, which holds no white space.
    let looked_up = inner.split_once(RESOLVING).and_then(|(before, rest)| {
        let name = before.strip_suffix(": ").unwrap_or(before);
        if name.contains(char::is_whitespace) { None } else { rest.split_once(": ") }
    });
    let (image, said) = match looked_up {
        // BuildKit names it once more.
        Some((image, said)) => {
            (image.to_owned(), said.strip_prefix(image).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(said))
        }
        None if is_of_a_token(inner)
            || inner.starts_with("mount callback failed on ")
            || OF_CONTENT.iter().any(|opening| inner.starts_with(opening)) =>
        {
            (named_in(line).unwrap_or_else(|| "the base image".to_owned()), inner)
        }
        None => return None,
    };
    Some(not_pulled(&image, said, line, build))
}

fn not_pulled(image: &str, said: &str, line: &str, build: Circumstances<'_>) -> (Reason, String) {
    if said.starts_with("no match for platform in manifest") {
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
    if let Some(why) = broken(said) {
        let message = format!(
            "what the registry has as {image} is no image that can be built from: {why}; push it again, or use another base image"
        );
        return (Reason::BaseImageInvalid, message);
    }
    match answer::read(said) {
        Answer::Untrusted => (Reason::RegistryCertificateUntrusted, untrusted(image, said)),
        Answer::NoTls => (Reason::RegistryCertificateUntrusted, no_tls(image)),
        // A token server that knows nothing of the repository says so in different ways.
        answer
            if matches!(answer, Answer::Unauthorized | Answer::Denied)
                || answer == Answer::NotFound && is_of_a_token(said) =>
        {
            (
                Reason::RegistryUnauthorized,
                format!(
                    "the registry does not hand out {image}: it does not exist, or needs a credential; check its name (a stage of that name may be meant) and the credential: {said}"
                ),
            )
        }
        Answer::NotFound => (
            Reason::BaseImageNotFound,
            format!(
                "there is no image {image}; check its name and tag in FROM or COPY --from, or the name of the stage that is meant"
            ),
        ),
        Answer::Unavailable => {
            (Reason::RegistryUnavailable, format!("the registry of {image} cannot be reached or is in trouble: {said}"))
        }
        _ => (Reason::BuildFailed, format!("the registry's answer for {image} cannot be used: {said}")),
    }
}

/// What is wrong with an image itself.
fn broken(said: &str) -> Option<&str> {
    let missing = "failed to copy: httpReadSeeker: failed open: could not fetch content descriptor ";
    if said.starts_with(missing) {
        return said.strip_prefix("failed to copy: httpReadSeeker: failed open: ");
    }
    if let Some(mount) = said.strip_prefix("mount callback failed on ") {
        return mount.split_once(": ").map(|(_, why)| why);
    }
    let signs = [
        "unexpected end of JSON input",
        "invalid character ",
        "support Docker Image manifest version 2, schema 1 has been removed",
        "failed commit on ref ",
        "encountered unknown type ",
        "unexpected media type ",
        "json: cannot unmarshal ",
    ];
    signs.iter().any(|sign| said.starts_with(sign)).then_some(said)
}

/// That of a base image, where BuildKit did not name it.
fn named_in(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let from = words.next().is_some_and(|word| word.eq_ignore_ascii_case("FROM"));
    let name = words.find(|word| !word.starts_with("--")).filter(|name| from && !name.contains('$'))?;
    Some(name.to_owned())
}

fn no_tls(what: &str) -> String {
    format!("the registry of {what} speaks no TLS; mark its host with plainHttp in the pool's registries")
}

/// With what Go says of the certificate.
fn untrusted(what: &str, said: &str) -> String {
    let cure = "name its CA in the pool's caRefs, or, for the registry of spec.image alone, in spec.image.caRef";
    match answer::certificate(said) {
        Some((why, own_cure)) => {
            format!("the certificate of the registry of {what} is not trusted ({why}); {}", own_cure.unwrap_or(cure))
        }
        None => format!("the certificate of the registry of {what} is not trusted; {cure}"),
    }
}
