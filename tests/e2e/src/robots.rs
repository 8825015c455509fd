//! A registry with an account a team, as Harbor and GitLab have them: a front before a real one, where the account of a team
//! may do all with the repositories below a directory of the team's name, and nothing with others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::Cluster;
use crate::hostile_server::{HostileServer, reply};
use crate::registries::Login;
use crate::registry_front::{Habit, client, pass};

/// The largest body that is passed on.
const LARGEST_BODY: usize = 64 << 20;
/// The password of every account.
const PASSWORD: &str = "robot";

/// How an account is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// For a token, which holds as much of what is wanted as the account may, as Harbor's does.
    Token,
    /// For a token, which is refused where more is wanted than the account may.
    WholeToken,
    /// For user and password themselves.
    Password,
}

/// The front. It ends with the value.
pub struct Robots {
    /// `address:port`.
    pub host: String,
    done: Arc<Mutex<BTreeSet<String>>>,
    _server: HostileServer,
}

impl Robots {
    /// Before the first registry.
    pub async fn before(cluster: &Cluster, asks: Asks) -> Self {
        let (http, login) = (client(cluster), Login::first());
        let done = Arc::<Mutex<BTreeSet<String>>>::default();
        let noted = Arc::clone(&done);
        let router = Router::new().fallback(move |request: Request| {
            let (http, login, noted) = (http.clone(), login.clone(), Arc::clone(&noted));
            async move {
                let (mut parts, body) = request.into_parts();
                let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
                let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
                if parts.uri.path() == "/token" {
                    return token(asks, &parts.headers, parts.uri.query().unwrap_or_default(), &body);
                }
                let needed = needed(&parts.method, &parts.uri);
                let shown = shown(asks, &parts.headers);
                if let Some(refused) = refusal(asks, host, shown.as_ref(), &needed) {
                    return refused;
                }
                let account = shown.map(|(account, _)| account).unwrap_or_default();
                for need in &needed {
                    noted.lock().expect("no test panics while it holds this").insert(format!("{account} {need}"));
                }
                let real = BASE64_STANDARD.encode(format!("{}:{}", login.user, login.password));
                let real = format!("Basic {real}").parse().expect("base64 is a header's value");
                parts.headers.insert(header::AUTHORIZATION, real);
                pass(&http, &login.host, Habit::Watch, parts.method, &parts.uri, parts.headers, body).await
            }
        });
        let server = HostileServer::serve(cluster, router).await;
        Self { host: server.host.clone(), done, _server: server }
    }

    /// The account of a team, at this front.
    #[must_use]
    pub fn login(&self, team: &str) -> Login {
        Login { host: self.host.clone(), user: format!("robot${team}"), password: PASSWORD.to_owned() }
    }

    /// Who did what with which repository, such as `robot$team-a e2e/x/team-a/base:pull`.
    #[must_use]
    pub fn done(&self) -> BTreeSet<String> {
        self.done.lock().expect("no test panics while it holds this").clone()
    }
}

/// Whether the account of a team may do something with a repository (`path:action`).
fn may(account: &str, need: &str) -> bool {
    account.strip_prefix("robot$").is_some_and(|team| need.split('/').any(|part| part == team))
}

/// What a request needs, as `path:action`: of a mount, both repositories.
fn needed(method: &Method, uri: &Uri) -> Vec<String> {
    let path = uri.path().strip_prefix("/v2/").unwrap_or_default();
    let Some(end) = path.find("/blobs/").or_else(|| path.find("/manifests/")) else { return Vec::new() };
    let action = if matches!(*method, Method::GET | Method::HEAD) { "pull" } else { "push" };
    let from = uri.query().into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("from="));
    let from = from.map(|from| format!("{}:pull", from.replace("%2F", "/")));
    [format!("{}:{action}", &path[..end])].into_iter().chain(from).collect()
}

/// The account that a request shows, and what its token allows; without tokens: everything that it may.
fn shown(asks: Asks, headers: &HeaderMap) -> Option<(String, Option<BTreeSet<String>>)> {
    let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    if asks == Asks::Password {
        return Some((account(header)?, None));
    }
    let token = BASE64_STANDARD.decode(header.strip_prefix("Bearer ")?).ok()?;
    let token = String::from_utf8(token).ok()?;
    let mut words = token.split(' ').map(str::to_owned);
    Some((words.next()?, Some(words.collect())))
}

/// The account of a `Basic` header with the right password.
fn account(header: &str) -> Option<String> {
    let decoded = BASE64_STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    (password == PASSWORD).then(|| user.to_owned())
}

fn refusal(
    asks: Asks,
    host: &str,
    shown: Option<&(String, Option<BTreeSet<String>>)>,
    needed: &[String],
) -> Option<Response> {
    let scope = needed.iter().map(|need| format!("repository:{need}")).collect::<Vec<_>>().join(" ");
    let challenge = |error: &str| match asks {
        Asks::Password => "Basic realm=\"front\"".to_owned(),
        Asks::Token | Asks::WholeToken => {
            format!("Bearer realm=\"https://{host}/token\",service=\"front\",scope=\"{scope}\"{error}")
        }
    };
    let unauthorized = |error| {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Some(reply(401, &[("www-authenticate", &challenge(error))], body))
    };
    let Some((account, rights)) = shown else { return unauthorized("") };
    match rights {
        Some(rights) if needed.iter().all(|need| rights.contains(need)) => None,
        Some(_) => unauthorized(",error=\"insufficient_scope\""),
        None if needed.iter().all(|need| may(account, need)) => None,
        None => Some(reply(403, &[], r#"{"errors":[{"code":"DENIED","message":"an account of another project"}]}"#)),
    }
}

/// Answers with a token, which is the account and its rights in plain text.
fn token(asks: Asks, headers: &HeaderMap, query: &str, body: &[u8]) -> Response {
    let form = format!("https://front/?{query}&{}", String::from_utf8_lossy(body));
    let form: Vec<(String, String)> = match reqwest::Url::parse(&form) {
        Ok(form) => form.query_pairs().into_owned().collect(),
        Err(error) => return reply(400, &[], error.to_string()),
    };
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let by_header = headers.get(header::AUTHORIZATION).and_then(|header| account(header.to_str().ok()?));
    let by_form = field("username").filter(|_| field("password").as_deref() == Some(PASSWORD));
    let Some(account) = by_header.or(by_form) else { return reply(401, &[], "") };
    let scopes = form.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
    let wanted: Vec<String> = scopes
        .filter_map(|scope| scope.strip_prefix("repository:")?.rsplit_once(':'))
        .flat_map(|(path, actions)| actions.split(',').map(move |action| format!("{path}:{action}")))
        .collect();
    let rights: Vec<String> = wanted.iter().filter(|need| may(&account, need)).cloned().collect();
    if asks == Asks::WholeToken && rights.len() < wanted.len() {
        return reply(403, &[], r#"{"errors":[{"code":"DENIED","message":"access forbidden"}]}"#);
    }
    let token = BASE64_STANDARD.encode([vec![account], rights].concat().join(" "));
    let answer = serde_json::json!({"token": token, "access_token": token, "expires_in": 300});
    reply(200, &[("content-type", "application/json")], answer.to_string())
}
