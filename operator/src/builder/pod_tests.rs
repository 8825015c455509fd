use super::*;
use kiln_crds::builder_pool::PoolCache;
use kiln_crds::image_build::CacheScope;

fn template(pool: &BuilderPoolSpec) -> Template<'_> {
    Template {
        pool,
        image: "registry.example/builder:1",
        pull_secrets: &[],
        namespace: "kiln-builders",
        otlp_endpoint: None,
    }
}

#[test]
fn buildkit_alone_is_told_where_traces_go() {
    let pool = BuilderPoolSpec::default();
    let endpoint = "http://collector.example:4317";
    let template = Template { otlp_endpoint: Some(endpoint), ..template(&pool) };
    let spec = template.pod(&id(), Profile::Rootless, &Bundles::new(), &owner("p", "u")).spec.unwrap();
    let told = |containers: &[Container]| {
        let env = containers.iter().flat_map(|container| container.env.iter().flatten());
        env.filter(|variable| variable.value.as_deref() == Some(endpoint)).count()
    };
    assert_eq!((told(&spec.init_containers.unwrap()), told(&spec.containers)), (1, 0));
}

fn id() -> BuilderId {
    BuilderId {
        pool: "default".into(),
        domain: super::super::TrustDomain::new("team", "ns-uid", "ib-uid", CacheScope::Namespace),
        architecture: "arm64".into(),
        slot: 0,
    }
}

#[test]
fn pods_of_both_profiles() {
    let pool = BuilderPoolSpec::default();
    for profile in [Profile::UserNamespace, Profile::Rootless] {
        let pod = template(&pool).pod(&id(), profile, &Bundles::new(), &owner("default", "pool-uid"));
        insta::assert_yaml_snapshot!(format!("pod_{}", profile.as_str()), pod);
    }
}

#[test]
fn the_agent_alone_sees_the_archives_and_of_those_its_own_namespace_s() {
    let pool: BuilderPoolSpec = serde_json::from_value(serde_json::json!({"archives": {"claimName": "tars"}})).unwrap();
    let of = |uid: &str| {
        let id =
            BuilderId { domain: super::super::TrustDomain::new("team", uid, "ib", CacheScope::ImageBuild), ..id() };
        let spec = template(&pool).pod(&id, Profile::UserNamespace, &Bundles::new(), &owner("p", "u")).spec.unwrap();
        let volumes = spec.volumes.unwrap();
        let claim = volumes.iter().find(|volume| volume.name == "archives").unwrap().persistent_volume_claim.clone();
        assert_eq!(claim.unwrap().claim_name, "tars");
        let mounts = |containers: Vec<Container>| -> Vec<VolumeMount> {
            let all = containers.into_iter().flat_map(|container| container.volume_mounts.unwrap());
            all.filter(|mount| mount.name == "archives").collect()
        };
        assert_eq!(mounts(spec.init_containers.unwrap()), [], "RUN steps are not to see them");
        let told =
            spec.containers[0].env.iter().flatten().find(|variable| variable.name == "KILN_ARCHIVES_DIR").cloned();
        let mounts = mounts(spec.containers);
        assert_eq!(told.unwrap().value.as_deref(), Some(mounts[0].mount_path.as_str()));
        assert_eq!(mounts.len(), 1);
        mounts[0].sub_path.clone().unwrap()
    };
    assert_eq!(of("uid-1"), "team-uid-1");
    assert_ne!(of("uid-1"), of("uid-2"), "a namespace made again begins empty");
}

#[test]
fn ephemeral_storage_is_limited_but_where_it_is_the_cache_or_the_pool_says_otherwise() {
    let limit_of = |size: &str, resources: serde_json::Value| {
        let pool: BuilderPoolSpec =
            serde_json::from_value(serde_json::json!({"cache": {"size": size}, "template": {"resources": resources}}))
                .unwrap();
        let pod = template(&pool).pod(&id(), Profile::Rootless, &Bundles::new(), &owner("default", "pool-uid"));
        let limits = pod.spec.unwrap().init_containers.unwrap().remove(0).resources.unwrap().limits;
        limits.and_then(|mut limits| limits.remove("ephemeral-storage")).map(|limit| limit.0)
    };
    let of_pool = serde_json::json!({"limits": {"ephemeral-storage": "9Gi"}});
    let memory = serde_json::json!({"limits": {"memory": "1Gi"}});
    assert_eq!(limit_of("5Gi", memory.clone()).as_deref(), Some("4Gi"));
    assert_eq!(limit_of("0", memory), None);
    assert_eq!(limit_of("5Gi", of_pool).as_deref(), Some("9Gi"));
}

#[test]
fn no_volume_where_its_size_is_zero() {
    for (size, expected) in [(None, true), (Some("5Gi"), true), (Some("0"), false), (Some("0Gi"), false)] {
        let cache = PoolCache { size: size.map(|size| Quantity(size.into())), ..PoolCache::default() };
        let pool = BuilderPoolSpec { cache: Some(cache), ..BuilderPoolSpec::default() };
        assert_eq!(template(&pool).has_volume(), expected, "{size:?}");
    }
}

#[test]
fn the_hash_follows_the_pool_but_not_who_the_builder_is_for() {
    let plain = BuilderPoolSpec::default();
    let other = BuilderPoolSpec { max_jobs_per_builder: Some(9), ..BuilderPoolSpec::default() };
    let hash = template(&plain).hash(Profile::Rootless);
    assert_eq!(hash, template(&plain).hash(Profile::Rootless));
    assert_ne!(hash, template(&plain).hash(Profile::UserNamespace));
    assert_ne!(hash, template(&other).hash(Profile::Rootless));
}

#[test]
fn quantities_are_read_as_kubernetes_writes_them() {
    for (text, expected) in [
        ("0", Some(0)),
        ("1.5Gi", Some(1_610_612_000)),
        ("20Gi", Some(20 << 30)),
        ("1k", Some(1000)),
        ("x", None),
        ("1e9", Some(1_000_000_000)),
        ("2E", Some(2_000_000_000_000_000_000)),
        ("1Pi", Some(1 << 50)),
        ("1500m", Some(2)),
        (".5Gi", Some(1 << 29)),
    ] {
        let read = bytes(&Quantity(text.into()));
        match (read, expected) {
            (Some(read), Some(expected)) => assert!(read.abs_diff(expected) < 1_000_000, "{text}: {read}"),
            (read, expected) => assert_eq!(read, expected, "{text}"),
        }
    }
}
