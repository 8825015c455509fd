//! A registry with the habits of others: a front that passes requests on to a real one, refuses some of them first, and
//! keeps what was asked for. Its certificate is of [`hostile_server::ca`](crate::hostile_server::ca).

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::Response;
use reqwest::Certificate;

use crate::Cluster;
use crate::hostile_server::{HostileServer, reply};

/// The largest body that is passed on.
const LARGEST_BODY: usize = 256 << 20;

/// What a front does of its own.
#[derive(Clone, Copy, Debug)]
pub enum Habit {
    /// Nothing: it only keeps what was asked for.
    Watch,
    /// Refuses each request of this number and its multiples: 429 with `Retry-After: 1`, as Docker Hub and clouds do.
    RateLimit(usize),
    /// Refuses bodies of more bytes: 413, as an nginx before a registry does by `client_max_body_size`.
    LargestBody(usize),
    /// Takes a mount of another repository's blob for the begin of an upload, as a registry may
    /// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#mounting-a-blob-from-another-repository>).
    NoMounts,
    /// Has a second server, of another address and the same CA, which hands out tokens and blobs.
    Apart,
}

/// A request, and what came of it.
#[derive(Clone, Debug)]
pub struct Passed {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// Length of the body, in bytes.
    pub length: usize,
    /// `Content-Range` of an upload's chunk; empty where there is none.
    pub range: String,
    /// The client.
    pub user_agent: String,
    /// The status that was answered.
    pub status: u16,
}

impl Passed {
    /// Whether it ends the upload of a blob, or is all of one.
    #[must_use]
    pub fn is_upload(&self) -> bool {
        let query = self.uri.query().unwrap_or_default();
        self.status == 201
            && self.uri.path().contains("/blobs/uploads/")
            && query.contains("digest=")
            && !query.contains("mount=")
    }

    /// Whether it mounted a blob of another repository.
    #[must_use]
    pub fn is_mount(&self) -> bool {
        self.status == 201 && self.method == Method::POST && self.uri.query().unwrap_or_default().contains("mount=")
    }
}

/// A front. It ends with the value.
pub struct RegistryFront {
    /// `address:port`.
    pub host: String,
    passed: Arc<Mutex<Vec<Passed>>>,
    _server: HostileServer,
    /// Of [`Habit::Apart`].
    aside: Option<HostileServer>,
}

impl RegistryFront {
    /// Before the registry at `upstream`, which has a certificate of the cluster's private CA.
    pub async fn before(cluster: &Cluster, upstream: &str, habit: Habit) -> Self {
        let http = client(cluster);
        let passed = Arc::<Mutex<Vec<Passed>>>::default();
        let (noted, upstream) = (Arc::clone(&passed), upstream.to_owned());
        let aside = match habit {
            Habit::Apart => Some(HostileServer::serve(cluster, aside(http.clone(), upstream.clone())).await),
            _ => None,
        };
        let place = aside.as_ref().map(|aside| aside.host.clone()).unwrap_or_default();
        let router = Router::new().fallback(move |request: Request| {
            let (noted, upstream, http, place) = (Arc::clone(&noted), upstream.clone(), http.clone(), place.clone());
            async move {
                let (mut parts, body) = request.into_parts();
                let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
                let text =
                    |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
                let number = {
                    let mut noted = noted.lock().expect("no test panics while it holds this");
                    noted.push(Passed {
                        method: parts.method.clone(),
                        uri: parts.uri.clone(),
                        length: body.len(),
                        range: text(header::CONTENT_RANGE),
                        user_agent: text(header::USER_AGENT),
                        status: 0,
                    });
                    noted.len()
                };
                let sent = if place.is_empty() { None } else { send_aside(&place, &mut parts) };
                let response = match sent.or_else(|| refusal(habit, number, body.len())) {
                    Some(refusal) => refusal,
                    None => pass(&http, &upstream, habit, parts.method, &parts.uri, parts.headers, body).await,
                };
                noted.lock().expect("no test panics while it holds this")[number - 1].status =
                    response.status().as_u16();
                response
            }
        });
        let server = HostileServer::serve(cluster, router).await;
        Self { host: server.host.clone(), passed, _server: server, aside }
    }

    /// Where tokens and blobs come from.
    ///
    /// # Panics
    /// With another habit than [`Habit::Apart`].
    #[must_use]
    pub fn aside(&self) -> &str {
        &self.aside.as_ref().expect("this front has a second server").host
    }

