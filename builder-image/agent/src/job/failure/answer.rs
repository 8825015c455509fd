//! What a registry or a web server answered, from where BuildKit and containerd put it: the status of HTTP behind the request,
//! the registry's error code behind that or in its place
//! (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes>), and what went wrong on the way.

use super::super::mask::shorten;

/// What they say before what a request came to.
const WRAPPINGS: [&str; 11] = [
    "failed to copy: ",
    "httpReadSeeker: ",
    "failed open: ",
    "failed to authorize: ",
    "failed to fetch oauth token: ",
    "failed to fetch anonymous token: ",
    "pull access denied, repository does not exist or may require authorization: ",
    "push access denied, repository does not exist or may require authorization: ",
    "server message: ",
    "error writing manifest blob: ",
    "error writing layer blob: ",
];

/// How what a registry answered begins, of whose status no code is made.
pub(super) const UNEXPECTED: &str = "unexpected status from ";

/// The longest answer within a message, in bytes.
const LONGEST_ANSWER: usize = 160;

/// What was meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody that counts has signed for the server.
    Untrusted,
    /// It speaks no TLS.
    NoTls,
    /// No credential, or a wrong one.
    Unauthorized,
    /// A credential without the right.
    Denied,
    /// There is no room for more.
    Quota,
    /// There is no such thing.
    NotFound,
    /// The body was too large for it, or for a proxy before it.
    TooLarge,
    /// It does not take such a manifest.
    Unsupported,
    /// It cannot be reached, or is in trouble: it may go well the next time.
    Unavailable,
    /// There were too many requests.
    Limited,
    /// Something else.
    Other,
}

/// Reads it from what stands behind the name of what was asked for.
pub(super) fn read(said: &str) -> Answer {
    read_of(said, "")
}

/// The same of a repository, whose name the registry may repeat in its words.
pub(super) fn read_of(said: &str, repository: &str) -> Answer {
    let rest = innermost(said);
    if let Some(status) = rest.strip_prefix("invalid response status ") {
        return of_status(number(status), "", repository);
    }
    if rest.starts_with(UNEXPECTED) {
        let status = status(rest).unwrap_or_default();
        // `403 Forbidden: denied: …`.
        let body = status.split_once(": ").map_or("", |(_, body)| body);
        return of_status(number(status), body, repository);
    }
    // Go's own words for what happened on the way; the address is quoted.
    for opening in ["failed to do request: ", "Get \"", "Head \"", "Post \"", "Put \"", "Patch \""] {
        if let Some(way) = rest.strip_prefix(opening) {
            let way = way.rsplit_once("\": ").map_or(way, |(_, way)| way);
            // A host may be called x509, but holds no white space.
            return if way.starts_with("x509: ") || way.contains("tls: failed to verify certificate") {
                Answer::Untrusted
            } else if way.ends_with("server gave HTTP response to HTTPS client") {
                Answer::NoTls
            } else {
                Answer::Unavailable
            };
        }
    }
    if rest == "not found" || rest.ends_with(": not found") {
        return Answer::NotFound;
    }
    match of_code(rest, repository) {
        Answer::Other if rest.starts_with("tls: failed to verify certificate") || rest.starts_with("x509: ") => {
            Answer::Untrusted
        }
        answer => answer,
    }
}

/// The answer itself, in a few words: the status of HTTP, and what the registry said in a line beside it.
pub(super) fn told(said: &str) -> String {
    let rest = innermost(said);
    let told = match status(rest) {
        Some(status) => {
            let (status, body) = status.split_once([':', '\n']).unwrap_or((status, ""));
            let body = body.trim().lines().next().unwrap_or_default();
            // A page helps nobody.
            if body.is_empty() || body.starts_with(['<', '{']) {
                format!("HTTP {status}")
            } else {
                format!("HTTP {status}: {body}")
            }
        }
        None => rest.lines().next().unwrap_or_default().to_owned(),
    };
    shorten(told, LONGEST_ANSWER)
}

