//! Which servers are away, and who asks whether they are back; pure.
//!
//! After some failures in a row everybody waits but one, who asks in the place of all. Where that fails, it is another one's
//! turn, after a delay that grows with the outage. Where it does not, all go on.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Asker, Server};
use crate::context::backoff;
use crate::delay::spread;

/// After how many failures in a row a server counts as away.
pub(super) const FAILURES: u32 = 3;
/// Failures that are further apart are none in a row.
const IN_A_ROW: Duration = Duration::from_mins(2);
/// The longest delay between two questions at the beginning of an outage: it ends this late at most.
const LONGEST_AT_FIRST: Duration = Duration::from_secs(10);
/// The longest of one that lasts: a name that is misspelled is away for ever.
const LONGEST: Duration = Duration::from_mins(5);
/// What share of an outage's length passes between two questions, once it lasts.
const SHARE: u32 = 60;
/// How long it may take who was woken to ask. Then it is another one's turn: its object may be gone.
const WOKEN: Duration = Duration::from_secs(10);
/// How long who asks may take. Then another one may ask beside it.
const ASKING: Duration = Duration::from_mins(1);
/// For how long a server for which nobody waits is remembered.
const FORGOTTEN: Duration = Duration::from_mins(10);
/// How many servers are remembered: their names are tenants' words. Of one more nothing is remembered, so that everybody
/// asks it.
const SERVERS: usize = 1000;
/// How many wait for one. One more comes again by itself.
const WAITING: usize = 10_000;

/// What is known of a server that has failed.
#[derive(Debug)]
struct Circuit {
    /// How often in a row.
    failures: u32,
    failed_at: Instant,
    /// Where it counts as away.
    away: Option<Away>,
}

#[derive(Debug)]
struct Away {
    since: Instant,
    /// When it may be asked next.
    next: Instant,
    /// Who asks, or was woken to, and until when nobody else does.
    asking: Option<(Asker, Instant)>,
    /// The namespace of who asked last: it is another one's turn, lest one that always fails keeps its neighbours waiting.
    last: String,
    /// Those who wait, with a number that grows from one to the next.
    waiting: HashMap<Asker, u64>,
    numbers: u64,
}

impl Away {
    /// Who asks next: of the namespace after the last one's who waits longest.
    fn next_of_waiting(&self) -> Option<Asker> {
        let order =
            |(asker, number): &(&Asker, &u64)| (asker.namespace <= self.last, asker.namespace.clone(), **number);
        self.waiting.iter().min_by_key(order).map(|(asker, _)| asker.clone())
    }

    fn wait(&mut self, asker: &Asker) {
        if self.waiting.len() < WAITING && !self.waiting.contains_key(asker) {
            self.numbers += 1;
            self.waiting.insert(asker.clone(), self.numbers);
        }
    }

    fn is_asked(&self, now: Instant) -> bool {
        self.asking.as_ref().is_some_and(|(_, until)| *until > now)
    }

    fn is_asked_by(&self, asker: &Asker) -> bool {
        self.asking.as_ref().is_some_and(|(who, _)| who == asker)
    }

    fn begin(&mut self, asker: &Asker, until: Instant) {
        self.last.clone_from(&asker.namespace);
        self.waiting.remove(asker);
        self.asking = Some((asker.clone(), until));
    }
}

/// What is to be done for those who wait for a server.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// This one asks now.
    Wake(Asker),
    /// Nothing yet.
    Wait,
    /// Nothing any more.
    Over,
}

/// The servers that have failed.
#[derive(Debug, Default)]
pub(super) struct Circuits {
    servers: HashMap<Server, Circuit>,
}

impl Circuits {
    /// Whether the server may be asked. Who may not is told when it is his turn.
    pub(super) fn enter(&mut self, server: &Server, asker: &Asker, now: Instant) -> bool {
        let Some(away) = self.away(server) else { return true };
        if away.is_asked_by(asker) || (!away.is_asked(now) && away.next <= now) {
            away.begin(asker, now + ASKING);
            return true;
        }
        away.wait(asker);
        false
    }

