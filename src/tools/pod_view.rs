//! One Pod as callers see it: what helps to understand its state, and nothing that may hold a secret.
//!
//! Left out on purpose: environment, commands and arguments (secrets are often written there), annotations (the
//! last applied configuration repeats all of it), the last words of an ended container (a piece of its log, which is
//! another permission), and managed fields (noise).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::Serialize;

use super::table::plain;

/// Most characters of a text that the cluster wrote.
const MAX_TEXT: usize = 512;

/// A Pod without what may hold secrets.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodView {
    /// Namespace of the Pod.
    namespace: String,
    /// Name of the Pod.
    name: String,
    /// Phase of its life: Pending, Running, Succeeded, Failed or Unknown.
    phase: String,
    /// Why it is in this phase, where the cluster says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Node that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Address of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_ip: Option<String>,
    /// Addresses of the Pod.
    #[serde(rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
    pod_ips: Vec<String>,
    /// Quality of service: Guaranteed, Burstable or BestEffort.
    #[serde(skip_serializing_if = "Option::is_none")]
    qos_class: Option<String>,
    /// ServiceAccount it runs as.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<String>,
    /// The controller that owns it, such as `ReplicaSet/web-6d4cf56db6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// When it was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    /// When its deletion was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleting_since: Option<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    /// Conditions.
    conditions: Vec<ConditionView>,
    /// Containers that prepare the Pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<ContainerView>,
    /// Containers.
    containers: Vec<ContainerView>,
}

/// A condition of a Pod.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ConditionView {
    /// What it is about.
    #[serde(rename = "type")]
    type_: String,
    /// True, False or Unknown.
    status: String,
    /// Why, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Why, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

/// A container of a Pod.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ContainerView {
    /// Name of the container.
    name: String,
    /// Image it was asked to run.
    image: String,
    /// Whether its readiness probe passes.
    ready: bool,
    /// How often it was restarted.
    restarts: i32,
    /// What it does now.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<StateView>,
    /// How it ended the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_state: Option<StateView>,
}

/// A state of a container.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct StateView {
    /// waiting, running or terminated.
    state: &'static str,
    /// Why, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Why it waits, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Exit code, where it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// Since when it runs, or when it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

impl PodView {
    /// Takes from a Pod what callers may see.
    pub(super) fn of(pod: Pod) -> Self {
        let (metadata, spec) = (pod.metadata, pod.spec.unwrap_or_default());
        let status = pod.status.unwrap_or_default();
        let owner = metadata.owner_references.unwrap_or_default();
        let owner = owner.into_iter().find(|owner| owner.controller == Some(true));
        Self {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            phase: status.phase.unwrap_or_else(|| "Unknown".to_owned()),
            reason: status.reason,
            message: status.message.map(|message| plain(&message, MAX_TEXT)),
            node: spec.node_name,
            host_ip: status.host_ip,
            pod_ips: status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).collect(),
            qos_class: status.qos_class,
            service_account: spec.service_account_name,
            owner: owner.map(|owner| format!("{}/{}", owner.kind, owner.name)),
            created: metadata.creation_timestamp.map(time),
            deleting_since: metadata.deletion_timestamp.map(time),
            labels: metadata.labels.unwrap_or_default(),
            conditions: status.conditions.unwrap_or_default().into_iter().map(ConditionView::of).collect(),
            init_containers: containers(
                spec.init_containers.unwrap_or_default(),
                status.init_container_statuses,
            ),
            containers: containers(spec.containers, status.container_statuses),
        }
    }

    /// The view in lines, for the model.
    pub(super) fn as_text(&self) -> String {
        let Self { namespace, name, phase, .. } = self;
        let mut lines = vec![format!("Pod {name:?} in namespace {namespace:?}: {phase}")];
        let ips = (!self.pod_ips.is_empty()).then(|| self.pod_ips.join(", "));
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        for (label, value) in [
            ("reason", self.reason.clone()),
            ("message", self.message.clone()),
            ("deleting since", self.deleting_since.clone()),
            ("node", self.node.clone()),
            ("addresses", ips),
            ("owner", self.owner.clone()),
            ("service account", self.service_account.clone()),
            ("quality of service", self.qos_class.clone()),
            ("created", self.created.clone()),
            ("labels", (!labels.is_empty()).then(|| labels.join(", "))),
        ] {
            lines.extend(value.map(|value| format!("{label}: {value}")));
        }
        lines.push("conditions:".to_owned());
        lines.extend(self.conditions.iter().map(ConditionView::as_line));
        for (title, containers) in
            [("init containers:", &self.init_containers), ("containers:", &self.containers)]
        {
            if !containers.is_empty() {
                lines.push(title.to_owned());
                lines.extend(containers.iter().flat_map(ContainerView::as_lines));
            }
        }
        lines.join("\n") + "\n"
    }
}

fn time(time: Time) -> String {
    time.0.to_string()
}

