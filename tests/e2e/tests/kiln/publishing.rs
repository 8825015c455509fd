//! What a run pushes beside what it builds: copies of the last good image, images that were built elsewhere, Docker's media
//! types; and what it says of it: sizes, layers, and images that grew.

use kiln_crds::image_build::{MediaTypes, PlatformSpec};
use kiln_crds::image_build_run::{ImageBuildRun, PlatformPhase, RunPhase};
use kiln_crds::{ImageBuild, SecretRef};
use kiln_e2e::build::{image, platform, repository};
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{REGISTRY_SECRET, condition, image_of, is_current, run_of};
use kiln_e2e::{Build, Tenant, wait};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

kiln_e2e::tests![
    other_tags_and_repositories_get_a_copy_that_no_builder_makes,
    a_last_good_image_that_is_gone_is_built_again,
    an_index_is_made_of_images_that_were_built_elsewhere,
    an_image_of_another_platform_is_not_taken,
    docker_media_types_and_sizes_and_a_warning_of_growth,
    a_check_builds_and_pushes_nothing
];

const DOCKERFILE: &str = "FROM busybox\nRUN echo pushed > /file\n";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Asserts that no builder had a job of this run.
fn assert_no_jobs(run: &ImageBuildRun) {
    for platform in &run.status.as_ref().expect("a finished run has a status").platforms {
        assert_eq!((platform.phase, platform.attempt), (PlatformPhase::Succeeded, 0), "{platform:?}");
        assert_eq!(platform.builder, None);
    }
}

async fn other_tags_and_repositories_get_a_copy_that_no_builder_makes() {
    Tenant::run("publish-copy", async |tenant| {
        let registry = Registry::new(&tenant.cluster);
        let build = Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)]).amd64().tags(&["v1"]);
        let first = tenant.build(&build).await;
        let built = image_of(&first);

        tenant.edit("app", |build| image(&mut build.spec).tags = vec!["v2".to_owned(), "r{{run}}".to_owned()]).await;
        let tagged = tenant.built_after("app", &run_of(&first)).await;
        let run = tenant.run_of(&tagged).await;
        assert_eq!(run.spec.copy_of.as_ref().map(|image| image.digest.as_str()), Some(built.digest.as_str()));
        assert_no_jobs(&run);
        let image_now = image_of(&tagged);
        assert_eq!(
            (image_now.digest.as_str(), image_now.platforms.as_slice()),
            (built.digest.as_str(), &built.platforms[..])
        );
        assert_eq!(image_now.tags, ["v2", "r2"]);
        for tag in ["v1", "v2", "r2"] {
            assert_eq!(registry.digest(&built.repository, tag).await.as_deref(), Some(built.digest.as_str()), "{tag}");
        }

        let other = repository(tenant, "other");
        tenant.edit("app", |build| image(&mut build.spec).repository.clone_from(&other)).await;
        let moved = tenant.built_after("app", &run_of(&tagged)).await;
        assert_no_jobs(&tenant.run_of(&moved).await);
        let copied = image_of(&moved);
        assert_eq!((copied.digest.as_str(), copied.repository.as_str()), (built.digest.as_str(), other.as_str()));
        assert_eq!(copied.reference, format!("{other}@{}", built.digest));
        assert_eq!(registry.images(&other, "v2").await[0].text("file"), "pushed");
    })
    .await;
}

async fn a_last_good_image_that_is_gone_is_built_again() {
    Tenant::run("publish-gone", async |tenant| {
        let registry = Registry::new(&tenant.cluster);
        let build = Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)]).amd64();
        let first = tenant.build(&build).await;
        let built = image_of(&first);
        registry.delete_manifest(&built.repository, &built.digest).await;

        tenant.edit("app", |build| image(&mut build.spec).tags = vec!["v2".to_owned()]).await;
        let again = tenant.built_after("app", &run_of(&first)).await;
        let run = tenant.run_of(&again).await;
        let status = run.status.expect("a finished run has a status");
        assert!(run.spec.copy_of.is_some(), "a copy is tried first: {status:?}");
        let why =
            status.copy_failure.as_deref().unwrap_or_else(|| panic!("the run does not say why it built: {status:?}"));
        assert!(why.contains("cannot be copied") && why.contains("does not exist"), "{why}");
        assert_eq!(status.platforms[0].attempt, 1);
        assert_eq!(registry.digest(&built.repository, "v2").await, Some(image_of(&again).digest));
    })
    .await;
}

