use super::*;
use kiln_crds::image_build::CacheScope;
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    jobs_per_builder: 2,
    builders: 4,
    builders_per_namespace: 2,
    volumes_per_namespace: None,
    storage_per_namespace: None,
    volume_size: 10,
};
const BUSY: Wait = Wait::BuildersPerNamespace;

fn volume(namespace: &str, slot: u32, last_used: i64) -> Volume {
    let last_used = Timestamp::from_second(last_used).unwrap();
    Volume { id: id(namespace, slot), size: 10, last_used, terminating: false }
}

fn domain(namespace: &str) -> TrustDomain {
    TrustDomain::new(namespace, namespace, "", CacheScope::Namespace)
}

fn id(namespace: &str, slot: u32) -> BuilderId {
    BuilderId { pool: "p".into(), domain: domain(namespace), architecture: "amd64".into(), slot }
}

fn request(namespace: &str) -> Request {
    Request {
        domain: domain(namespace),
        architecture: "amd64".into(),
        bundles: vec![],
        last: None,
        alone: false,
        avoids: None,
    }
}

fn builder(namespace: &str, slot: u32, jobs: u32) -> Builder {
    Builder {
        id: id(namespace, slot),
        jobs,
        bundles: vec![],
        taken: false,
        current: true,
        terminating: false,
        stuck: false,
        suspect: false,
    }
}

#[test]
fn jobs_fill_the_lowest_slot_then_open_the_next_then_wait() {
    let requests = vec![request("a"); 5];
    let choices = pick("p", &requests, &[], &[], LIMITS);
    assert_eq!(
        choices,
        [
            Choice::New(id("a", 0)),
            Choice::New(id("a", 0)),
            Choice::New(id("a", 1)),
            Choice::New(id("a", 1)),
            Choice::Wait(BUSY)
        ]
    );
    let choices = pick("p", &requests[..2], &[builder("a", 0, 1), builder("a", 1, 0)], &[], LIMITS);
    assert_eq!(choices, [Choice::Existing(id("a", 0)), Choice::Existing(id("a", 1))]);
}

#[test]
fn a_job_that_is_to_be_alone_shares_its_builder_with_nobody() {
    let alone = || Request { alone: true, ..request("a") };
    let at_one = |builders: &[Builder], requests: &[Request]| {
        pick("p", requests, builders, &[], Limits { builders_per_namespace: 1, ..LIMITS })
    };
    let taken = || Builder { taken: true, ..builder("a", 0, 1) };
    let (existing, new) = (|slot| Choice::Existing(id("a", slot)), |slot| Choice::New(id("a", slot)));
    for (builders, requests, expected) in [
        (vec![], vec![alone(), request("a")], [new(0), Choice::Wait(BUSY)]),
        (vec![builder("a", 0, 0)], vec![alone(), alone()], [existing(0), Choice::Wait(BUSY)]),
        (vec![taken()], vec![request("a"), alone()], [Choice::Wait(BUSY), Choice::Wait(BUSY)]),
        // What comes behind it does not keep the builder busy for ever; what goes before it does.
        (vec![builder("a", 0, 1)], vec![alone(), request("a")], [Choice::Wait(BUSY), Choice::Wait(BUSY)]),
        (vec![builder("a", 0, 1)], vec![request("a"), alone()], [existing(0), Choice::Wait(BUSY)]),
        (vec![builder("a", 0, 1)], vec![request("a"), request("a")], [existing(0), Choice::Wait(BUSY)]),
    ] {
        assert_eq!(at_one(&builders, &requests), expected, "{builders:?} {requests:?}");
    }
    // Where another may be made, neither waits.
    let busy = [builder("a", 0, 1)];
    assert_eq!(pick("p", &[alone(), request("a")], &busy, &[], LIMITS), [new(1), existing(0)]);
}

