//! Files that Git LFS keeps beside the repository: found by their pointers, asked for at the repository's own server,
//! checked, and put in the pointers' place (<https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use kiln_registry::{
    http_client::{FailureClass, HttpClient, TransportFailure, read_bounded},
    text::plain_text,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    checkout::{Entry, LARGEST_TREE},
    download::{self, DownloadError},
    git::{Commit, GitJob, Reach},
    git_problem::{failure, problem},
    process_failure,
    remote::Remote,
};
use crate::{
    files::Tree,
    process,
    reasons::{JobFailure, Reason},
};

/// Pointers are shorter than this.
/// <https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md#the-pointer>
const LONGEST_POINTER: u64 = 1024;
/// How many objects are asked for at once.
const BATCH: usize = 100;
const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";
/// The longest answer to a batch.
const LONGEST_ANSWER: usize = 4 << 20;

/// What a file of the repository says of the one that LFS has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// The content's SHA-256 in hexadecimal digits.
    pub(crate) oid: String,
    pub(crate) size: u64,
}

/// Where a server's LFS is, and what it is shown.
#[derive(Deserialize)]
struct Endpoint {
    href: String,
    #[serde(default)]
    header: HashMap<String, String>,
}

#[derive(Serialize)]
struct Batch<'a> {
    operation: &'static str,
    transfers: [&'static str; 1],
    objects: Vec<Object<'a>>,
    hash_algo: &'static str,
}

#[derive(Serialize)]
struct Object<'a> {
    oid: &'a str,
    size: u64,
}

#[derive(Deserialize)]
struct Answer {
    objects: Vec<AnsweredObject>,
}

#[derive(Deserialize)]
struct AnsweredObject {
    oid: String,
    #[serde(default)]
    actions: HashMap<String, Endpoint>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    #[serde(default)]
    message: String,
}

