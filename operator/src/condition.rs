//! Conditions as kstatus reads them; pure.
//!
//! `Ready` says whether the image of the current input is there, `Reconciling` and `Stalled` appear only while true:
//! <https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The longest message that is written, in bytes: a CRD's Condition allows 32768, but the API server refuses Events of more
/// than 1024, and both say the same. What is cut off stands in `status.failure`.
const MESSAGE: usize = 1000;

/// A condition before it is dated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// Such as `Ready`.
    pub kind: &'static str,
    /// `Some(true)`: True, `Some(false)`: False, `None`: Unknown.
    pub status: Option<bool>,
    /// A reason of [`crate::reason`], or an agent's.
    pub reason: String,
    /// What a person reads.
    pub message: String,
}

/// The wanted conditions; a date changes only where the status that it dates does.
#[must_use]
pub fn date(wanted: Vec<Wanted>, former: &[Condition], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    wanted
        .into_iter()
        .map(|Wanted { kind, status, reason, message }| {
            let status = match status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let since = former
                .iter()
                .find(|condition| condition.type_ == kind && condition.status == status)
                .map_or_else(|| Time(seconds(now)), |condition| condition.last_transition_time.clone());
            Condition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason,
                message: cut(message),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

/// The message as conditions and Events hold it.
#[must_use]
pub fn cut(message: String) -> String {
    if message.len() <= MESSAGE {
        return message;
    }
    let room = MESSAGE - '…'.len_utf8();
    let end = message.char_indices().map(|(at, _)| at).take_while(|at| *at <= room).last().unwrap_or(0);
    format!("{}…", &message[..end])
}

/// Cut to the second, as the API server stores it: what is written and what is read back compare equal.
#[must_use]
pub fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The condition of this type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(status: Option<bool>, reason: &str) -> Vec<Wanted> {
        vec![Wanted { kind: "Ready", status, reason: reason.into(), message: String::new() }]
    }

    #[test]
    fn long_messages_are_cut_where_a_character_ends() {
        for (message, length) in [("m".repeat(1000), 1000), ("m".repeat(1001), 1000), ("ä".repeat(600), 999)] {
            let once = cut(message);
            assert_eq!((once.len(), cut(once.clone())), (length, once));
        }
    }

    #[test]
    fn the_date_changes_with_the_status_alone() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = date(wanted(Some(false), "Building"), &[], Some(1), at(10));
        let second = date(wanted(Some(false), "Publishing"), &first, Some(1), at(20));
        assert_eq!(second[0].last_transition_time, Time(at(10)));
        assert_eq!(second[0].reason, "Publishing");
        let third = date(wanted(Some(true), "Succeeded"), &second, Some(1), at(30));
        assert_eq!(third[0].last_transition_time, Time(at(30)));
    }
}
