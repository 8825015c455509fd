//! What an ImageBuild's status says; pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuildFailure, BuildWarning, BuiltImage, ImageBuildStatus, SourceStatus, Summary};
use kiln_crds::image_build_run::{ImageBuildRunStatus, RunPhase};
use kiln_crds::{ImageBuild, ImageBuildRun, ImageBuildRunSpec, REBUILD_ANNOTATION};
use kube::ResourceExt;

use super::plan::Cure;
use super::{age, plan};
use crate::condition::{Wanted, date, find};
use crate::image_build_run::status::{duration, short_commit, short_digest};
use crate::image_build_run::warnings::is_of_tags;
use crate::reason::Reason;
use crate::references::Fault;
use crate::tags::ownership;
use kiln_registry::http_client::FailureClass;

/// The condition of an ImageBuild whose tag something else had moved.
pub const TAG_MOVED: &str = "TagMoved";

// What a stalled ImageBuild waits for. That Kiln looks whether it is there is no progress: somebody has to bring it about.
const AFTER_SECRET: &str = "it goes on within 15 seconds once a Secret or CA that is the cause has changed, with another spec, and is \
                            tried again at least every 5 minutes";
const AFTER_MENDING: &str = "it goes on with another spec, and is tried again at least every 5 minutes";
const ANOTHER_RUN: &str =
    "another run is made of another commit or spec, or where the annotation kiln.build/rebuild asks for it";
const ANOTHER_RUN_AFTER_SECRET: &str = "another run is made within 15 seconds once a Secret or CA that is the cause has changed, of \
                                        another commit or spec, or where the annotation kiln.build/rebuild asks for it";
const ANOTHER_RUN_AFTER_SUSPENSION: &str = "another run is made once spec.suspend is false";
const ANOTHER_RUN_AFTER_TAG: &str = "another run is made within 5 minutes once the tag is given up, of another commit or spec, \
                                     or where the annotation kiln.build/rebuild asks for it";

/// What a status is made from.
pub struct Observed<'a> {
    /// The ImageBuild, with its former status.
    pub build: &'a ImageBuild,
    /// Its runs.
    pub runs: &'a [Arc<ImageBuildRun>],
    /// What keeps a new run from being made.
    pub fault: Option<&'a Fault>,
    /// Whether what is written now is not what the newest run is of, and waits for the end of `spec.suspend`.
    pub held_back: bool,
}

/// The status.
#[must_use]
pub fn status(observed: &Observed<'_>, now: Timestamp) -> ImageBuildStatus {
    let Observed { build, runs, fault, held_back } = observed;
    let former = build.status.clone().unwrap_or_default();
    // A number that is recorded and not there: its run was removed by hand, or is not in the copy yet.
    let recorded = plan::recorded_number(&build.name_any(), former.run.as_deref());
    let newest = runs
        .iter()
        .max_by_key(|run| run.spec.number)
        .filter(|run| recorded.is_none_or(|number| number <= run.spec.number));
    let generation = build.metadata.generation;
    let conditions = if newest.is_none() && recorded.is_some() && fault.is_none() {
        // What that run came to is still true.
        let keep = |condition: &Condition| Condition { observed_generation: generation, ..condition.clone() };
        former.conditions.iter().map(keep).collect()
    } else {
        let mut wanted = conditions(build, newest, *fault, *held_back);
        wanted.extend(tag_moved(runs, &former.conditions));
        date(wanted, &former.conditions, generation, now)
    };
    let mut status = ImageBuildStatus {
        observed_generation: generation,
        conditions,
        image: former.image,
        image_run: None,
        tags: ownership::held(build, runs.iter().map(|run| &**run)),
        source: former.source,
        input_hash: newest.map_or(former.input_hash, |run| Some(run.spec.input_hash.clone())),
        run: newest.map_or(former.run, |run| Some(run.name_any())),
        warnings: warnings(runs).unwrap_or(former.warnings),
        cache_since: age::cache_since(former.cache_since.as_ref(), runs),
        failure: newest.and_then(|run| failure(run)).map(Box::new),
        summary: None,
    };
    // The newest run's image wins, whatever a clock says; a run that history has dropped takes nothing with it.
    let newest_pushed = runs.iter().filter(|run| image_of(run).is_some()).max_by_key(|run| run.spec.number);
    let mut pushed_by = pushed_by(build, runs);
    if let Some(run) = newest_pushed.filter(|run| pushed_by.is_none_or(|number| number <= run.spec.number))
        && let Some(image) = image_of(run)
    {
        // Of the same image what is known already stays: a copy of the run may show less of it.
        if !status.image.as_ref().is_some_and(|known| is_same(known, image)) {
            status.image = Some(image.clone());
        }
        status.source = source(&run.spec);
        pushed_by = Some(run.spec.number);
    }
    let name = build.name_any();
    let by_newest = pushed_by == plan::recorded_number(&name, status.run.as_deref());
    status.image_run =
        pushed_by.filter(|_| status.image.is_some() && !by_newest).map(|number| format!("{name}-{number}"));
    if status.image.is_none() {
        // Of a check, what was checked.
        let checked = newest.filter(|run| run.status.as_ref().is_some_and(|run| run.phase == RunPhase::Succeeded));
        status.source = checked.map_or(status.source, |run| source(&run.spec));
    }
    status.summary = Some(summary(&status, newest));
    status
}