/// Without all that is said before what a request came to.
pub(super) fn innermost(said: &str) -> &str {
    let mut rest = said.trim();
    while let Some(inner) = unwrapped(rest) {
        rest = inner;
    }
    rest
}

/// The status of HTTP, and what follows it. The address before it may hold anything but white space.
fn status(rest: &str) -> Option<&str> {
    let request = rest.strip_prefix(UNEXPECTED)?;
    request.split_once(" request to ")?.1.split_once(": ").map(|(_, status)| status)
}

/// What Go says of a certificate, and what helps where that is not to trust somebody more.
pub(super) fn certificate(said: &str) -> Option<(&str, Option<&'static str>)> {
    let (_, why) = said.split_once("tls: failed to verify certificate: x509: ")?;
    let why =
        [" (possibly because of", ": current time "].iter().fold(why, |why, end| why.split(end).next().unwrap_or(why));
    let of_name = ["certificate is valid for ", "certificate is not valid for ", "cannot validate certificate for "];
    let cure = if why.starts_with("certificate has expired") {
        Some("have the server show one that is valid today")
    } else if of_name.iter().any(|opening| why.starts_with(opening)) {
        Some("have the server show one for this name, as a subject alternative name")
    } else {
        None
    };
    Some((why, cure))
}

/// What stands behind the next wrapping.
pub(super) fn unwrapped(text: &str) -> Option<&str> {
    if let Some(inner) = WRAPPINGS.iter().find_map(|wrapping| text.strip_prefix(wrapping)) {
        return Some(inner);
    }
    if let Some(status) = text.strip_prefix("rpc error: code = ") {
        return status.split_once(" desc = ").map(|(_, inner)| inner);
    }
    // Neither a repository nor a blob's name holds a colon with white space behind it.
    let named = ["pushing with mount from ", "failed commit on ref "].iter().find_map(|it| text.strip_prefix(it))?;
    named.split_once(": ").map(|(_, inner)| inner)
}

fn number(status: &str) -> u16 {
    status.split(' ').next().and_then(|number| number.trim_end_matches(':').parse().ok()).unwrap_or(0)
}

fn of_status(status: u16, body: &str, repository: &str) -> Answer {
    match status {
        401 => Answer::Unauthorized,
        403 if is_about_room(&without(repository, body)) => Answer::Quota,
        403 => Answer::Denied,
        404 | 410 => Answer::NotFound,
        413 => Answer::TooLarge,
        415 => Answer::Unsupported,
        501 | 505 => Answer::Other,
        507 => Answer::Quota,
        429 => Answer::Limited,
        408 | 425 | 500..600 => Answer::Unavailable,
        _ => of_code(body, repository),
    }
}

/// By a registry's error code, as containerd writes it before the registry's own words.
fn of_code(text: &str, repository: &str) -> Answer {
    if let Some(several) = text.strip_prefix("errors:\n") {
        let answers: Vec<Answer> =
            several.lines().map(|line| of_code(line, repository)).filter(|answer| *answer != Answer::Other).collect();
        // What a credential may not do does not go away by itself.
        let lasting = answers.iter().find(|answer| !matches!(answer, Answer::Unavailable | Answer::Limited));
        return lasting.or(answers.first()).copied().unwrap_or(Answer::Other);
    }
    let (code, words) = text.split_once(": ").unwrap_or((text, ""));
    match code {
        "unauthorized" | "authentication required" | "insufficient_scope" | "no basic auth credentials" => {
            Answer::Unauthorized
        }
        "denied" if is_about_room(&without(repository, words)) => Answer::Quota,
        "denied" => Answer::Denied,
        // The last two: the connection broke off on the way.
        "unavailable" | "EOF" | "unexpected EOF" => Answer::Unavailable,
        "toomanyrequests" => Answer::Limited,
        // Every code that containerd does not know: the registry's words alone tell.
        "unknown" => of_words(&without(repository, words)),
        _ if is_of_the_way(text) => Answer::Unavailable,
        _ => Answer::Other,
    }
}

