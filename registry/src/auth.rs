//! Answers to a registry's challenges: Basic, or a token from its token service, kept until it expires
//! (<https://distribution.github.io/distribution/spec/auth/token/>, `/oauth/`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, header};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::error::{Attempt, Error, ErrorKind};
use super::login::{Login, LoginSecret};
use super::reference::Repository;
use crate::http_client::{HttpClient, SecretString, TransportFailure, read_bounded, read_prefix};

/// More scopes than one build needs; the bound is for a client that is kept for long.
const KEPT_TOKENS: usize = 64;
const TOKEN_ANSWER_LIMIT: usize = 256 * 1024;
/// What a token's life is when the service does not say.
const DEFAULT_LIFE: u64 = 60;

/// A right that a request needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Scope(String);

impl Scope {
    pub(super) fn pull(repository: &Repository) -> Self {
        Self(format!("repository:{}:pull", repository.path))
    }

    pub(super) fn push(repository: &Repository) -> Self {
        Self(format!("repository:{}:pull,push", repository.path))
    }

    /// `repository:path:` of `repository:path:actions`.
    fn resource(scope: &str) -> &str {
        scope.rfind(':').map_or(scope, |end| &scope[..=end])
    }
}

#[derive(Debug)]
struct Token {
    header: HeaderValue,
    expires: Instant,
}

/// What a client knows about authentication; by registry.
#[derive(Debug, Default)]
pub(super) struct Auth {
    challenges: Mutex<HashMap<String, Challenge>>,
    tokens: Mutex<HashMap<(String, Vec<Scope>), Token>>,
}

/// Who asks for an authorisation, and for what.
pub(super) struct Asking<'a> {
    pub(super) http: &'a HttpClient,
    pub(super) login: Option<&'a Login>,
    pub(super) attempt: &'a Attempt,
    pub(super) scopes: &'a [Scope],
    /// Whether the registry itself is spoken to without TLS; its token service may be then, too.
    pub(super) plain_http: bool,
}

impl Auth {
    /// Whether the registry's last challenge was for user and password themselves. `None`: there was none.
    pub(super) fn is_basic(&self, registry: &str) -> Option<bool> {
        lock(&self.challenges).get(registry).map(|challenge| *challenge == Challenge::Basic)
    }

    /// The `Authorization` to send from the start, as far as the registry's challenge is known already.
    pub(super) async fn known(&self, asking: &Asking<'_>) -> Result<Option<HeaderValue>, Error> {
        let registry = &asking.attempt.registry;
        let challenge = lock(&self.challenges).get(registry).cloned();
        let Some(challenge) = challenge else { return Ok(None) };
        let key = (registry.clone(), asking.scopes.to_vec());
        let kept = lock(&self.tokens).get(&key).filter(|t| t.expires > Instant::now()).map(|t| t.header.clone());
        match kept {
            Some(header) => Ok(Some(header)),
            None => self.answer(asking, challenge).await,
        }
    }

    /// Answers a challenge; `None` where there is no credential to answer it with.
    pub(super) async fn answer(&self, asking: &Asking<'_>, challenge: Challenge) -> Result<Option<HeaderValue>, Error> {
        let registry = asking.attempt.registry.clone();
        let header = match &challenge {
            Challenge::Basic => match asking.login {
                Some(Login { username, secret: LoginSecret::Password(password), .. }) => {
                    Some(basic(asking.attempt, username, password)?)
                }
                // An identity token means nothing to a registry without a token service.
                _ => None,
            },
            Challenge::Bearer { realm, service, scope } => {
                let (header, life) = token(asking, realm, service.as_deref(), scope.as_deref()).await?;
                let mut tokens = lock(&self.tokens);
                let now = Instant::now();
                if tokens.len() >= KEPT_TOKENS {
                    tokens.retain(|_, token| token.expires > now);
                }
                if tokens.len() >= KEPT_TOKENS {
                    tokens.clear();
                }
                let token = Token { header: header.clone(), expires: now + life };
                tokens.insert((registry.clone(), asking.scopes.to_vec()), token);
                Some(header)
            }
        };
        // The scope is that of the request at hand.
        let challenge = match challenge {
            Challenge::Bearer { realm, service, .. } => Challenge::Bearer { realm, service, scope: None },
            Challenge::Basic => Challenge::Basic,
        };
        lock(&self.challenges).insert(registry, challenge);
        Ok(header)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn basic(attempt: &Attempt, username: &str, password: &SecretString) -> Result<HeaderValue, Error> {
    secret_header(attempt, &format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose()))))
}

