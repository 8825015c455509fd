//! The registries that users have: with referrers, with tokens, several at once with a credential each; ones that limit
//! requests or the size of uploads; and blobs that are mounted from another repository in place of an upload.

use kiln_crds::SecretRef;
use kiln_crds::image_build::{BuiltImage, ImageCopy};
use kiln_e2e::build::{image, repository};
use kiln_e2e::hostile_server::ca;
use kiln_e2e::registries::Login;
use kiln_e2e::registry::Registry;
use kiln_e2e::registry_front::{Habit, Passed, RegistryFront};
use kiln_e2e::robots::{Asks, Robots};
use kiln_e2e::tenant::{CA, REGISTRY_SECRET, image_of};
use kiln_e2e::{Build, Tenant};
use serde_json::json;

kiln_e2e::tests![
    one_build_goes_to_several_registries_and_is_a_base_image_from_each,
    a_token_that_allows_less_than_a_push_and_none_at_all,
    a_registry_that_limits_requests_is_waited_for,
    blobs_of_another_repository_are_mounted,
    a_registry_that_mounts_nothing_gets_uploads,
    uploads_are_sent_whole_and_in_parts_where_they_are_too_large,
    an_artifact_refers_to_a_pushed_image,
    each_robot_of_a_registry_does_what_it_may,
    a_registry_without_tokens_is_shown_one_login
];

const BUSYBOX: &str = "docker.io/library/busybox";
const DOCKERFILE: &str = "FROM busybox\nRUN echo pushed > /file\n";

/// Another repository for an image, with a Secret and the CA of the `ConfigMap` of this name.
fn copy(repository: &str, secret: &str, ca: &str) -> ImageCopy {
    serde_json::from_value(json!({"repository": repository, "secretRef": {"name": secret}, "caRef": {"name": ca}}))
        .expect("a copy")
}

/// A front before a registry, with its CA in a `ConfigMap` and its credential in a Secret, both of this name.
async fn front(tenant: &Tenant, name: &str, login: &Login, habit: Habit) -> RegistryFront {
    let front = RegistryFront::before(&tenant.cluster, &login.host, habit).await;
    tenant.login_secret(name, &[&login.at(&front.host)]).await;
    tenant.ca(name, &ca()).await;
    front
}

/// An ImageBuild whose image goes to a front, and whose base image, at this path, comes from it.
fn through(tenant: &Tenant, name: &str, base: &str, front: &RegistryFront, secret: &str) -> Build {
    let dockerfile = format!("FROM {}/{base}\nRUN echo pushed > /file\n", front.host);
    Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64().with(|spec| {
        let image = image(spec);
        image.repository = repository(tenant, name).replacen(&tenant.cluster.registry, &front.host, 1);
        image.secret_ref = Some(SecretRef { name: secret.to_owned() });
        image.ca_ref = serde_json::from_value(json!({"name": secret})).expect("a caRef");
    })
}

/// An ImageBuild of `team-b` on a base image of `team-a`, with these Secrets for the push and for base images.
fn of_team_b(tenant: &Tenant, robots: &Robots, name: &str, (push, pull): (&str, &[&str])) -> Build {
    let base = robots.login("").repository(tenant, "team-a/base");
    let dockerfile = format!("FROM {base}\nCOPY Dockerfile /copied\n");
    Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64().with(|spec| {
        let image = image(spec);
        image.repository = robots.login("").repository(tenant, &format!("team-b/{name}"));
        image.secret_ref = Some(SecretRef { name: push.to_owned() });
        image.ca_ref = serde_json::from_value(json!({"name": "robots"})).expect("a caRef");
        spec.pull_secret_refs = pull.iter().map(|name| SecretRef { name: (*name).to_owned() }).collect();
    })
}

/// The base image of `team-a`, and Secrets for a front: one for each of two accounts, one that has both by path, and one that
/// nothing has use for.
async fn robots(tenant: &Tenant, asks: Asks) -> Robots {
    let robots = Robots::before(&tenant.cluster, asks).await;
    tenant.ca("robots", &ca()).await;
    let (a, b) = (robots.login("team-a"), robots.login("team-b"));
    tenant.login_secret("robot-a", &[&a]).await;
    tenant.login_secret("robot-b", &[&b]).await;
    let below = |login: &Login, team: &str| login.at(&format!("{}/e2e/{}/{team}", robots.host, tenant.id));
    tenant.login_secret("both", &[&below(&a, "team-a"), &below(&b, "team-b")]).await;
    tenant.login_secret("other", &[&below(&a, "team-c")]).await;
    let base = Build::inline(tenant, "base", &[("Dockerfile", "FROM busybox\nRUN echo base > /file\n")]);
    let base = base.amd64().with(|spec| image(spec).repository = Login::first().repository(tenant, "team-a/base"));
    tenant.build(&base).await;
    robots
}

