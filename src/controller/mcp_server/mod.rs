//! `McpServer`: `observe -> validate -> desired -> apply -> handshake -> status`, read top to bottom in [`run`].
//!
//! The status is written after success and after failure. Invalid waits; only what may go away is tried again.

mod apply;
mod authentication;
mod certificates;
mod desired;
mod handshake;
mod materials;
mod observe;
mod rights;
mod signing;
mod status;
mod validate;

use std::sync::Arc;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::api::conditions::{
    ACCEPTED, AVAILABLE, READY, REASON_INVALID, REASON_NAME_CONFLICT, REASON_NAMESPACE_NOT_OPTED_IN,
};
use crate::api::{McpServer, McpServerStatus, names};
use crate::index::snapshot::{admits_servers, is_staying};
use crate::k8s::condition::Finding;
use crate::k8s::watch::{Guarded, find};
use crate::k8s::{apply as children, event};

use super::engine::{Outcome, Transient};
use super::status::{Stale, write};
use super::{Context, PERIOD, namespaces};

pub(super) use handshake::Handshakes;
pub(super) use observe::{is_owned, remove_secrets_of_namespace};
pub(super) use rights::{remove_bindings_of_namespace, remove_bindings_outside, remove_orphaned_bindings};

use status::Seen;
use validate::Invalid;

/// Why a server does not do what its spec says.
#[derive(Debug)]
enum Problem {
    /// Somebody must change something.
    Invalid(Invalid),
    /// It may go away by itself.
    Transient(Transient),
}

impl Problem {
    fn reason(&self) -> &'static str {
        match self {
            Problem::Invalid(invalid) => invalid.reason,
            Problem::Transient(error) => error.reason,
        }
    }

    fn message(&self) -> &str {
        match self {
            Problem::Invalid(invalid) => &invalid.message,
            Problem::Transient(error) => &error.message,
        }
    }
}

impl From<Transient> for Problem {
    fn from(error: Transient) -> Self {
        Problem::Transient(error)
    }
}

impl From<children::Error> for Problem {
    fn from(error: children::Error) -> Self {
        let reason = match error {
            children::Error::NameConflict { .. } => REASON_NAME_CONFLICT,
            _ => crate::api::conditions::REASON_APPLY,
        };
        Problem::Transient(Transient { reason, message: error.to_string() })
    }
}

/// Reconciles a server.
pub(super) async fn reconcile(
    context: Arc<Context>,
    object: Arc<Guarded<McpServer>>,
) -> Result<Outcome, Transient> {
    let namespace = object.namespace().unwrap_or_default();
    // Cleaning up needs the name alone, so it does not matter whether the rest can be read.
    if object.meta().deletion_timestamp.is_some() {
        rights::remove_all(&context, &namespace, &object.name_any()).await?;
        set_finalizer(&context, object.as_ref(), false).await?;
        context.handshakes.forget(object.as_ref());
        return Ok(Outcome::Settled(None));
    }
    let server = match &object.0 {
        Ok(server) => server,
        Err(error) => return unreadable(&context, &object, &error.error).await,
    };
    let Some(labels) = find(&context.cluster.namespaces, "", &namespace)
        .filter(|found| found.metadata.deletion_timestamp.is_none())
        .map(|found| found.metadata.labels.unwrap_or_default())
    else {
        // A namespace that is going away takes the server along.
        return Ok(Outcome::Settled(None));
    };
    let mut seen = Seen::default();
    let result = if admits_servers(&labels) {
        let result = run(&context, server, &mut seen).await;
        if result.is_err() {
            // Whatever else fails, a right that no role grants any more is taken away.
            rights::narrow(&context, &namespace, &server.name_any(), seen.account_is_foreign).await?;
        }
        result
    } else {
        not_opted_in(&context, server).await
    };
    report(&context, server, &seen, &result).await?;
    match result {
        Ok(()) => {
            let signing = seen.signing.as_ref().map_or(PERIOD, |signing| signing.next_look);
            Ok(Outcome::Settled(Some(context.handshakes.next_look(server).min(signing))))
        }
        // Secrets are not watched, so one that is missing is looked for now and then.
        Err(Problem::Invalid(_)) => Ok(Outcome::Invalid(Some(PERIOD / 4))),
        Err(Problem::Transient(error)) => Err(error),
    }
}

/// The stages in their order. `seen` keeps what was found, however far it comes.
async fn run(context: &Arc<Context>, server: &McpServer, seen: &mut Seen) -> Result<(), Problem> {
    set_finalizer(context, server, true).await?;
    let namespace = server.namespace().unwrap_or_default();
    let room = context.namespaces.room(&namespace);
    let _working = room.work().await;
    let children = namespaces::enter(context, &namespace).await?;
    let observed = observe::observe(context, server, children).await?;
    seen.deployment.clone_from(&observed.deployment);
    seen.account_is_foreign = observed.account_is_foreign(server);

    let is_namespace = |name: &str| find(&context.cluster.namespaces, "", name).is_some();
    let valid = validate::validate(server, &observed.referred, is_namespace).map_err(Problem::Invalid)?;
    seen.is_valid = true;
    seen.warnings.clone_from(&valid.warnings);

    let (certificates, tls) = certificates::keep_or_issue(context, &valid, &observed)?;
    seen.tls = Some(tls);
    let desired = desired::desired(&valid, &context.config, certificates);
    let roles = rights::roles(context, valid.namespace, valid.name);

    // Before the pods: those that start find the keys. Rights and pods do not wait for the keys to be well.
    let signing = signing::keep(context, server, &valid, observed.signing_secret.as_ref()).await;
    seen.signing = signing.as_ref().ok().cloned();
    seen.signing_failed = signing.as_ref().err().map(|error| (error.reason, error.message.clone()));
    let deployment = apply::apply(context, &valid, &observed, desired, &roles).await?;
    let is_complete = status::Pods::of(&deployment).are_complete();
    seen.deployment = Some(deployment.clone());
    if is_complete {
        seen.server_info = Some(handshake::once(context, &valid, &deployment, &roles).await?);
    }
    signing?;
    Ok(())
}

