//! The client against a registry in memory: authentication, refusals, redirects, nonsense, publishing, copying.

mod late;
mod server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::http_client::{AddressPolicy, Clients, FailureClass};
use server::{Auth, Fault, PASSWORD, Server};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn index() -> IndexBytes {
    let part = PlatformImage {
        platform: "linux/amd64".parse().unwrap(),
        media_type: OCI_MANIFEST.into(),
        os_features: Vec::new(),
        digest: sha256_digest(b"x"),
        size: 1,
    };
    assemble(&[part], &BTreeMap::new(), INDEX_MEDIA_TYPE)
}

#[tokio::test]
async fn push_check_with_each_kind_of_authentication() {
    for auth in [Auth::None, Auth::Basic, Auth::Bearer] {
        let server = Server::start(auth).await;
        let client = server.client(Some(PASSWORD));
        let repository = server.repository("team/app");
        client.check_push(&repository).await.unwrap();
        let uploads = "/v2/team/app/blobs/uploads/";
        let first = format!("POST {uploads}");
        let cancel = format!("DELETE {uploads}1?state=s");
        let token = "GET /token?service=test&scope=repository%3Ateam%2Fapp%3Apull%2Cpush&scope=repository%3Ax%3Apull&client_id=kiln";
        let expected: &[&str] = match auth {
            Auth::None => &[&first, &cancel],
            Auth::Basic => &[&first, &first, &cancel],
            Auth::Bearer => &[&first, token, &first, &cancel],
        };
        assert_eq!(server.requests(), expected, "{auth:?}");
        // Whoever has asked knows; another client asks without its login.
        for (knows, client) in [(auth != Auth::None, client.clone()), (false, server.client(Some(PASSWORD)))] {
            let before = server.requests().len();
            assert_eq!(client.is_basic(&repository).await.unwrap(), auth == Auth::Basic, "{auth:?}");
            assert_eq!(
                server.requests()[before..],
                if knows { vec![] } else { vec!["GET /v2/".to_owned()] },
                "{auth:?}"
            );
        }
        // Now that it is known, nothing is asked twice.
        let before = server.requests().len();
        client.check_push(&repository).await.unwrap();
        assert_eq!(server.requests().len(), before + 2, "{auth:?}");
    }
}

