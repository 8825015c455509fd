//! Each right that the chart gives the operator is needed: without it something is refused, which the API server's audit
//! log tells. And it has no right that it must not have.
//!
//! It takes rights away from the operator that all tests share and starts that again and again, so it runs alone.

mod audit;
mod roles;

use std::panic::{AssertUnwindSafe, resume_unwind};

use futures::FutureExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kiln_crds::ImageBuildRun;
use kiln_e2e::cluster::{builders_namespace, operator_namespace};
use kiln_e2e::{Build, Tenant, wait};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use crate::rbac::Provocation::{
    Broken, Built, Closed, Expired, Idle, Lead, NewCa, NewLease, Start, Taken, Trimmed, Unmade,
};
use crate::rbac::audit::Audit;
use crate::rbac::roles::Place::{ApiServer, Builders, Everywhere, Own};
use crate::rbac::roles::{Right, Roles};

kiln_e2e::tests![alone no_right_is_idle, nothing_that_it_must_not_have];

/// The NetworkPolicy that the operator keeps.
const POLICY: &str = "kiln-builders-addresses";

/// What makes the operator use a right.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Provocation {
    /// The operator starts.
    Start,
    /// It goes on to lead.
    Lead,
    /// It starts, and its Lease is not there.
    NewLease,
    /// It starts, and its CA is not there.
    NewCa,
    /// It starts, and its CA has expired.
    Expired,
    /// An ImageBuild that names a Secret that is not there.
    Broken,
    /// An ImageBuild with a builder of its own.
    Built,
    /// An ImageBuild whose first run's name is taken.
    Taken,
    /// A second run where none is to be kept.
    Trimmed,
    /// A built ImageBuild is deleted.
    Unmade,
    /// A builder that has had nothing to do for a second.
    Idle,
    /// The NetworkPolicy that lets builders out is deleted.
    Closed,
}

/// All rights: those of one round are taken away at the same time, for the same provocation shows each of them.
const ROUNDS: &[(Provocation, &[Right])] = &[
    (
        Start,
        &[
            (Everywhere, "imagebuilds", "list"),
            (Everywhere, "imagebuildruns", "list"),
            (Everywhere, "builderpools", "list"),
        ],
    ),
    (
        Start,
        &[
            (Everywhere, "namespaces", "list"),
            (Everywhere, "nodes", "list"),
            (Everywhere, "servicecidrs", "list"),
            (Builders, "pods", "list"),
            (Builders, "persistentvolumeclaims", "list"),
            (Builders, "networkpolicies", "list"),
            (ApiServer, "endpointslices", "list"),
        ],
    ),
    (
        Start,
        &[
            (Everywhere, "imagebuilds", "watch"),
            (Everywhere, "imagebuildruns", "watch"),
            (Everywhere, "builderpools", "watch"),
            (Everywhere, "namespaces", "watch"),
            (Everywhere, "nodes", "watch"),
            (Everywhere, "servicecidrs", "watch"),
            (Builders, "pods", "watch"),
            (Builders, "persistentvolumeclaims", "watch"),
            (Builders, "networkpolicies", "watch"),
            (ApiServer, "endpointslices", "watch"),
        ],
    ),
    (Start, &[(ApiServer, "services", "get")]),
    (Closed, &[(Builders, "networkpolicies", "patch")]),
    (Closed, &[(Builders, "networkpolicies", "create")]),
    (Start, &[(Own, "leases", "get")]),
    (NewLease, &[(Own, "leases", "create")]),
    (NewCa, &[(Own, "secrets", "create")]),
    (Expired, &[(Own, "secrets", "patch")]),
    (Lead, &[(Own, "leases", "update")]),
    (Broken, &[(Everywhere, "events", "create")]),
    (Broken, &[(Everywhere, "imagebuilds/status", "patch")]),
    (Broken, &[(Everywhere, "secrets", "get")]),
    (Built, &[(Everywhere, "configmaps", "get")]),
    (Built, &[(Everywhere, "serviceaccounts", "get")]),
    (Built, &[(Everywhere, "imagebuilds", "get")]),
    (Built, &[(Everywhere, "imagebuildruns", "create")]),
    (Taken, &[(Everywhere, "imagebuildruns", "get")]),
    (Built, &[(Everywhere, "imagebuildruns/status", "patch")]),
    (Built, &[(Builders, "persistentvolumeclaims", "create")]),
    (Built, &[(Builders, "secrets", "create")]),
    (Built, &[(Builders, "secrets", "patch")]),
    (Built, &[(Builders, "configmaps", "create")]),
    (Built, &[(Builders, "configmaps", "patch")]),
    (Built, &[(Builders, "pods", "create")]),
    (Built, &[(Everywhere, "builderpools/status", "patch")]),
    (Built, &[(Everywhere, "imagebuildruns", "patch")]),
    (Trimmed, &[(Everywhere, "imagebuildruns", "delete")]),
    (Unmade, &[(Builders, "pods", "delete")]),
    (Unmade, &[(Builders, "persistentvolumeclaims", "delete")]),
    (Unmade, &[(Builders, "secrets", "delete")]),
    (Unmade, &[(Builders, "configmaps", "delete")]),
    (Idle, &[(Builders, "persistentvolumeclaims", "patch")]),
];

