//! Sources beside a plain https repository: Git over ssh, LFS, `.git` kept, tarballs, artifacts, Dockerfiles elsewhere.

use kiln_crds::SecretRef;
use kiln_crds::image_build::{HttpSource, Source};
use kiln_e2e::build::git;
use kiln_e2e::git::Commit;
use kiln_e2e::git_ssh::{GIT_SSH_SECRET, client_key};
use kiln_e2e::registry::{Image, Registry};
use kiln_e2e::tenant::{condition, image_of};
use kiln_e2e::web::{WebFile, tar_gz};
use kiln_e2e::{Build, Repository, Tenant};
use kube::ResourceExt as _;

kiln_e2e::tests![
    git_over_ssh,
    git_lfs_files_come_in_place_of_their_pointers,
    a_private_commit_is_for_who_names_its_secret,
    faults_of_former_times_are_none,
    a_dockerfile_may_be_inline_or_outside_of_the_context,
    a_kept_git_dir_has_the_commit_and_no_credential,
    a_tarball_is_compared_with_its_checksum
];

const COPY_ALL: &str = "FROM busybox\nCOPY . /src/\n";

/// The linux/amd64 image of a build that succeeds.
async fn image(tenant: &Tenant, build: &Build) -> Image {
    let built = tenant.build(build).await;
    let image = image_of(&built);
    Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await
}

fn over_ssh(tenant: &Tenant, name: &str, repository: &Repository) -> Build {
    Build::git(tenant, name, repository).amd64().with(|spec| {
        git(spec).url = repository.ssh_url(tenant);
        git(spec).secret_ref = Some(SecretRef { name: GIT_SSH_SECRET.to_owned() });
    })
}

async fn git_over_ssh() {
    Tenant::run("git-ssh", async |tenant| {
        let (repository, library) = (Repository::private(tenant, "app"), Repository::private(tenant, "lib"));
        repository.write(&[("Dockerfile", COPY_ALL), ("file", "by ssh")]);
        library.write(&[("x", "")]);
        tenant.git_ssh_secret().await;
        assert_eq!(image(tenant, &over_ssh(tenant, "app", &repository)).await.text("src/file"), "by ssh");

        let host = repository.ssh_url(tenant);
        let host = host.trim_start_matches("ssh://git@").split('/').next().unwrap();
        let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let (address, port) = host.split_once(':').unwrap();
        tenant
            .secret(
                "changed",
                "kubernetes.io/ssh-auth",
                &[("ssh-privatekey", &client_key()), ("known_hosts", &format!("[{address}]:{port} {other}"))],
            )
            .await;
        let changed = over_ssh(tenant, "changed", &repository)
            .with(|spec| git(spec).secret_ref = Some(SecretRef { name: "changed".to_owned() }));
        tenant.create_build(&changed).await;
        tenant.not_ready("changed", "GitHostKeyUnknown").await;
        tenant.create_build(&over_ssh(tenant, "no-key", &repository).with(|spec| git(spec).secret_ref = None)).await;
        tenant.not_ready("no-key", "GitUnauthorized").await;
    })
    .await;
}

async fn git_lfs_files_come_in_place_of_their_pointers() {
    Tenant::run("git-lfs", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let pointer = repository.lfs(b"the large file\n");
        repository.commit(&Commit {
            files: &[
                ("Dockerfile", COPY_ALL),
                (".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n"),
                ("large.bin", &pointer),
                ("no-lfs.txt", &pointer),
            ],
            // A name that a download might have for a while.
            links: &[("large.bin.lfs-part", "/tmp/planted"), ("lfs-part", "/tmp/planted")],
            ..Commit::default()
        });
        let with = Build::git(tenant, "with", &repository).amd64().with(|spec| git(spec).lfs = true);
        let built = image(tenant, &with).await;
        assert_eq!(built.text("src/large.bin"), "the large file");
        assert_eq!(built.text("src/no-lfs.txt"), pointer.trim_end());
        assert!(built.entry("src/large.bin.lfs-part").is_some() && built.entry("src/lfs-part").is_some());
        for pod in tenant.builders().await {
            assert!(
                !tenant.has_file(&pod.name_any(), "agent", "/tmp/planted").await,
                "no link of the repository is followed"
            );
        }
        let missing = kiln_e2e::lfs::pointer(b"never pushed");
        repository.write(&[("large.bin", &missing)]);
        tenant
            .create_build(&Build::git(tenant, "missing", &repository).amd64().with(|spec| git(spec).lfs = true))
            .await;
        tenant.not_ready("missing", "GitLfsFailed").await;
    })
    .await;
}

