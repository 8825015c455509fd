//! What a Git source means: refs, directories, `.dockerignore`, times, modes, submodules.

use kiln_crds::ImageBuild;
use kiln_e2e::build::git;
use kiln_e2e::git::Commit;
use kiln_e2e::registry::{Image, Registry};
use kiln_e2e::tenant::{image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant};
use kube::ResourceExt as _;

kiln_e2e::tests![
    dockerignore_holds_with_a_git_context,
    a_ref_is_a_branch_a_tag_a_full_ref_a_commit_or_omitted,
    a_directory_of_the_repository_is_the_context,
    two_commits_of_one_second_and_one_size_are_two_contents,
    modes_and_submodules_arrive
];

const COPY_ALL: &str = "FROM busybox\nCOPY . /src/\n";

/// The linux/amd64 image of a built ImageBuild.
async fn image(tenant: &Tenant, built: &ImageBuild) -> Image {
    let image = image_of(built);
    Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await
}

/// Paths of the files below /src, sorted.
fn copied(image: &Image) -> Vec<&str> {
    let mut paths: Vec<_> = image
        .built()
        .filter(|entry| !entry.bytes.is_empty())
        .filter_map(|entry| entry.path.strip_prefix("src/"))
        .collect();
    paths.sort_unstable();
    paths
}

async fn dockerignore_holds_with_a_git_context() {
    Tenant::run("ignore", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.write(&[
            ("Dockerfile", COPY_ALL),
            (".dockerignore", "# a comment\n*.log\n!keep.log\nsecret\n**/deep\nDockerfile*\n.dockerignore\n"),
            ("a.log", "no"),
            ("keep.log", "yes"),
            ("secret/key", "no"),
            ("sub/deep/file", "no"),
            ("sub/a.log", "yes: *.log is only for the root"),
            ("sub/file", "yes"),
            // A file of this name beside a Dockerfile goes before .dockerignore.
            ("Dockerfile.own", COPY_ALL),
            ("Dockerfile.own.dockerignore", "*\n!sub/file\n"),
        ]);
        let built = tenant.build(&Build::git(tenant, "app", &repository).amd64()).await;
        assert_eq!(copied(&image(tenant, &built).await), ["keep.log", "sub/a.log", "sub/file"]);

        let own = Build::git(tenant, "own", &repository)
            .amd64()
            .with(|spec| spec.dockerfile = Some("Dockerfile.own".to_owned()));
        let built = tenant.build(&own).await;
        assert_eq!(copied(&image(tenant, &built).await), ["sub/file"]);
    })
    .await;
}

async fn a_ref_is_a_branch_a_tag_a_full_ref_a_commit_or_omitted() {
    Tenant::run("refs", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let first = repository.write(&[("Dockerfile", COPY_ALL), ("which", "first")]);
        repository.tag("v1", &first);
        repository.write(&[("which", "main")]);
        repository.commit(&Commit {
            branch: "release/1.0",
            files: &[("Dockerfile", COPY_ALL), ("which", "release")],
            ..Commit::default()
        });
        let cases = [
            ("branch", Some("release/1.0".to_owned()), "release"),
            ("tag", Some("v1".to_owned()), "first"),
            ("full", Some("refs/heads/release/1.0".to_owned()), "release"),
            ("full-tag", Some("refs/tags/v1".to_owned()), "first"),
            ("commit", Some(first), "first"),
            ("omitted", None, "main"),
        ];
        for (name, reference, expected) in cases {
            let built = tenant
                .build(&Build::git(tenant, name, &repository).amd64().with(|spec| git(spec).reference = reference))
                .await;
            assert_eq!(image(tenant, &built).await.text("src/which"), expected, "ref as {name}");
        }
    })
    .await;
}

async fn a_directory_of_the_repository_is_the_context() {
    Tenant::run("path", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.write(&[
            ("outside", "no"),
            ("services/web/.dockerignore", "build\n"),
            ("services/web/build/Dockerfile", COPY_ALL),
            ("services/web/page", "yes"),
        ]);
        let build = Build::git(tenant, "app", &repository).amd64().with(|spec| {
            git(spec).path = Some("services/web".to_owned());
            spec.dockerfile = Some("build/Dockerfile".to_owned());
        });
        let finished = tenant.build(&build).await;
        assert_eq!(copied(&image(tenant, &finished).await), [".dockerignore", "page"]);
    })
    .await;
}

