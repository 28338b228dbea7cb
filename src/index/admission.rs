//! Whether a proved caller may come in, or stay, and which roles it has. Pure: asked for every message, for open
//! streams, and again on the replica that a message is passed on to.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use jiff::Timestamp;
use kube::ResourceExt;

use super::Snapshot;
use super::snapshot::asks_to_revoke;
use crate::api::{AuthenticationSpec, BlockedKind, BlockedSubject, names};
use crate::authn::{Identity, Method, Reason};
use crate::authz::role::HolderName;
use crate::authz::{Confinement, Grants, Role, Roles};

impl Snapshot {
    /// Judges a proved identity under this policy: whether it may come in, or stay, and which roles it has. The time and
    /// the address are those of the request, or of the stream.
    ///
    /// # Errors
    /// [`Reason`] says why it may not.
    pub(crate) fn admit(
        &self,
        identity: &Identity,
        client_ip: IpAddr,
        now: Timestamp,
    ) -> Result<Grants, Reason> {
        if identity.method == Method::Operator {
            return Ok(Grants::default());
        }
        let server = self.server.as_ref().ok_or(Reason::MethodDisabled)?;
        let authentication = &server.spec.authentication;
        if !is_enabled(authentication, identity) {
            return Err(Reason::MethodDisabled);
        }
        if authentication.blocked.iter().any(|blocked| names_caller(blocked, identity)) {
            return Err(Reason::Blocked);
        }
        if identity.expires_at.is_some_and(|end| end <= now) {
            return Err(Reason::Expired);
        }
        if identity.method == Method::Token {
            let status = server.status.as_ref().and_then(|status| status.authentication.as_ref());
            if asks_to_revoke(server.annotations(), status.and_then(|s| s.handled_revoke.as_deref())) {
                return Err(Reason::Revoked);
            }
        }
        match identity.key_id() {
            Some(id) => {
                let named = self.keys.get(id).filter(|key| key.record.identity == identity.subject);
                let key = named.ok_or(Reason::UnknownKey)?;
                key.record.usable(client_ip, now)?;
                Ok(self.grants(key.held.clone(), key.record.tenant.as_deref()))
            }
            None => {
                let held = self.holders.held_by(identity, self.roles.len()).into();
                match self.is_lost(identity) {
                    true => Ok(Grants::new(self.roles.clone(), held, Confinement::Nowhere)),
                    false => Ok(self.grants(held, self.tenant(identity))),
                }
            }
        }
    }

    /// The tenant of a proved caller: what its credential says, or, of a key or of a token that was made for one, what the
    /// key's object says now, or, of a ServiceAccount, the one that has its namespace now.
    pub(crate) fn tenant<'a>(&'a self, identity: &'a Identity) -> Option<&'a str> {
        if let Some(key) = identity.key_id().and_then(|id| self.keys.get(id)) {
            return key.record.tenant.as_deref();
        }
        match home(identity) {
            Some(namespace) => self.roles.tenant_of(namespace),
            None => identity.tenant.as_deref(),
        }
    }

    /// Whether the caller is a ServiceAccount of a namespace that is not there, or not known yet: its tenant cannot be
    /// told. Where there are no tenants, nothing depends on it.
    fn is_lost(&self, identity: &Identity) -> bool {
        let is_known =
            |namespace: &str| self.namespaces.binary_search_by(|known| (**known).cmp(namespace)).is_ok();
        self.roles.has_tenants() && home(identity).is_some_and(|namespace| !is_known(namespace))
    }

    /// Who holds which role by proving who they are, in no order: the name, who must vouch for it, and the role.
    pub(crate) fn held(&self) -> impl Iterator<Item = (&HolderName, Option<&str>, &Arc<Role>)> {
        let all = self.holders.0.iter();
        let all = all.flat_map(|(name, held)| held.iter().map(move |(issuer, role)| (name, issuer, role)));
        all.map(|(name, issuer, role)| (name, issuer.as_deref(), self.roles.at(*role)))
    }
}