/// Pushes an image by hand, as a pipeline of somebody's would, and returns its digest.
async fn push(registry: &Registry, repository: &str, config: &Value, layer: &[u8]) -> String {
    let mut descriptors = Vec::new();
    for (media_type, bytes) in [
        ("application/vnd.docker.container.image.v1+json", config.to_string().into_bytes()),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", layer.to_vec()),
    ] {
        let digest = digest(&bytes);
        descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}));
        registry.push_blob(repository, &digest, bytes).await;
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": descriptors[0], "layers": [descriptors[1]],
    });
    registry.push_manifest(repository, "latest", DOCKER_MANIFEST, manifest.to_string()).await;
    digest(manifest.to_string().as_bytes())
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

fn taken(name: &str, image: String) -> PlatformSpec {
    PlatformSpec { image: Some(image), ..platform(name) }
}

async fn an_index_is_made_of_images_that_were_built_elsewhere() {
    Tenant::run("publish-index", async |tenant| {
        let registry = Registry::new(&tenant.cluster);
        let path = format!("e2e/{}/windows", tenant.namespace);
        let config = json!({
            "architecture": "amd64", "os": "windows", "os.version": "10.0.20348.1", "os.features": ["win32k"],
            "rootfs": {"type": "layers", "diff_ids": []},
            "history": [{"created_by": "set up", "empty_layer": true}, {"created_by": "copy app"}],
        });
        let windows = push(&registry, &path, &config, b"no real layer").await;
        let build = Build::inline(tenant, "app", &[("Dockerfile", "FROM scratch\n")]).with(|spec| {
            spec.source = None;
            let busybox = format!("{}/docker.io/library/busybox:latest", registry.host);
            spec.platforms = Some(vec![
                taken("linux/amd64", busybox.clone()),
                taken("linux/arm64", busybox),
                taken("windows/amd64", format!("{}/{path}", registry.host)),
            ]);
        });
        let built = tenant.build(&build).await;
        let run = tenant.run_of(&built).await;
        assert_no_jobs(&run);
        let told = image_of(&built);
        let base: Value = registry.json("docker.io/library/busybox", "manifests/latest").await;
        let index: Value = registry.json(&told.repository, &format!("manifests/{}", told.digest)).await;
        for (number, of) in ["amd64", "arm64"].into_iter().enumerate() {
            let children = base["manifests"].as_array().expect("the base image is an index");
            let child = children.iter().find(|child| child["platform"]["architecture"] == of).expect("it has both");
            assert_eq!(index["manifests"][number]["digest"], child["digest"]);
            let origin = format!("{}/docker.io/library/busybox@{}", registry.host, child["digest"].as_str().unwrap());
            assert_eq!(told.platforms[number].origin.as_deref(), Some(origin.as_str()));
        }
        let entry = &index["manifests"][2];
        assert_eq!(
            (entry["digest"].as_str(), entry["mediaType"].as_str()),
            (Some(&windows[..]), Some(DOCKER_MANIFEST))
        );
        let wanted = json!({
            "architecture": "amd64", "os": "windows", "os.version": "10.0.20348.1", "os.features": ["win32k"],
        });
        assert_eq!(entry["platform"], wanted);
        let content = told.platforms[2].content.as_ref().expect("the status tells its size");
        assert_eq!(
            usize::try_from(content.compressed_bytes).unwrap(),
            "no real layer".len() + config.to_string().len()
        );
        assert_eq!(content.layers[0].created_by.as_deref(), Some("copy app"));
        // What the entries name is in the repository itself.
        let manifest: Value = registry.json(&told.repository, &format!("manifests/{windows}")).await;
        let layer = manifest["layers"][0]["digest"].as_str().expect("a layer has a digest");
        assert_eq!(registry.bytes(&told.repository, &format!("blobs/{layer}")).await, b"no real layer");
    })
    .await;
}

