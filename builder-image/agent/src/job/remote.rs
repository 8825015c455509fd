//! A Git server as a job may use it: which URLs and addresses are allowed, where its credential goes, and what it
//! means when `git` fails. Everything is told to `git` by environment variables, nothing on its command line.

use std::{net::IpAddr, path::PathBuf};

use kiln_registry::http_client::{AddressForbidden, AddressPolicy};
use url::{Host, Url};

use super::credentials::basic;
use crate::reasons::{JobFailure, Reason};

/// A repository's URL and what it takes to fetch from it.
#[derive(Clone)]
pub struct Remote {
    /// https, without user information.
    pub url: Url,
    username: String,
    password: String,
    /// The bundle of CAs to trust; none: the system's.
    bundle: Option<PathBuf>,
    /// Which addresses it may have.
    policy: AddressPolicy,
    /// The addresses that the host's name stood for when they were checked.
    addresses: Vec<IpAddr>,
}

/// Reads a repository's URL: https, with a host and without user information.
pub fn parse_url(url: &str) -> Result<Url, JobFailure> {
    let refuse = |why: &str| JobFailure::new(Reason::InvalidJob, format!("the Git URL {url:?} {why}"));
    if url.starts_with('-') || url.chars().any(|char| char.is_control() || char.is_whitespace()) {
        return Err(refuse("is not a URL"));
    }
    let parsed = Url::parse(url).map_err(|error| refuse(&format!("is not a URL: {error}")))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // Not quoted: it may hold a password.
        return Err(JobFailure::new(
            Reason::InvalidJob,
            "the Git URL holds a user or password; put them into a Secret and name it in secretRef",
        ));
    }
    if parsed.scheme() != "https" {
        return Err(refuse("is not https"));
    }
    if parsed.host_str().is_some_and(|host| host.ends_with('.')) {
        // The addresses that were checked are given to Git under the name, which it would not find with the dot.
        return Err(refuse("has a host that ends in a dot; write it without"));
    }
    if parsed.host().is_none() || parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(refuse("must have the form https://host/path"));
    }
    Ok(parsed)
}

impl Remote {
    /// The remote at `url`, with a credential unless both are empty, and a bundle of CAs unless the system's will do.
    #[must_use]
    pub fn new(url: Url, username: &str, password: &str, bundle: Option<PathBuf>, policy: AddressPolicy) -> Self {
        let (username, password) = (username.to_owned(), password.to_owned());
        Self { url, username, password, bundle, policy, addresses: Vec::new() }
    }

    /// The same server's other repository, or another server: that one gets no credential.
    #[must_use]
    pub fn at(&self, url: Url) -> Self {
        let same = url.origin() == self.url.origin();
        let (username, password) = if same { (self.username.as_str(), self.password.as_str()) } else { ("", "") };
        Self::new(url, username, password, self.bundle.clone(), self.policy)
    }

    /// Whether a credential is sent.
    #[must_use]
    pub fn has_credential(&self) -> bool {
        !self.username.is_empty() || !self.password.is_empty()
    }

    /// The host and its port.
    #[must_use]
    pub fn host(&self) -> String {
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{port}", self.url.host_str().unwrap_or_default())
    }

    /// Looks the host's addresses up and leaves out those that builds may not reach; fails where no other is left. `git`
    /// then connects to just these, so that a name which stands for another address a moment later gains nothing.
    pub async fn check_addresses(&mut self) -> Result<(), JobFailure> {
        let port = self.url.port_or_known_default().unwrap_or(443);
        let addresses: Vec<IpAddr> = match self.url.host() {
            Some(Host::Ipv4(address)) => vec![address.into()],
            Some(Host::Ipv6(address)) => vec![address.into()],
            Some(Host::Domain(name)) => match tokio::net::lookup_host((name, port)).await {
                Ok(found) => found.map(|address| address.ip()).collect(),
                // Behind a proxy, names may be known to the proxy alone, and it is the proxy that connects.
                Err(_) if ["https_proxy", "HTTPS_PROXY"].iter().any(|name| std::env::var_os(name).is_some()) => {
                    return Ok(());
                }
                Err(error) => {
                    let message = format!(
                        "the Git server {} is not to be found ({error}); check the host in the URL and the cluster's DNS",
                        self.host()
                    );
                    return Err(JobFailure::new(Reason::GitUnavailable, message));
                }
            },
            None => Vec::new(),
        };
        let (permitted, refused): (Vec<_>, Vec<_>) =
            addresses.into_iter().map(|address| self.policy.permits(address).map(|()| address)).partition(Result::is_ok);
        self.addresses = permitted.into_iter().flatten().collect();
        self.addresses.dedup();
        if !self.addresses.is_empty() {
            return Ok(());
        }
        let why = refused.into_iter().find_map(Result::err).map_or("has no address".to_owned(), |forbidden| forbids(&forbidden));
        Err(JobFailure::new(Reason::AddressForbidden, format!("the Git server {} {why}", self.host())))
    }