fn secret_header(attempt: &Attempt, text: &str) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(text)
        .map_err(|_| attempt.protocol("the token service gave a token that no header can carry"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Fetches a token, and says how long to keep it.
async fn token(
    asking: &Asking<'_>,
    realm: &str,
    service: Option<&str>,
    challenged: Option<&str>,
) -> Result<(HeaderValue, Duration), Error> {
    let attempt = asking.attempt;
    let url = realm_url(realm, asking.plain_http).map_err(|cause| attempt.protocol(cause))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    // What the registry asks for beyond what is known to be needed.
    let extra = challenged
        .into_iter()
        .flat_map(str::split_whitespace)
        .filter(|scope| !asking.scopes.iter().any(|known| Scope::resource(&known.0) == Scope::resource(scope)));
    let scopes = asking.scopes.iter().map(|s| s.0.as_str()).chain(extra);

    let transport = |failure: &TransportFailure| {
        let error = attempt.transport(failure);
        Error { cause: format!("its token service {host} was not reached: {}", error.cause), ..error }
    };
    let request = match asking.login.map(|login| (&login.username, &login.secret)) {
        Some((_, LoginSecret::IdentityToken(refresh))) => {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("client_id", "kiln");
            if let Some(service) = service {
                form.append_pair("service", service);
            }
            form.append_pair("scope", &scopes.collect::<Vec<_>>().join(" "));
            form.append_pair("refresh_token", refresh.expose());
            asking
                .http
                .request(Method::POST, url)
                .map_err(|e| transport(&e))?
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.finish())
        }
        login => {
            let mut url = url;
            {
                let mut query = url.query_pairs_mut();
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
                for scope in scopes {
                    query.append_pair("scope", scope);
                }
                query.append_pair("client_id", "kiln");
            }
            let request = asking.http.request(Method::GET, url).map_err(|e| transport(&e))?;
            match login {
                Some((username, LoginSecret::Password(password))) => {
                    request.header(header::AUTHORIZATION, basic(attempt, username, password)?)
                }
                _ => request,
            }
        }
    };
    let response = request.send().await.map_err(|e| transport(&TransportFailure::from_reqwest(&e)))?;
    read_token(asking, response).await
}

async fn read_token(asking: &Asking<'_>, response: Response) -> Result<(HeaderValue, Duration), Error> {
    let attempt = asking.attempt;
    let status = response.status();
    if !status.is_success() {
        let headers = response.headers().clone();
        let body = mask(&read_prefix(response, 4096).await, asking.login);
        let error = attempt.refused(status, &headers, &body, jiff::Timestamp::now());
        return Err(match error.kind {
            // Some token services answer a wrong password with 400 or 403.
            ErrorKind::Unauthorized | ErrorKind::Denied | ErrorKind::Protocol
                if asking.login.is_some() && status.is_client_error() =>
            {
                Error {
                    kind: ErrorKind::Unauthorized,
                    cause: format!("the registry's token service refused the credential (HTTP {})", status.as_u16()),
                    ..error
                }
            }
            ErrorKind::NameUnknown | ErrorKind::NotFound => Error { kind: ErrorKind::Protocol, ..error },
            _ => error,
        });
    }
    let body = read_bounded(response, TOKEN_ANSWER_LIMIT).await.map_err(|e| attempt.body(&e))?;
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|_| attempt.protocol("its token service's answer is not JSON with a token"))?;
    let token = answer
        .token
        .filter(|t| !t.is_empty())
        .or(answer.access_token)
        .filter(|t| !t.is_empty())
        .ok_or_else(|| attempt.protocol("its token service's answer holds no token"))?;
    let life = answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(1, 24 * 3600);
    // A little early, so that it does not expire on its way.
    let life = Duration::from_secs(life.saturating_sub((life / 5).min(10)));
    Ok((secret_header(attempt, &format!("Bearer {token}"))?, life))
}

/// The token service's address: https, or http where the registry is so itself.
fn realm_url(realm: &str, plain_http: bool) -> Result<Url, &'static str> {
    let url: Url = realm.parse().map_err(|_| "the registry names a token service that is no URL")?;
    if !(url.scheme() == "https" || (plain_http && url.scheme() == "http")) {
        return Err("the registry names a token service without https, to which Kiln sends no credential");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the registry names a token service with a user name in its URL");
    }
    Ok(url)
}

/// A server's text without the credential, should it have echoed it, in any of the forms in which it is sent.
pub(super) fn mask(body: &[u8], login: Option<&Login>) -> Vec<u8> {
    let text = String::from_utf8_lossy(body).into_owned();
    let Some(Login { username, secret, .. }) = login.filter(|login| login.secret.expose().len() >= 4) else {
        return text.into_bytes();
    };
    let secret = secret.expose();
    let forms = [
        STANDARD.encode(format!("{username}:{secret}")),
        url::form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
        secret.to_owned(),
    ];
    forms.iter().fold(text, |text, form| text.replace(form, "***")).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn realms() {
        assert!(realm_url("https://auth.docker.io/token", false).is_ok());
        assert!(realm_url("http://auth/token", false).is_err());
        assert!(realm_url("http://auth/token", true).is_ok());
        assert!(realm_url("https://user@auth/token", false).is_err());
        assert!(realm_url("file:///etc/passwd", true).is_err());
        assert!(realm_url("/token", true).is_err());
    }

    #[test]
    fn masks_echoes() {
        let login = Login {
            registry: "r".into(),
            path: String::new(),
            username: "me".into(),
            secret: LoginSecret::Password(SecretString::new("hunter2")),
        };
        assert_eq!(mask(b"bad password hunter2!", Some(&login)), b"bad password ***!");
        // As they are sent: proxies answer with the request's headers at times.
        let sent = STANDARD.encode("me:hunter2");
        let echoed = mask(format!("Authorization: Basic {sent}").as_bytes(), Some(&login));
        assert!(!String::from_utf8_lossy(&echoed).contains(&sent), "{}", String::from_utf8_lossy(&echoed));
        let login = Login { secret: LoginSecret::IdentityToken(SecretString::new("a+b/c==d")), ..login };
        let echoed = mask(b"grant_type=refresh_token&refresh_token=a%2Bb%2Fc%3D%3Dd", Some(&login));
        assert_eq!(echoed, b"grant_type=refresh_token&refresh_token=***");
    }
}