#[tokio::test]
async fn refused_credentials() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let server = Server::start(auth).await;
        for (password, words) in [(None, "wants a credential"), (Some("hunter2hunter3"), "refused the credential")] {
            let error = server.client(password).check_push(&server.repository("app")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
            assert_eq!((error.class(), error.status()), (FailureClass::Credential, Some(401)));
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
    let server = Server::start(Auth::Basic).await;
    server.client(Some("wrong password")).check_push(&server.repository("app")).await.unwrap_err();
    assert_eq!(server.requests().len(), 2, "a refused password is not tried again");
}

#[tokio::test]
async fn identity_tokens_are_exchanged_by_post() {
    let server = Server::start(Auth::Bearer).await;
    let login = Login {
        registry: server.host.clone(),
        path: String::new(),
        username: String::new(),
        secret: LoginSecret::IdentityToken(crate::http_client::SecretString::new(PASSWORD)),
    };
    let client = Client::new(server.client(None).inner.http.clone(), Scheme::Http, Some(login));
    client.check_push(&server.repository("app")).await.unwrap();
    assert_eq!(server.requests()[1], "POST /token");
}

#[tokio::test]
async fn a_token_without_the_right_is_denied() {
    let server = Server::start(Auth::Bearer).await;
    let body = r#"{"token":"weak"}"#.to_owned();
    server.fault("GET /token", Fault { status: 200, body, ..Fault::default() });
    let error = server.client(Some(PASSWORD)).check_push(&server.repository("app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn an_expired_token_is_replaced_once() {
    let server = Server::start(Auth::Bearer).await;
    let client = server.client(Some(PASSWORD));
    let repository = server.repository("app");
    client.check_push(&repository).await.unwrap();
    let challenge = format!("Bearer realm=\"http://{}/token\"", server.host);
    let expired = Fault { status: 401, headers: vec![("www-authenticate", challenge)], ..Fault::default() };
    server.fault("POST /v2/app", expired);
    client.check_push(&repository).await.unwrap();
}

#[tokio::test]
async fn the_login_stays_with_its_registry() {
    let server = Server::start(Auth::Basic).await;
    let other = Server::start(Auth::Basic).await;
    let error = server.client(Some(PASSWORD)).check_push(&other.repository("app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(other.content.lock().unwrap().requests.iter().all(|(_, authorization)| authorization.is_empty()));
}

#[tokio::test]
async fn refusals() {
    let server = Server::start(Auth::None).await;
    let client = server.client(None);
    let repository = server.repository("app");
    let v1 = Identifier::from(tag("v1"));
    server.fault("HEAD", Fault { status: 429, headers: vec![("retry-after", "7".into())], ..Fault::default() });
    let error = client.head_manifest(&repository, &v1).await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::RateLimited, Some(Duration::from_secs(7))));

    // A short wait is nobody's business.
    for after in ["0", "1"] {
        server.fault("HEAD", Fault { status: 429, headers: vec![("retry-after", after.into())], ..Fault::default() });
    }
    assert!(client.head_manifest(&repository, &tag("none").into()).await.unwrap().is_none());

    server.fault("HEAD", Fault { status: 503, headers: vec![("retry-after", "999999".into())], ..Fault::default() });
    let error = client.head_manifest(&repository, &v1).await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Unavailable, Some(Duration::from_hours(1))));

    let body = r#"{"errors":[{"code":"TAG_INVALID","message":"The image tag 'v1' already exists and cannot be overwritten because the repository is immutable."}]}"#;
    server.fault("PUT", Fault { status: 400, body: body.into(), ..Fault::default() });
    let error = client.put_manifest(&repository, &v1, OCI_MANIFEST, Bytes::from_static(b"{}")).await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (ErrorKind::TagImmutable, FailureClass::User));

    let wrong = vec![("docker-content-digest", sha256_digest(b"other").to_string())];
    server.fault("PUT", Fault { status: 201, headers: wrong, ..Fault::default() });
    let error = client.put_manifest(&repository, &v1, OCI_MANIFEST, Bytes::from_static(b"{}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);

    assert_eq!(client.head_manifest(&repository, &v1).await.unwrap(), None);
    let error = client.get_manifest(&repository, &v1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");

    // Nobody listens on a port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Repository { registry: free.to_string(), path: "app".into() };
    let error = client.check_push(&gone).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Unavailable, None), "{error}");

    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let repository = Repository { registry: plain.local_addr().unwrap().to_string(), path: "app".into() };
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let https = Client::new(client.inner.http.clone(), Scheme::Https, None);
    let error = https.check_push(&repository).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotTls);
    assert!(error.to_string().contains("plainHttp"), "{error}");
}

#[tokio::test]
async fn nonsense() {
    let server = Server::start(Auth::None).await;
    let client = server.client(None);
    let repository = server.repository("app");
    let v1 = Identifier::from(tag("v1"));
    let html = || Fault {
        status: 200,
        headers: vec![("content-type", "text/html".into())],
        body: "<html>\u{1b}[31mlog in</html>".into(),
    };
    server.fault("POST", html());
    let error = client.check_push(&repository).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    server.fault("HEAD", html());
    server.fault("GET", html());
    let error = client.head_manifest(&repository, &v1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");

    let by_digest = Identifier::from(sha256_digest(b"asked for"));
    let manifest = vec![("content-type", OCI_MANIFEST.into())];
    server.fault("GET", Fault { status: 200, headers: manifest.clone(), body: "other".into() });
    let error = client.get_manifest(&repository, &by_digest).await.unwrap_err();
    assert!(error.to_string().contains("other content"), "{error}");

    server.fault("GET", Fault { status: 200, headers: manifest, body: "x".repeat(4 * 1024 * 1024 + 1) });
    let error = client.get_manifest(&repository, &v1).await.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");

    let bearer = Server::start(Auth::Bearer).await;
    bearer.fault("GET /token", Fault { status: 200, body: "<html>".into(), ..Fault::default() });
    let error = bearer.client(Some(PASSWORD)).check_push(&bearer.repository("app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");

    for location in ["http://169.254.169.254/x", "ftp://x/y", "//[::]/x"] {
        server.fault("GET", Fault { status: 307, headers: vec![("location", location.into())], ..Fault::default() });
        let error = client.get_manifest(&repository, &v1).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::AddressForbidden | ErrorKind::Protocol), "{location}: {error}");
    }
    for _ in 0..9 {
        server.fault(
            "GET",
            Fault { status: 307, headers: vec![("location", "/v2/app/manifests/v1".into())], ..Fault::default() },
        );
    }
    let error = client.get_manifest(&repository, &v1).await.unwrap_err();
    assert!(error.to_string().contains("circles"), "{error}");
}