/// Starts the operator again, and does not wait for the new one.
async fn restart(client: &Client) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &operator_namespace());
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    pods.delete_collection(&DeleteParams::default(), &operators).await.expect("the operator's pod can be deleted");
}

/// An ImageBuild with a builder of its own.
fn alone(tenant: &Tenant, name: &str) -> Build {
    let scope = serde_json::from_value(json!({"scope": "ImageBuild"})).unwrap();
    Build::inline(tenant, name, &[("Dockerfile", "FROM busybox\n")]).amd64().with(|spec| spec.cache = Some(scope))
}

/// What the rounds find and leave.
struct Stage<'a> {
    tenant: &'a Tenant,
    pool: String,
    ca: Secret,
    number: usize,
    unmade: usize,
}

impl<'a> Stage<'a> {
    async fn new(tenant: &'a Tenant) -> Self {
        let unmade = ROUNDS.iter().filter(|round| round.0 == Unmade).count();
        let none = serde_json::from_value(json!({"successful": 0, "failed": 0})).unwrap();
        tenant.create_build(&alone(tenant, "trimmed").with(|spec| spec.history = Some(none))).await;
        for number in 1..unmade {
            tenant.create_build(&alone(tenant, &format!("unmade-{number}"))).await;
        }
        tenant.built("trimmed").await;
        for number in 1..unmade {
            tenant.built(&format!("unmade-{number}")).await;
        }
        // The last one: its namespace may have fewer builders than there are ImageBuilds, and this one's pod is to be there.
        tenant.build(&alone(tenant, "unmade-0")).await;
        let pool = tenant.pool("idle", |spec| spec.idle_timeout = Some("1s".parse().unwrap())).await;
        let ca = Self::secrets(tenant).get("kiln-ca").await.expect("the operator has made its CA");
        Self { tenant, pool, ca, number: 0, unmade: 0 }
    }

    fn secrets(tenant: &Tenant) -> Api<Secret> {
        Api::namespaced(tenant.cluster.client.clone(), &operator_namespace())
    }

    fn policies(&self) -> Api<NetworkPolicy> {
        Api::namespaced(self.tenant.cluster.client.clone(), &builders_namespace())
    }

    async fn put_ca(&self, data: Value) {
        let secrets = Self::secrets(self.tenant);
        let _ = secrets.delete("kiln-ca", &DeleteParams::default()).await;
        let secret = json!({"metadata": {"name": "kiln-ca", "labels": self.ca.metadata.labels}, "type": self.ca.type_, "data": data});
        let secret: Secret = serde_json::from_value(secret).unwrap();
        secrets.create(&PostParams::default(), &secret).await.expect("the CA can be put back");
    }

    async fn provoke(&mut self, provocation: Provocation) {
        let Self { tenant, .. } = *self;
        let client = &tenant.cluster.client;
        self.number += 1;
        let name = format!("app-{}", self.number);
        match provocation {
            Start => restart(client).await,
            Lead => {}
            NewLease => {
                restart(client).await;
                let leases: Api<Lease> = Api::namespaced(client.clone(), &operator_namespace());
                leases.delete("kiln-operator", &DeleteParams::default()).await.expect("the Lease can be deleted");
            }
            NewCa => {
                Self::secrets(tenant).delete("kiln-ca", &DeleteParams::default()).await.expect("the CA can be deleted");
                restart(client).await;
            }
            Expired => {
                let mut params = CertificateParams::default();
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
                let key = KeyPair::generate().unwrap();
                let certificate = params.self_signed(&key).unwrap().pem();
                let data = [("tls.crt", certificate), ("tls.key", key.serialize_pem())]
                    .map(|(name, pem)| (name.to_owned(), k8s_openapi::ByteString(pem.into_bytes())));
                self.put_ca(json!(std::collections::BTreeMap::from(data))).await;
                restart(client).await;
            }
            Broken => {
                let build = alone(tenant, &name);
                let missing = kiln_crds::SecretRef { name: "missing".to_owned() };
                tenant.create_build(&build.with(|spec| spec.image.as_mut().unwrap().secret_ref = Some(missing))).await;
            }
            Built => drop(tenant.create_build(&alone(tenant, &name)).await),
            Taken => {
                let build = alone(tenant, &name);
                let run = json!({
                    "metadata": {"name": format!("{name}-1")},
                    "spec": {
                        "imageBuild": {"name": "another", "uid": "00000000-0000-0000-0000-000000000000"},
                        "number": 1, "inputHash": "v1:0", "build": build.object.spec,
                    },
                });
                let run: ImageBuildRun = serde_json::from_value(run).unwrap();
                tenant.runs().create(&PostParams::default(), &run).await.expect("a run can be made by hand");
                tenant.create_build(&build).await;
            }
            Trimmed => drop(tenant.annotate("trimmed", "again").await),
            Unmade => {
                let name = format!("unmade-{}", self.unmade);
                self.unmade += 1;
                tenant.builds().delete(&name, &DeleteParams::default()).await.expect("an ImageBuild can be deleted");
            }
            Idle => drop(tenant.create_build(&alone(tenant, &name).pool(&self.pool)).await),
            Closed => {
                let policies = self.policies();
                policies.delete(POLICY, &DeleteParams::default()).await.expect("the operator has made it");
            }
        }
    }

