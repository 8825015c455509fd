//! How the tags of a run move: which are where they belong, of which it is unknown, and which were not where Kiln had left
//! them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuildWarning, TagStatus, UnknownWrite};
use kiln_crds::image_build_run::ImageBuildRunStatus;

use super::status::short_digest;
use super::warnings::is_of_tags;
use crate::reason::Reason;
use crate::tags::late::Late;
use crate::tags::ownership::Place;
use kiln_registry::{Digest, Repository, Step, Tag};

/// A tag that was not where Kiln had left it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stray {
    /// The tag, with the digest that Kiln had moved it to.
    pub tag: TagStatus,
    /// The digest that it had in the registry.
    pub found: String,
}

/// The warning of them.
#[must_use]
pub fn warning(strays: &[Stray]) -> Option<BuildWarning> {
    let Stray { tag: TagStatus { repository, tag, digest, .. }, found } = strays.first()?;
    let left = short_digest(digest.as_deref().unwrap_or_default());
    let more = match strays.len() - 1 {
        0 => String::new(),
        1 => ", and one more tag was elsewhere too".to_owned(),
        more => format!(", and {more} more tags were elsewhere too"),
    };
    let message = format!(
        "something else had moved the tag {tag}: it was {} where Kiln had left {left}{more}; let only this ImageBuild push \
         to {repository}",
        short_digest(found)
    );
    Some(BuildWarning {
        rule: Reason::TagMoved.to_string(),
        message: message.chars().take(512).collect(),
        ..BuildWarning::default()
    })
}

/// Puts it into a run's status, in the place of a former one.
pub fn warn(status: &mut ImageBuildRunStatus, warning: BuildWarning) {
    status.warnings.retain(|former| !is_of_tags(former));
    status.warnings.push(warning);
}

/// What an end says that comes when tags have moved, or may have; empty where none has.
#[must_use]
pub fn too_late(tags: &[TagStatus]) -> String {
    let names = |of: Vec<&TagStatus>| {
        let first = of.first()?;
        let more = if of.len() > 1 { format!(" and {} more", of.len() - 1) } else { String::new() };
        Some(format!("{} of {}{more}", first.tag, first.repository))
    };
    let moved = names(tags.iter().filter(|tag| tag.digest.is_some()).collect());
    let unknown = names(tags.iter().filter(|tag| tag.digest.is_none() && tag.unknown.is_some()).collect());
    let moved = moved.map(|names| format!("; it came too late for what has moved: the tag {names}"));
    let unknown = unknown.map(|names| {
        format!("; it came too late for what was being written, and may move yet: the tag {names}, for the registry has not answered")
    });
    let told = moved.into_iter().chain(unknown).collect::<String>();
    told.chars().take(2048).collect()
}

/// Says of each tag that a former operator was about to move that it may have been writing it, until now at the latest.
pub fn left_by_former(tags: &mut [TagStatus], now: Timestamp) {
    for tag in tags.iter_mut().filter(|tag| tag.unknown.is_none()) {
        tag.unknown = Some(UnknownWrite { digest: None, sent_at: MicroTime(now) });
    }
}

/// What is known of a run's tags while they move.
pub struct Tagging {
    state: Mutex<State>,
}

struct State {
    begun: bool,
    /// Those that the run has claimed; with a digest once they are moved.
    tags: Vec<TagStatus>,
    /// The writes that are on their way, with what was unknown before.
    writing: BTreeMap<Place, Option<UnknownWrite>>,
    /// Where Kiln has left them.
    left: BTreeMap<Place, TagStatus>,
    /// Where else they may be by Kiln's own doing.
    late: Vec<Late>,
    strays: Vec<Stray>,
}

