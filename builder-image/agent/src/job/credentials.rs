//! A job's credentials as files in memory: what `kiln-build` and `git` read, gone with the job.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_agent_proto::{Job as Spec, Login, context, source};
use serde::Serialize;

use super::registries;

/// The system's CA bundle, on Alpine and Debian.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where `git` finds its credential, its CAs and the keys of servers.
#[must_use]
pub fn git_credentials(memory: &Path) -> PathBuf {
    memory.join("git")
}

/// Writes what `kiln-build` reads: `docker/config.json`, `secrets/` and `ssh/`.
pub fn write(memory: &Path, spec: &Spec) -> io::Result<()> {
    let mut private = fs::DirBuilder::new();
    private.mode(0o700);
    private.create(memory)?;
    for directory in ["docker", "secrets", "ssh", "home"].map(|name| memory.join(name)) {
        private.create(directory)?;
    }
    private.create(git_credentials(memory))?;
    write_private(&memory.join("docker/config.json"), docker_config(&spec.logins).as_bytes())?;
    for (number, (_, value)) in secrets(spec).into_iter().enumerate() {
        write_private(&secret_file(memory, number), value)?;
    }
    for (id, file) in ssh_files(memory, spec) {
        // ssh-keygen and Secrets lose the last line's end at times, which the format demands.
        let key = spec.ssh.get(id).map(Vec::as_slice).unwrap_or_default();
        write_private(&file, &[key.trim_ascii_end(), b"\n"].concat())?;
    }
    Ok(())
}

/// The job's secrets with their files, by id.
pub fn secret_files<'a>(memory: &Path, spec: &'a Spec) -> impl Iterator<Item = (&'a str, PathBuf)> {
    secrets(spec).into_iter().enumerate().map(move |(number, (id, _))| (id, secret_file(memory, number)))
}

/// The job's keys for `RUN --mount=type=ssh` with their files, by id.
pub fn ssh_files<'a>(memory: &Path, spec: &'a Spec) -> impl Iterator<Item = (&'a str, PathBuf)> {
    let ids: BTreeSet<&str> = spec.ssh.keys().map(String::as_str).collect();
    let directory = memory.join("ssh");
    ids.into_iter().enumerate().map(move |(number, id)| (id, directory.join(number.to_string())))
}

/// Numbered, for an id may hold any character.
fn secret_file(memory: &Path, number: usize) -> PathBuf {
    memory.join("secrets").join(number.to_string())
}

fn secrets(spec: &Spec) -> BTreeMap<&str, &[u8]> {
    spec.secrets.iter().map(|(id, value)| (id.as_str(), value.as_slice())).collect()
}

/// Writes a bundle of the system's CAs and `pem`, and gives its path.
pub fn write_bundle(memory: &Path, pem: &str) -> io::Result<PathBuf> {
    let system = std::env::var_os("SSL_CERT_FILE").map_or_else(|| PathBuf::from(SYSTEM_BUNDLE), PathBuf::from);
    let mut bundle = fs::read(system).unwrap_or_default();
    bundle.push(b'\n');
    bundle.extend_from_slice(pem.as_bytes());
    let path = git_credentials(memory).join("ca.crt");
    write_private(&path, &bundle)?;
    Ok(path)
}

/// Writes a file that nobody else may read.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

/// Every value of the job that no log may show.
#[must_use]
pub fn secret_values(spec: &Spec) -> Vec<Vec<u8>> {
    let mut pairs: Vec<(&str, &str)> =
        spec.logins.iter().map(|login| (login.username.as_str(), login.password.as_str())).collect();
    let source = spec.source.as_ref().and_then(|source| source.kind.as_ref());
    if let Some(source::Kind::Http(http)) = source {
        pairs.push((&http.username, &http.password));
    }
    let git = source.and_then(|source| if let source::Kind::Git(git) = source { Some(git) } else { None });
    let beside = spec.contexts.iter().filter_map(|context| match &context.kind {
        Some(context::Kind::Git(git)) => Some(&**git),
        Some(context::Kind::Image(_)) | None => None,
    });
    let git: Vec<_> = git.into_iter().chain(beside).collect();
    pairs.extend(git.iter().map(|git| (git.username.as_str(), git.password.as_str())));
    let keys = git.iter().map(|git| &git.ssh_private_key).filter(|key| !key.is_empty());
    // Together too: in base64, user and password are one value.
    let pairs = pairs.into_iter().filter(|(_, password)| !password.is_empty());
    let logins = pairs.flat_map(|(username, password)| [password.to_owned(), format!("{username}:{password}")]);
    let tokens = spec.logins.iter().map(|login| login.identity_token.clone()).filter(|token| !token.is_empty());
    let logins = logins.chain(tokens);
    spec.secrets.values().chain(spec.ssh.values()).chain(keys).cloned().chain(logins.map(String::into_bytes)).collect()
}

/// Docker's configuration file, the form in which `kiln-build` reads logins.
fn docker_config(logins: &[Login]) -> String {
    #[derive(Serialize)]
    struct Config {
        auths: BTreeMap<String, Auth>,
    }
    #[derive(Serialize)]
    struct Auth {
        #[serde(skip_serializing_if = "str::is_empty")]
        auth: String,
        #[serde(rename = "identitytoken", skip_serializing_if = "str::is_empty")]
        identity_token: String,
    }
    // Of two with one key the first counts, and of two in a map the last.
    let auths = logins.iter().rev().map(|login| {
        // A token needs no user, and a user without a name is none that the file may have.
        let is_token = !login.identity_token.is_empty();
        let auth = if is_token { String::new() } else { basic(&login.username, &login.password) };
        (registries::read(login).key(), Auth { auth, identity_token: login.identity_token.clone() })
    });
    // Strings in maps: this serialization cannot fail.
    serde_json::to_string(&Config { auths: auths.collect() }).unwrap_or_default()
}

/// User and password as in the `Basic` scheme (RFC 7617).
#[must_use]
pub fn basic(username: &str, password: &str) -> String {
    STANDARD.encode(format!("{username}:{password}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(registry: &str) -> Login {
        Login {
            registry: registry.to_owned(),
            username: "user".to_owned(),
            password: "pass".to_owned(),
            ..Login::default()
        }
    }

    #[test]
    fn logins_by_host_and_path() {
        let of_team = Login { path: "team".to_owned(), username: "b".to_owned(), ..login("docker.io") };
        let token = Login { registry: "acr.example".to_owned(), identity_token: "t".to_owned(), ..Login::default() };
        insta::assert_snapshot!(
            docker_config(&[login("docker.io"), of_team, token, login("registry.example:5000")]),
            @r#"{"auths":{"acr.example":{"identitytoken":"t"},"docker.io":{"auth":"dXNlcjpwYXNz"},"docker.io/team":{"auth":"YjpwYXNz"},"registry.example:5000":{"auth":"dXNlcjpwYXNz"}}}"#
        );
    }

    #[test]
    fn files_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let memory = root.path().join("job");
        let spec = Spec {
            secrets: [("a/b".to_owned(), b"value".to_vec())].into(),
            logins: vec![login("r")],
            ..Spec::default()
        };
        write(&memory, &spec).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&memory), 0o700);
        assert_eq!(mode(&memory.join("docker/config.json")), 0o600);
        let (id, file) = secret_files(&memory, &spec).next().unwrap();
        assert_eq!((id, mode(&file), fs::read(&file).unwrap()), ("a/b", 0o600, b"value".to_vec()));
    }
}