/// Where a pool forbids private addresses, none is reached by a detour: a redirect, a token service, an upload elsewhere.
#[tokio::test]
async fn no_detour_leads_to_a_private_address() {
    let private = "10.217.0.66:9";
    let closed = AddressPolicy::new(false).with_loopback();
    let server = Server::start(Auth::None).await;
    let http = Clients::new().get(None, closed).unwrap();
    let client = Client::new(http, Scheme::Http, None);
    let repository = server.repository("app");
    let v1 = Identifier::from(tag("v1"));
    let to = |status, header, value: String| Fault { status, headers: vec![(header, value)], ..Fault::default() };

    server.fault("HEAD", to(307, "location", format!("http://{private}/v2/app/manifests/v1")));
    let redirected = client.head_manifest(&repository, &v1).await.unwrap_err();
    server.fault("POST", to(401, "www-authenticate", format!("Bearer realm=\"http://{private}/token\"")));
    let token = client.check_push(&repository).await.unwrap_err();
    // A fresh client: the challenge of before is remembered.
    let client = Client::new(client.inner.http.clone(), Scheme::Http, None);
    server.fault("POST", to(307, "location", format!("http://{private}/v2/app/blobs/uploads/")));
    let upload = client.check_push(&repository).await.unwrap_err();
    for error in [redirected, token] {
        assert_eq!(error.kind(), ErrorKind::AddressForbidden, "{error}");
        assert!(error.to_string().contains("10.217.0.66") && error.to_string().contains("privateAddresses"), "{error}");
    }
    assert!(matches!(upload.kind(), ErrorKind::AddressForbidden | ErrorKind::Protocol), "{upload}");
    let direct = client.check_push(&Repository { registry: private.into(), path: "app".into() }).await.unwrap_err();
    assert_eq!(direct.kind(), ErrorKind::AddressForbidden, "{direct}");
}

#[tokio::test]
async fn a_redirect_to_another_host_gets_no_credential() {
    let server = Server::start(Auth::Basic).await;
    let other = Server::start(Auth::None).await;
    let client = server.client(Some(PASSWORD));
    let repository = server.repository("app");
    client.check_push(&repository).await.unwrap();
    let location = format!("http://{}/elsewhere", other.host);
    server.fault("GET", Fault { status: 307, headers: vec![("location", location)], ..Fault::default() });
    client.get_manifest(&repository, &Identifier::from(tag("v1"))).await.unwrap();
    assert_eq!(other.content.lock().unwrap().requests, [("GET /elsewhere".to_owned(), String::new())]);
}

#[tokio::test]
async fn publishes_index_and_tags_and_writes_nothing_twice() {
    let server = Server::start(Auth::Basic).await;
    let client = server.client(Some(PASSWORD));
    let repository = server.repository("app");
    let tags = [tag("v1"), tag("latest")];
    let outcome = publish(&client, &repository, &index(), &tags, || async { true }, |_, _| ()).await.unwrap();
    assert_eq!(outcome, PublishOutcome::Published);
    for tag in &tags {
        let there = client.head_manifest(&repository, &tag.clone().into()).await.unwrap().unwrap();
        assert_eq!(*there.digest(), index().digest);
        assert_eq!(there.media_type().to_string(), INDEX_MEDIA_TYPE);
    }
    let writes = || server.requests().iter().filter(|r| r.starts_with("PUT")).count();
    let before = writes();
    publish(&client, &repository, &index(), &tags, || async { true }, |_, _| ()).await.unwrap();
    assert_eq!(writes(), before + 1, "only the index itself is sent again");
}

