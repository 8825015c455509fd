//! Failures of what the Dockerfile says, or the build asks for: BuildKit did not understand it, or it names what is not there.

use super::{
    super::dockerfile::{Dockerfile, references},
    Circumstances, Failed, FailedStep, between, instruction, line_at, quoted,
};
use crate::reasons::Reason;

/// The most variables of a line that are looked up.
const MOST_REFERENCES: usize = 64;

/// How what is said of a whole Dockerfile begins: it has no line.
const OF_A_DOCKERFILE: [&str; 5] = [
    "dockerfile parse error",
    "the Dockerfile cannot be empty",
    "dockerfile contains no stages to build",
    "invalid stage index ",
    "failed to parse check options: ",
];
/// How what is said of the frontend's options begins, which are the build's fields.
const OF_OPTIONS: [&str; 5] = [
    "failed to parse ulimit: ",
    "failed to parse additional hosts: ",
    "failed to parse target platform ",
    "invalid SOURCE_DATE_EPOCH: ",
    "unsupported compression type ",
];

/// What it is. None: something else.
pub(super) fn failure(
    cause: &str,
    inner: &str,
    failed: &Failed,
    step: Option<&FailedStep>,
    guilty: u32,
    build: Circumstances<'_>,
) -> Option<(Reason, String)> {
    let told = if failed.vertex.is_empty() { of_the_frontend(cause, failed, guilty, build) } else { None };
    told.or_else(|| not_there(cause, inner, step, build))
}

/// Something that was there when nothing had run yet.
fn of_the_frontend(cause: &str, failed: &Failed, guilty: u32, build: Circumstances<'_>) -> Option<(Reason, String)> {
    let file = build.dockerfile;
    let begins = |with: &[&str]| with.iter().any(|opening| cause.starts_with(opening));
    if begins(&["failed to parse stage name \"", "base name ("]) {
        return Some(invalid_reference(cause, guilty, build));
    }
    // The frontend names the place of all else that it does not understand.
    if !failed.sources.is_empty() || begins(&OF_A_DOCKERFILE) {
        return Some((Reason::DockerfileInvalid, format!("{file} is not valid: {}", without_line(cause))));
    }
    if let Some((name, " could not be found")) = cause.strip_prefix("target stage ").and_then(quoted) {
        let message = format!("{file} has no stage \"{name}\"; set spec.target to one of its stages");
        return Some((Reason::TargetNotFound, message));
    }
    if let Some(rules) = cause.strip_prefix("lint violation found for rules: ") {
        // BuildKit has them in another order each time.
        let mut rules: Vec<_> = rules.split(", ").collect();
        rules.sort_unstable();
        return Some((Reason::LintFailed, format!("the lint of {file} warns of {}", rules.join(", "))));
    }
    if let Some(NotAllowed(asked)) = not_allowed(cause) {
        return Some((Reason::NotAllowed, format!("builders do not allow this: {asked}")));
    }
    if cause == "syntax error in pattern" {
        return Some((
            Reason::DockerfileInvalid,
            "a line of .dockerignore is no pattern; mend or remove it".to_owned(),
        ));
    }
    if let Some(why) = cause.strip_prefix("failed to configure registry cache exporter: ") {
        let message = format!("spec.cache names no image to keep the cache in: {why}");
        return why.starts_with("invalid reference format").then_some((Reason::ReferenceInvalid, message));
    }
    if let Some(rest) = cause.strip_prefix("failed to convert agent config {") {
        let id = between(rest, "agent config for ID: \"", "\"").unwrap_or_default();
        let (_, why) = rest.rsplit_once("ssh: ").unwrap_or(("", "it cannot be read"));
        let message = format!(
            "the key {id:?} of spec.ssh is none ({why}); its Secret must hold a private key in OpenSSH's or PEM format without a passphrase"
        );
        return Some((Reason::SshKeyInvalid, message));
    }
    begins(&OF_OPTIONS).then(|| (Reason::InvalidJob, format!("what the build asks for is not valid: {cause}")))
}

