//! Failures of registries and web servers: what they answered, and what to do.

use kiln_registry::Reference;

use super::{
    Circumstances, FailedStep,
    answer::{self, Answer},
    login,
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
        Answer::Limited => {
            (Reason::RegistryUnavailable, format!("the registry of {repository} limits requests (HTTP 429): {detail}"))
        }
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
pub(super) fn pull(
    inner: &str,
    line: &str,
    step: Option<&FailedStep>,
    build: Circumstances<'_>,
) -> Option<(Reason, String)> {
    // Before that stands what the Dockerfile says: a name, which holds no white space.
    let looked_up = inner.split_once(RESOLVING).and_then(|(before, rest)| {
        let name = before.strip_suffix(": ").unwrap_or(before);
        if name.contains(char::is_whitespace) { None } else { rest.split_once(": ") }
    });
    let (context, of_step) = step.and_then(|step| looked_up_by(&step.name)).unzip();
    let context = context.flatten();
    let (image, said) = match looked_up {
        // BuildKit names it once more.
        Some((image, said)) => {
            (image.to_owned(), said.strip_prefix(image).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(said))
        }
        None if is_of_a_token(inner)
            || inner.starts_with("mount callback failed on ")
            || OF_CONTENT.iter().any(|opening| inner.starts_with(opening)) =>
        {
            let of_step = of_step.map(str::to_owned);
            let image = if context.is_some() { of_step } else { named_in(line).or(of_step) };
            (image.unwrap_or_else(|| "the base image".to_owned()), inner)
        }
        None => return None,
    };
    let named_by = match context {
        Some(context) => Some(format!("spec.contexts[{context}]")),
        None => held_back(&image, line, build).map(|base| format!("an ONBUILD of {base}")),
    };
    Some(not_pulled(&image, said, named_by.as_deref(), line, build))
}

/// What the FROM in this line names, where that is not the image: only an ONBUILD of it can be what names that.
fn held_back(image: &str, line: &str, build: Circumstances<'_>) -> Option<String> {
    let base = named_in(line)?;
    if build.contexts.iter().any(|context| context.name.eq_ignore_ascii_case(&base)) {
        return None;
    }
    let repository = |name: &str| Some(name.parse::<Reference>().ok()?.repository);
    (repository(&base)? != repository(image)?).then_some(base)
}

/// The context whose image a step looks up, where it is one's, and the image: `[context NAME] load metadata for IMAGE`.
fn looked_up_by(step: &str) -> Option<(Option<&str>, &str)> {
    let (by, image) = step.split_once("] load metadata for ")?;
    let by = by.strip_prefix('[')?;
    Some((by.strip_prefix("context "), image))
}

fn not_pulled(
    image: &str,
    said: &str,
    named_by: Option<&str>,
    line: &str,
    build: Circumstances<'_>,
) -> (Reason, String) {
    let named = named_by.map(|named_by| format!("{image}, which {named_by} names,"));
    let image_of = named.as_deref().unwrap_or(image);
    if said.starts_with("no match for platform in manifest") {
        let named = line.split_whitespace().find_map(|word| word.strip_prefix("--platform="));
        if let Some(platform) = named.filter(|platform| !platform.contains('$')) {
            return (
                Reason::BaseImageNotFound,
                format!(
                    "{image_of} is not there for {platform}, which FROM asks for; choose a base image that has this platform, or leave out --platform"
                ),
            );
        }
        return (
            Reason::BaseImageNotFound,
            format!(
                "{image_of} is not there for {}; choose a base image that has this platform, or leave it out of spec.platforms; a stage that only gives files away may name a platform that the image has: FROM --platform=linux/amd64",
                build.platform
            ),
        );
    }
    if let Some(why) = broken(said) {
        let message = format!(
            "what the registry has as {image_of} is no image that can be built from: {why}; push it again, or use another base image"
        );
        return (Reason::BaseImageInvalid, message);
    }
    match answer::read_of(said, image) {
        Answer::Untrusted => (Reason::RegistryCertificateUntrusted, untrusted(image, said)),
        Answer::NoTls => (Reason::RegistryCertificateUntrusted, no_tls(image)),
        // A token server that knows nothing of the repository says so in different ways.
        answer
            if matches!(answer, Answer::Unauthorized | Answer::Denied)
                || answer == Answer::NotFound && is_of_a_token(said) =>
        {
            (Reason::RegistryUnauthorized, refused(image, image_of, said, build))
        }
        Answer::NotFound => {
            let place = match named_by {
                None => "in FROM, COPY --from or RUN --mount, or the name of the stage that is meant",
                Some(_) => "there",
            };
            let hidden = match login::shown(build.logins, image, said) {
                None => {
                    "; no login was shown, and a private image may be hidden so: it needs a Secret in pullSecretRefs"
                }
                Some(_) => "",
            };
            let image = image_of.trim_end_matches(',');
            (Reason::BaseImageNotFound, format!("there is no image {image}; check its name and tag {place}{hidden}"))
        }
        Answer::Unavailable => {
            (Reason::RegistryUnavailable, format!("the registry of {image} cannot be reached or is in trouble: {said}"))
        }
        Answer::Limited => (
            Reason::RegistryUnavailable,
            format!(
                "the registry of {image} limits requests (HTTP 429); a login in pullSecretRefs often has a higher limit, and a mirror in the pool's registries[].mirrors asks it less: {said}"
            ),
        ),
        _ => (Reason::BuildFailed, format!("the registry's answer for {image} cannot be used: {said}")),
    }
}

/// What a registry, or its token realm, says of an image that it does not give: its answer first.
fn refused(image: &str, image_of: &str, said: &str, build: Circumstances<'_>) -> String {
    let answer = answer::told(said);
    let stage = if image == image_of { " (a stage of that name may be meant)" } else { "" };
    match login::shown(build.logins, image, said) {
        Some(login) => format!(
            "the registry answered {answer:?} for {image_of} and so refuses {login}; check user and password, and that this account may read the repository: {said}"
        ),
        None => format!(
            "the registry answered {answer:?} for {image_of} and was shown no login: either the name is wrong{stage}, or the image is private and needs a Secret in pullSecretRefs: {said}"
        ),
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