async fn each_robot_of_a_registry_does_what_it_may() {
    for asks in [Asks::Token, Asks::WholeToken] {
        Tenant::run("robots", async |tenant| {
            let robots = robots(tenant, asks).await;
            let secrets: [(&str, (&str, &[&str])); 2] =
                [("own", ("robot-b", &["robot-a", "other"])), ("together", ("both", &[]))];
            for (name, secrets) in secrets {
                let build = of_team_b(tenant, &robots, name, secrets).with(|spec| {
                    let copy = robots.login("").repository(tenant, &format!("team-a/{name}"));
                    let secret = if name == "own" { "robot-a" } else { "both" };
                    image(spec).copies = vec![self::copy(&copy, secret, "robots")];
                });
                let status = tenant.build(&build).await.status.unwrap_or_default();
                let told: Vec<_> = status.warnings.iter().map(|warning| (&*warning.rule, &*warning.message)).collect();
                assert_eq!(told.len(), usize::from(name == "own"), "{told:?}");
                assert!(told.iter().all(|(rule, text)| *rule == "LoginUnused" && text.contains("/other,")), "{told:?}");
                let done = robots.done();
                let path = |team: &str, name: &str| format!("robot${team} e2e/{}/{team}/{name}", tenant.id);
                for what in [
                    format!("{}:pull", path("team-a", "base")),
                    format!("{}:push", path("team-b", name)),
                    format!("{}:push", path("team-a", name)),
                ] {
                    assert!(done.contains(&what), "{what} is not in {done:#?}");
                }
            }
        })
        .await;
    }
}

async fn a_registry_without_tokens_is_shown_one_login() {
    Tenant::run("one-login", async |tenant| {
        let robots = robots(tenant, Asks::Password).await;
        tenant.create_build(&of_team_b(tenant, &robots, "app", ("robot-b", &["robot-a"]))).await;
        let build = tenant.not_ready("app", "RegistryLoginAmbiguous").await;
        let message = format!("{:?}", build.status.unwrap_or_default().conditions);
        for part in ["team-b/app", "team-a/base", &robots.host] {
            assert!(message.contains(part), "{part} is not in {message}");
        }
    })
    .await;
}

async fn assert_there(tenant: &Tenant, login: &Login, repository: &str, built: &BuiltImage) {
    let registry = Registry::of(&tenant.cluster, login.clone());
    let repository = repository.split_once('/').expect("registry/path").1;
    assert_eq!(registry.digest(repository, "latest").await.as_deref(), Some(built.digest.as_str()), "{repository}");
    for image in registry.images(repository, &built.digest).await {
        assert_eq!(image.text("file"), "pushed", "{repository}");
    }
}

/// The requests for the repository of this name.
fn of(passed: &[Passed], name: &str) -> Vec<Passed> {
    let part = format!("/{name}/");
    passed.iter().filter(|passed| passed.uri.path().contains(&part)).cloned().collect()
}

async fn one_build_goes_to_several_registries_and_is_a_base_image_from_each() {
    Tenant::run("registries", async |tenant| {
        let (referrers, token) = (Login::referrers(), Login::token());
        tenant.login_secret("referrers", &[&referrers]).await;
        tenant.login_secret("token", &[&token]).await;
        let copies = [referrers.repository(tenant, "app"), token.repository(tenant, "app")];
        let build = Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)]).amd64().with(|spec| {
            image(spec).copies = vec![copy(&copies[0], "referrers", CA), copy(&copies[1], "token", CA)];
        });
        let built = image_of(&tenant.build(&build).await);
        assert_there(tenant, &Login::first(), &built.repository, &built).await;
        assert_there(tenant, &referrers, &copies[0], &built).await;
        assert_there(tenant, &token, &copies[1], &built).await;
        let told: Vec<_> = built.copies.iter().map(|copy| (copy.repository.as_str(), copy.tags.as_slice())).collect();
        let latest = ["latest".to_owned()];
        assert_eq!(told, copies.each_ref().map(|copy| (copy.as_str(), latest.as_slice())));

        // Pulled back by builders, with the token registry as the place of the new image too.
        let dockerfile = format!("FROM {} AS base\nFROM {}\nCOPY --from=base /file /again\n", copies[0], copies[1]);
        let build = Build::inline(tenant, "next", &[("Dockerfile", &dockerfile)]).amd64().with(|spec| {
            image(spec).repository = token.repository(tenant, "next");
            image(spec).secret_ref = Some(SecretRef { name: "token".to_owned() });
            spec.pull_secret_refs = vec![SecretRef { name: "referrers".to_owned() }];
        });
        let next = image_of(&tenant.build(&build).await);
        let registry = Registry::of(&tenant.cluster, token);
        for image in registry.images(next.repository.split_once('/').unwrap().1, &next.digest).await {
            assert_eq!((image.text("file"), image.text("again")), ("pushed".to_owned(), "pushed".to_owned()));
        }
    })
    .await;
}