/// Which runs' images, warnings and failures the status shows.
#[must_use]
pub fn shown(runs: &[Arc<ImageBuildRun>]) -> BTreeSet<usize> {
    let all =
        || runs.iter().enumerate().filter_map(|(index, run)| Some((index, run.spec.number, run.status.as_ref()?)));
    let newest = |of: &dyn Fn(&ImageBuildRunStatus) -> bool| {
        all().filter(|(.., status)| of(status)).max_by_key(|(_, number, _)| *number).map(|(index, ..)| index)
    };
    let finished = newest(&|status| matches!(status.phase, RunPhase::Succeeded | RunPhase::Failed));
    let pushed = newest(&|status| status.image.is_some());
    finished.into_iter().chain(pushed).collect()
}

fn image_of(run: &ImageBuildRun) -> Option<&BuiltImage> {
    run.status.as_ref()?.image.as_ref()
}

fn is_same(known: &BuiltImage, image: &BuiltImage) -> bool {
    known.pushed_at == image.pushed_at && known.reference == image.reference && known.tags == image.tags
}

/// The number of the run that pushed the image which the status shows.
fn pushed_by(build: &ImageBuild, runs: &[Arc<ImageBuildRun>]) -> Option<u64> {
    let status = build.status.as_ref()?;
    let image = status.image.as_ref()?;
    let number = |run: &Option<String>| plan::recorded_number(&build.name_any(), run.as_deref());
    // A status from before this was recorded shows the image of some run up to its newest.
    let same = || runs.iter().find(|run| image_of(run).is_some_and(|of| is_same(image, of))).map(|run| run.spec.number);
    number(&status.image_run).or_else(same).or_else(|| number(&status.run))
}

/// What a run's image was made from. `None`: from inline files alone.
fn source(run: &ImageBuildRunSpec) -> Option<SourceStatus> {
    let source = run.build.source.as_ref();
    let image = run.resolved.iter().find(|resolved| resolved.field == "source").and_then(|source| source.image.clone());
    let url = source
        .and_then(|source| Some(&source.git.as_ref()?.url))
        .or(source.and_then(|source| Some(&source.http.as_ref()?.url)))
        .cloned();
    let status = SourceStatus {
        url: url.or(image),
        commit: run.commit.clone(),
        resolved: run.resolved.iter().filter(|resolved| resolved.field != "source").cloned().collect(),
    };
    (status.url.is_some() || !status.resolved.is_empty()).then_some(status)
}

/// What the newest finished run was warned of.
fn warnings(runs: &[Arc<ImageBuildRun>]) -> Option<Vec<BuildWarning>> {
    let finished = runs.iter().filter_map(|run| Some((run.spec.number, run.status.as_ref()?)));
    let finished = finished.filter(|(_, status)| matches!(status.phase, RunPhase::Succeeded | RunPhase::Failed));
    finished.max_by_key(|(number, _)| *number).map(|(_, status)| status.warnings.clone())
}

fn failure(run: &ImageBuildRun) -> Option<BuildFailure> {
    let status = run.status.as_ref().filter(|status| status.phase == RunPhase::Failed)?;
    Some(BuildFailure { run: Some(run.name_any()), commit: run.spec.commit.clone(), ..*status.failure.clone()? })
}

/// The condition that something else had moved a tag: as the newest run that has moved tags found it.
fn tag_moved(runs: &[Arc<ImageBuildRun>], former: &[Condition]) -> Option<Wanted> {
    let pushed = runs.iter().filter_map(|run| Some((run.spec.number, run.status.as_ref()?)));
    let has_looked = |status: &ImageBuildRunStatus| status.image.is_some() || status.warnings.iter().any(is_of_tags);
    let newest = pushed.filter(|(_, status)| has_looked(status)).max_by_key(|(number, _)| *number);
    let message = match newest {
        Some((_, status)) => status.warnings.iter().find(|warning| is_of_tags(warning))?.message.clone(),
        // History has dropped it.
        None => find(former, TAG_MOVED)?.message.clone(),
    };
    Some(Wanted { kind: TAG_MOVED, status: Some(true), reason: Reason::TagMoved.to_string(), message })
}

