//! Has buildkitd drop what is above the cache's limits, while no build runs.
//!
//! BuildKit's own collector runs a second after a build and once a minute, whatever else runs. It counts the bytes of each
//! cache mount that has changed and takes hold of it meanwhile; a step that wants it then is given an empty one
//! (`cache/manager.go`, `DiskUsage`; `solver/llbsolver/mounts/mount.go`). So it is switched off, and the agent collects.

use std::{sync::Arc, time::Duration};

use rustix::fs::statvfs;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    buildkit::{BuildkitError, Builds},
    jobs::Registry,
};

/// How long no build has run before the cache is looked at.
const QUIET: Duration = Duration::from_secs(1);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_mins(1);
/// A builder that is never quiet has its cache looked at beside the builds.
const OVERDUE: Duration = Duration::from_mins(10);
/// How long one look may take, with what is dropped for it.
const DEADLINE: Duration = Duration::from_mins(5);

/// The limits of a cache, in bytes. 0: no limit of its kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// What the cache may hold whatever else is on the volume.
    pub reserved: u64,
    /// The most that it may hold.
    pub most: u64,
    /// What is to stay free on the volume.
    pub free: u64,
}

impl Limits {
    /// Whether a cache of `used` bytes, on a volume with `left` free ones, is to drop something.
    #[must_use]
    pub fn exceeded(self, used: u64, left: u64) -> bool {
        used > self.reserved && (self.most > 0 && used > self.most || left < self.free)
    }
}

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
    let used = buildkit.cache_with_mounts().await?;
    // The agent's directory is on the cache's volume.
    let left = statvfs(&config.state_dir).map_or(u64::MAX, |volume| volume.f_bavail.saturating_mul(volume.f_frsize));
    // To prune has BuildKit forget the configurations of base images, so that the next build asks for them again.
    if config.cache_limits().exceeded(used, left) {
        tracing::info!(used, left, "the cache drops what was not used for longest");
        buildkit.prune(config.cache_limits()).await?;
    }
    Ok(())
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
    fn what_is_too_much() {
        let limits = Limits { reserved: 10, most: 80, free: 10 };
        for (used, left, expected) in
            [(80, 20, false), (81, 20, true), (50, 9, true), (10, 0, false), (11, 0, true), (0, 0, false)]
        {
            assert_eq!(limits.exceeded(used, left), expected, "{used} used, {left} left");
        }
        assert!(!Limits::default().exceeded(u64::MAX, 0), "no limits");
    }

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