    /// Whether this one waits for the server.
    pub(super) fn is_away_for(&self, server: &Server, asker: &Asker) -> bool {
        let away = self.servers.get(server).and_then(|circuit| circuit.away.as_ref());
        away.is_some_and(|away| !away.is_asked_by(asker))
    }

    /// The server gave no answer, or failed; it may have asked to be left alone for so long. Whether it has gone away by that.
    pub(super) fn failed(&mut self, server: &Server, asker: &Asker, asked: Option<Duration>, now: Instant) -> bool {
        if !self.servers.contains_key(server) && !self.make_room() {
            return false;
        }
        let circuit = self.servers.entry(server.clone()).or_insert(Circuit { failures: 0, failed_at: now, away: None });
        if circuit.away.is_none() && now.duration_since(circuit.failed_at) > IN_A_ROW {
            circuit.failures = 0;
        }
        let goes = circuit.away.is_none();
        circuit.failed_at = now;
        // Those that had begun before it went away tell nothing new.
        if goes || circuit.away.as_ref().is_some_and(|away| away.is_asked_by(asker)) {
            circuit.failures = circuit.failures.saturating_add(1);
        }
        if circuit.failures < FAILURES {
            return false;
        }
        let away = circuit.away.get_or_insert_with(|| Away {
            since: now,
            next: now,
            asking: None,
            last: asker.namespace.clone(),
            waiting: HashMap::new(),
            numbers: 0,
        });
        if goes || away.is_asked_by(asker) {
            away.asking = None;
            let at_first = backoff(circuit.failures - FAILURES + 1).min(LONGEST_AT_FIRST);
            let lasting = (now.duration_since(away.since) / SHARE).min(LONGEST);
            let delay = spread(at_first.max(lasting), (server, circuit.failures));
            away.next = now + delay.max(asked.unwrap_or_default());
        }
        away.wait(asker);
        goes
    }

    /// The server did what it was asked for. Those who waited for it go on.
    pub(super) fn answered(&mut self, server: &Server) -> Vec<Asker> {
        let circuit = self.servers.remove(server);
        circuit.and_then(|circuit| circuit.away).map_or_else(Vec::new, |away| {
            let mut waiting: Vec<_> = away.waiting.into_iter().collect();
            waiting.sort_by_key(|(_, number)| *number);
            waiting.into_iter().map(|(asker, _)| asker).collect()
        })
    }

    /// What was asked says nothing of the server, or the question was given up: another one asks.
    pub(super) fn left(&mut self, server: &Server, asker: &Asker) {
        if let Some(away) = self.away(server).filter(|away| away.is_asked_by(asker)) {
            away.asking = None;
        }
    }

    /// What is to be done for those who wait for a server; to be asked every second while it is away.
    pub(super) fn next(&mut self, server: &Server, now: Instant) -> Next {
        let Some(away) = self.away(server) else { return Next::Over };
        if away.is_asked(now) || away.next > now {
            return Next::Wait;
        }
        if let Some(asker) = away.next_of_waiting() {
            away.begin(&asker, now + WOKEN);
            return Next::Wake(asker);
        }
        if now.duration_since(away.next) < FORGOTTEN {
            return Next::Wait;
        }
        self.servers.remove(server);
        Next::Over
    }

    fn away(&mut self, server: &Server) -> Option<&mut Away> {
        self.servers.get_mut(server)?.away.as_mut()
    }

    /// Whether there is room for another server, in the place of one that has failed a while ago if need be.
    fn make_room(&mut self) -> bool {
        if self.servers.len() >= SERVERS {
            let present = self.servers.iter().filter(|(_, circuit)| circuit.away.is_none());
            let oldest = present.min_by_key(|(_, circuit)| circuit.failed_at).map(|(server, _)| server.clone());
            let Some(oldest) = oldest else { return false };
            self.servers.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests;
