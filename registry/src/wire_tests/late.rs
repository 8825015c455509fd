//! What comes late, or never: answers, and whoever supersedes.

use super::*;
use crate::http_client::HttpClient;

/// Who is superseded after the last tag was written has come too late: the image is published.
#[tokio::test]
async fn whoever_is_superseded_once_all_tags_have_moved_is_published() {
    for (asked, expected) in [(3, PublishOutcome::Superseded), (4, PublishOutcome::Published)] {
        let server = Server::start(Auth::None).await;
        let left = AtomicUsize::new(asked);
        let newest =
            || async { left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() };
        let tags = [tag("v1"), tag("v2")];
        let (client, repository) = (server.client(None), server.repository("app"));
        let outcome = publish(&client, &repository, &index(), &tags, newest, |_, _| ()).await;
        assert_eq!(outcome.unwrap(), expected, "asked {asked} times");
        let written = |request: &&String| request.starts_with("PUT /v2/app/manifests/v");
        let written = server.requests().iter().filter(written).count();
        assert_eq!(written, if expected == PublishOutcome::Published { 2 } else { 1 });
    }
}

/// What is told of a write: whether it is done is unknown where the registry does not answer, or fails; where it refuses, it
/// is not. What was held up is done late, whoever has moved the tag since.
#[tokio::test]
async fn a_write_without_an_answer_is_unknown_and_may_come_late() {
    let told = async |server: &Server, client: &Client| {
        let steps = std::sync::Mutex::new(Vec::new());
        let step = |step: Step<'_>| steps.lock().unwrap().push(format!("{step:?}"));
        let deadline = Duration::from_millis(200);
        let (repository, tag) = (server.repository("app"), tag("v1"));
        let written = publish::write_within(deadline, client, &repository, &index(), &tag, step).await;
        (written.map_err(|error| error.kind()), steps.into_inner().unwrap().join(" "))
    };
    let server = Server::start(Auth::None).await;
    let client = server.client(None);
    for (status, kind, steps) in [
        (403, ErrorKind::Denied, "Writing Refused"),
        (409, ErrorKind::TagImmutable, "Writing Refused"),
        (408, ErrorKind::Unavailable, "Writing"),
        (500, ErrorKind::Unavailable, "Writing"),
        (504, ErrorKind::Unavailable, "Writing"),
        (server::MUTE, ErrorKind::Unavailable, "Writing"),
    ] {
        server.fault("PUT /v2/app/manifests/v1", Fault { status, ..Fault::default() });
        assert_eq!(told(&server, &client).await, (Err(kind), steps.to_owned()), "{status}");
    }
    assert_eq!(told(&server, &client).await, (Ok(()), "Writing".to_owned()));

    server.content.lock().unwrap().late = 1;
    assert_eq!(told(&server, &client).await, (Err(ErrorKind::Unavailable), "Writing".to_owned()));
    let newer = Bytes::from_static(br#"{"newer":true}"#);
    client.put_manifest(&server.repository("app"), &tag("v1").into(), INDEX_MEDIA_TYPE, newer).await.unwrap();
    server.deliver();
    let there = client.head_manifest(&server.repository("app"), &tag("v1").into()).await.unwrap().unwrap();
    assert_eq!(*there.digest(), index().digest, "the older one stands");
}

/// A registry that takes connections and says nothing, or whose answers never end, holds nobody up: each request has a
/// deadline, its body included.
#[tokio::test]
async fn no_request_lasts_for_ever() {
    for status in [server::MUTE, server::ENDLESS] {
        let server = Server::start(Auth::None).await;
        let http = HttpClient::impatient(AddressPolicy::default().with_loopback(), Duration::from_millis(200));
        let client = Client::new(http, Scheme::Http, None);
        for _ in 0..8 {
            server.fault("", Fault { status, ..Fault::default() });
        }
        let (repository, v1) = (server.repository("app"), Identifier::from(tag("v1")));
        let digest = sha256_digest(b"x");
        let all = async {
            let (head, get, blob, end, put) = tokio::join!(
                client.head_manifest(&repository, &v1),
                client.get_manifest(&repository, &v1),
                client.get_blob(&repository, &digest, 9),
                client.get_blob_end(&repository, &digest, 9, 3),
                client.put_manifest(&repository, &v1, OCI_MANIFEST, Bytes::from_static(b"{}")),
            );
            (head.is_err(), get.is_err(), blob.is_err(), end.is_ok_and(|end| end.is_some()), put.is_err())
        };
        let ended = tokio::time::timeout(Duration::from_secs(10), all).await.expect("each ends");
        let answered = status == server::ENDLESS;
        // Of a HEAD and a PUT no body is read.
        assert_eq!(ended, (true, true, true, false, !answered), "{status}");
    }
}