#[tokio::test]
async fn puts_right_what_a_rival_wrote_but_not_for_ever() {
    let server = Server::start(Auth::None).await;
    let client = server.client(None);
    let repository = server.repository("app");
    server.content.lock().unwrap().rival = 2;
    let told = std::sync::Mutex::new(Vec::new());
    let moved = |tag: &Tag, step: Step<'_>| {
        if let Step::Moved(there) = step {
            told.lock().unwrap().push((tag.to_string(), there.map(|there| *there == index().digest)));
        }
    };
    let outcome = publish(&client, &repository, &index(), &[tag("v1")], || async { true }, moved).await.unwrap();
    assert_eq!(outcome, PublishOutcome::Published);
    let told = told.into_inner().unwrap();
    let before: Vec<_> = told.iter().map(|(_, there)| *there).collect();
    assert_eq!(before, [None, Some(false), Some(false), Some(true)], "what was there before each write");
    let there = client.head_manifest(&repository, &tag("v1").into()).await.unwrap().unwrap();
    assert_eq!(*there.digest(), index().digest);

    server.content.lock().unwrap().rival = 100;
    let error = publish(&client, &repository, &index(), &[tag("v2")], || async { true }, |_, _| ()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TagContended);
}

#[tokio::test]
async fn leaves_tags_alone_once_superseded() {
    let server = Server::start(Auth::None).await;
    let client = server.client(None);
    let repository = server.repository("app");
    let asked = AtomicUsize::new(0);
    // Asked before the look and before the write of the first tag.
    let newest = || async { asked.fetch_add(1, Ordering::Relaxed) < 2 };
    let outcome = publish(&client, &repository, &index(), &[tag("v1"), tag("v2")], newest, |_, _| ()).await.unwrap();
    assert_eq!(outcome, PublishOutcome::Superseded);
    assert!(client.head_manifest(&repository, &tag("v1").into()).await.unwrap().is_some());
    assert!(client.head_manifest(&repository, &tag("v2").into()).await.unwrap().is_none());
}

/// The future must fit a multi-threaded runtime, with whatever a reconcile borrows.
#[test]
fn publishing_is_send() {
    fn send<T: Send>(_: T) {}
    let _ = || {
        let (client, repository, index, tags): (Client, Repository, IndexBytes, Vec<Tag>) =
            std::hint::black_box(None).unwrap();
        let run = 7u64;
        send(publish(&client, &repository, &index, &tags, || async { run > 0 }, |_, _| ()));
        send(copy_image(&client, &repository, &client, &repository, &index.digest));
    };
}

#[tokio::test]
async fn copies_by_mount_within_a_registry_and_by_stream_between_two() {
    for mounts in [true, false] {
        let source = Server::start(Auth::Bearer).await;
        source.content.lock().unwrap().mounts = mounts;
        let elsewhere = Server::start(Auth::Basic).await;
        let manifest = |config: &'static [u8], layer: &'static [u8]| {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST,
                "config": source.put_blob("from", config),
                "layers": [source.put_blob("from", layer), source.put_blob("from", b"shared layer")],
            });
            source.put_manifest("from", OCI_MANIFEST, &manifest)
        };
        let children = [manifest(b"config a", b"layer a"), manifest(b"config b", b"layer b")];
        let top = source.put_manifest("from", INDEX_MEDIA_TYPE, &json!({"schemaVersion": 2, "manifests": children}));
        let digest: Digest = top["digest"].as_str().unwrap().parse().unwrap();

        let client = source.client(Some(PASSWORD));
        let (from, to) = (source.repository("from"), source.repository("to/here"));
        // A mount that the login may not make is none.
        source.fault("POST /v2/to/here/blobs/uploads/", Fault { status: 403, ..Fault::default() });
        let copied = copy_image(&client, &from, &client, &to, &digest).await.unwrap();
        assert_eq!(*copied.digest(), digest);
        let target = elsewhere.client(Some(PASSWORD));
        copy_image(&client, &from, &target, &elsewhere.repository("copy"), &digest).await.unwrap();

        for (server, name) in [(&source, "to/here"), (&elsewhere, "copy")] {
            let content = server.content.lock().unwrap();
            let count = |keys: Vec<&(String, String)>| keys.iter().filter(|(repository, _)| repository == name).count();
            assert_eq!(count(content.blobs.keys().collect()), 5);
            assert_eq!(count(content.manifests.keys().collect()), 3);
        }
        let fetched = source.requests().iter().filter(|r| r.starts_with("GET /v2/from/blobs")).count();
        // Two layers of the index are one: whether it is fetched twice is a matter of time.
        assert!(if mounts { fetched == 6 } else { fetched >= 10 }, "{fetched}");
        // Again: it is all there, which one question tells.
        let before = source.requests().len();
        copy_image(&client, &from, &client, &to, &digest).await.unwrap();
        let last = source.requests().split_off(before);
        assert!(last.iter().all(|r| r.starts_with("HEAD") || r.starts_with("GET /token")), "{last:?}");
    }
}