async fn a_token_that_allows_less_than_a_push_and_none_at_all() {
    Tenant::run("tokens", async |tenant| {
        let (reader, writer) = (Login::token_reader(), Login::token());
        tenant.login_secret("reader", &[&reader]).await;
        tenant.login_secret("writer", &[&writer]).await;
        let wrong = Login { password: "wrong".to_owned(), ..writer.clone() };
        tenant.login_secret("wrong", &[&wrong]).await;
        let build = |name: &str, from: &str, secret: Option<&str>| {
            Build::inline(tenant, name, &[("Dockerfile", &format!("FROM {from}\nRUN echo pushed > /file\n"))])
                .amd64()
                .with(|spec| {
                    image(spec).repository = writer.repository(tenant, name);
                    image(spec).secret_ref = secret.map(|name| SecretRef { name: name.to_owned() });
                    spec.pull_secret_refs = vec![SecretRef { name: REGISTRY_SECRET.to_owned() }];
                })
        };
        for (name, secret, reason) in [
            ("reader", Some("reader"), "PushDenied"),
            ("nobody", None, "RegistryUnauthorized"),
            ("wrong", Some("wrong"), "RegistryUnauthorized"),
        ] {
            tenant.create_build(&build(name, "busybox", secret)).await;
            tenant.not_ready(name, reason).await;
        }

        // A base image that nobody may pull without a credential, and the reader may.
        let base = image_of(&tenant.build(&build("base", "busybox", Some("writer"))).await);
        let with_base =
            |name: &str| Build::inline(tenant, name, &[("Dockerfile", &format!("FROM {}\n", base.reference))]);
        tenant.create_build(&with_base("refused").amd64()).await;
        tenant.not_ready("refused", "RegistryUnauthorized").await;
        let allowed = with_base("allowed")
            .amd64()
            .with(|spec| spec.pull_secret_refs = vec![SecretRef { name: "reader".to_owned() }]);
        tenant.build(&allowed).await;
    })
    .await;
}

async fn a_registry_that_limits_requests_is_waited_for() {
    Tenant::run("rate-limit", async |tenant| {
        let front = front(tenant, "limited", &Login::first(), Habit::RateLimit(4)).await;
        let built = image_of(&tenant.build(&through(tenant, "app", BUSYBOX, &front, "limited")).await);
        let refused: Vec<_> = front.passed().into_iter().filter(|passed| passed.status == 429).collect();
        assert!(refused.len() >= 3, "requests were refused: {:#?}", front.passed());
        // Nobody gave up: no attempt failed for it.
        let run = tenant.run_of(&tenant.builds().get("app").await.unwrap()).await;
        let attempts: Vec<_> =
            run.status.unwrap_or_default().platforms.iter().map(|platform| platform.attempt).collect();
        assert_eq!(attempts, [1]);
        let there = built.repository.replacen(&front.host, &tenant.cluster.registry, 1);
        assert_there(tenant, &Login::first(), &there, &built).await;
    })
    .await;
}

async fn blobs_of_another_repository_are_mounted() {
    Tenant::run("mounts", async |tenant| {
        let front = front(tenant, "watched", &Login::first(), Habit::Watch).await;
        let second = repository(tenant, "second").replacen(&tenant.cluster.registry, &front.host, 1);
        // BuildKit mounts from repositories whose path begins as the new one's.
        let base = image_of(&tenant.build(&through(tenant, "base", BUSYBOX, &front, "watched")).await);
        let base = base.reference.split_once('/').unwrap().1;
        let build = through(tenant, "first", base, &front, "watched")
            .with(|spec| image(spec).copies = vec![copy(&second, "watched", "watched")]);
        let built = image_of(&tenant.build(&build).await);
        let passed = front.passed();
        // The base image's two layers are in the registry already, so they are not sent to the new repository.
        let first = of(&passed, "first");
        assert_eq!(first.iter().filter(|passed| passed.is_mount()).count(), 2, "{first:#?}");
        // The new layer and the configuration.
        assert_eq!(first.iter().filter(|passed| passed.is_upload()).count(), 2, "{first:#?}");
        // All of the copy is in the registry: three layers and the configuration.
        let second_passed = of(&passed, "second");
        assert_eq!(second_passed.iter().filter(|passed| passed.is_mount()).count(), 4, "{second_passed:#?}");
        assert!(!second_passed.iter().any(Passed::is_upload), "nothing is sent again: {second_passed:#?}");
        let there = second.replacen(&front.host, &tenant.cluster.registry, 1);
        assert_there(tenant, &Login::first(), &there, &built).await;
    })
    .await;
}

