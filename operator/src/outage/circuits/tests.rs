use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::outage::Kind;

fn server(name: &str) -> Server {
    Server { kind: Kind::Registry, address: format!("https://{name}") }
}

fn asker(namespace: &str, name: &str) -> Asker {
    Asker { namespace: namespace.to_owned(), name: name.to_owned(), is_run: false }
}

const SECOND: Duration = Duration::from_secs(1);

/// A server that has just gone away, for askers of namespace `a`.
fn away(now: Instant) -> (Circuits, Server) {
    let (mut circuits, server) = (Circuits::default(), server("r.example"));
    for number in 1..=FAILURES {
        let asker = asker("a", &number.to_string());
        assert!(circuits.enter(&server, &asker, now));
        assert_eq!(circuits.failed(&server, &asker, None, now), number == FAILURES);
    }
    for number in 1..=FAILURES {
        assert!(!circuits.enter(&server, &asker("a", &number.to_string()), now));
    }
    (circuits, server)
}

#[test]
fn after_some_failures_one_asks_and_the_others_wait() {
    let now = Instant::now();
    let (mut circuits, server) = away(now);
    let (first, new) = (asker("a", "1"), asker("b", "new"));
    assert!(!circuits.enter(&server, &new, now), "it is not asked at once");
    assert!(circuits.enter(&self::server("other.example"), &new, now), "others are");
    assert_eq!(circuits.next(&server, now), Next::Wait);
    let later = now + 2 * SECOND;
    assert_eq!(circuits.next(&server, later), Next::Wake(new.clone()), "it is another namespace's turn");
    assert!(circuits.is_away_for(&server, &first) && !circuits.is_away_for(&server, &new));
    assert!(!circuits.enter(&server, &first, later));
    assert!(circuits.enter(&server, &new, later) && circuits.enter(&server, &new, later), "as often as it wants");
    assert!(!circuits.failed(&server, &new, None, later), "it had gone away before");
    assert!(circuits.is_away_for(&server, &new));
    let Next::Wake(next) = circuits.next(&server, later + 4 * SECOND) else { panic!("{circuits:?}") };
    assert_eq!(next, asker("a", "3"), "who waits longest");
    // All go on, but for who asked.
    let waited: Vec<_> = circuits.answered(&server).into_iter().map(|asker| asker.name).collect();
    assert_eq!(waited, ["1", "2", "new"], "in the order in which they came");
    assert!(circuits.enter(&server, &asker("c", "c"), later) && !circuits.is_away_for(&server, &first));
    assert_eq!(circuits.next(&server, later), Next::Over);
}

#[test]
fn what_does_not_count() {
    let now = Instant::now();
    let (mut circuits, server, one) = (Circuits::default(), server("r.example"), asker("a", "1"));
    let mut failed = |at, answers: bool| {
        if answers {
            circuits.answered(&server);
        }
        circuits.failed(&server, &one, None, now + at * SECOND)
    };
    assert!(!failed(0, false) && !failed(1, false), "there are too few");
    assert!(!failed(2, true) && !failed(3, false), "it had answered between");
    assert!(!failed(130, false) && !failed(131, false), "they are too far apart");
    assert!(failed(132, false));
}

#[test]
fn who_does_not_ask_though_it_is_his_turn_holds_nobody_up() {
    let now = Instant::now() + 5 * SECOND;
    let (mut circuits, server) = away(now.checked_sub(5 * SECOND).unwrap());
    let mut woken = |at: u32| match circuits.next(&server, now + at * SECOND) {
        Next::Wake(asker) => asker.name,
        other => format!("{other:?}"),
    };
    assert_eq!([woken(0), woken(5), woken(10)], ["3", "Wait", "1"]);
    // He gave up, or was told something that says nothing of the server.
    let second = asker("a", "1");
    assert!(circuits.enter(&server, &second, now + 11 * SECOND));
    circuits.left(&server, &second);
    assert_eq!(circuits.next(&server, now + 11 * SECOND), Next::Wake(asker("a", "2")));
    // Nobody is left: whoever comes asks, and without anybody it is forgotten.
    assert_eq!(circuits.next(&server, now + 30 * SECOND), Next::Wait);
    assert!(circuits.enter(&server, &asker("z", "z"), now + 30 * SECOND));
    circuits.left(&server, &asker("z", "z"));
    assert_eq!(circuits.next(&server, now + FORGOTTEN + 60 * SECOND), Next::Over);
    assert!(circuits.servers.is_empty());
}

#[test]
fn a_server_that_asks_to_be_left_alone_is() {
    let now = Instant::now();
    let (mut circuits, server) = away(now);
    let asker = asker("a", "1");
    assert!(circuits.enter(&server, &asker, now + 2 * SECOND));
    circuits.failed(&server, &asker, Some(Duration::from_mins(20)), now + 2 * SECOND);
    assert_eq!(circuits.next(&server, now + Duration::from_mins(20)), Next::Wait);
    assert!(matches!(circuits.next(&server, now + Duration::from_mins(21)), Next::Wake(_)));
}

