//! Registry clients kept from one reconcile to the next, with what they know: how each registry authenticates, and
//! tokens that are still good.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::client::{Client, Scheme};
use super::login::Login;
use crate::http_client::HttpClient;

/// How many clients are kept.
const KEPT: usize = 256;
/// A client that nobody asked for this long is dropped, and its credential with it.
const IDLE: Duration = Duration::from_mins(10);

/// Hands out [`Client`]s, one per HTTP client, scheme and login. Cheap to clone; clones share what is kept.
#[derive(Clone, Debug, Default)]
pub struct RegistryClients {
    /// The most recently used last.
    kept: Arc<Mutex<Vec<(Instant, Client)>>>,
}

impl RegistryClients {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The client that [`Client::new`] would make, kept since the last time if there was one. A changed login makes
    /// another client, so a renewed credential is never served by an old one's token.
    #[must_use]
    pub fn get(&self, http: &HttpClient, scheme: Scheme, login: Option<&Login>) -> Client {
        self.get_at(http, scheme, login, Instant::now())
    }

    fn get_at(&self, http: &HttpClient, scheme: Scheme, login: Option<&Login>, now: Instant) -> Client {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(used, _)| now.saturating_duration_since(*used) < IDLE);
        let client = match kept.iter().position(|(_, client)| client.is_of(http, scheme, login)) {
            Some(at) => kept.remove(at).1,
            None => Client::new(http.clone(), scheme, login.cloned()),
        };
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((now, client.clone()));
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoginSecret;
    use crate::http_client::{AddressPolicy, Clients, SecretString};

    fn login(registry: &str, password: &str) -> Login {
        let secret = LoginSecret::Password(SecretString::new(password));
        Login { registry: registry.into(), path: String::new(), username: "me".into(), secret }
    }

    #[test]
    fn kept_by_what_makes_them_differ_until_idle() {
        let clients = RegistryClients::new();
        let https = Clients::new();
        let open = https.get(None, AddressPolicy::new(true)).unwrap();
        let closed = https.get(None, AddressPolicy::new(false)).unwrap();
        let start = Instant::now();
        let (a, b, other) = (login("a", "x"), login("a", "y"), login("b", "x"));
        let all = [
            (&open, Scheme::Https, None),
            (&closed, Scheme::Https, None),
            (&open, Scheme::Http, None),
            (&open, Scheme::Https, Some(&a)),
            (&open, Scheme::Https, Some(&b)),
            (&open, Scheme::Https, Some(&other)),
        ];
        let get = |now| all.map(|(http, scheme, login)| clients.get_at(http, scheme, login, now));
        let (first, again) = (get(start), get(start + IDLE / 2));
        for (i, client) in first.iter().enumerate() {
            for (j, other) in again.iter().enumerate() {
                assert_eq!(Arc::ptr_eq(&client.inner, &other.inner), i == j, "{i} {j}");
            }
        }
        assert!(Arc::ptr_eq(&get(start + IDLE)[0].inner, &first[0].inner), "use keeps it");
        assert!(!Arc::ptr_eq(&get(start + IDLE * 3)[0].inner, &first[0].inner), "idleness does not");
        assert_eq!(clients.kept.lock().unwrap().len(), 6);
    }

    #[test]
    fn bounded() {
        let clients = RegistryClients::new();
        let http = Clients::new().get(None, AddressPolicy::default()).unwrap();
        for i in 0..KEPT + 10 {
            let _ = clients.get(&http, Scheme::Https, Some(&login("a", &i.to_string())));
        }
        assert_eq!(clients.kept.lock().unwrap().len(), KEPT);
    }
}
