//! What a BuilderPool says of its builds: builders that are up before the first one, a volume for archives, arguments for
//! all, and how registries are reached.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kiln_crds::builder_pool::{PoolArchives, PoolRegistry};
use kiln_crds::{BuilderPool, ImageBuild, SecretRef};
use kiln_e2e::build::{image, repository};
use kiln_e2e::cluster::builders_namespace;
use kiln_e2e::plain_front::PlainFront;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{condition, image_of};
use kiln_e2e::{Build, Tenant, wait};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

kiln_e2e::tests![
    the_least_builders_are_up_before_any_build_and_stay_until_the_last_image_build_goes,
    an_archive_is_loaded_back_by_its_own_namespace_alone,
    arguments_of_the_pool_reach_every_build_and_its_own_go_before_them,
    a_mirror_is_read_with_the_credential_of_the_pool,
    a_registry_without_tls_is_used_where_the_pool_says_so
];

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.clone().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn the_least_builders_are_up_before_any_build_and_stay_until_the_last_image_build_goes() {
    Tenant::fresh("warm", async |tenant| {
        let pool = tenant
            .pool("warm", |spec| {
                spec.min_builders = Some(1);
                spec.max_jobs_per_builder = Some(1);
                spec.idle_timeout = Some(Duration::from_secs(2).into());
            })
            .await;
        let dockerfile = |name: &str| format!("FROM busybox\nRUN sleep 2; echo {name}\n");
        let build = |name: &str| Build::inline(tenant, name, &[("Dockerfile", &dockerfile(name))]).amd64().pool(&pool);
        tenant.create_build(&build("waits").with(|spec| spec.suspend = true)).await;
        let up = tenant
            .wait_builders("one, though nothing is built", wait::BUILD, |pods| {
                pods.len() == 1 && pods.values().all(is_ready)
            })
            .await;
        let (name, warm) = up.into_iter().next().unwrap();
        assert_eq!(tenant.runs().list(&ListParams::default()).await.unwrap().items.len(), 0);

        // Two at once need another builder, which goes when it has been idle. The warm one does the first, and stays.
        for name in ["one", "two"] {
            tenant.create_build(&build(name)).await;
        }
        tenant.wait_builders("two", wait::BUILD, |pods| pods.len() == 2).await;
        let mut on = Vec::new();
        for name in ["one", "two"] {
            let built = tenant.built(name).await;
            let run = tenant.run_of(&built).await;
            on.extend(run.status.unwrap().platforms.remove(0).builder.map(|builder| builder.uid));
        }
        assert!(on.contains(&warm.uid().unwrap()), "the warm builder builds: {on:?}");
        let left = tenant.wait_builders("one is left", wait::SOON, |pods| pods.len() == 1).await;
        assert_eq!(left.get(&name).and_then(kube::ResourceExt::uid), warm.uid());

        for name in ["one", "two"] {
            tenant.builds().delete(name, &DeleteParams::default()).await.unwrap();
        }
        // Lost, it is made anew for the one that is left.
        tenant.lose_builders().await;
        tenant.wait_builders("another is up", wait::BUILD, |pods| pods.values().any(is_ready)).await;
        tenant.builds().delete("waits", &DeleteParams::default()).await.unwrap();
        tenant.wait_builders("none for nobody", wait::SOON, BTreeMap::is_empty).await;
    })
    .await;
}

/// A volume that every node can mount, as root made it; gone with the value.
struct Volume {
    name: String,
    path: String,
    pool: Api<PersistentVolume>,
    claims: Api<PersistentVolumeClaim>,
}

impl Volume {
    async fn make(tenant: &Tenant) -> Self {
        let name = format!("{}-archives", tenant.namespace);
        let path = format!("/var/lib/kiln-cluster/{name}");
        std::fs::create_dir(&path).unwrap();
        let nodes: Api<Node> = Api::all(tenant.cluster.client.clone());
        let nodes: Vec<String> =
            nodes.list(&ListParams::default()).await.unwrap().iter().map(kube::ResourceExt::name_any).collect();
        let volume = json!({
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "local": {"path": path},
                "claimRef": {"namespace": builders_namespace(), "name": name},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": nodes},
                ]}]}},
            },
        });
        let claim = json!({
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "volumeName": name,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        });
        let made = Self {
            name,
            path,
            pool: Api::all(tenant.cluster.client.clone()),
            claims: Api::namespaced(tenant.cluster.client.clone(), &builders_namespace()),
        };
        made.pool.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
        made.claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
        made
    }

    async fn remove(self) {
        self.claims.delete(&self.name, &DeleteParams::default()).await.unwrap();
        self.pool.delete(&self.name, &DeleteParams::default()).await.unwrap();
        std::fs::remove_dir_all(&self.path).unwrap();
    }
}

