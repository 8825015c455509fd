use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kiln_crds::image_build_run::ImageBuildRunStatus;
use proptest::prelude::*;

use super::super::ownership::tests::{moving, tag};
use super::*;
use crate::image_build_run::tagging::left_by_former;

const REPOSITORY: &str = "r.example/app";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn digest(number: u64) -> String {
    format!("sha256:{number}")
}

fn write(digest: Option<String>, second: i64) -> UnknownWrite {
    UnknownWrite { digest, sent_at: MicroTime(at(second)) }
}

/// A run of an ImageBuild that publishes the tag `v1`.
fn run(uid: &str, number: u64) -> ImageBuildRun {
    let mut run = moving(uid, &format!("ns-{}", &uid[..1]), &["v1"]);
    run.spec.number = number;
    run.metadata.name = Some(format!("{uid}-{number}"));
    run.metadata.uid = run.metadata.name.clone();
    run
}

fn with(mut run: ImageBuildRun, phase: RunPhase, change: impl Fn(&mut TagStatus)) -> ImageBuildRun {
    let status = run.status.as_mut().unwrap();
    status.phase = phase;
    status.tags.iter_mut().for_each(change);
    run
}

#[test]
fn what_may_come_late_is_waited_for_until_its_deadline() {
    use RunPhase::{Building, Cancelled, Publishing, Succeeded};
    let sent = |digest: Option<u64>, second| {
        move |tag: &mut TagStatus| tag.unknown = Some(write(digest.map(self::digest), second))
    };
    let none = |_: &mut TagStatus| ();
    let (found, began, now) = (digest(1), 1_000_000, 1_000_010);
    // What is left of the time that an answer may take, and whether it is looked for.
    for (what, other, left, late) in vec![
        ("nothing is unknown", with(run("a", 2), Succeeded, |tag| tag.digest = Some(digest(2))), None, false),
        ("just sent", with(run("a", 2), Cancelled, sent(Some(2), now - 14)), Some(16), true),
        ("seen to be done", with(run("a", 2), Succeeded, sent(Some(1), now - 14)), None, true),
        ("nobody knows what", with(run("a", 2), Cancelled, sent(None, now - 14)), Some(16), true),
        ("past its deadline", with(run("a", 2), Cancelled, sent(Some(2), now - 30)), None, true),
        ("long ago", with(run("a", 2), Cancelled, sent(Some(2), now - 3600)), None, false),
        ("said to be of tomorrow", with(run("a", 2), Cancelled, sent(Some(2), now + 86_400)), Some(20), true),
        ("it publishes still", with(run("a", 2), Publishing, none), Some(20), true),
        ("it has moved the tag", with(run("a", 2), Publishing, |tag| tag.digest = Some(digest(2))), None, false),
        ("it builds", with(run("a", 2), Building, |tag| tag.tag = "none".into()), None, false),
        ("a newer one", with(run("a", 4), Cancelled, sent(Some(2), now - 14)), None, false),
        ("another ImageBuild's", with(run("b", 9), Cancelled, sent(Some(2), now - 14)), Some(16), true),
        ("another that publishes: of two claims one stands", with(run("b", 9), Publishing, none), None, false),
        (
            "another tag",
            with(run("a", 2), Cancelled, |tag| {
                *tag = TagStatus { unknown: Some(write(None, now)), ..self::tag(REPOSITORY, "v2") }
            }),
            None,
            false,
        ),
    ] {
        let own = run("a", 3);
        let tags = own.status.clone().unwrap().tags;
        let others = [Arc::new(own.clone()), Arc::new(other.clone())];
        let found_late = of_others(&own, &tags, at(began), &others, |_| Vec::new(), at(now));
        assert_eq!(!found_late.is_empty(), late, "{what}: {found_late:?}");
        let waits = wait(&found_late, |_| Some(found.clone()), at(now));
        assert_eq!(waits.map(|write| write.until.as_second() - now), left, "{what}");
        assert!(found_late.iter().all(|write| write.is_of_namespace == (other.spec.image_build.uid == "a")), "{what}");
        // What a status does not show yet is known to the process that wrote.
        let known = |run: &ImageBuildRun| run.status.clone().unwrap().tags;
        let shown = Arc::new(with(other.clone(), other.status.as_ref().unwrap().phase, |tag| tag.unknown = None));
        if !shown.status.as_ref().unwrap().phase.is_final() {
            let again = of_others(&own, &tags, at(began), &[shown], |_| known(&other), at(now));
            assert_eq!(again, found_late, "{what}");
        }
    }
}