/// BuildKit compares time and size to find changed files, and Git knows neither: a second content of the same size,
/// committed within the same second, must still be seen.
async fn two_commits_of_one_second_and_one_size_are_two_contents() {
    Tenant::run("one-second", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.write(&[("Dockerfile", COPY_ALL), ("file", "one")]);
        // This test also finds out that a new commit is found at the interval, without being asked for.
        let interval = "5s".parse().unwrap();
        let first = tenant
            .build(&Build::git(tenant, "app", &repository).amd64().with(|spec| git(spec).interval = Some(interval)))
            .await;
        let commit = repository.write(&[("file", "two")]);
        let second = tenant.built_after("app", &run_of(&first)).await;
        assert_eq!(second.status.as_ref().unwrap().source.as_ref().unwrap().commit.as_deref(), Some(commit.as_str()));
        assert_eq!(image(tenant, &first).await.text("src/file"), "one");
        assert_eq!(image(tenant, &second).await.text("src/file"), "two");
        assert_ne!(image_of(&first).digest, image_of(&second).digest);
        let tag = Registry::new(&tenant.cluster).digest(&image_of(&second).repository, "latest").await;
        assert_eq!(tag, Some(image_of(&second).digest), "the tag has moved");
    })
    .await;
}

async fn modes_and_submodules_arrive() {
    Tenant::run("submodule", async |tenant| {
        let inner = Repository::public(tenant, "inner");
        let pinned = inner.write(&[("library", "pinned")]);
        inner.write(&[("library", "newer")]);
        let repository = Repository::public(tenant, "app");
        // What Git would include is none of the repository's business, and not there either.
        let modules = format!(
            "[submodule \"inner\"]\n\tpath = vendor/inner\n\turl = {0}\n[submodule \"other\"]\n\tpath = vendor/other\n\turl \
             = {0}\n[include]\n\tpath = nowhere\n",
            inner.url
        );
        repository.commit(&Commit {
            files: &[
                ("Dockerfile", COPY_ALL),
                (".gitmodules", &modules),
                ("start.sh", "#!/bin/sh\n"),
                ("vendor/inner.index", "kept"),
            ],
            // Where a submodule's index might be kept for a while.
            links: &[("vendor/other.index", "/tmp/planted-index")],
            submodules: &[("vendor/inner", &pinned), ("vendor/other", &pinned)],
            ..Commit::default()
        });
        let built = tenant
            .build(&Build::git(tenant, "with", &repository).amd64().with(|spec| git(spec).submodules = true))
            .await;
        let with = image(tenant, &built).await;
        assert_eq!(with.text("src/vendor/inner/library"), "pinned");
        assert_eq!(with.text("src/vendor/other/library"), "pinned");
        assert_eq!(with.text("src/vendor/inner.index"), "kept");
        assert!(with.entry("src/vendor/other.index").is_some(), "a link stays what it is");
        for pod in tenant.builders().await {
            assert!(!tenant.has_file(&pod.name_any(), "agent", "/tmp/planted-index").await, "nothing is written through it");
        }
        assert!(with.built().all(|entry| !entry.path.split('/').any(|part| part == ".git")), "no .git in the context");
        let modes: Vec<_> = ["src/start.sh", "src/Dockerfile"]
            .map(|path| with.entry(path).unwrap())
            .iter()
            .map(|entry| (entry.mode, entry.uid, entry.gid))
            .collect();
        assert_eq!(modes, [(0o755, 0, 0), (0o644, 0, 0)]);

        let built = tenant.build(&Build::git(tenant, "without", &repository).amd64()).await;
        assert!(
            image(tenant, &built).await.entry("src/vendor/inner/library").is_none(),
            "submodules are off unless asked for"
        );
    })
    .await;
}
