//! What goes wrong before a run exists: each its own reason, in words that name what to mend; the last good image stays,
//! and once it is mended, Kiln goes on by itself.

use kiln_crds::{CaRef, ImageBuild, REBUILD_ANNOTATION, SecretRef};
use kiln_e2e::build::{git, platform, repository};
use kiln_e2e::git::Commit;
use kiln_e2e::tenant::{GIT_SECRET, REGISTRY_SECRET, condition, image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant};
use kube::ResourceExt as _;

kiln_e2e::tests![
    a_wrong_git_password,
    a_wrong_registry_password,
    an_unreachable_registry,
    a_missing_ref_or_repository,
    a_missing_or_useless_secret_or_ca,
    an_impossible_platform_or_pool
];

/// Waits until the ImageBuild `app` is not ready for this reason, and checks what holds at each failure before a run.
async fn fails(tenant: &Tenant, former: &ImageBuild, reason: &str, words: &[&str]) {
    let failed = tenant.not_ready("app", reason).await;
    check(&failed, former, reason, words);
    assert_eq!(run_of(&failed), run_of(former), "{reason}: no run was made");
    tenant.event("app", reason).await;
}

fn check(failed: &ImageBuild, former: &ImageBuild, reason: &str, words: &[&str]) {
    let ready = condition(failed, "Ready").unwrap();
    for word in words {
        assert!(ready.message.contains(word), "{reason}: the message names {word:?}: {}", ready.message);
    }
    assert_eq!(image_of(failed), image_of(former), "{reason}: the last good image stays");
}

/// An ImageBuild named `app` from a repository, built once.
async fn built_app(tenant: &Tenant, repository: &Repository) -> ImageBuild {
    repository.write(&[("Dockerfile", "FROM busybox\nCOPY file /file\n"), ("file", "1")]);
    tenant.build(&Build::private_git(tenant, "app", repository).amd64()).await
}

async fn a_wrong_git_password() {
    Tenant::run("git-password", async |tenant| {
        let repository = Repository::private(tenant, "app");
        let former = built_app(tenant, &repository).await;
        repository.write(&[("file", "2")]);
        tenant
            .secret(GIT_SECRET, "Opaque", &[("username", &tenant.cluster.git_user), ("password", "wrong-password")])
            .await;
        tenant.annotate("app", "again").await;
        fails(
            tenant,
            &former,
            "GitUnauthorized",
            &[&format!("{GIT_SECRET}, which source.git.secretRef names"), "/private/"],
        )
        .await;
        let status = serde_json::to_string(&tenant.builds().get("app").await.unwrap().status).unwrap();
        assert!(!status.contains("wrong-password"), "no password in a status: {status}");

        tenant
            .secret(
                GIT_SECRET,
                "Opaque",
                &[("username", &tenant.cluster.git_user), ("password", &tenant.cluster.git_password)],
            )
            .await;
        tenant.built_after("app", &run_of(&former)).await;
    })
    .await;
}

async fn a_wrong_registry_password() {
    Tenant::run("password", async |tenant| {
        let repository = Repository::private(tenant, "app");
        let former = built_app(tenant, &repository).await;
        tenant.registry_secret(&tenant.cluster.registry_user, "wrong-password").await;
        tenant.annotate("app", "again").await;
        fails(
            tenant,
            &former,
            "RegistryUnauthorized",
            &[&format!("{REGISTRY_SECRET}, which image.secretRef names"), &tenant.cluster.registry],
        )
        .await;

        tenant.registry_secret(&tenant.cluster.registry_user, &tenant.cluster.registry_password).await;
        tenant.built_after("app", &run_of(&former)).await;
    })
    .await;
}

async fn an_unreachable_registry() {
    Tenant::run("registry-away", async |tenant| {
        let source = Repository::private(tenant, "app");
        let former = built_app(tenant, &source).await;
        // Nothing listens on port 9 there.
        let away = format!("{}:9", tenant.cluster.registry_host());
        tenant
            .edit("app", |build| {
                build.spec.image.as_mut().unwrap().repository = format!("{away}/app");
                build.spec.image.as_mut().unwrap().secret_ref = None;
            })
            .await;
        fails(tenant, &former, "RegistryUnavailable", &[&away]).await;

        source.write(&[("file", "2")]);
        tenant
            .edit("app", |build| {
                build.spec.image.as_mut().unwrap().repository = repository(tenant, "app");
                build.spec.image.as_mut().unwrap().secret_ref = former.spec.image.as_ref().unwrap().secret_ref.clone();
            })
            .await;
        tenant.rebuild("app", "now").await;
    })
    .await;
}

async fn a_missing_ref_or_repository() {
    Tenant::run("ref", async |tenant| {
        let repository = Repository::private(tenant, "app");
        let former = built_app(tenant, &repository).await;
        tenant.edit("app", |build| git(&mut build.spec).reference = Some("release".to_owned())).await;
        fails(tenant, &former, "GitRefNotFound", &["release", &repository.url]).await;
        repository.commit(&Commit {
            branch: "release",
            files: &[("Dockerfile", "FROM busybox\n")],
            ..Commit::default()
        });
        let later = tenant.built_after("app", &run_of(&former)).await;

        let nowhere = repository.url.replace(".git", "-nowhere.git");
        tenant.edit("app", |build| git(&mut build.spec).url.clone_from(&nowhere)).await;
        fails(tenant, &later, "GitNotFound", &[&nowhere]).await;
        tenant.edit("app", |build| git(&mut build.spec).url.clone_from(&repository.url)).await;
        tenant.built("app").await;
    })
    .await;
}

