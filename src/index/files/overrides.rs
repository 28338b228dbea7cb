//! What the variables `MCP_AUTH_*` change in the documents. They take the place of what the files say.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use secrecy::{ExposeSecret, SecretString};

use super::documents::{Found, Placed};
use super::keys::{Import, Kept, judge};
use super::variables::{Given, JwtVariables, Modes, Variables};
use super::{public_key, rules};
use crate::api::{
    AuthenticationSpec, ClientCertificateMode, JwtAlgorithm, JwtIssuerSpec, MaterialKind, MaterialReference,
    McpApiKey, McpApiKeySpec, McpServer, RoleKind, RoleReference, SecretKeyReference, Subject, SubjectKind,
    names,
};
use crate::authn::key_rules;
use crate::authn::users::User;
use crate::authn::{ANONYMOUS, ANONYMOUS_USER, BASIC};

/// Name of the Secret that holds what variables say of users and tokens. No document can have it: it is no DNS name.
const SECRET: &str = "environment_";
/// Entry with the users.
const USERS: &str = "users";
/// Entry with what tokens are verified with.
const JWT: &str = "jwt";
/// Fewest characters of a password.
const SHORTEST_PASSWORD: usize = 12;
/// Fewest bytes of a shared secret (RFC 7518, 3.2).
const SHORTEST_SECRET: usize = 32;

/// What came of the variables, besides the changed documents.
#[derive(Default)]
pub(super) struct Applied {
    /// Keys to be imported, each with the variable that says it.
    pub(super) imports: Vec<(Import, String)>,
    /// What people should know.
    pub(super) warnings: Vec<String>,
}

/// Changes the server and its roles and keys as the variables say.
///
/// # Errors
/// A text for people that begins with the variable and never shows a secret.
pub(super) fn apply(
    variables: &Variables,
    server: &mut McpServer,
    found: &mut Found,
    kept: &mut Kept,
) -> Result<Applied, String> {
    let mut applied = Applied::default();
    for name in &variables.unknown {
        applied
            .warnings
            .push(format!("{name} is not a variable that is known here; serve --help lists them"));
    }
    let modes = variables.modes.unwrap_or(Modes { api_key: true, bearer: true, basic: true });
    let authentication = &mut server.spec.authentication;
    if variables.modes.is_some() {
        switch(authentication, modes)?;
    }
    match variables.enabled {
        Some(enabled) => authentication.anonymous.unsafe_enabled = !enabled,
        None if variables.modes.is_some() => authentication.anonymous.unsafe_enabled = false,
        None => {}
    }
    let keys = [
        (&variables.api_key, "env-api-key", "apikey", modes.api_key),
        (&variables.bearer_token, "env-bearer-token", "bearer", modes.bearer),
    ];
    let mut users_of_roles = Vec::new();
    let mut has_keys = false;
    for (given, name, mode, is_on) in keys {
        let Some(given) = given else { continue };
        if !is_on {
            applied.warnings.push(unused(given, mode));
            continue;
        }
        let plaintext = key(given)?;
        if !server.spec.authentication.api_keys.enabled {
            // The keys of the files stay off when one of a variable is on.
            found.keys.clear();
            server.spec.authentication.api_keys.enabled = true;
        }
        has_keys = true;
        found.keys.push(Placed { place: None, object: key_object(name, server, &variables.roles, found)? });
        let import = Import { key: name.to_owned(), plaintext };
        applied.imports.push((import, given.variable.clone()));
    }
    if let Some((user, password)) = &variables.user {
        match modes.basic {
            true => {
                add_user(user, password, &mut server.spec.authentication, found, kept)?;
                users_of_roles.push((user.as_str(), BASIC));
            }
            false => applied.warnings.push(unused(password, "basic")),
        }
    }
    if let Some(jwt) = &variables.jwt {
        match modes.bearer {
            true => add_issuer(jwt, &mut server.spec.authentication, found, &mut applied.warnings)?,
            false => applied.warnings.push(unused(&jwt.secret, "bearer")),
        }
    }
    let proves = has_keys || !users_of_roles.is_empty();
    if variables.enabled == Some(false) && !proves {
        users_of_roles.push((ANONYMOUS_USER, ANONYMOUS));
    }
    give_roles(variables, &users_of_roles, proves, found, &mut applied.warnings)?;
    Ok(applied)
}

