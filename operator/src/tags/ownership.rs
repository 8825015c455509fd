//! Which ImageBuild a tag belongs to; pure.
//!
//! A tag belongs to the ImageBuild that moved it last, as long as its spec can give it: one that is written out for as long
//! as the ImageBuild exists, one that a template gave while it is among the newest [`FILLED`] of these. Nothing else counts:
//! neither a spec that has never pushed nor one that is older.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuiltImage, ImageTarget, TagStatus};
use kiln_crds::{ImageBuild, ImageBuildRun, ImageBuildRunStatus, ImageBuildSpec, ImageBuildStatus};
use kube::ResourceExt;

use super::Asker;
use super::template::{Gives, Matcher, Values, meant, render, with_platform};
use crate::reason::Reason;
use crate::references::Fault;
use kiln_registry::{Identifier, Reference, Repository};

/// How many tags that templates gave an ImageBuild keeps.
const FILLED: usize = 32;

/// A tag and its repository, however that is written.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Place {
    repository: String,
    tag: String,
}

impl Place {
    /// That of a tag.
    #[must_use]
    pub fn of(tag: &TagStatus) -> Self {
        Self { repository: canonical(&tag.repository), tag: tag.tag.clone() }
    }

    /// The tag alone.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

fn canonical(repository: &str) -> String {
    Repository::parse(repository)
        .map_or_else(|_| repository.to_owned(), |parsed| parsed.without_default_port().to_string())
}

/// A wanted tag that is another's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conflict {
    /// The tag.
    pub tag: TagStatus,
    /// The namespace of the ImageBuild that has it.
    pub namespace: String,
    /// The name of that ImageBuild.
    pub name: String,
    /// It is about to move the tag, which is not its own yet.
    pub is_claim: bool,
}

impl Conflict {
    /// As the user reads it.
    #[must_use]
    pub fn fault(&self, asker: Asker<'_>) -> Fault {
        // Other namespaces are nobody else's business.
        let who = if self.namespace == asker.namespace {
            format!("the ImageBuild {}", self.name)
        } else {
            "an ImageBuild of another namespace".to_owned()
        };
        let has = if self.is_claim { "is about to move" } else { "has" };
        let TagStatus { repository, tag, .. } = &self.tag;
        Fault::user(
            Reason::TagConflict,
            format!("{who} {has} the tag {tag} of {repository}: write another tag or repository"),
        )
    }
}

/// The tags that a run of this spec moves, none twice.
pub fn wanted(spec: &ImageBuildSpec, values: Values<'_>) -> Result<Vec<TagStatus>, Fault> {
    let mut wanted = Vec::new();
    let mut seen = HashSet::new();
    for (text, templates) in spec.image.iter().flat_map(ImageTarget::repositories) {
        let repository = Repository::parse(text)
            .map_err(|error| Fault::user(Reason::RepositoryInvalid, format!("image.repository: {error}")))?;
        for tag in render(templates, values)? {
            let tag = claim(&repository, tag.as_str());
            if seen.insert(Place::of(&tag)) {
                wanted.push(tag);
            }
        }
    }
    Ok(wanted)
}

/// The tags that the cache of these platforms is written to: nobody's, but another's image must not be there.
#[must_use]
pub fn of_cache<'a>(spec: &ImageBuildSpec, platforms: impl IntoIterator<Item = &'a str>) -> Vec<TagStatus> {
    let cache = spec.cache.as_ref().and_then(|cache| cache.registry.as_ref());
    let Some(Ok(Reference { repository, identifier: Identifier::Tag(tag) })) =
        cache.map(|cache| cache.reference.parse::<Reference>())
    else {
        return Vec::new();
    };
    platforms.into_iter().map(|platform| claim(&repository, with_platform(&tag, platform).as_str())).collect()
}

fn claim(repository: &Repository, tag: &str) -> TagStatus {
    TagStatus { repository: repository.to_string(), tag: tag.to_owned(), ..TagStatus::default() }
}

/// The tags that an ImageBuild has moved last as far as it knows, and that its spec can still give; the newest first.
#[must_use]
pub fn held<'a>(build: &ImageBuild, runs: impl IntoIterator<Item = &'a ImageBuildRun>) -> Vec<TagStatus> {
    let mut newest: BTreeMap<Place, TagStatus> = BTreeMap::new();
    let told = build.status.iter().map(of_build).chain(runs.into_iter().flat_map(|run| &run.status).map(of_run));
    for tag in told.flat_map(recorded) {
        match newest.entry(Place::of(&tag)) {
            Entry::Vacant(entry) => {
                entry.insert(tag);
            }
            Entry::Occupied(mut entry) => {
                if moved_at(entry.get()) < moved_at(&tag) {
                    entry.insert(tag);
                }
            }
        }
    }
    if newest.is_empty() {
        return Vec::new();
    }
    // A pattern is made once, not for every tag.
    let given: Vec<(String, Vec<Matcher<'_>>)> = build
        .spec
        .image
        .iter()
        .flat_map(ImageTarget::repositories)
        .map(|(repository, templates)| (canonical(repository), meant(templates).map(Matcher::of).collect()))
        .collect();
    let how = |place: &Place| {
        let of = given.iter().filter(|(repository, _)| *repository == place.repository);
        let found: Vec<Gives> = of.flat_map(|(_, all)| all).filter_map(|matcher| matcher.gives(&place.tag)).collect();
        found.iter().find(|how| **how == Gives::Literally).or(found.first()).copied()
    };
    let mut held: Vec<(Gives, TagStatus)> =
        newest.into_iter().filter_map(|(place, tag)| Some((how(&place)?, tag))).collect();
    held.sort_by_key(|(_, tag)| Reverse(moved_at(tag)));
    let mut filled = 0;
    held.retain(|(how, _)| {
        filled += usize::from(*how == Gives::Filled);
        *how == Gives::Literally || filled <= FILLED
    });
    held.into_iter().map(|(_, tag)| tag).collect()
}

fn moved_at(tag: &TagStatus) -> Option<Timestamp> {
    tag.moved_at.as_ref().map(|at| at.0)
}

/// What a status tells of tags.
type Told<'a> = (&'a [TagStatus], Option<&'a BuiltImage>);

fn of_build(status: &ImageBuildStatus) -> Told<'_> {
    (&status.tags, status.image.as_ref())
}

