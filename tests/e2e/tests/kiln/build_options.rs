//! Options of a build whose effect shows only across builds, builders or failures: time, caches, base images, keys.

use kiln_crds::image_build::{BuildSsh, CacheSpec, PullPolicy, RegistryCache};
use kiln_crds::reference::SecretRef;
use kiln_e2e::build::{file, image, repository};
use kiln_e2e::registry::{Image, Registry};
use kiln_e2e::tenant::{image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant, git_ssh};

kiln_e2e::tests![
    two_fresh_builders_make_the_same_image_of_a_commit,
    a_new_commit_keeps_the_layers_that_it_does_not_touch,
    a_key_for_ssh_is_served_and_never_seen,
    a_cache_that_cannot_be_read_or_written_fails_nothing,
    a_base_image_that_is_there_is_taken_where_asked
];

/// The image of linux/amd64 that a build made.
async fn amd64(tenant: &Tenant, built: &kiln_crds::ImageBuild) -> Image {
    let built = image_of(built);
    Registry::new(&tenant.cluster).image_for(&built.repository, &built.digest, "linux/amd64").await
}

/// A step before the source, as most Dockerfiles have one: what it makes is random, so it shows whether it ran again.
const DATED: &str = "FROM busybox AS tools
WORKDIR /work
RUN echo same > file && mkdir directory
FROM busybox
WORKDIR /app
COPY --from=tools /work .
COPY input .
LABEL org.opencontainers.image.authors=you
";

async fn two_fresh_builders_make_the_same_image_of_a_commit() {
    Tenant::fresh("same-image", async |tenant| {
        let source = Repository::public(tenant, "app");
        source.write(&[("Dockerfile", DATED), ("input", "1")]);
        let build = Build::git(tenant, "app", &source).amd64().with(|spec| image(spec).rewrite_timestamp = true);
        let first = tenant.build(&build).await;
        tenant.forget_builders().await;
        let second = tenant.rebuild("app", "on another builder").await;
        assert_eq!(image_of(&first).digest, image_of(&second).digest);
        let created = amd64(tenant, &second).await;
        let labels = created.config.config().as_ref().and_then(|config| config.labels().clone()).unwrap();
        let created = created.config.created().clone().unwrap();
        assert_eq!(labels["org.opencontainers.image.created"], created, "both are the commit's time");
    })
    .await;
}

async fn a_new_commit_keeps_the_layers_that_it_does_not_touch() {
    Tenant::fresh("kept-layers", async |tenant| {
        let dockerfile = "FROM busybox\nWORKDIR /app\nRUN cat /proc/sys/kernel/random/uuid > /kept\nCOPY input .\n";
        let source = Repository::public(tenant, "app");
        source.write(&[("Dockerfile", dockerfile), ("input", "1")]);
        let first = tenant.build(&Build::git(tenant, "app", &source).amd64()).await;
        let former = amd64(tenant, &first).await;
        source.write(&[("input", "2")]);
        let second = tenant.rebuild("app", "another commit").await;
        let later = amd64(tenant, &second).await;
        assert_eq!(former.text("kept"), later.text("kept"), "the commit's time is not part of what the cache goes by");
        assert_eq!(later.text("app/input"), "2");
    })
    .await;
}

async fn a_key_for_ssh_is_served_and_never_seen() {
    Tenant::fresh("ssh-key", async |tenant| {
        let key = git_ssh::client_key();
        tenant.secret("key", "kubernetes.io/ssh-auth", &[("ssh-privatekey", &key)]).await;
        let middle = key.lines().nth(1).unwrap_or_default();
        let piece = &middle[middle.len() / 2..];
        // In two parts, or the step's own command would be what is found.
        let (one, two) = piece.split_at(piece.len() / 2);
        let dockerfile = format!(
            "FROM busybox\nRUN --mount=type=ssh test -S \"$SSH_AUTH_SOCK\" && echo {one:?} > /one && echo {two:?} > /two && \
             if grep -rlF \"$(cat /one)$(cat /two)\" /run /tmp /root /var /dev/shm /proc/1/environ /proc/self/environ 2>/dev/null; \
             then exit 9; fi\n"
        );
        let ssh = BuildSsh { id: "default".to_owned(), secret_ref: SecretRef { name: "key".to_owned() } };
        let build = Build::inline(tenant, "app", &[("Dockerfile", &dockerfile)]).amd64().with(|spec| spec.ssh = vec![ssh]);
        let built = amd64(tenant, &tenant.build(&build).await).await;
        assert!(built.below("").all(|entry| !entry.bytes.windows(piece.len()).any(|bytes| bytes == piece.as_bytes())));
    })
    .await;
}

async fn a_cache_that_cannot_be_read_or_written_fails_nothing() {
    Tenant::fresh("lost-cache", async |tenant| {
        let gone = format!("{}/e2e/{}/no-such-cache:x", tenant.cluster.registry, tenant.namespace);
        let host = tenant.cluster.registry.split(':').next().unwrap_or_default();
        // Nobody listens there.
        let registry = RegistryCache { reference: format!("{host}:9/cache:x"), mode: None };
        let cache = CacheSpec { registry: Some(registry), from: vec![gone], ..CacheSpec::default() };
        let build = Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\nRUN echo built > /done\n")])
            .amd64()
            .with(|spec| spec.cache = Some(cache));
        let built = tenant.build(&build).await;
        assert_eq!(amd64(tenant, &built).await.text("done").trim(), "built");
        let run = tenant.run_of(&built).await;
        let steps = &run.status.unwrap().platforms[0].steps;
        assert!(steps.iter().all(|step| !step.name.is_empty()), "{steps:?}");
    })
    .await;
}

async fn a_base_image_that_is_there_is_taken_where_asked() {
    Tenant::fresh("pull", async |tenant| {
        let base = |content: &str| format!("FROM scratch\nCOPY <<EOF /base\n{content}\nEOF\n");
        let first_base = tenant.build(&Build::inline(tenant, "base", &[("Dockerfile", &base("one"))]).amd64()).await;
        let dockerfile = format!("FROM {}:latest\nCOPY input /input\n", repository(tenant, "base"));
        let files = [("Dockerfile", dockerfile.as_str()), ("input", "1")];
        let build =
            Build::inline(tenant, "app", &files).amd64().with(|spec| spec.pull = Some(PullPolicy::IfNotPresent));
        let first = tenant.build(&build).await;
        tenant.edit("base", |build| base("two").clone_into(file(&mut build.spec, "Dockerfile"))).await;
        tenant.built_after("base", &run_of(&first_base)).await;

        tenant.edit("app", |build| "2".clone_into(file(&mut build.spec, "input"))).await;
        let second = tenant.built_after("app", &run_of(&first)).await;
        let image = amd64(tenant, &second).await;
        assert_eq!((image.text("base").trim(), image.text("input").as_str()), ("one", "2"), "the one that it had");

        // How to build, not what: no reason for a new run.
        tenant.edit("app", |build| build.spec.pull = Some(PullPolicy::Always)).await;
        let third = tenant.rebuild("app", "with the base looked up").await;
        assert_eq!(amd64(tenant, &third).await.text("base").trim(), "two", "looked up again");
    })
    .await;
}
