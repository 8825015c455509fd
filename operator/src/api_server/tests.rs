//! The client against a server that keeps its answers to itself, or asks to wait.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body as Bytes;
use axum::extract::Request as Incoming;
use axum::response::IntoResponse as _;
use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, PostParams, WatchParams};
use serde_json::json;

use super::*;

const DEADLINE: Duration = Duration::from_millis(300);

/// A client of a server that answers so to its first request, its second and so on.
async fn client<F>(
    purpose: Purpose,
    reach: &Reach,
    answer: impl Fn(usize, Incoming) -> F + Clone + Send + Sync + 'static,
) -> Api<ConfigMap>
where
    F: Future<Output = axum::response::Response> + Send + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    let router = Router::new().fallback(move |request: Incoming| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        answer(number, request)
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Api::namespaced(build(Config::new(uri), purpose, reach.clone(), DEADLINE).unwrap(), "x")
}

fn config_map() -> axum::response::Response {
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    ([(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// The answer's head, and no more.
fn head_alone() -> axum::response::Response {
    Bytes::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>()).into_response()
}

#[tokio::test]
async fn a_lost_answer_ends_its_request() {
    for purpose in [Purpose::Lease, Purpose::Work] {
        let reach = Reach::default();
        let api = client(purpose, &reach, |number, request| async move {
            match (number, is_watch(request.uri())) {
                (0, _) => std::future::pending().await,
                (1, _) | (_, true) => head_alone(),
                _ => config_map(),
            }
        })
        .await;
        let new: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        for lost in ["all of it", "its body"] {
            let error = api.create(&PostParams::default(), &new).await.unwrap_err();
            assert!(matches!(&error, kube::Error::Service(cause) if cause.is::<NoAnswer>()), "{lost}: {error}");
            assert!(reach.lost_for() > Duration::ZERO);
            let told = crate::refusal::words(&error);
            assert!(told.contains("the API server did not answer within "), "{told}");
        }
        api.get("a").await.unwrap();
        assert_eq!(reach.lost_for(), Duration::ZERO);
        // A watch has begun, and may be mute.
        let mut watch = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        assert!(tokio::time::timeout(DEADLINE * 2, watch.next()).await.is_err());
    }
}

#[tokio::test]
async fn who_asks_to_wait_is_asked_again() {
    let reach = Reach::default();
    let api = client(Purpose::Work, &reach, async |number, _| match number {
        2 => config_map(),
        _ => (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "0")], "busy").into_response(),
    })
    .await;
    api.get("a").await.unwrap();
    // Not for ever.
    assert!(matches!(api.get("a").await.unwrap_err(), kube::Error::Api(status) if status.code == 429));
    assert_eq!(reach.lost_for(), Duration::ZERO);
}

#[tokio::test]
async fn a_slow_server_is_asked_less() {
    let reach = Reach::default();
    let away = client(Purpose::Work, &reach, async |_, _| std::future::pending().await).await;
    let begun = Instant::now();
    // As many as there is room for fail at their deadline; the others are sent then, a half at a time.
    let every = ListParams::default();
    let all = futures::future::join_all((0..40).map(|_| away.list(&every))).await;
    assert!(all.iter().all(Result::is_err));
    assert!(begun.elapsed() >= DEADLINE * 2, "they were not all sent at once");
}

#[test]
fn pauses() {
    let asked = |value: &str| HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
    for (headers, attempt, least, most) in [
        (asked("1"), 1, 1.0, 1.5),
        (asked("999999999999"), 1, 30.0, 45.0),
        (asked("Wed, 21 Oct 2015 07:28:00 GMT"), 1, 0.4, 0.6),
        (HeaderMap::new(), 3, 1.6, 2.4),
    ] {
        let pause = pause(&headers, attempt).as_secs_f64();
        assert!((least..=most).contains(&pause), "{headers:?}: {pause}");
    }
}