/// A copy that the source breaks off is no failure of the registry that it goes to, which others push to, too.
#[tokio::test]
async fn a_source_that_breaks_off_is_told_as_the_source() {
    let (source, target) = (Server::start(Auth::None).await, Server::start(Auth::None).await);
    let (config, mut layer) = (source.put_blob("from", b"config"), source.put_blob("from", b"of 12 bytes."));
    // Whoever writes manifests may say so.
    layer["size"] = json!(5000);
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
    let put = source.put_manifest("from", OCI_MANIFEST, &manifest);
    let digest: Digest = put["digest"].as_str().unwrap().parse().unwrap();
    let (from, to) = (source.repository("from"), target.repository("to"));
    let error = copy_image(&source.client(None), &from, &target.client(None), &to, &digest).await.unwrap_err();
    assert_eq!(error.registry(), source.host, "{error}");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

fn in_pieces(bytes: &Bytes) -> BlobStream {
    let pieces: Vec<_> = bytes.chunks(1_000_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Box::pin(futures::stream::iter(pieces))
}

#[tokio::test]
async fn a_blob_too_large_for_one_request_is_sent_in_parts() {
    for (status, is_sent) in [(413, true), (500, false)] {
        let server = Server::start(Auth::Bearer).await;
        let (client, repository) = (server.client(Some(PASSWORD)), server.repository("app"));
        let bytes = Bytes::from((0..20_000_000_u32).map(|number| number.to_le_bytes()[1]).collect::<Vec<_>>());
        let blob = Descriptor::new("application/octet-stream".into(), bytes.len() as u64, sha256_digest(&bytes));
        server.fault("PUT /v2/app/blobs/uploads/", Fault { status, ..Fault::default() });
        let open: OpenBlob<'_> = &|| Box::pin(std::future::ready(Ok(in_pieces(&bytes))));
        let pushed = client.push_blob(&repository, &blob, open).await;
        assert_eq!(pushed.is_ok(), is_sent, "{pushed:?}");
        let parts = server.requests().iter().filter(|request| request.starts_with("PATCH")).count();
        assert_eq!(parts, if is_sent { 5 } else { 0 }, "of 4 MiB each");
        if is_sent {
            let stored = client.get_blob(&repository, blob.digest(), bytes.len()).await.unwrap();
            assert_eq!(stored, bytes);
            let end = client.get_blob_end(&repository, blob.digest(), blob.size(), 4).await.unwrap().unwrap();
            assert_eq!(end, bytes[bytes.len() - 4..]);
            // It is there: nothing is sent.
            let before = server.requests().len();
            client.push_blob(&repository, &blob, open).await.unwrap();
            assert_eq!(server.requests().len(), before + 1);
        }
    }
}

/// A registry may send an upload elsewhere; the credential stays, also where a server there asks for it.
#[tokio::test]
async fn an_upload_that_is_sent_elsewhere_in_parts_takes_no_credential_along() {
    for status in [201, 401] {
        let (server, other) = (Server::start(Auth::Basic).await, Server::start(Auth::None).await);
        let (client, repository) = (server.client(Some(PASSWORD)), server.repository("app"));
        client.check_push(&repository).await.unwrap();
        let bytes = Bytes::from(vec![7; 5_000_000]);
        let blob = Descriptor::new("application/octet-stream".into(), bytes.len() as u64, sha256_digest(&bytes));
        let session = |host: &str| {
            let location = format!("http://{host}/v2/app/blobs/uploads/1");
            Fault { status: 202, headers: vec![("location", location)], ..Fault::default() }
        };
        server.fault("POST", session(&server.host));
        server.fault("PUT", Fault { status: 413, ..Fault::default() });
        server.fault("POST", session(&other.host));
        let challenge = vec![("www-authenticate", "Basic realm=\"other\"".to_owned())];
        other.fault("PUT", Fault { status, headers: challenge, ..Fault::default() });
        let open: OpenBlob<'_> = &|| Box::pin(std::future::ready(Ok(in_pieces(&bytes))));
        let pushed = client.push_blob(&repository, &blob, open).await;
        assert_eq!(pushed.is_ok(), status == 201, "{pushed:?}");
        let seen = other.content.lock().unwrap().requests.clone();
        assert_eq!(seen.iter().map(|(line, _)| &line[..4]).collect::<Vec<_>>(), ["PATC", "PATC", "PUT "], "{seen:?}");
        assert!(seen.iter().all(|(_, authorization)| authorization.is_empty()), "{seen:?}");
    }
}

/// However large the parts are that a registry asks for, Kiln holds one of its own size.
#[tokio::test]
async fn parts_are_no_larger_for_a_registry_that_asks_for_it() {
    let server = Server::start(Auth::None).await;
    let (client, repository) = (server.client(None), server.repository("app"));
    let bytes = Bytes::from(vec![7; 9_000_000]);
    let blob = Descriptor::new("application/octet-stream".into(), bytes.len() as u64, sha256_digest(&bytes));
    server.fault("PUT", Fault { status: 413, ..Fault::default() });
    for _ in 0..2 {
        let location = ("location", "/v2/app/blobs/uploads/1".to_owned());
        let large = ("oci-chunk-min-length", (64 << 20).to_string());
        server.fault("POST", Fault { status: 202, headers: vec![location, large], ..Fault::default() });
    }
    let open: OpenBlob<'_> = &|| Box::pin(std::future::ready(Ok(in_pieces(&bytes))));
    client.push_blob(&repository, &blob, open).await.unwrap();
    assert_eq!(server.requests().iter().filter(|request| request.starts_with("PATCH")).count(), 3, "of 4 MiB each");
}

/// BuildKit takes its credential nowhere else, so a push would fail once all is built: as behind a proxy that does not tell the
/// registry its own name or that there is TLS before it.
#[tokio::test]
async fn the_push_check_finds_uploads_that_lead_elsewhere() {
    for location in ["http://registry.internal:5000/v2/app/blobs/uploads/1", "https:///v2/app/blobs/uploads/1"] {
        let server = Server::start(Auth::Basic).await;
        let headers = vec![("location", location.to_owned())];
        server.fault("POST", Fault { status: 202, headers, ..Fault::default() });
        let checked = server.client(Some(PASSWORD)).check_push(&server.repository("app")).await;
        let told = checked.expect_err(location).to_string();
        assert!(told.contains("registry.internal:5000") || !location.contains("internal"), "{told}");
    }
}

/// A registry that takes images of OCI's types, and no index of them.
#[tokio::test]
async fn an_index_that_is_not_taken_names_the_cure() {
    for (status, code) in [(400, "MANIFEST_INVALID"), (415, "UNSUPPORTED")] {
        let server = Server::start(Auth::None).await;
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"manifest invalid"}}]}}"#);
        server.fault("PUT", Fault { status, body, ..Fault::default() });
        let index = Bytes::from_static(br#"{"schemaVersion":2,"manifests":[]}"#);
        let by_digest = Identifier::from(sha256_digest(&index));
        let client = server.client(None);
        let error =
            client.put_manifest(&server.repository("app"), &by_digest, INDEX_MEDIA_TYPE, index).await.unwrap_err();
        assert!(error.to_string().contains("mediaTypes: Docker"), "{error}");
        assert_eq!(error.class(), FailureClass::User, "no later try mends it");
    }
}
