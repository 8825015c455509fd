//! Credentials for registries, read from a Secret's data: Docker's configuration file, or a user name and password.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use k8s_openapi::ByteString;
use serde::Deserialize;

use super::login::{Login, LoginSecret};
use super::reference::{DOCKER_HUB, Repository, is_docker_hub};
use crate::http_client::SecretString;

const CONFIG_KEY: &str = ".dockerconfigjson";
/// `docker login` writes padding, people who write the file by hand often do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The logins that one Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// For whatever registry the Secret is named for.
    Plain { username: String, password: SecretString },
    /// For what the keys of Docker's file name.
    Named(Vec<Login>),
}

/// What is wrong with a Secret that should hold a registry's credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// None of the known keys.
    #[error("it has neither the key .dockerconfigjson nor the keys username and password{}", found(.0))]
    UnknownKeys(Vec<String>),
    /// A value is no text, or holds what no header can carry.
    #[error("the value of {0} is not plain text without line breaks")]
    NotText(&'static str),
    /// `.dockerconfigjson` is not what Docker writes.
    #[error("{CONFIG_KEY} is not a Docker configuration file: {0}")]
    Malformed(String),
    /// The file points to a program on somebody's machine.
    #[error(
        "{CONFIG_KEY} names a credential helper ({0}) instead of credentials; log in with a file of its own (DOCKER_CONFIG=$(mktemp -d) docker login …), or make the Secret with kubectl create secret docker-registry"
    )]
    Helper(String),
    /// An entry's `auth` cannot be read.
    #[error("the entry {0} of {CONFIG_KEY} is broken: auth must be the base64 of username:password")]
    BrokenEntry(String),
    /// There is no entry in the file.
    #[error("{CONFIG_KEY} holds no credentials: its auths are empty")]
    Empty,
}

