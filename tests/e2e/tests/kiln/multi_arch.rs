//! One ImageBuild, two architectures, one digest.

use kiln_crds::ImageBuild;
use kiln_e2e::registry::{Image, Registry};
use kiln_e2e::tenant::image_of;
use kiln_e2e::{Build, Repository, Tenant, elf};
use kube::ResourceExt as _;

kiln_e2e::tests![
    git_to_an_index_of_both_platforms,
    inline_files_to_an_index_of_the_default_platforms,
    a_platform_may_differ_in_dockerfile_stage_and_arguments,
    labels_and_annotations_are_on_the_image,
    the_same_input_gives_the_same_digest
];

const DOCKERFILE: &str = "FROM busybox\nRUN uname -m > /machine\nCMD [\"uname\", \"-m\"]\n";

/// Platform, architecture, and what `uname -m` says there.
const BOTH: [(&str, &str, &str); 2] = [("linux/amd64", "amd64", "x86_64"), ("linux/arm64", "arm64", "aarch64")];

async fn git_to_an_index_of_both_platforms() {
    Tenant::run("multi-git", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let commit = repository.write(&[("Dockerfile", DOCKERFILE)]);
        let build = Build::git(tenant, "app", &repository)
            .platforms(&["linux/amd64", "linux/arm64"])
            .tags(&["v1", "{{shortCommit}}"]);
        let finished = tenant.build(&build).await;

        check(tenant, &finished, &["v1", commit.get(..7).unwrap()]).await;
        let source = finished.status.as_ref().unwrap().source.clone().expect("the status names the source");
        assert_eq!((source.url, source.commit.as_deref()), (Some(repository.url.clone()), Some(commit.as_str())));
        assert_eq!(tenant.run_of(&finished).await.spec.commit.as_deref(), Some(commit.as_str()));
    })
    .await;
}

async fn inline_files_to_an_index_of_the_default_platforms() {
    Tenant::run("multi-inline", async |tenant| {
        let built = tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)])).await;
        check(tenant, &built, &["latest"]).await;
        assert_eq!(built.status.as_ref().unwrap().source.as_ref().and_then(|source| source.commit.as_deref()), None);
    })
    .await;
}

/// What a multi-arch build promises, from the registry and the nodes.
async fn check(tenant: &Tenant, built: &ImageBuild, tags: &[&str]) {
    let registry = Registry::new(&tenant.cluster);
    let image = image_of(built);
    assert_eq!(image.reference, format!("{}@{}", image.repository, image.digest));
    assert_eq!(image.repository, built.spec.image.as_ref().unwrap().repository);
    assert_eq!(image.tags, tags);
    for tag in tags {
        assert_eq!(registry.digest(&image.repository, tag).await.as_deref(), Some(image.digest.as_str()), "tag {tag}");
    }

    let images = registry.images(&image.repository, &image.digest).await;
    assert_eq!(
        images.iter().map(|image| image.platform.as_str()).collect::<Vec<_>>(),
        BOTH.map(|(platform, ..)| platform),
        "exactly both, in the spec's order"
    );
    let in_status: Vec<_> =
        image.platforms.iter().map(|platform| (platform.name.as_str(), platform.digest.as_str())).collect();
    let in_registry: Vec<_> = images.iter().map(|image| (image.platform.as_str(), image.digest.as_str())).collect();
    assert_eq!(in_status, in_registry);

    let run = tenant.run_of(built).await;
    let platforms = run.status.expect("a finished run has a status").platforms;
    for (built, (platform, architecture, machine)) in images.iter().zip(BOTH) {
        assert_eq!(built.config.architecture().to_string(), architecture);
        let busybox = built.entry("bin/busybox").expect("the base image is busybox");
        assert_eq!(elf::architecture(&busybox.bytes), architecture, "bin/busybox of {platform}");
        assert_eq!(built.text("machine"), machine, "what a RUN step of {platform} saw");

        let status =
            platforms.iter().find(|status| status.name == platform).expect("the run's status has each platform");
        let builder = status.builder.clone().expect("a built platform names its builder");
        assert_eq!(
            tenant.architecture_of(&builder.node).await,
            architecture,
            "the node {} built {platform}",
            builder.node
        );
        let pod = tenant.builder_pods().get(&builder.pod).await.expect("the builder stays warm");
        assert_eq!((pod.uid(), pod.spec.unwrap().node_name), (Some(builder.uid), Some(builder.node)));
        assert_eq!(status.digest.as_deref(), Some(built.digest.as_str()));
    }
    for (_, architecture, machine) in BOTH {
        assert_eq!(
            tenant.run_image(&image.reference, architecture).await,
            machine,
            "the image on a node of {architecture}"
        );
    }
}