/// An ImageBuild that writes its image to the archive volume.
fn export(tenant: &Tenant, name: &str) -> Build {
    Build::inline(tenant, name, &[("Dockerfile", "FROM busybox\nRUN echo kept > /file\n")]).amd64().with(|spec| {
        spec.pull_secret_refs = vec![SecretRef { name: kiln_e2e::tenant::REGISTRY_SECRET.to_owned() }];
        spec.image = None;
        spec.archive = serde_json::from_value(json!({"path": "images/app.tar"})).unwrap();
    })
}

/// An ImageBuild that pushes what is on the archive volume.
fn load(tenant: &Tenant, name: &str) -> Build {
    Build::inline(tenant, name, &[]).with(|spec| {
        spec.source = None;
        spec.platforms = serde_json::from_value(json!([{"name": "linux/amd64", "archive": "images/app.tar"}])).unwrap();
    })
}

async fn an_archive_is_loaded_back_by_its_own_namespace_alone() {
    if std::env::var_os("KILN_LOCAL_CLUSTER").is_none() {
        eprintln!("not tested: archives; they need a directory that all nodes share, as the local cluster has");
        return;
    }
    Tenant::fresh("archive", async |tenant| {
        let volume = Volume::make(tenant).await;
        let claim_name = volume.name.clone();
        let pool = tenant
            .pool("archive", |spec| {
                spec.archives = Some(PoolArchives { claim_name });
                spec.namespace_selector = None;
            })
            .await;
        tenant.create_build(&export(tenant, "nowhere")).await;
        let fault = tenant.not_ready("nowhere", "ArchivesNotConfigured").await;
        assert!(condition(&fault, "Ready").unwrap().message.contains("spec.archives"));

        let exported = tenant.build(&export(tenant, "app").pool(&pool)).await;
        let written = tenant.run_of(&exported).await.status.unwrap().platforms.remove(0);
        let (digest, content) = (written.digest.unwrap(), written.content.unwrap());
        assert!(content.compressed_bytes > 0 && !content.layers.is_empty(), "{content:?}");
        let loaded = tenant.build(&load(tenant, "loaded").pool(&pool)).await;
        let images = Registry::new(&tenant.cluster).images(&image_of(&loaded).repository, "latest").await;
        assert_eq!(images.iter().map(|image| image.digest.as_str()).collect::<Vec<_>>(), [digest.as_str()]);
        assert_eq!(images[0].text("file"), "kept");

        Tenant::fresh("archive-other", async |other| {
            other.create_build(&load(other, "loaded").pool(&pool)).await;
            let failed = other.not_ready("loaded", "ArchiveInvalid").await;
            assert_eq!(failed.status.unwrap().image, None);
            // It has a directory of its own, and may write the same path there.
            other.build(&export(other, "app").pool(&pool)).await;
        })
        .await;
        let directories: Vec<String> = std::fs::read_dir(&volume.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("e2e-"))
            .collect();
        assert_eq!(directories.len(), 2, "one each: {directories:?}");
        // Both go once the builders that hold them are gone.
        volume.remove().await;
    })
    .await;
}

async fn arguments_of_the_pool_reach_every_build_and_its_own_go_before_them() {
    Tenant::fresh("default-args", async |tenant| {
        let pool = tenant
            .pool("args", |spec| {
                spec.default_args = [("BOTH", "pool"), ("POOL", "pool")].map(|(k, v)| (k.into(), v.into())).into();
            })
            .await;
        let dockerfile = "FROM busybox\nARG BOTH\nARG POOL\nRUN echo $BOTH $POOL > /said\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile)]).amd64().pool(&pool);
        let built = tenant.build(&build.with(|spec| drop(spec.args.insert("BOTH".into(), "own".into())))).await;
        assert_eq!(said(tenant, &built).await, "own pool");

        // A change is for the next run, and makes none.
        let run = built.status.as_ref().unwrap().run.clone();
        let pools: Api<BuilderPool> = Api::all(tenant.cluster.client.clone());
        let patch = kube::api::Patch::Merge(json!({"spec": {"defaultArgs": {"POOL": "changed"}}}));
        pools.patch(&pool, &kube::api::PatchParams::default(), &patch).await.unwrap();
        let again = tenant.rebuild("app", "again").await;
        assert_eq!(said(tenant, &again).await, "own changed");
        let next = format!("app-{}", run.unwrap().rsplit('-').next().unwrap().parse::<u64>().unwrap() + 1);
        assert_eq!(again.status.unwrap().run, Some(next), "there was none in between");
    })
    .await;
}

