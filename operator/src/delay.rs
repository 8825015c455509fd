//! How long to wait before something is tried again; pure, but for [`jittered`].

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::Duration;

use crate::context::backoff;

/// The longest delay before a run's platform is tried again.
const LONGEST_RETRY: Duration = Duration::from_mins(5);
/// The longest delay before a run follows that the infrastructure has ended.
const LONGEST_SUCCESSOR: Duration = Duration::from_mins(30);

/// Between half of a delay and all of it, so that what failed together is not tried again together. The same of the same
/// thing: whoever looks twice, and an operator that was started again, comes to the same time.
#[must_use]
pub fn spread(delay: Duration, of: impl Hash) -> Duration {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    // No more than 10 bits, so that nothing is lost on the way.
    let share = u32::try_from(hasher.finish() % 1024).unwrap_or_default();
    delay / 2 + delay / 2048 * share
}

/// `period` to 1.5 times that, by chance, so that those who wait for the same do not move in step.
#[must_use]
pub fn jittered(period: Duration) -> Duration {
    period + period.mul_f64(0.5 * fastrand::f64())
}

/// `first` after the first failure, `factor` times as long after each that follows.
fn growing(first: Duration, factor: u32, longest: Duration, failures: u32) -> Duration {
    let times = factor.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(times).min(longest)
}

/// Before a platform is tried again in its run, after so many attempts: 2 to 4 s, 10 to 20, 50 to 100, then up to 5 minutes.
/// Three retries outlast an outage of a minute.
#[must_use]
pub fn retry(attempts: u32, of: impl Hash) -> Duration {
    spread(growing(Duration::from_secs(4), 5, LONGEST_RETRY, attempts), of)
}

/// Before a run is followed by another, after so many in a row that the infrastructure has ended: 20 to 40 s, twice as long
/// after each, then up to half an hour. Whether what it needs is there is asked before it is made.
#[must_use]
pub fn successor(failed_runs: u32, of: impl Hash) -> Duration {
    spread(growing(Duration::from_secs(40), 2, LONGEST_SUCCESSOR, failed_runs), of)
}

/// Before a server is asked again, which may have asked to wait for so long: doubling from a second to five minutes, and never
/// sooner than it asks.
#[must_use]
pub fn of_server(failures: u32, asked: Option<Duration>, of: impl Hash) -> Duration {
    let usual = spread(backoff(failures), &of);
    asked.map_or(usual, |asked| usual.max(asked + spread(asked.min(Duration::from_secs(10)), of)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_grow_to_their_longest() {
        let minutes = |minutes: u64| 60 * minutes;
        for (delay, failures, least, most) in [
            (retry as fn(u32, u32) -> Duration, 1, 2, 4),
            (retry, 2, 10, 20),
            (retry, 3, 50, 100),
            (retry, 4, 150, minutes(5)),
            (retry, u32::MAX, 150, minutes(5)),
            (successor, 1, 20, 40),
            (successor, 4, 160, 320),
            (successor, 7, minutes(15), minutes(30)),
            (successor, u32::MAX, minutes(15), minutes(30)),
        ] {
            let (least, most) = (Duration::from_secs(least), Duration::from_secs(most));
            let all: Vec<_> = (0..500).map(|of| delay(failures, of)).collect();
            let (first, last) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
            assert!(least <= first && last <= most, "{failures}: {first:?} to {last:?}");
            assert!(first < least * 11 / 10 && last > most * 9 / 10, "all of it is used: {first:?} to {last:?}");
        }
    }

    #[test]
    fn three_retries_outlast_a_minute() {
        for of in 0..1000 {
            let all: Duration = (1..=3).map(|attempts| retry(attempts, of)).sum();
            assert!(all > Duration::from_mins(1), "{all:?}");
        }
    }

    proptest! {
        #[test]
        fn a_delay_is_bounded_and_the_same_of_the_same(failures: u32, of: String, asked in proptest::option::of(0_u64..3600)) {
            let asked = asked.map(Duration::from_secs);
            prop_assert_eq!(retry(failures, &of), retry(failures, &of));
            prop_assert!(retry(failures, &of) <= LONGEST_RETRY);
            prop_assert!(successor(failures, &of) <= LONGEST_SUCCESSOR);
            let delay = of_server(failures, asked, &of);
            prop_assert!(delay >= asked.unwrap_or_default());
            prop_assert!(delay <= Duration::from_mins(5).max(asked.unwrap_or_default() + Duration::from_secs(10)));
        }

        /// What failed at once is spread evenly: of a thousand, no tenth of the time has more than a fifth.
        #[test]
        fn what_failed_together_is_spread(failures in 1_u32..10, seed: u64) {
            let all: Vec<_> = (0..1000_u32).map(|of| retry(failures, (seed, of))).collect();
            let (least, most) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
            let tenth_of = most.saturating_sub(least) / 10;
            for tenth in 0..10 {
                let from = least + tenth_of * tenth;
                let in_it = all.iter().filter(|delay| **delay >= from && **delay < from + tenth_of).count();
                prop_assert!(in_it < 200, "{} in {}", in_it, tenth);
            }
        }
    }
}
