//! Tenants under Pod Security `restricted`, both security profiles, and secrets that stay where they are.

use k8s_openapi::api::core::v1::Pod;
use kiln_crds::SecurityProfile;
use kiln_crds::image_build::{BuildSecret, CacheSpec};
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{image_of, run_of};
use kiln_e2e::{Build, Tenant, diagnosis};
use kube::ResourceExt;
use kube::api::{ListParams, PostParams};
use serde_json::json;

kiln_e2e::tests![
    a_restricted_namespace_builds_and_holds_no_pod,
    user_namespace_hides_the_builder_from_its_steps,
    rootless_builds_each_image_build_on_its_own,
    secret_values_stay_secret
];

/// What a RUN step sees of its surroundings.
const LOOK: &str = "FROM busybox
RUN id -u > /user && for file in /proc/[0-9]*/comm; do cat $file; done > /processes 2>/dev/null; true
RUN mkdir /directory && touch /directory/file
";

async fn a_restricted_namespace_builds_and_holds_no_pod() {
    Tenant::fresh("restricted", async |tenant| {
        // It is enforced: what a build needs of a pod would not be let in here.
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "builder"},
            "spec": {"containers": [{"name": "a", "image": "a", "securityContext": {"seccompProfile": {"type": "Unconfined"}}}]},
        }))
        .unwrap();
        let refused = tenant.api::<Pod>().create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("violates PodSecurity \"restricted")));

        tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", LOOK)])).await;
        let pods = tenant.api::<Pod>().list(&ListParams::default()).await.unwrap();
        assert_eq!(pods.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), [] as [String; 0], "no pod of Kiln in the tenant's namespace");
    })
    .await;
}

async fn user_namespace_hides_the_builder_from_its_steps() {
    Tenant::fresh("userns", async |tenant| {
        let pool = tenant.pool("userns", |spec| spec.security_profile = Some(SecurityProfile::UserNamespace)).await;
        let built = tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", LOOK)]).pool(&pool)).await;
        let image = image_of(&built);
        for image in Registry::new(&tenant.cluster).images(&image.repository, &image.digest).await {
            assert_eq!(image.text("user"), "0");
            let processes = image.text("processes");
            assert!(
                !processes.contains("buildkitd") && processes.lines().count() <= 5,
                "a step sees its own processes only: {processes:?}"
            );
            check_modes(&image);
        }
        let pods = tenant.builders().await;
        assert_eq!(pods.len(), 2, "one for each platform");
        for pod in pods {
            assert_eq!(pod.spec.as_ref().unwrap().host_users, Some(false));
            check_pod(&pod);
        }

        // One namespace is one trust domain: another ImageBuild uses the same builders, unless it asks for its own.
        tenant.build(&Build::inline(tenant, "second", &[("Dockerfile", LOOK)]).amd64().pool(&pool)).await;
        assert_eq!(tenant.builders().await.len(), 2);
        let alone = Build::inline(tenant, "alone", &[("Dockerfile", LOOK)]).amd64().pool(&pool);
        let scope = serde_json::from_value::<CacheSpec>(json!({"scope": "ImageBuild"})).unwrap();
        tenant.build(&alone.with(|spec| spec.cache = Some(scope))).await;
        assert_eq!(tenant.builders().await.len(), 3);
    })
    .await;
}

async fn rootless_builds_each_image_build_on_its_own() {
    Tenant::fresh("rootless", async |tenant| {
        let pool = tenant.pool("rootless", |spec| spec.security_profile = Some(SecurityProfile::Rootless)).await;
        for name in ["one", "two"] {
            let mut build = Build::inline(tenant, name, &[("Dockerfile", LOOK)]).pool(&pool);
            if name == "two" {
                build = build.amd64();
            }
            let image = image_of(&tenant.build(&build).await);
            for image in Registry::new(&tenant.cluster).images(&image.repository, &image.digest).await {
                assert_eq!(image.text("user"), "0");
                check_modes(&image);
            }
        }
        let pods = tenant.builders().await;
        // A rootless builder hides nothing from its steps, so no two ImageBuilds share one.
        assert_eq!(pods.len(), 3, "two platforms of one, one of the other");
        for pod in pods {
            assert_ne!(pod.spec.as_ref().unwrap().host_users, Some(false));
            check_pod(&pod);
        }
    })
    .await;
}

/// Nothing of the volume's ownership leaks into layers.
fn check_modes(image: &kiln_e2e::registry::Image) {
    for (path, mode) in [("directory", 0o755), ("directory/file", 0o644)] {
        let entry = image.entry(path).unwrap_or_else(|| panic!("{path} is in the image"));
        assert_eq!((entry.mode, entry.uid, entry.gid), (mode, 0, 0), "{path} of {}", image.platform);
    }
}

/// What no builder pod may have.
fn check_pod(pod: &Pod) {
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_ne!(spec.host_network, Some(true));
    assert_ne!(spec.host_pid, Some(true));
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        let context = container.security_context.as_ref().expect("each container has a security context");
        assert_ne!(context.privileged, Some(true), "{}", container.name);
        let capabilities = context.capabilities.clone().unwrap_or_default();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]), "{}", container.name);
        if container.name == "agent" {
            assert_eq!(
                (context.allow_privilege_escalation, capabilities.add),
                (Some(false), None),
                "the agent is restricted"
            );
        }
    }
    let has_host_path = spec.volumes.iter().flatten().any(|volume| volume.host_path.is_some());
    assert!(!has_host_path, "no directory of the node");
}

async fn secret_values_stay_secret() {
    Tenant::fresh("secrets", async |tenant| {
        const VALUE: &str = "correct-horse-battery-staple";
        tenant.secret("token", "Opaque", &[("value", VALUE)]).await;
        let secret: BuildSecret = serde_json::from_value(json!({"id": "token", "secretRef": {"name": "token", "key": "value"}})).unwrap();
        let step = "FROM busybox\nARG CODE=0\nRUN --mount=type=secret,id=token,required=true sha256sum < /run/secrets/token > /sum && cat /run/secrets/token && exit $CODE\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", step)]).amd64().with(|spec| spec.secrets.push(secret));
        let first = tenant.build(&build).await;
        let image = image_of(&first);
        let one = Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await;
        assert_eq!(one.text("sum"), format!("{}  -", sha256(VALUE)), "the step had it");
        for entry in one.built() {
            assert!(!String::from_utf8_lossy(&entry.bytes).contains(VALUE), "{} holds the secret", entry.path);
        }

        // A step that prints it and fails: its log goes into statuses and events, the value does not.
        tenant.edit("app", |build| drop(build.spec.args.insert("CODE".to_owned(), "9".to_owned()))).await;
        tenant.not_ready("app", "StepFailed").await;
        tenant.event("app", "StepFailed").await;
        let everything = diagnosis::of(&tenant.cluster.client, &tenant.namespace).await;
        assert!(!everything.contains(VALUE), "statuses, events and logs are without the secret");
        assert!(everything.contains(&run_of(&first)), "they were read");
        let password = &tenant.cluster.registry_password;
        assert!(!everything.contains(password.as_str()), "and without the registry's password");
    })
    .await;
}

fn sha256(text: &str) -> String {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum is there");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap().to_owned()
}