async fn a_platform_may_differ_in_dockerfile_stage_and_arguments() {
    Tenant::run("multi-differ", async |tenant| {
        let files = [
            (
                "Dockerfile",
                "FROM busybox AS small\nARG WHO\nRUN echo small $WHO > /made\nFROM small\nRUN echo large > /made\n",
            ),
            ("Dockerfile.arm", "FROM busybox\nARG WHO\nARG TARGETPLATFORM\nRUN echo $TARGETPLATFORM $WHO > /made\n"),
        ];
        let build = Build::inline(tenant, "app", &files).platforms(&["linux/amd64", "linux/aarch64"]).with(|spec| {
            spec.args.insert("WHO".to_owned(), "all".to_owned());
            let platforms = spec.platforms.as_mut().unwrap();
            platforms[0].target = Some("small".to_owned());
            platforms[1].dockerfile = Some("Dockerfile.arm".to_owned());
            platforms[1].args.insert("WHO".to_owned(), "arm".to_owned());
        });
        let image = image_of(&tenant.build(&build).await);
        let images = Registry::new(&tenant.cluster).images(&image.repository, &image.digest).await;
        let made: Vec<_> = images.iter().map(|image| (image.platform.clone(), image.text("made"))).collect();
        assert_eq!(
            made,
            [
                ("linux/amd64".to_owned(), "small all".to_owned()),
                ("linux/arm64".to_owned(), "linux/arm64 arm".to_owned())
            ]
        );
    })
    .await;
}

async fn labels_and_annotations_are_on_the_image() {
    Tenant::run("multi-labels", async |tenant| {
        let build = Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\n")]).amd64().with(|spec| {
            spec.labels.insert("org.example.team".to_owned(), "a, b = \"c\"".to_owned());
            spec.annotations
                .insert("org.opencontainers.image.source".to_owned(), "https://example.com/app?x=1,y".to_owned());
        });
        let image = image_of(&tenant.build(&build).await);
        let registry = Registry::new(&tenant.cluster);
        let of_index = registry.index(&image.repository, &image.digest).await.annotations().clone().unwrap_or_default();
        let one: Image = registry.image_for(&image.repository, &image.digest, "linux/amd64").await;
        let of_manifest = one.manifest.annotations().clone().unwrap_or_default();
        for annotations in [of_index, of_manifest] {
            assert_eq!(
                annotations.get("org.opencontainers.image.source").map(String::as_str),
                Some("https://example.com/app?x=1,y")
            );
        }
        let labels = one.config.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default();
        assert_eq!(labels.get("org.example.team").map(String::as_str), Some("a, b = \"c\""));
    })
    .await;
}

async fn the_same_input_gives_the_same_digest() {
    Tenant::fresh("multi-same", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.write(&[("Dockerfile", "FROM busybox\nCOPY . /app/\n"), ("a", "one"), ("directory/b", "two")]);
        let first = image_of(&tenant.build(&Build::git(tenant, "one", &repository).amd64()).await);
        // Another ImageBuild, other builders and no cache: only the source is the same.
        tenant.delete_builders().await;
        let second = image_of(
            &tenant.build(&Build::git(tenant, "two", &repository).amd64().with(|spec| spec.no_cache = true)).await,
        );
        let registry = Registry::new(&tenant.cluster);
        let first = registry.image_for(&first.repository, &first.digest, "linux/amd64").await;
        let second = registry.image_for(&second.repository, &second.digest, "linux/amd64").await;
        assert_eq!(first.layers(), second.layers(), "the layers are reproducible");
    })
    .await;
}
