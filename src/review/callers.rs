//! Callers as the endpoint would prove them, and what it makes of them. Pure: the time is an argument.
//!
//! Which key signs or which password fits cannot be known here. What is judged is the policy: a caller who proves a name
//! by a method is the identity that the endpoint would have.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::Policy;
use crate::api::{KeyState, McpApiKey, names};
use crate::authn::{ANONYMOUS, ANONYMOUS_USER, BASIC, CERTIFICATE, Identity, KUBERNETES, Method, Reason};
use crate::authz::{Confinement, Grants};
use crate::index::snapshot::admits_servers;

/// An address that is as good as any where a policy does not ask for one.
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Why somebody cannot come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Outside {
    /// The endpoint would refuse them.
    #[error(transparent)]
    Refused(Reason),
    /// No administrator has let servers into the namespace.
    #[error("the namespace lacks the label portcullis.dev/servers")]
    NamespaceNotAdmitted,
    /// The key has no generation yet.
    #[error("key that was not made yet")]
    NotMade,
    /// The key is being deleted.
    #[error("key that is being deleted")]
    Deleting,
    /// The key says something that cannot be used.
    #[error("key with an invalid spec")]
    Invalid,
    /// The server lets only members of tenants do anything.
    #[error("the server asks for a tenant and the caller has none")]
    NoTenant,
    /// What proves the name says which tenant it belongs to, and nobody has said which.
    #[error("the credential of such a caller names its tenant: say which with --tenant")]
    TenantUnsaid,
}

impl Outside {
    /// Fixed word for lists.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Outside::Refused(reason) => reason.as_str(),
            Outside::NamespaceNotAdmitted => "namespace_not_admitted",
            Outside::NotMade => "not_made",
            Outside::Deleting => "deleting",
            Outside::Invalid => "invalid",
            Outside::NoTenant => "tenant_required",
            Outside::TenantUnsaid => "tenant_unsaid",
        }
    }
}

/// Whether an administrator has let servers into the server's namespace.
pub(super) fn is_admitted(policy: &Policy) -> bool {
    policy.objects.namespaces.get(&policy.subject.namespace).is_some_and(admits_servers)
}

/// What the holder of a key has, by whichever of its generations.
///
/// # Errors
/// [`Outside`] says why no generation is accepted; of several reasons that of the newest generation.
pub(super) fn of_key(policy: &Policy, key: &McpApiKey, now: Timestamp) -> Result<Grants, Outside> {
    if !is_admitted(policy) {
        return Err(Outside::NamespaceNotAdmitted);
    }
    if key.metadata.deletion_timestamp.is_some() {
        return Err(Outside::Deleting);
    }
    let mut generations: Vec<_> = key.status.iter().flat_map(|status| &status.keys).collect();
    generations.sort_by_key(|generation| std::cmp::Reverse(generation.created_at.0));
    let judge = |id: &String| {
        let known = policy.snapshot.keys.get(id).filter(|known| known.record.name == key.name_any());
        let record = &known.ok_or(Outside::Invalid)?.record;
        let from = record.allowed.first().map_or(ANYWHERE, |network| network.addr());
        policy.snapshot.admit(&record.identify(id), from, now).map_err(Outside::Refused).and_then(able)
    };
    let mut first = None;
    for generation in generations {
        let judged = match generation.state {
            KeyState::Expired => Err(Outside::Refused(Reason::Expired)),
            _ => judge(&generation.id),
        };
        match judged {
            Ok(grants) => return Ok(grants),
            Err(outside) => first = first.or(Some(outside)),
        }
    }
    Err(first.unwrap_or(Outside::NotMade))
}

/// When the last generation that the key still has ends, if it does.
pub(super) fn end_of_key(key: &McpApiKey) -> Option<Timestamp> {
    let status = key.status.iter().flat_map(|status| &status.keys);
    let living =
        status.filter(|generation| !matches!(generation.state, KeyState::Expired | KeyState::Revoked));
    let ends: BTreeSet<_> =
        living.map(|generation| generation.not_after.as_ref().map(|Time(end)| *end)).collect();
    let own = key.spec.expires_at.as_ref().map(|Time(end)| *end);
    let last = match ends.contains(&None) {
        true => None,
        false => ends.into_iter().flatten().max(),
    };
    own.into_iter().chain(last).min()
}

