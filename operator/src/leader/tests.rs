//! The election against a small API server that knows one Lease.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::routing::get;
use serde_json::{Value, json};

use super::*;

#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    down: Arc<Mutex<bool>>,
}

type Answer = (StatusCode, [(HeaderName, &'static str); 1], String);

fn answer(code: StatusCode, body: &Value) -> Answer {
    (code, [(CONTENT_TYPE, "application/json")], body.to_string())
}

fn status(code: StatusCode, reason: &str) -> Answer {
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()}),
    )
}

impl Server {
    fn write(&self, new: &str, create: bool) -> Answer {
        let mut new: Value = serde_json::from_str(new).unwrap();
        if *self.down.lock().unwrap() {
            return status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        let mut lease = self.lease.lock().unwrap();
        let version = lease.as_ref().map(|l| l["metadata"]["resourceVersion"].clone());
        if create == lease.is_some() || (!create && version.as_ref() != Some(&new["metadata"]["resourceVersion"])) {
            return status(StatusCode::CONFLICT, "Conflict");
        }
        let next = version.and_then(|v| v.as_str()?.parse::<u64>().ok()).unwrap_or(0) + 1;
        new["metadata"]["resourceVersion"] = json!(next.to_string());
        *lease = Some(new.clone());
        answer(StatusCode::OK, &new)
    }

    async fn start(&self) -> kube::Client {
        let one = get(|State(s): State<Self>| async move {
            if *s.down.lock().unwrap() {
                return status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
            }
            let lease = s.lease.lock().unwrap().clone();
            lease.map_or_else(|| status(StatusCode::NOT_FOUND, "NotFound"), |l| answer(StatusCode::OK, &l))
        })
        .put(|State(s): State<Self>, new: String| async move { s.write(&new, false) });
        let all = axum::routing::post(|State(s): State<Self>, new: String| async move { s.write(&new, true) });
        let root = "/apis/coordination.k8s.io/v1/namespaces/kiln/leases";
        let router = Router::new().route(root, all).route(&format!("{root}/op"), one).with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        kube::Client::try_from(kube::Config::new(uri)).unwrap()
    }

    fn holder(&self) -> String {
        let lease = self.lease.lock().unwrap();
        lease.as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }
}

fn elector(client: &kube::Client, identity: &str) -> Elector {
    let timing = Timing {
        lease: Duration::from_secs(1),
        renew_deadline: Duration::from_millis(600),
        retry: Duration::from_millis(50),
        look: Duration::from_millis(50),
    };
    Elector { timing, ..Elector::new(client.clone(), "kiln", "op", identity, Rounds::default()) }
}

#[tokio::test]
async fn hand_over_by_release() {
    let server = Server::default();
    let client = server.start().await;
    let first = elector(&client, "first").acquire(std::future::pending()).await.unwrap();
    assert!(first.is_leader());
    let second = elector(&client, "second");
    let none = second.acquire(tokio::time::sleep(Duration::from_millis(1500))).await;
    assert!(none.is_none(), "renewals keep the second waiting beyond the lease's duration");
    assert!(first.is_leader());
    let token = first.token();
    first.release().await;
    assert!(!token.is_leader());
    assert_eq!(server.holder(), "");
    let second = second.acquire(std::future::pending()).await.unwrap();
    assert!(second.is_leader());
    assert_eq!(server.holder(), "second");
    let transitions = server.lease.lock().unwrap().as_ref().unwrap()["spec"]["leaseTransitions"].clone();
    assert_eq!(transitions, json!(1));
}

#[tokio::test]
async fn a_leader_cut_off_stops_before_its_lease_can_be_taken() {
    let server = Server::default();
    let client = server.start().await;
    let first = elector(&client, "first").acquire(std::future::pending()).await.unwrap();
    *server.down.lock().unwrap() = true;
    let cut = Instant::now();
    first.lost().await;
    assert!(cut.elapsed() < Duration::from_secs(1), "{:?}", cut.elapsed());
    assert!(!first.is_leader());
    *server.down.lock().unwrap() = false;
    first.release().await;
    assert_eq!(server.holder(), "first", "a lost Lease is not written any more");
    let second = elector(&client, "second").acquire(std::future::pending()).await.unwrap();
    assert!(second.is_leader());
}

#[tokio::test]
async fn a_stolen_lease_is_noticed() {
    let server = Server::default();
    let client = server.start().await;
    let first = elector(&client, "first").acquire(std::future::pending()).await.unwrap();
    {
        let mut lease = server.lease.lock().unwrap();
        let lease = lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = json!("thief");
        lease["metadata"]["resourceVersion"] = json!("99");
    }
    tokio::time::timeout(Duration::from_millis(400), first.lost()).await.unwrap();
    assert_eq!(server.holder(), "thief");
}

#[tokio::test]
async fn dropping_ends_the_renewals() {
    let server = Server::default();
    let client = server.start().await;
    drop(elector(&client, "first").acquire(std::future::pending()).await.unwrap());
    let second = elector(&client, "second").acquire(tokio::time::sleep(Duration::from_secs(5))).await;
    assert!(second.is_some());
}
