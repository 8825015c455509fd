//! What a failed build means for its user: from what BuildKit tells of it as data, and else from its text.
//!
//! The text holds for the version in the builder image, and is tested with what was captured from it.

use std::collections::HashMap;

use super::{
    dockerfile::{Dockerfile, references},
    ending::Failed,
    excerpt::Excerpt,
    progress::FailedStep,
};
use crate::reasons::{JobFailure, Reason};

mod answer;
mod registry;
mod skeleton;
mod step;

/// The largest id that a builder maps: its pod has 65536, and the pod's own root is none of a build's.
const LARGEST_ID: u32 = 65_534;
/// The most variables of a line that are looked up.
const MOST_REFERENCES: usize = 64;

/// What is known of the build beside its text.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The Dockerfile's path, relative to the context.
    pub dockerfile: &'a str,
    /// The platform to build for.
    pub platform: &'a str,
    /// Where the image was to go.
    pub repository: &'a str,
    /// The build arguments.
    pub arguments: Option<&'a HashMap<String, String>>,
    /// Whether steps were to have no network.
    pub no_network: bool,
    /// Whether the cache volume has no room left.
    pub volume_full: bool,
    /// The Dockerfile's content, where it can be read.
    pub content: Option<&'a str>,
}

/// Explains a failure, in which `step` failed.
#[must_use]
pub fn explain(failed: &Failed, step: Option<&FailedStep>, build: Circumstances<'_>) -> JobFailure {
    let cause = cause(&failed.message);
    let content = build.content.unwrap_or_default();
    let place = failed.sources.first().map(|place| Excerpt::of_place(place, content));
    let exit_code = failed.exit_code.and_then(|code| i32::try_from(code).ok());
    let guilty = place.as_ref().map(|place| place.line).unwrap_or_default();
    let (reason, message) = classify(failed, cause, step, guilty, build);
    let (dockerfile, line) = place
        .as_ref()
        .map_or_else(|| (String::new(), line_in(cause).unwrap_or(0)), |place| (place.file.clone(), place.line));
    let at = match (dockerfile.as_str(), line) {
        (_, 0) => String::new(),
        ("", line) => format!(" (line {line} of {})", build.dockerfile),
        (file, line) => format!(" (line {line} of {file})"),
    };
    let excerpt = place.unwrap_or_else(|| Excerpt::of_line(build.dockerfile, line, content));
    JobFailure {
        reason,
        message: format!("{message}{at}"),
        step: step.map(|step| step.name.clone()).unwrap_or_default(),
        dockerfile: if dockerfile.is_empty() && line > 0 { build.dockerfile.to_owned() } else { dockerfile },
        line,
        exit_code,
        log_tail: step.map(|step| step.tail.clone()).unwrap_or_default(),
        excerpt: Box::new(excerpt),
        warnings: Vec::new(),
    }
}

/// The image that BuildKit was refused by its source policy, where that is what failed. A step cannot make it up: its failure
/// has an exit code.
#[must_use]
pub fn refused_image(failed: &Failed) -> Option<String> {
    if failed.exit_code.is_some() {
        return None;
    }
    let source = between(&failed.message, "source \"docker-image", "\" denied by policy")?;
    source.split_once("://").map(|(_, reference)| reference.to_owned())
}

fn classify(
    failed: &Failed,
    cause: &str,
    step: Option<&FailedStep>,
    guilty: u32,
    build: Circumstances<'_>,
) -> (Reason, String) {
    let skeleton = skeleton::skeleton(cause);
    let has = |signs: &[&str]| signs.iter().any(|sign| skeleton.contains(sign));
    if let Some(code) = failed.exit_code {
        return step::failure(code, step, build);
    }
    // What a step failed on has the step's digest: this is the connection to buildkitd.
    if failed.vertex.is_empty() && ["Unavailable", "Canceled"].contains(&failed.code.as_str()) {
        let message = "buildkitd ended during the build; if it repeats, builds may need more memory than the pool's \
                       template.resources.limits.memory";
        return (Reason::BuildkitUnavailable, message.to_owned());
    }
    if let Some(image) = refused_image(failed) {
        let message = format!("the registry of {image} is not asked");
        return (Reason::AddressForbidden, message);
    }
    if let Some(too_large) = id_too_large(&skeleton, cause) {
        return too_large;
    }
    if has(&["no space left on device", "disk quota exceeded"]) {
        return (
            Reason::NoSpaceLeft,
            format!("the builder's cache volume is full; raise the pool's cache.size: {cause}"),
        );
    }
    if has(&["failed to push "]) {
        return registry::push(cause, build);
    }
    if has(&[
        "failed to resolve source metadata",
        "failed to do request",
        "failed to copy",
        "pull access denied",
        "failed to authorize",
        "failed to fetch oauth token",
        "failed to fetch anonymous token",
    ]) {
        return registry::pull(cause, line_at(guilty, build), build);
    }
    // The one with GnuTLS, the other with OpenSSL.
    if has(&["git stderr:"]) && has(&["server certificate verification failed", "SSL certificate problem"]) {
        return registry::untrusted_download(cause.split(" failed. CAfile: ").next().unwrap_or(cause));
    }
    // With a checksum, ADD downloads only when it runs.
    if has(&["failed to load cache key: Get ", "invalid response status"]) || cause.starts_with("Get \"") {
        return registry::download(cause);
    }
    if let Some(name) = between(cause, "target stage \"", "\" could not be found") {
        return (
            Reason::TargetNotFound,
            format!("{} has no stage {name:?}; set spec.target to one of its stages", build.dockerfile),
        );
    }
    if let Some(id) = cause.strip_prefix("secret ").and_then(|rest| rest.strip_suffix(": not found")) {
        return (
            Reason::SecretNotFound,
            format!("a step needs the secret {id:?}; add it to spec.secrets with this id"),
        );
    }
    if let Some(id) = between(cause, "no SSH key \"", "\" forwarded") {
        let id = if id.is_empty() { "default" } else { id };
        return (Reason::SshKeyNotFound, format!("a step needs the ssh key {id:?}; add it to spec.ssh with this id"));
    }
    if has(&["failed to convert agent config"]) {
        let id = between(cause, "agent config for ID: \"", "\"").unwrap_or_default();
        let (_, why) = cause.rsplit_once("ssh: ").unwrap_or(("", "it cannot be read"));
        return (
            Reason::SshKeyInvalid,
            format!(
                "the key {id:?} of spec.ssh is none ({why}); its Secret must hold a private key in OpenSSH's or PEM format without a passphrase"
            ),
        );
    }
    if let Some((_, rules)) = cause.split_once("lint violation found for rules: ") {
        return (Reason::LintFailed, format!("the lint of {} warns of {rules}", build.dockerfile));
    }
    if has(&["invalid reference format", "should not be blank"]) {
        return invalid_reference(cause, guilty, build);
    }
    if has(&["is not allowed"]) {
        return (Reason::NotAllowed, format!("builders do not allow this: {cause}"));
    }
    if let Some(path) = between(cause, "failed to calculate checksum of ref ", "\": not found")
        .and_then(|rest| rest.split_once(": \""))
        .map(|(_, path)| path)
    {
        return (
            Reason::FileNotFound,
            format!(
                "there is no {path:?} in what COPY or ADD takes it from; check the path, and that .dockerignore does not exclude it"
            ),
        );
    }
    if let Some(path) = between(cause, "lstat ", ": no such file or directory") {
        return (Reason::FileNotFound, format!("there is no {path:?} in the stage or image that COPY takes it from"));
    }
    // Where no step had begun, it is the Dockerfile itself that BuildKit did not understand.
    if has(&["dockerfile parse error", "the Dockerfile cannot be empty"]) || (guilty > 0 && step.is_none()) {
        return (Reason::DockerfileInvalid, format!("{} is not valid: {}", build.dockerfile, without_line(cause)));
    }
    (Reason::BuildFailed, cause.to_owned())
}