/// What builders do not allow, in BuildKit's words.
pub(super) struct NotAllowed<'a>(&'a str);

/// What was asked for in vain. BuildKit tells no place of it.
pub(super) fn not_allowed(cause: &str) -> Option<NotAllowed<'_>> {
    let asked = cause.strip_prefix("failed to load LLB: ")?;
    [" is not allowed", " is not registered"].iter().any(|end| asked.ends_with(end)).then_some(NotAllowed(asked))
}

impl NotAllowed<'_> {
    /// The first line that asks for it.
    pub(super) fn line(&self, content: &str) -> Option<u32> {
        let (option, value) = match self.0 {
            "network.host is not allowed" => ("network", "host"),
            "security.insecure is not allowed" => ("security", "insecure"),
            other => ("device", quoted(other.strip_prefix("required device ")?)?.0),
        };
        let dockerfile = Dockerfile::read(content);
        let mut all = dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
        let asks = |given: &str| given == value || option == "device" && given.contains(value);
        let found = all.find(|run| run.keyword == "RUN" && run.options(option).any(asks));
        found.map(|run| run.line)
    }
}

/// What a step names and nobody has.
fn not_there(
    cause: &str,
    inner: &str,
    step: Option<&FailedStep>,
    build: Circumstances<'_>,
) -> Option<(Reason, String)> {
    let named = |text: &str, before: &str, after: &str| {
        text.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)).map(str::to_owned)
    };
    if let Some(id) = named(cause, "secret ", ": not found") {
        let message = format!("a step needs the secret {id:?}; add it to spec.secrets with this id");
        return Some((Reason::SecretIdNotFound, message));
    }
    if let Some((id, " forwarded from the client")) = cause.strip_prefix("no SSH key ").and_then(quoted) {
        let id = if id.is_empty() { "default" } else { id };
        return Some((
            Reason::SshKeyNotFound,
            format!("a step needs the ssh key {id:?}; add it to spec.ssh with this id"),
        ));
    }
    let of_ref = inner.strip_prefix("failed to calculate checksum of ref ").and_then(|rest| rest.split_once(": "));
    if let Some((_, said)) = of_ref {
        let path = match quoted(said) {
            Some((path, ": not found")) => Some(path),
            _ => said
                .strip_prefix("failed to walk ")
                .filter(|_| said.ends_with(": no such file or directory"))
                .and_then(|rest| Some(in_image(rest.split_once(": lstat ")?.0))),
        }?;
        return Some((Reason::FileNotFound, instruction::lacks(path, step, build)));
    }
    if let Some(place) = cause.strip_prefix("cannot copy to non-directory: ") {
        let message = format!(
            "COPY or ADD has a directory for {}, where the image has a file or a link; remove that before, or copy to where a link leads",
            in_image(place)
        );
        return Some((Reason::BuildFailed, message));
    }
    if cause.ends_with(": not a directory") {
        return Some((
            Reason::BuildFailed,
            format!("a step needs a directory where there is a file; check where COPY, ADD and WORKDIR lead: {cause}"),
        ));
    }
    let path = named(cause, "lstat ", ": no such file or directory")?;
    Some((Reason::FileNotFound, instruction::lacks(&path, step, build)))
}

/// A path as the image has it: what stands before is where BuildKit has mounted it, a directory of a number.
fn in_image(path: &str) -> &str {
    let mounted = ["/buildkit-mount", "/cachemounts/buildkit"].into_iter().find_map(|place| path.split_once(place));
    mounted.and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap_or(path)
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

/// A parse error without its line, which is told apart.
fn without_line(cause: &str) -> &str {
    cause
        .strip_prefix("dockerfile parse error on line ")
        .and_then(|rest| rest.split_once(": "))
        .map_or(cause, |(_, error)| error)
}