impl GitJob<'_> {
    /// Replaces the pointers among the files in `directory` that `.gitattributes` leaves to LFS, and notes in `entries`
    /// what has their place.
    pub(super) async fn fetch_lfs(
        &self,
        commit: &Commit,
        remote: &Remote,
        directory: &Path,
        environment: &[(&str, String)],
        entries: &mut [Entry],
    ) -> Result<(), JobFailure> {
        let tree = Tree::open(directory).map_err(|error| JobFailure::agent("open the source", &error))?;
        let small = entries.iter().filter(|entry| !entry.submodule && entry.size < LONGEST_POINTER);
        let small: Vec<PathBuf> = small.map(|entry| entry.path.clone()).collect();
        // A million files take their time.
        let (tree, mut pointers) = tokio::task::spawn_blocking(move || {
            let pointers = pointers_in(&tree, small);
            (tree, pointers)
        })
        .await
        .map_err(|error| JobFailure::agent("look for pointers of Git LFS", &error))?;
        if pointers.is_empty() {
            return Ok(());
        }
        let names: Vec<u8> =
            pointers.keys().flat_map(|path| path.as_os_str().as_bytes().iter().chain(&[0])).copied().collect();
        let filters = self
            .read(
                commit,
                &[self.scratch],
                &["check-attr", "--cached", "-z", "--stdin", "filter"],
                Some(&names),
                environment,
            )
            .await?;
        let filtered = filtered_by_lfs(&filters);
        pointers.retain(|path, _| filtered.contains(path.as_os_str().as_bytes()));
        let bytes = pointers.values().fold(0_u64, |bytes, pointer| bytes.saturating_add(pointer.size));
        if bytes > LARGEST_TREE {
            let (bytes, most) = (bytes >> 30, LARGEST_TREE >> 30);
            let message = format!(
                "the files of Git LFS in commit {} of {} have {bytes} GiB; a builder takes {most} GiB",
                commit.id, remote.url
            );
            return Err(JobFailure::new(Reason::GitRepositoryTooLarge, message));
        }
        if pointers.is_empty() {
            return Ok(());
        }
        let client = remote.http().map_err(|error| JobFailure::agent("read the Git server's CA", &error))?;
        let mut remote = remote.clone();
        remote.check_addresses().await?;
        let lfs = Lfs { client, endpoint: self.lfs_endpoint(&remote).await?, remote: &remote, stop: self.stop };
        let wanted: Vec<(&PathBuf, &Pointer)> = pointers.iter().collect();
        for batch in wanted.chunks(BATCH) {
            lfs.fetch(&tree, &self.scratch.join("lfs-part"), batch).await?;
        }
        for entry in entries {
            if let Some(pointer) = pointers.get(&entry.path) {
                entry.id.clone_from(&pointer.oid);
            }
        }
        Ok(())
    }

    /// Where the remote's LFS is: below its https URL, or where its ssh server says.
    async fn lfs_endpoint(&self, remote: &Remote) -> Result<Endpoint, JobFailure> {
        let Some(ssh) = remote.url.ssh() else {
            let url = remote.url.as_str();
            let dot_git = if url.strip_suffix(".git").is_some() { "" } else { ".git" };
            let header = remote.authorization().map(|value| ("Authorization".to_owned(), value));
            return Ok(Endpoint { href: format!("{url}{dot_git}/info/lfs"), header: header.into_iter().collect() });
        };
        let reach = Reach { remote: Some(remote), writes: &[] };
        let mut command = self.sandbox.command("ssh", &self.confinement(self.scratch, reach));
        command.args(remote.ssh_options(ssh)).arg("-p").arg(ssh.port.to_string());
        command.arg("--").arg(format!("{}@{}", ssh.user, ssh.host));
        command.arg(format!("git-lfs-authenticate {} download", ssh.path));
        command.current_dir(self.scratch).env("HOME", self.scratch).env("LC_ALL", "C");
        let mut stderr = String::new();
        let finished = process::run(&mut command, None, self.stop, |line| {
            if stderr.len() < 4096 {
                stderr.push_str(&String::from_utf8_lossy(line));
                stderr.push('\n');
            }
        })
        .await
        .map_err(process_failure)?;
        if !finished.status.success() {
            let unknown = finished.status.code() == Some(127) || stderr.contains("git-lfs-authenticate");
            return Err(if unknown {
                unsupported(remote, "its ssh server has no git-lfs-authenticate")
            } else {
                failure(problem(&stderr), remote, "", "", &stderr)
            });
        }
        serde_json::from_slice(&finished.stdout)
            .map_err(|_| unsupported(remote, "git-lfs-authenticate gives no answer that can be read"))
    }
}

/// Fetches objects from one server.
struct Lfs<'a> {
    client: HttpClient,
    endpoint: Endpoint,
    remote: &'a Remote,
    stop: &'a CancellationToken,
}

