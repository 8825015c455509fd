//! How the tags of a run move: which are where they belong, and which were not where Kiln had left them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuildWarning, TagStatus};
use kiln_crds::image_build_run::ImageBuildRunStatus;

use super::status::short_digest;
use super::warnings::is_of_tags;
use crate::reason::Reason;
use crate::tags::ownership::Place;
use kiln_registry::{Digest, Repository, Tag};

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

/// What is known of a run's tags while they move.
pub struct Tagging {
    state: Mutex<State>,
}

struct State {
    begun: bool,
    /// Those that the run has claimed; with a digest once they are moved.
    tags: Vec<TagStatus>,
    /// Where Kiln has left them.
    left: BTreeMap<Place, TagStatus>,
    strays: Vec<Stray>,
}

impl Tagging {
    /// Of the tags that a run has claimed, and where its ImageBuild had left its tags before.
    #[must_use]
    pub fn new(claimed: Vec<TagStatus>, left: Vec<TagStatus>) -> Self {
        let left = left.into_iter().map(|tag| (Place::of(&tag), tag)).collect();
        Self { state: Mutex::new(State { begun: false, tags: claimed, left, strays: Vec::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first tag is about to move.
    pub fn begin(&self) {
        self.state().begun = true;
    }

    /// Whether a tag may have moved.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.state().begun
    }

    /// A tag is at `digest` now; it was at `found`.
    pub fn moved(&self, repository: &Repository, tag: &Tag, found: Option<&Digest>, digest: &Digest, now: Timestamp) {
        let moved = TagStatus {
            repository: repository.to_string(),
            tag: tag.to_string(),
            digest: Some(digest.to_string()),
            moved_at: Some(MicroTime(now)),
        };
        let place = Place::of(&moved);
        let state = &mut *self.state();
        if let Some(claimed) = state.tags.iter_mut().find(|tag| Place::of(tag) == place)
            && claimed.digest != moved.digest
        {
            claimed.digest.clone_from(&moved.digest);
            claimed.moved_at.clone_from(&moved.moved_at);
        }
        let left = state.left.insert(place.clone(), moved);
        if let (Some(found), Some(left)) = (found.filter(|found| *found != digest), left)
            && left.digest.as_deref() != Some(found.as_ref())
            && !state.strays.iter().any(|stray| Place::of(&stray.tag) == place)
        {
            state.strays.push(Stray { tag: left, found: found.to_string() });
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
            moved_at: None,
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
            tagging.begin();
            assert!(tagging.has_begun());
            let tag = "v1".parse().unwrap();
            for (second, found) in [5, 6].into_iter().zip(found) {
                let now = Timestamp::from_second(second).unwrap();
                tagging.moved(&repository, &tag, found.map(digest).as_ref(), &digest(2), now);
            }
            let (tags, found) = tagging.end();
            assert_eq!(found.len(), strays, "{what}");
            let at = tags[0].moved_at.as_ref().map(|at| at.0.as_second());
            assert_eq!((tags[0].digest.as_deref(), at), (Some(digest(2).as_ref()), Some(5)), "{what}");
            assert_eq!(tags[1], status("v2", None), "{what}");
        }
    }
}