async fn a_missing_or_useless_secret_or_ca() {
    Tenant::fresh("secret", async |tenant| {
        // A pool that trusts no CA of its own, so that those of the ImageBuild matter.
        let pool = tenant.pool("no-ca", |spec| spec.ca_refs.clear()).await;
        let source = Repository::private(tenant, "app");
        source.write(&[("Dockerfile", "FROM busybox\n")]);
        let former = tenant.build(&Build::private_git(tenant, "app", &source).amd64().pool(&pool)).await;

        // A reference is no part of what is built, so a change of it alone makes no run: each asks for one.
        let ask = |build: &mut ImageBuild, value: &str| {
            drop(build.annotations_mut().insert(REBUILD_ANNOTATION.to_owned(), value.to_owned()));
        };
        tenant
            .edit("app", |build| {
                build.spec.image.as_mut().unwrap().secret_ref = Some(SecretRef { name: "later".to_owned() });
                ask(build, "secret");
            })
            .await;
        fails(tenant, &former, "SecretNotFound", &["later", "image.secretRef"]).await;
        tenant.secret("later", "Opaque", &[("token", "x")]).await;
        fails(tenant, &former, "SecretInvalid", &["later", "username"]).await;
        let cluster = &tenant.cluster;
        let good = [("username", cluster.registry_user.as_str()), ("password", &cluster.registry_password)];
        tenant.secret("later", "Opaque", &good).await;
        let built = tenant.built_after("app", &run_of(&former)).await;

        tenant
            .edit("app", |build| {
                git(&mut build.spec).secret_ref = Some(SecretRef { name: "none".to_owned() });
                ask(build, "git secret");
            })
            .await;
        fails(tenant, &built, "SecretNotFound", &["none", "git.secretRef"]).await;
        let ca = |name: &str| CaRef { kind: None, name: name.to_owned(), key: None };
        tenant
            .edit("app", |build| {
                git(&mut build.spec).secret_ref = Some(SecretRef { name: GIT_SECRET.to_owned() });
                git(&mut build.spec).ca_ref = Some(ca("none"));
                ask(build, "ca");
            })
            .await;
        fails(tenant, &built, "CaNotFound", &["none", "git.caRef"]).await;
        // What every namespace has, and no CA of this server.
        tenant.edit("app", |build| git(&mut build.spec).ca_ref = Some(ca("kube-root-ca.crt"))).await;
        fails(tenant, &built, "GitCertificateUntrusted", &["kube-root-ca.crt, which source.git.caRef names"]).await;
        let right = former.spec.image.as_ref().unwrap().ca_ref.clone();
        tenant
            .edit("app", |build| {
                git(&mut build.spec).ca_ref.clone_from(&right);
                build.spec.image.as_mut().unwrap().ca_ref = None;
            })
            .await;
        fails(tenant, &built, "RegistryCertificateUntrusted", &["no CA is named: set image.caRef"]).await;
        tenant.edit("app", |build| build.spec.image.as_mut().unwrap().ca_ref.clone_from(&right)).await;
        tenant.built_after("app", &run_of(&built)).await;
    })
    .await;
}

async fn an_impossible_platform_or_pool() {
    Tenant::fresh("platform", async |tenant| {
        let source = Repository::private(tenant, "app");
        let former = built_app(tenant, &source).await;
        let platforms = |names: &[&str]| Some(names.iter().map(|name| platform(name)).collect());
        // Two spellings of one platform.
        tenant.edit("app", |build| build.spec.platforms = platforms(&["linux/amd64", "linux/x86_64"])).await;
        fails(tenant, &former, "PlatformInvalid", &["linux/x86_64", "linux/amd64"]).await;
        tenant.edit("app", |build| build.spec.platforms = platforms(&["linux/amd64"])).await;
        tenant.built("app").await;

        // One that no builder of the pool can build on.
        let pool = tenant.pool("amd64", |spec| spec.architectures = Some(vec!["amd64".to_owned()])).await;
        tenant
            .edit("app", |build| {
                build.spec.pool = Some(pool.clone());
                build.spec.platforms = platforms(&["linux/amd64"]);
                build.spec.platforms.as_mut().unwrap()[0].build_on = Some("linux/aarch64".to_owned());
            })
            .await;
        fails(tenant, &former, "PlatformInvalid", &["linux/arm64", &pool]).await;

        let foreign = tenant.pool("foreign", |spec| {
            let labels = spec.namespace_selector.as_mut().unwrap().match_labels.as_mut().unwrap();
            labels.insert("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned());
        });
        let foreign = foreign.await;
        tenant
            .edit("app", |build| {
                build.spec.pool = Some(foreign.clone());
                build.spec.platforms = platforms(&["linux/amd64"]);
            })
            .await;
        fails(tenant, &former, "PoolNotAllowed", &[&foreign, &tenant.namespace]).await;
        tenant.edit("app", |build| build.spec.pool = Some("nowhere".to_owned())).await;
        fails(tenant, &former, "PoolNotFound", &["nowhere"]).await;
        tenant.edit("app", |build| build.spec.pool = None).await;
        tenant.built("app").await;
    })
    .await;
}