    /// What was asked for until now.
    #[must_use]
    pub fn passed(&self) -> Vec<Passed> {
        self.passed.lock().expect("no test panics while it holds this").clone()
    }
}

/// A client of the registries behind fronts.
pub(crate) fn client(cluster: &Cluster) -> reqwest::Client {
    let ca = Certificate::from_pem_bundle(cluster.registry_ca.as_bytes()).expect("KILN_REGISTRY_CA holds PEM");
    let builder = reqwest::Client::builder().tls_certs_only(ca).redirect(reqwest::redirect::Policy::none());
    builder.build().expect("a client can be made")
}

/// Sends a request to `place` for its token, or for a blob. The token is the login that was shown there.
fn send_aside(place: &str, parts: &mut Parts) -> Option<Response> {
    let shown = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(token) = shown.strip_prefix("Bearer ").map(str::to_owned) else {
        let challenge = format!("Bearer realm=\"https://{place}/token\",service=\"front\"");
        return Some(reply(401, &[("www-authenticate", &challenge)], r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#));
    };
    if parts.method == Method::GET && parts.uri.path().contains("/blobs/sha256:") {
        // As clouds do it: the address itself is the credential.
        let location = format!("https://{place}{}?login={token}", parts.uri.path());
        return Some(reply(307, &[("location", &location)], ""));
    }
    let login = format!("Basic {token}").parse().expect("a header's value, as it was one before");
    parts.headers.insert(header::AUTHORIZATION, login);
    None
}

/// The second server of [`Habit::Apart`].
fn aside(http: reqwest::Client, upstream: String) -> Router {
    Router::new().fallback(move |request: Request| {
        let (upstream, http) = (upstream.clone(), http.clone());
        async move {
            let (mut parts, _) = request.into_parts();
            let query = parts.uri.query().unwrap_or_default();
            let login = query.split('&').find_map(|pair| pair.strip_prefix("login=")).map(str::to_owned);
            let Some(login) = login else {
                let shown = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
                let Some(login) = shown.and_then(|shown| shown.strip_prefix("Basic ")) else {
                    return reply(401, &[], "");
                };
                let token = format!(r#"{{"token":"{login}","access_token":"{login}","expires_in":300}}"#);
                return reply(200, &[("content-type", "application/json")], token);
            };
            let login = format!("Basic {login}").parse().expect("a header's value, as it was one before");
            parts.headers.insert(header::AUTHORIZATION, login);
            parts.headers.remove(header::HOST);
            let path: Uri = parts.uri.path().parse().expect("a path");
            pass(&http, &upstream, Habit::Watch, parts.method, &path, parts.headers, Bytes::new()).await
        }
    })
}

fn refusal(habit: Habit, number: usize, length: usize) -> Option<Response> {
    match habit {
        Habit::RateLimit(every) if number.is_multiple_of(every) => Some(reply(
            429,
            &[("retry-after", "1"), ("content-type", "application/json")],
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"you have reached your rate limit"}]}"#,
        )),
        Habit::LargestBody(most) if length > most => {
            Some(reply(413, &[("content-type", "text/html")], "<html>413 Request Entity Too Large</html>"))
        }
        _ => None,
    }
}

pub(crate) async fn pass(
    http: &reqwest::Client,
    upstream: &str,
    habit: Habit,
    method: Method,
    uri: &Uri,
    mut headers: HeaderMap,
    body: Bytes,
) -> Response {
    let query = uri.query().unwrap_or_default();
    let mount = matches!(habit, Habit::NoMounts) && query.contains("mount=");
    let url = match query {
        query if query.is_empty() || mount => format!("https://{upstream}{}", uri.path()),
        query => format!("https://{upstream}{}?{query}", uri.path()),
    };
    // With the client's own Host, so that the registry's answers name this front. The length is the body's.
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONNECTION);
    headers.remove(header::CONTENT_LENGTH);
    let head = method == Method::HEAD;
    let answer = match http.request(method, url).headers(headers).body(body).send().await {
        Ok(answer) => answer,
        Err(error) => return reply(502, &[], error.to_string()),
    };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONNECTION);
    let body = answer.bytes().await.unwrap_or_default();
    let mut response = Response::new(if head { Body::empty() } else { Body::from(body) });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