#[test]
fn a_silent_builder_gets_no_job_and_a_retry_prefers_another() {
    let silent = |slot, jobs| Builder { suspect: true, ..builder("a", slot, jobs) };
    let (existing, new) = (|slot| Choice::Existing(id("a", slot)), |slot| Choice::New(id("a", slot)));
    let avoiding = |slot| Request { avoids: Some(id("a", slot).name()), ..request("a") };
    let back_to = |slot| Request { last: Some(id("a", slot).name()), ..avoiding(slot) };
    let alone = || Request { alone: true, ..request("a") };
    for (builders, request, expected) in [
        (vec![silent(0, 1), builder("a", 1, 1)], request("a"), existing(1)),
        (vec![silent(0, 1)], request("a"), new(1)),
        (vec![silent(0, 1), silent(1, 0)], request("a"), Choice::Wait(BUSY)),
        // It keeps none for one that is to be alone: that waits for what can be had.
        (vec![silent(0, 0), builder("a", 1, 1)], alone(), Choice::Wait(BUSY)),
        (vec![builder("a", 0, 0), builder("a", 1, 1)], avoiding(0), existing(1)),
        (vec![builder("a", 0, 0), builder("a", 1, 1)], avoiding(1), existing(0)),
        (vec![builder("a", 0, 0), builder("a", 1, 1)], back_to(1), existing(0)),
        // Better that one than a new one with a cold cache.
        (vec![builder("a", 0, 0)], avoiding(0), existing(0)),
        (vec![builder("a", 0, 0), builder("a", 1, 2)], avoiding(0), existing(0)),
    ] {
        let choice = pick("p", std::slice::from_ref(&request), &builders, &[], LIMITS);
        assert_eq!(choice, [expected], "{builders:?} {request:?}");
    }
}

#[test]
fn an_idle_builder_of_somebody_else_makes_room() {
    let full = [builder("b", 0, 0), builder("c", 0, 2), builder("d", 0, 2), builder("e", 0, 2)];
    assert_eq!(pick("p", &[request("a")], &full, &[], LIMITS), [Choice::Evict(id("b", 0))]);
    let busy = [builder("b", 0, 1), builder("c", 0, 2), builder("d", 0, 2), builder("e", 0, 2)];
    assert_eq!(pick("p", &[request("a")], &busy, &[], LIMITS), [Choice::Wait(Wait::Builders)]);
}

#[test]
fn a_builder_without_the_ca_or_of_an_older_pool_is_replaced_once_idle() {
    let mut wants = request("a");
    wants.bundles = vec!["ca".into()];
    assert_eq!(pick("p", &[wants.clone()], &[builder("a", 0, 0)], &[], LIMITS), [Choice::Evict(id("a", 0))]);
    assert_eq!(pick("p", &[wants], &[builder("a", 0, 1)], &[], LIMITS), [Choice::New(id("a", 1))]);
    let old = Builder { current: false, ..builder("a", 0, 0) };
    assert_eq!(pick("p", &[request("a")], &[old], &[], LIMITS), [Choice::Evict(id("a", 0))]);
}

#[test]
fn those_who_ask_at_once_share_the_builder_that_is_to_be_made() {
    // Of another run's request it is not known which CAs it needs.
    let requests = [request("a"), Request { bundles: vec!["ca".into()], ..request("a") }];
    assert_eq!(pick("p", &requests, &[], &[], LIMITS), [Choice::New(id("a", 0)), Choice::New(id("a", 0))]);
}

#[test]
fn a_slot_on_its_way_out_is_waited_for_unless_it_is_stuck() {
    let leaving = Builder { terminating: true, ..builder("a", 0, 0) };
    let choices = pick("p", &[request("a")], std::slice::from_ref(&leaving), &[], LIMITS);
    assert_eq!(choices, [Choice::Wait(Wait::Slot)]);
    let stuck = Builder { stuck: true, ..leaving };
    assert_eq!(pick("p", &[request("a")], &[stuck], &[], LIMITS), [Choice::New(id("a", 1))]);
}

#[test]
fn a_slot_that_has_its_cache_is_opened_first() {
    let choices = pick("p", &[request("a")], &[], &[volume("a", 1, 0)], LIMITS);
    assert_eq!(choices, [Choice::New(id("a", 1))]);
    let leaving = Volume { terminating: true, ..volume("a", 0, 0) };
    assert_eq!(pick("p", &[request("a")], &[], &[leaving], LIMITS), [Choice::New(id("a", 1))]);
}

