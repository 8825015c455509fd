//! ImageBuild: resolves the source, makes a run where the input has changed, and reports the last good image.

pub mod age;
pub mod apply;
pub mod dereference;
pub mod input;
pub mod plan;
pub mod resolve;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{ImageBuildStatus, PlatformSpec};
use kiln_crds::image_build_run::SecretVersion;
use kiln_crds::{ImageBuild, ImageBuildRun, ImageBuildRunSpec, REBUILD_ANNOTATION};
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use self::dereference::{Found, check, look, with_image_builds};
use self::input::input_hash;
use self::plan::Cure;
use crate::builder::identity::hex;
use crate::builder_pool::select::{archives, pool};
use crate::condition::find;
use crate::context::{Context, backoff, is_conflict, until, whole, write_status};
use crate::git;
use crate::outage;
use crate::readable::unreadable;
use crate::reason::Reason;
use crate::references::{self, Fault};
use crate::refusal;
use crate::tags::template::Values;
use crate::tags::{self, Asker, ownership};
use crate::trim;
use kiln_registry::http_client::FailureClass;

/// Why a reconcile failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something named could not be read.
    #[error(transparent)]
    Reference(#[from] references::Error),
    /// A run or the status could not be written.
    #[error("writing the ImageBuild's status or runs: {}", refusal::words(.0))]
    Write(#[from] kube::Error),
}

/// How often the Secrets are looked at while a credential is what keeps an image from being built.
const SECRETS: Duration = Duration::from_secs(15);

/// What is remembered of an ImageBuild between reconciles. Losing it costs a look at the Git server, and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The spec hash for which the rest holds.
    spec_hash: String,
    /// What the names in the spec were when they were last looked up.
    found: Option<Found>,
    /// When that was.
    looked_at: Option<Timestamp>,
    /// Tries that failed in a row.
    failures: u32,
    /// What went wrong at the last one.
    fault: Option<Fault>,
    /// When to try again.
    retry_at: Option<Timestamp>,
    /// Where a credential was the cause: the Secrets as they were, and when they are looked at again.
    secrets: Option<(Vec<SecretVersion>, Timestamp)>,
    /// The generation of the spec at the last try: a changed spec is tried at once.
    generation: Option<i64>,
    /// When the last run without cache was made: the copy of the runs may not have it yet.
    fresh_at: Option<Timestamp>,
    /// A hash of the names that `found` was found for.
    written: String,
}

impl Memory {
    /// Tries again at once what failed.
    #[must_use]
    pub fn without_delay(self) -> Self {
        Self { retry_at: None, ..self }
    }

    /// When a run without cache is made though nothing else has changed.
    fn fresh_at(&self, build: &ImageBuild, since: Option<&Time>, runs: &[Arc<ImageBuildRun>]) -> Option<Timestamp> {
        age::fresh_at(build, since, runs).filter(|at| self.fresh_at.is_none_or(|made| *at > made))
    }
}

/// Brings an ImageBuild one step on.
pub async fn reconcile(build: Arc<ImageBuild>, context: Arc<Context>) -> Result<Action, Error> {
    if build.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    match Box::pin(step(&build, &context)).await {
        Err(Error::Write(error)) if is_conflict(&error) => Ok(Action::requeue(Duration::from_secs(1))),
        Err(Error::Write(error)) => {
            // There may be no condition that tells it: an object can be so large that its status has no room.
            let fault = refusal::fault(&error);
            context.event(&*build, EventType::Warning, fault.reason.as_str(), &fault.message);
            Err(Error::Write(error))
        }
        other => other,
    }
}

