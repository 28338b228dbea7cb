//! What went wrong at the API server, in words that say what to do.
//!
//! Texts name the object and the missing right. Of the API server's own words only those about a refused request are
//! passed on, shortened; what a connection or a parser says is not, since it may quote what was sent.

use kube::core::Status;

use super::ToolError;
use super::table::plain;

/// Most characters that are passed on of a text of the API server.
const MAX_REASON: usize = 500;

/// One request to the API server, as an error names it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Verb of RBAC.
    pub(super) verb: &'static str,
    /// Kind of the object.
    pub(super) kind: &'static str,
    /// Resource with its group and subresource, as in RBAC: `deployments.apps/scale`.
    pub(super) resource: &'static str,
    /// Namespace, or none for all of them.
    pub(super) namespace: Option<String>,
    /// Name, or none for a list.
    pub(super) name: Option<String>,
}

impl Call {
    /// What the call is about: `Pod "web" in namespace "a"`.
    pub(super) fn object(&self) -> String {
        let kind = self.kind;
        match (&self.name, &self.namespace) {
            (Some(name), Some(namespace)) => format!("{kind} {name:?} in namespace {namespace:?}"),
            (Some(name), None) => format!("{kind} {name:?}"),
            (None, Some(namespace)) => format!("{kind}s in namespace {namespace:?}"),
            (None, None) => format!("{kind}s in every namespace"),
        }
    }

    /// The error of a tool for an error of the client.
    pub(super) fn explain(&self, error: &kube::Error) -> ToolError {
        match error {
            kube::Error::Api(status) => self.explain_status(status),
            kube::Error::BuildRequest(_) => {
                ToolError::Invalid(format!("no request could be made for {}", self.object()))
            }
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => self.unreadable(),
            kube::Error::Auth(_) => {
                ToolError::Unavailable("the endpoint has no credential for the API server; try again".into())
            }
            _ => {
                ToolError::Unavailable("the API server cannot be reached; try again in a few seconds".into())
            }
        }
    }

    /// An answer that is not what was asked for.
    pub(super) fn unreadable(&self) -> ToolError {
        ToolError::Unavailable(format!("the API server's answer about {} cannot be read", self.object()))
    }

    /// Somebody else was faster.
    pub(super) fn changed(&self) -> ToolError {
        ToolError::Conflict(format!("{} was changed meanwhile; try again", self.object()))
    }

    fn explain_status(&self, status: &Status) -> ToolError {
        let reason = plain(&status.message, MAX_REASON);
        match status.code {
            401 => ToolError::Forbidden(
                "the API server does not accept the credential of the endpoint's ServiceAccount; \
                 tell an administrator"
                    .into(),
            ),
            403 if status.message.contains(" cannot ") => ToolError::Forbidden(format!(
                "the endpoint's ServiceAccount lacks the right to {} {} ({}); if a role names it, its binding \
                 may need a few seconds, else tell an administrator",
                self.verb,
                self.resource,
                self.object()
            )),
            403 => ToolError::Forbidden(format!("the API server refused {}: {reason}", self.object())),
            404 if self.name.is_some() => ToolError::NotFound(format!(
                "{} does not exist; list {} to see what does",
                self.object(),
                self.resource.split(['.', '/']).next().unwrap_or(self.resource)
            )),
            404 => ToolError::NotFound(format!("the API server does not know {}", self.resource)),
            409 => self.changed(),
            410 => {
                ToolError::Invalid("the list has changed too much: start again without \"continue\"".into())
            }
            429 => ToolError::Unavailable("the API server has too much to do; try again later".into()),
            400..500 => ToolError::Invalid(format!("the API server refused {}: {reason}", self.object())),
            _ => ToolError::Unavailable("the API server failed; try again in a few seconds".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(code: u16, message: &str) -> ToolError {
        let call = Call {
            verb: "get",
            kind: "Deployment",
            resource: "deployments.apps/scale",
            namespace: Some("shop".into()),
            name: Some("web".into()),
        };
        call.explain(&kube::Error::Api(Status::failure(message, "Reason").with_code(code).boxed()))
    }

    #[test]
    fn a_missing_object_is_named_and_so_is_what_to_do() {
        let error = explain(404, "deployments.apps \"web\" not found");
        assert_eq!(error.reason(), "not_found");
        assert_eq!(
            error.to_string(),
            "Deployment \"web\" in namespace \"shop\" does not exist; list deployments to see what does"
        );
    }

    #[test]
    fn a_missing_right_of_the_endpoint_is_named_as_an_administrator_knows_it() {
        let error = explain(403, "deployments.apps \"web\" is forbidden: User \"x\" cannot get resource");
        assert_eq!(error.reason(), "forbidden");
        assert!(error.to_string().contains("ServiceAccount lacks the right to get deployments.apps/scale"));
        let quota = explain(403, "pods \"web\" is forbidden: exceeded quota: compute");
        assert!(quota.to_string().ends_with("exceeded quota: compute"), "{quota}");
    }

    #[test]
    fn each_status_has_its_word() {
        for (code, reason) in [
            (400, "invalid"),
            (401, "forbidden"),
            (409, "conflict"),
            (410, "invalid"),
            (422, "invalid"),
            (429, "unavailable"),
            (500, "unavailable"),
            (503, "unavailable"),
            (504, "unavailable"),
        ] {
            assert_eq!(explain(code, "why").reason(), reason, "{code}");
        }
    }

    #[test]
    fn what_the_api_server_says_is_passed_on_short_and_in_one_line() {
        let text = explain(400, &format!("first\u{1b}[31m\nsecond {}", "x".repeat(9_000))).to_string();
        assert!(text.len() < 700 && !text.contains('\n') && !text.contains('\u{1b}'), "{text}");
        assert!(!explain(500, "internal detail").to_string().contains("detail"));
    }
}
