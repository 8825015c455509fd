//! The Git server behind any password: a front that takes whatever comes, logs in by itself, and keeps what a client says
//! that it has.

use std::io::Read as _;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;

use crate::Cluster;
use crate::hostile_server::{HostileServer, reply};
use crate::plain_front::{LARGEST_BODY, client, pass};

/// A front. It ends with the value.
pub struct GitFront {
    server: HostileServer,
    upstream: String,
    told: Arc<Mutex<String>>,
}

impl GitFront {
    /// Starts one; its certificate is of [`crate::hostile_server::ca`].
    pub async fn start(cluster: &Cluster) -> Self {
        let login = STANDARD.encode(format!("{}:{}", cluster.git_user, cluster.git_password));
        let login = HeaderValue::from_str(&format!("Basic {login}")).expect("base64 is ASCII");
        let upstream = cluster.git.trim_start_matches("https://").split('/').next().unwrap_or_default().to_owned();
        let http = client(&cluster.git_ca);
        let told = Arc::<Mutex<String>>::default();
        let (host, heard) = (upstream.clone(), Arc::clone(&told));
        let router = Router::new().fallback(move |request: Request| {
            let (http, host, login, heard) = (http.clone(), host.clone(), login.clone(), Arc::clone(&heard));
            async move {
                if !request.headers().contains_key(header::AUTHORIZATION) {
                    return reply(401, &[("www-authenticate", "Basic realm=\"git\"")], "");
                }
                let (mut parts, body) = request.into_parts();
                let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
                let mut plain = body.to_vec();
                if parts.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip") {
                    plain.clear();
                    GzDecoder::new(&body[..]).read_to_end(&mut plain).expect("git sends gzip");
                }
                heard.lock().expect("no test panics while it holds this").push_str(&String::from_utf8_lossy(&plain));
                parts.headers.insert(header::AUTHORIZATION, login);
                pass(http, host, Request::from_parts(parts, Body::from(body))).await
            }
        });
        Self { server: HostileServer::serve(cluster, router).await, upstream, told }
    }

    /// The address of a repository, by way of the front.
    #[must_use]
    pub fn url_of(&self, url: &str) -> String {
        url.replacen(&self.upstream, &self.server.host, 1)
    }

    /// Whether somebody has said, since this was asked last, that he has this commit.
    #[must_use]
    pub fn was_told(&self, commit: &str) -> bool {
        let told = std::mem::take(&mut *self.told.lock().expect("no test panics while it holds this"));
        ["have", "shallow"].iter().any(|word| told.contains(&format!("{word} {commit}")))
    }
}