async fn step(build: &Arc<ImageBuild>, context: &Context) -> Result<Action, Error> {
    let now = Timestamp::now();
    let uid = build.uid().unwrap_or_default();
    // One look at the copy for the whole reconcile: it changes meanwhile. Runs that a former ImageBuild of this name has
    // left have taken their names.
    let (namespace, name) = (build.metadata.namespace.as_deref(), build.metadata.name.as_deref());
    let named = context.stores.runs.state_filter(|run| {
        run.metadata.namespace.as_deref() == namespace && Some(run.spec.image_build.name.as_str()) == name
    });
    let mut runs: Vec<_> = named.iter().filter(|run| run.spec.image_build.uid == uid).cloned().collect();
    let mut memory = recall(build, &runs, context, now);
    let newest = runs.iter().max_by_key(|run| run.spec.number).cloned();
    let active = newest.as_ref().is_some_and(|run| is_active(run));
    // It is woken once a server that was away is back, or asks whether that is so.
    let waits =
        memory.retry_at.is_some_and(|retry| retry > now) && context.outages.holds(memory.fault.as_ref(), &**build);
    // A server is not asked again and again with a credential that it has refused; a Secret costs a look.
    if !build.spec.suspend && (!waits || has_new_secret(build, &mut memory, context, now).await) {
        let seen = Runs { own: &runs, named: &named, newest: newest.as_deref(), active };
        let advanced = Box::pin(advance(build, &seen, &mut memory, context, now));
        let advanced = context.outages.asking(&**build, advanced).await;
        match advanced {
            Ok(created) => {
                memory.fault = None;
                memory.retry_at = None;
                memory.secrets = None;
                match newest.as_ref().and_then(|run| plan::cure(run)) {
                    Some(cure @ (Cure::Credential | Cure::Tag)) if created.is_none() => {
                        // A run that failed on what stands elsewhere is followed by another once that has changed.
                        memory.failures += 1;
                        let delay = backoff(memory.failures);
                        let of_secret = cure == Cure::Credential;
                        memory.retry_at = now.checked_add(if of_secret { delay.min(SECRETS) } else { delay }).ok();
                    }
                    Some(Cure::Credential | Cure::Tag) => {}
                    // Its successor has a time of its own, and a new commit does not wait for that.
                    Some(Cure::Time) | None => memory.failures = 0,
                }
                runs.extend(created.map(Arc::new));
            }
            Err(Error::Reference(references::Error::Fault(fault))) => {
                let delay = outage::delay(&fault, &mut memory.failures, &uid);
                memory.retry_at = now.checked_add(delay).ok();
                memory.secrets = None;
                if fault.class == FailureClass::Credential {
                    let namespace = build.namespace().unwrap_or_default();
                    let versions = references::secret_versions(context, &namespace, &build.spec).await;
                    memory.secrets = versions.ok().zip(now.checked_add(SECRETS).ok());
                }
                let fault = fault.told(&build.spec, &build.namespace().unwrap_or_default());
                memory.fault = Some(outage::told(memory.fault.take(), fault));
            }
            // Told too: an operator that may not read or write something would otherwise be silent.
            Err(error) if !matches!(&error, Error::Write(error) if is_conflict(error)) => {
                memory.failures += 1;
                memory.retry_at = now.checked_add(backoff(memory.failures)).ok();
                memory.secrets = None;
                warn!(%error, "the API server did not do what was asked");
                memory.fault = Some(match &error {
                    Error::Write(error) => refusal::fault(error),
                    Error::Reference(_) => Fault {
                        class: FailureClass::Infrastructure,
                        ..Fault::user(Reason::ApiUnavailable, error.to_string())
                    },
                });
            }
            Err(error) => {
                context.image_builds.set(&uid, memory);
                return Err(error);
            }
        }
    }
    context.image_builds.set(&uid, memory.clone());
    let of_former = |run: &ImageBuildRun| build.spec.suspend && !is_of(&run.spec, &memory.spec_hash, &memory.written);
    // What went wrong before it was suspended is not tried again.
    let fault = memory.fault.as_ref().filter(|_| !build.spec.suspend);
    let held_back = newest.as_deref().is_some_and(of_former);
    let observed = status::Observed { build, runs: &runs, fault, held_back };
    let mut status = status::status(&observed, now);
    if build.status.as_ref() != Some(&status) {
        if !trim::has_whole_status(&**build) || !runs.iter().all(|run| trim::has_whole_status(&**run)) {
            // Another change is on its way, and wakes this again.
            let Some(whole) = whole_status(&observed, context, now).await? else { return Ok(Action::await_change()) };
            status = whole;
        }
        write_status(context, &**build, &status).await?;
        tell(build, &status, context);
    }
    tidy(build, &runs, context).await?;
    if build.spec.suspend {
        return Ok(Action::await_change());
    }
    // While a run is active its end wakes this reconcile.
    let look = memory.looked_at.and_then(|looked_at| plan::next_look(build, looked_at));
    let fresh = memory.fresh_at(build, status.cache_since.as_ref(), &runs);
    let newest = runs.iter().max_by_key(|run| run.spec.number);
    let successor = newest.and_then(|run| plan::successor_at(run)).filter(|at| *at > now);
    let due = look.into_iter().chain(fresh).chain(successor).min().filter(|_| !active);
    let secrets = memory.secrets.as_ref().map(|(_, at)| *at);
    let at = memory.retry_at.filter(|retry_at| *retry_at > now).into_iter().chain(secrets).min().or(due);
    Ok(at.map_or_else(Action::await_change, |at| Action::requeue(until(at, now) + Duration::from_millis(10))))
}

