//! A job's events, in bounded memory, to be read from any sequence number.

use std::collections::VecDeque;

use kiln_agent_proto::{Event, Log, event::Kind};

/// The most lines of output that one job keeps in memory.
const MOST_LINES: usize = 10_000;
/// The most bytes of output that one job keeps in memory.
const MOST_BYTES: usize = 4 << 20;

/// The events of one job, ascending by sequence number.
///
/// Where a job writes more lines than are kept, the oldest give way to one line that says so and bears the sequence
/// number of the last that is gone; phases and steps are all kept.
#[derive(Debug)]
pub struct Events {
    kept: VecDeque<Event>,
    last: u64,
    lines: usize,
    bytes: usize,
    most_lines: usize,
    dropped: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self::with_limit(MOST_LINES)
    }
}

impl Events {
    fn with_limit(most_lines: usize) -> Self {
        Self { kept: VecDeque::new(), last: 0, lines: 0, bytes: 0, most_lines, dropped: 0 }
    }

    /// The events of a job that ended under an earlier agent: its outcome alone.
    #[must_use]
    pub fn ended(outcome: Event) -> Self {
        let mut events = Self { last: outcome.sequence, ..Self::default() };
        events.kept.push_back(outcome);
        events
    }

    /// Adds an event with the next sequence number, and gives it back.
    pub fn push(&mut self, time: prost_types::Timestamp, kind: Kind) -> &Event {
        if let Kind::Log(log) = &kind {
            if self.lines >= self.most_lines || self.bytes + log.line.len() > MOST_BYTES && self.lines > 1 {
                self.drop_lines();
            }
            self.lines += 1;
            self.bytes += log.line.len();
        }
        self.last += 1;
        self.kept.push_back(Event { sequence: self.last, time: Some(time), kind: Some(kind) });
        &self.kept[self.kept.len() - 1]
    }

    /// Up to `most` events whose sequence number is above `after`.
    #[must_use]
    pub fn after(&self, after: u64, most: usize) -> Vec<Event> {
        let start = self.kept.partition_point(|event| event.sequence <= after);
        self.kept.iter().skip(start).take(most).cloned().collect()
    }

    /// The outcome, once there is one.
    #[must_use]
    pub fn outcome(&self) -> Option<&Event> {
        self.kept.back().filter(|event| is_outcome(event))
    }

    /// Puts the older half of the lines aside, so that this is done seldom.
    fn drop_lines(&mut self) {
        let mut spare = self.lines / 2 + 1;
        let mut kept = VecDeque::with_capacity(self.kept.len());
        for mut event in self.kept.drain(..) {
            if spare == 0 || !matches!(event.kind, Some(Kind::Log(_))) {
                kept.push_back(event);
                continue;
            }
            spare -= 1;
            self.dropped += 1;
            if let Some(Kind::Log(log)) = &event.kind {
                self.bytes -= log.line.len();
            }
            if spare == 0 {
                // An earlier marker is among those dropped: it counted as a line.
                let line = format!(
                    "({} earlier lines of output are not kept here; the builder's log of this job has them)",
                    self.dropped
                );
                self.bytes += line.len();
                event.kind = Some(Kind::Log(Log { step_id: String::new(), line }));
                kept.push_back(event);
            } else {
                self.lines -= 1;
            }
        }
        self.kept = kept;
    }
}

/// Whether `event` is a job's last one.
#[must_use]
pub fn is_outcome(event: &Event) -> bool {
    matches!(event.kind, Some(Kind::Result(_) | Kind::Failure(_)))
}

#[cfg(test)]
mod tests {
    use kiln_agent_proto::{Phase, Result as JobResult};
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> Kind {
        Kind::Log(Log { step_id: "s".to_owned(), line: text.to_owned() })
    }

    #[test]
    fn reads_on_from_any_sequence() {
        let mut events = Events::default();
        for number in 0..5 {
            events.push(prost_types::Timestamp::default(), line(&number.to_string()));
        }
        events.push(prost_types::Timestamp::default(), Kind::Result(JobResult::default()));
        let sequences = |after, most| events.after(after, most).iter().map(|event| event.sequence).collect::<Vec<_>>();
        assert_eq!(sequences(0, 100), [1, 2, 3, 4, 5, 6]);
        assert_eq!(sequences(4, 100), [5, 6]);
        assert_eq!(sequences(0, 2), [1, 2]);
        assert_eq!(sequences(6, 100), [0_u64; 0]);
        assert_eq!(events.outcome().map(|event| event.sequence), Some(6));
    }

    #[test]
    fn long_lines_are_bounded_together() {
        let mut events = Events::default();
        for _ in 0..5000 {
            events.push(prost_types::Timestamp::default(), line(&"x".repeat(4096)));
        }
        let kept = events.after(0, usize::MAX);
        let bytes: usize =
            kept.iter().map(|event| if let Some(Kind::Log(log)) = &event.kind { log.line.len() } else { 0 }).sum();
        assert_eq!(bytes, events.bytes);
        assert!((MOST_BYTES / 4..=MOST_BYTES).contains(&bytes), "{bytes}");
        assert_eq!(kept.last().map(|event| event.sequence), Some(5000));
    }

    proptest! {
        #[test]
        fn stays_bounded_and_ascending(kinds in proptest::collection::vec(any::<bool>(), 0..300)) {
            let mut events = Events::with_limit(20);
            for is_line in &kinds {
                events.push(prost_types::Timestamp::default(), if *is_line { line("x") } else { Kind::Phase(Phase::Building.into()) });
            }
            let kept = events.after(0, usize::MAX);
            prop_assert!(kept.is_sorted_by(|a, b| a.sequence < b.sequence));
            prop_assert_eq!(kept.last().map_or(0, |event| event.sequence), kinds.len() as u64);
            let lines = kept.iter().filter(|event| matches!(event.kind, Some(Kind::Log(_)))).count();
            prop_assert!(lines <= 20);
            prop_assert_eq!(kept.len() - lines, kinds.iter().filter(|is_line| !**is_line).count());
        }
    }
}
