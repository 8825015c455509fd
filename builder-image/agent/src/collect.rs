//! Has buildkitd drop what is above the cache's limits, while no build runs.
//!
//! BuildKit's own collector runs a second after a build and once a minute, whatever else runs. It counts the bytes of each
//! cache mount that has changed and takes hold of it meanwhile; a step that wants it then is given an empty one
//! (`cache/manager.go`, `DiskUsage`; `solver/llbsolver/mounts/mount.go`). So it is switched off, and the agent collects. That is
//! also the only way in which the disk gets back what failed steps and writable bind mounts left (`GarbageCollect` in
//! `Prune`).

use std::{sync::Arc, time::Duration};

use rustix::fs::statvfs;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    buildkit::{BuildkitError, Builds, Volume},
    config::Config,
    jobs::Registry,
};

/// How long no build has run before the cache is looked at.
const QUIET: Duration = Duration::from_secs(1);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_mins(1);
/// A builder that is never quiet has its cache looked at beside the builds.
const OVERDUE: Duration = Duration::from_mins(10);
/// For how long BuildKit keeps the configurations of base images that it asked for (`util/imageutil/config.go`).
const FORGETS: Duration = Duration::from_mins(5);
/// How long one look may take, with what is dropped for it.
const DEADLINE: Duration = Duration::from_mins(5);

/// Keeps the cache within its limits, for ever.
pub async fn run(registry: Arc<Registry>) {
    after_builds(registry.buildkit().builds(), || look(Arc::clone(&registry))).await;
}

async fn look(registry: Arc<Registry>) {
    match timeout(DEADLINE, keep_within_limits(&registry)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = crate::chain(&error), "cannot keep the cache within its limits"),
        Err(_) => tracing::warn!("keeping the cache within its limits takes long"),
    }
}

async fn keep_within_limits(registry: &Registry) -> Result<(), BuildkitError> {
    let (config, buildkit) = (registry.config(), registry.buildkit());
    let limits = config.cache_limits();
    let used = buildkit.cache_with_mounts().await?;
    // To collect has BuildKit forget the configurations of base images that it has just asked for, so that the next build
    // asks for them again. After a while it forgets them anyway.
    if buildkit.has_garbage(FORGETS).await || limits.lacks(volume(config)) {
        buildkit.collect_garbage().await?;
    }
    let volume = volume(config);
    if limits.exceeded(used, volume) {
        tracing::info!(used, free = volume.free, "the cache drops what was not used for longest");
        buildkit.prune(limits, volume).await?;
    }
    Ok(())
}

/// Makes room on a full volume: first what nobody can use any more goes, and only where that is not enough what could be.
pub async fn make_room(registry: &Registry) -> Result<(), BuildkitError> {
    let (config, buildkit) = (registry.config(), registry.buildkit());
    buildkit.collect_garbage().await?;
    let volume = volume(config);
    if config.cache_limits().lacks(volume) { buildkit.prune(config.cache_limits(), volume).await } else { Ok(()) }
}

/// The volume that the agent's directory shares with the cache.
fn volume(config: &Config) -> Volume {
    statvfs(&config.state_dir).map_or(Volume { free: u64::MAX, kept_for_root: 0 }, |volume| Volume {
        free: volume.f_bavail.saturating_mul(volume.f_frsize),
        kept_for_root: volume.f_bfree.saturating_sub(volume.f_bavail).saturating_mul(volume.f_frsize),
    })
}

/// Calls `look` when it is due, and gives it up where a build begins.
async fn after_builds<F: Future<Output = ()>>(builds: &Builds, look: impl Fn() -> F) {
    let (mut running, mut seen) = (builds.running(), Seen::default());
    loop {
        let due = seen.due();
        let wait = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = running.changed() => match changed {
                Ok(()) => seen.builds(*running.borrow_and_update(), Instant::now()),
                Err(_) => return,
            },
            () = wait => {
                let looked = if seen.running == 0 {
                    builds.between(look()).await.is_some()
                } else {
                    look().await;
                    true
                };
                if looked {
                    seen.looked(Instant::now());
                }
            }
        }
    }
}

/// What was seen of the builds.
#[derive(Debug, Default)]
struct Seen {
    /// How many run.
    running: usize,
    /// When their number last changed.
    changed: Option<Instant>,
    /// When the first one began that no look was after.
    built: Option<Instant>,
    /// When the last look was.
    looked: Option<Instant>,
}

impl Seen {
    fn builds(&mut self, running: usize, now: Instant) {
        (self.running, self.changed) = (running, Some(now));
        self.built.get_or_insert(now);
    }

    fn looked(&mut self, now: Instant) {
        self.looked = Some(now);
        self.built = (self.running > 0).then_some(now);
    }

    /// When to look next; `None` until a build begins.
    fn due(&self) -> Option<Instant> {
        let due = if self.running == 0 { self.built.and(self.changed)? + QUIET } else { self.built? + OVERDUE };
        Some(self.looked.map_or(due, |looked| due.max(looked + PAUSE)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn the_cache_is_looked_at_when_builds_have_ended() {
        let start = Instant::now();
        let mut seen = Seen::default();
        assert_eq!(seen.due(), None, "nothing was built");

        seen.builds(1, start);
        seen.builds(2, start + QUIET);
        assert_eq!(seen.due(), Some(start + OVERDUE), "it may never be quiet");
        let ended = start + QUIET * 5;
        seen.builds(0, ended);
        assert_eq!(seen.due(), Some(ended + QUIET));

        let looked = ended + QUIET;
        seen.looked(looked);
        assert_eq!(seen.due(), None, "nothing was built since");
        seen.builds(0, looked + QUIET);
        assert_eq!(seen.due(), Some(looked + PAUSE), "one came and went, and the last look was a moment ago");

        seen.builds(1, looked + PAUSE);
        let beside = looked + QUIET + OVERDUE;
        assert_eq!(seen.due(), Some(beside), "since the first one began");
        seen.looked(beside);
        assert_eq!(seen.due(), Some(beside + OVERDUE), "it still runs");
    }

    #[tokio::test]
    async fn the_look_is_made_and_a_build_that_begins_has_it_given_up() {
        let (builds, begun, ended) = (Builds::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let (first, second) = (Notify::new(), Notify::new());
        let look = || async {
            if begun.fetch_add(1, Ordering::Relaxed) == 0 {
                first.notify_one();
                std::future::pending::<()>().await;
            }
            ended.fetch_add(1, Ordering::Relaxed);
            second.notify_one();
        };
        let story = async {
            let building = builds.begin();
            tokio::task::yield_now().await;
            drop(building);
            first.notified().await;
            let building = builds.begin();
            // The other half of this task sees it.
            tokio::task::yield_now().await;
            drop(building);
            second.notified().await;
        };
        tokio::select! { biased; () = after_builds(&builds, look) => unreachable!(), () = story => {} }
        assert_eq!((begun.into_inner(), ended.into_inner()), (2, 1));
    }
}