    /// Git's configuration for this remote.
    #[must_use]
    pub fn config(&self) -> Vec<(String, String)> {
        let mut config = Vec::new();
        if self.has_credential() {
            let origin = self.url.origin().ascii_serialization();
            config.push((
                format!("http.{origin}.extraHeader"),
                format!("Authorization: Basic {}", basic(&self.username, &self.password)),
            ));
        }
        if let Some(bundle) = &self.bundle {
            config.push(("http.sslCAInfo".to_owned(), bundle.display().to_string()));
        }
        if let (Some(Host::Domain(name)), false) = (self.url.host(), self.addresses.is_empty()) {
            let addresses: Vec<String> = self
                .addresses
                .iter()
                .map(|address| if address.is_ipv6() { format!("[{address}]") } else { address.to_string() })
                .collect();
            let port = self.url.port_or_known_default().unwrap_or(443);
            config.push(("http.curloptResolve".to_owned(), format!("{name}:{port}:{}", addresses.join(","))));
        }
        config
    }

    /// The URL of a submodule: relative ones (`../x`) start from this repository, as in gitmodules(5).
    pub fn submodule(&self, url: &str) -> Result<Url, JobFailure> {
        if !url.starts_with("./") && !url.starts_with("../") {
            return parse_url(url);
        }
        let mut base: Vec<&str> = self.url.path().trim_end_matches('/').split('/').collect();
        let mut rest = url;
        loop {
            if let Some(up) = rest.strip_prefix("../") {
                base.pop();
                rest = up;
            } else if let Some(here) = rest.strip_prefix("./") {
                rest = here;
            } else {
                break;
            }
        }
        let mut joined = self.url.clone();
        joined.set_path(&format!("{}/{rest}", base.join("/")));
        parse_url(joined.as_str())
    }
}

/// Why builds do not connect to a server, after its name.
fn forbids(AddressForbidden { ip, range, private }: &AddressForbidden) -> String {
    let why = if *private {
        "and the BuilderPool's allow.privateAddresses is false; use a public server, or ask for another pool"
    } else {
        "which builds may not reach"
    };
    format!("has the address {ip}: it is {range}, {why}")
}

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
    /// The server cannot be reached or is in trouble.
    Unavailable,
    /// The volume is full.
    NoSpace,
    /// It sends more than a file may hold.
    TooLarge,
    /// None of these.
    Other,
}

/// Reads what `git fetch` wrote to its standard error, in the C locale.
#[must_use]
pub fn problem(stderr: &str) -> Problem {
    const SIGNS: [(Problem, &[&str]); 9] = [
        (Problem::TooLarge, &["died of signal 25", "File too large", "File size limit exceeded"]),
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
            &["returned error: 404", "not found", "returned error: 410", "not valid: is this a git repository"],
        ),
    ];
    SIGNS
        .iter()
        .find(|(_, signs)| signs.iter().any(|sign| stderr.contains(sign)))
        .map_or(Problem::Other, |(problem, _)| *problem)
}

