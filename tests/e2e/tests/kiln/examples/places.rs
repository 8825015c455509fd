//! Where images and caches go, and with whose credential.

use kiln_e2e::build::image;
use kiln_e2e::registries::Login;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::image_of;
use serde_json::{Value, json};

use super::Example;

pub async fn tags(example: &mut Example<'_>) {
    let repository = example.git("app");
    let commit =
        repository.write(&[("Dockerfile", "FROM busybox:1.36\nRUN cat /proc/sys/kernel/random/uuid > /made\n")]);
    example.apply().await;
    let built = example.tenant.built("tags").await;
    let pushed = image_of(&built);
    let short = format!("main-{}", commit.get(..7).unwrap());
    let expected = ["latest", short.as_str(), commit.as_str(), "build-1"];
    let other = Registry::of(&example.tenant.cluster, Login::referrers());
    let (mirror, quay) = (example.repository("mirror"), Login::referrers().repository(example.tenant, "app"));
    for place in [&pushed.repository, &mirror] {
        for tag in expected {
            assert_eq!(example.registry.digest(place, tag).await.as_ref(), Some(&pushed.digest), "{place}:{tag}");
        }
    }
    assert_eq!(other.digest(&quay, "main").await.as_ref(), Some(&pushed.digest));
    assert_eq!(other.digest(&quay, "latest").await, None, "it has tags of its own");
    let copies: Vec<_> = pushed.copies.iter().map(|copy| copy.repository.clone()).collect();
    assert_eq!(copies, [mirror, quay]);
    let made = example.image("tags").await.text("made");

    // Other tags are another run, which builds nothing: no cache could give the same layer again.
    let again = example
        .edited(&built, |build| {
            build.spec.no_cache = false;
            image(&mut build.spec).tags.push("stable".to_owned());
        })
        .await;
    let run = example.tenant.run_of(&again).await;
    assert_eq!(run.spec.copy_of.map(|image| image.digest), Some(pushed.digest.clone()));
    assert_eq!(example.registry.digest(&pushed.repository, "stable").await, Some(pushed.digest));
    assert_eq!(example.image("tags").await.text("made"), made);
}

pub async fn cache(example: &mut Example<'_>) {
    let repository = example.git("app");
    repository.write(&[(
        "Dockerfile",
        "FROM busybox:1.36 AS build\nRUN cat /proc/sys/kernel/random/uuid > /made\nFROM busybox:1.36\nCOPY --from=build /made /\n",
    )]);
    example.apply().await;
    let made = example.image("cache-registry").await.text("made");
    assert!(example.registry.digest(&example.repository("app"), "cache-linux-amd64").await.is_some(), "it is written");
    let inline = example.image("cache-inline").await;
    let config: serde_json::Value = example
        .registry
        .json(&example.repository("inline-cache"), &format!("blobs/{}", inline.manifest.config().digest()))
        .await;
    assert!(config.get("moby.buildkit.cache.v0").is_some(), "the image carries its cache");

    // A builder without anything, as on a new node: what was built comes from the registry.
    example.tenant.forget_builders().await;
    let former = example.tenant.built("cache-registry").await;
    let name = former.metadata.name.as_deref().unwrap();
    example.tenant.rebuild(name, "1").await;
    assert_eq!(example.image(name).await.text("made"), made, "taken from the registry's cache");
}

pub async fn gitops(example: &mut Example<'_>) {
    let repository = example.git("app");
    let commit = repository.write(&[("Dockerfile", "FROM busybox:1.36\nRUN echo app > /app\n")]);
    repository.tag("v1.2.0", &commit);
    example.apply_builds().await;
    let built = example.tenant.built("web").await;
    assert_eq!(built.status.as_ref().and_then(|status| status.source.clone()?.commit), Some(commit));

    // What goes out once the ImageBuild is Ready names the image that is there then.
    let (build, deployment) = (example.object("ImageBuild"), example.object("Deployment"));
    let (place, tag) =
        deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().rsplit_once(':').unwrap();
    assert_eq!(example.registry.digest(place, tag).await, Some(image_of(&built).digest));
    let wave = |object: &Value| object["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"].clone();
    assert_eq!((wave(&build), wave(&deployment)), (json!("0"), json!("1")));
}

pub async fn pull_secrets(example: &mut Example<'_>) {
    let other = Registry::of(&example.tenant.cluster, Login::referrers());
    let base = example.repository("private-base");
    example.registry.push_image(&base, "1.0", "linux/amd64", &[("base", "of the account")]).await;
    let base = Login::referrers().repository(example.tenant, "private-base");
    other.push_image(&base, "1.0", "linux/amd64", &[("base", "of the ImageBuild")]).await;
    let team = example.repository("team-a/base");
    example.registry.push_image(&team, "1.0", "linux/amd64", &[("base", "of team-a")]).await;
    let Login { user, password, .. } = Login::first();
    for robot in ["a", "b"] {
        example.set(&format!("\"robot$team-{robot}\""), &format!("\"{user}\""));
        example.set(&format!("token-of-{robot}"), &password);
    }
    // The base has no shell of its own.
    example.set(
        "RUN echo built > /built",
        "COPY --from=busybox:1.36 /bin/busybox /bin/busybox\n          RUN [\"/bin/busybox\", \"touch\", \"/built\"]",
    );
    example.apply().await;
    for (build, base, registry) in [
        ("pull-secrets-account", "of the account", &other),
        ("pull-secrets", "of the ImageBuild", &example.registry),
        ("pull-secrets-robots", "of team-a", &example.registry),
    ] {
        let image = image_of(&example.tenant.built(build).await);
        let image = registry.image_for(&image.repository, &image.digest, "linux/amd64").await;
        assert_eq!(image.text("base"), base);
        assert!(image.entry("built").is_some());
    }
}
