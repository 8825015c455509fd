//! A write of a tag gets no answer, and is done only when a newer run has moved the tag: the tag ends at the newer run.

use axum::http::Method;
use k8s_openapi::api::events::v1::Event;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{image_of, run_of};
use kiln_e2e::{Tenant, wait};

use crate::recovery::host::is_local;
use crate::recovery::proxy::{Seen, When};
use crate::recovery::stage::{Stage, TAGS};

kiln_e2e::tests![an_older_write_that_comes_late_is_put_right];

async fn an_older_write_that_comes_late_is_put_right() {
    if !is_local("an_older_write_that_comes_late_is_put_right") {
        return;
    }
    Tenant::fresh("overtaken", async |tenant| {
        let stage = Stage::new(tenant).await;
        let path = format!("{}manifests/{}", stage.registry_path("app"), TAGS[0]);
        let is_write = move |seen: &Seen| seen.method == Method::PUT && seen.path == path;
        let mut held = stage.registry.hold("the first write of a tag", When::Late, is_write);
        let (build, _repository) = stage.build("app", "FROM busybox\nCOPY Dockerfile /app/\n");
        tenant.create_build(&build.amd64()).await;
        held.caught().await;
        let older = tenant.built("app").await;
        let unknown = |run: &kiln_crds::ImageBuildRun| {
            let tags = run.status.iter().flat_map(|status| &status.tags);
            tags.filter(|tag| tag.unknown.is_some()).map(|tag| tag.tag.clone()).collect::<Vec<_>>()
        };
        assert_eq!(unknown(&tenant.run_of(&older).await), [TAGS[0]], "nobody knows what became of its first write");

        tenant.edit("app", |build| drop(build.spec.labels.insert("run".to_owned(), "newer".to_owned()))).await;
        let newer = tenant.built_after("app", &run_of(&older)).await;
        assert_ne!(image_of(&older).digest, image_of(&newer).digest);
        held.release();

        let events = kube::runtime::watcher::Config::default()
            .fields("regarding.kind=ImageBuild,regarding.name=app,reason=TagMoved");
        let came_late = |event: &Event| {
            let note = event.note.as_deref().unwrap_or_default();
            note.contains(TAGS[0]) && note.contains("app-1") && note.contains("came late")
        };
        tenant
            .wait(tenant.api::<Event>(), events, "the late write is told", wait::SOON, |events| {
                Ok(events.values().any(came_late))
            })
            .await;
        let registry = Registry::new(&tenant.cluster);
        let repository = format!("{}/e2e/{}/app", tenant.cluster.registry, tenant.namespace);
        for tag in TAGS {
            let there = registry.digest(&repository, tag).await;
            assert_eq!(there.as_ref(), Some(&image_of(&newer).digest), "the tag {tag} is at the newer run");
        }
    })
    .await;
}