    /// Takes back what a provocation left that would disturb the next one.
    async fn settle(&self, provocation: Provocation) {
        let Self { tenant, ca, .. } = self;
        let client = &tenant.cluster.client;
        if matches!(provocation, NewCa | Expired) {
            self.put_ca(json!(ca.data)).await;
        }
        if provocation == Closed {
            let select = watcher::Config::default().fields(&format!("metadata.name={POLICY}"));
            tenant.wait(self.policies(), select, "it is made again", wait::SOON, |found| Ok(!found.is_empty())).await;
        }
        if matches!(provocation, Start | NewLease | NewCa | Expired | Lead) {
            restart(client).await;
        } else {
            let name = format!("app-{}", self.number);
            let _ = tenant.builds().delete(&name, &DeleteParams::default()).await;
        }
    }
}

/// Waits until one operator is there, is ready, and is none that ends.
async fn operator_works(tenant: &Tenant) {
    let pods: Api<Pod> = Api::namespaced(tenant.cluster.client.clone(), &operator_namespace());
    let select = watcher::Config::default().labels("app.kubernetes.io/component=operator");
    tenant
        .wait(pods, select, "the operator is ready", wait::SOON, |pods| {
            Ok(!pods.is_empty()
                && pods.values().all(|pod| {
                    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
                    pod.metadata.deletion_timestamp.is_none()
                        && conditions
                            .into_iter()
                            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
                }))
        })
        .await;
}

async fn no_right_is_idle() {
    Tenant::fresh("rbac", async |tenant| {
        let roles = Roles::read(&tenant.cluster.client).await;
        let told: Vec<_> = ROUNDS.iter().flat_map(|round| round.1).collect();
        let given = roles.rights();
        for (place, resource, verb) in &given {
            assert!(
                told.contains(&&(*place, resource.as_str(), verb.as_str())),
                "{place:?}: {verb} {resource} is new: tell in ROUNDS what needs it"
            );
        }
        for (place, resource, verb) in told {
            let right = (*place, (*resource).to_owned(), (*verb).to_owned());
            assert!(given.contains(&right), "{place:?}: {verb} {resource} is not given");
        }

        let mut stage = Stage::new(tenant).await;
        for (provocation, rights) in ROUNDS {
            if !matches!(provocation, Start | NewLease | NewCa | Expired) {
                operator_works(tenant).await;
            }
            let without = async {
                roles.take(rights).await;
                let mut audit = Audit::from_now();
                stage.provoke(*provocation).await;
                audit.refused(rights).await;
            };
            // Whatever comes, the operator gets its rights back.
            let outcome = AssertUnwindSafe(without).catch_unwind().await;
            roles.restore(rights).await;
            stage.settle(*provocation).await;
            if let Err(panic) = outcome {
                resume_unwind(panic);
            }
        }
        // With all of them it works.
        operator_works(tenant).await;
        tenant.build(&alone(tenant, "last")).await;
    })
    .await;
}

async fn nothing_that_it_must_not_have() {
    let client = kiln_e2e::Cluster::new().await.client;
    let roles = Roles::read(&client).await;
    for (place, resource, verb) in roles.rights() {
        assert!(!resource.contains('*') && verb != "*", "{place:?}: {verb} {resource}");
        if resource == "secrets" {
            assert!(!["list", "watch", "deletecollection"].contains(&verb.as_str()), "{place:?}: {verb} {resource}");
        }
        assert!(!["escalate", "bind", "impersonate"].contains(&verb.as_str()), "{place:?}: {verb} {resource}");
        assert!(
            !["pods/exec", "pods/attach", "pods/portforward", "nodes/proxy", "serviceaccounts/token"]
                .contains(&resource.as_str()),
            "{place:?}: {verb} {resource}"
        );
    }
    for rule in roles.rules.iter().flat_map(|(_, rules)| rules) {
        assert!(rule.api_groups.iter().flatten().all(|group| group != "*"), "{rule:?}");
    }
}