async fn a_registry_that_mounts_nothing_gets_uploads() {
    Tenant::run("no-mounts", async |tenant| {
        let front = front(tenant, "aloof", &Login::first(), Habit::NoMounts).await;
        let second = repository(tenant, "second").replacen(&tenant.cluster.registry, &front.host, 1);
        let build = through(tenant, "first", BUSYBOX, &front, "aloof")
            .with(|spec| image(spec).copies = vec![copy(&second, "aloof", "aloof")]);
        let built = image_of(&tenant.build(&build).await);
        let passed = of(&front.passed(), "second");
        assert!(!passed.iter().any(Passed::is_mount), "{passed:#?}");
        assert_eq!(passed.iter().filter(|passed| passed.is_upload()).count(), 3, "{passed:#?}");
        let there = second.replacen(&front.host, &tenant.cluster.registry, 1);
        assert_there(tenant, &Login::first(), &there, &built).await;
    })
    .await;
}

async fn uploads_are_sent_whole_and_in_parts_where_they_are_too_large() {
    Tenant::run("parts", async |tenant| {
        const LIMIT: usize = 9 << 20;
        let front = front(tenant, "narrow", &Login::referrers(), Habit::LargestBody(LIMIT)).await;
        let narrow = Login::referrers().repository(tenant, "app").replacen(&Login::referrers().host, &front.host, 1);
        // Random bytes are as large in a layer as they are on disk. No layer is a base image's, which the registry may have
        // from another test already, for it shares blobs among its repositories.
        let dockerfile = "FROM busybox AS made\nRUN echo pushed > /file && head -c 20000000 /dev/urandom > /large\n\
                          FROM scratch\nCOPY --from=made /file /file\nCOPY --from=made /large /large\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile)])
            .amd64()
            .with(|spec| image(spec).copies = vec![copy(&narrow, "narrow", "narrow")]);
        let built = image_of(&tenant.build(&build).await);
        let passed = front.passed();
        let parts: Vec<_> = passed.iter().filter(|passed| !passed.range.is_empty() && passed.status < 300).collect();
        assert!(parts.len() >= 3, "the large layer is sent in parts: {passed:#?}");
        assert!(parts.iter().all(|part| part.length <= LIMIT), "{parts:#?}");
        // The small layer and the configuration.
        let whole = passed.iter().filter(|passed| passed.is_upload() && passed.length > 0).count();
        assert_eq!(whole, 2, "the others are sent whole: {passed:#?}");
        let there = Login::referrers().repository(tenant, "app");
        assert_there(tenant, &Login::referrers(), &there, &built).await;
    })
    .await;
}

/// What OCI 1.1 brings: an artifact that is about an image is found by that image's digest.
async fn an_artifact_refers_to_a_pushed_image() {
    Tenant::run("referrers", async |tenant| {
        let login = Login::referrers();
        tenant.login_secret("referrers", &[&login]).await;
        let build = Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)]).amd64().with(|spec| {
            image(spec).repository = login.repository(tenant, "app");
            image(spec).secret_ref = Some(SecretRef { name: "referrers".to_owned() });
            spec.pull_secret_refs = vec![SecretRef { name: REGISTRY_SECRET.to_owned() }];
        });
        let built = image_of(&tenant.build(&build).await);
        let registry = Registry::of(&tenant.cluster, login);
        let repository = built.repository.split_once('/').unwrap().1;
        registry.push_blob(repository, EMPTY, b"{}".to_vec()).await;
        let index: serde_json::Value = registry.json(repository, &format!("manifests/{}", built.digest)).await;
        let artifact = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            // The artifact's type, as there is no artifactType, which the local registry does not look at.
            "config": {"mediaType": "application/vnd.example.note", "digest": EMPTY, "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.empty.v1+json", "digest": EMPTY, "size": 2}],
            "subject": {
                "mediaType": index["mediaType"],
                "digest": built.digest,
                "size": registry.bytes(repository, &format!("manifests/{}", built.digest)).await.len(),
            },
        });
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        registry.push_manifest(repository, "note", media_type, artifact.to_string()).await;
        let found: serde_json::Value = registry.json(repository, &format!("referrers/{}", built.digest)).await;
        assert_eq!(found["manifests"][0]["artifactType"], "application/vnd.example.note", "{found:#}");
    })
    .await;
}

/// The digest of `{}`, OCI's empty descriptor.
const EMPTY: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
