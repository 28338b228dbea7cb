//! The status of a server: computed whole, after success and after failure. Pure.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;

use crate::api::conditions::{
    ACCEPTED, AVAILABLE, READY, REASON_ACCEPTED, REASON_PENDING, REASON_PROGRESSING, REASON_READY,
    SIGNING_KEYS,
};
use crate::api::{McpServer, McpServerStatus, ServerInfo, TlsStatus, names};
use crate::k8s::condition::Finding;

use super::{Problem, signing};

/// What a look at a server has found, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Whether the spec and all it refers to were found valid.
    pub(super) is_valid: bool,
    /// What works and should still be thought over, in words.
    pub(super) warnings: Vec<String>,
    /// Whether somebody else has the `ServiceAccount` that the pods would run as.
    pub(super) account_is_foreign: bool,
    /// The Deployment as it is.
    pub(super) deployment: Option<Deployment>,
    /// The certificate in use.
    pub(super) tls: Option<TlsStatus>,
    /// What the endpoint said in a handshake.
    pub(super) server_info: Option<ServerInfo>,
    /// The keys of its own tokens.
    pub(super) signing: Option<signing::Seen>,
    /// Reason and message of what is wrong with them.
    pub(super) signing_failed: Option<(&'static str, String)>,
}

/// Pods of a Deployment, as its status has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pods {
    wanted: i32,
    exist: i32,
    ready: i32,
    is_current: bool,
}

impl Pods {
    /// Counts the pods of a Deployment.
    pub(super) fn of(deployment: &Deployment) -> Self {
        let status = deployment.status.clone().unwrap_or_default();
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let exist = status.replicas.unwrap_or(0);
        let is_current = status.observed_generation >= deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) == exist;
        Self { wanted, exist, ready: status.ready_replicas.unwrap_or(0), is_current }
    }

    /// Whether all pods are there, ready, and as the template has them.
    pub(super) fn are_complete(self) -> bool {
        self.is_current && self.exist == self.wanted && self.ready == self.wanted
    }
}

/// The whole status of a server.
pub(super) fn server_status(
    server: &McpServer,
    seen: &Seen,
    result: &Result<(), Problem>,
    now: Timestamp,
) -> McpServerStatus {
    let before = server.status.clone().unwrap_or_default();
    let generation = server.metadata.generation;
    let pods = seen.deployment.as_ref().map(Pods::of);
    let condition =
        |type_: &str, finding: Finding| finding.into_condition(type_, &before.conditions, generation, now);
    let namespace = server.namespace().unwrap_or_default();
    let service = names::workload(&server.name_any());
    let path = &server.spec.transports.streamable_http.path;
    // What was not looked at this time is as it was, as long as something runs.
    let runs = pods.is_some();
    let mut conditions = vec![
        condition(ACCEPTED, accepted(seen, result)),
        condition(AVAILABLE, available(pods, result)),
        condition(READY, ready(pods, result)),
    ];
    let known = before.conditions.iter().find(|condition| condition.type_ == SIGNING_KEYS).cloned();
    conditions.extend(match (&seen.signing, &seen.signing_failed) {
        (Some(signing), _) => signing.finding.clone().map(|finding| condition(SIGNING_KEYS, finding)),
        (None, Some((reason, message))) => Some(condition(SIGNING_KEYS, Finding::no(reason, message))),
        (None, None) => known,
    });
    McpServerStatus {
        authentication: match &seen.signing {
            Some(signing) => signing.status.clone(),
            None => before.authentication.clone(),
        },
        url: Some(format!("https://{service}.{namespace}.svc:{}{path}", names::SERVICE_PORT)),
        server_info: seen.server_info.clone().or(before.server_info.filter(|_| runs)),
        replicas: pods.unwrap_or_default().exist,
        ready_replicas: pods.unwrap_or_default().ready,
        tls: seen.tls.clone().or(before.tls.filter(|_| runs)),
        observed_generation: generation,
        conditions,
    }
}

fn accepted(seen: &Seen, result: &Result<(), Problem>) -> Finding {
    match result {
        Err(Problem::Invalid(invalid)) => Finding::no(invalid.reason, &invalid.message),
        _ if seen.is_valid && !seen.warnings.is_empty() => Finding::yes(
            REASON_ACCEPTED,
            format!("the spec is valid and in use; warning: {}", seen.warnings.join("; ")),
        ),
        _ if seen.is_valid => Finding::yes(REASON_ACCEPTED, "the spec is valid and in use"),
        Err(Problem::Transient(error)) => Finding::unknown(error.reason, &error.message),
        Ok(()) => Finding::unknown(REASON_PENDING, "not looked at yet"),
    }
}

fn available(pods: Option<Pods>, result: &Result<(), Problem>) -> Finding {
    match (pods, result) {
        (Some(pods), _) if pods.ready > 0 => Finding::yes(REASON_READY, counted(pods)),
        (_, Err(problem)) => Finding::no(problem.reason(), problem.message()),
        (pods, Ok(())) => Finding::no(REASON_PROGRESSING, counted(pods.unwrap_or_default())),
    }
}

