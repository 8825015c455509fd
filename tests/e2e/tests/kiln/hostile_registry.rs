//! Registries that never end, answer nonsense, or send Kiln elsewhere: each gets its reason in bounded time, nobody else
//! gets the credential, and other builds go on. What the operator's client makes of single answers, such as a redirect of
//! a read or a wrong digest, is in `operator/src/registry/wire_tests`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::Response;
use k8s_openapi::api::core::v1::Pod;
use kiln_crds::image_build_run::{ImageBuildRunStatus, RunPhase};
use kiln_crds::{CaRef, CaRefKind, SecretRef};
use kiln_e2e::build::repository;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::hostile_server::{Asked, HostileServer, ca, endless, reply, trickle};
use kiln_e2e::tenant::{REGISTRY_SECRET, condition, run_of};
use kiln_e2e::{Build, Tenant};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

kiln_e2e::tests![
    nonsense_and_endless_answers,
    an_upload_sent_elsewhere_takes_no_credential_along,
    silent_once_the_operator_is_content,
    a_registry_that_stores_nothing,
    a_cancel_ends_publishing,
    a_cancelled_run_tells_which_tags_it_moved
];

/// The password that no server but the one it is for may see.
const PASSWORD: &str = "planted-registry-password";

/// What each registry answers, told by the first part of the repository's path, and the reason that it gets.
const NONSENSE: [(&str, &str); 14] = [
    ("page", "RegistryProtocol"),
    ("redirect-loopback", "RegistryProtocol"),
    ("silent", "RegistryUnavailable"),
    ("endless-error", "RegistryUnavailable"),
    ("huge-headers", "RegistryUnavailable"),
    ("odd-challenge", "RegistryUnauthorized"),
    ("wait-for-ever", "RegistryUnavailable"),
    ("odd-words", "PushDenied"),
    ("token-loopback", "AddressForbidden"),
    ("token-plain", "RegistryProtocol"),
    ("token-page", "RegistryProtocol"),
    ("token-endless", "RegistryProtocol"),
    ("token-trickle", "RegistryUnavailable"),
    ("token-silent", "RegistryUnavailable"),
];

const JSON: (&str, &str) = ("content-type", "application/json");
const PAGE: (&str, &str) = ("content-type", "text/html");

