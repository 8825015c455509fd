//! How many requests are on their way at once: more as long as answers come soon, half as many when they do not. The same
//! rule keeps TCP from filling a network that is full.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most: what an API server on one core answers in a quarter of a second.
const MOST: usize = 32;
/// The fewest: one that does not come back does not stop all.
const LEAST: usize = 2;
/// An answer is slow that takes longer.
const SLOW: Duration = Duration::from_secs(1);

/// How many may be on their way; pure.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// A fraction counts towards the next one.
    limit: f64,
    /// When there were last made fewer.
    slowed: Option<Instant>,
}

impl Pace {
    fn new() -> Self {
        Self { limit: to_float(MOST), slowed: None }
    }

    fn limit(self) -> usize {
        // Between LEAST and MOST.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between LEAST and MOST")]
        let whole = self.limit as usize;
        whole
    }

    /// After an answer to what was sent at `sent`.
    fn after(&mut self, soon: bool, sent: Instant, now: Instant) {
        if soon {
            self.limit = (self.limit + 1.0 / self.limit).min(to_float(MOST));
        } else if self.slowed.is_none_or(|slowed| sent >= slowed) {
            // What was on its way already is slow for the same cause.
            self.limit = (self.limit / 2.0).max(to_float(LEAST));
            self.slowed = Some(now);
        }
    }
}

fn to_float(few: usize) -> f64 {
    u8::try_from(few).map_or(f64::from(u8::MAX), f64::from)
}

/// Places for requests.
pub struct Room {
    free: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    pace: Pace,
    /// How many places there are, those that are taken too.
    places: usize,
}

impl Room {
    pub(super) fn new() -> Arc<Self> {
        let state = Mutex::new(State { pace: Pace::new(), places: MOST });
        Arc::new(Self { free: Arc::new(Semaphore::new(MOST)), state })
    }

    /// A place, once there is one; whoever waits longest has the next.
    pub(super) async fn place(self: &Arc<Self>) -> Place {
        let permit = self.free.clone().acquire_owned().await.ok();
        Place { room: self.clone(), permit, since: Instant::now() }
    }

    /// How many places there are now.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).places
    }
}

/// A request's place. Dropped, it is free again, and nothing is learned: whoever asked has gone.
pub struct Place {
    room: Arc<Room>,
    permit: Option<OwnedSemaphorePermit>,
    since: Instant,
}

impl Place {
    /// Gives it back. `well`: the answer was one, and not that there are too many requests.
    pub(super) fn give_back(mut self, well: bool) {
        let (permit, now) = (self.permit.take(), Instant::now());
        let mut state = self.room.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pace.after(well && now - self.since < SLOW, self.since, now);
        let limit = state.pace.limit();
        if limit > state.places {
            self.room.free.add_permits(limit - state.places);
            state.places = limit;
        } else if limit < state.places {
            let gone = self.room.free.forget_permits(state.places - limit);
            state.places -= gone;
        }
        // Those that are taken go as they are given back.
        if limit < state.places
            && let Some(permit) = permit
        {
            permit.forget();
            state.places -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_cause_counts_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new();
        assert_eq!(pace.limit(), MOST);
        for _ in 0..MOST {
            pace.after(false, at(0), at(2));
        }
        assert_eq!(pace.limit(), MOST / 2);
        pace.after(false, at(2), at(4));
        assert_eq!(pace.limit(), MOST / 4);
        for second in 5..20 {
            pace.after(false, at(second), at(second));
        }
        assert_eq!(pace.limit(), LEAST);
        for _ in 0..MOST * MOST {
            pace.after(true, at(30), at(30));
        }
        assert_eq!(pace.limit(), MOST);
    }

    proptest! {
        /// However answers come, there are as many places as the pace says once all are given back, and never none.
        #[test]
        fn places_follow_the_pace(answers in proptest::collection::vec((any::<bool>(), 1usize..40), 1..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let room = Room::new();
                for (well, at_once) in answers {
                    let mut places = Vec::new();
                    for _ in 0..at_once.min(room.free.available_permits()) {
                        places.push(room.place().await);
                    }
                    for place in places {
                        place.give_back(well);
                    }
                    let (places, limit) = (room.places(), room.state.lock().unwrap().pace.limit());
                    prop_assert_eq!(places, limit);
                    prop_assert_eq!(room.free.available_permits(), places);
                    prop_assert!((LEAST..=MOST).contains(&places));
                }
                Ok(())
            })?;
        }
    }
}
