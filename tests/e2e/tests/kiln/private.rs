//! Private repositories and registries: credentials and CAs of each form.

use kiln_crds::{CaRef, CaRefKind, SecretRef};
use kiln_e2e::build::git;
use kiln_e2e::git_front::GitFront;
use kiln_e2e::hostile_server::ca;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant};

kiln_e2e::tests![
    a_private_repository_and_a_private_base_image,
    a_changed_password_keeps_the_repository,
    a_registry_credential_as_username_and_password_and_a_ca_in_a_secret
];

async fn a_private_repository_and_a_private_base_image() {
    Tenant::run("private", async |tenant| {
        let repository = Repository::private(tenant, "app");
        let from = format!("FROM {}/docker.io/library/busybox\nCOPY file /file\n", tenant.cluster.registry);
        repository.write(&[("Dockerfile", &from), ("file", "private")]);
        let image = image_of(&tenant.build(&Build::private_git(tenant, "app", &repository)).await);
        for image in Registry::new(&tenant.cluster).images(&image.repository, &image.digest).await {
            assert_eq!(image.text("file"), "private");
        }
    })
    .await;
}

/// The copy of a repository on the cache volume is a Secret's, whatever password that holds: a new one fetches what is new
/// alone. Another Secret is given nothing of it.
async fn a_changed_password_keeps_the_repository() {
    Tenant::run("password", async |tenant| {
        let front = GitFront::start(&tenant.cluster).await;
        let mut repository = Repository::private(tenant, "app");
        let first = repository.write(&[("Dockerfile", "FROM scratch\nCOPY file /file\n"), ("file", "one")]);
        let login = async |name: &str, password: &str| {
            tenant.secret(name, "Opaque", &[("username", "kiln"), ("password", password)]).await;
        };
        login("mine", "first-password").await;
        tenant.ca("front", &ca()).await;
        repository.url = front.url_of(&repository.url);
        let build = |name: &str, secret: &str| {
            Build::git(tenant, name, &repository).amd64().with(|spec| {
                git(spec).secret_ref = Some(SecretRef { name: secret.to_owned() });
                git(spec).ca_ref = Some(CaRef { kind: None, name: "front".to_owned(), key: None });
            })
        };
        let built = tenant.build(&build("app", "mine")).await;
        assert!(!front.was_told(&first), "there was nothing to begin from");

        login("mine", "second-password").await;
        repository.write(&[("file", "two")]);
        tenant.rebuild("app", "now").await;
        tenant.built_after("app", &run_of(&built)).await;
        assert!(front.was_told(&first), "the builder has the first commit");

        login("other", "second-password").await;
        tenant.build(&build("other", "other")).await;
        assert!(!front.was_told(&first), "another Secret has a repository of its own");
    })
    .await;
}

async fn a_registry_credential_as_username_and_password_and_a_ca_in_a_secret() {
    Tenant::fresh("private-forms", async |tenant| {
        let cluster = &tenant.cluster;
        tenant
            .secret(
                "login",
                "kubernetes.io/basic-auth",
                &[("username", &cluster.registry_user), ("password", &cluster.registry_password)],
            )
            .await;
        tenant.secret("trust", "Opaque", &[("bundle.pem", &cluster.registry_ca)]).await;
        let trust =
            CaRef { kind: Some(CaRefKind::Secret), name: "trust".to_owned(), key: Some("bundle.pem".to_owned()) };
        // A pool that trusts no CA of its own: what the ImageBuild names is enough, for Git, push and base images.
        let pool = tenant.pool("no-ca", |spec| spec.ca_refs.clear()).await;
        let repository = Repository::public(tenant, "app");
        repository.write(&[("Dockerfile", "FROM busybox\n")]);
        let build = Build::git(tenant, "app", &repository).amd64().pool(&pool).with(|spec| {
            spec.image.as_mut().unwrap().secret_ref = Some(SecretRef { name: "login".to_owned() });
            spec.image.as_mut().unwrap().ca_ref = Some(trust.clone());
            git(spec).ca_ref = Some(trust);
        });
        tenant.build(&build).await;
    })
    .await;
}