fn of_run(status: &ImageBuildRunStatus) -> Told<'_> {
    (&status.tags, status.image.as_ref())
}

/// The tags that have been moved. A status from before tags were recorded has them in its image alone.
fn recorded((tags, image): Told<'_>) -> Vec<TagStatus> {
    let moved = tags.iter().filter(|tag| tag.digest.is_some());
    // What is unknown is told by the run whose write it is.
    let moved: Vec<TagStatus> = moved.map(|tag| TagStatus { unknown: None, ..tag.clone() }).collect();
    let Some(image) = image.filter(|_| tags.is_empty()) else { return moved };
    let copies = image.copies.iter().map(|copy| (&copy.repository, &copy.tags));
    std::iter::once((&image.repository, &image.tags))
        .chain(copies)
        .flat_map(|(repository, tags)| tags.iter().map(move |tag| (repository, tag)))
        .map(|(repository, tag)| TagStatus {
            repository: repository.clone(),
            tag: tag.clone(),
            digest: Some(image.digest.clone()),
            moved_at: Some(MicroTime(image.pushed_at.0)),
            unknown: None,
        })
        .collect()
}

/// The first of the wanted tags that belongs to another ImageBuild than the asking one.
#[must_use]
pub fn owner(
    wanted: &[TagStatus],
    asker: Asker<'_>,
    builds: &[Arc<ImageBuild>],
    runs: &[Arc<ImageBuildRun>],
) -> Option<Conflict> {
    let places: HashSet<Place> = wanted.iter().map(Place::of).collect();
    let names: HashSet<&str> = wanted.iter().map(|tag| tag.tag.as_str()).collect();
    // Most objects have none of them: what is looked at first costs little.
    let is_wanted = |tag: &TagStatus| names.contains(tag.tag.as_str()) && places.contains(&Place::of(tag));
    let has = |told: Told<'_>| match told {
        ([], _) => recorded(told).iter().any(is_wanted),
        (tags, _) => tags.iter().any(is_wanted),
    };
    let of_runs: HashSet<&str> = runs
        .iter()
        .filter(|run| run.status.as_ref().is_some_and(|status| has(of_run(status))))
        .map(|run| run.spec.image_build.uid.as_str())
        .collect();
    // An ImageBuild that is being deleted has given its tags up.
    let candidates: HashMap<&str, &ImageBuild> = builds
        .iter()
        .filter(|build| build.metadata.deletion_timestamp.is_none())
        .filter_map(|build| Some((build.metadata.uid.as_deref()?, &**build)))
        .filter(|(uid, build)| {
            of_runs.contains(uid) || build.status.as_ref().is_some_and(|status| has(of_build(status)))
        })
        .collect();
    let mut runs_of: HashMap<&str, Vec<&ImageBuildRun>> = HashMap::new();
    for run in runs {
        let build = candidates.get(run.spec.image_build.uid.as_str());
        if let Some(build) = build.filter(|build| build.metadata.namespace == run.metadata.namespace) {
            runs_of.entry(build.metadata.uid.as_deref().unwrap_or_default()).or_default().push(run);
        }
    }
    let mut last: HashMap<Place, (Option<Timestamp>, Reverse<&str>)> = HashMap::new();
    for (uid, build) in &candidates {
        for tag in held(build, runs_of.get(uid).into_iter().flatten().copied()) {
            let moved = (moved_at(&tag), Reverse(*uid));
            let entry = last.entry(Place::of(&tag)).or_insert(moved);
            *entry = (*entry).max(moved);
        }
    }
    wanted.iter().find_map(|tag| {
        let (_, Reverse(uid)) = last.get(&Place::of(tag))?;
        let owner = candidates.get(uid).filter(|_| *uid != asker.uid)?;
        Some(Conflict {
            tag: tag.clone(),
            namespace: owner.namespace().unwrap_or_default(),
            name: owner.name_any(),
            is_claim: false,
        })
    })
}

#[cfg(test)]
pub(super) mod tests;
