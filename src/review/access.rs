//! Who can do what on a server, and from which role: the rows of an access review. Pure.
//!
//! Every key of the namespace and every subject of a role has a row at least. Whoever cannot come in has a row that says
//! why, and no permissions; so has a server that nobody may use.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde::Serialize;

use super::Policy;
use super::callers::{Outside, admitted, end_of_key, identities, names_tenant, of_identity, of_key};
use crate::api::{McpApiKey, RoleKind, names};
use crate::authn::{KUBERNETES, Reason};
use crate::authz::catalogue::Place;
use crate::authz::role::HolderName;
use crate::authz::{Confinement, Grants, Permission, Role, RoleId};

/// State of those who can come in.
const ACTIVE: &str = "active";
/// State of a role that grants nothing: it is missing, invalid, not for this server, or for no namespace of the tenant.
const NO_EFFECT: &str = "role_without_effect";
/// State of a permission that is granted, and all of whose tools the spec of the server keeps out.
const NOT_OFFERED: &str = "not_offered";
/// State of a server that has no row otherwise.
const NOBODY: &str = "nobody";

/// One row: one permission of one caller by one role, on one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    /// The server, `NAMESPACE/NAME`.
    pub(crate) server: String,
    /// `McpApiKey`, or the kind of the subject: `User`, `Group` or `ServiceAccount`.
    pub(crate) kind: &'static str,
    /// The name under which the caller appears in the audit, or of the group.
    pub(crate) subject: String,
    /// Name of the key.
    pub(crate) key: Option<String>,
    /// Who must vouch for the subject. None: anybody whom the server trusts.
    pub(crate) issuer: Option<String>,
    /// The tenant in whose namespaces alone the caller may act: of the key, or of the namespace of the ServiceAccount.
    pub(crate) tenant: Option<String>,
    /// Whether the credential of the caller says which tenant that is, so that it is not known here.
    pub(crate) tenant_by_credential: bool,
    /// `active`, or why the permissions cannot be used.
    pub(crate) state: &'static str,
    /// The role that grants.
    pub(crate) role: Option<String>,
    /// What it grants.
    pub(crate) permission: Option<Permission>,
    /// Whether it grants that in every namespace.
    pub(crate) all_namespaces: bool,
    /// The namespaces in which it does, by name or pattern.
    pub(crate) namespaces: Vec<String>,
    /// The tools of the server that it opens.
    pub(crate) tools: Vec<&'static str>,
    /// When the key ends.
    pub(crate) expires_at: Option<Timestamp>,
    /// When the key was last used.
    pub(crate) last_used_at: Option<Timestamp>,
}

/// The rows of one server, sorted.
pub(crate) fn rows(policy: &Policy, now: Timestamp) -> Vec<Row> {
    let mut rows: Vec<Row> =
        policy.objects.keys.values().flat_map(|key| of_one_key(policy, key, now)).collect();
    // A role that names somebody twice grants once.
    let held: BTreeSet<Row> = policy
        .snapshot
        .held()
        .flat_map(|(name, issuer, role)| of_holder(policy, name, issuer, role, now))
        .collect();
    rows.extend(held);
    if rows.is_empty() {
        rows.push(Row { server: policy.server(), state: NOBODY, ..Row::default() });
    }
    rows.sort();
    rows
}