async fn an_image_of_another_platform_is_not_taken() {
    Tenant::run("publish-other", async |tenant| {
        let registry = Registry::new(&tenant.cluster);
        let path = format!("e2e/{}/windows", tenant.namespace);
        let config = json!({"architecture": "amd64", "os": "windows", "rootfs": {"type": "layers", "diff_ids": []}});
        push(&registry, &path, &config, b"layer").await;
        let build = Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)]).with(|spec| {
            spec.source = None;
            spec.platforms = Some(vec![taken("linux/amd64", format!("{}/{path}", registry.host))]);
        });
        tenant.create_build(&build).await;
        let failed = tenant.not_ready("app", "PlatformNotInIndex").await;
        let message = condition(&failed, "Ready").map(|ready| ready.message.clone()).unwrap_or_default();
        assert!(message.contains("windows/amd64") && message.contains("linux/amd64"), "{message}");
    })
    .await;
}

async fn docker_media_types_and_sizes_and_a_warning_of_growth() {
    Tenant::run("publish-docker", async |tenant| {
        let registry = Registry::new(&tenant.cluster);
        let build = Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)]).amd64().with(|spec| {
            image(spec).media_types = Some(MediaTypes::Docker);
            image(spec).growth_warning_percent = Some(20);
        });
        let first = tenant.build(&build).await;
        let built = image_of(&first);
        let list: Value = registry.json(&built.repository, "manifests/latest").await;
        assert_eq!(list["mediaType"], DOCKER_LIST);
        assert_eq!(list["manifests"][0]["mediaType"], DOCKER_MANIFEST);
        let path = format!("manifests/{}", built.platforms[0].digest);
        let manifest: Value = registry.json(&built.repository, &path).await;
        assert_eq!(manifest["mediaType"], DOCKER_MANIFEST);

        let content = built.platforms[0].content.clone().expect("the status tells size and layers");
        let layers = manifest["layers"].as_array().expect("an image has layers");
        let bytes: Vec<i64> = layers.iter().filter_map(|layer| layer["size"].as_i64()).collect();
        assert_eq!(content.layers.iter().map(|layer| layer.bytes).collect::<Vec<_>>(), bytes);
        assert_eq!(content.compressed_bytes, bytes.iter().sum::<i64>() + manifest["config"]["size"].as_i64().unwrap());
        assert!(content.unpacked_bytes.is_some_and(|bytes| bytes > content.compressed_bytes), "{content:?}");
        let made = content.layers.last().and_then(|layer| layer.created_by.clone()).unwrap_or_default();
        assert!(made.contains("echo pushed"), "{content:?}");

        // Random bytes, which do not compress: more than a fifth of any busybox.
        let dockerfile = "FROM busybox\nRUN head -c 4000000 /dev/urandom > /file\n";
        tenant.edit("app", |build| *kiln_e2e::build::file(&mut build.spec, "Dockerfile") = dockerfile.to_owned()).await;
        let grown = tenant.built_after("app", &run_of(&first)).await;
        let run = tenant.run_of(&grown).await;
        let warnings = run.status.expect("a finished run has a status").warnings;
        let warning = warnings.iter().find(|warning| warning.rule == "ImageGrew").expect("the growth is told");
        assert_eq!(warning.platform.as_deref(), Some("linux/amd64"));
        assert!(warning.message.contains("grew by") && warning.message.contains("MiB"), "{warning:?}");
    })
    .await;
}

async fn a_check_builds_and_pushes_nothing() {
    Tenant::fresh("publish-check", async |tenant| {
        let build = Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)]).amd64().with(|spec| {
            spec.image = None;
            // The mirror of docker.io wants it.
            spec.pull_secret_refs = vec![SecretRef { name: REGISTRY_SECRET.to_owned() }];
        });
        tenant.create_build(&build).await;
        let run = tenant
            .wait_run("app-1", "ended", wait::BUILD, |run| {
                Ok(run.status.as_ref().is_some_and(|status| status.phase.is_final()))
            })
            .await;
        let status = run.status.expect("a finished run has a status");
        assert_eq!((status.phase, status.image), (RunPhase::Succeeded, None), "{:?}", status.failure);
        assert!(status.conditions[0].message.contains("nothing was pushed"), "{:?}", status.conditions);
        assert_eq!(status.platforms[0].attempt, 1);
        let ready = |build: &ImageBuild| {
            is_current(build) && condition(build, "Ready").is_some_and(|ready| ready.status == "True")
        };
        tenant.wait_build("app", "ready without an image", wait::BUILD, |build| Ok(ready(build))).await;
    })
    .await;
}
