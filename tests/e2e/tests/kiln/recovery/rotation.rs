//! Certificates between operator and builders that live for a minute only: they and their CA change under a build that
//! runs, and no build and no builder is lost.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kiln_crds::image_build_run::PlatformPhase;
use kiln_e2e::cluster::{builders_namespace, operator_namespace};
use kiln_e2e::{Build, Tenant, wait};
use kube::{Api, ResourceExt as _};

use crate::recovery::host;

kiln_e2e::tests![alone certificates_and_their_ca_change_under_a_build];

const VARIABLE: &str = "KILN_CERTIFICATE_LIFETIME";

/// The operator with certificates that live so long. What was changed is put back with the value.
struct Lifetime {
    former: String,
}

impl Lifetime {
    fn set(value: &str) -> Self {
        let path = format!("jsonpath={{.spec.template.spec.containers[0].env[?(@.name==\"{VARIABLE}\")].value}}");
        let former = host::run("kubectl", &["-n", &operator_namespace(), "get", "deployment", "kiln", "-o", &path]);
        assert!(!former.is_empty(), "the chart sets {VARIABLE}");
        apply(value);
        Self { former }
    }
}

impl Drop for Lifetime {
    fn drop(&mut self) {
        // A CA of a few minutes would be followed by another one while later tests watch a cluster at rest.
        host::run("kubectl", &["-n", &operator_namespace(), "delete", "secret", "kiln-ca"]);
        apply(&self.former);
    }
}

fn apply(value: &str) {
    let namespace = operator_namespace();
    host::run("kubectl", &["-n", &namespace, "set", "env", "deployment/kiln", &format!("{VARIABLE}={value}")]);
    host::run("kubectl", &["-n", &namespace, "rollout", "status", "deployment/kiln", "--timeout=60s"]);
}

fn field(secret: &Secret, key: &str) -> Vec<u8> {
    secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.clone()).unwrap_or_default()
}

/// In how many seconds another CA signs at the latest: one of a minute's certificates gets a successor 160 s after it was
/// made, which signs when it has been known for 20 s.
async fn changes_within(secrets: &Api<Secret>) -> i64 {
    let certificate = field(&secrets.get("kiln-ca").await.unwrap(), "tls.crt");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&certificate).unwrap();
    let backdated = 3600;
    let made = pem.parse_x509().unwrap().validity().not_before.timestamp() + backdated;
    made + 160 + 20 + 15 - Timestamp::now().as_second()
}

async fn certificates_and_their_ca_change_under_a_build() {
    if !host::is_local("certificates_and_their_ca_change_under_a_build") {
        return;
    }
    Tenant::fresh("rotation", async |tenant| {
        let client = tenant.cluster.client.clone();
        let own: Api<Secret> = Api::namespaced(client.clone(), &operator_namespace());
        let of_builders: Api<Secret> = Api::namespaced(client, &builders_namespace());
        // A builder from when certificates lived for months.
        let quick = Build::inline(tenant, "quick", &[("Dockerfile", "FROM busybox\nRUN echo 1 > /file\n")]).amd64();
        tenant.build(&quick).await;
        let builder = tenant.builders().await.remove(0);
        let secret = format!("{}-tls", builder.name_any());
        let lifetime = Lifetime::set("1m");

        let dockerfile = format!("FROM busybox\nRUN sleep {}\n", 75.max(changes_within(&own).await));
        tenant.create_build(&Build::inline(tenant, "slow", &[("Dockerfile", &dockerfile)]).amd64()).await;
        tenant
            .wait_run("slow-1", "builds", wait::BUILD, |run| {
                let mut platforms = run.status.iter().flat_map(|status| &status.platforms);
                Ok(platforms.any(|platform| platform.phase == PlatformPhase::Building))
            })
            .await;
        let begun = Timestamp::now();
        let (ca, certificate) = (own.get("kiln-ca").await.unwrap(), of_builders.get(&secret).await.unwrap());
        let run = async || tenant.runs().get("slow-1").await.unwrap();

        let changed = |secrets: &wait::Objects<Secret>, name: &str, key: &str, former: &Secret| {
            secrets.get(name).is_some_and(|now| field(now, key) != field(former, key))
        };
        let limit = Duration::from_secs(200);
        tenant
            .wait(own.clone(), wait::named("kiln-ca"), "another CA signs", limit, |secrets| {
                Ok(changed(secrets, "kiln-ca", "tls.crt", &ca))
            })
            .await;
        tenant
            .wait(of_builders.clone(), wait::named(&secret), "the builder has another certificate", limit, |secrets| {
                Ok(changed(secrets, &secret, "tls.crt", &certificate))
            })
            .await;
        assert!(!run().await.status.unwrap().phase.is_final(), "all that while the build ran");
        let built = tenant.built("slow").await;
        let lasted = Timestamp::now().duration_since(begun);
        assert!(lasted.as_secs() > 60, "it ran for longer than a certificate lives: {lasted}");
        let run = tenant.run_of(&built).await;
        let platform = &run.status.as_ref().unwrap().platforms[0];
        assert_eq!((run.name_any().as_str(), platform.attempt), ("slow-1", 1), "nothing was lost");

        // And one after it, in the same pod.
        tenant.rebuild("quick", "after").await;
        let after: Vec<_> = tenant.builders().await.iter().map(kube::ResourceExt::uid).collect();
        assert_eq!(after, [builder.uid()], "no pod was replaced");
        drop(lifetime);
        tenant.rebuild("quick", "long-lived again").await;
    })
    .await;
}
