use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use kiln_registry::http_client::{AddressPolicy, Clients, HttpClient};
use kiln_registry::{Client, Reference};

use super::*;
use crate::watches::{Woken, wakes};

/// A registry that answers as it is told, and counts.
#[derive(Clone, Default)]
struct Registry {
    status: Arc<AtomicU16>,
    retry_after: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
    host: String,
}

impl Registry {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let registry = Self { host, ..Self::default() };
        let router = Router::new().fallback(answer).with_state(registry.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        registry
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

async fn answer(State(registry): State<Registry>) -> Response {
    registry.asked.fetch_add(1, Ordering::SeqCst);
    let status = registry.status.load(Ordering::SeqCst);
    let digest = format!("sha256:{}", "0".repeat(64));
    let response = Response::builder().status(status).header("docker-content-digest", digest);
    let response = response.header("content-type", "application/vnd.oci.image.manifest.v1+json");
    let response = match registry.retry_after.load(Ordering::SeqCst) {
        0 => response,
        seconds => response.header("retry-after", seconds),
    };
    response.header("content-length", "9").body("{}".into()).unwrap()
}

fn http() -> HttpClient {
    Clients::new().get(None, AddressPolicy::default().with_loopback()).unwrap()
}

fn outages() -> (Outages, Woken) {
    let (wake, woken) = wakes();
    (Outages::new(wake), woken)
}

fn asker(name: &str) -> Asker {
    Asker { namespace: "team".to_owned(), name: name.to_owned(), is_run: false }
}

/// Looks an image up, as a reconcile does.
async fn look_up(outages: &Outages, who: &str, host: &str) -> Result<(), Fault> {
    let reference: Reference = format!("{host}/app:v1").parse().unwrap();
    let client = Client::new(http(), Scheme::Http, None);
    let question = async {
        let found = client.head_manifest(&reference.repository, &reference.identifier).await;
        found.map(drop).map_err(Fault::from)
    };
    outages.asking(asker(who), ask(Server::registry(Scheme::Http, &reference.repository), question)).await
}

fn outage(outcome: &Result<(), Fault>) -> Option<&Outage> {
    outcome.as_ref().err()?.outage.as_deref()
}

#[tokio::test]
async fn a_registry_that_fails_is_asked_by_one_until_it_is_back() {
    let registry = Registry::start().await;
    let (outages, mut woken) = outages();
    registry.answers(503);
    for number in 0..circuits::FAILURES {
        let outcome = look_up(&outages, &number.to_string(), &registry.host).await;
        assert!(outage(&outcome).is_some_and(|outage| outage.asked), "{outcome:?}");
    }
    assert_eq!(registry.asked(), circuits::FAILURES as usize);
    let all: Vec<_> = (0..200).map(|number| format!("build-{number}")).collect();
    for name in &all {
        let outcome = look_up(&outages, name, &registry.host).await;
        let Err(fault) = &outcome else { panic!("it is away") };
        assert_eq!((fault.reason, fault.class), (Reason::RegistryUnavailable, FailureClass::Infrastructure));
        assert!(fault.message.contains(&registry.host) && !fault.message.contains("app"), "{fault}");
        assert!(!outage(&outcome).unwrap().asked && outages.holds(outcome.as_ref().err(), asker(name)));
        let mut failures = 3;
        let delay = delay(fault, &mut failures, name);
        assert!(failures == 3 && delay >= Duration::from_secs(150), "it is no failure of theirs");
        let said = Fault::user(Reason::RegistryUnavailable, "what it said before");
        assert_eq!(told(Some(said.clone()), fault.clone()).message, said.message, "nothing has to be written");
    }
    assert_eq!(registry.asked(), 0, "nobody asks");
    // One is woken, asks, and is told that it is still away.
    let one = woken.image_builds.recv().await.unwrap();
    let still = look_up(&outages, &one.name, &registry.host).await;
    assert!(outage(&still).is_some_and(|outage| outage.asked && outage.waits_for.is_some()), "{still:?}");
    assert_eq!(registry.asked(), 1);
    registry.answers(200);
    let one = woken.image_builds.recv().await.unwrap();
    look_up(&outages, &one.name, &registry.host).await.unwrap();
    // All others are woken, and may ask; the first two came before it was known, and have a delay of their own.
    let mut others = BTreeSet::from([one.name]);
    while others.len() < all.len() + 1 {
        others.insert(woken.image_builds.recv().await.unwrap().name);
    }
    look_up(&outages, &all[7], &registry.host).await.unwrap();
}

/// Another tenant's credential, or a name that he misspells, keeps nobody waiting.
#[tokio::test]
async fn what_a_tenant_did_wrong_is_no_outage() {
    let registry = Registry::start().await;
    let (outages, _woken) = outages();
    for status in [401, 403, 404, 409, 301] {
        registry.answers(status);
        for _ in 0..10 {
            let outcome = look_up(&outages, "a", &registry.host).await;
            assert!(outage(&outcome).is_none(), "{status}: {outcome:?}");
        }
        assert_eq!(registry.asked(), 10, "{status}");
    }
    for _ in 0..5 {
        look_up(&outages, "a", "127.0.0.1:9").await.unwrap_err();
    }
    registry.answers(200);
    look_up(&outages, "b", &registry.host).await.unwrap();
}

#[tokio::test]
async fn a_server_that_asks_for_time_gets_it() {
    let registry = Registry::start().await;
    let (outages, _woken) = outages();
    for (status, seconds, limits) in [(503, 1800, false), (429, 1800, true)] {
        registry.answers(status);
        registry.retry_after.store(seconds, Ordering::SeqCst);
        let outcome = look_up(&outages, "a", &registry.host).await;
        let met = outage(&outcome).unwrap().clone();
        assert_eq!((met.retry_after, met.limits), (Some(Duration::from_mins(30)), limits));
        assert_eq!(met.waits_for, None, "it comes by itself");
        let delay = delay(outcome.as_ref().unwrap_err(), &mut 0, "uid").as_secs();
        assert!((1800..=1810).contains(&delay), "{delay}");
    }
}

/// Of a reconcile that is given up, as where a run is cancelled, another one takes the place.
#[tokio::test]
async fn a_question_that_is_given_up_holds_nobody_up() {
    let (outages, _woken) = outages();
    let server = || Server { kind: Kind::Git, address: "ssh://git.example:22".to_owned() };
    let met = || Fault { outage: Some(Outage::met(None, false)), ..Fault::user(Reason::GitUnavailable, "away") };
    for _ in 0..circuits::FAILURES {
        let _ = outages.asking(asker("a"), ask::<()>(server(), async { Err(met()) })).await;
    }
    let begun = std::time::Instant::now();
    loop {
        // Never answered: it is dropped at once.
        let question = outages.asking(asker("b"), ask::<()>(server(), std::future::pending()));
        if tokio::time::timeout(Duration::from_millis(20), question).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    outages.asking(asker("c"), ask(server(), async { Ok(()) })).await.unwrap();
}

/// Publishing asks several registries, and only the one that failed is away.
#[tokio::test]
async fn a_fault_counts_for_the_registry_that_it_is_about() {
    let (outages, _woken) = outages();
    let server = |host: &str| {
        let repository = Repository::parse(&format!("{host}/app")).unwrap();
        Server::registry(Scheme::Https, &repository)
    };
    let fault = Fault {
        about: Some("copy.example".to_owned()),
        outage: Some(Outage::met(None, false)),
        ..Fault::user(Reason::RegistryUnavailable, "away")
    };
    for _ in 0..5 {
        let inner = ask::<()>(server("copy.example"), async { Err(fault.clone()) });
        outages.asking(asker("a"), ask(server("main.example"), inner)).await.unwrap_err();
    }
    let reaches = async |host: &str| outages.asking(asker("b"), ask(server(host), async { Ok(()) })).await.is_ok();
    assert!(reaches("main.example").await);
    assert!(!reaches("copy.example").await);
}
