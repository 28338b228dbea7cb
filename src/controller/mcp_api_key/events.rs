//! What people are told of a key: what happened to its generations, and conditions that they should look at.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::runtime::events::EventType;

use crate::api::conditions::{EXPIRING, REASON_ROTATION_BLOCKED, ROTATING};
use crate::api::{KeyGeneration, KeyState, McpApiKey};
use crate::controller::Context;
use crate::k8s::event;

/// Something that happened to a key.
#[derive(Debug, PartialEq, Eq)]
struct Happening {
    is_warning: bool,
    reason: &'static str,
    action: &'static str,
    note: String,
}

/// Tells what a write of the generations meant.
pub(super) async fn tell_generations(
    context: &Context,
    key: &McpApiKey,
    before: &[KeyGeneration],
    after: &[KeyGeneration],
) {
    for happening in happenings(before, after) {
        let type_ = if happening.is_warning { EventType::Warning } else { EventType::Normal };
        let Happening { reason, action, note, .. } = happening;
        event::publish(&context.recorder, &key.object_ref(&()), type_, reason, action.to_owned(), note).await;
    }
}

/// Tells of conditions that changed. That nothing rotates or expires is nobody's concern.
pub(super) async fn tell_conditions(
    context: &Context,
    key: &McpApiKey,
    before: &[Condition],
    after: &[Condition],
) {
    let object = key.object_ref(&());
    for condition in event::changed(before, after) {
        match condition.type_.as_str() {
            ROTATING if condition.reason != REASON_ROTATION_BLOCKED => {}
            EXPIRING if condition.status != "True" => {}
            EXPIRING => {
                let action = condition.reason.clone();
                let note = condition.message.clone();
                event::publish(&context.recorder, &object, EventType::Warning, "KeyExpiring", action, note)
                    .await;
            }
            _ => event::tell(&context.recorder, &object, condition).await,
        }
    }
}

/// What the difference between two lists of generations means.
fn happenings(before: &[KeyGeneration], after: &[KeyGeneration]) -> Vec<Happening> {
    let state = |keys: &[KeyGeneration], id: &str| {
        keys.iter().find(|generation| generation.id == id).map(|generation| generation.state)
    };
    let was_published = |id: &str| matches!(state(before, id), Some(KeyState::Active | KeyState::Retiring));
    let old = before.iter().find(|generation| generation.state == KeyState::Active);
    let mut found = Vec::new();
    for generation in after {
        let (id, was) = (&generation.id, state(before, &generation.id));
        if generation.state == KeyState::Active && was != Some(KeyState::Active) {
            found.push(taken_up(id, old, after));
        }
        if generation.state == KeyState::Revoked && was_published(id) {
            found.push(Happening {
                is_warning: true,
                reason: "KeyRevoked",
                action: "Revoke",
                note: format!("key {id} was revoked and is accepted no more"),
            });
        }
        if generation.state == KeyState::Expired && was == Some(KeyState::Active) {
            let is_replaced = after.iter().any(|other| other.state == KeyState::Active);
            if !is_replaced {
                found.push(Happening {
                    is_warning: true,
                    reason: "KeyExpired",
                    action: "Expire",
                    note: format!("key {id} has ended and is accepted no more"),
                });
            }
        }
    }
    found
}

fn taken_up(id: &str, old: Option<&KeyGeneration>, after: &[KeyGeneration]) -> Happening {
    let Some(old) = old else {
        let note = format!("key {id} is in use");
        return Happening { is_warning: false, reason: "KeyCreated", action: "Create", note };
    };
    let end =
        after.iter().find(|generation| generation.id == old.id && generation.state == KeyState::Retiring);
    let end = match end.and_then(|generation| generation.not_after.as_ref()) {
        Some(end) => format!("is accepted until {}", end.0),
        None => "has ended".to_owned(),
    };
    let note = format!("key {id} takes the place of {}, which {end}", old.id);
    Happening { is_warning: false, reason: "KeyRotated", action: "Rotate", note }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn key(id: &str, state: KeyState) -> KeyGeneration {
        KeyGeneration {
            id: id.into(),
            digest: "sha256:00".into(),
            created_at: Time(Timestamp::UNIX_EPOCH),
            not_after: (state == KeyState::Retiring).then_some(Time(Timestamp::UNIX_EPOCH)),
            state,
        }
    }

    fn told(before: &[KeyGeneration], after: &[KeyGeneration]) -> Vec<(&'static str, String)> {
        happenings(before, after).into_iter().map(|told| (told.reason, told.note)).collect()
    }

    #[test]
    fn each_turn_of_a_life_is_told_by_its_name() {
        use KeyState::{Active, Expired, Pending, Retiring, Revoked};
        let created = told(&[key("a", Pending)], &[key("a", Active)]);
        assert_eq!(created, [("KeyCreated", "key a is in use".to_owned())]);
        let rotated = told(&[key("a", Active), key("b", Pending)], &[key("a", Retiring), key("b", Active)]);
        let note = "key b takes the place of a, which is accepted until 1970-01-01T00:00:00Z";
        assert_eq!(rotated, [("KeyRotated", note.to_owned())]);
        let at_once = told(&[key("a", Active), key("b", Pending)], &[key("a", Expired), key("b", Active)]);
        assert_eq!(at_once[0].1, "key b takes the place of a, which has ended");
        assert_eq!(at_once.len(), 1);
        assert_eq!(told(&[key("a", Active)], &[key("a", Revoked)])[0].0, "KeyRevoked");
        assert_eq!(told(&[key("a", Active)], &[key("a", Expired)])[0].0, "KeyExpired");
    }

    #[test]
    fn what_nobody_has_seen_ends_without_a_word() {
        use KeyState::{Active, Expired, Pending, Retiring, Revoked};
        assert!(told(&[key("a", Pending)], &[key("a", Revoked)]).is_empty());
        assert!(
            told(&[key("a", Retiring), key("b", Active)], &[key("a", Expired), key("b", Active)]).is_empty()
        );
        assert!(told(&[key("a", Active)], &[key("a", Active), key("b", Pending)]).is_empty());
    }
}