fn containers(specs: Vec<Container>, statuses: Option<Vec<ContainerStatus>>) -> Vec<ContainerView> {
    let mut statuses = statuses.unwrap_or_default();
    let view = |spec: Container| {
        let status = statuses.iter().position(|status| status.name == spec.name);
        ContainerView::of(spec, status.map(|at| statuses.swap_remove(at)))
    };
    specs.into_iter().map(view).collect()
}

impl ConditionView {
    fn of(condition: PodCondition) -> Self {
        Self {
            type_: condition.type_,
            status: condition.status,
            reason: condition.reason,
            message: condition.message.map(|message| plain(&message, MAX_TEXT)),
            since: condition.last_transition_time.map(time),
        }
    }

    fn as_line(&self) -> String {
        let mut line = format!("  {} {}", self.type_, self.status);
        for part in [&self.since, &self.reason, &self.message].into_iter().flatten() {
            line.push_str("  ");
            line.push_str(part);
        }
        line
    }
}

impl ContainerView {
    fn of(spec: Container, status: Option<ContainerStatus>) -> Self {
        let image = spec.image.unwrap_or_default();
        let Some(status) = status else {
            return Self { name: spec.name, image, ready: false, restarts: 0, state: None, last_state: None };
        };
        Self {
            name: spec.name,
            image,
            ready: status.ready,
            restarts: status.restart_count,
            state: status.state.and_then(StateView::of),
            last_state: status.last_state.and_then(StateView::of),
        }
    }

    fn as_lines(&self) -> Vec<String> {
        let Self { name, image, restarts, .. } = self;
        let ready = if self.ready { "ready" } else { "not ready" };
        let mut lines = vec![format!("  {name}: {ready}, {restarts} restarts, image {image}")];
        for (label, state) in [("state", &self.state), ("last state", &self.last_state)] {
            lines.extend(state.as_ref().map(|state| format!("    {label}: {}", state.as_line())));
        }
        lines
    }
}

impl StateView {
    fn of(state: ContainerState) -> Option<Self> {
        if let Some(waiting) = state.waiting {
            let message = waiting.message.map(|message| plain(&message, MAX_TEXT));
            return Some(Self { state: "waiting", reason: waiting.reason, message, ..Self::default() });
        }
        if let Some(running) = state.running {
            let since = running.started_at.map(time);
            return Some(Self { state: "running", since, ..Self::default() });
        }
        let ended = state.terminated?;
        Some(Self {
            state: "terminated",
            reason: ended.reason,
            message: None,
            exit_code: Some(ended.exit_code),
            since: ended.finished_at.map(time),
        })
    }

    fn as_line(&self) -> String {
        let mut line = self.state.to_owned();
        let exit_code = self.exit_code.map(|code| format!("exit code {code}"));
        for part in [&self.since, &self.reason, &exit_code, &self.message].into_iter().flatten() {
            line.push_str("  ");
            line.push_str(part);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view() -> PodView {
        let pod = json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "labels": {"app": "web"}, "uid": "u",
                "annotations": {"note": "hunter2-annotation"},
                "managedFields": [{"manager": "hunter2-manager"}],
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "1",
                    "controller": true}],
            },
            "spec": {"nodeName": "worker", "serviceAccountName": "default", "containers": [{
                "name": "app", "image": "web:1", "command": ["run", "--password=hunter2-command"],
                "args": ["hunter2-args"], "env": [{"name": "PASSWORD", "value": "hunter2-env"}],
            }]},
            "status": {
                "phase": "Running", "podIPs": [{"ip": "10.0.0.7"}], "qosClass": "Burstable",
                "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady",
                    "message": "containers with unready status: [app]",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "containerStatuses": [{
                    "name": "app", "image": "web:1", "imageID": "sha256:0", "ready": false, "restartCount": 4,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                    "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "hunter2-log",
                        "finishedAt": "2026-01-01T00:00:00Z"}},
                }],
            },
        });
        PodView::of(serde_json::from_value(pod).expect("a Pod"))
    }

    #[test]
    fn a_pod_is_shown_with_the_state_of_its_containers() {
        assert_eq!(
            view().as_text(),
            "Pod \"web-1\" in namespace \"shop\": Running\n\
             node: worker\n\
             addresses: 10.0.0.7\n\
             owner: ReplicaSet/web\n\
             service account: default\n\
             quality of service: Burstable\n\
             labels: app=web\n\
             conditions:\n\
             \x20 Ready False  2026-01-01T00:00:00Z  ContainersNotReady  containers with unready status: [app]\n\
             containers:\n\
             \x20 app: not ready, 4 restarts, image web:1\n\
             \x20   state: waiting  CrashLoopBackOff  back-off 40s\n\
             \x20   last state: terminated  2026-01-01T00:00:00Z  Error  exit code 1\n"
        );
    }

    #[test]
    fn nothing_is_shown_that_may_hold_a_secret() {
        let shown = serde_json::to_string(&view()).unwrap() + &view().as_text();
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