/// Identities that a caller of this name, with these groups and of this tenant, may have: one for each method of the
/// server by which the name can be proved, or only those that this issuer vouches for. A method that gives its callers no
/// tenant, or a ServiceAccount another one, does not prove members of this one.
pub(super) fn identities(
    policy: &Policy,
    subject: &str,
    groups: &[String],
    issuer: Option<&str>,
    tenant: Option<&str>,
) -> Vec<Identity> {
    let account = subject.strip_prefix(names::SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let mut methods = vec![(Method::Basic, BASIC), (Method::ClientCertificate, CERTIFICATE)];
    // Of a group alone it is not known whose it is.
    if account.is_some() || subject.is_empty() {
        methods.push((Method::ServiceAccount, KUBERNETES));
    }
    if subject == ANONYMOUS_USER && groups.is_empty() {
        methods.push((Method::Anonymous, ANONYMOUS));
    }
    let server = policy.snapshot.server.iter();
    let trusted = server.flat_map(|server| &server.spec.authentication.jwt);
    methods.extend(trusted.map(|trusted| (Method::Jwt, trusted.issuer.as_str())));
    methods.retain(|(_, word)| issuer.is_none_or(|issuer| issuer == *word));
    let identity = |(method, word): (Method, &str)| {
        let mut groups = groups.to_vec();
        if let (Method::ServiceAccount, Some((namespace, _))) = (method, account) {
            // The API server puts every ServiceAccount into these.
            groups.extend(["system:serviceaccounts", "system:authenticated"].map(str::to_owned));
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        let mut identity =
            Identity { issuer: Some(word.to_owned()), groups, ..Identity::new(method, subject, "") };
        identity.tenant = match (names_tenant(policy, &identity), of_group(&identity)) {
            (true, _) => tenant.map(str::to_owned),
            (false, Some(namespace)) => policy.snapshot.roles.tenant_of(namespace).map(str::to_owned),
            (false, None) => policy.snapshot.tenant(&identity).map(str::to_owned),
        };
        identity
    };
    let all = methods.into_iter().map(identity);
    all.filter(|identity| tenant.is_none_or(|tenant| identity.tenant.as_deref() == Some(tenant))).collect()
}

/// The namespace of the ServiceAccounts that a group alone stands for.
fn of_group(identity: &Identity) -> Option<&str> {
    let is_group = identity.method == Method::ServiceAccount && identity.subject.is_empty();
    let groups = identity.groups.iter().filter(|_| is_group);
    groups.filter_map(|group| group.strip_prefix("system:serviceaccounts:")).next()
}

/// Whether the credential of such a caller says which tenant it belongs to. Of ServiceAccounts it is their namespace that
/// says so, and a group may have some of several.
pub(super) fn names_tenant(policy: &Policy, identity: &Identity) -> bool {
    let Some(server) = &policy.snapshot.server else { return false };
    let authentication = &server.spec.authentication;
    match identity.method {
        Method::ClientCertificate => authentication.client_certificates.tenant.is_some(),
        Method::Jwt => {
            let mut trusted = authentication.jwt.iter();
            let trusted = trusted.find(|trusted| Some(&trusted.issuer) == identity.issuer.as_ref());
            trusted.is_some_and(|trusted| trusted.claims.tenant.is_some())
        }
        Method::ServiceAccount => {
            let tenants =
                policy.objects.namespaces.values().any(|labels| labels.contains_key(names::TENANT_LABEL));
            tenants && identity.subject.is_empty() && of_group(identity).is_none()
        }
        _ => false,
    }
}

/// What somebody holds who may do something at all.
///
/// # Errors
/// [`Outside::NoTenant`] when a tenant is asked for and there is none.
fn able(grants: Grants) -> Result<Grants, Outside> {
    match grants.confinement() {
        Confinement::Nowhere => Err(Outside::NoTenant),
        Confinement::None | Confinement::Tenant(_) => Ok(grants),
    }
}

/// The roles of an identity that may do something at all.
///
/// # Errors
/// [`Outside`] says why the endpoint would not let it in, or do nothing.
pub(super) fn of_identity(policy: &Policy, identity: &Identity, now: Timestamp) -> Result<Grants, Outside> {
    admitted(policy, identity, now).and_then(able)
}

/// The roles of an identity, of whatever tenant it may turn out to be.
///
/// # Errors
/// [`Outside`] says why the endpoint would not let it in.
pub(super) fn admitted(policy: &Policy, identity: &Identity, now: Timestamp) -> Result<Grants, Outside> {
    if !is_admitted(policy) {
        return Err(Outside::NamespaceNotAdmitted);
    }
    policy.snapshot.admit(identity, ANYWHERE, now).map_err(Outside::Refused)
}