fn unused(given: &Given, mode: &str) -> String {
    format!("{} is not used, because MCP_AUTH_MODE does not name {mode}", given.variable)
}

/// Leaves only these methods on.
fn switch(spec: &mut AuthenticationSpec, modes: Modes) -> Result<(), String> {
    if spec.client_certificates.mode == ClientCertificateMode::RequireAndVerify {
        return Err(
            "MCP_AUTH_MODE: would switch off spec.authentication.clientCertificates, which demands a \
                    certificate of every client; unset the variable, or change the mode in the file"
                .to_owned(),
        );
    }
    if spec.client_certificates.mode == ClientCertificateMode::VerifyIfGiven {
        spec.client_certificates.mode = ClientCertificateMode::None;
    }
    spec.api_keys.enabled = modes.api_key;
    spec.basic.enabled = modes.basic;
    if !modes.bearer {
        spec.jwt.clear();
        spec.service_accounts.enabled = false;
        spec.tokens.enabled = false;
    }
    Ok(())
}

fn key(given: &Given) -> Result<SecretString, String> {
    let plaintext = given.read()?;
    judge(plaintext.expose_secret()).map_err(|error| format!("{}: {error}", given.variable))?;
    Ok(plaintext)
}

fn key_object(name: &str, server: &McpServer, roles: &[String], found: &Found) -> Result<McpApiKey, String> {
    let kind_of = |role: &String| Ok(RoleReference { kind: kind_of_role(role, found)?, name: role.clone() });
    let spec = McpApiKeySpec {
        identity: name.to_owned(),
        servers: vec![server.name_any()],
        roles: roles.iter().map(kind_of).collect::<Result<_, String>>()?,
        enabled: true,
        expires_at: None,
        allowed_cidrs: Vec::new(),
        tenant: None,
        rate_limit: None,
        import: None,
        rotation: None,
    };
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    Ok(McpApiKey { metadata, spec, status: None })
}

/// Whether a role is an `McpRole` or, where there is none of the name, a `ClusterMcpRole`.
fn kind_of_role(name: &str, found: &Found) -> Result<RoleKind, String> {
    if found.roles.iter().any(|role| role.object.name_any() == name) {
        return Ok(RoleKind::McpRole);
    }
    match found.cluster_roles.iter().any(|role| role.object.name_any() == name) {
        true => Ok(RoleKind::ClusterMcpRole),
        false => {
            Err(format!("MCP_AUTH_ROLES: there is no McpRole or ClusterMcpRole {name:?} in the directory"))
        }
    }
}

fn add_user(
    name: &str,
    password: &Given,
    spec: &mut AuthenticationSpec,
    found: &mut Found,
    kept: &mut Kept,
) -> Result<(), String> {
    let plaintext = password.read()?;
    let text = plaintext.expose_secret();
    if text.chars().count() < SHORTEST_PASSWORD {
        return Err(format!("{}: must have at least {SHORTEST_PASSWORD} characters", password.variable));
    }
    if key_rules::is_published(text) {
        return Err(format!("{}: {}", password.variable, key_rules::WeakKey::Published));
    }
    let hash = kept.password(name, text).map_err(|error| format!("{}: {error}", password.variable))?;
    let user = User::new(name, &hash, Vec::new()).map_err(|error| format!("MCP_AUTH_USERNAME: {error}"))?;
    let mut lines = vec![user.line()];
    if let Some(users) = spec.basic.users.clone().filter(|_| spec.basic.enabled) {
        let field = |error| format!("spec.authentication.basic.users: {error}");
        let entry = found.entries.find(&users.into()).map_err(field)?;
        let text = String::from_utf8_lossy(&entry.content).into_owned();
        let same = |line: &&str| line.split(':').next() == Some(name);
        lines.extend(text.lines().filter(|line| !same(line)).map(str::to_owned));
    }
    let users = SecretKeyReference { name: SECRET.to_owned(), key: USERS.to_owned() };
    (spec.basic.enabled, spec.basic.users) = (true, Some(users));
    let path = names::material_path(MaterialKind::Secret, SECRET, USERS);
    found.entries.put(path, (lines.join("\n") + "\n").into_bytes());
    Ok(())
}

