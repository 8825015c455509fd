//! A registry in memory, which can be told to misbehave.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{Method, StatusCode};

use crate::http_client::{AddressPolicy, Clients, SecretString};
use crate::{Client, Login, LoginSecret, Repository, Scheme, sha256_digest};

/// How the registry wants to be authenticated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Auth {
    None,
    Basic,
    Bearer,
}

/// An answer that is given instead of the right one.
#[derive(Clone, Debug, Default)]
pub(super) struct Fault {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

/// The status of a fault that is no answer: the connection stays, and nothing comes.
pub(super) const MUTE: u16 = 0;
/// The status of a fault whose body never ends: a byte comes now and then.
pub(super) const ENDLESS: u16 = 1;

#[derive(Debug)]
pub(super) struct Content {
    /// By repository and tag or digest.
    pub(super) manifests: HashMap<(String, String), (String, Bytes)>,
    /// By repository and digest.
    pub(super) blobs: HashMap<(String, String), Bytes>,
    /// What came of a blob in parts.
    pub(super) parts: Vec<u8>,
    /// What came in: method, path with query, and `Authorization`.
    pub(super) requests: Vec<(String, String)>,
    /// For requests whose method and path begin so.
    pub(super) faults: VecDeque<(&'static str, Fault)>,
    pub(super) mounts: bool,
    /// After each write of a tag, another digest is put there, so often.
    pub(super) rival: usize,
    /// How many writes of tags are not answered yet, and are done with [`Server::deliver`].
    pub(super) late: usize,
    held: Vec<((String, String), (String, Bytes))>,
}

#[derive(Clone)]
pub(super) struct Server {
    pub(super) content: Arc<Mutex<Content>>,
    auth: Auth,
    pub(super) host: String,
}

pub(super) const USER: &str = "me";
pub(super) const PASSWORD: &str = "hunter2hunter2";

impl Server {
    pub(super) async fn start(auth: Auth) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let content = Content {
            manifests: HashMap::new(),
            blobs: HashMap::new(),
            parts: Vec::new(),
            requests: Vec::new(),
            faults: VecDeque::new(),
            mounts: true,
            rival: 0,
            late: 0,
            held: Vec::new(),
        };
        let server =
            Self { content: Arc::new(Mutex::new(content)), auth, host: listener.local_addr().unwrap().to_string() };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        server
    }

    pub(super) fn repository(&self, path: &str) -> Repository {
        Repository { registry: self.host.clone(), path: path.into() }
    }

    pub(super) fn client(&self, password: Option<&str>) -> Client {
        let http = Clients::new().get(None, AddressPolicy::default().with_loopback()).unwrap();
        let login = password.map(|password| Login {
            registry: self.host.clone(),
            path: String::new(),
            username: USER.into(),
            secret: LoginSecret::Password(SecretString::new(password)),
        });
        Client::new(http, Scheme::Http, login)
    }

    pub(super) fn fault(&self, request: &'static str, fault: Fault) {
        self.content.lock().unwrap().faults.push_back((request, fault));
    }

    /// Does the writes of tags that came and were held up; nobody waits for their answers any more.
    pub(super) fn deliver(&self) {
        let mut content = self.content.lock().unwrap();
        let held = std::mem::take(&mut content.held);
        content.manifests.extend(held);
    }

    /// The requests so far, without their credentials.
    pub(super) fn requests(&self) -> Vec<String> {
        self.content.lock().unwrap().requests.iter().map(|(request, _)| request.clone()).collect()
    }

    pub(super) fn put_blob(&self, repository: &str, bytes: &'static [u8]) -> serde_json::Value {
        let digest = sha256_digest(bytes).to_string();
        self.content.lock().unwrap().blobs.insert((repository.into(), digest.clone()), Bytes::from_static(bytes));
        serde_json::json!({"mediaType": "application/octet-stream", "digest": digest, "size": bytes.len()})
    }

