//! What it means when `git` or `ssh` fail: they say so in words alone, in the C locale.

use url::Url;

use super::remote::Remote;
use crate::reasons::{JobFailure, Reason};

/// What `git` meant by failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// The server wants a credential, or another one.
    Unauthorized,
    /// No such repository.
    NoRepository,
    /// No such commit or ref.
    NoCommit,
    /// The server answers with a redirect.
    Redirected,
    /// A plain file server, which cannot do shallow fetches.
    Dumb,
    /// The certificate is not trusted.
    Untrusted,
    /// The ssh server's key is not the one that is known, or none is known.
    HostKey,
    /// The server cannot be reached or is in trouble.
    Unavailable,
    /// The volume is full.
    NoSpace,
    /// It sends more than a file may hold, or than there is memory and processor time for.
    TooLarge,
    /// It sends objects that Git itself does not take.
    Refused,
    /// None of these.
    Other,
}

/// What each problem is told by; the first that fits counts.
const SIGNS: [(Problem, &[&str]); 11] = [
    (Problem::Refused, &["fatal: fsck error in "]),
    (Problem::HostKey, &["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"]),
    (
        Problem::TooLarge,
        &[
            "died of signal 25",
            "died of signal 24",
            "File too large",
            "File size limit exceeded",
            "fatal: Out of memory, ",
            "inflate: out of memory",
        ],
    ),
    (Problem::NoSpace, &["No space left on device", "Disk quota exceeded"]),
    (
        Problem::Untrusted,
        &[
            "SSL certificate problem",
            "certificate verification failed",
            "no alternative certificate subject name",
            "unable to get local issuer",
            "does not match target host name",
        ],
    ),
    (
        Problem::Redirected,
        &[
            "returned error: 301",
            "returned error: 302",
            "returned error: 303",
            "returned error: 307",
            "returned error: 308",
        ],
    ),
    (
        Problem::Unauthorized,
        &[
            "Authentication failed",
            "could not read Username",
            "could not read Password",
            "returned error: 401",
            "returned error: 403",
            "Access denied",
            "Permission denied (",
            "Too many authentication failures",
            "Load key ",
        ],
    ),
    (Problem::Dumb, &["dumb http transport does not support shallow"]),
    (
        Problem::NoCommit,
        &[
            "not our ref",
            "couldn't find remote ref",
            "unadvertised object",
            "no such remote ref",
            "bad object",
            "Could not read from remote repository: ref",
        ],
    ),
    (
        Problem::Unavailable,
        &[
            "Could not resolve",
            "Couldn't resolve",
            "Failed to connect",
            "Couldn't connect",
            "Connection refused",
            "Connection reset",
            "Connection timed out",
            "Connection closed by",
            "Network is unreachable",
            "No route to host",
            "timed out",
            "Operation too slow",
            "returned error: 429",
            "returned error: 5",
            "early EOF",
            "unexpected disconnect",
            "hung up unexpectedly",
            "RPC failed",
            "SSL_ERROR_SYSCALL",
            "Empty reply from server",
            "Recv failure",
            "gnutls_handshake",
            "GnuTLS recv error",
            "TLS connection was non-properly terminated",
            "SSL_read",
        ],
    ),
    (
        Problem::NoRepository,
        &[
            "returned error: 404",
            "not found",
            "returned error: 410",
            "not valid: is this a git repository",
            "does not appear to be a git",
        ],
    ),
];

/// Reads what `git fetch` wrote to its standard error, in the C locale.
#[must_use]
pub fn problem(stderr: &str) -> Problem {
    SIGNS
        .iter()
        .find(|(_, signs)| signs.iter().any(|sign| stderr.contains(sign)))
        .map_or(Problem::Other, |(problem, _)| *problem)
}

/// Why `git` could not read or write what it had fetched.
#[must_use]
pub fn local_reason(stderr: &str) -> Reason {
    match problem(stderr) {
        Problem::NoSpace => Reason::NoSpaceLeft,
        Problem::TooLarge => Reason::GitRepositoryTooLarge,
        _ => Reason::GitFailed,
    }
}

