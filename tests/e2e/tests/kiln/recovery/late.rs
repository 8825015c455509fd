//! What an ImageBuild names may arrive after it: it becomes Ready by itself, and until then Kiln looks again without a
//! write.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kiln_crds::CaRef;
use kiln_e2e::audit::{Audit, is_write, shown};
use kiln_e2e::build::git;
use kiln_e2e::git::Commit;
use kiln_e2e::{Build, Repository, Tenant};
use kube::api::PostParams;
use serde_json::json;
use tokio::net::TcpListener;

use crate::recovery::host::{self, is_local};
use crate::recovery::proxy::{self, Identity, Proxy, Upstream};

kiln_e2e::tests![what_arrives_late_is_found_and_what_stays_away_causes_no_write];

/// How long what is named is missing: long enough for several looks.
const MISSING: Duration = Duration::from_secs(20);

async fn what_arrives_late_is_found_and_what_stays_away_causes_no_write() {
    if !is_local("what_arrives_late_is_found_and_what_stays_away_causes_no_write") {
        return;
    }
    Tenant::fresh("late", async |tenant| {
        let files = [("Dockerfile", "FROM busybox\n")];
        let repository = Repository::public(tenant, "app");
        repository.write(&files);

        tenant
            .create_build(&Build::inline(tenant, "secret", &files).amd64().with(|spec| {
                spec.image.as_mut().unwrap().secret_ref.as_mut().unwrap().name = "late".to_owned();
            }))
            .await;
        tenant
            .create_build(
                &Build::git(tenant, "ref", &repository)
                    .amd64()
                    .with(|spec| git(spec).reference = Some("late".to_owned())),
            )
            .await;
        let address = nobody_listens(host::address(&tenant.cluster)).await;
        let ca: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "proxy-ca"}, "data": {"ca.crt": proxy::ca()}})).unwrap();
        tenant.api::<ConfigMap>().create(&PostParams::default(), &ca).await.unwrap();
        tenant
            .create_build(&Build::inline(tenant, "registry", &files).amd64().with(|spec| {
                spec.image.as_mut().unwrap().repository = format!("{address}/e2e/{}/registry", tenant.namespace);
                spec.image.as_mut().unwrap().secret_ref.as_mut().unwrap().name = "proxy-registry".to_owned();
                spec.image.as_mut().unwrap().ca_ref =
                    Some(serde_json::from_value::<CaRef>(json!({"name": "proxy-ca"})).unwrap());
            }))
            .await;
        let (user, password) = (&tenant.cluster.registry_user, &tenant.cluster.registry_password);
        // The base image comes from the registry itself.
        let login = json!({"username": user, "password": password});
        let login = json!({"auths": {&tenant.cluster.registry: login, address.to_string(): login}}).to_string();
        let kind = "kubernetes.io/dockerconfigjson";
        tenant.secret("proxy-registry", kind, &[(".dockerconfigjson", &login)]).await;

        for (name, reason) in
            [("secret", "SecretNotFound"), ("ref", "GitRefNotFound"), ("registry", "RegistryUnavailable")]
        {
            tenant.not_ready(name, reason).await;
            tenant.event(name, reason).await;
        }
        let mut audit = Audit::from_now();
        tokio::time::sleep(MISSING).await;
        let own = |entry: &serde_json::Value| entry["objectRef"]["namespace"] == tenant.namespace.as_str();
        let asked: Vec<_> = audit.of_kiln().into_iter().filter(own).collect();
        assert!(!asked.is_empty(), "Kiln looks again for what is missing");
        let writes: Vec<_> = asked.iter().filter(|entry| is_write(entry)).map(shown).collect();
        assert!(writes.is_empty(), "Kiln wrote while nothing changed:\n{}", writes.join("\n"));

        let begun = Instant::now();
        tenant.secret("late", kind, &[(".dockerconfigjson", &login)]).await;
        repository.commit(&Commit { branch: "late", files: &files, ..Commit::default() });
        let upstream =
            Upstream { url: format!("https://{}", tenant.cluster.registry), ca: tenant.cluster.registry_ca.clone() };
        let _registry = Proxy::start(address, Identity::Own, upstream).await;
        let built = async |name: &str| {
            tenant.built(name).await;
            begun.elapsed()
        };
        let took = tokio::join!(built("secret"), built("ref"), built("registry"));
        for took in [took.0, took.1, took.2] {
            // The delay doubles, so a look comes at the latest after as long as it was missing; then it is built.
            assert!(took < 2 * MISSING + Duration::from_secs(20), "seen soon: {took:?}");
        }
    })
    .await;
}

/// An address with a port that was free a moment ago.
async fn nobody_listens(address: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(address).await.expect("the machine has a free port");
    listener.local_addr().expect("a listener has an address")
}