fn conditions(
    build: &ImageBuild,
    newest: Option<&Arc<ImageBuildRun>>,
    fault: Option<&Fault>,
    held_back: bool,
) -> Vec<Wanted> {
    let ready =
        |status, reason: &str, message: String| Wanted { kind: "Ready", status, reason: reason.to_owned(), message };
    // Why is told once, by Ready.
    let stalled = |of: Wanted, next: &str| {
        let message = format!("see the message of Ready; {next}");
        vec![of.clone(), Wanted { kind: "Stalled", status: Some(true), message, ..of }]
    };
    let reconciling = |of: Wanted| vec![of.clone(), Wanted { kind: "Reconciling", status: Some(true), ..of }];
    if let Some(fault) = fault {
        let wanted = ready(Some(false), fault.reason.as_str(), fault.message.clone());
        return match fault.class {
            FailureClass::Infrastructure => reconciling(wanted),
            FailureClass::Credential => stalled(wanted, AFTER_SECRET),
            FailureClass::User => stalled(wanted, AFTER_MENDING),
        };
    }
    let Some(run) = newest else {
        return if build.spec.suspend {
            vec![ready(Some(false), Reason::Suspended.as_str(), "spec.suspend is set: nothing is built".to_owned())]
        } else {
            reconciling(ready(None, Reason::Pending.as_str(), "the first run is being prepared".to_owned()))
        };
    };
    let name = run.name_any();
    let about = |message: &str| if message.is_empty() { name.clone() } else { format!("{name}: {message}") };
    let status = run.status.as_ref();
    let condition = status.and_then(|status| find(&status.conditions, "Succeeded"));
    let reason = condition.map_or(Reason::Pending.as_str(), |condition| condition.reason.as_str());
    let message = condition.map_or("", |condition| condition.message.as_str());
    let phase = status.map(|status| status.phase).unwrap_or_default();
    if held_back && phase.is_final() {
        // Whoever waits for Ready waits for an image of what is written now.
        let message = format!(
            "spec.suspend is set, and what is written now (the spec, or {REBUILD_ANNOTATION}) is not what {name} is of: it is built once suspend is false"
        );
        return vec![ready(Some(false), Reason::Suspended.as_str(), message)];
    }
    match phase {
        RunPhase::Succeeded if run.spec.build.image.is_none() && run.spec.build.archive.is_none() => {
            let message = "it can be built; nothing is pushed, for this is a check without image and archive";
            vec![ready(Some(true), reason, about(message))]
        }
        RunPhase::Succeeded => vec![ready(Some(true), reason, about(message))],
        RunPhase::Failed => {
            let commit = run.spec.commit.as_deref().map(|commit| format!(" of commit {}", short_commit(commit)));
            let of = commit.unwrap_or_default();
            let failed = |next: &str| ready(Some(false), reason, format!("{name}{of}: {message}{next}"));
            let next = match plan::cure(run) {
                Some(Cure::Credential) => ANOTHER_RUN_AFTER_SECRET,
                Some(Cure::Tag) => ANOTHER_RUN_AFTER_TAG,
                Some(Cure::Time) if build.spec.suspend => ANOTHER_RUN_AFTER_SUSPENSION,
                // The time is the run's, so that nothing is written until then.
                Some(Cure::Time) => {
                    let at = plan::successor_at(run).map_or_else(|| "soon".to_owned(), |at| format!("at {at}"));
                    return reconciling(failed(&format!("; it is tried again {at}")));
                }
                None => ANOTHER_RUN,
            };
            stalled(failed(""), next)
        }
        // A superseded run has a successor, which is on its way into the store.
        RunPhase::Cancelled if reason == Reason::Superseded.as_str() => {
            reconciling(ready(None, Reason::Pending.as_str(), "a newer run is on its way".to_owned()))
        }
        RunPhase::Cancelled => {
            let message = format!("{name}: {message}; annotate with kiln.build/rebuild for another run");
            stalled(ready(Some(false), reason, message), ANOTHER_RUN)
        }
        // The steps of each platform are told by the run: this status is not written at each.
        RunPhase::Building if reason == Reason::Building.as_str() => {
            reconciling(ready(None, reason, format!("{name} is building")))
        }
        _ => reconciling(ready(None, reason, about(message))),
    }
}

fn summary(status: &ImageBuildStatus, newest: Option<&Arc<ImageBuildRun>>) -> Summary {
    let run = newest.and_then(|run| run.status.as_ref());
    let image = status.image.as_ref();
    let names = |platforms: Vec<&str>| Some(platforms.join(",")).filter(|names| !names.is_empty());
    let platforms = match image {
        Some(image) => names(image.platforms.iter().map(|platform| platform.name.as_str()).collect()),
        None => run.and_then(|run| names(run.platforms.iter().map(|platform| platform.name.as_str()).collect())),
    };
    let commit = match status.source.as_ref() {
        Some(source) => source.commit.as_deref(),
        None => newest.and_then(|run| run.spec.commit.as_deref()).filter(|_| image.is_none()),
    };
    Summary {
        image: image.map(|image| short_digest(&image.digest)),
        commit: commit.map(short_commit),
        platforms,
        duration: run.and_then(duration),
    }
}

#[cfg(test)]
mod tests;