impl Lfs<'_> {
    /// Puts the objects in the pointers' place; `part` is where one lies until it is known to be the right one.
    async fn fetch(&self, tree: &Tree, part: &Path, files: &[(&PathBuf, &Pointer)]) -> Result<(), JobFailure> {
        let mut answered = self.batch(files).await?;
        for (path, pointer) in files {
            let object = answered.remove(&pointer.oid);
            let object = object.ok_or_else(|| self.missing(path, "the server says nothing of it"))?;
            self.download(path, pointer, &object, part, tree).await?;
            // The same content under another name needs no second download, but its own file.
            answered.insert(pointer.oid.clone(), object);
        }
        Ok(())
    }

    /// Asks where the objects are: <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md#requests>
    async fn batch(&self, files: &[(&PathBuf, &Pointer)]) -> Result<HashMap<String, AnsweredObject>, JobFailure> {
        let url = format!("{}/objects/batch", self.endpoint.href.trim_end_matches('/'));
        let url = secure(&url).ok_or_else(|| unsupported(self.remote, "its LFS is not reached by https"))?;
        let mut headers = headers(&self.endpoint.header);
        headers.insert(header::ACCEPT, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        let objects = files.iter().map(|(_, pointer)| Object { oid: &pointer.oid, size: pointer.size }).collect();
        let batch = Batch { operation: "download", transfers: ["basic"], objects, hash_algo: "sha256" };
        let body = serde_json::to_vec(&batch).map_err(|error| JobFailure::agent("ask for files of Git LFS", &error))?;
        let response = download::request(&self.client, Method::POST, &url, &headers, Some(body), self.stop)
            .await
            .map_err(|error| self.failed(error, "its LFS"))?;
        let answer = read_bounded(response, LONGEST_ANSWER)
            .await
            .map_err(|error| JobFailure::new(Reason::GitUnavailable, format!("{}: {error}", self.remote.host())))?;
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|_| unsupported(self.remote, "it gives no answer that can be read"))?;
        Ok(answer.objects.into_iter().map(|object| (object.oid.clone(), object)).collect())
    }

    async fn download(
        &self,
        path: &Path,
        pointer: &Pointer,
        object: &AnsweredObject,
        part: &Path,
        tree: &Tree,
    ) -> Result<(), JobFailure> {
        if let Some(ObjectError { code, message }) = &object.error {
            return Err(self.missing(path, &format!("{code} {}", plain_text(message, 200))));
        }
        let action = object.actions.get("download").ok_or_else(|| self.missing(path, "it says not where"))?;
        let url = secure(&action.href).ok_or_else(|| self.missing(path, "its place is not reached by https"))?;
        let mut sent = headers(&action.header);
        let home = secure(&self.endpoint.href).map(|home| home.origin());
        if !sent.contains_key(header::AUTHORIZATION) && home == Some(url.origin()) {
            sent.extend(headers(&self.endpoint.header));
        }
        let limit = usize::try_from(pointer.size).unwrap_or(usize::MAX);
        let what = format!("the file {:?}", path.display());
        let response = download::request(&self.client, Method::GET, &url, &sent, None, self.stop)
            .await
            .map_err(|error| self.failed(error, &what))?;
        let (hash, length) =
            download::save(response, part, limit, self.stop).await.map_err(|error| self.failed(error, &what))?;
        let hash = hash.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        if hash != pointer.oid || length != pointer.size {
            return Err(self.missing(path, "the server gives other content than its pointer names"));
        }
        tree.replace(part, path).map_err(|error| JobFailure::agent("put a file of Git LFS in place", &error))
    }

    fn missing(&self, path: &Path, why: &str) -> JobFailure {
        let message = format!(
            "Git LFS of {} does not have the file {:?} ({why}); push it with `git lfs push --all`, or set source.git.lfs to false to build with its pointer",
            self.remote.url,
            path.display()
        );
        JobFailure::new(Reason::GitLfsFailed, message)
    }

    fn failed(&self, error: DownloadError, what: &str) -> JobFailure {
        let (url, host) = (&self.remote.url, self.remote.host());
        match error {
            DownloadError::Stopped => process_failure(process::ProcessError::Stopped),
            DownloadError::Write(error) => JobFailure::agent("write a file of Git LFS", &error),
            DownloadError::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => JobFailure::new(
                Reason::GitUnauthorized,
                format!("{host} refuses {what} of Git LFS for {url}; check the credential, and its right to read LFS"),
            ),
            DownloadError::Status(
                StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED,
            ) => unsupported(self.remote, &format!("{what} is not there")),
            DownloadError::Transport(TransportFailure::AddressForbidden(forbidden)) => {
                JobFailure::new(Reason::AddressForbidden, format!("Git LFS of {url}: {forbidden}"))
            }
            DownloadError::Transport(failure) if failure.class() == FailureClass::User => {
                JobFailure::new(Reason::GitCertificateUntrusted, format!("Git LFS of {url}: {failure}"))
            }
            DownloadError::TooLarge(_) | DownloadError::Redirect(_) => {
                JobFailure::new(Reason::GitLfsFailed, format!("{what} of Git LFS of {url} cannot be fetched: {error}"))
            }
            DownloadError::Status(_) | DownloadError::Transport(_) => JobFailure::new(
                Reason::GitUnavailable,
                format!("{what} of Git LFS of {url} cannot be fetched: {}", crate::chain(&error)),
            ),
        }
    }
}

