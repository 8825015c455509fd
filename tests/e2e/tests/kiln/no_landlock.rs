//! A node without Landlock: the pool says so, builds go on, and stop where the pool wants a sandbox.
//!
//! All nodes here have it. A seccomp profile of the local cluster's nodes answers for it as an older kernel does, and a
//! policy of the API server gives that to the builder's agent.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kiln_crds::BuilderPool;
use kiln_crds::builder_pool::{PoolAllow, SourceSandbox};
use kiln_e2e::admission::AdmissionPolicy;
use kiln_e2e::cluster::builders_namespace;
use kiln_e2e::tenant::condition;
use kiln_e2e::{Build, Tenant, wait};
use kube::Api;
use kube::api::PostParams;
use kube::runtime::watcher;
use serde_json::{Value, json};

kiln_e2e::tests![a_node_without_landlock_is_told_and_refused_where_the_pool_says_so];

/// Of the kubelet's profiles; tests/cluster/nodes.sh writes it.
const PROFILE: &str = "no-landlock.json";

/// Gives the profile to the agents of this pool's builders.
fn take_landlock_from(pool: &str) -> AdmissionPolicy {
    let of = "Object.spec.containers";
    let profile = format!("{of}.securityContext.seccompProfile{{type: 'Localhost', localhostProfile: '{PROFILE}'}}");
    let context = format!("{of}.securityContext{{seccompProfile: {profile}}}");
    let agent = format!("{of}{{name: 'agent', securityContext: {context}}}");
    let expression = format!("Object{{spec: Object.spec{{containers: [{agent}]}}}}");
    let pods = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
    let object = |kind: &str, spec: Value| {
        let version = "admissionregistration.k8s.io/v1";
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": pool}, "spec": spec})
    };
    let policy = json!({
        "reinvocationPolicy": "Never",
        "matchConstraints": {
            "resourceRules": [pods],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": builders_namespace()}},
            "objectSelector": {"matchLabels": {"kiln.build/pool": pool}},
        },
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
    });
    let policy = object("MutatingAdmissionPolicy", policy);
    AdmissionPolicy::apply(&policy, &object("MutatingAdmissionPolicyBinding", json!({"policyName": pool})))
}

/// A policy takes a moment until the API server goes by it.
async fn goes_by_it(tenant: &Tenant, pool: &str) {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": pool, "labels": {"kiln.build/pool": pool}},
        "spec": {"containers": [{"name": "agent", "image": "agent"}]},
    }))
    .unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let begun = Instant::now();
    let of_agent = |pod: Pod| pod.spec?.containers.remove(0).security_context?.seccomp_profile?.localhost_profile;
    while of_agent(tenant.builder_pods().create(&dry, &pod).await.unwrap()).as_deref() != Some(PROFILE) {
        assert!(begun.elapsed() < wait::SOON, "a new pod gets the profile");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn a_node_without_landlock_is_told_and_refused_where_the_pool_says_so() {
    if std::env::var_os("KILN_LOCAL_CLUSTER").is_none() {
        eprintln!(
            "not tested: a node without Landlock; its kubelet needs a seccomp profile, as those of the local cluster have"
        );
        return;
    }
    Tenant::fresh("no-landlock", async |tenant| {
        let pool = tenant.pool("no-landlock", |_| ()).await;
        let _policy = take_landlock_from(&pool);
        goes_by_it(tenant, &pool).await;
        let dockerfile = "FROM busybox\nRUN echo built > /done\n";
        let build = |name: &str| Build::inline(tenant, name, &[("Dockerfile", dockerfile)]).amd64().pool(&pool);
        tenant.build(&build("goes-on")).await;

        let pools: Api<BuilderPool> = Api::all(tenant.cluster.client.clone());
        let told = |pool: &BuilderPool| {
            let status = pool.status.as_ref()?;
            let condition = status.conditions.iter().find(|condition| condition.type_ == "SourcesSandboxed")?;
            let builder = status.builders.first()?;
            (condition.reason == "SourceSandboxMissing" && builder.sandbox == Some(SourceSandbox::None))
                .then(|| (condition.clone(), builder.clone()))
        };
        let seen = tenant
            .wait(pools.clone(), wait::named(&pool), "it has no sandbox", wait::SOON, |pools| {
                Ok(pools.values().any(|pool| told(pool).is_some()))
            })
            .await;
        let (condition_of_pool, builder) = seen.values().find_map(told).unwrap();
        assert_eq!(condition_of_pool.status, "False");
        let why = builder.sandbox_message.unwrap();
        assert!(why.contains("no Landlock of ABI 3 (Linux 6.2)"), "{why}");
        assert!(condition_of_pool.message.contains(&why), "{}", condition_of_pool.message);
        let events: Api<Event> = Api::all(tenant.cluster.client.clone());
        let about = format!("regarding.kind=BuilderPool,regarding.name={pool},reason=SourceSandboxMissing");
        let select = watcher::Config::default().fields(&about);
        tenant.wait(events, select, "the pool's Event", wait::SOON, |events| Ok(!events.is_empty())).await;

        let mut refuses = pools.get(&pool).await.unwrap();
        refuses.spec.allow =
            Some(PoolAllow { unsandboxed_sources: Some(false), ..refuses.spec.allow.unwrap_or_default() });
        pools.replace(&pool, &PostParams::default(), &refuses).await.unwrap();
        tenant.create_build(&build("refused")).await;
        let refused = tenant.not_ready("refused", "SourceSandboxMissing").await;
        let message = &condition(&refused, "Ready").unwrap().message;
        assert!(message.contains("allow.unsandboxedSources is false") && message.contains(&why), "{message}");
    })
    .await;
}
