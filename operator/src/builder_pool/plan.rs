//! Which builders and volumes go; pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kiln_crds::BuilderPoolSpec;

use crate::agent::Facts;
use crate::builder::BuilderId;
use crate::builder::profile::Profile;
use crate::builder_pool::warm::Standing;

/// How long a builder stays warm unless the pool says it.
const IDLE: Duration = Duration::from_mins(30);
/// How long a volume is kept unless the pool says it.
const RETENTION: Duration = Duration::from_hours(7 * 24);

/// How old the date of a volume in use may be at most; less where volumes are not kept for long.
const DATED: Duration = Duration::from_hours(1);

/// How long a builder that has no node is kept though nobody waits for it: time enough for the status of the run that
/// made it to be written.
const UNWANTED: Duration = Duration::from_secs(10);
/// How old a pod that has ended is at least before another takes its place: that one may end at once, too. It doubles with
/// each that ended before it was up.
const ANEW: Duration = Duration::from_secs(10);
/// How often it doubles at most.
const DOUBLINGS: u32 = 5;

/// A builder pod as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "four facts that can be true together")]
pub struct Builder {
    /// Which one it is.
    pub id: BuilderId,
    /// The pod's UID.
    pub uid: String,
    /// Its node.
    pub node: Option<String>,
    /// What it was made with.
    pub profile: Profile,
    /// What it has said of itself.
    pub facts: Option<Facts>,
    /// Jobs that it holds.
    pub jobs: usize,
    /// When its pod was made.
    pub created: Timestamp,
    /// How many pods of this name have ended since one was up.
    pub failures: u32,
    /// When it was made, or its last job ended.
    pub last_active: Timestamp,
    /// Whether somebody of its namespace waits for a builder.
    pub wanted: bool,
    /// Whether the pod has ended, as after an eviction.
    pub ended: bool,
    /// Since when its agent is silent, where that is for long.
    pub suspect_since: Option<Timestamp>,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// Whether nobody is left whom it could work for.
    pub orphaned: bool,
    /// Where it stands without a job.
    pub standing: Standing,
}

/// A cache volume as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Volume {
    /// Whose it is.
    pub id: BuilderId,
    /// When it was last known to be in use, or was made.
    pub last_used: Timestamp,
    /// Whether its builder holds a job, though its pod may be gone by now.
    pub in_use: bool,
    /// Whether nobody is left whom it could serve.
    pub orphaned: bool,
}

/// What becomes of a builder.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// The pod goes, the volume stays.
    RemovePod,
    /// Pod, volume and all that belongs to them go.
    RemoveAll,
}

/// What is to be done now, and when to look again.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// The builders that go.
    pub fates: Vec<(BuilderId, Fate)>,
    /// The builders whose volumes are to be dated, for they are in use.
    pub to_date: Vec<BuilderId>,
    /// The next time at which one might go.
    pub look_again: Option<Timestamp>,
}

