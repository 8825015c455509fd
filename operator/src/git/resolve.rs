//! From a ref to a commit: what `git ls-remote` does, with the operator's own HTTP client; by ssh in `ssh.rs`.

use std::ops::ControlFlow;

use http::{HeaderValue, Method, StatusCode, header};
use kiln_crds::GitUrl;
use reqwest::{Response, Url};

use super::advertisement::{Greeting, GreetingReader, Malformed, Refs, RefsReader, ls_refs_request};
use super::credential::GitCredential;
use super::error::Error;
use super::refname::{Wanted, branches, check, similar, wanted};
use kiln_registry::http_client::{BodyError, HttpClient, TransportFailure, read_chunks, retry_after};

/// Version 0 servers send all their refs, which are many where each change has its own.
const ADVERTISEMENT_LIMIT: usize = 64 * 1024 * 1024;
/// Refs that begin with the one asked for.
const LS_REFS_LIMIT: usize = 4 * 1024 * 1024;
const REDIRECTS: usize = 3;
const GREETING_TAIL: &str = "/info/refs";

/// The commit that a ref names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The full commit id, in lower case.
    pub commit: String,
    /// The full name of the ref, such as `refs/heads/main`; none where a commit was asked for.
    pub ref_name: Option<String>,
}

/// Finds the commit that `reference` names; without one, the default branch's.
///
/// A short name is tried as `refs/NAME`, then as a tag, then as a branch, which is git's own order. A whole commit id
/// is returned as it is, once the server has shown that the repository is there and may be read. The credential is
/// sent to the URL's own host (and port) only.
pub async fn resolve(
    http: &HttpClient,
    url: &GitUrl,
    reference: Option<&str>,
    credential: Option<&GitCredential>,
) -> Result<Resolved, Error> {
    let wanted = wanted(reference).map_err(|cause| Error::RefInvalid {
        reference: reference.unwrap_or_default().chars().take(100).collect(),
        cause,
    })?;
    if let Some(ssh) = url.ssh() {
        let key = match credential {
            Some(GitCredential::Ssh(key)) => Some(key),
            Some(GitCredential::Basic(_)) | None => None,
        };
        return super::ssh::resolve(http.addresses(), url, ssh, key, reference, wanted).await;
    }
    let authorization = match credential {
        Some(GitCredential::Basic(auth)) => auth.header(),
        Some(GitCredential::Ssh(_)) | None => None,
    };
    let exchange = Exchange { http, url, authorization };
    let candidates = match wanted {
        Wanted::Commit(commit) => {
            exchange.greet(&[]).await?;
            return Ok(Resolved { commit, ref_name: None });
        }
        Wanted::Ref(candidates) => candidates,
    };
    let (base, greeting) = exchange.greet(&candidates).await?;
    let reference = reference.unwrap_or("HEAD");
    let (refs, object_format) = match greeting {
        Greeting::Refs(refs) => (refs, None),
        Greeting::V2 { object_format } => {
            (exchange.ls_refs(&base, object_format.as_deref(), &candidates).await?, Some(object_format))
        }
    };
    if let Some(resolved) = choose(&refs, &candidates) {
        return Ok(resolved);
    }
    // A hint is worth one more question, but not another error.
    let all = match object_format {
        None => Some(refs),
        Some(format) => {
            let prefixes = ["refs/heads/".to_owned(), "refs/tags/".to_owned()];
            exchange.ls_refs(&base, format.as_deref(), &prefixes).await.ok()
        }
    };
    Err(not_found(url.to_string(), reference, all.as_ref()))
}

/// No such ref, with what is there. `all`: every branch and tag, where they are known.
pub(super) fn not_found(url: String, reference: &str, all: Option<&Refs>) -> Error {
    let names = || all.into_iter().flat_map(|all| all.commits.keys().map(String::as_str));
    Error::RefNotFound {
        url,
        reference: reference.to_owned(),
        similar: similar(reference, names()),
        branches: all.map(|_| branches(names())).filter(|found| !found.is_empty() || names().next().is_none()),
    }
}

pub(super) fn choose(refs: &Refs, candidates: &[String]) -> Option<Resolved> {
    candidates.iter().find_map(|name| {
        let commit = refs.commits.get(name)?.to_ascii_lowercase();
        // What a server says of its default branch may be anything, and a run has room for a name.
        let head = refs.head.as_ref().filter(|head| name == "HEAD" && check(head).is_ok());
        let ref_name = head.unwrap_or(name).clone();
        Some(Resolved { commit, ref_name: Some(ref_name) })
    })
}

struct Exchange<'a> {
    http: &'a HttpClient,
    url: &'a GitUrl,
    authorization: Option<HeaderValue>,
}