impl Tagging {
    /// Of the tags that a run has claimed, and where its ImageBuild had left its tags before.
    #[must_use]
    pub fn new(claimed: Vec<TagStatus>, left: Vec<TagStatus>) -> Self {
        let left = left.into_iter().map(|tag| (Place::of(&tag), tag)).collect();
        let (writing, late, strays) = Default::default();
        Self { state: Mutex::new(State { begun: false, tags: claimed, writing, left, late, strays }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These writes of other runs may come, or have come.
    pub fn expect(&self, late: Vec<Late>) {
        self.state().late = late;
    }

    /// Whether writes of other runs may still come.
    #[must_use]
    pub fn expects(&self) -> bool {
        !self.state().late.is_empty()
    }

    /// Whether a tag may have moved.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.state().begun
    }

    /// What becomes of a tag that belongs at `digest`.
    pub fn told(&self, repository: &Repository, tag: &Tag, step: Step<'_>, digest: &Digest, now: Timestamp) {
        let moved = TagStatus {
            repository: repository.to_string(),
            tag: tag.to_string(),
            digest: Some(digest.to_string()),
            moved_at: Some(MicroTime(now)),
            unknown: None,
        };
        let place = Place::of(&moved);
        let state = &mut *self.state();
        let claimed = state.tags.iter_mut().find(|tag| Place::of(tag) == place);
        match step {
            Step::Writing => {
                state.begun = true;
                if let Some(claimed) = claimed {
                    let unknown = UnknownWrite { digest: moved.digest, sent_at: MicroTime(now) };
                    state.writing.insert(place, claimed.unknown.replace(unknown));
                }
            }
            Step::Refused => {
                if let (Some(claimed), Some(before)) = (claimed, state.writing.remove(&place)) {
                    claimed.unknown = before;
                }
            }
            Step::Moved(found) => {
                state.begun = true;
                if let Some(claimed) = claimed {
                    if let Some(before) = state.writing.remove(&place) {
                        claimed.unknown = before;
                    }
                    if claimed.digest != moved.digest {
                        claimed.digest.clone_from(&moved.digest);
                        claimed.moved_at.clone_from(&moved.moved_at);
                    }
                    // A former operator's write of this run.
                    if let Some(unknown) = &mut claimed.unknown {
                        unknown.digest.get_or_insert_with(|| digest.to_string());
                    }
                }
                let Some(found) = found.filter(|found| *found != digest) else {
                    state.left.insert(place, moved);
                    return;
                };
                let found = found.to_string();
                let is_late =
                    state.late.iter().any(|write| write.place == place && write.digest.as_ref() == Some(&found));
                if let Some(left) = state.left.insert(place.clone(), moved)
                    && left.digest.as_ref() != Some(&found)
                    && !is_late
                    && !state.strays.iter().any(|stray| Place::of(&stray.tag) == place)
                {
                    state.strays.push(Stray { tag: left, found });
                }
            }
        }
    }

    /// The tags as they stand, and those that were not where Kiln had left them.
    #[must_use]
    pub fn end(self) -> (Vec<TagStatus>, Vec<Stray>) {
        let State { tags, strays, .. } = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        (tags, strays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_is_elsewhere_is_told_once() {
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32)).parse::<Digest>().unwrap();
        let status = |tag: &str, digest: Option<u8>| TagStatus {
            repository: "r.example/app".into(),
            tag: tag.into(),
            digest: digest.map(|n| format!("sha256:{}", format!("{n:02x}").repeat(32))),
            ..TagStatus::default()
        };
        let repository: Repository = "r.example/app".parse().unwrap();
        // What was found at the first look, and at the second, after the tag was moved.
        for (what, left, found, strays) in [
            ("as it was left", Some(1), [Some(1), Some(2)], 0),
            ("at the new one already", Some(1), [Some(2), Some(2)], 0),
            ("elsewhere", Some(1), [Some(3), Some(2)], 1),
            ("elsewhere again", Some(1), [Some(3), Some(3)], 1),
            ("moved at once", None, [None, Some(3)], 1),
            ("removed", Some(1), [None, Some(2)], 0),
            ("never moved by Kiln", None, [Some(3), Some(2)], 0),
        ] {
            let left = left.map(|n| status("v1", Some(n))).into_iter().collect();
            let tagging = Tagging::new(vec![status("v1", None), status("v2", None)], left);
            assert!(!tagging.has_begun());
            let tag = "v1".parse().unwrap();
            for (second, found) in [5, 6].into_iter().zip(found) {
                let now = Timestamp::from_second(second).unwrap();
                let found = found.map(digest);
                tagging.told(&repository, &tag, Step::Moved(found.as_ref()), &digest(2), now);
            }
            assert!(tagging.has_begun());
            let (tags, found) = tagging.end();
            assert_eq!(found.len(), strays, "{what}");
            let at = tags[0].moved_at.as_ref().map(|at| at.0.as_second());
            assert_eq!((tags[0].digest.as_deref(), at), (Some(digest(2).as_ref()), Some(5)), "{what}");
            assert_eq!(tags[1], status("v2", None), "{what}");
        }
    }
    /// What is told of a tag, step by step: what is unknown at the end.
    #[test]
    fn a_write_is_unknown_until_it_is_answered() {
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32)).parse::<Digest>().unwrap();
        let repository: Repository = "r.example/app".parse().unwrap();
        let tag = || TagStatus { repository: "r.example/app".into(), tag: "v1".into(), ..TagStatus::default() };
        let write = |digest: Option<Digest>, second| UnknownWrite {
            digest: digest.map(|digest| digest.to_string()),
            sent_at: MicroTime(Timestamp::from_second(second).unwrap()),
        };
        let (own, old) = (digest(2), digest(1));
        let (writing, refused, moved) = (Step::Writing, Step::Refused, Step::Moved(Some(&old)));
        let arrived = Step::Moved(Some(&own));
        for (what, before, steps, is_moved, unknown) in [
            ("not begun", None, vec![], false, None),
            ("answered", None, vec![writing, moved], true, None),
            ("refused", None, vec![writing, refused], false, None),
            ("not answered", None, vec![writing], false, Some(write(Some(own.clone()), 0))),
            (
                "answered at the second try",
                Some(write(Some(own.clone()), 9)),
                vec![writing, moved],
                true,
                Some(write(Some(own.clone()), 9)),
            ),
            (
                "refused at the second try",
                Some(write(Some(own.clone()), 9)),
                vec![writing, refused],
                false,
                Some(write(Some(own.clone()), 9)),
            ),
            (
                "not answered again",
                Some(write(Some(own.clone()), -9)),
                vec![writing],
                false,
                Some(write(Some(own.clone()), 0)),
            ),
            (
                "a former operator's that arrived",
                Some(write(None, 9)),
                vec![arrived],
                true,
                Some(write(Some(own.clone()), 9)),
            ),
        ] {
            let tagging = Tagging::new(vec![TagStatus { unknown: before, ..tag() }], Vec::new());
            for (step, second) in steps.iter().zip(0..) {
                let now = Timestamp::from_second(second).unwrap();
                tagging.told(&repository, &"v1".parse().unwrap(), *step, &own, now);
            }
            assert_eq!(tagging.has_begun(), !steps.is_empty(), "{what}");
            let (tags, _) = tagging.end();
            assert_eq!((tags[0].digest.is_some(), &tags[0].unknown), (is_moved, &unknown), "{what}");
        }
        let mut tags = vec![tag()];
        left_by_former(&mut tags, Timestamp::from_second(4).unwrap());
        assert_eq!(tags[0].unknown, Some(write(None, 4)));
        left_by_former(&mut tags, Timestamp::from_second(5).unwrap());
        assert_eq!(tags[0].unknown, Some(write(None, 4)), "it is said once");
    }