/// Signs of one word, which may be a part of a repository's name.
const WORDS: [&str; 5] = ["quota", "internal", "unavailable", "timeout", "mediatype"];

/// The words without such parts of the repository's name.
fn without(repository: &str, words: &str) -> String {
    // Neither the host's port nor the tag is told with a name always.
    let names = || repository.split(['/', ':', '@']).filter(|name| WORDS.iter().any(|word| name.contains(word)));
    let is_part = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
    let kept = words.split_inclusive(|char| !is_part(char)).map(|word| {
        let name = word.trim_end_matches(|char| !is_part(char));
        names().find(|known| *known == name).map_or(word, |_| &word[name.len()..])
    });
    kept.collect()
}

/// What registries say of the codes that containerd does not pass on.
fn of_words(words: &str) -> Answer {
    let words = words.to_ascii_lowercase();
    let has = |signs: &[&str]| signs.iter().any(|sign| words.contains(sign));
    // A manifest is sent after all that it names. Registries that keep files read what a blob is called while another
    // platform's push writes it again; those with several replicas may not have heard of it.
    if has(&[
        "blob unknown",
        "blob upload unknown",
        "digest did not match",
        "unknown error",
        "internal",
        "unavailable",
        "timeout",
        "try again",
    ]) || words.is_empty()
    {
        Answer::Unavailable
    } else if is_about_room(&words) {
        Answer::Quota
    } else if has(&["manifest invalid", "manifest schema", "media type", "mediatype"]) {
        Answer::Unsupported
    } else if has(&["not known to registry", "does not exist", "not found"]) {
        Answer::NotFound
    } else {
        Answer::Other
    }
}

/// What Harbor, GitLab, Artifactory and others say of a quota: their own words, for there is no code.
fn is_about_room(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    ["quota", "configured upper limit", "storage limit", "insufficient storage", "repositories, limit is"]
        .iter()
        .any(|sign| words.contains(sign))
}