/// Their names are tenants' words.
#[test]
fn what_is_remembered_is_bounded() {
    let now = Instant::now();
    let mut circuits = Circuits::default();
    for number in 0..3 * SERVERS {
        circuits.failed(&server(&number.to_string()), &asker("a", "1"), None, now);
    }
    assert_eq!(circuits.servers.len(), SERVERS);
    let (mut circuits, server) = away(now);
    for number in 0..2 * WAITING {
        assert!(!circuits.enter(&server, &asker("a", &number.to_string()), now));
    }
    assert_eq!(circuits.away(&server).unwrap().waiting.len(), WAITING);
    // One that is away is not forgotten for names that are new.
    for number in 0..2 * SERVERS {
        for _ in 0..FAILURES {
            circuits.failed(&self::server(&number.to_string()), &asker("a", "1"), None, now);
        }
    }
    assert_eq!(circuits.servers.len(), SERVERS);
    assert!(circuits.is_away_for(&server, &asker("b", "b")));
}

/// A thousand builds of twenty tenants want something of a server that is away for so long: how often it is asked until it is
/// back, and how long it then takes until one has found out. Each comes by itself as well, as it does without a fault.
fn outage(length: Duration) -> (u32, Duration) {
    let start = Instant::now();
    let (mut circuits, server) = (Circuits::default(), server("r.example"));
    let all: Vec<_> = (0..1000).map(|of| asker(&format!("team-{}", of % 20), &of.to_string())).collect();
    let mut asked = 0;
    for second in 0.. {
        let now = start + second * SECOND;
        let mut comes = Vec::new();
        if second % 300 == 0 {
            comes.extend(all.iter().cloned());
        }
        if let Next::Wake(asker) = circuits.next(&server, now) {
            comes.push(asker);
        }
        for asker in comes {
            if !circuits.enter(&server, &asker, now) {
                continue;
            }
            if second * SECOND >= length {
                // Of those whose failures showed that it is away, some have a delay of their own.
                assert!(circuits.answered(&server).len() > 1000 - FAILURES as usize - 1, "all others go on");
                return (asked, (second * SECOND).saturating_sub(length));
            }
            asked += 1;
            circuits.failed(&server, &asker, None, now);
        }
    }
    unreachable!()
}

#[test]
fn an_outage_is_asked_about_by_one() {
    for (minutes, most_asked, most_late) in [(1, 20, 11), (10, 120, 13), (60, 250, 75), (24 * 60, 700, 301)] {
        let (asked, late) = outage(Duration::from_mins(minutes));
        assert!(asked <= most_asked, "{asked} times in {minutes} minutes");
        assert!(late <= most_late * SECOND, "{late:?} after {minutes} minutes");
    }
}

proptest! {
    /// Whatever comes: while it is away at most one asks, unless it takes too long; each namespace gets its turn; and it is
    /// always found out that the server is back.
    #[test]
    fn one_at_a_time(steps in proptest::collection::vec((0_u8..5, 0_u8..6, 0_u64..4), 0..200)) {
        let mut now = Instant::now();
        let (mut circuits, server) = away(now);
        let mut asking: BTreeMap<Asker, Instant> = BTreeMap::new();
        for (what, who, seconds) in steps {
            now += Duration::from_secs(seconds);
            let asker = asker(&format!("team-{}", who % 3), &who.to_string());
            match what {
                0 | 1 if circuits.enter(&server, &asker, now) => {
                    asking.retain(|_, since| now.duration_since(*since) < ASKING);
                    asking.insert(asker, now);
                    prop_assert_eq!(asking.len(), 1);
                }
                2 if asking.remove(&asker).is_some() => {
                    circuits.failed(&server, &asker, None, now);
                }
                3 if asking.remove(&asker).is_some() => circuits.left(&server, &asker),
                4 => drop(circuits.next(&server, now)),
                _ => {}
            }
        }
        // Who may ask need not wait.
        let all = (0..6).map(|who| asker(&format!("team-{}", who % 3), &who.to_string()));
        let waiting: Vec<_> = all.filter(|asker| !circuits.enter(&server, asker, now)).collect();
        let mut turns = Vec::new();
        for _ in 0..200 {
            now += SECOND;
            if let Next::Wake(asker) = circuits.next(&server, now) {
                turns.push(asker.clone());
                prop_assert!(circuits.enter(&server, &asker, now));
                circuits.failed(&server, &asker, None, now);
            }
        }
        prop_assert!(turns.len() >= 12, "{turns:?}");
        for asker in waiting {
            let of_namespace = |turn: &Asker| turn.namespace == asker.namespace;
            prop_assert!(turns[turns.len() - 4..].iter().any(of_namespace), "each namespace: {turns:?}");
            prop_assert!(turns[turns.len() - 12..].contains(&asker), "each of a namespace: {turns:?}");
        }
    }
}