fn of_one_key(policy: &Policy, key: &McpApiKey, now: Timestamp) -> Vec<Row> {
    let used = key.status.as_ref().and_then(|status| status.last_used_at.as_ref());
    let row = Row {
        server: policy.server(),
        kind: "McpApiKey",
        subject: key.spec.identity.clone(),
        key: Some(key.name_any()),
        tenant: key.spec.tenant.clone(),
        state: ACTIVE,
        expires_at: end_of_key(key),
        last_used_at: used.map(|Time(at)| *at),
        ..Row::default()
    };
    let grants = match of_key(policy, key, now) {
        Ok(grants) => grants,
        Err(outside) => return vec![Row { state: outside.as_str(), ..row }],
    };
    let mut rows: Vec<Row> = grants.roles().flat_map(|role| of_role(policy, &row, role, &grants)).collect();
    for named in &key.spec.roles {
        let namespace = match named.kind {
            RoleKind::McpRole => policy.subject.namespace.clone(),
            RoleKind::ClusterMcpRole => String::new(),
        };
        let id = RoleId { kind: named.kind, namespace, name: named.name.clone() };
        if !grants.roles().any(|role| *role.id() == id) {
            rows.push(Row { role: Some(id.to_string()), state: NO_EFFECT, ..row.clone() });
        }
    }
    if rows.is_empty() {
        rows.push(row);
    }
    rows
}

fn of_holder(
    policy: &Policy,
    name: &HolderName,
    issuer: Option<&str>,
    role: &Arc<Role>,
    now: Timestamp,
) -> Vec<Row> {
    let (kind, subject, groups) = match name {
        HolderName::User(user)
            if issuer == Some(KUBERNETES) && user.starts_with(names::SERVICE_ACCOUNT_PREFIX) =>
        {
            ("ServiceAccount", user, vec![])
        }
        HolderName::User(user) => ("User", user, vec![]),
        HolderName::Group(group) => ("Group", group, vec![group.clone()]),
    };
    let user = if groups.is_empty() { subject.as_str() } else { "" };
    let mut outside = Outside::Refused(Reason::MethodDisabled);
    // Whose credentials say which tenant they belong to is not the same caller as somebody without a tenant.
    let mut active: Vec<(bool, Grants)> = Vec::new();
    for identity in identities(policy, user, &groups, issuer, None) {
        let by_credential = names_tenant(policy, &identity);
        let judged = match by_credential {
            true => admitted(policy, &identity, now),
            false => of_identity(policy, &identity, now),
        };
        match judged {
            Ok(grants) if grants.roles().any(|held| held.id() == role.id()) => {
                let same = |other: &(bool, Grants)| {
                    other.0 == by_credential && other.1.confinement() == grants.confinement()
                };
                if !active.iter().any(same) {
                    active.push((by_credential, grants));
                }
            }
            Ok(_) | Err(Outside::Refused(Reason::MethodDisabled)) => {}
            Err(other) => outside = other,
        }
    }
    let row = Row {
        server: policy.server(),
        kind,
        subject: subject.clone(),
        issuer: issuer.map(str::to_owned),
        state: if active.is_empty() { outside.as_str() } else { ACTIVE },
        ..Row::default()
    };
    if active.is_empty() {
        return vec![Row { role: Some(role.id().to_string()), ..row }];
    }
    let rows = active.iter().flat_map(|(by_credential, grants)| {
        let tenant = match grants.confinement() {
            Confinement::Tenant(tenant) => Some(tenant.to_string()),
            Confinement::None | Confinement::Nowhere => None,
        };
        let row = Row { tenant, tenant_by_credential: *by_credential, ..row.clone() };
        of_role(policy, &row, role, grants)
    });
    rows.collect()
}