    pub(super) fn put_manifest(
        &self,
        repository: &str,
        media_type: &str,
        json: &serde_json::Value,
    ) -> serde_json::Value {
        let bytes = Bytes::from(json.to_string());
        let digest = sha256_digest(&bytes).to_string();
        let size = bytes.len();
        let key = (repository.to_owned(), digest.clone());
        self.content.lock().unwrap().manifests.insert(key, (media_type.into(), bytes));
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn challenge(&self, authorization: &str) -> Option<Response> {
        let (good, challenge) = match self.auth {
            Auth::None => return None,
            Auth::Basic => (basic(), "Basic realm=\"test\"".to_owned()),
            Auth::Bearer => (
                "Bearer good".to_owned(),
                format!("Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:x:pull\"", self.host),
            ),
        };
        (authorization != good).then(|| {
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            reply(401, &[("www-authenticate", &challenge)], body)
        })
    }

    /// Anonymous tokens are good for nothing here.
    fn token(authorization: &str, form: &str) -> Response {
        if authorization == basic() || form.contains("refresh_token=hunter2hunter2") {
            reply(200, &[], r#"{"token":"good","expires_in":300}"#)
        } else if authorization.is_empty() && form.is_empty() {
            reply(200, &[], r#"{"access_token":"anonymous"}"#)
        } else {
            reply(401, &[], r#"{"details":"incorrect username or password hunter2hunter2"}"#)
        }
    }
}

fn basic() -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

pub(super) fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 32 << 20).await.unwrap();
    let path = parts.uri.path().to_owned();
    let query: HashMap<String, String> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or("").as_bytes()).into_owned().collect();
    let authorization = parts.headers.get("authorization").map_or("", |v| v.to_str().unwrap()).to_owned();
    let content_type = parts.headers.get("content-type").map_or("", |v| v.to_str().unwrap()).to_owned();
    let line = format!("{} {}", parts.method, parts.uri.path_and_query().unwrap());
    let fault = {
        let mut content = server.content.lock().unwrap();
        content.requests.push((line.clone(), authorization.clone()));
        let at = content.faults.iter().position(|(prefix, _)| line.starts_with(prefix));
        at.and_then(|at| content.faults.remove(at))
    };
    if let Some((_, fault)) = fault {
        match fault.status {
            MUTE => return std::future::pending().await,
            ENDLESS => return endless(),
            _ => {}
        }
        let headers: Vec<_> = fault.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        return reply(fault.status, &headers, fault.body);
    }
    if path == "/token" {
        return Server::token(&authorization, std::str::from_utf8(&body).unwrap());
    }
    if path == "/elsewhere" {
        return reply(200, &[("content-type", "application/vnd.oci.image.index.v1+json")], "{}");
    }
    if let Some(challenge) = server.challenge(&authorization) {
        return challenge;
    }
    let rest = path.strip_prefix("/v2/").unwrap();
    if is_held(&server, &parts.method, rest, &content_type, &body) {
        return std::future::pending().await;
    }
    let mut content = server.content.lock().unwrap();
    if rest.is_empty() {
        return reply(200, &[], "{}");
    }
    if let Some(repository) = rest.strip_suffix("/blobs/uploads/") {
        if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from")) {
            let blob = content.blobs.get(&(from.clone(), digest.clone())).cloned();
            if let Some(blob) = blob.filter(|_| content.mounts) {
                content.blobs.insert((repository.into(), digest.clone()), blob);
                return reply(201, &[], "");
            }
        }
        return reply(202, &[("location", &format!("/v2/{repository}/blobs/uploads/1?state=s"))], "");
    }
    if let Some((repository, _)) = rest.split_once("/blobs/uploads/") {
        return upload(&mut content, repository, &parts, &query, body);
    }
    if let Some((repository, digest)) = rest.split_once("/blobs/") {
        return match content.blobs.get(&(repository.to_owned(), digest.to_owned())) {
            Some(blob) if parts.method == Method::HEAD => {
                reply(200, &[("content-length", &blob.len().to_string())], "")
            }
            Some(blob) => {
                match parts.headers.get("range").and_then(|range| range.to_str().unwrap().strip_prefix("bytes=")) {
                    Some(range) => {
                        let (first, last) = range.split_once('-').unwrap();
                        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                        reply(206, &[], blob.slice(first..=last))
                    }
                    None => reply(200, &[], blob.clone()),
                }
            }
            None => reply(404, &[], r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
        };
    }
    let (repository, reference) = rest.split_once("/manifests/").unwrap();
    let key = (repository.to_owned(), reference.to_owned());
    if parts.method == Method::PUT {
        let digest = sha256_digest(&body).to_string();
        content.manifests.insert((repository.into(), digest.clone()), (content_type.clone(), body.clone()));
        if !reference.starts_with("sha256:") && content.rival > 0 {
            content.rival -= 1;
            content.manifests.insert(key, (content_type, Bytes::from_static(b"{\"rival\":1}")));
        } else {
            content.manifests.insert(key, (content_type, body));
        }
        return reply(StatusCode::CREATED.as_u16(), &[("docker-content-digest", &digest)], "");
    }
    match content.manifests.get(&key) {
        Some((media_type, bytes)) => reply(
            200,
            &[
                ("content-type", media_type),
                ("docker-content-digest", sha256_digest(bytes).as_ref()),
                ("content-length", &bytes.len().to_string()),
            ],
            if parts.method == Method::HEAD { Bytes::new() } else { bytes.clone() },
        ),
        None => reply(404, &[], r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
    }
}

/// Keeps the write of a tag that is to come late.
fn is_held(server: &Server, method: &Method, rest: &str, content_type: &str, body: &Bytes) -> bool {
    let Some((repository, tag)) = rest.split_once("/manifests/").filter(|(_, of)| !of.starts_with("sha256:")) else {
        return false;
    };
    let mut content = server.content.lock().unwrap();
    if *method != Method::PUT || content.late == 0 {
        return false;
    }
    content.late -= 1;
    content.held.push(((repository.to_owned(), tag.to_owned()), (content_type.to_owned(), body.clone())));
    true
}

/// A manifest that is as long as it may be, and comes a byte at a time.
fn endless() -> Response {
    let bytes = futures::stream::unfold((), |()| async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
    });
    reply(200, &[("content-type", "application/vnd.oci.image.index.v1+json")], Body::from_stream(bytes))
}

/// A part of a blob, or its end.
fn upload(
    content: &mut Content,
    repository: &str,
    parts: &http::request::Parts,
    query: &HashMap<String, String>,
    body: Bytes,
) -> Response {
    match parts.method {
        Method::PATCH => {
            let from = content.parts.len();
            let range = format!("{from}-{}", from + body.len() - 1);
            if parts.headers["content-range"] != range.as_str() {
                return reply(416, &[], "");
            }
            content.parts.extend_from_slice(&body);
            reply(202, &[("location", &format!("/v2/{repository}/blobs/uploads/1?from={range}"))], "")
        }
        Method::PUT => {
            let digest = query["digest"].clone();
            let body = if body.is_empty() { std::mem::take(&mut content.parts).into() } else { body };
            if sha256_digest(&body).to_string() != digest {
                return reply(400, &[], "digest");
            }
            content.blobs.insert((repository.into(), digest), body);
            reply(201, &[], "")
        }
        _ => reply(405, &[], ""),
    }
}
