//! Carries out the steps of [`super::plan`] for a key that the operator makes.
//!
//! The object is read before the Secret and once more before the Secret is written, so that a step which was decided
//! on an old object cannot touch a Secret that is newer.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};

use crate::api::{McpApiKey, McpApiKeyStatus, names};
use crate::controller::Context;
use crate::controller::engine::Transient;

use super::plan::{Facts, Step, next_step};
use super::secret::{self, Live};
use super::{Acceptance, Found, MAX_STEPS, Rules, acceptance, read, this_second, write_change};

/// Takes the key as far as it goes now.
///
/// # Errors
/// [`Transient`] when the API server refuses or does not answer.
pub(super) async fn take(
    context: &Context,
    api: &Api<McpApiKey>,
    key: &mut McpApiKey,
    may_begin: bool,
) -> Result<Found, Transient> {
    let name = names::key_secret(&key.name_any());
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &key.namespace().unwrap_or_default());
    for _ in 0..MAX_STEPS {
        let live = secret::read(&secrets, &name, key).await?;
        let mut step = decide(key, &live, may_begin, None);
        let mut answers = Acceptance::default();
        if let Step::Ask(id) = &step {
            answers = acceptance::ask(context, key, id).await;
            step = decide(key, &live, may_begin, Some(answers.is_complete()));
        }
        let was_written = match step {
            Step::Rest => {
                secret::keep_shape(&secrets, key, &live).await?;
                return Ok(Found::Settled);
            }
            Step::Wait(_) | Step::Ask(_) => return Ok(Found::Waiting(answers)),
            Step::Conflict => return Err(secret::conflict(&name)),
            Step::Status(change) => write_change(context, api, key, change).await?,
            Step::Secret(write) => {
                let newest = read(api, &key.name_any()).await?;
                let is_same = newest.is_some_and(|newest| {
                    newest.uid() == key.uid() && newest.resource_version() == key.resource_version()
                });
                is_same && secret::write(&secrets, key, &live, write).await?
            }
        };
        if !was_written {
            return Ok(Found::Raced);
        }
    }
    Ok(Found::Raced)
}

fn decide(key: &McpApiKey, live: &Live, may_begin: bool, is_accepted: Option<bool>) -> Step {
    let annotation = |name: &str| key.annotations().get(name).map(String::as_str);
    let none = McpApiKeyStatus::default();
    next_step(&Facts {
        rules: Rules::of(&key.spec),
        may_begin,
        rotate: annotation(names::ROTATE_ANNOTATION),
        revoke: annotation(names::REVOKE_ANNOTATION),
        status: key.status.as_ref().unwrap_or(&none),
        secret: &live.seen,
        is_accepted,
        now: this_second(),
    })
}
