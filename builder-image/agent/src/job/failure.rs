//! What a failed build means for its user: from what BuildKit tells of it as data, and else from its text.
//!
//! The text holds for the version in the builder image, and is tested with what was captured from it.

use std::collections::HashMap;

use kiln_agent_proto::Login;

use super::{ending::Failed, excerpt::Excerpt, progress::FailedStep, source::NamedContext};
use crate::{
    oom::Shortage,
    reasons::{JobFailure, Reason},
};

mod answer;
mod dockerfile;
mod download;
mod instruction;
mod login;
mod not_found;
mod registry;
mod step;

/// What is known of the build beside its text.
#[derive(Clone, Copy)]
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
    /// What is known of want of memory.
    pub shortage: Shortage,
    /// The largest id of a user or group that the builder has, where it is known.
    pub largest_id: Option<u32>,
    /// The Dockerfile's content, where it can be read.
    pub content: Option<&'a str>,
    /// What of all that the failed step runs has line ends as on Windows.
    pub windows_lines: Option<&'a str>,
    /// What the script that the failed step did not start asks for in its first line, where the source has it.
    pub interpreter: Option<&'a str>,
    /// The build contexts beside the source.
    pub contexts: &'a [NamedContext],
    /// The logins for registries.
    pub logins: &'a [Login],
}