    /// Where another run's write has come late, nobody else has moved the tag.
    #[test]
    fn what_came_late_is_nobody_elses_doing() {
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32)).parse::<Digest>().unwrap();
        let repository: Repository = "r.example/app".parse().unwrap();
        let left = TagStatus {
            repository: "r.example/app".into(),
            tag: "v1".into(),
            digest: Some(digest(1).to_string()),
            ..TagStatus::default()
        };
        for (late, strays) in [(Some(digest(3)), 0), (Some(digest(4)), 1), (None, 1)] {
            let tagging = Tagging::new(vec![TagStatus { digest: None, ..left.clone() }], vec![left.clone()]);
            let (place, until) = (Place::of(&left), Timestamp::UNIX_EPOCH);
            let (digest_of, run) = (late.map(|of| of.to_string()), "app-2".into());
            tagging.expect(vec![Late { place, digest: digest_of, until, run, is_of_namespace: true }]);
            let step = Step::Moved(Some(&digest(3)));
            tagging.told(&repository, &"v1".parse().unwrap(), step, &digest(2), Timestamp::UNIX_EPOCH);
            assert_eq!(tagging.end().1.len(), strays);
        }
    }

    #[test]
    fn an_end_that_comes_too_late_says_so() {
        let tag = |name: &str, moved: bool, unknown: bool| TagStatus {
            repository: "r.example/app".into(),
            tag: name.into(),
            digest: moved.then(|| "sha256:1".into()),
            unknown: unknown.then_some(UnknownWrite { digest: None, sent_at: MicroTime(Timestamp::UNIX_EPOCH) }),
            ..TagStatus::default()
        };
        for (tags, told) in [
            (vec![], ""),
            (vec![tag("v1", false, false)], ""),
            (vec![tag("v1", true, true)], "; it came too late for what has moved: the tag v1 of r.example/app"),
            (
                vec![tag("v1", true, false), tag("v2", true, false), tag("v3", false, true)],
                "; it came too late for what has moved: the tag v1 of r.example/app and 1 more; it came too late for what was \
                 being written, and may move yet: the tag v3 of r.example/app, for the registry has not answered",
            ),
        ] {
            assert_eq!(too_late(&tags), told);
        }
    }
}
