//! A namespace that is deleted and made again under the same name inherits nothing; and what a user of a namespace may do
//! with the chart's roles, and what not.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kiln_e2e::cluster::{builders_namespace, operator_namespace};
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::image_of;
use kiln_e2e::{Build, Tenant, wait};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use serde_json::json;

kiln_e2e::tests![made_again_it_inherits_nothing, rights_of_users, builders_have_no_token];

/// Tells a step that ran from one that the cache answered for, and shows what a cache mount held.
const RANDOM: &str = "FROM busybox
RUN --mount=type=cache,target=/cache cat /cache/left > /found 2>/dev/null; echo left > /cache/left; cat /proc/sys/kernel/random/uuid > /random
";

async fn made_again_it_inherits_nothing() {
    Tenant::fresh("again", async |tenant| {
        let build = Build::inline(tenant, "app", &[("Dockerfile", RANDOM)]).amd64();
        let random = async |build| {
            let image = image_of(&tenant.build(build).await);
            let image = Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await;
            (image.text("random"), image.text("found"))
        };
        let first = random(&build).await;
        let pods: Vec<_> = tenant.builders().await.iter().map(|pod| (pod.name_any(), pod.uid())).collect();
        let volumes: Vec<_> = tenant.volumes().await.iter().map(|claim| (claim.name_any(), claim.uid())).collect();
        assert_eq!((pods.len(), volumes.len()), (1, 1));

        let namespaces: Api<Namespace> = Api::all(tenant.cluster.client.clone());
        namespaces.delete(&tenant.namespace, &DeleteParams::default()).await.unwrap();
        tenant
            .wait(namespaces, wait::named(&tenant.namespace), "the namespace is gone", wait::BUILD, |found| {
                Ok(found.is_empty())
            })
            .await;
        tenant.make().await;
        let second = random(&build).await;
        assert_ne!(second.0, first.0, "no step came from a cache");
        assert_eq!(second.1, "", "the cache mount was empty");

        // All of the former one's goes, and the new one has its own.
        let builders = builders_namespace();
        let select = || watcher::Config::default().labels("app.kubernetes.io/managed-by=kiln");
        let secrets: Api<Secret> = Api::namespaced(tenant.cluster.client.clone(), &builders);
        let configs: Api<ConfigMap> = Api::namespaced(tenant.cluster.client.clone(), &builders);
        let pod = &pods[0].0;
        tenant
            .wait_builders("only a new one is there", wait::SOON, |found| found.len() == 1 && !found.contains_key(pod))
            .await;
        let former = |name: &String| name.starts_with(pod.as_str());
        tenant
            .wait(secrets, select(), "the certificate is gone", wait::SOON, |found| Ok(!found.keys().any(former)))
            .await;
        tenant
            .wait(configs, select(), "the configuration is gone", wait::SOON, |found| Ok(!found.keys().any(former)))
            .await;
        let claims = Api::namespaced(tenant.cluster.client.clone(), &builders);
        tenant
            .wait::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(
                claims,
                watcher::Config::default(),
                "the volume is gone",
                wait::SOON,
                |found| Ok(!found.contains_key(&volumes[0].0)),
            )
            .await;
        let new = tenant.volumes().await;
        assert!(new.len() == 1 && new[0].uid() != volumes[0].1);
    })
    .await;
}

/// Whether a user with this role in the tenant's namespace may do something there or elsewhere.
async fn may(tenant: &Tenant, user: &str, namespace: Option<&str>, verb: &str, resource: &str) -> bool {
    let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(name, sub)| (name, Some(sub)));
    let core = ["pods", "secrets", "configmaps", "persistentvolumeclaims"].contains(&resource);
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(if core { "" } else { "kiln.build" }.to_owned()),
                namespace: namespace.map(str::to_owned),
                resource: Some(resource.to_owned()),
                subresource: subresource.map(str::to_owned),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(tenant.cluster.client.clone());
    reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
}

async fn rights_of_users() {
    Tenant::fresh("users", async |tenant| {
        let user = |role: &str| format!("{role}-of-{}", tenant.namespace);
        for role in ["view", "edit", "admin"] {
            let binding: RoleBinding = serde_json::from_value(json!({
                "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user(role)}],
            }))
            .unwrap();
            tenant.api::<RoleBinding>().create(&PostParams::default(), &binding).await.unwrap();
        }
        let own = Some(tenant.namespace.as_str());
        let (builders, operator) = (builders_namespace(), operator_namespace());
        let cases: &[(&str, &str, &[bool; 3])] = &[
            // By role: view, edit, admin.
            ("get", "imagebuilds", &[true, true, true]),
            ("list", "imagebuildruns", &[true, true, true]),
            ("watch", "imagebuildruns", &[true, true, true]),
            ("create", "imagebuilds", &[false, true, true]),
            ("update", "imagebuilds", &[false, true, true]),
            ("delete", "imagebuilds", &[false, true, true]),
            ("patch", "imagebuildruns", &[false, true, true]),
            ("delete", "imagebuildruns", &[false, true, true]),
            // Kiln's own.
            ("create", "imagebuildruns", &[false; 3]),
            ("patch", "imagebuildruns/status", &[false; 3]),
            ("update", "imagebuilds/status", &[false; 3]),
            ("patch", "imagebuilds/status", &[false; 3]),
        ];
        for (verb, resource, expected) in cases {
            for (role, expected) in ["view", "edit", "admin"].iter().zip(*expected) {
                // The roles are put together by a controller, and the binding is seen a moment later.
                let mut allowed = may(tenant, &user(role), own, verb, resource).await;
                for _ in 0..20 {
                    if allowed == *expected {
                        break;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    allowed = may(tenant, &user(role), own, verb, resource).await;
                }
                assert_eq!(allowed, *expected, "{role}: {verb} {resource}");
            }
        }
        for role in ["view", "edit", "admin"] {
            for verb in ["get", "list", "watch", "create", "update", "patch", "delete"] {
                for resource in ["pods", "pods/exec", "pods/log", "secrets", "configmaps", "persistentvolumeclaims"] {
                    for namespace in [&builders, &operator] {
                        assert!(
                            !may(tenant, &user(role), Some(namespace), verb, resource).await,
                            "{role}: {verb} {resource} in {namespace}"
                        );
                    }
                }
                if !matches!(verb, "get" | "list" | "watch") {
                    assert!(!may(tenant, &user(role), None, verb, "builderpools").await, "{role}: {verb} builderpools");
                }
            }
        }
    })
    .await;
}

async fn builders_have_no_token() {
    Tenant::fresh("no-token", async |tenant| {
        tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        let pods = tenant.builder_pods().list(&ListParams::default()).await.unwrap();
        assert!(!pods.items.is_empty());
        for pod in pods {
            let spec = pod.spec.as_ref().unwrap();
            assert_eq!(spec.automount_service_account_token, Some(false), "{}", pod.name_any());
            let projected = spec.volumes.iter().flatten().filter(|volume| {
                let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
                sources.into_iter().any(|source| source.service_account_token.is_some())
            });
            assert_eq!(projected.count(), 0, "{} has no token mounted", pod.name_any());
        }
    })
    .await;
}
