//! Who the caller is, and what it may do on this endpoint.
//!
//! The answer comes from the identity and the decision of this very call: nothing is asked of the API server. It holds
//! names, ids and times, never a secret.

use futures::FutureExt;
use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::args::{self, Argument, Arguments};
use super::table::{plain, render};
use super::{Context, Invocation, Needs, Output, Parsed, Tool, ToolError, output, output_schema};
use crate::authz::{Confinement, Grants, Permission, Permit, Place, Target, authorize, within_scopes};

static ARGUMENTS: [Argument; 0] = [];

/// Namespaces that are named for one permission, at most; the others are counted.
const MAX_NAMESPACES: usize = 50;
/// Most characters of a name that somebody else chose.
const MAX_NAME: usize = 256;

pub(super) const WHOAMI: Tool = Tool {
    name: "access_whoami",
    aliases: &[],
    title: "Who am I",
    description: "Says who you are to this endpoint, when your credential ends, which roles you hold, what you may do and \
                  in which namespaces, and which tools you see.",
    needs: Needs::Permission(Permission::tool("access_whoami")),
    idempotent: true,
    input_schema: || args::schema(&ARGUMENTS),
    output_schema: output_schema::<Answer>,
    parse: |given| parse(&given),
};

/// Who the caller is and what it may do.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// The name under which you appear in the audit.
    user: String,
    /// How you were proved, such as "apikey" or "bearer".
    method: &'static str,
    /// Who vouches for the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    /// Your groups.
    groups: Vec<String>,
    /// Your tenant: you may act in its namespaces alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    /// Name of your McpApiKey.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Id of your credential, by which it can be found in the audit and revoked. It is no secret.
    credential_id: String,
    /// Permissions to which your credential narrows you; absent where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<String>>,
    /// When your credential ends, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// The roles that count for you here.
    roles: Vec<String>,
    /// What you may do, and where.
    permissions: Vec<Allowed>,
    /// The tools that you see.
    tools: Vec<String>,
    /// What your roles grant and the scopes of your credential keep from you.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    out_of_scope: Vec<String>,
}

/// A permission, and where it can be used.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Allowed {
    /// The permission.
    permission: String,
    /// Whether it counts in every namespace.
    all_namespaces: bool,
    /// The namespaces in which it counts, by name, pattern or selector; empty for what belongs to the endpoint itself.
    namespaces: Vec<String>,
    /// How many more namespaces there are that are not named here.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<usize>,
}

#[derive(Debug)]
struct Whoami;

fn parse(given: &Map<String, Value>) -> Parsed {
    Arguments::check(given, &ARGUMENTS)?;
    Ok(Box::new(Whoami))
}

impl Invocation for Whoami {
    fn target(&self) -> Target<'_> {
        Target::Anywhere
    }

    fn resource(&self) -> String {
        "caller".to_owned()
    }

    fn run(
        self: Box<Self>,
        context: Context,
        _permit: Permit,
    ) -> BoxFuture<'static, Result<Output, ToolError>> {
        async move {
            let answer = Answer::of(&context);
            output(answer.text(), &answer)
        }
        .boxed()
    }
}

impl Answer {
    fn of(context: &Context) -> Self {
        let (identity, grants) = (&context.identity, &context.grants);
        let granted = Permission::all().filter(|one| authorize(grants, *one, Target::Anywhere).is_ok());
        let scopes = identity.scopes.as_deref();
        let (mut within, beyond): (Vec<_>, Vec<_>) =
            granted.partition(|one| scopes.is_none_or(|scopes| within_scopes(scopes, *one)));
        within.sort();
        Self {
            user: identity.subject.clone(),
            method: identity.method.as_str(),
            issuer: identity.issuer.clone(),
            groups: identity.groups.clone(),
            tenant: match grants.confinement() {
                Confinement::Tenant(tenant) => Some(tenant.to_string()),
                Confinement::None | Confinement::Nowhere => identity.tenant.clone(),
            },
            key: identity.key.clone(),
            credential_id: identity.credential_id.clone(),
            scopes: identity.scopes.clone(),
            expires_at: identity.expires_at.map(|end| end.to_string()),
            roles: grants.roles().map(|role| role.id().to_string()).collect(),
            permissions: within.iter().map(|one| allowed(*one, grants, &context.namespaces)).collect(),
            tools: context.tools.iter().map(|name| (*name).to_owned()).collect(),
            out_of_scope: beyond.iter().map(Permission::to_string).collect(),
        }
    }