/// The namespace of a ServiceAccount that the API server, and no issuer, has vouched for.
fn home(identity: &Identity) -> Option<&str> {
    let proved_by = identity.origin.as_ref().map_or(identity.method, |origin| origin.method);
    let account = identity.subject.strip_prefix(names::SERVICE_ACCOUNT_PREFIX)?;
    (proved_by == Method::ServiceAccount).then_some(account.split_once(':')?.0)
}

/// Whether the server accepts what proved the identity, and what its token was made for.
fn is_enabled(spec: &AuthenticationSpec, identity: &Identity) -> bool {
    let accepts = |method: Method| match method {
        Method::ApiKey => spec.api_keys.enabled,
        Method::Jwt => spec.jwt.iter().any(|issuer| Some(&issuer.issuer) == identity.issuer.as_ref()),
        Method::Token => spec.tokens.enabled,
        Method::ServiceAccount => spec.service_accounts.enabled,
        Method::Basic => spec.basic.enabled,
        Method::ClientCertificate => spec.client_certificates.mode.verifies(),
        Method::Anonymous => spec.anonymous.unsafe_enabled,
        Method::Operator => false,
    };
    accepts(identity.method) && identity.origin.as_ref().is_none_or(|origin| accepts(origin.method))
}

fn names_caller(blocked: &BlockedSubject, identity: &Identity) -> bool {
    if blocked.issuer.is_some() && blocked.issuer != identity.issuer {
        return false;
    }
    match blocked.kind {
        BlockedKind::User => identity.subject == blocked.name,
        BlockedKind::Group => identity.groups.contains(&blocked.name),
        BlockedKind::ServiceAccount => {
            let name =
                identity.subject.strip_prefix(names::SERVICE_ACCOUNT_PREFIX).and_then(|s| s.split_once(':'));
            name.is_some_and(|(namespace, name)| blocked.name.split_once('/') == Some((namespace, name)))
        }
        BlockedKind::Credential => {
            let origin = identity.origin.as_ref().map(|origin| &origin.credential_id);
            identity.credential_id == blocked.name || origin == Some(&blocked.name)
        }
    }
}

/// Roles by those who hold them, so that a decision does not depend on the number of roles.
#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<HolderName, Vec<Held>>);

/// The position of a role that somebody holds, if this issuer vouches for them; none: if any does.
type Held = (Option<String>, usize);

impl Holders {
    pub(super) fn of(roles: &Roles) -> Self {
        let mut held: HashMap<_, Vec<_>> = HashMap::new();
        for (position, role) in roles.iter().enumerate() {
            for holder in role.subjects() {
                held.entry(holder.name.clone()).or_default().push((holder.issuer.clone(), position));
            }
        }
        Self(held)
    }