/// What a role grants to the caller of a row. To somebody with a tenant it grants that in the namespaces that the tenant
/// has; what belongs to the endpoint itself is granted in none.
fn of_role(policy: &Policy, caller: &Row, role: &Role, grants: &Grants) -> Vec<Row> {
    let (all_namespaces, namespaces): (bool, Vec<String>) =
        match (grants.confinement(), role.scope().written()) {
            (Confinement::Tenant(_), _) => {
                let open = |name: &&String| role.scope().covers(name) && grants.is_open(name);
                (false, policy.snapshot.namespaces.iter().filter(open).cloned().collect())
            }
            (_, written) => {
                (written.is_none(), written.iter().flatten().map(|&name| name.to_owned()).collect())
            }
        };
    let is_confined = matches!(grants.confinement(), Confinement::Tenant(_));
    let row = |permission: &Permission| {
        let row = Row {
            role: Some(role.id().to_string()),
            permission: Some(*permission),
            state: if policy.is_closed(*permission) { NOT_OFFERED } else { caller.state },
            tools: policy.opened(*permission),
            ..caller.clone()
        };
        match permission.entry().place {
            Place::Endpoint => Some(row),
            // On objects without a namespace only a role that counts in all of them grants anything.
            Place::Cluster => all_namespaces.then_some(Row { all_namespaces, ..row }),
            Place::Namespaces if is_confined && namespaces.is_empty() => None,
            Place::Namespaces => Some(Row { all_namespaces, namespaces: namespaces.clone(), ..row }),
        }
    };
    let rows: Vec<Row> = role.permissions().iter().filter_map(row).collect();
    match rows.is_empty() {
        true => vec![Row { role: Some(role.id().to_string()), state: NO_EFFECT, ..caller.clone() }],
        false => rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::fixture::{self, NOW, parse, policy};

    /// Kind, subject, state, role, permission, namespaces and tools of each row.
    fn seen(policy: &Policy) -> Vec<String> {
        let text = |row: Row| {
            let permission = row.permission.map_or("-".to_owned(), |permission| permission.to_string());
            let namespaces = if row.all_namespaces { "all".to_owned() } else { row.namespaces.join("+") };
            let role = row.role.unwrap_or("-".to_owned());
            format!(
                "{} {} {} {role} {permission} [{namespaces}] {}",
                row.kind,
                row.subject,
                row.state,
                row.tools.join("+")
            )
        };
        rows(policy, NOW.parse().expect("a time")).into_iter().map(text).collect()
    }

    #[test]
    fn everybody_has_a_row_for_each_permission_of_each_role() {
        let policy = policy(&[fixture::VIEWER, fixture::FLEET, fixture::KEY, fixture::GROUP]);
        assert_eq!(
            seen(&policy),
            [
                "Group ops active McpRole agents/restarters k8s:deployments:restart [agents] deployments_restart",
                "McpApiKey ci-bot active ClusterMcpRole fleet k8s:services:list [team-*+kube-system] resources_list+services_list",
                "McpApiKey ci-bot active McpRole agents/viewer k8s:pods:list [agents] pods_list+resources_list",
            ]
        );
    }

    #[test]
    fn whoever_cannot_come_in_has_a_row_that_says_why_and_no_permissions() {
        let states = [
            ("servers: [ops]", "servers: [ops], enabled: false", "disabled"),
            ("servers: [ops]", "servers: [ops], expiresAt: '2026-11-23T09:59:59Z'", "expired"),
            ("servers: [ops]", "servers: [other]", "other_server"),
            ("servers: [ops]", "servers: [ops], allowedCidrs: [nowhere]", "invalid"),
            ("state: Active", "state: Revoked", "revoked"),
            ("state: Active", "state: Expired", "expired"),
            (
                "namespace: agents}",
                "namespace: agents, annotations: {portcullis.dev/revoke: now}}",
                "revoked",
            ),
            (
                "namespace: agents}",
                "namespace: agents, deletionTimestamp: '2026-11-23T09:00:00Z'}",
                "deleting",
            ),
            ("keys: [", "handledRevoke: a, keys: [], unused: [", "not_made"),
        ];
        for (before, after, state) in states {
            let key = fixture::KEY.replace(before, after);
            assert_ne!(key, fixture::KEY, "{before}");
            let policy = policy(&[fixture::VIEWER, fixture::FLEET, &key]);
            assert_eq!(seen(&policy), [format!("McpApiKey ci-bot {state} - - [] ")], "{after}");
        }
    }

    #[test]
    fn a_key_that_is_being_rotated_has_its_permissions_once() {
        let old = "{id: k0, digest: DIGEST, createdAt: '2025-01-01T00:00:00Z', state: Revoked}, {id: k1";
        let old = old.replace("DIGEST", &format!("'sha256:{}'", "cd".repeat(32)));
        let policy = policy(&[fixture::VIEWER, fixture::FLEET, &fixture::KEY.replace("{id: k1", &old)]);
        assert_eq!(seen(&policy).len(), 2);
    }

    #[test]
    fn subjects_are_held_against_what_the_server_accepts() {
        let of = |server: &str| {
            let server = fixture::SERVER.replace("serviceAccounts:", server);
            let mut objects = fixture::objects(&[fixture::GROUP]);
            objects.server = Some(parse(&server));
            let policy = Policy::of(fixture::subject(), objects);
            rows(&policy, NOW.parse().expect("a time")).into_iter().map(|row| row.state).collect::<Vec<_>>()
        };
        assert_eq!(of("serviceAccounts:"), ["active"]);
        assert_eq!(of("blocked: [{kind: Group, name: ops}], serviceAccounts:"), ["blocked"]);
        let none = fixture::SERVER.replace("https://issuer.example.com", "https://other.example.com");
        let mut objects = fixture::objects(&[fixture::GROUP]);
        objects.server = Some(parse(&none));
        let policy = Policy::of(fixture::subject(), objects);
        assert_eq!(seen(&policy), ["Group ops method_disabled McpRole agents/restarters - [] "]);
    }

    #[test]
    fn a_service_account_is_listed_by_the_name_that_the_audit_has_for_it() {
        let group = fixture::GROUP;
        let start = group.find("subjects").expect("there are subjects");
        let role = format!("{}subjects: [{{kind: ServiceAccount, name: bot}}]}}", &group[..start]);
        assert_eq!(
            seen(&policy(&[&role])),
            ["ServiceAccount system:serviceaccount:agents:bot active McpRole agents/restarters \
              k8s:deployments:restart [agents] deployments_restart"]
        );
    }

    #[test]
    fn a_key_ends_with_its_last_generation_or_when_its_object_says() {
        let end = |change: &dyn Fn(&str) -> String| {
            let policy = policy(&[fixture::VIEWER, &change(fixture::KEY)]);
            let rows = rows(&policy, NOW.parse().expect("a time"));
            rows[0].expires_at.map(|end| end.to_string())
        };
        assert_eq!(end(&str::to_owned), None);
        let ending =
            |key: &str| key.replace("state: Active", "notAfter: '2026-12-01T00:00:00Z', state: Active");
        assert_eq!(end(&ending).as_deref(), Some("2026-12-01T00:00:00Z"));
        let sooner = |key: &str| {
            ending(key).replace("servers: [ops]", "servers: [ops], expiresAt: '2026-11-30T00:00:00Z'")
        };
        assert_eq!(end(&sooner).as_deref(), Some("2026-11-30T00:00:00Z"));
    }

    #[test]
    fn a_role_that_a_key_names_in_vain_is_listed_as_such() {
        let policy = policy(&[fixture::VIEWER, fixture::KEY]);
        assert_eq!(
            seen(&policy).last().expect("a row"),
            "McpApiKey ci-bot role_without_effect ClusterMcpRole fleet - [] "
        );
    }

    #[test]
    fn a_server_that_nobody_may_use_is_listed_too() {
        assert_eq!(seen(&policy(&[fixture::VIEWER])), ["  nobody - - [] "]);
        let mut objects = fixture::objects(&[fixture::VIEWER, fixture::KEY]);
        objects.namespaces.clear();
        let policy = Policy::of(fixture::subject(), objects);
        assert_eq!(seen(&policy), ["McpApiKey ci-bot namespace_not_admitted - - [] "]);
    }

    #[test]
    fn tools_that_the_server_does_not_offer_are_not_opened() {
        let server = fixture::SERVER.replace("spec: {", "spec: {tools: {deny: [pods_list]}, ");
        let mut objects = fixture::objects(&[fixture::VIEWER, fixture::KEY]);
        objects.server = Some(parse(&server));
        let policy = Policy::of(fixture::subject(), objects);
        let row = "McpApiKey ci-bot not_offered McpRole agents/viewer k8s:pods:list [agents] ";
        assert_eq!(seen(&policy)[0], row);
    }

    /// Two tenants with a namespace each, and a role of every namespace that a key, a pod and people of an issuer hold.
    fn tenants(server: &str, key: &str) -> Policy {
        let role = fixture::FLEET.replace(
            "namespaces: ['team-*', kube-system]",
            "allNamespaces: true, subjects: [
              {kind: ServiceAccount, name: bot, namespace: blue-1},
              {kind: Group, name: 'system:serviceaccounts:red-1', issuer: kubernetes},
              {kind: Group, name: ops, issuer: 'https://issuer.example.com'}]",
        );
        let key = fixture::KEY.replace("servers: [ops]", key).replace("{name: viewer}, ", "");
        let mut objects = fixture::objects(&[&role, &key]);
        objects.server = Some(parse(&fixture::SERVER.replace("spec: {", &format!("spec: {{{server}"))));
        for (namespace, tenant) in [("red-1", "red"), ("red-2", "red"), ("blue-1", "blue")] {
            let labels = [(names::TENANT_LABEL.to_owned(), tenant.to_owned())].into();
            objects.namespaces.insert(namespace.to_owned(), labels);
        }
        Policy::of(fixture::subject(), objects)
    }

    /// Subject, tenant, state and namespaces of each row.
    fn with_tenants(policy: &Policy) -> Vec<String> {
        let text = |row: Row| {
            let tenant = if row.tenant_by_credential { Some("?".to_owned()) } else { row.tenant };
            let namespaces = if row.all_namespaces { "all".to_owned() } else { row.namespaces.join("+") };
            format!("{} {} {} [{namespaces}]", row.subject, tenant.unwrap_or("-".to_owned()), row.state)
        };
        rows(policy, NOW.parse().expect("a time")).into_iter().map(text).collect()
    }

    #[test]
    fn callers_of_a_tenant_are_listed_with_the_namespaces_that_it_has() {
        assert_eq!(
            with_tenants(&tenants("", "servers: [ops], tenant: red")),
            [
                "ops - active [all]",
                "system:serviceaccounts:red-1 red active [red-1+red-2]",
                "ci-bot red active [red-1+red-2]",
                "system:serviceaccount:blue-1:bot blue active [blue-1]",
            ]
        );
        let without = with_tenants(&tenants("", "servers: [ops], tenant: green"));
        assert_eq!(without[2], "ci-bot green role_without_effect []", "its tenant has no namespace");
    }

    #[test]
    fn whose_credential_names_its_tenant_is_listed_as_such() {
        let claims = "authentication: {jwt: [{issuer: 'https://issuer.example.com', claims: {tenant: org}}]}, other: {";
        let server = fixture::SERVER.replace("spec: {authentication: {", &format!("spec: {{{claims}"));
        let mut objects = tenants("", "servers: [ops]").objects;
        objects.server = Some(parse(&server));
        let rows = with_tenants(&Policy::of(fixture::subject(), objects));
        assert_eq!(rows[0], "ops ? active [all]");
    }

    #[test]
    fn where_a_tenant_is_asked_for_those_without_one_have_no_permissions() {
        let policy = tenants("authorization: {tenancy: Required}, ", "servers: [ops]");
        let rows = with_tenants(&policy);
        assert_eq!(rows[0], "ops - tenant_required []");
        assert_eq!(rows[2], "ci-bot - tenant_required []");
        assert_eq!(rows[3], "system:serviceaccount:blue-1:bot blue active [blue-1]");
    }
}
