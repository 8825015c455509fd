//! What a failed build means for its user, read from the text that `buildctl` writes after its last JSON line.
//!
//! BuildKit gives no codes: Dockerfile, line and cause stand in that text alone. So this holds for the version in the
//! builder image, and is tested with texts captured from it.

use super::{excerpt, excerpt::Excerpt, mask::shorten, progress::FailedStep};
use crate::reasons::{JobFailure, Reason};

/// The longest name of a step within a message, in bytes.
const LONGEST_NAME: usize = 160;

/// What is known of the build beside its text.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The Dockerfile's path, relative to the context.
    pub dockerfile: &'a str,
    /// The platform to build for.
    pub platform: &'a str,
    /// Where the image was to go.
    pub repository: &'a str,
    /// Whether the cache volume has no room left.
    pub volume_full: bool,
    /// The Dockerfile's content, where it can be read.
    pub content: Option<&'a str>,
}

/// Explains the failure that `text` tells of, in which `step` failed.
#[must_use]
pub fn explain(text: &str, step: Option<&FailedStep>, build: Circumstances<'_>) -> JobFailure {
    let cause = cause(text);
    let place = excerpt::find(text);
    let exit_code = exit_code(&cause);
    let (reason, message) = classify(&cause, exit_code, step, place.is_some(), build);
    let (dockerfile, line) = place
        .as_ref()
        .map_or_else(|| (String::new(), line_in(&cause).unwrap_or(0)), |place| (place.file.clone(), place.line));
    let at = match (dockerfile.as_str(), line) {
        (_, 0) => String::new(),
        ("", line) => format!(" (line {line} of {})", build.dockerfile),
        (file, line) => format!(" (line {line} of {file})"),
    };
    let content = build.content.unwrap_or_default();
    let excerpt = match place {
        Some(place) => place.widened(content),
        None => Excerpt::of_line(build.dockerfile, line, content),
    };
    JobFailure {
        reason,
        message: format!("{message}{at}"),
        step: step.map(|step| step.name.clone()).unwrap_or_default(),
        dockerfile: if dockerfile.is_empty() && line > 0 { build.dockerfile.to_owned() } else { dockerfile },
        line,
        exit_code,
        log_tail: step.map(|step| step.tail.clone()).unwrap_or_default(),
        excerpt: Box::new(excerpt),
    }
}