fn unsupported(remote: &Remote, why: &str) -> JobFailure {
    let message = format!(
        "{} gives no files of Git LFS: {why}; check that LFS is on there, or set source.git.lfs to false",
        remote.url
    );
    JobFailure::new(Reason::GitLfsFailed, message)
}

/// A URL that a credential may be sent to.
fn secure(url: &str) -> Option<Url> {
    Url::parse(url).ok().filter(|url| url.scheme() == "https" && url.username().is_empty() && url.password().is_none())
}

/// Those that a server names for a later request to it, none that would break it.
fn headers(named: &HashMap<String, String>) -> HeaderMap {
    let pairs = named.iter().filter_map(|(name, value)| {
        let name: HeaderName = name.parse().ok()?;
        let mut value: HeaderValue = value.parse().ok()?;
        value.set_sensitive(true);
        (name != header::HOST && name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING)
            .then_some((name, value))
    });
    pairs.collect()
}

/// Reads a pointer: <https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md#the-pointer>
pub(crate) fn pointer(content: &[u8]) -> Option<Pointer> {
    let text = std::str::from_utf8(content).ok()?;
    let mut lines = text.lines();
    if lines.next()? != "version https://git-lfs.github.com/spec/v1" {
        return None;
    }
    let (mut oid, mut size) = (None, None);
    for line in lines {
        match line.split_once(' ')? {
            ("oid", value) => oid = value.strip_prefix("sha256:"),
            ("size", value) => size = value.parse().ok(),
            _ => {}
        }
    }
    let oid = oid.filter(|oid| oid.len() == 64 && oid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))?;
    Some(Pointer { oid: oid.to_owned(), size: size? })
}

/// The pointers among these files. A link is none.
fn pointers_in(tree: &Tree, paths: Vec<PathBuf>) -> BTreeMap<PathBuf, Pointer> {
    let read = |path: &PathBuf| pointer(&tree.read(path, LONGEST_POINTER).ok()?);
    paths.into_iter().filter_map(|path| read(&path).map(|pointer| (path, pointer))).collect()
}

/// Reads the output of `git check-attr -z filter`: the paths whose filter is `lfs`.
fn filtered_by_lfs(output: &[u8]) -> HashSet<&[u8]> {
    let fields: Vec<&[u8]> = output.split(|byte| *byte == 0).collect();
    fields.chunks_exact(3).filter(|field| field[2] == b"lfs").map(|field| field[0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers() {
        let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let text = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n");
        assert_eq!(pointer(text.as_bytes()), Some(Pointer { oid: oid.to_owned(), size: 12345 }));
        for bad in [
            String::new(),
            text.replace("version", "Version"),
            text.replace("sha256:4", "sha256:G"),
            text.replace("12345", "-1"),
            text.replace("size 12345\n", ""),
            text.replace("oid sha256:", "oid sha256:../"),
        ] {
            assert_eq!(pointer(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn attributes() {
        let output = b"a b\0filter\0lfs\0c\0filter\0unspecified\0d\0filter\0lfs\0";
        assert_eq!(filtered_by_lfs(output), [&b"a b"[..], b"d"].into());
    }

    #[test]
    fn only_https_is_asked() {
        assert!(secure("https://host/x").is_some());
        for bad in ["http://host/x", "https://u@host/x", "file:///etc", "x"] {
            assert!(secure(bad).is_none(), "{bad}");
        }
        let named =
            [("Authorization", "a"), ("Host", "evil"), ("X-Bad", "a\nb")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(headers(&named.into()).keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["authorization"]);
    }
}