#[test]
fn looks_are_made_at_growing_distances_and_at_once_by_a_new_leader() {
    let mut looks = Vec::new();
    let mut looked = Some(at(100));
    for _ in 0..6 {
        let next = next_look(at(100), looked);
        looks.push(next.as_second() - 100);
        looked = Some(next);
    }
    assert_eq!(looks, [5, 30, 120, 420, 720, 1020]);
    assert_eq!(next_look(at(100), None), at(100));
    // A look that came late is not made up for.
    assert_eq!(next_look(at(100), Some(at(131))), at(220));
}

#[test]
fn a_tag_that_a_newer_run_has_is_not_looked_for() {
    let now = at(1_000);
    let older = Arc::new(with(run("a", 1), RunPhase::Cancelled, |tag| tag.unknown = Some(write(None, 900))));
    let mut own = with(run("a", 2), RunPhase::Succeeded, |tag| tag.digest = Some(digest(2)));
    own.status.as_mut().unwrap().finished_at = Some(MicroTime(at(950)));
    let is_looked_for = |newer: Option<ImageBuildRun>| {
        let runs: Vec<_> = [older.clone(), Arc::new(own.clone())].into_iter().chain(newer.map(Arc::new)).collect();
        !looked_for(&own, &runs, now).is_empty()
    };
    let empty = |mut run: ImageBuildRun| {
        run.status = Some(ImageBuildRunStatus { tags: Vec::new(), ..run.status.unwrap() });
        run
    };
    assert!(is_looked_for(None));
    assert!(is_looked_for(Some(empty(with(run("a", 3), RunPhase::Building, |_| ())))));
    assert!(is_looked_for(Some(empty(with(run("a", 3), RunPhase::Failed, |_| ())))));
    assert!(!is_looked_for(Some(run("a", 3))), "it is about to move it");
    assert!(!is_looked_for(Some(with(run("a", 3), RunPhase::Succeeded, |tag| tag.digest = Some(digest(3))))));
}

/// An operator, a registry that does writes as late as it likes, and runs that follow each other.
struct World {
    now: i64,
    tag: Option<String>,
    /// What the registry will do, and when.
    coming: Vec<(i64, String)>,
    runs: Vec<ImageBuildRun>,
    /// The write whose answer is waited for, by its run.
    flying: Option<(usize, i64)>,
    looked: BTreeMap<usize, Timestamp>,
    /// How late the next writes are done that are not answered. `None`: answered at once.
    writes: Vec<Option<i64>>,
}

impl World {
    fn shown(&self) -> Vec<Arc<ImageBuildRun>> {
        self.runs.iter().cloned().map(Arc::new).collect()
    }

    /// Whether the registry answers.
    fn write(&mut self, digest: String) -> bool {
        let delay = self.writes.pop().flatten();
        match delay {
            Some(delay) => self.coming.push((self.now + delay, digest)),
            None => self.tag = Some(digest),
        }
        delay.is_none()
    }

    fn step(&mut self) {
        self.now += 5;
        self.coming.sort();
        while let Some((_, digest)) = self.coming.first().filter(|(at, _)| *at <= self.now).cloned() {
            self.coming.remove(0);
            self.tag = Some(digest);
        }
        for index in 0..self.runs.len() {
            match self.runs[index].status.as_ref().unwrap().phase {
                RunPhase::Publishing => self.publish(index),
                RunPhase::Succeeded => self.look(index),
                _ => {}
            }
        }
    }