/// A builder keeps what it fetched, and gives it to nobody who could not have fetched it.
async fn a_private_commit_is_for_who_names_its_secret() {
    Tenant::fresh("private-commit", async |tenant| {
        let repository = Repository::private(tenant, "app");
        let commit = repository.write(&[("Dockerfile", COPY_ALL)]);
        tenant.build(&Build::private_git(tenant, "owner", &repository).amd64()).await;
        let stranger =
            Build::git(tenant, "stranger", &repository).amd64().with(|spec| git(spec).reference = Some(commit));
        tenant.create_build(&stranger).await;
        tenant.not_ready("stranger", "GitUnauthorized").await;
    })
    .await;
}

/// Honest repositories have commits that programs of former times wrote, and trees with modes that are padded.
async fn faults_of_former_times_are_none() {
    const AUTHORS: [&str; 12] = [
        "A <a@b> 01700000000 +0000",
        "A <a@b> 99999999999999999999 +0000",
        "A <a@b> 1700000000 +051800",
        "A <a@b> 1700000000 -000",
        "A<a@b> 1700000000 +0000",
        "<a@b> 1700000000 +0000",
        "A <a@b>1700000000 +0000",
        "A <a@b <c@d>> 1700000000 +0000",
        "A 1700000000 +0000",
        "A <a@b> x +0000",
        "A> <a@b> 1700000000 +0000",
        "A <a@b> 1700000000 +0000\nauthor B <b@c> 1700000000 +0000",
    ];
    Tenant::run("old-faults", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let mut parent = repository.write(&[("Dockerfile", COPY_ALL)]);
        let file = repository.raw_object("blob", b"padded");
        let id: Vec<u8> = (0..20).map(|byte| u8::from_str_radix(&file[byte * 2..byte * 2 + 2], 16).unwrap()).collect();
        // Names that are honest, though hard to print, and for file systems that do not fold case.
        let names = ["File", "file", "line\nbreak", "tab\tname"];
        let entries: Vec<u8> =
            names.iter().flat_map(|name| [format!("0100644 {name}\0").as_bytes(), &id].concat()).collect();
        let tree = repository.raw_object("tree", &entries);
        for author in AUTHORS {
            let commit =
                format!("tree {tree}\nparent {parent}\nauthor {author}\ncommitter A <a@b> 1700000000 +0000\n\nold\n");
            parent = repository.raw_object("commit", commit.as_bytes());
        }
        repository.point("refs/heads/main", &parent);
        repository.write(&[("Dockerfile", COPY_ALL)]);
        let build = Build::git(tenant, "app", &repository).amd64().with(|spec| {
            git(spec).full_history = true;
            git(spec).keep_git_dir = true;
        });
        let built = image(tenant, &build).await;
        for name in names {
            assert_eq!(built.text(&format!("src/{name}")), "padded");
        }
    })
    .await;
}

async fn a_dockerfile_may_be_inline_or_outside_of_the_context() {
    Tenant::run("dockerfile-places", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.write(&[
            ("docker/Dockerfile", COPY_ALL),
            ("docker/Dockerfile.dockerignore", "b\n"),
            ("app/.dockerignore", "a\n"),
            ("app/a", "a"),
            ("app/b", "b"),
        ]);
        let inline = Build::git(tenant, "inline", &repository).amd64().with(|spec| {
            git(spec).path = Some("app".to_owned());
            spec.dockerfile_inline = Some(COPY_ALL.to_owned());
        });
        let built = image(tenant, &inline).await;
        assert!(built.entry("src/a").is_none() && built.entry("src/b").is_some());
        let outside = Build::git(tenant, "outside", &repository).amd64().with(|spec| {
            git(spec).path = Some("app".to_owned());
            spec.dockerfile = Some("../docker/Dockerfile".to_owned());
        });
        let built = image(tenant, &outside).await;
        assert!(built.entry("src/a").is_some() && built.entry("src/b").is_none());
    })
    .await;
}