/// Decides. `has_volume`: whether builders leave something behind that is worth keeping.
#[must_use]
pub fn plan(
    pool: &BuilderPoolSpec,
    builders: &[Builder],
    volumes: &[Volume],
    has_volume: bool,
    now: Timestamp,
) -> Plan {
    let duration = |named: Option<kube::core::Duration>, default| named.map_or(default, Duration::from);
    let idle = duration(pool.idle_timeout, IDLE);
    let retention = duration(pool.cache.as_ref().and_then(|cache| cache.retention), RETENTION);
    let mut plan = Plan::default();
    let mut later = |at: Option<Timestamp>| {
        if let Some(at) = at {
            plan.look_again = Some(plan.look_again.map_or(at, |known| known.min(at)));
        }
    };
    let mut fates = Vec::new();
    for builder in builders {
        // A pod without a node would have an autoscaler bring one for nobody.
        let stays = if builder.node.is_none() { idle.min(UNWANTED) } else { idle };
        let until = builder.last_active.checked_add(stays).ok();
        let gone = if has_volume { Fate::RemovePod } else { Fate::RemoveAll };
        if builder.terminating {
            // It goes by itself, and its end wakes the pool; what it leaves is the volume's fate.
        } else if builder.orphaned {
            fates.push((builder.id.clone(), Fate::RemoveAll));
        } else if builder.ended {
            // Nothing comes of it any more, and whoever waits has its place only when it is gone.
            let anew = builder.wanted || builder.standing == Standing::Kept;
            let pause = builder.created.checked_add(ANEW * 2_u32.pow(builder.failures.min(DOUBLINGS))).ok();
            let pause = pause.filter(|pause| anew && *pause > now);
            if pause.is_some() { later(pause) } else { fates.push((builder.id.clone(), gone)) }
        } else if builder.wanted {
            // The end of the job that it is for wakes the pool.
        } else if builder.jobs == 0 {
            match builder.standing {
                Standing::Kept => {}
                Standing::Idle if until.is_none_or(|until| until > now) => later(until),
                Standing::Idle | Standing::Surplus => fates.push((builder.id.clone(), gone)),
            }
        }
    }
    // Whoever drains a node removes pods without a word: what is known then is when the volume was last dated.
    let stale = retention.div_f64(8.0).min(DATED);
    let mut to_date = Vec::new();
    for volume in volumes.iter().filter(|volume| volume.in_use && !volume.orphaned) {
        let until = volume.last_used.checked_add(stale).ok().filter(|until| *until > now);
        if until.is_some() { later(until) } else { to_date.push(volume.id.clone()) }
    }
    let alone = |volume: &&Volume| builders.iter().all(|builder| builder.id != volume.id);
    for volume in volumes.iter().filter(alone).filter(|volume| volume.orphaned || !volume.in_use) {
        let until = volume.last_used.checked_add(retention).ok();
        if volume.orphaned || until.is_some_and(|until| until <= now) {
            fates.push((volume.id.clone(), Fate::RemoveAll));
        } else {
            later(until);
        }
    }
    plan.fates = fates;
    plan.to_date = to_date;
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::TrustDomain;
    use kiln_crds::image_build::CacheScope;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn id(slot: u32) -> BuilderId {
        let domain = TrustDomain::new("ns", "uid", "", CacheScope::Namespace);
        BuilderId { pool: "p".into(), domain, architecture: "amd64".into(), slot }
    }

    fn builder(slot: u32, jobs: usize, last_active: i64) -> Builder {
        Builder {
            id: id(slot),
            uid: String::new(),
            node: Some("n".into()),
            profile: Profile::UserNamespace,
            facts: None,
            jobs,
            created: at(last_active),
            failures: 0,
            last_active: at(last_active),
            wanted: false,
            ended: false,
            suspect_since: None,
            terminating: false,
            orphaned: false,
            standing: Standing::Idle,
        }
    }

    #[test]
    fn the_idle_the_ended_and_the_orphaned_go() {
        let pool = BuilderPoolSpec { idle_timeout: serde_json::from_str("\"60s\"").ok(), ..BuilderPoolSpec::default() };
        let busy = builder(0, 1, 0);
        let idle = builder(1, 0, 940);
        let fresh = builder(2, 0, 990);
        let ended = Builder { ended: true, ..builder(3, 1, 999) };
        let orphan = Builder { orphaned: true, ..builder(4, 1, 999) };
        let leaving = Builder { terminating: true, ..builder(5, 0, 0) };
        let unwanted = Builder { node: None, ..builder(6, 0, 980) };
        let wanted = Builder { node: None, wanted: true, ..builder(7, 0, 900) };
        let plan = plan(&pool, &[busy, idle, fresh, ended, orphan, leaving, unwanted, wanted], &[], true, at(1000));
        let gone = [(1, Fate::RemovePod), (3, Fate::RemovePod), (4, Fate::RemoveAll), (6, Fate::RemovePod)];
        assert_eq!(plan.fates, gone.map(|(slot, fate)| (id(slot), fate)));
        assert_eq!(plan.look_again, Some(at(1050)));
    }

    #[test]
    fn those_that_are_kept_outlive_the_idle_time_and_those_of_nobody_do_not_wait_for_it() {
        let pool = BuilderPoolSpec { idle_timeout: serde_json::from_str("\"60s\"").ok(), ..BuilderPoolSpec::default() };
        let standing = |slot, standing| Builder { standing, ..builder(slot, 0, 900) };
        let kept = standing(0, Standing::Kept);
        let unplaced = Builder { node: None, ..standing(1, Standing::Kept) };
        let surplus = Builder { last_active: at(999), ..standing(2, Standing::Surplus) };
        let busy = Builder { jobs: 1, ..standing(3, Standing::Surplus) };
        let ended = Builder { ended: true, ..standing(4, Standing::Kept) };
        let just_ended = Builder { created: at(995), ended: true, ..standing(5, Standing::Kept) };
        let plan = plan(&pool, &[kept, unplaced, surplus, busy, ended, just_ended], &[], true, at(1000));
        assert_eq!(plan.fates, [(id(2), Fate::RemovePod), (id(4), Fate::RemovePod)]);
        assert_eq!(plan.look_again, Some(at(1005)));
    }

    #[test]
    fn a_pod_that_has_ended_makes_room_for_who_waits_sooner_or_later() {
        let ended = |slot, created, failures| Builder {
            created: at(created),
            failures,
            ended: true,
            wanted: true,
            ..builder(slot, 0, 999)
        };
        let evicted = ended(0, 900, 0);
        let refused = ended(1, 995, 0);
        let again = ended(2, 985, 1);
        let many_times = ended(3, 681, 40);
        let of_nobody = Builder { wanted: false, ..ended(4, 999, 3) };
        let plan =
            plan(&BuilderPoolSpec::default(), &[evicted, refused, again, many_times, of_nobody], &[], true, at(1000));
        assert_eq!(plan.fates, [(id(0), Fate::RemovePod), (id(4), Fate::RemovePod)]);
        assert_eq!(plan.look_again, Some(at(1001)), "the fourth at last: 681 + 32 * 10");
    }

    #[test]
    fn volumes_outlive_their_pods_but_not_their_owners() {
        let pool = BuilderPoolSpec::default();
        let volume = |slot, orphaned| Volume { id: id(slot), last_used: at(0), in_use: false, orphaned };
        let volumes = [volume(0, false), volume(1, true), volume(2, false)];
        let soon = plan(&pool, &[builder(0, 1, 0)], &volumes, true, at(1000));
        assert_eq!(soon.fates, [(id(1), Fate::RemoveAll)]);
        let late = plan(&pool, &[builder(0, 1, 0)], &volumes, true, at(8 * 24 * 3600));
        assert_eq!(late.fates, [(id(1), Fate::RemoveAll), (id(2), Fate::RemoveAll)]);
    }

    #[test]
    fn a_volume_in_use_is_dated_and_outlives_a_pod_that_others_remove() {
        let kept_for = |retention: &str| BuilderPoolSpec {
            cache: serde_json::from_value(serde_json::json!({"retention": retention})).unwrap(),
            ..BuilderPoolSpec::default()
        };
        let at_work = [builder(0, 1, 0)];
        let (date, nothing) = (vec![id(0)], Vec::new());
        for (retention, last_used, in_use, builders, expected, look_again) in [
            // For how long it is kept decides how fresh the date is to be.
            ("80s", 991, true, &at_work[..], (&nothing, false), Some(1001)),
            ("80s", 990, true, &at_work, (&date, false), None),
            ("720h", 0, true, &at_work, (&nothing, false), Some(3600)),
            ("720h", -2600, true, &at_work, (&date, false), None),
            // Its pod is gone, and its job does not know yet.
            ("80s", 900, true, &[], (&date, false), None),
            ("80s", 995, true, &[], (&nothing, false), Some(1005)),
            // The job has ended, for its pod is gone.
            ("80s", 990, false, &[], (&nothing, false), Some(1070)),
            ("80s", 920, false, &[], (&nothing, true), None),
        ] {
            let volume = Volume { id: id(0), last_used: at(last_used), in_use, orphaned: false };
            let plan = plan(&kept_for(retention), builders, &[volume], true, at(1000));
            let case = format!("{retention} {last_used} {in_use} {}", builders.len());
            assert_eq!((&plan.to_date, !plan.fates.is_empty()), expected, "{case}");
            assert_eq!(plan.look_again, look_again.map(at), "{case}");
        }
    }
}