    /// The positions of the roles of an identity, among so many.
    fn held_by(&self, identity: &Identity, roles: usize) -> FixedBitSet {
        let names = std::iter::once(HolderName::User(identity.subject.clone()))
            .chain(identity.groups.iter().cloned().map(HolderName::Group));
        let held = names.filter_map(|name| self.0.get(&name)).flatten();
        let vouched = held.filter(|(issuer, _)| issuer.is_none() || *issuer == identity.issuer);
        let mut positions = FixedBitSet::with_capacity(roles);
        vouched.for_each(|(_, position)| positions.insert(*position));
        positions
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{McpApiKey, McpRole};
    use crate::authn::{KUBERNETES, Origin};
    use crate::index::Objects;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
    const ISSUER: &str = "https://issuer.example.com";

    fn object(kind: &str, name: &str, spec: Value) -> Value {
        json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": "agents"}, "spec": spec})
    }

    fn parse<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(value).expect("an object of the kind"))
    }

    /// Every method on, a role for each kind of subject, and one key with a role of its own.
    fn objects() -> Objects {
        let authentication = json!({"jwt": [{"issuer": ISSUER}], "serviceAccounts": {"enabled": true},
            "tokens": {"enabled": true}, "anonymous": {"unsafeEnabled": true}});
        let server = object("McpServer", "ops", json!({"authentication": authentication}));
        let role = |name: &str, subjects: Value| {
            let spec = json!({"permissions": ["k8s:pods:list"], "subjects": subjects});
            (name.to_owned(), parse::<McpRole>(object("McpRole", name, spec)))
        };
        let mut key = object(
            "McpApiKey",
            "ci",
            json!({"identity": "ann", "servers": ["ops"],
            "roles": [{"name": "unbound"}]}),
        );
        let digest = format!("sha256:{}", "ab".repeat(32));
        key["status"] = json!({"keys": [
            {"id": "k1", "digest": digest, "createdAt": "2026-01-01T00:00:00Z", "state": "Active"}]});
        Objects {
            server: Some(parse(server)),
            roles: BTreeMap::from([
                role("anybody", json!([{"kind": "User", "name": "ann"}])),
                role("issued", json!([{"kind": "Group", "name": "ops", "issuer": ISSUER}])),
                role("pods", json!([{"kind": "ServiceAccount", "name": "bot"}])),
                role("unbound", json!([])),
            ]),
            keys: BTreeMap::from([("ci".to_owned(), parse::<McpApiKey>(key))]),
            namespaces: BTreeMap::from([(
                "agents".to_owned(),
                BTreeMap::from([(names::NAMESPACE_LABEL.to_owned(), names::NAMESPACE_LOCAL.to_owned())]),
            )]),
            ..Objects::default()
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).expect("in range")
    }

    fn admitted(objects: &Objects, identity: &Identity) -> Result<Vec<String>, Reason> {
        let snapshot = Snapshot::build(objects, "agents", "ops", "portcullis-system");
        let grants = snapshot.admit(identity, HERE, now())?;
        Ok(grants.roles().map(|role| role.id().name.clone()).collect())
    }

    fn issued(subject: &str, groups: &[&str]) -> Identity {
        Identity {
            issuer: Some(ISSUER.into()),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
            ..Identity::new(Method::Jwt, subject, "t1")
        }
    }

    fn of_key() -> Identity {
        Identity { key: Some("ci".into()), ..Identity::new(Method::ApiKey, "ann", "k1") }
    }

    fn token_of_key() -> Identity {
        let origin = Origin { method: Method::ApiKey, credential_id: "k1".into() };
        Identity { method: Method::Token, credential_id: "jti".into(), origin: Some(origin), ..of_key() }
    }

    fn edit(objects: &mut Objects, change: impl FnOnce(&mut crate::api::McpServer)) {
        change(Arc::make_mut(objects.server.as_mut().expect("there is a server")));
    }

    #[test]
    fn users_groups_and_service_accounts_hold_the_roles_that_name_them() {
        assert_eq!(
            admitted(&objects(), &issued("ann", &["ops"])),
            Ok(vec!["anybody".into(), "issued".into()])
        );
        assert_eq!(admitted(&objects(), &issued("bob", &[])), Ok(vec![]));
        let account = |issuer: &str| Identity {
            issuer: Some(issuer.into()),
            ..Identity::new(Method::ServiceAccount, "system:serviceaccount:agents:bot", "s1")
        };
        assert_eq!(admitted(&objects(), &account(KUBERNETES)), Ok(vec!["pods".into()]));
        let pretended = Identity { method: Method::Jwt, ..account(ISSUER) };
        assert_eq!(admitted(&objects(), &pretended), Ok(vec![]), "an issuer cannot make up a ServiceAccount");
    }

    #[test]
    fn a_service_account_belongs_to_the_tenant_that_has_its_namespace() {
        let mut objects = objects();
        let labels = objects.namespaces.get_mut("agents").expect("there is a namespace");
        labels.insert(names::TENANT_LABEL.to_owned(), "red".to_owned());
        let snapshot = |objects: &Objects| Snapshot::build(objects, "agents", "ops", "portcullis-system");
        let account = |namespace: &str| Identity {
            issuer: Some(KUBERNETES.into()),
            ..Identity::new(Method::ServiceAccount, format!("system:serviceaccount:{namespace}:bot"), "s1")
        };
        let token = |namespace: &str| {
            let origin = Origin { method: Method::ServiceAccount, credential_id: "s1".into() };
            let made_before = Some("blue".to_owned());
            Identity {
                method: Method::Token,
                origin: Some(origin),
                tenant: made_before,
                ..account(namespace)
            }
        };
        for identity in [account("agents"), token("agents")] {
            assert_eq!(snapshot(&objects).tenant(&identity), Some("red"));
            let grants = snapshot(&objects).admit(&identity, HERE, now()).expect("it may come in");
            assert_eq!(*grants.confinement(), Confinement::Tenant("red".into()));
        }
        for identity in [account("elsewhere"), token("elsewhere")] {
            assert_eq!(snapshot(&objects).tenant(&identity), None, "of no tenant's namespace");
        }
        let pretended = Identity { method: Method::Jwt, tenant: Some("blue".into()), ..account("agents") };
        assert_eq!(snapshot(&objects).tenant(&pretended), Some("blue"), "an issuer names its own users only");
        let labels = objects.namespaces.get_mut("agents").expect("there is a namespace");
        labels.insert(names::TENANT_LABEL.to_owned(), "green".to_owned());
        assert_eq!(snapshot(&objects).tenant(&account("agents")), Some("green"), "it follows the label");
    }

    #[test]
    fn a_service_account_whose_namespace_is_gone_may_do_nothing_where_there_are_tenants() {
        let account = |namespace: &str| Identity {
            issuer: Some(KUBERNETES.into()),
            ..Identity::new(Method::ServiceAccount, format!("system:serviceaccount:{namespace}:bot"), "s1")
        };
        let confined = |objects: &Objects, namespace: &str| {
            let snapshot = Snapshot::build(objects, "agents", "ops", "portcullis-system");
            let token = Identity {
                method: Method::Token,
                origin: Some(Origin { method: Method::ServiceAccount, credential_id: "s1".into() }),
                tenant: Some("red".into()),
                ..account(namespace)
            };
            let [proved, token] = [account(namespace), token].map(|identity| {
                let grants =
                    snapshot.admit(&identity, Ipv4Addr::LOCALHOST.into(), now()).expect("may come in");
                grants.confinement().clone()
            });
            assert_eq!(proved, token);
            proved
        };
        let mut objects = objects();
        edit(&mut objects, |server| server.spec.authentication.tokens.enabled = true);
        assert_eq!(confined(&objects, "gone"), Confinement::None, "there are no tenants");
        let red = BTreeMap::from([(names::TENANT_LABEL.to_owned(), "red".to_owned())]);
        objects.namespaces.insert("red-1".to_owned(), red);
        objects.namespaces.insert("free".to_owned(), BTreeMap::new());
        assert_eq!(confined(&objects, "red-1"), Confinement::Tenant("red".into()));
        assert_eq!(confined(&objects, "free"), Confinement::None);
        assert_eq!(confined(&objects, "gone"), Confinement::Nowhere);
    }

    #[test]
    fn a_key_and_its_tokens_belong_to_the_tenant_that_its_object_names_now() {
        let mut objects = objects();
        edit(&mut objects, |server| server.spec.authentication.tokens.enabled = true);
        for tenant in [None, Some("red"), Some("blue")] {
            let key = Arc::make_mut(objects.keys.values_mut().next().expect("there is a key"));
            key.spec.tenant = tenant.map(str::to_owned);
            let snapshot = Snapshot::build(&objects, "agents", "ops", "portcullis-system");
            for made_before in [None, Some("green".to_owned())] {
                for identity in [of_key(), token_of_key()] {
                    let identity = Identity { tenant: made_before.clone(), ..identity };
                    assert_eq!(snapshot.tenant(&identity), tenant);
                    let grants =
                        snapshot.admit(&identity, Ipv4Addr::LOCALHOST.into(), now()).expect("admitted");
                    assert_eq!(*grants.confinement(), Confinement::of(tenant, crate::api::Tenancy::IfGiven));
                }
            }
        }
    }

    #[test]
    fn a_group_counts_only_when_its_issuer_vouches_for_it() {
        let mut objects = objects();
        edit(&mut objects, |server| {
            let other = crate::api::JwtIssuerSpec { issuer: "https://b".into(), ..Default::default() };
            server.spec.authentication.jwt.push(other);
        });
        let other = Identity { issuer: Some("https://b".into()), ..issued("bob", &["ops"]) };
        assert_eq!(admitted(&objects, &other), Ok(vec![]));
    }

    #[test]
    fn a_key_holds_the_roles_that_its_object_names_and_not_those_of_a_user_of_that_name() {
        assert_eq!(admitted(&objects(), &of_key()), Ok(vec!["unbound".into()]));
        assert_eq!(admitted(&objects(), &token_of_key()), Ok(vec!["unbound".into()]));
    }

    #[test]
    fn a_token_ends_with_the_key_that_it_was_made_for() {
        let mut objects = objects();
        objects.keys.clear();
        assert_eq!(admitted(&objects, &token_of_key()), Err(Reason::UnknownKey));
    }

    #[test]
    fn a_method_that_is_switched_off_lets_nobody_in() {
        let mut objects = objects();
        edit(&mut objects, |server| server.spec.authentication.api_keys.enabled = false);
        assert_eq!(admitted(&objects, &of_key()), Err(Reason::MethodDisabled));
        assert_eq!(admitted(&objects, &token_of_key()), Err(Reason::MethodDisabled));
        edit(&mut objects, |server| server.spec.authentication = AuthenticationSpec::default());
        for identity in [issued("ann", &[]), Identity::anonymous()] {
            assert_eq!(admitted(&objects, &identity), Err(Reason::MethodDisabled));
        }
    }

    #[test]
    fn whoever_is_blocked_is_refused_by_name_group_account_or_credential() {
        let blocked = |kind: BlockedKind, name: &str, identity: &Identity| {
            let mut objects = objects();
            edit(&mut objects, |server| {
                let entry = BlockedSubject { kind, name: name.into(), issuer: None };
                server.spec.authentication.blocked.push(entry);
            });
            admitted(&objects, identity).err()
        };
        let account = Identity {
            issuer: Some(KUBERNETES.into()),
            ..Identity::new(Method::ServiceAccount, "system:serviceaccount:agents:bot", "s1")
        };
        for (kind, name, identity) in [
            (BlockedKind::User, "ann", &issued("ann", &[])),
            (BlockedKind::Group, "ops", &issued("bob", &["ops"])),
            (BlockedKind::ServiceAccount, "agents/bot", &account),
            (BlockedKind::Credential, "jti", &token_of_key()),
            (BlockedKind::Credential, "k1", &token_of_key()),
        ] {
            assert_eq!(blocked(kind, name, identity), Some(Reason::Blocked), "{kind:?} {name}");
            assert_eq!(blocked(kind, "somebody-else", identity), None);
        }
    }

    #[test]
    fn a_credential_is_refused_from_its_end_on() {
        let ends = |at: i64| Identity {
            expires_at: Some(now() + SignedDuration::from_secs(at)),
            ..issued("ann", &[])
        };
        assert!(admitted(&objects(), &ends(1)).is_ok());
        assert_eq!(admitted(&objects(), &ends(0)), Err(Reason::Expired));
    }

    #[test]
    fn a_revocation_that_is_asked_for_counts_before_the_operator_has_seen_it() {
        let ask = |object: &mut kube::core::ObjectMeta| {
            let annotations = object.annotations.get_or_insert_default();
            annotations.insert(names::REVOKE_ANNOTATION.to_owned(), "now".to_owned());
        };
        let mut of_the_key = objects();
        ask(&mut Arc::make_mut(of_the_key.keys.get_mut("ci").expect("there is a key")).metadata);
        assert_eq!(admitted(&of_the_key, &of_key()), Err(Reason::Revoked));
        assert_eq!(admitted(&of_the_key, &token_of_key()), Err(Reason::Revoked));
        let mut of_the_server = objects();
        edit(&mut of_the_server, |server| ask(&mut server.metadata));
        assert_eq!(admitted(&of_the_server, &token_of_key()), Err(Reason::Revoked));
        assert!(admitted(&of_the_server, &of_key()).is_ok(), "keys are revoked one by one");
        edit(&mut of_the_server, |server| {
            let handled = Some("now".to_owned());
            let status = crate::api::AuthenticationStatus { handled_revoke: handled, ..Default::default() };
            server.status.get_or_insert_default().authentication = Some(status);
        });
        assert!(admitted(&of_the_server, &token_of_key()).is_ok());
    }
}