/// Whether a credential was the cause, and the Secrets are others now. They are looked at when that is due.
async fn has_new_secret(build: &ImageBuild, memory: &mut Memory, context: &Context, now: Timestamp) -> bool {
    let Some((known, at)) = &mut memory.secrets else { return false };
    if *at > now {
        return false;
    }
    *at = now.checked_add(SECRETS).unwrap_or(now);
    let namespace = build.namespace().unwrap_or_default();
    let versions = references::secret_versions(context, &namespace, &build.spec).await;
    versions.is_ok_and(|versions| versions != *known)
}

fn hash_of(names: &[String]) -> String {
    hex(&Sha256::digest(names.join("\0")))
}

/// Whether a run is of what is written now, whatever has been committed or pushed since.
fn is_of(run: &ImageBuildRunSpec, spec_hash: &str, written: &str) -> bool {
    run.input_hash == input_hash(spec_hash, run.commit.as_deref(), &run.resolved)
        && hash_of(&resolve::written(&run.build)) == written
}

fn is_active(run: &ImageBuildRun) -> bool {
    !run.status.as_ref().is_some_and(|status| status.phase.is_final())
}

/// What is remembered, or, for an operator that has just started, what the newest run tells. Then the next look is spread
/// over its interval, so that a restart does not ask every Git server at once.
fn recall(build: &ImageBuild, runs: &[Arc<ImageBuildRun>], context: &Context, now: Timestamp) -> Memory {
    let uid = build.uid().unwrap_or_default();
    let mut memory = context.image_builds.get(&uid);
    let hash = trim::written(build);
    let written = hash_of(&resolve::written(&build.spec));
    if memory.spec_hash != hash {
        memory = Memory { spec_hash: hash, written: written.clone(), ..Memory::default() };
        let newest = runs.iter().max_by_key(|run| run.spec.number).map(|run| &run.spec);
        let same = newest.filter(|run| is_of(run, &memory.spec_hash, &written));
        if let Some(run) = same {
            let source = run.commit.clone().map(|commit| git::Resolved { commit, ref_name: run.reference.clone() });
            memory.found = Some(Found { source, names: run.resolved.clone() });
            let spread = uid.bytes().fold(0_i64, |sum, byte| (sum * 31 + i64::from(byte)) % 240);
            memory.looked_at = now.checked_sub(k8s_openapi::jiff::SignedDuration::from_secs(spread)).ok();
        }
    } else if memory.generation != build.metadata.generation {
        // What does not count as input may still mend a fault, such as another secretRef.
        memory.retry_at = None;
        memory.failures = 0;
    }
    if memory.written != written {
        // Another ref names another commit.
        memory.found = None;
        memory.written = written;
    }
    memory.generation = build.metadata.generation;
    memory
}

/// The ImageBuild with what its copy leaves out. None: it has changed since.
async fn unchanged(build: &ImageBuild, context: &Context) -> Result<Option<ImageBuild>, kube::Error> {
    let is_same =
        |found: &ImageBuild| found.metadata.generation == build.metadata.generation && rebuild(found) == rebuild(build);
    Ok(whole(&context.client, build).await?.filter(is_same))
}

/// The status of an ImageBuild where its copy, or that of a run, leaves out some of what it shows. None: it has changed since.
async fn whole_status(
    observed: &status::Observed<'_>,
    context: &Context,
    now: Timestamp,
) -> Result<Option<ImageBuildStatus>, kube::Error> {
    let status::Observed { build, runs, fault, held_back } = observed;
    let _in_memory = context.large.acquire().await;
    let Some(build) = unchanged(build, context).await? else { return Ok(None) };
    let mut runs = runs.to_vec();
    for number in status::shown(&runs) {
        let run = &mut runs[number];
        if !trim::has_whole_status(&**run) {
            // It is gone: what is not whole is not written.
            let Some(whole) = whole(&context.client, &**run).await? else { return Ok(None) };
            *run = Arc::new(whole);
        }
    }
    let observed = status::Observed { build: &build, runs: &runs, fault: *fault, held_back: *held_back };
    Ok(Some(status::status(&observed, now)))
}

