//! Deployments: list, scale, restart.
//!
//! Scaling goes through the scale subresource and fails rather than overwrite a count it has not seen. A restart
//! patches one annotation of the Pod template and nothing else, since RBAC cannot narrow a patch.

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::Scale;
use kube::Resource;
use kube::core::Request;
use kube::core::params::{GetParams, Patch, PatchParams};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{self, Argument, Arguments, Kind};
use super::errors::Call;
use super::list::{self, Listed, Listing};
use super::table::{Column, object_age};
use super::{Context, Invocation, Needs, Output, Parsed, Tool, ToolError, output, output_schema, request};
use crate::api::names;
use crate::authz::{Object, Permission, Permit, Target};

/// Annotation by which `kubectl rollout restart` restarts; a new value makes a new rollout.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";

/// How often a scaling is tried when somebody else changes the Deployment meanwhile.
const ATTEMPTS: usize = 3;

const NAMESPACE: Argument = Argument::required("namespace", Kind::Label, "Namespace of the Deployment.");
const NAME: Argument = Argument::required("name", Kind::Name, "Name of the Deployment.");
const REPLICAS: Argument = Argument::required(
    "replicas",
    Kind::Integer { min: 0, max: 1_000, default: None },
    "Wanted number of replicas; 0 stops it.",
);

static SCALE_ARGUMENTS: [Argument; 3] = [NAMESPACE, NAME, REPLICAS];
static RESTART_ARGUMENTS: [Argument; 2] = [NAMESPACE, NAME];

pub(super) const LIST: Tool = Tool {
    name: "deployments_list",
    aliases: &["kubernetes_list_deployments", "k8s_list_deployments", "list_deployments"],
    title: "List Deployments",
    description: "Lists Kubernetes Deployments with how many of their replicas are ready, up to date and available, \
                  in one namespace or in every namespace you have access to.",
    needs: Needs::Permission(Permission::of("deployments", "list")),
    idempotent: true,
    input_schema: || args::schema(&list::ARGUMENTS),
    output_schema: output_schema::<Listed>,
    parse: |given| list::parse(&DEPLOYMENTS, &given),
};

pub(super) const SCALE: Tool = Tool {
    name: "deployments_scale",
    aliases: &["kubernetes_scale_deployment", "k8s_scale_deployment", "scale_deployment"],
    title: "Scale a Deployment",
    description: "Sets the number of replicas of a Kubernetes Deployment and answers with the old and the new number. \
                  It does not wait until the Pods are ready. An autoscaler, if there is one, may change it again.",
    needs: Needs::Permission(Permission::of("deployments", "scale")),
    idempotent: true,
    input_schema: || args::schema(&SCALE_ARGUMENTS),
    output_schema: output_schema::<Scaled>,
    parse: |given| parse_scale(&given),
};

pub(super) const RESTART: Tool = Tool {
    name: "deployments_restart",
    aliases: &["kubernetes_restart_deployment", "k8s_restart_deployment", "restart_deployment"],
    title: "Restart a Deployment",
    description: "Replaces all Pods of a Kubernetes Deployment by a rolling update, as \"kubectl rollout restart\" \
                  does. It does not wait until the update is complete.",
    needs: Needs::Permission(Permission::of("deployments", "restart")),
    idempotent: false,
    input_schema: || args::schema(&RESTART_ARGUMENTS),
    output_schema: output_schema::<Restarted>,
    parse: |given| parse_restart(&given),
};

static DEPLOYMENTS: Listing = Listing {
    object: Object::of("deployments"),
    columns: &[
        Column { name: "Ready", value: ready },
        Column { name: "Up-to-date", value: |object| count(object, "updatedReplicas") },
        Column { name: "Available", value: |object| count(object, "availableReplicas") },
        Column { name: "Age", value: object_age },
    ],
};

fn count(object: &Value, field: &str) -> String {
    object["status"][field].as_i64().unwrap_or(0).to_string()
}

fn ready(object: &Value) -> String {
    format!("{}/{}", count(object, "readyReplicas"), object["spec"]["replicas"].as_i64().unwrap_or(1))
}

/// How a Deployment was scaled.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Scaled {
    /// Namespace of the Deployment.
    namespace: String,
    /// Name of the Deployment.
    name: String,
    /// Wanted number of replicas before the call.
    previous_replicas: i32,
    /// Wanted number of replicas now.
    replicas: i32,
}

#[derive(Debug)]
struct ScaleCall {
    namespace: String,
    name: String,
    replicas: i32,
}

fn parse_scale(given: &Map<String, Value>) -> Parsed {
    let mut arguments = Arguments::check(given, &SCALE_ARGUMENTS)?;
    let replicas = arguments.integer(REPLICAS.name).and_then(|replicas| i32::try_from(replicas).ok());
    Ok(Box::new(ScaleCall {
        namespace: arguments.required_text(NAMESPACE.name),
        name: arguments.required_text(NAME.name),
        replicas: replicas.expect("the table requires it and keeps it small"),
    }))
}

impl Invocation for ScaleCall {
    fn target(&self) -> Target<'_> {
        Target::Namespace(&self.namespace)
    }

    fn resource(&self) -> String {
        format!("deployments/{}", self.name)
    }

    fn run(
        self: Box<Self>,
        context: Context,
        _permit: Permit,
    ) -> BoxFuture<'static, Result<Output, ToolError>> {
        async move {
            let mut attempt = self.scale(&context.client).await;
            for _ in 1..ATTEMPTS {
                match attempt {
                    Ok(None) => attempt = self.scale(&context.client).await,
                    done => return self.answer(done?),
                }
            }
            self.answer(attempt?)
        }
        .boxed()
    }
}