impl Exchange<'_> {
    /// Asks for the refs, following redirects, and says where the repository really is.
    async fn greet(&self, candidates: &[String]) -> Result<(Url, Greeting), Error> {
        let home = self.parse(self.url.as_str())?;
        let mut url = self.parse(&format!("{}{GREETING_TAIL}?service=git-upload-pack", self.url))?;
        let mut redirects = 0;
        let response = loop {
            let response = self.send(Method::GET, &home, &url, None).await?;
            if !response.status().is_redirection() {
                break self.accept(response, "application/x-git-upload-pack-advertisement")?;
            }
            redirects += 1;
            if redirects > REDIRECTS {
                return Err(self.protocol("it redirects too often"));
            }
            let next = response
                .headers()
                .get(header::LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| self.protocol("it redirects to nowhere"))?;
            if next.scheme() != home.scheme() || !next.username().is_empty() {
                return Err(self.protocol("it redirects away from https"));
            }
            // As git does: a redirect elsewhere, to a login page say, is no repository.
            if !next.path().ends_with(GREETING_TAIL) {
                return Err(self.protocol("it redirects to something that is no repository; is it private?"));
            }
            url = next;
        };
        let mut reader = GreetingReader::new(candidates);
        self.read(response, ADVERTISEMENT_LIMIT, |chunk| reader.feed(chunk)).await?;
        let greeting = reader.finish().map_err(|e| self.protocol(e.to_string()))?;
        let mut base = url;
        base.set_query(None);
        let path = base.path().strip_suffix(GREETING_TAIL).unwrap_or_default().to_owned();
        base.set_path(&path);
        Ok((base, greeting))
    }

    async fn ls_refs(&self, base: &Url, object_format: Option<&str>, prefixes: &[String]) -> Result<Refs, Error> {
        let home = self.parse(self.url.as_str())?;
        let mut url = base.clone();
        url.set_path(&format!("{}/git-upload-pack", base.path().trim_end_matches('/')));
        let body = ls_refs_request(object_format, prefixes);
        let response = self.send(Method::POST, &home, &url, Some(body)).await?;
        let response = self.accept(response, "application/x-git-upload-pack-result")?;
        let mut reader = RefsReader::new(prefixes);
        self.read(response, LS_REFS_LIMIT, |chunk| reader.feed(chunk)).await?;
        reader.finish().map_err(|e| self.protocol(e.to_string()))
    }

    /// Reads an answer piece by piece, for it may be large, until its end or the first piece that is wrong.
    async fn read(
        &self,
        response: Response,
        limit: usize,
        mut feed: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Error> {
        let mut malformed = None;
        let read = read_chunks(response, limit, |chunk| match feed(chunk) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                malformed = Some(error);
                ControlFlow::Break(())
            }
        });
        read.await.map_err(|e| self.body(e))?;
        malformed.map_or(Ok(()), |error| Err(self.protocol(error.to_string())))
    }

    async fn send(&self, method: Method, home: &Url, url: &Url, body: Option<Vec<u8>>) -> Result<Response, Error> {
        let mut request =
            self.http.request(method, url.clone()).map_err(|e| self.transport(e))?.header("git-protocol", "version=2");
        if let Some(authorization) = self.authorization.as_ref().filter(|_| url.origin() == home.origin()) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/x-git-upload-pack-request").body(body);
        }
        request.send().await.map_err(|e| self.transport(TransportFailure::from_reqwest(&e)))
    }

    /// A good answer of the expected type, or what else it means.
    fn accept(&self, response: Response, content_type: &str) -> Result<Response, Error> {
        let status = response.status();
        let url = self.url.to_string();
        let with_credential = self.authorization.is_some();
        let wait = retry_after(response.headers(), jiff::Timestamp::now());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::Unauthorized { url, status: status.as_u16(), with_credential })
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Error::NotFound { url, with_credential }),
            StatusCode::TOO_MANY_REQUESTS => Err(Error::RateLimited { url, retry_after: wait }),
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Err(Error::Unavailable { url, status: status.as_u16(), retry_after: wait })
            }
            status if !status.is_success() => Err(self.protocol(format!("HTTP {}", status.as_u16()))),
            _ => {
                let got =
                    response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
                if got.split(';').next().unwrap_or_default().trim() == content_type {
                    Ok(response)
                } else {
                    Err(self.protocol("there is a web page or something else; check the URL"))
                }
            }
        }
    }

    fn parse(&self, text: &str) -> Result<Url, Error> {
        text.parse().map_err(|_| self.protocol("its URL cannot be parsed"))
    }

    fn protocol(&self, cause: impl Into<String>) -> Error {
        Error::Protocol { url: self.url.to_string(), cause: cause.into() }
    }

    fn transport(&self, failure: TransportFailure) -> Error {
        Error::Transport { url: self.url.to_string(), failure }
    }

    fn body(&self, error: BodyError) -> Error {
        match error {
            BodyError::TooLarge(_) => self.protocol(error.to_string()),
            BodyError::Transport(failure) => self.transport(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_candidate_wins() {
        let refs = Refs {
            commits: [("refs/heads/x", "AA"), ("refs/tags/x", "bb"), ("HEAD", "cc")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            head: Some("refs/heads/main".into()),
        };
        let in_refs = |refs: &Refs, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            choose(refs, &names).map(|r| (r.commit, r.ref_name.unwrap()))
        };
        let choose = |names: &[&str]| in_refs(&refs, names);
        assert_eq!(choose(&["refs/x", "refs/tags/x", "refs/heads/x"]), Some(("bb".into(), "refs/tags/x".into())));
        assert_eq!(choose(&["refs/heads/x"]), Some(("aa".into(), "refs/heads/x".into())));
        assert_eq!(choose(&["HEAD"]), Some(("cc".into(), "refs/heads/main".into())));
        assert_eq!(choose(&["refs/y"]), None);
        for head in ["refs/heads/a b".to_owned(), format!("refs/heads/{}", "b".repeat(1024))] {
            let refs = Refs { head: Some(head), ..refs.clone() };
            assert_eq!(in_refs(&refs, &["HEAD"]), Some(("cc".into(), "HEAD".into())));
        }
    }
}
