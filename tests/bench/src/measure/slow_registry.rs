//! A base registry that thinks for a second about each manifest: what a warm build loses to it, and the bare tool.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use k8s_openapi::api::core::v1::ConfigMap;
use kiln_crds::CaRef;
use kiln_crds::builder_pool::PoolRegistry;
use kiln_e2e::cluster::builders_namespace;
use kiln_e2e::hostile_server::{HostileServer, ca};
use kiln_e2e::{Build, Cluster, Tenant};
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, PostParams};

use crate::bare::Bare;
use crate::builds::Builds;
use crate::figures::{Figure, Unit};
use crate::measure::warm::repository;
use crate::project::files;

const GROUP: &str = "base registry that answers after one second, warm builder";
const DELAY: Duration = Duration::from_secs(1);

/// Builds the unchanged tree from that registry's busybox, `runs` times.
pub async fn measure(runs: usize) -> Vec<Figure> {
    let (mut kiln, mut by_hand) = (Vec::new(), Vec::new());
    Tenant::fresh("bench-slow", async |tenant| {
        let server = HostileServer::serve(&tenant.cluster, proxy(&tenant.cluster)).await;
        let bundle = ConfigMap {
            metadata: ObjectMeta { name: Some(tenant.namespace.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([("ca.crt".to_owned(), ca())])),
            ..ConfigMap::default()
        };
        let bundles: Api<ConfigMap> = Api::namespaced(tenant.cluster.client.clone(), &builders_namespace());
        bundles.create(&PostParams::default(), &bundle).await.expect("a ConfigMap can be made");
        let ca_ref: CaRef = serde_json::from_value(serde_json::json!({"name": tenant.namespace})).expect("a caRef");
        let registry = PoolRegistry { host: server.host.clone(), ca_ref: Some(ca_ref), ..PoolRegistry::default() };
        let pool = tenant.pool("slow", |spec| spec.registries.push(registry)).await;

        let files = files();
        let repository = repository(tenant, &files);
        let base = format!("{}/docker.io/library/busybox", server.host);
        let build = Build::git(tenant, "app", &repository)
            .amd64()
            .pool(&pool)
            .with(|spec| drop(spec.args.insert("BASE".to_owned(), base.clone())));
        let mut builds = Builds::of(tenant).await;
        builds.create(&build).await;
        let pod = Bare::new(tenant, &files, Some(&base)).await;
        pod.unchanged().await;
        for round in 0..=runs {
            let timed = builds.rebuild("app", &format!("slow-{round}")).await;
            kiln.push((timed.seconds, timed.phases));
            by_hand.push(pod.unchanged().await);
        }
        bundles.delete(&tenant.namespace, &DeleteParams::default()).await.expect("a ConfigMap can be deleted");
    })
    .await;
    kiln.remove(0);
    vec![
        Figure::timed(GROUP, "Kiln, apply → digest", kiln),
        Figure::new(GROUP, "bare buildctl in the same pod", Unit::Seconds, by_hand[1..].to_vec()),
    ]
}

/// The cluster's registry behind a delay, for everybody to read.
fn proxy(cluster: &Cluster) -> Router {
    let bundle = reqwest::Certificate::from_pem_bundle(cluster.registry_ca.as_bytes());
    let http = reqwest::Client::builder()
        .tls_certs_only(bundle.expect("KILN_REGISTRY_CA holds PEM certificates"))
        .build()
        .expect("a client can be made");
    let (host, user, password) =
        (cluster.registry.clone(), cluster.registry_user.clone(), cluster.registry_password.clone());
    Router::new().fallback(move |request: Request| {
        let (http, host, user, password) = (http.clone(), host.clone(), user.clone(), password.clone());
        async move {
            let uri = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            if uri.contains("/manifests/") {
                tokio::time::sleep(DELAY).await;
            }
            let mut passed_on =
                http.request(request.method().clone(), format!("https://{host}{uri}")).basic_auth(user, Some(password));
            for value in request.headers().get_all("accept") {
                passed_on = passed_on.header("accept", value);
            }
            let answer = passed_on.send().await.expect("the registry answers");
            let mut response = Response::builder().status(answer.status());
            for name in ["content-type", "content-length", "docker-content-digest", "docker-distribution-api-version"] {
                if let Some(value) = answer.headers().get(name) {
                    response = response.header(name, value);
                }
            }
            response
                .body(Body::from_stream(answer.bytes_stream()))
                .expect("a status and headers of an answer are valid")
        }
    })
}