async fn said(tenant: &Tenant, build: &ImageBuild) -> String {
    let image = image_of(build);
    Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await.text("said")
}

async fn a_mirror_is_read_with_the_credential_of_the_pool() {
    Tenant::fresh("mirror", async |tenant| {
        let name = format!("{}-mirror", tenant.namespace);
        let (user, password) = (&tenant.cluster.registry_user, &tenant.cluster.registry_password);
        let login = [("username", user.as_str()), ("password", password.as_str())];
        let secrets = tenant.builders_secret(&name, "kubernetes.io/basic-auth", &login).await;
        let mirror = tenant.cluster.registry.clone();
        let registries = |secret_ref: Option<SecretRef>| {
            vec![
                PoolRegistry {
                    host: "upstream.example".into(),
                    mirrors: vec![format!("{mirror}/docker.io")],
                    ..PoolRegistry::default()
                },
                PoolRegistry { host: mirror.clone(), secret_ref, ..PoolRegistry::default() },
            ]
        };
        let with =
            tenant.pool("with", |spec| spec.registries = registries(Some(SecretRef { name: name.clone() }))).await;
        let without = tenant.pool("without", |spec| spec.registries = registries(None)).await;
        // A check: nothing is pushed, and the ImageBuild has no credential at all.
        let build = |name: &str, pool: &str| {
            let dockerfile = "FROM upstream.example/library/busybox\nRUN echo 1 > /file\n";
            Build::inline(tenant, name, &[("Dockerfile", dockerfile)]).amd64().pool(pool).with(|spec| spec.image = None)
        };
        tenant.create_build(&build("refused", &without)).await;
        tenant.build(&build("app", &with)).await;
        tenant
            .wait_build("refused", "the mirror wants a credential", wait::BUILD, |build| {
                Ok(condition(build, "Ready").is_some_and(|ready| ready.status == "False"))
            })
            .await;
        secrets.delete(&name, &DeleteParams::default()).await.unwrap();
    })
    .await;
}

async fn a_registry_without_tls_is_used_where_the_pool_says_so() {
    Tenant::fresh("plain-http", async |tenant| {
        let front = PlainFront::before_registry(&tenant.cluster).await;
        let host = front.host.clone();
        let pool = tenant
            .pool("plain", |spec| {
                spec.registries.push(PoolRegistry { host, plain_http: true, ..PoolRegistry::default() });
            })
            .await;
        let (user, password) = (&tenant.cluster.registry_user, &tenant.cluster.registry_password);
        tenant.secret("plain", "kubernetes.io/basic-auth", &[("username", user), ("password", password)]).await;
        let build = |name: &str| {
            let dockerfile = format!("FROM {}/docker.io/library/busybox\nRUN echo plain > /said\n", front.host);
            Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64().with(|spec| {
                image(spec).repository = repository(tenant, name).replacen(&tenant.cluster.registry, &front.host, 1);
                image(spec).secret_ref = Some(SecretRef { name: "plain".into() });
                image(spec).ca_ref = None;
            })
        };
        tenant.create_build(&build("refused")).await;
        let built = tenant.build(&build("app").pool(&pool)).await;
        let there = Registry::new(&tenant.cluster);
        let repository = repository(tenant, "app");
        let said = there.image_for(&repository, &image_of(&built).digest, "linux/amd64").await.text("said");
        assert_eq!(said, "plain");
        let refused = tenant.not_ready("refused", "RegistryProtocol").await;
        let message = &condition(&refused, "Ready").unwrap().message;
        assert!(message.contains("plainHttp in the BuilderPool's registries"), "{message}");
    })
    .await;
}