fn found(keys: &[String]) -> String {
    if keys.is_empty() { " (it is empty)".into() } else { format!(" (it has {})", keys.join(", ")) }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Credentials {
    /// Reads a Secret's data; its keys tell what it holds, not its type.
    pub fn from_secret(data: &BTreeMap<String, ByteString>) -> Result<Self, CredentialsError> {
        if let Some(config) = data.get(CONFIG_KEY) {
            return Self::from_config(&config.0);
        }
        let (Some(username), Some(password)) = (data.get("username"), data.get("password")) else {
            return Err(CredentialsError::UnknownKeys(data.keys().cloned().collect()));
        };
        // A file written by an editor ends in a line break, which is never part of a credential.
        Ok(Self(Kind::Plain {
            username: line(&username.0).ok_or(CredentialsError::NotText("username"))?,
            password: SecretString::new(line(&password.0).ok_or(CredentialsError::NotText("password"))?),
        }))
    }

    fn from_config(json: &[u8]) -> Result<Self, CredentialsError> {
        // serde_json's messages can quote values, so only the place is passed on.
        let file: ConfigFile = serde_json::from_slice(json)
            .map_err(|e| CredentialsError::Malformed(format!("line {}, column {}", e.line(), e.column())))?;
        let mut logins = Vec::new();
        for (key, entry) in file.auths {
            let read = account(entry).map_err(|()| CredentialsError::BrokenEntry(key.clone()))?;
            let Some((username, secret)) = read else { continue };
            let (registry, path) = named(&key);
            // What names no registry is shown to none.
            if registry.is_empty() {
                continue;
            }
            logins.push(Login { registry, path, username, secret });
        }
        if logins.is_empty() {
            let helper = file.creds_store.or_else(|| file.cred_helpers.into_values().next());
            return Err(helper.map_or(CredentialsError::Empty, CredentialsError::Helper));
        }
        Ok(Self(Kind::Named(logins)))
    }

    /// The login for `repository`.
    #[must_use]
    pub fn for_repository(&self, repository: &Repository) -> Option<Login> {
        Login::choose(&self.logins(Some(repository)), repository)
    }

    /// The logins for what is at the registry of `any`.
    #[must_use]
    pub fn for_registry(&self, any: &Repository) -> Vec<Login> {
        let mut logins = self.logins(Some(any));
        logins.retain(|login| login.is_of(&any.registry));
        for login in &mut logins {
            login.registry.clone_from(&any.registry);
        }
        logins
    }

    /// All logins. `repository` is the one that the Secret is named for, if any: a `username`/`password` Secret is for all of
    /// its registry, and else for none.
    #[must_use]
    pub fn logins(&self, repository: Option<&Repository>) -> Vec<Login> {
        match &self.0 {
            Kind::Plain { username, password } => {
                let login = |repository: &Repository| Login {
                    registry: repository.registry.clone(),
                    path: String::new(),
                    username: username.clone(),
                    secret: LoginSecret::Password(password.clone()),
                };
                repository.map(login).into_iter().collect()
            }
            Kind::Named(logins) => logins.clone(),
        }
    }
}

/// A single line of text, without its line break.
fn line(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches(['\r', '\n']);
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

fn account(entry: Entry) -> Result<Option<(String, LoginSecret)>, ()> {
    let decoded = match entry.auth.filter(|auth| !auth.is_empty()) {
        Some(auth) => {
            let bytes = BASE64.decode(auth.trim()).map_err(|_| ())?;
            let text = String::from_utf8(bytes).map_err(|_| ())?;
            let (username, password) = text.split_once(':').ok_or(())?;
            // Docker pads with NUL bytes, and `echo … | base64` adds a line break.
            Some((username.to_owned(), password.trim_end_matches(['\0', '\n', '\r']).to_owned()))
        }
        None => None,
    };
    if let Some(token) = entry.identitytoken.filter(|token| !token.is_empty()) {
        let username = decoded.map(|(username, _)| username).or(entry.username).unwrap_or_default();
        return Ok(Some((username, LoginSecret::IdentityToken(SecretString::new(token)))));
    }
    let pair = decoded.or_else(|| entry.username.zip(entry.password)).filter(|(username, _)| !username.is_empty());
    let Some((username, password)) = pair else { return Ok(None) };
    // A password may be a file, as Google's keys are: it is sent in base64.
    if username.chars().any(char::is_control) {
        return Err(());
    }
    Ok(Some((username, LoginSecret::Password(SecretString::new(password)))))
}

/// Host and path of `https://host/v1/`, `host`, `host/path`; Docker Hub under its canonical name.
fn named(key: &str) -> (String, String) {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = host.to_ascii_lowercase();
    let host = if is_docker_hub(&host) { DOCKER_HUB.to_owned() } else { host };
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let path = path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path);
    // Repositories have no capital letters, accounts that people know by them may.
    (host, path.trim_matches('/').to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<Credentials, CredentialsError> {
        Credentials::from_secret(&BTreeMap::from([(CONFIG_KEY.to_owned(), ByteString(json.into()))]))
    }

    fn user(credentials: &Credentials, repository: &str) -> Option<String> {
        let login = credentials.for_repository(&Repository::parse(repository).unwrap())?;
        Some(format!("{}:{}", login.username, login.secret.expose()))
    }

    #[test]
    fn most_specific_entry_wins() {
        let credentials = config(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
                "ghcr.io": {"username": "whole", "password": "pw"},
                "ghcr.io/team": {"username": "team", "password": "pw"},
                "ghcr.io/team/app": {"username": "app", "password": "pw"},
                "https://Reg.Example:5000/v2/": {"auth": "cmVnOnA6dw"},
                "empty.example": {},
                "https://": {"username": "nobody", "password": "pw"},
                "quay.io/Acme": {"username": "acme", "password": "pw"},
                "https://v1.example/v1/team/": {"username": "v1", "password": "pw"}
            }}"#,
        )
        .unwrap();
        for (repository, expected) in [
            ("debian", Some("hub:pw")),
            ("ghcr.io/other/app", Some("whole:pw")),
            ("ghcr.io/team/web", Some("team:pw")),
            ("ghcr.io/team/app", Some("app:pw")),
            ("ghcr.io/team/app/sub", Some("app:pw")),
            ("ghcr.io/teams/app", Some("whole:pw")),
            ("reg.example:5000/x", Some("reg:p:w")),
            ("reg.example/x", None),
            ("empty.example/x", None),
            ("quay.io/acme/x", Some("acme:pw")),
            ("v1.example/team/x", Some("v1:pw")),
        ] {
            assert_eq!(user(&credentials, repository).as_deref(), expected, "{repository}");
        }
        let all: Vec<String> =
            credentials.logins(None).iter().map(|l| format!("{}/{} {}", l.registry, l.path, l.username)).collect();
        insta::assert_snapshot!(all.join(", "), @"ghcr.io/ whole, ghcr.io/team team, ghcr.io/team/app app, reg.example:5000/ reg, docker.io/ hub, v1.example/team v1, quay.io/acme acme");
    }

    #[test]
    fn all_names_of_docker_hub() {
        for key in [
            "https://index.docker.io/v1/",
            "https://index.docker.io/v1",
            "index.docker.io",
            "https://index.docker.io/v2/",
            "registry-1.docker.io",
            "https://registry-1.docker.io/v2/",
            "docker.io",
            "https://docker.io",
            "Docker.io",
            "registry.hub.docker.com",
        ] {
            let file = format!(r#"{{"auths": {{"{key}": {{"auth": "aHViOnB3"}}}}}}"#);
            let credentials = config(&file).unwrap();
            for repository in ["debian", "team/app", "docker.io/library/debian", "index.docker.io/team/app"] {
                assert_eq!(user(&credentials, repository).as_deref(), Some("hub:pw"), "{key} {repository}");
            }
            assert_eq!(user(&credentials, "ghcr.io/team/app"), None, "{key}");
        }
    }

    #[test]
    fn plain_secrets() {
        let data = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), ByteString((*v).into()))).collect::<BTreeMap<_, _>>()
        };
        let credentials = Credentials::from_secret(&data(&[("username", "me"), ("password", "pw\n")])).unwrap();
        assert_eq!(user(&credentials, "ghcr.io/a").as_deref(), Some("me:pw"));
        assert!(credentials.logins(None).is_empty());
        assert_eq!(credentials.logins(Some(&Repository::parse("ghcr.io/a").unwrap()))[0].registry, "ghcr.io");
        insta::assert_snapshot!(
            Credentials::from_secret(&data(&[("token", "x")])).unwrap_err(),
            @"it has neither the key .dockerconfigjson nor the keys username and password (it has token)"
        );
        let two_lines = Credentials::from_secret(&data(&[("username", "me"), ("password", "a\nb")]));
        assert_eq!(two_lines, Err(CredentialsError::NotText("password")));
    }

    #[test]
    fn identity_tokens() {
        let credentials =
            config(r#"{"auths": {"acr.example": {"auth": "PHRva2VuPjo=", "identitytoken": "refresh"}}}"#).unwrap();
        let login = credentials.for_repository(&Repository::parse("acr.example/x").unwrap()).unwrap();
        assert_eq!(login.secret, LoginSecret::IdentityToken(SecretString::new("refresh")));
    }

    #[test]
    fn what_is_for_a_registry() {
        let any = Repository { registry: "r.example".into(), path: String::new() };
        let auth = base64::engine::general_purpose::STANDARD.encode("me:p");
        let entry = || serde_json::json!({"auth": auth});
        let auths = serde_json::json!({"r.example/hub": entry(), "*.example": entry(), "s.example": entry()});
        let read = config(&serde_json::json!({"auths": auths}).to_string()).unwrap();
        let keys: Vec<String> = read.for_registry(&any).iter().map(Login::key).collect();
        assert_eq!(keys.join(" "), "r.example r.example/hub");
    }

    /// Google's registries take a key file as the password of `_json_key`, and it has lines
    /// (<https://cloud.google.com/artifact-registry/docs/docker/authentication#json-key>).
    #[test]
    fn a_password_may_have_lines() {
        let key = "{\n  \"type\": \"service_account\"\n}\n";
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("_json_key:{key}"));
        let entries = [
            serde_json::json!({"auth": auth}),
            serde_json::json!({"username": "_json_key", "password": key}),
            serde_json::json!({"username": "_json_key", "password": key, "auth": auth}),
        ];
        for entry in entries {
            let file = serde_json::json!({"auths": {"https://europe-docker.pkg.dev": entry}}).to_string();
            let shown = config(&file).map(|read| user(&read, "europe-docker.pkg.dev/project/team/app"));
            let shown = shown.map_err(|error| error.to_string()).map(Option::unwrap_or_default);
            assert_eq!(shown.as_ref().map(|shown| shown.trim_end()), Ok(&*format!("_json_key:{}", key.trim_end())));
        }
    }

    #[test]
    fn says_what_is_wrong() {
        insta::assert_snapshot!(
            config(r#"{"auths": {"ghcr.io": {}}, "credsStore": "desktop"}"#).unwrap_err(),
            @".dockerconfigjson names a credential helper (desktop) instead of credentials; log in with a file of its own (DOCKER_CONFIG=$(mktemp -d) docker login …), or make the Secret with kubectl create secret docker-registry"
        );
        insta::assert_snapshot!(
            config(r#"{"auths": {"ghcr.io": {"auth": "bm9jb2xvbg=="}}}"#).unwrap_err(),
            @"the entry ghcr.io of .dockerconfigjson is broken: auth must be the base64 of username:password"
        );
        insta::assert_snapshot!(
            config(r#"{"auths": {"ghcr.io": {"auth": 42}}}"#).unwrap_err(),
            @".dockerconfigjson is not a Docker configuration file: line 1, column 33"
        );
        assert_eq!(config("{}"), Err(CredentialsError::Empty));
    }

    #[test]
    fn debug_shows_no_secret() {
        let credentials = config(r#"{"auths": {"ghcr.io": {"username": "me", "password": "hunter2"}}}"#).unwrap();
        let shown = format!("{credentials:?} {:?}", credentials.logins(None));
        assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
    }
}
