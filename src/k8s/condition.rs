//! The one function that makes a condition. Pure: time is an argument.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Most characters of a message: enough for a person, and far from the limit of the API server.
const MAX_MESSAGE: usize = 1024;

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// `True`, `False`, or `Unknown` where it cannot be said.
    pub(crate) status: Option<bool>,
    /// Reason, from `api::conditions`.
    pub(crate) reason: &'static str,
    /// Words for a person, naming the object or field at fault.
    pub(crate) message: String,
}

impl Finding {
    /// It is so.
    pub(crate) fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: Some(true), reason, message: message.into() }
    }

    /// It is not so.
    pub(crate) fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: Some(false), reason, message: message.into() }
    }

    /// It cannot be said.
    pub(crate) fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: None, reason, message: message.into() }
    }

    /// Makes the condition. Its transition time is the previous one's as long as the status stays the same.
    pub(crate) fn into_condition(
        self,
        type_: &str,
        previous: &[Condition],
        generation: Option<i64>,
        now: Timestamp,
    ) -> Condition {
        let status = match self.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let same = previous.iter().find(|condition| condition.type_ == type_ && condition.status == status);
        // The API server keeps whole seconds, so a finer time would make every comparison fail.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.chars().take(MAX_MESSAGE).collect(),
            observed_generation: generation,
            last_transition_time: same.map_or(Time(now), |condition| condition.last_transition_time.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_does() {
        let first = Finding::no("Progressing", "0 of 1").into_condition(
            "Ready",
            &[],
            Some(1),
            at("2026-01-01T00:00:00.5Z"),
        );
        assert_eq!(first.last_transition_time, Time(at("2026-01-01T00:00:00Z")));
        let second = Finding::no("ApplyFailing", "no").into_condition(
            "Ready",
            std::slice::from_ref(&first),
            Some(2),
            at("2026-01-02T00:00:00Z"),
        );
        assert_eq!(second.last_transition_time, first.last_transition_time);
        assert_eq!((second.reason.as_str(), second.observed_generation), ("ApplyFailing", Some(2)));
        let third =
            Finding::yes("Ready", "").into_condition("Ready", &[second], Some(2), at("2026-01-03T00:00:00Z"));
        assert_eq!(third.last_transition_time, Time(at("2026-01-03T00:00:00Z")));
    }
}