/// A file of an image that belongs to nobody whom a builder has.
fn id_too_large(skeleton: &str, cause: &str) -> Option<(Reason, String)> {
    let ids = between(skeleton, "failed to Lchown \"\" for UID ", ": lchown ")?;
    let file = between(cause, "failed to Lchown \"", "\" for UID ").unwrap_or_default();
    // It is mounted below a directory of the builder's.
    let file = file.split_once("/containerd-mount").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
    let message = format!(
        "{:?} belongs to UID {ids}, and a builder has ids up to {LARGEST_ID}; give it to a smaller one in the image that has it",
        file.unwrap_or("a file")
    );
    Some((Reason::IdTooLarge, message))
}

/// A line of the Dockerfile.
fn line_at(number: u32, build: Circumstances<'_>) -> &str {
    let index = number.checked_sub(1).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| build.content?.lines().nth(index)).unwrap_or_default()
}

/// An image's name that is none, most often because a variable in it has no value.
fn invalid_reference(cause: &str, guilty: u32, build: Circumstances<'_>) -> (Reason, String) {
    let dockerfile = Dockerfile::read(build.content.unwrap_or_default());
    let line = line_at(guilty, build);
    let has_value = |name: &str| {
        let given = build.arguments.and_then(|arguments| arguments.get(name));
        let default =
            dockerfile.arguments.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.as_ref());
        given.or(default).is_some_and(|value| !value.is_empty())
    };
    let empty = references(line).into_iter().take(MOST_REFERENCES).find(|name| !has_value(name));
    if let Some(name) = empty.or_else(|| between(cause, "base name ($", ")").map(|name| name.trim_matches(['{', '}'])))
    {
        return (
            Reason::DockerfileInvalid,
            format!(
                "{name} has no value, so {} names no image; write ARG {name}=… before the first FROM, or set {name} in spec.args",
                if line.is_empty() { "FROM" } else { line.trim() }
            ),
        );
    }
    let name = between(cause, "failed to parse stage name \"", "\": ").unwrap_or("what FROM or COPY --from says");
    let (_, why) = cause.rsplit_once("invalid reference format").unwrap_or_default();
    let why = why.trim_start_matches(": ");
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    (
        Reason::ReferenceInvalid,
        format!(
            "{name:?} is neither a stage above nor the name of an image{why}; such a name is registry/path:tag, in lower case"
        ),
    )
}

/// The error itself, without BuildKit's opening words.
fn cause(text: &str) -> &str {
    let mut error = text.trim();
    for opening in ["failed to solve: ", "failed to run Build function: ", "listing workers for Build: "] {
        error = error.strip_prefix(opening).unwrap_or(error);
    }
    if error.is_empty() { "BuildKit gave no cause" } else { error }
}

/// A parse error without its line, which is told apart.
fn without_line(cause: &str) -> &str {
    cause
        .strip_prefix("dockerfile parse error on line ")
        .and_then(|rest| rest.split_once(": "))
        .map_or(cause, |(_, error)| error)
}

/// The line that a parse error names.
fn line_in(cause: &str) -> Option<u32> {
    between(cause, "parse error on line ", ":")?.parse().ok()
}

/// What stands after the first `opening`; all of it where there is none.
fn after<'a>(text: &'a str, opening: &str) -> &'a str {
    text.split_once(opening).map_or(text, |(_, rest)| rest)
}

/// What stands between the first `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests;