    fn status(&mut self, index: usize) -> &mut ImageBuildRunStatus {
        self.runs[index].status.as_mut().unwrap()
    }

    fn publish(&mut self, index: usize) {
        let (now, own) = (self.now, digest(self.runs[index].spec.number));
        match self.flying {
            Some((of, sent)) if of == index && sent + 30 <= now => {
                self.flying = None;
                self.status(index).tags[0].unknown = Some(write(Some(own.clone()), sent));
            }
            Some(_) => return,
            None => {}
        }
        if index + 1 < self.runs.len() {
            let status = self.status(index);
            status.phase = RunPhase::Cancelled;
            return status.tags.retain(|tag| tag.unknown.is_some());
        }
        let status = self.status(index);
        let began = status.publishing_at.get_or_insert(MicroTime(at(now))).0;
        let tags = status.tags.clone();
        let late = of_others(&self.runs[index], &tags, began, &self.shown(), |_| Vec::new(), at(now));
        if wait(&late, |_| self.tag.clone(), at(now)).is_some() {
            return;
        }
        if self.tag.as_ref() != Some(&own) && !self.write(own.clone()) {
            self.flying = Some((index, now));
            return;
        }
        let status = self.status(index);
        status.phase = RunPhase::Succeeded;
        status.finished_at = Some(MicroTime(at(now)));
        status.tags[0].digest = Some(own);
        self.looked.insert(index, at(now));
    }

    fn look(&mut self, index: usize) {
        let (run, now) = (&self.runs[index], self.now);
        let due = next_look(moved_at(run).unwrap(), self.looked.get(&index).copied());
        if due > at(now) || looked_for(run, &self.shown(), at(now)).is_empty() || self.flying.is_some() {
            return;
        }
        self.looked.insert(index, at(now));
        let own = digest(run.spec.number);
        if self.tag.as_ref() != Some(&own) {
            self.status(index).tags[0].unknown = Some(write(Some(own.clone()), now));
            self.write(own);
        }
    }

    /// Nothing is remembered.
    fn restart(&mut self) {
        self.looked.clear();
        self.flying = None;
        let now = at(self.now);
        for run in &mut self.runs {
            let status = run.status.as_mut().unwrap();
            if status.phase == RunPhase::Publishing {
                left_by_former(&mut status.tags, now);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn however_late_older_writes_come_the_tag_ends_at_the_newest_run(
        // When each run follows the one before it.
        gaps in proptest::collection::vec(1_i64..60, 1..6),
        writes in proptest::collection::vec(proptest::option::weighted(0.6, 0_i64..3_000), 0..8),
        restarts in proptest::collection::vec(0_i64..300, 0..8),
    ) {
        let mut world = World {
            now: 0,
            tag: None,
            coming: Vec::new(),
            runs: vec![run("a", 1)],
            flying: None,
            looked: BTreeMap::new(),
            writes,
        };
        let mut begins = gaps.iter().scan(0, |at, gap| { *at += gap * 5; Some(*at) }).collect::<Vec<_>>();
        begins.reverse();
        let last = begins.len() + 1;
        let (mut answered, mut waited) = (0, 0);
        while answered < 100 {
            if begins.last().is_some_and(|begin| *begin <= world.now) {
                begins.pop();
                world.runs.push(run("a", world.runs.len() as u64 + 1));
            }
            if restarts.iter().any(|restart| restart / 5 == world.now / 5) {
                world.restart();
            }
            world.step();
            // The last five minutes have a look for what came before.
            answered = if world.coming.is_empty() && begins.is_empty() { answered + 1 } else { 0 };
            waited += 1;
            prop_assert!(waited < 3_000);
        }
        let newest = world.runs.last().unwrap().status.as_ref().unwrap();
        prop_assert_eq!(newest.phase, RunPhase::Succeeded);
        prop_assert_eq!(world.tag, Some(digest(last as u64)));
    }
}