fn nonsense(asked: &Asked) -> Option<Response> {
    let path = asked.uri.path();
    let host = asked.header("host");
    let token = |realm: &str| {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
        Some(reply(401, &[("www-authenticate", &challenge)], ""))
    };
    match path.trim_start_matches("/v2/").split('/').next().unwrap_or_default() {
        "page" | "realm-page" => Some(reply(200, &[PAGE], "<html>log in</html>")),
        "redirect-loopback" => Some(reply(307, &[("location", "https://127.0.0.1:8443/v2/")], "")),
        "endless-error" => Some(reply(500, &[PAGE], endless("<html>"))),
        "huge-headers" => Some(reply(202, &[("x-padding", &"x".repeat(1 << 20))], "")),
        "odd-challenge" => Some(reply(401, &[("www-authenticate", &"= , \"= ".repeat(4096))], "")),
        "wait-for-ever" => Some(reply(429, &[("retry-after", "99999999999999999999")], "")),
        "odd-words" => {
            let words = "\\u001b[31m\\u0007\\u202e\\r\\nREASON".repeat(500);
            Some(reply(403, &[JSON], format!(r#"{{"errors":[{{"code":"DENIED","message":"{words}"}}]}}"#)))
        }
        "token-loopback" => token("https://127.0.0.1:8443/token"),
        "token-plain" => token(&format!("http://{host}/realm")),
        "token-page" => token(&format!("https://{host}/realm-page")),
        "token-endless" => token(&format!("https://{host}/realm-endless")),
        "token-trickle" => token(&format!("https://{host}/realm-trickle")),
        "token-silent" => token(&format!("https://{host}/realm-silent")),
        // Realms have no /v2/ before them.
        _ if path == "/realm-endless" => Some(reply(200, &[JSON], endless("{\"token\":\""))),
        _ if path == "/realm-trickle" => Some(reply(200, &[JSON], trickle("{\"token\":\""))),
        _ if path == "/realm-page" => Some(reply(200, &[PAGE], "<html>log in</html>")),
        _ => None,
    }
}

/// An ImageBuild for a hostile registry, with a credential for it.
async fn build(tenant: &Tenant, name: &str, repository: &str) -> Build {
    let host = repository.split('/').next().unwrap();
    let secret = format!("login-{}", host.rsplit(':').next().unwrap());
    tenant.secret(&secret, "kubernetes.io/basic-auth", &[("username", "planted"), ("password", PASSWORD)]).await;
    tenant.secret("hostile-ca", "Opaque", &[("ca.crt", &ca())]).await;
    Build::inline(tenant, name, &[("Dockerfile", "FROM busybox\nRUN echo 1 > /file\n")]).amd64().with(|spec| {
        repository.clone_into(&mut spec.image.as_mut().unwrap().repository);
        spec.image.as_mut().unwrap().secret_ref = Some(SecretRef { name: secret });
        // For the base image.
        spec.pull_secret_refs = vec![SecretRef { name: REGISTRY_SECRET.to_owned() }];
        spec.image.as_mut().unwrap().ca_ref =
            Some(CaRef { kind: Some(CaRefKind::Secret), name: "hostile-ca".to_owned(), key: None });
    })
}

/// The operator's pods, and how often each was started again.
pub async fn operators(tenant: &Tenant) -> BTreeMap<String, i32> {
    let pods: Api<Pod> = Api::namespaced(tenant.cluster.client.clone(), &operator_namespace());
    let labels = ListParams::default().labels("app.kubernetes.io/component=operator");
    let restarts = |pod: &Pod| -> i32 {
        pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()).map(|c| c.restart_count).sum()
    };
    pods.list(&labels).await.unwrap().iter().map(|pod| (pod.name_any(), restarts(pod))).collect()
}

async fn nonsense_and_endless_answers() {
    Tenant::run("hostile-registry", async |tenant| {
        let before = operators(tenant).await;
        // Each has a server of its own: one that has failed some times is asked by one build at a time.
        let servers = NONSENSE.map(|_| HostileServer::start(&tenant.cluster, nonsense));
        let servers = futures::future::join_all(servers).await;
        let silent = HostileServer::silent(&tenant.cluster).await;
        let elsewhere = format!("{}/app", silent.host);
        let cases: Vec<_> = NONSENSE
            .iter()
            .zip(&servers)
            .map(|((kind, reason), server)| ((*kind).to_owned(), format!("{}/{kind}/app", server.host), *reason))
            .chain([("no-tls".to_owned(), elsewhere, "RegistryUnavailable")])
            .collect();
        for (name, repository, _) in &cases {
            tenant.create_build(&build(tenant, name, repository).await).await;
        }
        // They do not keep another build waiting.
        tenant.build(&Build::inline(tenant, "other", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;

        for (name, _, reason) in &cases {
            let failed = tenant.not_ready(name, reason).await;
            let ready = condition(&failed, "Ready").unwrap();
            assert_eq!(run_of(&failed), "", "{name}: no run is made for a registry that cannot be pushed to");
            assert!(ready.message.len() < 2048, "{name}: {} bytes of message", ready.message.len());
            assert!(
                !ready.message.chars().any(|char| char.is_control() || char == '\u{202e}'),
                "{name}: {:?}",
                ready.message
            );
            assert!(!ready.message.contains(PASSWORD), "{name}: {}", ready.message);
        }
        assert_eq!(operators(tenant).await, before, "the operator is the same one");
    })
    .await;
}

/// A registry that asks for a login, and wants what is pushed to go to another host; of its repository `hidden`, only what a
/// builder pushes.
fn sends_elsewhere(other: String) -> impl Fn(&Asked) -> Option<Response> {
    move |asked| {
        if !asked.has_credential() {
            return Some(reply(401, &[("www-authenticate", "Basic realm=\"x\"")], ""));
        }
        let hides = asked.by_operator() && asked.uri.path().starts_with("/v2/hidden/");
        let host = if hides { asked.header("host").to_owned() } else { other.clone() };
        match asked.method.as_str() {
            "POST" => Some(reply(202, &[("location", &format!("https://{host}/upload?state=1"))], "")),
            "HEAD" | "GET" if asked.uri.path() != "/v2/" => Some(reply(404, &[], "")),
            _ => Some(reply(200, &[], "")),
        }
    }
}

async fn an_upload_sent_elsewhere_takes_no_credential_along() {
    Tenant::run("upload-elsewhere", async |tenant| {
        let challenge = [("www-authenticate", "Basic realm=\"x\"")];
        let other = HostileServer::start(&tenant.cluster, move |_| Some(reply(401, &challenge, ""))).await;
        let server = HostileServer::start(&tenant.cluster, sends_elsewhere(other.host.clone())).await;
        let told = build(tenant, "told", &format!("{}/app", server.host)).await;
        tenant.create_build(&told).await;
        let told = tenant.not_ready("told", "RegistryProtocol").await;
        let message = &condition(&told, "Ready").expect("it has the condition").message;
        assert!(message.contains(&format!("has uploads sent to https://{}", other.host)), "{message}");
        assert!(condition(&told, "Stalled").is_some(), "only somebody's change mends it");
        assert!(other.asked().is_empty(), "the operator does not go there");

        let build = build(tenant, "app", &format!("{}/hidden", server.host)).await;
        tenant.create_build(&build.with(|spec| spec.retries = Some(0))).await;
        tenant
            .wait_build("app", "failed", kiln_e2e::wait::BUILD, |build| {
                Ok(build.status.as_ref().is_some_and(|status| status.failure.is_some()))
            })
            .await;
        assert!(
            server.asked().iter().any(|asked| asked.has_credential() && !asked.by_operator()),
            "the builder logs in"
        );
        let seen = other.asked();
        assert!(!seen.is_empty(), "the builder goes where the registry sends it");
        assert!(!seen.iter().any(Asked::has_credential), "without the credential: {seen:#?}");
    })
    .await;
}

async fn silent_once_the_operator_is_content() {
    Tenant::run("silent-registry", async |tenant| {
        let server = HostileServer::start(&tenant.cluster, |asked| {
            let here = format!("https://{}/upload", asked.header("host"));
            asked.by_operator().then(|| reply(202, &[("location", &here)], ""))
        })
        .await;
        let timeout = |spec: &mut kiln_crds::ImageBuildSpec| spec.timeout = Some(Duration::from_secs(20).into());
        tenant.create_build(&build(tenant, "push", &format!("{}/app", server.host)).await.with(timeout)).await;
        let from = format!("FROM {}/base\n", server.host);
        let pull = build(tenant, "pull", &format!("{}/other", server.host)).await.with(timeout);
        let pull = pull.with(|spec| from.clone_into(kiln_e2e::build::file(spec, "Dockerfile")));
        tenant.create_build(&pull).await;
        for name in ["push", "pull"] {
            tenant.not_ready(name, "BuildTimeout").await;
        }
        // The builder is as good as before.
        tenant.build(&Build::inline(tenant, "other", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
    })
    .await;
}

async fn a_registry_that_stores_nothing() {
    Tenant::run("lying-registry", async |tenant| {
        let server = HostileServer::start(&tenant.cluster, |asked| {
            let here = format!("https://{}/upload", asked.header("host"));
            Some(match asked.method.as_str() {
                "POST" => reply(202, &[("location", &here)], ""),
                "PUT" | "PATCH" => reply(201, &[("location", &here)], ""),
                "HEAD" if !asked.by_operator() => reply(404, &[], ""),
                _ => reply(200, &[PAGE], "<html>yes</html>"),
            })
        })
        .await;
        tenant.create_build(&build(tenant, "app", &format!("{}/app", server.host)).await).await;
        // It may be in trouble: what is built is offered again and again, and the user is told meanwhile.
        let told = tenant
            .wait_build("app", "told of a registry that is none", kiln_e2e::wait::BUILD, |build| {
                Ok(condition(build, "Ready").is_some_and(|ready| ready.reason == "RegistryProtocol"))
            })
            .await;
        assert!(told.status.as_ref().unwrap().image.is_none(), "no image is claimed that is not there");
        // And the user is not held up by it.
        tenant
            .edit("app", |build| {
                build.spec.image.as_mut().unwrap().repository = repository(tenant, "app");
                build.spec.image.as_mut().unwrap().secret_ref = Some(SecretRef { name: REGISTRY_SECRET.to_owned() });
            })
            .await;
        tenant.built_after("app", &run_of(&told)).await;
    })
    .await;
}

/// A registry that takes the image and then says nothing more holds up nobody who cancels.
async fn a_cancel_ends_publishing() {
    Tenant::run("silent-publishing", async |tenant| {
        // Silent from the index on, or only once tags are asked for.
        let server = HostileServer::start(&tenant.cluster, |asked| {
            let here = format!("https://{}/upload", asked.header("host"));
            let path = asked.uri.path();
            if asked.by_operator() && path.contains("/manifests/") && !path.starts_with("/v2/tags/manifests/sha256:") {
                return None;
            }
            Some(match asked.method.as_str() {
                "POST" => reply(202, &[("location", &here)], ""),
                "PUT" | "PATCH" => reply(201, &[("location", &here)], ""),
                "HEAD" => reply(404, &[], ""),
                _ => reply(200, &[JSON], "{}"),
            })
        })
        .await;
        for name in ["index", "tags"] {
            tenant.create_build(&build(tenant, name, &format!("{}/{name}", server.host)).await).await;
        }
        for name in ["index", "tags"] {
            let of_this = |asked: &Asked| {
                let path = asked.uri.path();
                let silent = path.strip_prefix(&format!("/v2/{name}/manifests/"));
                asked.by_operator() && silent.is_some_and(|what| name == "index" || !what.starts_with("sha256:"))
            };
            let silence = async {
                while !server.asked().iter().any(of_this) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(kiln_e2e::wait::BUILD, silence).await.expect("it is published");
            let run = format!("{name}-1");
            let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
            tenant.runs().patch(&run, &PatchParams::default(), &cancel).await.expect("a run can be cancelled");
            // A request that is not answered would end after 30 s.
            tenant
                .wait_run(&run, "it is cancelled", Duration::from_secs(10), |run| {
                    Ok(run.status.as_ref().is_some_and(|status| status.phase == RunPhase::Cancelled))
                })
                .await;
        }
    })
    .await;
}

/// A run that is cancelled between two tags moves the second too, and has succeeded: what it has moved is its ImageBuild's, and the
/// next run does not take it for another's doing.
async fn a_cancelled_run_tells_which_tags_it_moved() {
    Tenant::run("cancelled-tags", async |tenant| {
        let begun = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&begun);
        let stored = Mutex::<BTreeMap<String, (String, String)>>::default();
        let server = HostileServer::start(&tenant.cluster, move |asked| {
            let here = format!("https://{}/upload", asked.header("host"));
            let path = asked.uri.path();
            let Some((_, name)) = path.split_once("/manifests/").filter(|_| asked.by_operator()) else {
                return Some(match asked.method.as_str() {
                    "POST" => reply(202, &[("location", &here)], ""),
                    "PUT" | "PATCH" => reply(201, &[("location", &here)], ""),
                    "HEAD" => reply(404, &[], ""),
                    _ => reply(200, &[JSON], "{}"),
                });
            };
            if asked.method == "PUT" {
                if name == "two" {
                    // Time for the cancel.
                    seen.store(true, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_secs(1));
                }
                let digest = format!("sha256:{:x}", Sha256::digest(&asked.body));
                let index = (digest.clone(), asked.body.len().to_string());
                stored.lock().unwrap().insert(name.to_owned(), index);
                return Some(reply(201, &[("docker-content-digest", &digest)], ""));
            }
            Some(match stored.lock().unwrap().get(name) {
                Some((digest, length)) => {
                    let index = ("content-type", "application/vnd.oci.image.index.v1+json");
                    reply(200, &[index, ("docker-content-digest", digest), ("content-length", length)], "")
                }
                None => reply(404, &[], ""),
            })
        })
        .await;
        let build = build(tenant, "app", &format!("{}/app", server.host)).await.tags(&["one", "two"]);
        tenant.create_build(&build).await;
        tokio::time::timeout(kiln_e2e::wait::BUILD, async {
            while !begun.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the second tag is about to move");
        let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
        tenant.runs().patch("app-1", &PatchParams::default(), &cancel).await.expect("a run can be cancelled");
        let ended = tenant.wait_run("app-1", "it has ended", kiln_e2e::wait::SOON, |run| {
            Ok(run.status.as_ref().is_some_and(|status| status.phase.is_final()))
        });
        let ImageBuildRunStatus { phase, tags, .. } = ended.await.status.unwrap();
        assert_eq!(phase, RunPhase::Succeeded, "the cancel came too late");
        let moved: Vec<_> = tags.iter().map(|tag| (tag.tag.as_str(), tag.digest.is_some())).collect();
        assert_eq!(moved, [("one", true), ("two", true)]);
    })
    .await;
}