/// What Go says of a connection.
fn is_of_the_way(text: &str) -> bool {
    let ends = [
        "i/o timeout",
        "connection reset by peer",
        "connection refused",
        "broken pipe",
        "unexpected EOF",
        "TLS handshake timeout",
        "no such host",
        "deadline exceeded",
        "network is unreachable",
        "no route to host",
        "server misbehaving",
        "use of closed network connection",
        "read/write on closed pipe",
        "cannot reuse body, request must be retried",
        ": EOF",
    ];
    text.starts_with("dial tcp") || ends.iter().any(|end| text.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_few_words() {
        let head = "unexpected status from HEAD request to https://r.example/v2/x/manifests/1: ";
        for (said, expected) in [
            ("401 Unauthorized", "HTTP 401 Unauthorized"),
            (
                "401 Unauthorized: incorrect username or password",
                "HTTP 401 Unauthorized: incorrect username or password",
            ),
            ("403 Forbidden\ndenied", "HTTP 403 Forbidden: denied"),
            ("403 Forbidden: <html>\n403</html>", "HTTP 403 Forbidden"),
        ] {
            assert_eq!(told(&format!("failed to authorize: {head}{said}")), expected);
        }
        let hub = "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed";
        assert_eq!(told(hub), "insufficient_scope: authorization failed");
        assert!(told(&"x".repeat(5000)).len() <= LONGEST_ANSWER + 3);
    }

    #[test]
    fn what_was_answered() {
        let put = "unexpected status from PUT request to https://r.example/v2/404/denied/blobs/uploads/1?x=401: ";
        for (said, expected) in [
            ("failed to do request: Head \"https://r/v2/x\": dial tcp: lookup r: no such host", Answer::Unavailable),
            ("failed to do request: Put \"https://r/v2/404?a\": EOF", Answer::Unavailable),
            (
                "failed to do request: Head \"https://r/\": tls: failed to verify certificate: x509: unknown",
                Answer::Untrusted,
            ),
            (
                "failed to do request: Head \"https://r/\": http: server gave HTTP response to HTTPS client",
                Answer::NoTls,
            ),
            ("denied: requested access to the resource is denied", Answer::Denied),
            (
                "denied: adding 29.0 MiB of storage resource, which … will exceed the configured upper limit of 160.0 MiB.",
                Answer::Quota,
            ),
            ("unavailable: service unavailable", Answer::Unavailable),
            ("unknown: internal error", Answer::Unavailable),
            ("unknown: unknown error", Answer::Unavailable),
            ("unknown: project x not found", Answer::NotFound),
            ("unknown: repository name not known to registry", Answer::NotFound),
            ("unknown: The repository with name 'x' does not exist in the registry with id '1'", Answer::NotFound),
            ("unknown: manifest invalid", Answer::Unsupported),
            ("unknown: invalid tag name", Answer::Other),
            ("unknown: blob unknown to registry", Answer::Unavailable),
            ("unsupported: The operation is unsupported.", Answer::Other),
            ("errors:\nunknown: blob unknown to registry\ndenied: no\n", Answer::Denied),
            (
                "errors:\nunknown: provided digest did not match uploaded content\nunknown: blob unknown to registry\n",
                Answer::Unavailable,
            ),
            ("toomanyrequests: You have reached your pull rate limit", Answer::Limited),
            (
                "push access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                Answer::Unauthorized,
            ),
            (
                "failed to copy: httpReadSeeker: failed open: unexpected status from GET request to https://r/x: 503 Service Unavailable",
                Answer::Unavailable,
            ),
            (
                "pushing with mount from r/other: failed to authorize: failed to fetch oauth token: unexpected status from POST request to https://t/: 401 Unauthorized",
                Answer::Unauthorized,
            ),
            (
                "failed to do request: Head \"https://r/\": proxyconnect tcp: tls: failed to verify certificate: x509: unknown",
                Answer::Untrusted,
            ),
            (
                "rpc error: code = Unavailable desc = failed to do request: Head \"https://r/\": EOF",
                Answer::Unavailable,
            ),
            ("unauthorized: authentication required", Answer::Unauthorized),
            (
                "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                Answer::Unauthorized,
            ),
            (
                "failed to authorize: failed to fetch oauth token: unexpected status from GET request to https://t/?s=x: 503 Service Unavailable",
                Answer::Unavailable,
            ),
            (
                "failed to copy: httpReadSeeker: failed open: unexpected status from GET request to https://r/x: 404 Not Found",
                Answer::NotFound,
            ),
            ("docker.io/library/x:1: not found", Answer::NotFound),
            ("invalid response status 404", Answer::NotFound),
            ("something else", Answer::Other),
            ("", Answer::Other),
        ] {
            assert_eq!(read(said), expected, "{said}");
        }
        for (status, expected) in [
            ("401 Unauthorized", Answer::Unauthorized),
            ("403 Forbidden", Answer::Denied),
            ("403 Forbidden: denied: quota exceeded", Answer::Quota),
            ("404 Not Found", Answer::NotFound),
            ("410 Gone", Answer::NotFound),
            ("408 Request Timeout", Answer::Unavailable),
            ("413 Request Entity Too Large: <html>404 not found</html>", Answer::TooLarge),
            ("415 Unsupported Media Type", Answer::Unsupported),
            ("429 Too Many Requests", Answer::Limited),
            ("400 Bad Request: unknown: manifest invalid", Answer::Unsupported),
            ("400 Bad Request: <html>", Answer::Other),
            ("500 Internal Server Error", Answer::Unavailable),
            ("501 Not Implemented", Answer::Other),
            ("503 Service Unavailable: unavailable: x", Answer::Unavailable),
            ("507 Insufficient Storage", Answer::Quota),
            ("520 ", Answer::Unavailable),
        ] {
            assert_eq!(read(&format!("{put}{status}")), expected, "{status}");
        }
    }
}