fn add_issuer(
    jwt: &JwtVariables,
    spec: &mut AuthenticationSpec,
    found: &mut Found,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let secret = jwt.secret.read()?;
    let text = secret.expose_secret();
    let refuse = |error: String| format!("{}: {error}", jwt.secret.variable);
    if rules::is_reserved(&jwt.issuer) {
        return Err(format!("MCP_AUTH_JWT_ISSUER: {:?} is the name of another method", jwt.issuer));
    }
    let mut issuer = JwtIssuerSpec {
        issuer: jwt.issuer.clone(),
        audiences: jwt.audiences.clone(),
        algorithms: vec![jwt.algorithm],
        ..JwtIssuerSpec::default()
    };
    let (name, key) = (SECRET.to_owned(), JWT.to_owned());
    let content = if jwt.algorithm == JwtAlgorithm::HS256 {
        if text.len() < SHORTEST_SECRET {
            return Err(refuse(format!("must have at least {SHORTEST_SECRET} bytes for HS256")));
        }
        if key_rules::is_published(text) {
            return Err(refuse(key_rules::WeakKey::Published.to_string()));
        }
        if text.contains("-----BEGIN") {
            let hint = "is a key in PEM and MCP_AUTH_JWT_ALGORITHM is HS256; name the algorithm of the key";
            return Err(refuse(hint.to_owned()));
        }
        warnings.push(format!(
            "whoever knows {} can make tokens for anybody; prefer an algorithm with a public key",
            jwt.secret.variable
        ));
        issuer.hmac_secret = Some(SecretKeyReference { name, key });
        text.as_bytes().to_vec()
    } else {
        issuer.jwks = Some(MaterialReference { kind: MaterialKind::Secret, name, key });
        public_key::key_set(text, jwt.algorithm).map_err(refuse)?
    };
    found.entries.put(names::material_path(MaterialKind::Secret, SECRET, JWT), content);
    spec.jwt.retain(|other| other.issuer != jwt.issuer);
    spec.jwt.push(issuer);
    Ok(())
}

/// Makes these users, each with who vouches for it, holders of the roles.
fn give_roles(
    variables: &Variables,
    users: &[(&str, &str)],
    proves: bool,
    found: &mut Found,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let somebody = proves || !users.is_empty();
    match (somebody, variables.roles.is_empty()) {
        (true, true) => warnings.push(
            "callers that the variables prove hold no role and may do nothing; MCP_AUTH_ROLES names some"
                .to_owned(),
        ),
        (false, false) => {
            return Err(
                "MCP_AUTH_ROLES: no variable proves a key or a user that could hold them; users and \
                        groups of tokens are named in the subjects of roles"
                    .to_owned(),
            );
        }
        _ => {}
    }
    for name in &variables.roles {
        let kind = kind_of_role(name, found)?;
        for (user, issuer) in users {
            let subject = Subject {
                kind: SubjectKind::User,
                name: (*user).to_owned(),
                namespace: None,
                issuer: Some((*issuer).to_owned()),
            };
            let of = |own: String| own == *name;
            match kind {
                RoleKind::McpRole => {
                    let role = found.roles.iter_mut().find(|role| of(role.object.name_any()));
                    role.into_iter().for_each(|role| role.object.spec.subjects.push(subject.clone()));
                }
                RoleKind::ClusterMcpRole => {
                    let role = found.cluster_roles.iter_mut().find(|role| of(role.object.name_any()));
                    role.into_iter().for_each(|role| role.object.spec.subjects.push(subject.clone()));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