#[test]
fn a_job_goes_where_its_cache_is() {
    let last = |slot| Request { last: Some(id("a", slot).name()), ..request("a") };
    let pick = |request: Request, builders: &[Builder], volumes: &[Volume], limits| {
        pick("p", &[request], builders, volumes, limits).remove(0)
    };
    let both = [volume("a", 0, 0), volume("a", 1, 0)];
    let up = [builder("a", 0, 0), builder("a", 1, 1)];
    assert_eq!(pick(last(1), &up, &both, LIMITS), Choice::Existing(id("a", 1)));
    assert_eq!(pick(last(0), &up, &both, LIMITS), Choice::Existing(id("a", 0)));
    assert_eq!(pick(last(7), &up, &both, LIMITS), Choice::Existing(id("a", 0)), "it is gone");
    let full = [builder("a", 0, 0), builder("a", 1, 2)];
    assert_eq!(pick(last(1), &full, &both, LIMITS), Choice::Existing(id("a", 0)), "it is full");
    assert_eq!(pick(last(1), &up[..1], &both, LIMITS), Choice::New(id("a", 1)), "it went idle, its volume is there");
    assert_eq!(pick(last(1), &up[..1], &both[..1], LIMITS), Choice::Existing(id("a", 0)), "nothing is in it");
    let one = Limits { builders_per_namespace: 1, ..LIMITS };
    assert_eq!(pick(last(1), &up[..1], &both, one), Choice::Existing(id("a", 0)), "there is no room for it");
    assert_eq!(pick(last(1), &[], &both, one), Choice::New(id("a", 1)));
    let of_others = Request { last: Some(id("b", 1).name()), ..request("a") };
    assert_eq!(pick(of_others, &up, &both, LIMITS), Choice::Existing(id("a", 0)), "a name that a status invents");
}

#[test]
fn a_namespace_at_its_limit_of_volumes_gives_up_the_one_unused_for_longest() {
    let two = Limits { volumes_per_namespace: Some(2), ..LIMITS };
    let bytes = Limits { storage_per_namespace: Some(29), ..LIMITS };
    let arm64 = Request { architecture: "arm64".into(), ..request("a") };
    let for_arm64 = BuilderId { architecture: "arm64".into(), ..id("a", 0) };
    let volumes = [volume("a", 0, 30), volume("a", 1, 20), volume("b", 0, 10)];
    for (limits, wait) in [(two, Wait::VolumesPerNamespace), (bytes, Wait::StoragePerNamespace)] {
        let pick = |builders: &[Builder], volumes: &[Volume]| {
            pick("p", std::slice::from_ref(&arm64), builders, volumes, limits).remove(0)
        };
        assert_eq!(pick(&[], &volumes), Choice::Reclaim(id("a", 1)));
        // A warm one goes only after the cold ones, and one at work not at all.
        assert_eq!(pick(&[builder("a", 1, 0)], &volumes), Choice::Reclaim(id("a", 0)));
        assert_eq!(pick(&[builder("a", 0, 1), builder("a", 1, 0)], &volumes), Choice::Reclaim(id("a", 1)));
        let busy = [builder("a", 0, 1), builder("a", 1, 1)];
        assert_eq!(pick(&busy, &volumes), Choice::Wait(wait));
        let leaving = Volume { terminating: true, ..volume("a", 1, 20) };
        assert_eq!(pick(&[], &[volume("a", 0, 30), leaving]), Choice::Wait(wait), "one is on its way out");
        assert_eq!(pick(&[], &volumes[1..]), Choice::New(for_arm64.clone()));
    }
    // Nothing is given up where that cannot help, and nothing is counted where builders have no volumes.
    let none = Limits { storage_per_namespace: Some(9), ..LIMITS };
    let choices = pick("p", std::slice::from_ref(&arm64), &[], &volumes, none);
    assert_eq!(choices, [Choice::Wait(Wait::StoragePerNamespace)]);
    let without = Limits { volume_size: 0, ..two };
    assert_eq!(pick("p", &[arm64], &[], &volumes, without), [Choice::New(for_arm64)]);
}

#[test]
fn what_is_waited_for_names_the_limit() {
    let limits = Limits { volumes_per_namespace: Some(2), storage_per_namespace: Some(9), ..LIMITS };
    for (wait, field) in [
        (Wait::BuildersPerNamespace, "limits.buildersPerNamespace"),
        (Wait::Builders, "maxBuilders"),
        (Wait::VolumesPerNamespace, "limits.volumesPerNamespace"),
        (Wait::StoragePerNamespace, "limits.storagePerNamespace"),
    ] {
        let text = wait.explain("p", &limits);
        assert!(text.contains(field) && text.contains("BuilderPool p"), "{text}");
    }
}

