//! Whom a tag belongs to: the ImageBuild that moved it last, until it gives it up. All cases are a table in the operator's
//! `tags/ownership/tests.rs`; here is what needs a registry and time.

use kiln_crds::ImageBuild;
use kiln_e2e::build::{git, image};
use kiln_e2e::git::Commit;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{condition, image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant, wait};

kiln_e2e::tests![a_template_takes_no_tag_of_another, of_two_that_publish_at_once_one_has_the_tag];

const DOCKERFILE: &str = "FROM busybox\nRUN echo owner > /file\n";

async fn a_template_takes_no_tag_of_another() {
    Tenant::run("tags", async |tenant| {
        let registry = Registry::new(&tenant.cluster);
        let owner = Build::inline(tenant, "owner", &[("Dockerfile", DOCKERFILE)]).amd64().tags(&["stable"]);
        let owner = tenant.build(&owner).await;
        let repository = image_of(&owner).repository;
        let tags = &owner.status.as_ref().unwrap().tags;
        assert_eq!((tags.len(), tags[0].tag.as_str()), (1, "stable"));
        assert_eq!(tags[0].digest.as_deref(), Some(image_of(&owner).digest.as_str()));

        let source = Repository::public(tenant, "app");
        let files = [("Dockerfile", "FROM busybox\nRUN echo other > /file\n")];
        source.commit(&Commit { branch: "stable", files: &files, ..Commit::default() });
        let other = Build::git(tenant, "other", &source).amd64().tags(&["{{branch}}"]).with(|spec| {
            git(spec).reference = Some("stable".to_owned());
            image(spec).repository.clone_from(&repository);
        });
        tenant.create_build(&other).await;
        let conflict = tenant.not_ready("other", "TagConflict").await;
        let message = &condition(&conflict, "Ready").unwrap().message;
        assert!(message.contains("ImageBuild owner has the tag stable"), "{message}");
        assert_eq!(run_of(&conflict), "", "nothing was built");

        // Something that is no ImageBuild moves the tag.
        let manifest =
            registry.bytes(&repository, &format!("manifests/{}", image_of(&owner).platforms[0].digest)).await;
        let manifest = String::from_utf8(manifest).unwrap();
        let (_, path) = repository.split_once('/').unwrap();
        registry.push_manifest(path, "stable", "application/vnd.oci.image.manifest.v1+json", manifest).await;
        let former = run_of(&owner);
        tenant.rebuild("owner", "1").await;
        let moved = tenant.built_after("owner", &former).await;
        let told = condition(&moved, "TagMoved").expect("it is told");
        assert!(told.message.contains("stable") && told.message.contains(&repository), "{}", told.message);
        tenant.event("owner", "TagMoved").await;
        let digest = registry.digest(&repository, "stable").await;
        assert_eq!(digest.as_deref(), Some(image_of(&moved).digest.as_str()), "it is where it belongs again");
        tenant.rebuild("owner", "2").await;
        let again = tenant.built_after("owner", &run_of(&moved)).await;
        assert!(condition(&again, "TagMoved").is_none(), "it was where it had been left");

        // Who deletes an ImageBuild gives its tags up.
        tenant.builds().delete("owner", &kube::api::DeleteParams::default()).await.unwrap();
        let built = tenant.built("other").await;
        assert_eq!(image_of(&built).tags, ["stable"]);
        assert_eq!(registry.digest(&repository, "stable").await.as_deref(), Some(image_of(&built).digest.as_str()));
    })
    .await;
}

async fn of_two_that_publish_at_once_one_has_the_tag() {
    Tenant::run("claims", async |tenant| {
        let registry = Registry::new(&tenant.cluster);
        let build = |name: &str| {
            let file = format!("FROM busybox\nRUN echo {name} > /file\n");
            Build::inline(tenant, name, &[("Dockerfile", file.as_str())]).amd64().with(|spec| {
                image(spec).repository = kiln_e2e::build::repository(tenant, "app");
            })
        };
        let (one, two) = (build("one"), build("two"));
        futures::join!(tenant.create_build(&one), tenant.create_build(&two));
        let ended = async |name: &str| {
            let reason = |build: &ImageBuild| condition(build, "Ready").map(|ready| ready.reason.clone());
            let ended = |build: &ImageBuild| {
                Ok(reason(build).is_some_and(|reason| matches!(reason.as_str(), "Succeeded" | "TagConflict")))
            };
            tenant.wait_build(name, "has its tag, or not", wait::BUILD, ended).await
        };
        let (one, two) = futures::join!(ended("one"), ended("two"));
        let builds = [one, two];
        let ready: Vec<_> = builds.iter().filter(|build| condition(build, "Ready").unwrap().status == "True").collect();
        assert_eq!(ready.len(), 1, "one of them has the tag: {builds:?}");
        let digest = registry.digest(&image_of(ready[0]).repository, "latest").await;
        assert_eq!(digest.as_deref(), Some(image_of(ready[0]).digest.as_str()));
    })
    .await;
}
