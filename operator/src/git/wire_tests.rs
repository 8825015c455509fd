//! `resolve` against a small Git server: both protocol versions, refusals, redirects, nonsense.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;

use super::*;
use kiln_crds::GitUrl;
use kiln_registry::http_client::{AddressPolicy, Clients, HttpClient, SecretString};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// Status, header and body.
type Fault = (u16, (&'static str, String), String);

#[derive(Clone, Default)]
struct Server {
    version_2: bool,
    /// Answers by path, instead of the right ones: status, header, body.
    faults: Arc<Mutex<HashMap<String, Fault>>>,
    /// Path and `Authorization`.
    requests: Arc<Mutex<Vec<(String, String)>>>,
    host: String,
}

fn packet(text: &str) -> String {
    format!("{:04x}{text}\n", text.len() + 5)
}

fn reply(status: u16, header: (&str, &str), body: impl Into<Body>) -> Response {
    Response::builder().status(status).header(header.0, header.1).body(body.into()).unwrap()
}

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let authorization = parts.headers.get("authorization").map_or("", |v| v.to_str().unwrap()).to_owned();
    server.requests.lock().unwrap().push((path.clone(), authorization));
    if let Some((status, (name, value), body)) = server.faults.lock().unwrap().get(&path).cloned() {
        return reply(status, (name, &value), body);
    }
    let advertisement = ("content-type", "application/x-git-upload-pack-advertisement");
    match path.strip_prefix("/app.git") {
        Some("/info/refs") if server.version_2 => {
            assert_eq!(parts.headers["git-protocol"], "version=2");
            let lines = [
                packet("# service=git-upload-pack"),
                "0000".into(),
                packet("version 2"),
                packet("ls-refs"),
                packet("object-format=sha1"),
                "0000".into(),
            ];
            reply(200, advertisement, lines.concat())
        }
        Some("/info/refs") => {
            let lines = [
                packet("# service=git-upload-pack"),
                "0000".into(),
                packet(&format!("{A} HEAD\0 symref=HEAD:refs/heads/main")),
                packet(&format!("{A} refs/heads/main")),
                packet(&format!("{A} refs/tags/v1")),
                packet(&format!("{B} refs/tags/v1^{{}}")),
                "0000".into(),
            ];
            reply(200, advertisement, lines.concat())
        }
        Some("/git-upload-pack") => {
            let body = axum::body::to_bytes(body, 65536).await.unwrap();
            let body = String::from_utf8(body.to_vec()).unwrap();
            let asked = |name: &str| {
                body.lines().any(|l| l.split_once("ref-prefix ").is_some_and(|(_, p)| name.starts_with(p)))
            };
            let mut lines = String::new();
            for (name, line) in [
                ("HEAD", format!("{A} HEAD symref-target:refs/heads/main")),
                ("refs/heads/main", format!("{A} refs/heads/main")),
                ("refs/heads/main-2", format!("{B} refs/heads/main-2")),
                ("refs/tags/v1", format!("{A} refs/tags/v1 peeled:{B}")),
            ] {
                if asked(name) {
                    lines += &packet(&line);
                }
            }
            reply(200, ("content-type", "application/x-git-upload-pack-result"), lines + "0000")
        }
        _ => reply(404, ("x", "y"), "no"),
    }
}

impl Server {
    async fn start(version_2: bool) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { version_2, host: listener.local_addr().unwrap().to_string(), ..Self::default() };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        server
    }

    fn url(&self) -> GitUrl {
        GitUrl::plain(format!("http://{}/app.git", self.host).parse().unwrap())
    }

    fn fault(&self, path: &str, status: u16, header: (&'static str, &str), body: &str) {
        self.faults.lock().unwrap().insert(path.into(), (status, (header.0, header.1.into()), body.into()));
    }
}

fn http() -> HttpClient {
    Clients::new().get(None, AddressPolicy::default().with_loopback()).unwrap()
}

fn auth() -> GitCredential {
    GitCredential::Basic(BasicAuth { username: "me".into(), password: SecretString::new("pw") })
}

#[tokio::test]
async fn resolves_with_both_versions() {
    for version_2 in [true, false] {
        let server = Server::start(version_2).await;
        for (reference, commit, name) in [
            (None, A, Some("refs/heads/main")),
            (Some("HEAD"), A, Some("refs/heads/main")),
            (Some("main"), A, Some("refs/heads/main")),
            (Some("heads/main"), A, Some("refs/heads/main")),
            (Some("refs/heads/main"), A, Some("refs/heads/main")),
            (Some("v1"), B, Some("refs/tags/v1")),
            (Some("cccccccccccccccccccccccccccccccccccccccc"), "cccccccccccccccccccccccccccccccccccccccc", None),
        ] {
            let resolved = resolve(&http(), &server.url(), reference, None).await.unwrap();
            let expected = Resolved { commit: commit.into(), ref_name: name.map(str::to_owned) };
            assert_eq!(resolved, expected, "{reference:?}, version 2: {version_2}");
        }
        let error = resolve(&http(), &server.url(), Some("mian"), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RefNotFound);
        assert!(error.to_string().ends_with(r#"has no branch or tag "mian": did you mean main?"#), "{error}");
    }
}

#[tokio::test]
async fn refusals() {
    let server = Server::start(true).await;
    let refs = "/app.git/info/refs";
    for (status, auth, kind) in [
        (401, None, ErrorKind::Unauthorized),
        (403, Some(auth()), ErrorKind::Unauthorized),
        (404, None, ErrorKind::NotFound),
        (429, None, ErrorKind::RateLimited),
        (502, None, ErrorKind::Unavailable),
        (418, None, ErrorKind::Protocol),
        (200, None, ErrorKind::Protocol),
    ] {
        server.fault(refs, status, ("content-type", "text/html"), "<html>");
        let error = resolve(&http(), &server.url(), None, auth.as_ref()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {error}");
    }
    server.fault(refs, 200, ("content-type", "application/x-git-upload-pack-advertisement"), "0000");
    let error = resolve(&http(), &server.url(), None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    // A whole commit id does not save a repository that cannot be read.
    server.fault(refs, 404, ("x", "y"), "");
    let error = resolve(&http(), &server.url(), Some(A), None).await.unwrap_err();
    assert!(error.to_string().contains("private"), "{error}");
    let error = resolve(&http(), &server.url(), Some("a..b"), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RefInvalid);
}

#[tokio::test]
async fn redirects() {
    let server = Server::start(true).await;
    let other = Server::start(true).await;
    let refs = "/app.git/info/refs";
    let query = "?service=git-upload-pack";
    // Within the host the credential goes along, to another it does not; the POST goes where the refs were.
    server.fault("/old/info/refs", 301, ("location", &format!("{refs}{query}")), "");
    let old = GitUrl::plain(format!("http://{}/old", server.host).parse().unwrap());
    resolve(&http(), &old, Some("main"), Some(&auth())).await.unwrap();
    let seen = server.requests.lock().unwrap().clone();
    assert_eq!(
        seen.iter().map(|(p, _)| p.as_str()).collect::<Vec<_>>(),
        ["/old/info/refs", refs, "/app.git/git-upload-pack"]
    );
    assert!(seen.iter().all(|(_, authorization)| authorization.starts_with("Basic ")));

    server.fault(refs, 302, ("location", &format!("http://{}{refs}{query}", other.host)), "");
    resolve(&http(), &server.url(), Some("main"), Some(&auth())).await.unwrap();
    let seen = other.requests.lock().unwrap().clone();
    assert_eq!(seen, [(refs.to_owned(), String::new()), ("/app.git/git-upload-pack".to_owned(), String::new())]);

    for location in [
        "/login",
        "https://example.org/info/refs",
        "http://169.254.169.254/info/refs",
        &format!("{refs}{query}"),
        "http://me@x/info/refs",
    ] {
        server.fault(refs, 302, ("location", location), "");
        let error = resolve(&http(), &server.url(), None, Some(&auth())).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Protocol | ErrorKind::AddressForbidden), "{location}: {error}");
    }
}
