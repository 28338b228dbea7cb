//! Who is calling: credentials as they are presented and identities as they are proved.
//!
//! Pure: keys, directories and the time are arguments. Absence of a credential is anonymous, and anonymous is
//! refused unless a server says otherwise; every failure looks the same outside and has its own reason inside.

pub(crate) mod api_key;
pub(crate) mod certificate;
pub(crate) mod claims;
pub(crate) mod credential;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod forged;
pub(crate) mod imported;
pub(crate) mod jwks;
pub(crate) mod jwt;
pub(crate) mod key_record;
pub(crate) mod key_rules;
pub(crate) mod password;
mod published;
mod reason;
pub(crate) mod token;
pub(crate) mod users;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use api_key::ApiKey;
pub(crate) use credential::Credential;
pub(crate) use key_record::{KeyRecord, Verifier, authenticate_key};
pub(crate) use reason::Reason;

/// Who vouches for callers proved by TokenReview.
pub(crate) const KUBERNETES: &str = "kubernetes";
/// Who vouches for callers proved by a password.
pub(crate) const BASIC: &str = "basic";
/// Who vouches for callers proved by a certificate.
pub(crate) const CERTIFICATE: &str = "certificate";
/// Who vouches for callers without a credential.
pub(crate) const ANONYMOUS: &str = "anonymous";
/// Name of callers without a credential.
pub(crate) const ANONYMOUS_USER: &str = "system:anonymous";

/// A proved caller. One type for every method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// How it was proved.
    pub(crate) method: Method,
    /// The name under which the caller appears in decisions and in the audit.
    pub(crate) subject: String,
    /// Who vouches for the name: the issuer of a token, or one of the words above. None for API keys and the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) issuer: Option<String>,
    /// Groups of the caller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) groups: Vec<String>,
    /// Tenant of the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<String>,
    /// Permissions to which the credential narrows the caller. None: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scopes: Option<Vec<String>>,
    /// Id of the credential, for audit and for ending what it opened. Never secret.
    pub(crate) credential_id: String,
    /// The credential that a token of our own was made for, by method and id: when that one ends, so does the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    /// Name of the `McpApiKey` whose roles count, if one was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// When the credential was made, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) issued_at: Option<Timestamp>,
    /// From when the credential is accepted no more, tolerance included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
}

/// The credential that a token of our own was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// How the caller was proved.
    pub(crate) method: Method,
    /// Id of its credential.
    pub(crate) credential_id: String,
}

impl Identity {
    /// An identity without groups, tenant, scopes or end.
    pub(crate) fn new(method: Method, subject: impl Into<String>, credential_id: impl Into<String>) -> Self {
        Self {
            method,
            subject: subject.into(),
            issuer: None,
            groups: Vec::new(),
            tenant: None,
            scopes: None,
            credential_id: credential_id.into(),
            origin: None,
            key: None,
            issued_at: None,
            expires_at: None,
        }
    }

    /// A caller without a credential.
    pub(crate) fn anonymous() -> Self {
        Self { issuer: Some(ANONYMOUS.to_owned()), ..Self::new(Method::Anonymous, ANONYMOUS_USER, ANONYMOUS) }
    }

    /// Whether it names somebody and says what proved it.
    pub(crate) fn is_somebody(&self) -> bool {
        !self.subject.trim().is_empty() && !self.credential_id.is_empty()
    }

    /// Id of the API key behind the identity: its own, or the one that its token was made for.
    pub(crate) fn key_id(&self) -> Option<&str> {
        let origin = self.origin.as_ref().filter(|origin| origin.method == Method::ApiKey);
        match self.method {
            Method::ApiKey => Some(&self.credential_id),
            _ => origin.map(|origin| origin.credential_id.as_str()),
        }
    }

    /// Who this is, whichever of its credentials proves it: what a stream or a sealed state is bound to.
    pub(crate) fn principal(&self) -> String {
        let method = self.origin.as_ref().map_or(self.method, |origin| origin.method);
        match &self.key {
            Some(key) => format!("{}\n{key}\n{}", method.as_str(), self.subject),
            None => {
                format!(
                    "{}\n{}\n{}",
                    method.as_str(),
                    self.issuer.as_deref().unwrap_or_default(),
                    self.subject
                )
            }
        }
    }
}

/// How an identity was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Method {
    /// An `McpApiKey`.
    ApiKey,
    /// A JSON Web Token of an issuer that the server trusts.
    Jwt,
    /// A token of the endpoint's own.
    Token,
    /// The token of a Kubernetes ServiceAccount.
    ServiceAccount,
    /// User name and password.
    Basic,
    /// A certificate.
    ClientCertificate,
    /// No credential, where the server lets that in.
    Anonymous,
    /// The operator, by its certificate on the internal port. It may list and nothing else.
    Operator,
}

impl Method {
    /// The word for it in audit and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Method::ApiKey => "apikey",
            Method::Jwt => "bearer",
            Method::Token => "token",
            Method::ServiceAccount => "serviceaccount",
            Method::Basic => "basic",
            Method::ClientCertificate => "certificate",
            Method::Anonymous => "anonymous",
            Method::Operator => "operator",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_belongs_to_the_caller_and_not_to_the_credential() {
        let key = Identity { key: Some("ci".into()), ..Identity::new(Method::ApiKey, "ci-bot", "k1") };
        let rotated = Identity { credential_id: "k2".into(), ..key.clone() };
        assert_eq!(key.principal(), rotated.principal());
        let other = Identity { key: Some("other".into()), ..key.clone() };
        assert_ne!(key.principal(), other.principal(), "another key with the same identity is somebody else");
        let token = Identity {
            method: Method::Token,
            origin: Some(Origin { method: Method::ApiKey, credential_id: "k1".into() }),
            ..key.clone()
        };
        assert_eq!(token.principal(), key.principal());
        assert_eq!(token.key_id(), Some("k1"));
        let issued =
            |issuer: &str| Identity { issuer: Some(issuer.into()), ..Identity::new(Method::Jwt, "ann", "t") };
        assert_ne!(issued("https://a").principal(), issued("https://b").principal());
    }
}
