//! What an ImageBuild names beside its source: looked up, recorded, waited for, and told where it is missing.

use kiln_crds::image_build::{BuildContext, ImageBuildSpec, Resolved};
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{CA, condition, image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant};
use serde_json::{Value, json};

kiln_e2e::tests![
    an_image_build_waits_for_the_first_image_of_another,
    refs_and_tags_are_looked_up_once_for_each_run,
    what_is_named_and_missing_is_told_before_a_run_is_made
];

fn contexts(contexts: Value) -> Vec<BuildContext> {
    serde_json::from_value(contexts).expect("these are contexts")
}

/// The whole spec with some of its fields written anew.
fn with(build: Build, fields: &Value) -> Build {
    build.with(|spec| {
        let mut whole = serde_json::to_value(&*spec).unwrap();
        whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        *spec = serde_json::from_value::<ImageBuildSpec>(whole).unwrap();
    })
}

async fn an_image_build_waits_for_the_first_image_of_another() {
    Tenant::run("contexts-wait", async |tenant| {
        let of = |name: &str| contexts(json!([{"name": "other", "imageBuild": {"name": name}}]));
        let files = [("Dockerfile", "FROM other\nCOPY Dockerfile /own\n")];
        let app = Build::inline(tenant, "app", &files).amd64().with(|spec| spec.contexts = of("base"));
        tenant.create_build(&app).await;
        let waits = tenant.not_ready("app", "ContextNotReady").await;
        assert_eq!(condition(&waits, "Reconciling").map(|of| of.status.as_str()), Some("True"), "{waits:#?}");
        assert!(condition(&waits, "Stalled").is_none(), "{waits:#?}");

        let base = Build::inline(tenant, "base", &[("Dockerfile", "FROM busybox\nRUN echo base > /base\n")]).amd64();
        let base = image_of(&tenant.build(&base).await);
        let app = tenant.built("app").await;
        let image = image_of(&app);
        let registry = Registry::new(&tenant.cluster);
        assert_eq!(registry.image_for(&image.repository, &image.digest, "linux/amd64").await.text("base"), "base");
        let resolved = [Resolved {
            field: "contexts/other".to_owned(),
            image: Some(base.reference.clone()),
            ..Resolved::default()
        }];
        assert_eq!(tenant.run_of(&app).await.spec.resolved, resolved);
        assert_eq!(app.status.unwrap().source.unwrap().resolved, resolved);

        // Each needs the other: told, and the last good images stay.
        tenant.edit("base", |build| build.spec.contexts = of("app")).await;
        let circle = tenant.not_ready("base", "ContextCycle").await;
        let message = &condition(&circle, "Ready").unwrap().message;
        assert!(message.contains("base needs app needs base"), "{message}");
        assert_eq!(image_of(&circle).digest, base.digest);
    })
    .await;
}

async fn refs_and_tags_are_looked_up_once_for_each_run() {
    Tenant::run("contexts-look", async |tenant| {
        let library = Repository::public(tenant, "library");
        let first = library.write(&[("lib.sh", "echo one\n")]);
        let dockerfile = "FROM base\nCOPY --from=library /lib.sh /lib.sh\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile)]).amd64();
        let build = build.with(|spec| {
            spec.contexts = contexts(json!([
                {"name": "library", "git": {"url": library.url, "ref": "main", "interval": "5s", "caRef": {"name": CA}}},
                // Where only the pool's mirror has it.
                {"name": "base", "image": "busybox"},
            ]));
        });
        let built = tenant.build(&build).await;
        let run = tenant.run_of(&built).await;
        let [of_library, base] = &run.spec.resolved[..] else { panic!("{:?}", run.spec.resolved) };
        assert_eq!((of_library.field.as_str(), of_library.commit.as_deref()), ("contexts/library", Some(first.as_str())));
        assert_eq!(of_library.reference.as_deref(), Some("refs/heads/main"));
        let digest = base.image.as_deref().and_then(|image| image.strip_prefix("docker.io/library/busybox@sha256:"));
        assert!(digest.is_some_and(|digest| digest.len() == 64), "{base:?}");

        let second = library.write(&[("lib.sh", "echo two\n")]);
        let again = tenant.built_after("app", &run_of(&built)).await;
        let run = tenant.run_of(&again).await;
        assert_eq!(run.spec.resolved[0].commit.as_deref(), Some(second.as_str()));
        assert_eq!(run.spec.resolved[1], *base, "the tag has not moved");
        let image = image_of(&again);
        let image = Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await;
        assert_eq!(image.text("lib.sh"), "echo two");
    })
    .await;
}

async fn what_is_named_and_missing_is_told_before_a_run_is_made() {
    Tenant::run("contexts-missing", async |tenant| {
        let registry = &tenant.cluster.registry;
        let busybox = format!("{registry}/docker.io/library/busybox");
        tenant.secret("empty", "Opaque", &[("nothing", "x")]).await;
        let large = "x".repeat(700 << 10);
        tenant.secret("large", "Opaque", &[("key", &large)]).await;
        let secret = |id: &str| json!({"id": id, "secretRef": {"name": "large", "key": "key"}});
        let context = |of: Value| {
            let mut context = json!({"name": "base"});
            context.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
            json!({"contexts": [context]})
        };
        let http = |more: Value| {
            let mut http =
                json!({"url": "https://files.example/app.tar", "checksum": format!("sha256:{}", "0".repeat(64))});
            http.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"source": {"http": http}})
        };
        let cases = [
            (context(json!({"image": format!("{busybox}:nothing")})), "ImageNotFound", "contexts/base"),
            (json!({"source": {"image": {"ref": format!("{busybox}:nothing")}}}), "ImageNotFound", "source"),
            (
                json!({"platforms": [{"name": "linux/mips64le", "image": busybox}]}),
                "PlatformNotInIndex",
                "has no image for linux/mips64le: it has linux/amd64",
            ),
            (context(json!({"image": "Not An Image".replace(' ', "/")})), "RepositoryInvalid", "contexts/base"),
            (json!({"secrets": [secret("one"), secret("two")]}), "SecretInvalid", "more than 1048576 bytes together"),
            // A port that BuildKit takes for 443.
            (json!({"cache": {"from": ["10.218.0.1:0443/cache"]}}), "RepositoryInvalid", "cache.from[0]"),
            (json!({"ssh": [{"id": "default", "secretRef": {"name": "gone"}}]}), "SecretNotFound", "ssh[default]"),
            (json!({"ssh": [{"id": "default", "secretRef": {"name": "empty"}}]}), "SecretInvalid", "ssh-privatekey"),
            (http(json!({"secretRef": {"name": "gone"}})), "SecretNotFound", "source.http.secretRef"),
            (http(json!({"secretRef": {"name": "empty"}})), "SecretInvalid", "source.http.secretRef"),
            (http(json!({"caRef": {"name": "gone"}})), "CaNotFound", "source.http.caRef"),
            (
                context(json!({"git": {"url": format!("{}/nowhere.git", tenant.cluster.git), "caRef": {"name": CA}}})),
                "GitNotFound",
                "contexts/base",
            ),
        ];
        for (number, (fields, reason, told)) in cases.iter().enumerate() {
            let name = format!("app-{number}");
            let build = Build::inline(tenant, &name, &[("Dockerfile", "FROM busybox\n")]).amd64();
            tenant.create_build(&with(build, fields)).await;
            let build = tenant.not_ready(&name, reason).await;
            let message = &condition(&build, "Ready").unwrap().message;
            assert!(message.contains(told), "{fields}: {message}");
            assert_eq!(run_of(&build), "", "no run is made: {fields}");
        }
    })
    .await;
}