/// A server where no administrator let servers in has no rights. Its children go with the namespace's turn.
async fn not_opted_in(context: &Context, server: &McpServer) -> Result<(), Problem> {
    if server.finalizers().iter().any(|name| name == names::FINALIZER) {
        let namespace = server.namespace().unwrap_or_default();
        rights::remove_all(context, &namespace, &server.name_any()).await?;
    }
    let message = namespaces::opt_in_message(&server.namespace().unwrap_or_default());
    Err(Problem::Invalid(Invalid { reason: REASON_NAMESPACE_NOT_OPTED_IN, message }))
}

/// Writes the status if it differs, and tells of conditions that changed.
async fn report(
    context: &Context,
    server: &McpServer,
    seen: &Seen,
    result: &Result<(), Problem>,
) -> Result<(), Transient> {
    let status = status::server_status(server, seen, result, Timestamp::now());
    let api = Api::namespaced(context.client.clone(), &server.namespace().unwrap_or_default());
    let written = write(&api, server, server.status.as_ref(), &status, Stale::Allowed).await?;
    // Where it is not let in, the operator has no right to tell.
    let may_tell = !matches!(result, Err(problem) if problem.reason() == REASON_NAMESPACE_NOT_OPTED_IN);
    if written.is_some() && may_tell {
        let before = server.status.as_ref().map_or(&[][..], |status| &status.conditions);
        for condition in event::changed(before, &status.conditions) {
            event::tell(&context.recorder, &server.object_ref(&()), condition).await;
        }
    }
    Ok(())
}

/// Says of an object that cannot be read that it is invalid. What runs for it is left as it is, but a right that no
/// role grants any more is taken away, and every right from an account that is somebody else's.
async fn unreadable(
    context: &Context,
    object: &Guarded<McpServer>,
    error: &str,
) -> Result<Outcome, Transient> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    // Only where it lets servers in the operator may ask, and where it does not, all bindings go anyway.
    let asks = find(&context.cluster.namespaces, "", &namespace)
        .is_some_and(|found| is_staying(&found) && admits_servers(found.labels()));
    let foreign = if asks { observe::account_is_foreign(context, object).await } else { Ok(false) };
    // Not to know whose the account is keeps nothing that no role grants.
    let narrowed =
        rights::narrow(context, &namespace, &name, foreign.as_ref().is_ok_and(|foreign| *foreign)).await;
    let (meta, now) = (object.meta(), Timestamp::now());
    let condition = |type_: &str| {
        Finding::no(REASON_INVALID, format!("the object cannot be read: {error}")).into_condition(
            type_,
            &[],
            meta.generation,
            now,
        )
    };
    let status = McpServerStatus {
        observed_generation: meta.generation,
        conditions: [ACCEPTED, AVAILABLE, READY].map(condition).into(),
        ..McpServerStatus::default()
    };
    let api: Api<kube::api::DynamicObject> = Api::namespaced_with(
        context.client.clone(),
        &namespace,
        &kube::api::ApiResource::erase::<McpServer>(&()),
    );
    let patch = json!({"status": status});
    let merged = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    merged.map_err(|error| {
        Transient::apply(format!("failed to write the status: {}", children::text(&error)))
    })?;
    narrowed?;
    foreign?;
    Ok(Outcome::Invalid(None))
}

/// Adds or removes the finalizer, if it is not as it should be. Only metadata is read, and only metadata is answered.
async fn set_finalizer(
    context: &Context,
    server: &impl Resource<DynamicType = ()>,
    wanted: bool,
) -> Result<(), Transient> {
    let mut finalizers = server.finalizers().to_vec();
    let is_there = finalizers.iter().any(|name| name == names::FINALIZER);
    if is_there == wanted {
        return Ok(());
    }
    if wanted {
        finalizers.push(names::FINALIZER.to_owned());
    } else {
        finalizers.retain(|name| name != names::FINALIZER);
    }
    // The version that was read stands in the patch, so a finalizer that somebody else just added is not lost.
    let metadata =
        json!({"uid": server.uid(), "resourceVersion": server.resource_version(), "finalizers": finalizers});
    let api = Api::<McpServer>::namespaced(context.client.clone(), &server.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let parameters =
        PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_metadata(&server.name_any(), &parameters, &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => {
            Err(Transient::apply(format!("failed to write the finalizer: {}", children::text(&error))))
        }
    }
}