/// The value of the annotation that asks for a rebuild, as far as it counts.
#[must_use]
pub fn rebuild(build: &ImageBuild) -> Option<&str> {
    build.annotations().get(REBUILD_ANNOTATION).map(|value| trim::beginning(value))
}

/// The runs of an ImageBuild, as one look at the copy shows them.
struct Runs<'a> {
    /// Its own.
    own: &'a [Arc<ImageBuildRun>],
    /// Those that have its name, of a former ImageBuild too.
    named: &'a [Arc<ImageBuildRun>],
    /// The newest of its own.
    newest: Option<&'a ImageBuildRun>,
    /// Whether that goes on.
    active: bool,
}

/// Looks up what the spec names if that is due, and makes a run if the input has changed or the cache is too old.
async fn advance(
    build: &Arc<ImageBuild>,
    runs: &Runs<'_>,
    memory: &mut Memory,
    context: &Context,
    now: Timestamp,
) -> Result<Option<ImageBuildRun>, Error> {
    let Runs { own, named, newest, active } = *runs;
    if trim::is_too_large(build) {
        let message = format!(
            "the spec is larger than the operator works on ({} KiB, counting {} bytes for each element, without files, \
             arguments, labels and annotations): name fewer contexts, copies, tags or Secrets",
            trim::LARGEST >> 10,
            trim::ELEMENT
        );
        return Err(references::Error::from(Fault::user(Reason::SpecTooLarge, message)).into());
    }
    let namespace = build.namespace().unwrap_or_default();
    let pool = pool(context, &namespace, build.spec.pool.as_deref()).map_err(references::Error::from)?;
    let due = memory.looked_at.and_then(|looked_at| plan::next_look(build, looked_at)).is_some_and(|at| at <= now);
    let since = age::cache_since(build.status.as_ref().and_then(|status| status.cache_since.as_ref()), own);
    let aged = !active && memory.fresh_at(build, since.as_ref(), own).is_some_and(|at| at <= now);
    let mut read = dereference::Read::default();
    // A new commit does not stop a build that runs; it is looked for when that has ended.
    if memory.found.is_none() || (due && !active) || aged {
        let found;
        (found, read) = look(context, build, &pool, memory.found.as_ref()).await?;
        memory.found = Some(found);
        memory.looked_at = Some(now);
    }
    let mut found = memory.found.clone().unwrap_or_default();
    found.names = with_image_builds(context, build, &found.names, !active).map_err(references::Error::from)?;
    memory.found = Some(found.clone());
    let commit = found.source.as_ref().map(|source| source.commit.as_str());
    let content_hash = input_hash(&trim::content(build), commit, &found.names);
    let input_hash = input_hash(&memory.spec_hash, commit, &found.names);
    // A number that is recorded and not there: its run was removed by hand, or is not in the copy yet.
    let recorded = build.status.as_ref().and_then(|status| status.run.as_deref());
    let number = plan::recorded_number(&build.name_any(), recorded);
    let newest = newest.filter(|run| number.is_none_or(|number| number <= run.spec.number));
    let known = newest
        .map(|run| run.spec.input_hash.as_str())
        .or(build.status.as_ref().and_then(|status| status.input_hash.as_deref()));
    if known == Some(input_hash.as_str()) && !aged {
        match newest.and_then(|run| Some((run, plan::cure(run)?))) {
            Some((failed, Cure::Credential)) => {
                let versions = references::secret_versions(context, &namespace, &build.spec).await?;
                if !plan::credential_changed(failed, &versions) {
                    return Ok(None);
                }
            }
            Some((failed, Cure::Time)) if plan::successor_at(failed).is_some_and(|at| at > now) => return Ok(None),
            // Whether the tag has been given up, and the registry answers again, is asked below, before another run is made.
            Some((_, Cure::Tag | Cure::Time)) => {}
            None => return Ok(None),
        }
    }
    let platforms = plan::platforms(build.spec.platforms.as_deref(), &context.settings.default_platforms)
        .map_err(references::Error::from)?;
    plan::served(&platforms, &pool).map_err(references::Error::from)?;
    archives(&build.spec, &pool).map_err(references::Error::from)?;
    let number = plan::next_number(&build.name_any(), recorded, named);
    check_tags(context, build, &found, &platforms, number, now).map_err(references::Error::from)?;
    check(context, build, &pool, read).await?;
    let fresh = age::too_old(build, since.as_ref(), now);
    let copy_of = plan::copy_of(build, own, &platforms, &content_hash).filter(|_| !fresh);
    let same = newest.filter(|run| run.spec.input_hash == input_hash);
    let failed_before = same.and_then(plan::failed_in_a_row);
    let mut input = apply::Input { input_hash, content_hash, found, platforms, fresh, failed_before, copy_of };
    let is_whole = trim::has_whole_spec(&**build) && (input.copy_of.is_none() || trim::has_whole_status(&**build));
    let in_memory = if is_whole { None } else { Some(context.large.acquire().await) };
    let run = if is_whole {
        apply::run(build, number, input, now)
    } else {
        // Another change is on its way, and wakes this again.
        let Some(whole) = unchanged(build, context).await? else { return Ok(None) };
        let image = whole.status.as_ref().and_then(|status| status.image.clone());
        input.copy_of = input.copy_of.and_then(|copied| image.filter(|image| image.digest == copied.digest));
        input.platforms = plan::platforms(whole.spec.platforms.as_deref(), &context.settings.default_platforms)
            .map_err(references::Error::from)?;
        apply::run(&whole, number, input, now)
    };
    let run = apply::create(&context.client, run).await?;
    drop(in_memory);
    memory.fresh_at = Some(now).filter(|_| fresh).or(memory.fresh_at);
    info!(run = run.name_any(), commit = run.spec.commit, "run made");
    let source = run.spec.commit.as_deref().map_or_else(String::new, |commit| format!(" of commit {commit}"));
    context.event(
        &**build,
        EventType::Normal,
        Reason::RunCreated.as_str(),
        &format!("made {}{source}", run.name_any()),
    );
    Ok(Some(run))
}

