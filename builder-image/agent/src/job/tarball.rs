//! A source that is a tarball on a web server: downloaded, compared with its checksum, and only then unpacked.

use std::{
    fs,
    path::{Path, PathBuf},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use kiln_agent_proto::HttpSource;
use kiln_registry::http_client::{AddressPolicy, Clients, FailureClass, TransportFailure};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    Source,
    credentials::basic,
    download::{self, DownloadError},
    process_failure,
    unpack::{Kind, resolve},
    unpacking::Unpacking,
};
use crate::{
    paths,
    process::ProcessError,
    reasons::{JobFailure, Reason},
    sandbox::Sandbox,
};

/// The most bytes of a tarball or layer, as it comes.
pub const LARGEST_DOWNLOAD: u64 = 8 << 30;

/// Downloads the tarball and unpacks it to `directory`, which is made.
pub async fn fetch(
    source: &HttpSource,
    addresses: AddressPolicy,
    directory: &Path,
    sandbox: &Sandbox,
    stop: &CancellationToken,
) -> Result<Source, JobFailure> {
    let url = parse_url(&source.url)?;
    let path = context_path(&source.path)?;
    let mut headers = HeaderMap::new();
    if !source.username.is_empty() || !source.password.is_empty() {
        let value = HeaderValue::from_str(&format!("Basic {}", basic(&source.username, &source.password)));
        let mut value = value.map_err(|error| JobFailure::agent("send the source's credential", &error))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    let client = Clients::new()
        .get((!source.ca_pem.is_empty()).then_some(source.ca_pem.as_bytes()), addresses)
        .map_err(|error| JobFailure::agent("read the web server's CA", &error))?;
    fs::create_dir_all(directory).map_err(|error| JobFailure::agent("make the source's directory", &error))?;
    let archive = beside(directory, ".tarball");
    let response = download::request(&client, Method::GET, &url, &headers, None, stop);
    let response = response.await.map_err(|error| failed(&url, !headers.is_empty(), error))?;
    let limit = usize::try_from(LARGEST_DOWNLOAD).unwrap_or(usize::MAX);
    let (hash, _) = download::save(response, &archive, limit, stop)
        .await
        .map_err(|error| failed(&url, !headers.is_empty(), error))?;
    let checksum = hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    if checksum != source.checksum {
        let message = format!(
            "{url} gives content with the checksum {checksum}, not {}; compare it with what its publisher says, and write it to source.http.checksum once you trust it",
            source.checksum
        );
        return Err(JobFailure::new(Reason::ChecksumMismatch, message));
    }
    let unpacking = Unpacking { archives: vec![archive], kind: Kind::Tarball, directory };
    unpacking.run(&format!("the tarball {url}"), sandbox, stop).await?;
    context(directory, &path, &format!("the tarball {url}"), "source.http.path")
}

/// A file beside `directory`, on the same volume.
#[must_use]
pub fn beside(directory: &Path, end: &str) -> PathBuf {
    let mut path = directory.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// The directory in the source that is the context.
pub fn context_path(path: &str) -> Result<PathBuf, JobFailure> {
    paths::relative(path)
        .map_err(|problem| JobFailure::new(Reason::InvalidJob, format!("the source's path {path:?} {problem}")))
}

/// The source in `directory`, with `path` in it as its context; links on the way stay inside.
pub fn context(directory: &Path, path: &Path, name: &str, field: &str) -> Result<Source, JobFailure> {
    let found = resolve(directory, path, true).ok().filter(|context| context.is_dir());
    let Some(context) = found else {
        let mut there: Vec<String> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        there.sort();
        there.truncate(5);
        let hint = if there.is_empty() { String::new() } else { format!("; there is {}", there.join(", ")) };
        let message = format!("there is no directory {:?} in {name}{hint}; set spec.{field}", path.display());
        return Err(JobFailure::new(Reason::ContextNotFound, message));
    };
    let place = if path.as_os_str().is_empty() { String::new() } else { format!("directory {:?} of ", path.display()) };
    Ok(Source { context, ..Source::new(directory.to_owned(), format!("{place}{name}")) })
}

fn parse_url(text: &str) -> Result<Url, JobFailure> {
    let refuse = |why| JobFailure::new(Reason::InvalidJob, format!("the source's URL {why}"));
    let url = Url::parse(text).map_err(|_| refuse("is not a URL"))?;
    if url.scheme() != "https" {
        return Err(refuse("is not https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("holds a user or password; put them into a Secret and name it in source.http.secretRef"));
    }
    Ok(url)
}

fn failed(url: &Url, with_credential: bool, error: DownloadError) -> JobFailure {
    // What a signed URL has behind the question mark is a credential.
    let mut url = url.clone();
    url.set_query(None);
    let host = url.host_str().unwrap_or_default().to_owned();
    let (reason, message) = match error {
        DownloadError::Stopped => return process_failure(ProcessError::Stopped),
        DownloadError::Write(error) => return JobFailure::agent(format_args!("write what {url} gives"), &error),
        DownloadError::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if with_credential => (
            Reason::SourceUnauthorized,
            format!("{host} refuses the credential for {url}; check it, and its right to read this file"),
        ),
        DownloadError::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => (
            Reason::SourceUnauthorized,
            format!("{url} wants a credential and none was given; name a Secret with username and password"),
        ),
        DownloadError::Status(StatusCode::NOT_FOUND | StatusCode::GONE) => {
            (Reason::SourceNotFound, format!("{host} has no {url}; check source.http.url"))
        }
        DownloadError::Transport(TransportFailure::AddressForbidden(forbidden)) => {
            (Reason::AddressForbidden, format!("{url} cannot be downloaded: {forbidden}"))
        }
        DownloadError::Transport(failure) if failure.class() == FailureClass::User => {
            (Reason::SourceCertificateUntrusted, format!("{url} cannot be downloaded: {failure}"))
        }
        DownloadError::TooLarge(_) => (
            Reason::SourceTooLarge,
            format!("{url} has more than {} GiB; a builder takes no more", LARGEST_DOWNLOAD >> 30),
        ),
        DownloadError::Redirect(_) => {
            (Reason::SourceNotFound, format!("{url}: {error}; write the file's own URL to source.http.url"))
        }
        DownloadError::Status(status) if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
            (Reason::SourceNotFound, format!("{url} cannot be downloaded: {error}; check source.http.url"))
        }
        DownloadError::Status(_) | DownloadError::Transport(_) => {
            (Reason::SourceDownloadFailed, format!("{url} cannot be downloaded: {}", crate::chain(&error)))
        }
    };
    JobFailure::new(reason, message)
}
