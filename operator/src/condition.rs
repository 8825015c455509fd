//! Conditions as kstatus reads them; pure.
//!
//! `Ready` says whether the image of the current input is there, `Reconciling` and `Stalled` appear only while true:
//! <https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The longest message that is written, in characters; a CRD's Condition allows 32768, a reader far less.
const MESSAGE: usize = 2048;

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
                message: message.chars().take(MESSAGE).collect(),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
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
