//! Failures of what ADD downloads, from a web server or with Git.

use super::{
    super::git_problem::{Problem, problem},
    Failed,
    answer::{self, Answer},
};
use crate::reasons::Reason;

/// How BuildKit begins what it says of a repository, whose address follows.
const OF_GIT: [&str; 4] = [
    "error fetching default branch for repository ",
    "failed to checkout remote ",
    "failed to fetch remote ",
    "repository does not contain ref ",
];

/// What it is. None: something else failed.
pub(super) fn failure(failed: &Failed, inner: &str) -> Option<(Reason, String)> {
    let identifier = failed.operation.as_ref().map_or("", |operation| operation.identifier.as_str());
    let is = |schemes: &[&str]| schemes.iter().any(|scheme| identifier.starts_with(scheme));
    let begins = |openings: &[&str]| openings.iter().any(|opening| inner.starts_with(opening));
    if is(&["git://"]) || identifier.is_empty() && begins(&OF_GIT) {
        return Some(with_git(inner));
    }
    // A step that was not asked for by itself has no operation.
    if is(&["https://", "http://"]) || identifier.is_empty() && begins(&["Get \"", "invalid response status "]) {
        return Some(from_web(inner));
    }
    None
}

fn from_web(inner: &str) -> (Reason, String) {
    if let Some(digests) = inner.strip_prefix("digest mismatch ") {
        let (found, wanted) = digests.split_once(": ").unwrap_or((digests, "another"));
        let message = format!(
            "what ADD downloads has the digest {found}, not {wanted} as --checksum says: it has changed, or the server answered with something else"
        );
        return (Reason::ChecksumMismatch, message);
    }
    match answer::read(inner) {
        Answer::Unavailable => (Reason::DownloadFailed, format!("what ADD downloads cannot be reached: {inner}")),
        Answer::Limited => {
            (Reason::DownloadFailed, format!("the server that ADD downloads from limits requests (HTTP 429): {inner}"))
        }
        Answer::NotFound => not_there(inner),
        Answer::Untrusted => untrusted(inner),
        Answer::NoTls => (
            Reason::DownloadCertificateUntrusted,
            format!(
                "the server that ADD downloads from speaks no TLS; if you trust the way to it, write http://: {inner}"
            ),
        ),
        Answer::Unauthorized | Answer::Denied => refused(inner),
        _ => (Reason::BuildFailed, format!("what ADD downloads cannot be had: {inner}")),
    }
}

fn with_git(inner: &str) -> (Reason, String) {
    let Some((asked, said)) = inner.split_once(": git stderr:\n") else {
        return if inner.starts_with("repository does not contain ref ") {
            not_there(inner)
        } else {
            (Reason::BuildFailed, format!("what ADD downloads cannot be had: {inner}"))
        };
    };
    let said = said.trim_end();
    let said = said.rsplit_once(": exit status ").map_or(said, |(said, _)| said).trim_end();
    let told = format!("{asked}: {}", said.lines().last().unwrap_or_default());
    if asked.starts_with("failed to checkout remote ") {
        return not_there(&told);
    }
    match problem(said) {
        Problem::Unavailable => (Reason::DownloadFailed, format!("what ADD downloads cannot be reached: {told}")),
        Problem::NoRepository | Problem::NoCommit => not_there(&told),
        // It knows but where a bundle lies that is not there.
        Problem::Untrusted => untrusted(told.split(" failed. CAfile: ").next().unwrap_or(&told)),
        Problem::Unauthorized => refused(&told),
        Problem::NoSpace => {
            (Reason::NoSpaceLeft, format!("the builder's cache volume is full; raise the pool's cache.size: {told}"))
        }
        _ => (Reason::BuildFailed, format!("what ADD downloads cannot be had: {told}")),
    }
}

fn not_there(told: &str) -> (Reason, String) {
    (Reason::FileNotFound, format!("what ADD downloads is not there: {told}"))
}

fn refused(told: &str) -> (Reason, String) {
    let message = format!(
        "the server refuses to hand out what ADD downloads: {told}; where it wants a credential, add it to spec.secrets with the id HTTP_AUTH_TOKEN_ and the host, for a repository GIT_AUTH_TOKEN. and the host"
    );
    (Reason::DownloadRefused, message)
}

fn untrusted(told: &str) -> (Reason, String) {
    let cure = answer::certificate(told)
        .and_then(|(_, cure)| cure)
        .unwrap_or("for ADD the CAs in the pool's caRefs count, and no others: have its CA named there");
    let message = format!("the certificate of the server that ADD downloads from is not trusted: {told}; {cure}");
    (Reason::DownloadCertificateUntrusted, message)
}