/// The URL that a server redirects to, from the trace that `git` wrote (`GIT_TRACE_CURL`).
#[must_use]
pub fn redirect_target(from: &Url, trace: &str) -> Option<Url> {
    let location = trace.lines().find_map(|line| {
        let (_, header) = line.split_once("Recv header: ")?;
        let (name, value) = header.split_once(':')?;
        name.trim().eq_ignore_ascii_case("location").then(|| value.trim())
    })?;
    let mut target = from.join(location).ok()?;
    target.set_query(None);
    let path = target.path().strip_suffix("/info/refs")?.to_owned();
    target.set_path(&path);
    Some(target)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn remote(url: &str) -> Remote {
        Remote::new(parse_url(url).unwrap(), "user", "hunter22", None, AddressPolicy::new(true))
    }

    #[test]
    fn urls() {
        for good in ["https://host/a/b.git", "https://host:8443/x", "https://[2001:db8::1]/x"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://host/x",
            "ssh://host/x",
            "git@host:x",
            "file:///etc",
            "https://u:p@host/x",
            "https://u@host/x",
            "--upload-pack=x",
            "https://host/x?y",
            "https://host/\nx",
            "ext::sh -c x",
            "https://host./x",
            "",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
        let failure = parse_url("https://user:hunter22@host/x").unwrap_err();
        assert!(!failure.message.contains("hunter22"));
    }

    #[test]
    fn a_credential_stays_with_its_server() {
        let remote = remote("https://host:8443/a/b.git");
        assert_eq!(
            remote.config(),
            [("http.https://host:8443.extraHeader".to_owned(), "Authorization: Basic dXNlcjpodW50ZXIyMg==".to_owned())]
        );
        for (other, sent) in
            [("https://host:8443/c", true), ("https://host/c", false), ("https://sub.host:8443/c", false)]
        {
            assert_eq!(remote.at(parse_url(other).unwrap()).has_credential(), sent, "{other}");
        }
    }

    #[test]
    fn submodule_urls() {
        let remote = remote("https://host/group/app.git");
        let cases = [
            ("../lib.git", "https://host/group/lib.git"),
            ("../../other/lib", "https://host/other/lib"),
            ("./sub", "https://host/group/app.git/sub"),
            ("https://else/x", "https://else/x"),
        ];
        for (url, expected) in cases {
            assert_eq!(remote.submodule(url).unwrap().as_str(), expected, "{url}");
        }
        assert!(remote.submodule("git@host:x").is_err());
    }

    #[tokio::test]
    async fn private_addresses_are_refused_where_the_pool_says_so() {
        let message = async |url: &str, allow_private| {
            let mut remote = Remote::new(parse_url(url).unwrap(), "", "", None, AddressPolicy::new(allow_private));
            match remote.check_addresses().await {
                Ok(()) => String::new(),
                Err(failure) => {
                    assert_eq!(failure.reason, Reason::AddressForbidden);
                    failure.message
                }
            }
        };
        // Whatever way an address is written.
        for url in [
            "https://10.0.0.1/x",
            "https://0x0a000001/x",
            "https://10.1/x",
            "https://[fd00::1]/x",
            "https://[::ffff:a00:1]/x",
        ] {
            assert_eq!(message(url, true).await, "", "{url}");
            assert!(message(url, false).await.contains("allow.privateAddresses is false"), "{url}");
        }
        for url in ["https://127.0.0.1/x", "https://localhost/x", "https://169.254.169.254/x", "https://2130706433/x"] {
            assert!(message(url, true).await.contains("which builds may not reach"), "{url}");
        }
        // Redirects and submodules inherit it.
        let remote = Remote::new(parse_url("https://host/x").unwrap(), "", "", None, AddressPolicy::new(false));
        let mut other = remote.at(remote.submodule("https://10.0.0.1/y").unwrap());
        assert_eq!(other.check_addresses().await.unwrap_err().reason, Reason::AddressForbidden);
    }

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
            ("fatal: something new", Problem::Other),
        ];
        for (stderr, expected) in cases {
            assert_eq!(problem(stderr), expected, "{stderr}");
        }
    }

    #[test]
    fn redirects() {
        let from = parse_url("https://host/a").unwrap();
        let trace = "12:00:00.1 http.c:1 <= Recv header: HTTP/1.1 301 Moved\n12:00:00.1 http.c:1 <= Recv header: Location: /a.git/info/refs?service=git-upload-pack\n";
        assert_eq!(redirect_target(&from, trace).unwrap().as_str(), "https://host/a.git");
        assert_eq!(
            redirect_target(&from, "Recv header: location: https://login.example/").map(|url| url.to_string()),
            None
        );
    }

    proptest! {
        #[test]
        fn an_accepted_url_is_plain_https(url in "(https|http|ssh|file|-)?(:|://)?[a-z@:/.\\-]{0,20}") {
            if let Ok(parsed) = parse_url(&url) {
                prop_assert!(parsed.as_str().starts_with("https://"));
                prop_assert!(!parsed.as_str().contains('@') || parsed.path().contains('@'));
            }
        }
    }
}
