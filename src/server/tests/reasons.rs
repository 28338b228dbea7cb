//! The reason of a decision: which permission was asked for, which rule of which role granted it, or that none did.

use std::sync::Arc;

use serde_json::json;

use super::fixture::*;
use crate::api::{McpRole, RoleKind, RoleReference};
use crate::audit::{Event, Kind, Outcome};

/// Gives the first key the role `team`, which inherits and has a wildcard.
fn team(fixture: &Fixture) {
    fixture.publish(|objects| {
        let role = |name: &str, spec: serde_json::Value| {
            let role = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
                "metadata": {"name": name, "namespace": "agents"}, "spec": spec});
            (name.to_owned(), Arc::new(serde_json::from_value::<McpRole>(role).expect("a role")))
        };
        objects.roles.extend([
            role("base", json!({"permissions": ["k8s:pods:*"]})),
            role("team", json!({"permissions": ["k8s:*:scale"], "inherits": ["base"]})),
        ]);
        let key = Arc::make_mut(objects.keys.get_mut("ci").expect("there"));
        key.spec.roles = vec![RoleReference { kind: RoleKind::McpRole, name: "team".to_owned() }];
    });
}

/// What is on record of who decided: the permission, the rule, and the role.
fn decision(event: &Event) -> (Option<&str>, Option<&str>, Option<&str>) {
    let said = |name: &str| event.metadata.get(name).map(String::as_str);
    (said("permission"), said("rule"), event.reason.as_deref())
}

#[tokio::test]
async fn a_permit_is_on_record_with_the_permission_the_rule_and_the_role() {
    let fixture = start().await;
    fixture.call("echo", json!({"namespace": "agents"})).await;
    let event = fixture.last_event();
    assert_eq!((event.event_type, event.result), (Kind::McpRequest, Outcome::Success));
    let literal = (Some("k8s:pods:list"), Some("k8s:pods:list"), Some("McpRole agents/viewer"));
    assert_eq!(decision(&event), literal);
    team(&fixture);
    fixture.call("echo", json!({"namespace": "agents"})).await;
    let (permission, rule, role) =
        (Some("k8s:pods:list"), "k8s:pods:* inherited from base", "McpRole agents/team");
    assert_eq!(decision(&fixture.last_event()), (permission, Some(rule), Some(role)));
    fixture.call("write", json!({"namespace": "agents"})).await;
    let events = fixture.events();
    assert_eq!((events[0].result, events[1].result), (Outcome::Success, Outcome::Intent));
    for event in &events[..2] {
        let wildcard = (Some("k8s:deployments:scale"), Some("k8s:*:scale"), Some("McpRole agents/team"));
        assert_eq!(decision(event), wildcard, "of the intent too");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_denial_is_on_record_with_the_permission_and_that_no_rule_granted_it() {
    let fixture = start().await;
    team(&fixture);
    let reply = fixture.call("write", json!({"namespace": "kube-system"})).await.json();
    let outside = "permission denied: k8s:deployments:scale in namespace \"kube-system\"";
    assert_eq!(reply["result"]["content"][0]["text"], outside, "callers are told no more");
    let event = fixture.last_event();
    assert_eq!((event.event_type, event.result), (Kind::Authorization, Outcome::Denied));
    assert_eq!(decision(&event), (Some("k8s:deployments:scale"), None, Some("permission")));
    let message = "none of 1 roles grants k8s:deployments:scale in namespace \"kube-system\"";
    assert_eq!(event.error_message.as_deref(), Some(message));
    assert_eq!((event.tool.as_deref(), event.namespace.as_deref()), (Some("write"), Some("kube-system")));
    fixture.stop().await;
}

#[tokio::test]
async fn a_decision_is_on_record_with_its_outcome_and_its_time_even_when_the_tool_fails() {
    let fixture = start().await;
    team(&fixture);
    for tool in ["panic", "slow", "large"] {
        fixture.call(tool, json!({"namespace": "agents"})).await;
        let event = fixture.last_event();
        assert_eq!((event.result, event.user.as_str()), (Outcome::Failure, "ci-bot"), "{tool}");
        assert_eq!(event.metadata["rule"], "k8s:pods:* inherited from base", "{tool}");
        assert!(tool != "slow" || event.duration_ms >= 400, "{event:?}");
    }
    fixture.stop().await;
}