/// The URL that a server redirects to, from the trace that `git` wrote (`GIT_TRACE_CURL`).
#[must_use]
pub fn redirect_target(from: &Url, trace: &str) -> Option<Url> {
    let location = trace.lines().find_map(|line| {
        let (_, header) = line.split_once("Recv header: ")?;
        let (name, value) = header.split_once(':')?;
        name.trim().eq_ignore_ascii_case("location").then(|| value.trim())
    })?;
    let mut target = from.join(location).ok().filter(|target| target.scheme() == "https")?;
    target.set_query(None);
    let path = target.path().strip_suffix("/info/refs")?.to_owned();
    target.set_path(&path);
    Some(target)
}

/// What a failed fetch means for the user.
#[must_use]
pub fn failure(problem: Problem, remote: &Remote, id: &str, name: &str, stderr: &str) -> JobFailure {
    let (url, host) = (&remote.url, remote.host());
    let ssh = url.ssh().is_some();
    // Of several lines, the last that git itself calls an error says most.
    let detail = stderr
        .lines()
        .rev()
        .find(|line| line.starts_with("fatal: ") || line.starts_with("error: "))
        .unwrap_or(stderr.trim());
    let (reason, message) = match problem {
        Problem::HostKey => (
            Reason::GitHostKeyUnknown,
            if stderr.contains("HAS CHANGED") {
                format!(
                    "{host} shows another key than known_hosts has for it: somebody may be in between, or the server has a new key; once you know that it is the server's, put what ssh-keyscan prints into the key known_hosts of its Secret"
                )
            } else {
                format!(
                    "the key of {host} is not known; put what ssh-keyscan prints for it into the key known_hosts of its Secret"
                )
            },
        ),
        Problem::Unauthorized if ssh && stderr.contains("Load key ") => (
            Reason::GitUnauthorized,
            format!(
                "the ssh key for {url} cannot be read; put an unencrypted private key into the key ssh-privatekey of its Secret"
            ),
        ),
        Problem::Unauthorized if ssh && remote.has_credential() => (
            Reason::GitUnauthorized,
            format!(
                "{host} refuses the ssh key for {url}; register its public key there, with the right to read this repository"
            ),
        ),
        Problem::Unauthorized if ssh => (
            Reason::GitUnauthorized,
            format!(
                "{url} needs an ssh key and none was given; name a Secret with the keys ssh-privatekey and known_hosts (it is used for the URL's own host only)"
            ),
        ),
        Problem::Unauthorized if remote.has_credential() => (
            Reason::GitUnauthorized,
            format!(
                "{host} refuses the credential for {url}; check user and password or token, and its right to read this repository"
            ),
        ),
        Problem::Unauthorized => (
            Reason::GitUnauthorized,
            format!("{url} wants a credential and none was given; name a Secret, or check the URL"),
        ),
        Problem::NoRepository => (
            Reason::GitRepositoryNotFound,
            format!("{host} has no repository {url}; check the URL, and that the credential may read it"),
        ),
        Problem::NoCommit if name.is_empty() => (Reason::GitRefNotFound, format!("{url} has no commit {id}")),
        Problem::NoCommit => (
            Reason::GitRefNotFound,
            format!(
                "{url} has no commit {id} in {name:?}; the ref may have been deleted or overwritten by a force push"
            ),
        ),
        Problem::Untrusted => (
            Reason::GitCertificateUntrusted,
            format!(
                "the certificate of {host} is not trusted ({}); name its CA in caRef of this repository; one that has expired, or is for another name, has to be replaced on the server",
                // The rest is a path in the builder.
                detail.split(" failed. CAfile: ").next().unwrap_or_default()
            ),
        ),
        Problem::Redirected => (
            Reason::GitFailed,
            format!("{url} redirects to where no repository can be fetched; write the repository's own URL"),
        ),
        Problem::Unavailable | Problem::Dumb => {
            (Reason::GitUnavailable, format!("{host} cannot be reached or is in trouble: {detail}"))
        }
        Problem::NoSpace => (Reason::NoSpaceLeft, format!("the builder's cache volume is full: {detail}")),
        Problem::TooLarge => (
            Reason::GitRepositoryTooLarge,
            format!("{url} sends more than a builder takes for one commit; build from a smaller repository"),
        ),
        Problem::Refused => {
            let object = stderr.lines().find(|line| line.starts_with("error: object ")).unwrap_or(detail);
            (
                Reason::GitTreeRefused,
                format!("{url} sends what no Git writes ({object}); find out who made it with git fsck --strict"),
            )
        }
        Problem::Other => (Reason::GitFailed, format!("fetching {url} failed: {detail}")),
    };
    JobFailure::new(reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems() {
        let cases = [
            ("fatal: Authentication failed for 'https://host/x/'", Problem::Unauthorized),
            ("fatal: could not read Username for 'https://host': terminal prompts disabled", Problem::Unauthorized),
            ("fatal: repository 'https://host/x/' not found", Problem::NoRepository),
            (
                "fatal: remote error: upload-pack: not our ref 0000000000000000000000000000000000000001",
                Problem::NoCommit,
            ),
            ("error: Server does not allow request for unadvertised object 0001", Problem::NoCommit),
            ("fatal: couldn't find remote ref gone", Problem::NoCommit),
            (
                "error: object 01: duplicateEntries: contains duplicate file entries\nfatal: fsck error in packed object",
                Problem::Refused,
            ),
            ("fatal: unable to access 'https://host/': Could not resolve host: host", Problem::Unavailable),
            ("fatal: unable to access 'https://host/': The requested URL returned error: 503", Problem::Unavailable),
            (
                "fatal: unable to access 'https://host/': server certificate verification failed. CAfile: none CRLfile: none",
                Problem::Untrusted,
            ),
            (
                "fatal: unable to access 'https://host/': SSL certificate problem: unable to get local issuer certificate",
                Problem::Untrusted,
            ),
            ("fatal: unable to access 'https://host/x/': The requested URL returned error: 301", Problem::Redirected),
            ("fatal: dumb http transport does not support shallow capabilities", Problem::Dumb),
            ("fatal: write error: No space left on device", Problem::NoSpace),
            ("error: index-pack died of signal 25\nfatal: fetch-pack: invalid index-pack output", Problem::TooLarge),
            (
                "No ED25519 host key is known for [host]:2222 and you have requested strict checking.\nHost key verification failed.\nfatal: Could not read from remote repository.",
                Problem::HostKey,
            ),
            ("git@host: Permission denied (publickey).", Problem::Unauthorized),
            (
                "Load key \"/m/ssh-key\": error in libcrypto\ngit@host: Permission denied (publickey).",
                Problem::Unauthorized,
            ),
            ("ssh: connect to host 10.0.0.1 port 22: Connection refused", Problem::Unavailable),
            ("kex_exchange_identification: Connection closed by remote host", Problem::Unavailable),
            ("fatal: '/srv/x.git' does not appear to be a git repository", Problem::NoRepository),
            ("ERROR: Repository not found.", Problem::NoRepository),
            ("fatal: something new", Problem::Other),
        ];
        for (stderr, expected) in cases {
            assert_eq!(problem(stderr), expected, "{stderr}");
        }
    }

    #[test]
    fn redirects() {
        let from = Url::parse("https://host/a").unwrap();
        let trace = "12:00:00.1 http.c:1 <= Recv header: HTTP/1.1 301 Moved\n12:00:00.1 http.c:1 <= Recv header: Location: /a.git/info/refs?service=git-upload-pack\n";
        assert_eq!(redirect_target(&from, trace).unwrap().as_str(), "https://host/a.git");
        assert_eq!(
            redirect_target(&from, "Recv header: location: https://login.example/").map(|url| url.to_string()),
            None
        );
    }
}