impl ScaleCall {
    fn call(&self, verb: &'static str) -> Call {
        Call {
            verb,
            kind: "Deployment",
            resource: "deployments.apps/scale",
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
        }
    }

    /// One attempt: the old number, or none if somebody else was faster.
    async fn scale(&self, client: &kube::Client) -> Result<Option<i32>, ToolError> {
        let deployments = Request::new(Deployment::url_path(&(), Some(&self.namespace)));
        let get = deployments.get_subresource("scale", &self.name);
        let scale: Scale = request::object(client, &self.call("get"), get).await?;
        let previous = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        if previous == self.replicas {
            return Ok(Some(previous));
        }
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": scale.metadata.resource_version},
            "spec": {"replicas": self.replicas},
        }));
        let patch = deployments.patch_subresource("scale", &self.name, &patch_params(), &patch);
        match request::bytes(client, &self.call("patch"), patch).await {
            Ok(_) => Ok(Some(previous)),
            Err(ToolError::Conflict(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn answer(self, previous: Option<i32>) -> Result<Output, ToolError> {
        let Some(previous) = previous else {
            return Err(self.call("patch").changed());
        };
        let what = format!("Deployment {:?} in namespace {:?}", self.name, self.namespace);
        let text = match previous == self.replicas {
            true => format!("{what} already has {previous} replicas; nothing was changed.\n"),
            false => format!("{what} was scaled from {previous} to {} replicas.\n", self.replicas),
        };
        let Self { namespace, name, replicas } = self;
        output(text, &Scaled { namespace, name, previous_replicas: previous, replicas })
    }
}

fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// A restart that has begun.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Restarted {
    /// Namespace of the Deployment.
    namespace: String,
    /// Name of the Deployment.
    name: String,
    /// Time that now stands in the annotation of the Pod template.
    restarted_at: String,
}

#[derive(Debug)]
struct RestartCall {
    namespace: String,
    name: String,
}

fn parse_restart(given: &Map<String, Value>) -> Parsed {
    let mut arguments = Arguments::check(given, &RESTART_ARGUMENTS)?;
    Ok(Box::new(RestartCall {
        namespace: arguments.required_text(NAMESPACE.name),
        name: arguments.required_text(NAME.name),
    }))
}

impl Invocation for RestartCall {
    fn target(&self) -> Target<'_> {
        Target::Namespace(&self.namespace)
    }

    fn resource(&self) -> String {
        format!("deployments/{}", self.name)
    }

    fn run(
        self: Box<Self>,
        context: Context,
        _permit: Permit,
    ) -> BoxFuture<'static, Result<Output, ToolError>> {
        async move { self.restart(&context.client).await }.boxed()
    }
}

impl RestartCall {
    async fn restart(self, client: &kube::Client) -> Result<Output, ToolError> {
        let call = |verb| Call {
            verb,
            kind: "Deployment",
            resource: "deployments.apps",
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
        };
        let deployments = Request::new(Deployment::url_path(&(), Some(&self.namespace)));
        let get = deployments.get(&self.name, &GetParams::default());
        let deployment: Deployment = request::object(client, &call("get"), get).await?;
        if deployment.spec.and_then(|spec| spec.paused).unwrap_or(false) {
            let what = call("get").object();
            return Err(ToolError::Invalid(format!(
                "{what} is paused, so a restart would have no effect: it must be resumed first"
            )));
        }
        let restarted_at = Timestamp::now().to_string();
        let patch = deployments.patch(&self.name, &patch_params(), &restart_patch(&restarted_at));
        request::bytes(client, &call("patch"), patch).await?;
        let text = format!("{} is being restarted, Pod by Pod.\n", call("patch").object());
        let Self { namespace, name } = self;
        output(text, &Restarted { namespace, name, restarted_at })
    }
}

/// The one annotation, and nothing else.
fn restart_patch(restarted_at: &str) -> Patch<Value> {
    Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: restarted_at}}}}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_patches_the_restart_annotation_and_nothing_else() {
        let Patch::Merge(patch) = restart_patch("2026-01-10T00:00:00Z") else { panic!("a merge patch") };
        assert_eq!(
            patch.to_string(),
            r#"{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"2026-01-10T00:00:00Z"}}}}}"#
        );
    }

    #[test]
    fn a_deployment_is_scaled_within_its_namespace_from_0_to_1000() {
        let parse = |replicas: i64| {
            let given = json!({"namespace": "shop", "name": "web", "replicas": replicas});
            parse_scale(given.as_object().unwrap())
        };
        for replicas in [0, 3, 1_000] {
            let call = parse(replicas).expect("valid");
            assert_eq!(
                (call.target(), call.resource()),
                (Target::Namespace("shop"), "deployments/web".into())
            );
        }
        for replicas in [-1, 1_001, i64::MAX] {
            assert!(parse(replicas).is_err(), "{replicas}");
        }
    }

    #[test]
    fn columns_made_here_count_replicas() {
        let deployment =
            json!({"spec": {"replicas": 3}, "status": {"readyReplicas": 2, "updatedReplicas": 1}});
        let cells: Vec<_> =
            DEPLOYMENTS.columns[..3].iter().map(|column| (column.value)(&deployment)).collect();
        assert_eq!(cells, ["2/3", "1", "0"]);
    }
}
