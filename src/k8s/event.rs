//! Kubernetes Events: a notification of what an administrator should see. The condition is the record.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType, Recorder};

/// Most characters of a note.
const MAX_NOTE: usize = 1000;

/// The conditions of which a change is told: those that are new, or whose status or reason is another.
pub(crate) fn changed<'a>(before: &[Condition], after: &'a [Condition]) -> Vec<&'a Condition> {
    let told = |condition: &Condition| {
        before.iter().any(|old| {
            (&old.type_, &old.status, &old.reason) == (&condition.type_, &condition.status, &condition.reason)
        })
    };
    after.iter().filter(|condition| !told(condition)).collect()
}

/// Tells of a condition.
pub(crate) async fn tell(recorder: &Recorder, object: &ObjectReference, condition: &Condition) {
    let type_ = if condition.status == "False" { EventType::Warning } else { EventType::Normal };
    let note = format!("{}={}: {}", condition.type_, condition.status, condition.message);
    let action = format!("{}{}", condition.type_, condition.status);
    publish(recorder, object, type_, &condition.reason, action, note).await;
}

/// Tells of something that happened. What cannot be told is only logged: an Event must never stop a reconcile.
pub(crate) async fn publish(
    recorder: &Recorder,
    object: &ObjectReference,
    type_: EventType,
    reason: &str,
    action: String,
    note: String,
) {
    // The API server takes 1 KiB.
    let note = note.chars().take(MAX_NOTE).collect();
    let event = Event { type_, reason: reason.to_owned(), note: Some(note), action, secondary: None };
    if let Err(error) = recorder.publish(&event, object).await {
        tracing::debug!(%error, "Event not published");
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::k8s::condition::Finding;

    #[test]
    fn a_new_message_alone_is_not_told() {
        let make = |finding: Finding| finding.into_condition("Ready", &[], None, Timestamp::UNIX_EPOCH);
        let before = [make(Finding::no("Progressing", "0 of 2"))];
        assert!(changed(&before, &[make(Finding::no("Progressing", "1 of 2"))]).is_empty());
        assert_eq!(changed(&before, &[make(Finding::yes("Ready", ""))]).len(), 1);
        assert_eq!(changed(&[], &before).len(), 1);
    }
}