/// Explains a failure, in which `step` failed.
#[must_use]
pub fn explain(failed: &Failed, step: Option<&FailedStep>, build: Circumstances<'_>) -> JobFailure {
    let cause = cause(failed);
    let content = build.content.unwrap_or_default();
    let place = failed.sources.first().map(|place| Excerpt::of_place(place, content));
    let exit_code = failed.exit_code.and_then(|code| i32::try_from(code).ok());
    let guilty = place.as_ref().map(|place| place.line).unwrap_or_default();
    let (reason, message) = classify(failed, cause, step, guilty, build);
    let held_back = step.and_then(|step| instruction::held_back(step, guilty, build)).unwrap_or_default();
    let (dockerfile, line) = place.as_ref().map_or_else(
        || {
            let line = line_in(cause).or_else(|| dockerfile::not_allowed(cause)?.line(build.content?));
            (String::new(), line.unwrap_or(0))
        },
        |place| (place.file.clone(), place.line),
    );
    let at = match (dockerfile.as_str(), line) {
        (_, 0) => String::new(),
        ("", line) => format!(" (line {line} of {})", build.dockerfile),
        (file, line) => format!(" (line {line} of {file})"),
    };
    let excerpt = place.unwrap_or_else(|| Excerpt::of_line(build.dockerfile, line, content));
    JobFailure {
        reason,
        message: format!("{message}{held_back}{at}"),
        step: step.map(|step| step.name.clone()).unwrap_or_default(),
        dockerfile: if dockerfile.is_empty() && line > 0 { build.dockerfile.to_owned() } else { dockerfile },
        line,
        exit_code,
        log_tail: step.map(|step| step.tail.clone()).unwrap_or_default(),
        excerpt: Box::new(excerpt),
        warnings: Vec::new(),
        alone: (failed.is_lost() && build.shortage.killed.is_none() && build.shortage.first)
            .then_some(build.shortage.alone),
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

/// The reason by what the failure's data say of where it happened, and there by how BuildKit's sentence begins or ends: what
/// stands between may be the user's.
fn classify(
    failed: &Failed,
    cause: &str,
    step: Option<&FailedStep>,
    guilty: u32,
    build: Circumstances<'_>,
) -> (Reason, String) {
    if let Some(code) = failed.exit_code {
        return step::failure(code, step, build);
    }
    let of_no_step = failed.vertex.is_empty();
    if failed.is_lost() {
        return step::lost(step, build.shortage);
    }
    if let Some(image) = refused_image(failed) {
        let message = format!("the registry of {image} is not asked");
        return (Reason::AddressForbidden, message);
    }
    let of_nothing = of_no_step && failed.sources.is_empty();
    // A credential for the registry of the image: one for a base image has the place that names it.
    if of_nothing && registry::is_of_a_token(cause) {
        return registry::push(build.repository, cause);
    }
    if let Some((repository, said)) = cause.strip_prefix("failed to push ").and_then(|rest| rest.split_once(": ")) {
        return registry::push(repository, said);
    }
    let inner = uncovered(cause);
    if let Some(too_large) = id_too_large(inner, build.largest_id) {
        return too_large;
    }
    // BuildKit has a code for the one; for the other a step alone, where nothing of the user's has a colon before it.
    let is_full = failed.code == "ResourceExhausted" && cause.ends_with("no space left on device");
    if is_full || !of_no_step && cause.ends_with(": disk quota exceeded") {
        return (
            Reason::NoSpaceLeft,
            format!("the builder's cache volume is full; raise the pool's cache.size: {cause}"),
        );
    }
    if let Some(told) = download::failure(failed, inner) {
        return told;
    }
    if let Some(told) = registry::pull(inner, line_at(guilty, build), step, build) {
        return told;
    }
    if let Some(told) = step::not_run(cause, step, build) {
        return told;
    }
    if let Some(told) = dockerfile::failure(cause, inner, failed, step, guilty, build) {
        return told;
    }
    let code = if ["", "Unknown"].contains(&failed.code.as_str()) { "" } else { &format!("{}: ", failed.code) };
    (Reason::BuildFailed, format!("{code}{cause}"))
}

/// The program that the failed step did not start, by the words of what was to start it: a file.
#[must_use]
pub fn not_started(step: &FailedStep) -> Option<&str> {
    match not_found::in_tail(&step.tail)? {
        not_found::NotFound::File(program) | not_found::NotFound::Starter(program, _) => Some(program),
        not_found::NotFound::Command(_) => None,
    }
}

/// A file of an image that belongs to nobody whom a builder has.
fn id_too_large(inner: &str, largest: Option<u32>) -> Option<(Reason, String)> {
    let rest = inner.strip_prefix("mount callback failed on ")?;
    let (file, rest) = quoted(rest.split_once(": failed to Lchown ")?.1)?;
    let (ids, _) = rest.strip_prefix(" for UID ")?.split_once(": lchown ")?;
    // It is mounted below a directory of the builder's.
    let file = file.split_once("/containerd-mount").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
    let has = largest.map_or("not all of these".to_owned(), |largest| format!("ids up to {largest}"));
    let message = format!(
        "{:?} belongs to UID {ids}, and the builder has {has}; give it to a smaller one in the image that has it",
        file.unwrap_or("a file")
    );
    Some((Reason::IdTooLarge, message))
}

/// A line of the Dockerfile.
fn line_at(number: u32, build: Circumstances<'_>) -> &str {
    let index = number.checked_sub(1).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| build.content?.lines().nth(index)).unwrap_or_default()
}

/// The error itself, without BuildKit's opening words.
fn cause(failed: &Failed) -> &str {
    let mut error = failed.message.trim();
    for opening in ["failed to solve: ", "failed to run Build function: ", "listing workers for Build: "] {
        error = error.strip_prefix(opening).unwrap_or(error);
    }
    // It has its own field.
    if let Some(rest) = error.strip_prefix(failed.code.as_str()).and_then(|rest| rest.strip_prefix(": ")) {
        error = rest;
    }
    if error.is_empty() { "BuildKit gave no cause" } else { error }
}

/// The line that a parse error names.
fn line_in(cause: &str) -> Option<u32> {
    between(cause, "parse error on line ", ":")?.parse().ok()
}

/// Without what BuildKit says before what went wrong while it looked for a step in its cache.
fn uncovered(cause: &str) -> &str {
    let mut inner = cause;
    while let Some(rest) =
        ["failed to load cache key: ", "failed to compute cache key: "].iter().find_map(|it| inner.strip_prefix(it))
    {
        inner = rest;
    }
    inner
}

/// What Go has quoted at the beginning, as it is written there, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('"')?;
    let mut escaped = false;
    let end = inside.find(|char: char| {
        let ends = char == '"' && !escaped;
        escaped = char == '\\' && !escaped;
        ends
    })?;
    Some((&inside[..end], &inside[end + 1..]))
}

/// What stands between the first `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests;