    fn text(&self) -> String {
        let list = |texts: &[String]| match texts {
            [] => "-".to_owned(),
            texts => texts.iter().map(|text| plain(text, MAX_NAME)).collect::<Vec<_>>().join(", "),
        };
        let name = |text: &str| plain(text, MAX_NAME);
        let mut text = format!("You are {}, proved by {}", name(&self.user), self.method);
        if let Some(issuer) = &self.issuer {
            text.push_str(&format!(" of {}", name(issuer)));
        }
        text.push_str(&format!(", credential {}", name(&self.credential_id)));
        if let Some(end) = &self.expires_at {
            text.push_str(&format!(", which ends at {end}"));
        }
        text.push_str(".\n");
        if let Some(key) = &self.key {
            text.push_str(&format!("McpApiKey: {}\n", name(key)));
        }
        text.push_str(&format!("Groups: {}\n", list(&self.groups)));
        if let Some(tenant) = &self.tenant {
            text.push_str(&format!("Tenant: {}; you may act in its namespaces alone\n", name(tenant)));
        }
        if let Some(scopes) = &self.scopes {
            text.push_str(&format!("Scopes of the credential: {}\n", list(scopes)));
        }
        text.push_str(&format!("Roles: {}\nTools: {}\n\n", list(&self.roles), list(&self.tools)));
        let rows: Vec<_> =
            self.permissions.iter().map(|one| vec![one.permission.clone(), one.place()]).collect();
        text.push_str(&render(&["Permission".to_owned(), "Where".to_owned()], &rows));
        if !self.out_of_scope.is_empty() {
            let kept = list(&self.out_of_scope);
            text.push_str(&format!("\nGranted by roles and kept from you by the scopes: {kept}\n"));
        }
        text
    }
}

impl Allowed {
    fn place(&self) -> String {
        match (self.all_namespaces, self.namespaces.is_empty()) {
            (true, _) => "every namespace".to_owned(),
            (false, true) => "this endpoint".to_owned(),
            (false, false) => {
                let more = self.more.map(|more| format!(" and {more} more")).unwrap_or_default();
                format!("{}{more}", self.namespaces.join(", "))
            }
        }
    }
}

/// Where a permission that is granted counts. To somebody with a tenant the namespaces are named that the tenant has now,
/// to others what their roles say.
fn allowed(permission: Permission, grants: &Grants, namespaces: &[String]) -> Allowed {
    let mut allowed = Allowed {
        permission: permission.to_string(),
        all_namespaces: false,
        namespaces: Vec::new(),
        more: None,
    };
    if permission.entry().place == Place::Endpoint {
        return allowed;
    }
    if authorize(grants, permission, Target::Namespace("")).is_ok() {
        return Allowed { all_namespaces: true, ..allowed };
    }
    let mut named: Vec<String> = match grants.confinement() {
        Confinement::None => {
            let granting = grants.roles().filter(|role| role.grants(permission));
            granting.flat_map(|role| role.scope().written().unwrap_or_default()).map(str::to_owned).collect()
        }
        _ => {
            let is_open = |name: &&String| authorize(grants, permission, Target::Namespace(name)).is_ok();
            namespaces.iter().filter(is_open).cloned().collect()
        }
    };
    named.sort_unstable();
    named.dedup();
    allowed.more = named.len().checked_sub(MAX_NAMESPACES).filter(|more| *more > 0);
    named.truncate(MAX_NAMESPACES);
    allowed.namespaces = named;
    allowed
}