fn classify(
    cause: &str,
    exit_code: Option<i32>,
    step: Option<&FailedStep>,
    has_place: bool,
    build: Circumstances<'_>,
) -> (Reason, String) {
    let has = |signs: &[&str]| signs.iter().any(|sign| cause.contains(sign));
    if has(&["Unavailable: ", "code = Unavailable", "failed to list workers", "context canceled"]) {
        return (Reason::BuildkitUnavailable, format!("buildkitd ended during the build: {cause}"));
    }
    if let Some(code) = exit_code {
        return step_failure(code, step, build);
    }
    if has(&["no space left on device", "disk quota exceeded"]) {
        return (
            Reason::NoSpaceLeft,
            format!("the builder's cache volume is full; raise the pool's cache.size: {cause}"),
        );
    }
    if has(&["failed to push "]) {
        return push_failure(cause, build);
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
        return pull_failure(cause, build);
    }
    if has(&["failed to load cache key: Get ", "invalid response status"]) {
        return download_failure(cause);
    }
    if let Some(name) = between(cause, "target stage \"", "\" could not be found") {
        return (
            Reason::TargetNotFound,
            format!("{} has no stage {name:?}; set spec.target to one of its stages", build.dockerfile),
        );
    }
    if let Some(id) = between(cause, "secret ", ": not found") {
        return (
            Reason::SecretNotFound,
            format!("a step needs the secret {id:?}; add it to spec.secrets with this id"),
        );
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
    if has(&["dockerfile parse error", "the Dockerfile cannot be empty"]) || (has_place && step.is_none()) {
        return (Reason::DockerfileInvalid, format!("{} is not valid: {}", build.dockerfile, without_line(cause)));
    }
    (Reason::BuildFailed, cause.to_owned())
}

/// A program of a RUN step that ended with a status other than 0.
fn step_failure(code: i32, step: Option<&FailedStep>, build: Circumstances<'_>) -> (Reason, String) {
    // The whole of it is told beside the message, whose end says most.
    let name = shorten(step.map_or("a step", |step| step.name.as_str()).to_owned(), LONGEST_NAME);
    let output_has = |signs: &[&str]| {
        step.is_some_and(|step| step.tail.iter().any(|line| signs.iter().any(|sign| line.contains(sign))))
    };
    if output_has(&["exec format error", "Exec format error"]) {
        return (
            Reason::ExecFormatError,
            format!(
                "{name} ran a program that is not for {}; take the base image and the tools of this platform",
                build.platform
            ),
        );
    }
    if build.volume_full && output_has(&["No space left on device", "no space left on device"]) {
        return (
            Reason::NoSpaceLeft,
            format!("{name} failed because the builder's cache volume is full; raise the pool's cache.size"),
        );
    }
    match code {
        137 => (
            Reason::OutOfMemory,
            format!(
                "{name} was killed (exit code 137), most likely for want of memory; raise the memory limit of the pool's builders, or let the step use less"
            ),
        ),
        127 => (Reason::StepFailed, format!("{name} failed with exit code 127: a command was not found")),
        126 => (Reason::StepFailed, format!("{name} failed with exit code 126: a command is not executable")),
        code => (Reason::StepFailed, format!("{name} failed with exit code {code}")),
    }
}

fn push_failure(cause: &str, build: Circumstances<'_>) -> (Reason, String) {
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

fn pull_failure(cause: &str, build: Circumstances<'_>) -> (Reason, String) {
    let image = between(cause, "failed to resolve source metadata for ", ": ").unwrap_or("the base image");
    let detail = after(cause, &format!("failed to resolve source metadata for {image}: "));
    if cause.contains("no match for platform in manifest") {
        return (
            Reason::BaseImageNotFound,
            format!(
                "{image} is not there for {}; choose a base image that has this platform, or leave it out of spec.platforms",
                build.platform
            ),
        );
    }
    match registry_answer(cause) {
        Answer::Untrusted => (Reason::RegistryCertificateUntrusted, untrusted(image)),
        Answer::Unauthorized => (
            Reason::RegistryUnauthorized,
            format!(
                "the registry does not hand out {image}: it does not exist, or needs a credential; check its name and the Secrets in spec.pullSecretRefs: {detail}"
            ),
        ),
        Answer::NotFound => (
            Reason::BaseImageNotFound,
            format!("there is no image {image}; check its name and tag in FROM or COPY --from"),
        ),
        Answer::Unavailable => (
            Reason::RegistryUnavailable,
            format!("the registry of {image} cannot be reached or is in trouble: {detail}"),
        ),
        Answer::Other => (Reason::BuildFailed, cause.to_owned()),
    }
}

fn download_failure(cause: &str) -> (Reason, String) {
    match registry_answer(cause) {
        Answer::Unavailable => (Reason::DownloadFailed, format!("what ADD downloads cannot be reached: {cause}")),
        Answer::NotFound => (Reason::FileNotFound, format!("what ADD downloads is not there: {cause}")),
        _ => (Reason::BuildFailed, format!("what ADD downloads cannot be had: {cause}")),
    }
}

fn untrusted(what: &str) -> String {
    format!(
        "the certificate of the registry of {what} is not trusted; name its CA in spec.image.caRef, or in the pool's caRefs"
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
    ]) {
        Answer::Unavailable
    } else if has(&["not found", "404 Not Found", "404", "410 Gone", "name unknown", "repository name not known"]) {
        Answer::NotFound
    } else {
        Answer::Other
    }
}

/// The error itself: what follows `error:`, without BuildKit's opening words.
fn cause(text: &str) -> String {
    let error = text
        .find("\nerror: ")
        .map(|at| &text[at + 1..])
        .or_else(|| text.starts_with("error: ").then_some(text))
        .unwrap_or(text);
    let mut error = error.trim().trim_start_matches("error: ");
    for opening in ["failed to solve: ", "listing workers for Build: "] {
        error = error.strip_prefix(opening).unwrap_or(error);
    }
    if error.is_empty() { "buildctl ended without a word".to_owned() } else { error.to_owned() }
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

fn exit_code(cause: &str) -> Option<i32> {
    let (_, rest) = cause.rsplit_once("did not complete successfully: exit code: ")?;
    rest.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
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
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::{
        super::{mask::Masker, progress::Progress},
        *,
    };

    const BUILD: Circumstances<'_> = Circumstances {
        dockerfile: "Dockerfile",
        platform: "linux/amd64",
        repository: "registry.example/team/app",
        volume_full: false,
        content: None,
    };

    fn explain_captured(captured: &str) -> JobFailure {
        let masker = Masker::default();
        let mut progress = Progress::new(&masker);
        for line in captured.lines() {
            progress.line(line.as_bytes());
        }
        explain(progress.text(), progress.failed_step().as_ref(), BUILD)
    }

    #[test]
    fn every_captured_failure() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/job/testdata/failures");
        let mut paths: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let mut all = String::new();
        for path in paths {
            let failure = explain_captured(&std::fs::read_to_string(&path).unwrap());
            writeln!(all, "{}:\n{failure:#?}\n", path.file_stem().unwrap().to_string_lossy()).unwrap();
        }
        insta::assert_snapshot!(all);
    }

    #[test]
    fn answers_that_no_test_registry_gives() {
        let cases = [
            (
                "failed to push r.io/x: unexpected status from PUT request to https://r.io/v2/x/blobs/uploads/1: 503 Service Unavailable",
                Reason::RegistryUnavailable,
            ),
            ("failed to push r.io/x: server message: insufficient_scope: authorization failed", Reason::PushDenied),
            (
                "failed to push r.io/x: name unknown: The repository with name 'x' does not exist",
                Reason::RepositoryNotFound,
            ),
            (
                "x: failed to resolve source metadata for docker.io/library/x:latest: unexpected status from HEAD request to https://registry-1.docker.io/v2/: 429 Too Many Requests",
                Reason::RegistryUnavailable,
            ),
            (
                "x: failed to resolve source metadata for docker.io/library/x:latest: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                Reason::RegistryUnauthorized,
            ),
            (
                "x: failed to resolve source metadata for r.io/x:1: failed to do request: Head \"https://r.io/v2/x/manifests/1\": net/http: TLS handshake timeout",
                Reason::RegistryUnavailable,
            ),
            (
                "failed to copy: read tcp 10.0.0.1:1->10.0.0.2:443: read: connection reset by peer",
                Reason::RegistryUnavailable,
            ),
            ("write /var/lib/kiln/buildkit/root/x: no space left on device", Reason::NoSpaceLeft),
            ("process \"/bin/sh -c make\" did not complete successfully: exit code: 137", Reason::OutOfMemory),
            ("Unavailable: error reading from server: EOF", Reason::BuildkitUnavailable),
            ("something nobody has seen", Reason::BuildFailed),
        ];
        for (error, expected) in cases {
            assert_eq!(explain(&format!("error: failed to solve: {error}\n"), None, BUILD).reason, expected, "{error}");
        }
    }

    #[test]
    fn a_full_volume_is_not_the_users_matter() {
        let step = FailedStep {
            name: "[2/2] RUN cp".to_owned(),
            error: String::new(),
            tail: vec!["cp: No space left on device".to_owned()],
        };
        let text = "error: failed to solve: process \"cp\" did not complete successfully: exit code: 1";
        assert_eq!(explain(text, Some(&step), BUILD).reason, Reason::StepFailed);
        assert_eq!(
            explain(text, Some(&step), Circumstances { volume_full: true, ..BUILD }).reason,
            Reason::NoSpaceLeft
        );
    }

    proptest! {
        #[test]
        fn any_text_is_explained(text in any::<String>()) {
            prop_assert!(!explain(&text, None, BUILD).message.is_empty());
        }
    }
}