async fn a_kept_git_dir_has_the_commit_and_no_credential() {
    Tenant::run("git-dir", async |tenant| {
        let repository = Repository::private(tenant, "app");
        let first = repository.write(&[("Dockerfile", COPY_ALL), ("file", "1")]);
        repository.tag("v1.0", &first);
        let commit = repository.write(&[("file", "2")]);
        let build = |name: &str, history| {
            Build::private_git(tenant, name, &repository).amd64().with(|spec| {
                git(spec).keep_git_dir = true;
                git(spec).full_history = history;
            })
        };
        let built = image(tenant, &build("one", false)).await;
        assert_eq!(built.text("src/.git/HEAD").trim(), commit);
        assert_eq!(built.text("src/.git/shallow").trim(), commit);
        let config = built.text("src/.git/config");
        assert!(config.contains(&repository.url) && !config.to_lowercase().contains("authorization"), "{config}");
        let built = image(tenant, &build("all", true)).await;
        assert!(built.entry("src/.git/shallow").is_none());
        assert!(built.text("src/.git/packed-refs").contains(&format!("{first} refs/tags/v1.0")));
    })
    .await;
}

async fn a_tarball_is_compared_with_its_checksum() {
    Tenant::run("tarball", async |tenant| {
        let content = tar_gz(&[("app-1.0/Dockerfile", COPY_ALL), ("app-1.0/file", "from a tarball")]);
        let public = WebFile::public(tenant, "app.tar.gz", &content);
        let private = WebFile::private(tenant, "app.tar.gz", &content);
        tenant.web_secret().await;
        let build = |name: &str, url: &str, checksum: &str, secret: bool| {
            let http = HttpSource {
                url: url.to_owned(),
                checksum: checksum.to_owned(),
                path: Some("app-1.0".to_owned()),
                secret_ref: secret.then(|| SecretRef { name: kiln_e2e::web::WEB_SECRET.to_owned() }),
                ca_ref: serde_json::from_value(serde_json::json!({"name": kiln_e2e::tenant::CA})).unwrap(),
            };
            Build::inline(tenant, name, &[("Dockerfile", "")]).amd64().with(|spec| {
                spec.source = Some(Source { git: None, inline: None, http: Some(Box::new(http)), image: None });
            })
        };
        for (name, url, secret) in
            [("public", &public.url, false), ("private", &private.url, true), ("moved", &public.moved(), false)]
        {
            let built = image(tenant, &build(name, url, &public.checksum, secret)).await;
            assert_eq!(built.text("src/file"), "from a tarball", "{name}");
        }
        let other = format!("sha256:{}", "0".repeat(64));
        for (name, url, checksum, secret, reason) in [
            ("checksum", &public.url, &other, false, "ChecksumMismatch"),
            ("no-secret", &private.url, &private.checksum, false, "SourceUnauthorized"),
            // The credential does not go along to another host.
            ("elsewhere", &private.elsewhere(), &private.checksum, true, "SourceUnauthorized"),
            ("plain", &public.plain(), &public.checksum, false, "SourceNotFound"),
            ("round", &public.round(), &public.checksum, false, "SourceNotFound"),
        ] {
            tenant.create_build(&build(name, url, checksum, secret)).await;
            let failed = tenant.not_ready(name, reason).await;
            if name == "no-secret" {
                let message = &condition(&failed, "Ready").unwrap().message;
                assert!(message.ends_with("; no Secret is named: set source.http.secretRef"), "{message}");
            }
        }
    })
    .await;
}