proptest! {
    #[test]
    fn limits_of_volumes_hold(
        wants in proptest::collection::vec(("[ab]", "amd64|arm64", "[xy]?"), 0..16),
        kept in proptest::collection::vec(("[ab]", 0_u32..3, 0_u32..3, any::<bool>()), 0..6),
        most in 1_u32..4,
        by_size in any::<bool>(),
    ) {
        let limits = Limits {
            builders: 20,
            builders_per_namespace: 20,
            volumes_per_namespace: (!by_size).then_some(most),
            storage_per_namespace: by_size.then_some(u64::from(most) * 10 + 5),
            ..LIMITS
        };
        let mut volumes = BTreeMap::new();
        let mut builders = BTreeMap::new();
        for (namespace, slot, jobs, warm) in &kept {
            let of = |v: &&Volume| v.id.domain.namespace == *namespace;
            if volumes.values().filter(of).count() < most as usize {
                volumes.insert(id(namespace, *slot), volume(namespace, *slot, 0));
                if *warm { builders.insert(id(namespace, *slot), builder(namespace, *slot, *jobs)); }
            }
        }
        let (volumes, builders): (Vec<_>, Vec<_>) = (volumes.into_values().collect(), builders.into_values().collect());
        let requests: Vec<Request> = wants
            .iter()
            .map(|(namespace, architecture, build)| {
                let scope = if build.is_empty() { CacheScope::Namespace } else { CacheScope::ImageBuild };
                Request {
                    domain: TrustDomain::new(namespace, namespace, build, scope),
                    architecture: architecture.clone(),
                    bundles: vec![],
                    last: None,
                    alone: false,
                    avoids: None,
                }
            })
            .collect();
        let mut after: Vec<BuilderId> = volumes.iter().map(|volume| volume.id.clone()).collect();
        for choice in pick("p", &requests, &builders, &volumes, limits) {
            match choice {
                Choice::New(id) if !after.contains(&id) => after.push(id),
                Choice::Reclaim(id) => {
                    let at_work = builders.iter().any(|builder| builder.id == id && builder.jobs > 0);
                    prop_assert!(!at_work, "a volume in use is never given up");
                    prop_assert!(volumes.iter().any(|volume| volume.id == id));
                }
                _ => {}
            }
        }
        // A volume that is given up counts until it is gone.
        for namespace in ["a", "b"] {
            prop_assert!(after.iter().filter(|id| id.domain.namespace == namespace).count() <= most as usize);
        }
    }

    #[test]
    fn limits_hold(
        wants in proptest::collection::vec(("[a-c]", any::<bool>()), 0..20),
        jobs in proptest::collection::vec(0u32..3, 0..3),
    ) {
        let requests: Vec<Request> = wants.iter().map(|(namespace, alone)| Request { alone: *alone, ..request(namespace) }).collect();
        let builders: Vec<Builder> =
            jobs.iter().zip(["a", "b", "c"]).map(|(jobs, namespace)| builder(namespace, 0, *jobs)).collect();
        let choices = pick("p", &requests, &builders, &[], LIMITS);
        prop_assert_eq!(choices.len(), requests.len());
        let mut taken = Vec::new();
        let mut load: BTreeMap<BuilderId, u32> = builders.iter().map(|b| (b.id.clone(), b.jobs)).collect();
        for (choice, request) in choices.iter().zip(&requests) {
            if let Choice::Existing(id) | Choice::New(id) = choice {
                prop_assert_eq!(&id.domain, &request.domain);
                *load.entry(id.clone()).or_default() += 1;
                taken.extend(request.alone.then(|| id.clone()));
            }
        }
        prop_assert!(load.len() <= LIMITS.builders as usize);
        prop_assert!(taken.iter().all(|id| load[id] == 1), "it is alone there");
        prop_assert!(load.values().all(|jobs| *jobs <= LIMITS.jobs_per_builder));
        for namespace in ["a", "b", "c"] {
            let count = load.keys().filter(|id| id.domain.namespace == namespace).count();
            prop_assert!(count <= LIMITS.builders_per_namespace as usize);
        }
    }
}