fn ready(pods: Option<Pods>, result: &Result<(), Problem>) -> Finding {
    match (result, pods) {
        (Err(problem), _) => Finding::no(problem.reason(), problem.message()),
        (Ok(()), Some(pods)) if pods.are_complete() => Finding::yes(REASON_READY, counted(pods)),
        (Ok(()), pods) => Finding::no(REASON_PROGRESSING, counted(pods.unwrap_or_default())),
    }
}

fn counted(pods: Pods) -> String {
    format!("{} of {} replicas are ready", pods.ready, pods.wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::AuthenticationStatus;
    use crate::controller::engine::Transient;
    use crate::controller::mcp_server::validate::Invalid;

    fn server() -> McpServer {
        serde_saphyr::from_str(
            "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops, namespace: agents, generation: 2}, spec: {replicas: 2}}",
        )
        .expect("a server")
    }

    fn seen(ready: i32, observed: i64) -> Seen {
        let deployment = json!({"metadata": {"name": "ops-mcp", "generation": 5}, "spec": {"replicas": 2,
            "selector": {}, "template": {}}, "status": {"replicas": 2, "updatedReplicas": 2,
            "readyReplicas": ready, "observedGeneration": observed}});
        Seen {
            is_valid: true,
            deployment: Some(serde_json::from_value(deployment).expect("a Deployment")),
            ..Seen::default()
        }
    }

    fn conditions(seen: &Seen, result: &Result<(), Problem>) -> Vec<String> {
        let status = server_status(&server(), seen, result, Timestamp::UNIX_EPOCH);
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(2)));
        status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
    }

    #[test]
    fn a_server_whose_pods_are_all_ready_is_ready() {
        assert_eq!(
            conditions(&seen(2, 5), &Ok(())),
            ["Accepted=True Accepted", "Available=True Ready", "Ready=True Ready"]
        );
        let status = server_status(&server(), &seen(2, 5), &Ok(()), Timestamp::UNIX_EPOCH);
        assert_eq!(status.url.as_deref(), Some("https://ops-mcp.agents.svc:443/mcp"));
        assert_eq!((status.replicas, status.ready_replicas), (2, 2));
    }

    #[test]
    fn a_roll_out_that_is_under_way_is_progress() {
        for seen in [seen(1, 5), seen(2, 4)] {
            assert_eq!(
                conditions(&seen, &Ok(())),
                ["Accepted=True Accepted", "Available=True Ready", "Ready=False Progressing"]
            );
        }
    }

    #[test]
    fn an_invalid_server_says_so_three_times_until_something_runs() {
        let invalid = || {
            Err(Problem::Invalid(Invalid { reason: "Invalid", message: "spec.tls.hosts[0]: no".to_owned() }))
        };
        assert_eq!(
            conditions(&Seen::default(), &invalid()),
            ["Accepted=False Invalid", "Available=False Invalid", "Ready=False Invalid"]
        );
        assert_eq!(conditions(&seen(2, 5), &invalid())[1], "Available=True Ready");
    }

    #[test]
    fn a_write_that_fails_is_told_and_leaves_the_spec_accepted() {
        let failing = Err(Problem::Transient(Transient::apply("failed to create Service \"ops-mcp\"")));
        assert_eq!(
            conditions(&seen(2, 5), &failing),
            ["Accepted=True Accepted", "Available=True Ready", "Ready=False ApplyFailing"]
        );
    }

    #[test]
    fn a_warning_leaves_the_spec_accepted_and_is_told() {
        let mut seen = seen(2, 5);
        seen.warnings = vec!["first".to_owned(), "second".to_owned()];
        let status = server_status(&server(), &seen, &Ok(()), Timestamp::UNIX_EPOCH);
        assert_eq!(status.conditions[0].status, "True");
        assert_eq!(status.conditions[0].message, "the spec is valid and in use; warning: first; second");
    }

    #[test]
    fn the_keys_of_own_tokens_have_a_condition_of_their_own() {
        let kept =
            AuthenticationStatus { handled_revoke: Some("a".to_owned()), ..AuthenticationStatus::default() };
        let mut seen = Seen {
            signing: Some(signing::Seen {
                status: Some(kept.clone()),
                finding: Some(Finding::no("RotationBlocked", "pod \"ops-2\" does not answer")),
                next_look: std::time::Duration::from_secs(1),
            }),
            ..seen(2, 5)
        };
        assert_eq!(
            conditions(&seen, &Ok(()))[2..],
            ["Ready=True Ready", "SigningKeys=False RotationBlocked"]
        );
        let mut server = server();
        server.status = Some(server_status(&server, &seen, &Ok(()), Timestamp::UNIX_EPOCH));
        assert_eq!(server.status.as_ref().and_then(|status| status.authentication.clone()), Some(kept));

        // What was not looked at stays as it was; what cannot be written says so; what is switched off is gone.
        let of = |seen: &Seen| server_status(&server, seen, &Ok(()), Timestamp::UNIX_EPOCH);
        seen.signing = None;
        assert_eq!(Some(of(&seen)), server.status);
        seen.signing_failed = Some(("ApplyFailing", "failed to write Secret".to_owned()));
        assert_eq!(of(&seen).conditions[3].reason, "ApplyFailing");
        seen.signing = Some(signing::Seen {
            status: None,
            finding: None,
            next_look: std::time::Duration::from_secs(60),
        });
        assert_eq!((of(&seen).conditions.len(), of(&seen).authentication), (3, None));
    }
}