/// Whether another ImageBuild has a tag that the next run would move, or one that its cache would be written to.
fn check_tags(
    context: &Context,
    build: &ImageBuild,
    found: &Found,
    platforms: &[PlatformSpec],
    number: u64,
    now: Timestamp,
) -> Result<(), Fault> {
    let source = found.source.as_ref();
    let values = Values {
        reference: source.and_then(|source| source.ref_name.as_deref()),
        commit: source.map(|source| source.commit.as_str()),
        created: now,
        number,
    };
    let mut wanted = ownership::wanted(&build.spec, values)?;
    wanted.extend(ownership::of_cache(&build.spec, platforms.iter().map(|platform| platform.name.as_str())));
    let (uid, namespace) = (build.uid().unwrap_or_default(), build.namespace().unwrap_or_default());
    tags::check(context, &wanted, Asker { uid: &uid, namespace: &namespace, claimed_at: None })
}

/// Stops runs that a newer one has taken the place of, and trims the history.
async fn tidy(build: &ImageBuild, runs: &[Arc<ImageBuildRun>], context: &Context) -> Result<(), Error> {
    let newest = runs.iter().map(|run| run.spec.number).max();
    for run in runs {
        if Some(run.spec.number) != newest && is_active(run) && !run.spec.cancel {
            apply::cancel(&context.client, run).await?;
        }
    }
    let surplus = plan::to_trim(runs, build.spec.history.as_ref(), Timestamp::now());
    for run in surplus.into_iter().filter(|run| unreadable(&**run).is_none()) {
        apply::remove(&context.client, &run).await?;
    }
    Ok(())
}

/// An Event where a condition got another reason worth telling.
fn tell(build: &ImageBuild, status: &ImageBuildStatus, context: &Context) {
    for kind in ["Ready", status::TAG_MOVED] {
        let Some(condition) = find(&status.conditions, kind) else { continue };
        let former = build.status.as_ref().and_then(|former| find(&former.conditions, kind));
        if former.is_some_and(|former| former.reason == condition.reason && former.message == condition.message) {
            continue;
        }
        let of = match condition.status.as_str() {
            "True" if kind == "Ready" => EventType::Normal,
            "True" | "False" => EventType::Warning,
            _ => continue,
        };
        context.event(build, of, &condition.reason, &condition.message);
    }
}
