use jiff::Timestamp;

use super::*;
use crate::authn::imported::ImportedKeys;
use crate::authn::users::Users;
use crate::authn::{Identity, Method, Reason, Verifier, password};
use crate::authz::{Permission, Target, authorize};
use crate::index::files::tests::{KEY, ROLE, SERVER, directory, read, source};
use crate::index::files::{Loaded, follow};

const STRONG: &str = "qW7-tZ3_xR9.mK5vB2pLd8";
const OTHER: &str = "Hn4.yU8-cJ6_gF1sVx3Tz0";
const SECRET_32: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

fn all() -> String {
    format!("{SERVER}---\n{ROLE}---\n{KEY}")
}

fn error(text: &str, variables: &[(&str, &str)]) -> String {
    read(text, variables).expect_err("refused")
}

fn with(authentication: &str) -> String {
    all().replacen("spec: {}", &format!("spec: {{authentication: {authentication}}}"), 1)
}

fn spec(loaded: &Loaded) -> AuthenticationSpec {
    loaded.objects.server.as_ref().expect("a server").spec.authentication.clone()
}

/// Whether an identity may come in and list pods.
fn may_list(loaded: &Loaded, identity: &Identity) -> Result<bool, Reason> {
    let snapshot = loaded.subject.snapshot(&loaded.objects);
    let here = "127.0.0.1".parse().expect("an address");
    let roles = snapshot.admit(identity, here, Timestamp::UNIX_EPOCH)?;
    Ok(authorize(&roles, Permission::of("pods", "list"), Target::Namespace("default")).is_ok())
}

/// The identity that a text proves as an imported key, by the steps of the Authenticator.
fn imported(loaded: &Loaded, text: &str) -> Option<Identity> {
    let hashes = ImportedKeys::from_json(loaded.materials.get("secret/ops-mcp-imported/imported.json")?);
    let hashes = hashes.expect("imported keys");
    let held = hashes.candidates(text).find(|held| held.proves(text))?;
    let snapshot = loaded.subject.snapshot(&loaded.objects);
    let record = &snapshot.keys.get(&held.id)?.record;
    (record.verifier == Verifier::Imported(held.fingerprint())).then(|| record.identify(&held.id))
}

#[test]
fn keys_of_variables_open_the_server_with_the_roles_that_a_variable_names() {
    let set = [("MCP_AUTH_API_KEY", STRONG), ("MCP_AUTH_BEARER_TOKEN", OTHER), ("MCP_AUTH_ROLES", "viewer")];
    let loaded = read(&all(), &set).expect("loads");
    for (text, name) in [(STRONG, "env-api-key"), (OTHER, "env-bearer-token")] {
        let identity = imported(&loaded, text).expect("accepted");
        assert_eq!((identity.subject.as_str(), identity.key.as_deref()), (name, Some(name)));
        assert_eq!(may_list(&loaded, &identity), Ok(true));
    }
    let from = |name: &str, variable: &str| (name.to_owned(), variable.to_owned());
    let expected =
        [from("env-api-key", "MCP_AUTH_API_KEY"), from("env-bearer-token", "MCP_AUTH_BEARER_TOKEN")];
    assert_eq!(loaded.imported, expected);
    assert_eq!(loaded.methods, ["API keys (3)"], "the key of the files is there as well");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let without = read(&all(), &set[..1]).expect("loads");
    assert_eq!(may_list(&without, &imported(&without, STRONG).expect("accepted")), Ok(false));
    let expected =
        "callers that the variables prove hold no role and may do nothing; MCP_AUTH_ROLES names some";
    assert_eq!(without.warnings, [expected]);
}

#[test]
fn a_key_of_a_variable_does_not_wake_the_keys_that_the_files_switch_off() {
    let loaded = read(&with("{apiKeys: {enabled: false}}"), &[("MCP_AUTH_API_KEY", STRONG)]).expect("loads");
    assert_eq!(loaded.objects.keys.keys().collect::<Vec<_>>(), ["env-api-key"]);
    assert!(spec(&loaded).api_keys.enabled);
}

#[test]
fn a_mode_switches_every_other_method_off() {
    let people = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: people}\nstringData: {users: ''}\n";
    let text = with(
        "{jwt: [{issuer: https://a}], serviceAccounts: {enabled: true}, anonymous: {unsafeEnabled: true}, \
         basic: {enabled: true, users: {name: people, key: users}}}",
    ) + people;
    for (mode, methods) in [
        ("apikey", vec!["API keys (1)"]),
        ("bearer", vec!["tokens of https://a", "tokens of ServiceAccounts"]),
        ("basic", vec!["user name and password"]),
        ("basic,apikey", vec!["API keys (1)", "user name and password"]),
    ] {
        let loaded = read(&text, &[("MCP_AUTH_MODE", mode)]).expect("loads");
        assert_eq!(loaded.methods, methods, "{mode}");
        assert!(!spec(&loaded).anonymous.unsafe_enabled, "{mode}");
        assert_eq!(spec(&loaded).api_keys.enabled, mode.contains("apikey"), "{mode}");
    }
    let bearer =
        [("MCP_AUTH_MODE", "bearer"), ("MCP_AUTH_API_KEY", STRONG), ("MCP_AUTH_BEARER_TOKEN", OTHER)];
    let loaded = read(&text, &bearer).expect("loads");
    assert_eq!(loaded.objects.keys.keys().collect::<Vec<_>>(), ["env-bearer-token"]);
    assert!(imported(&loaded, OTHER).is_some() && imported(&loaded, STRONG).is_none());
    let unused = "MCP_AUTH_API_KEY is not used, because MCP_AUTH_MODE does not name apikey";
    assert_eq!(loaded.warnings[0], unused);
    let required = with("{clientCertificates: {mode: RequireAndVerify, ca: {name: ca, key: a}}}");
    let expected = "MCP_AUTH_MODE: would switch off spec.authentication.clientCertificates, which demands a \
                    certificate of every client; unset the variable, or change the mode in the file";
    assert_eq!(error(&required, &[("MCP_AUTH_MODE", "apikey")]), expected);
    let without = "DIR/a.yaml, document 1: spec.authentication.basic.users: is required when basic is enabled; \
                   MCP_AUTH_USERNAME names a user too";
    assert_eq!(error(&all(), &[("MCP_AUTH_MODE", "basic")]), without);
}

#[test]
fn without_authentication_callers_are_anonymous_and_hold_the_roles() {
    let off = [("MCP_AUTH_ENABLED", "false"), ("MCP_AUTH_ROLES", "viewer")];
    let loaded = read(&all(), &off).expect("loads");
    assert_eq!(may_list(&loaded, &Identity::anonymous()), Ok(true));
    // Whoever proves something gets the roles then, and nobody else does.
    let key = [off[0], off[1], ("MCP_AUTH_API_KEY", STRONG)];
    let loaded = read(&all(), &key).expect("loads");
    assert_eq!(may_list(&loaded, &Identity::anonymous()), Ok(false));
    assert_eq!(may_list(&loaded, &imported(&loaded, STRONG).expect("accepted")), Ok(true));
    // `true` takes the place of what the files say.
    let text = with("{anonymous: {unsafeEnabled: true}}");
    let loaded = read(&text, &[("MCP_AUTH_ENABLED", "true")]).expect("loads");
    assert_eq!(may_list(&loaded, &Identity::anonymous()), Err(Reason::MethodDisabled));
}

fn beyond_loopback(text: &str, variables: &[(&str, &str)], unsafe_anonymous: bool) -> Result<(), String> {
    let directory = directory(&[("a.yaml", text)]);
    let mut source = source(directory.path(), variables);
    source.listen = "0.0.0.0:8443".parse().expect("an address");
    source.unsafe_anonymous = unsafe_anonymous;
    let stop = tokio_util::sync::CancellationToken::new();
    follow(source, None, |_| {}, stop).map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn an_endpoint_for_other_machines_does_not_start_where_anybody_or_nobody_could_come_in() {
    let off = [("MCP_AUTH_ENABLED", "false")];
    let expected = "MCP_AUTH_ENABLED=false lets anybody in who reaches 0.0.0.0:8443: unset the variable, listen on \
                    127.0.0.1, or give --unsafe-anonymous";
    assert_eq!(beyond_loopback(&all(), &off, false), Err(expected.to_owned()));
    assert_eq!(beyond_loopback(&all(), &off, true), Ok(()));
    let anonymous = with("{anonymous: {unsafeEnabled: true}}");
    let expected = "spec.authentication.anonymous.unsafeEnabled lets anybody in who reaches 0.0.0.0:8443: switch it \
                    off, listen on 127.0.0.1, or give --unsafe-anonymous";
    assert_eq!(beyond_loopback(&anonymous, &[], false), Err(expected.to_owned()));
    let expected = "nobody could prove who they are at 0.0.0.0:8443: add an McpApiKey for the server or another method \
                    of spec.authentication, set MCP_AUTH_API_KEY_FILE, or listen on 127.0.0.1";
    assert_eq!(beyond_loopback(SERVER, &[], false), Err(expected.to_owned()));
    assert_eq!(beyond_loopback(SERVER, &[("MCP_AUTH_API_KEY", STRONG)], false), Ok(()));
    assert_eq!(beyond_loopback(&all(), &[], false), Ok(()));
}

#[test]
fn a_user_of_variables_joins_the_users_of_the_files() {
    let phc = password::hash(b"another password", [7; 16]).expect("hashes");
    let people = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: people}}\nstringData: {{users: \"ann:{phc}\\nbob:{phc}:dev\\n\"}}\n"
    );
    let text = with("{basic: {enabled: true, users: {name: people, key: users}}}") + &people;
    let set = [
        ("MCP_AUTH_USERNAME", "ann"),
        ("MCP_AUTH_PASSWORD", "a long passphrase"),
        ("MCP_AUTH_ROLES", "viewer"),
    ];
    for (text, others) in [(text, 1), (all(), 0)] {
        let loaded = read(&text, &set).expect("loads");
        let users = loaded.materials.values().next().expect("the users");
        let users = Users::parse(std::str::from_utf8(users).expect("a text")).expect("users");
        let ann = users.get("ann").expect("there");
        assert!(password::verify(b"a long passphrase", &ann.phc), "the variable takes the place of the file");
        assert_eq!(users.len(), 1 + others);
        let ann = Identity { issuer: Some(BASIC.to_owned()), ..Identity::new(Method::Basic, "ann", "ann") };
        assert_eq!(may_list(&loaded, &ann), Ok(true));
        let forged = Identity { issuer: Some("https://a".to_owned()), ..ann };
        assert_eq!(may_list(&loaded, &forged), Ok(false), "the same name of another issuer is somebody else");
    }
}

#[test]
fn a_password_is_hashed_once() {
    let directory = directory(&[("a.yaml", &all())]);
    let set = [("MCP_AUTH_USERNAME", "ann"), ("MCP_AUTH_PASSWORD", "a long passphrase")];
    let (source, mut kept) = (source(directory.path(), &set), Kept::default());
    let first = source.load(&mut kept).expect("loads").materials;
    assert_eq!(source.load(&mut kept).expect("loads").materials, first);
}

#[test]
fn tokens_are_verified_with_the_secret_of_a_variable() {
    let set = [("MCP_AUTH_JWT_SECRET", SECRET_32), ("MCP_AUTH_JWT_AUDIENCE", "a, b")];
    let loaded = read(&with("{jwt: [{issuer: mcp-server, jwksUrl: https://a}, {issuer: https://b}]}"), &set)
        .expect("loads");
    let [other, issuer] = &spec(&loaded).jwt[..] else { panic!("the issuer of the file is replaced") };
    assert_eq!(other.issuer, "https://b");
    assert_eq!((issuer.issuer.as_str(), &issuer.jwks_url), ("mcp-server", &None));
    assert_eq!(issuer.audiences, ["a", "b"]);
    assert_eq!(issuer.algorithms, [JwtAlgorithm::HS256]);
    assert_eq!(&*loaded.materials["secret/environment_/jwt"], SECRET_32.as_bytes());
    assert_eq!(loaded.methods, ["API keys (1)", "tokens of https://b", "tokens of mcp-server"]);
    let warning = "whoever knows MCP_AUTH_JWT_SECRET can make tokens for anybody; prefer an algorithm with a public key";
    assert_eq!(loaded.warnings, [warning]);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key").public_key_pem();
    let set = [
        ("MCP_AUTH_JWT_SECRET", key.as_str()),
        ("MCP_AUTH_JWT_ALGORITHM", "EdDSA"),
        ("MCP_AUTH_JWT_ISSUER", "me"),
    ];
    let loaded = read(&all(), &set).expect("loads");
    let issuer = &spec(&loaded).jwt[0];
    assert_eq!((issuer.issuer.as_str(), &issuer.hmac_secret), ("me", &None));
    assert!(issuer.jwks.is_some() && loaded.warnings.is_empty());
}

#[test]
fn weak_and_published_secrets_are_refused_by_the_variable_that_says_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("key");
    std::fs::write(&path, "Abc123!@#Xyz789!@#\n").expect("written");
    let path = path.to_str().expect("a path");
    let published = "is, or holds, an example that a document has published";
    let user = ("MCP_AUTH_USERNAME", "ann");
    for (variables, expected) in [
        (vec![("MCP_AUTH_API_KEY", "short")], "MCP_AUTH_API_KEY: has 5 characters; at least 16 are needed".to_owned()),
        (vec![("MCP_AUTH_API_KEY_FILE", path)], format!("MCP_AUTH_API_KEY_FILE: {published}")),
        (vec![("MCP_AUTH_BEARER_TOKEN", "Abc123Xyz789Abc123")], format!("MCP_AUTH_BEARER_TOKEN: {published}")),
        (vec![user, ("MCP_AUTH_PASSWORD", "short")], "MCP_AUTH_PASSWORD: must have at least 12 characters".to_owned()),
        (vec![user, ("MCP_AUTH_PASSWORD", "secret-password")], format!("MCP_AUTH_PASSWORD: {published}")),
        (vec![("MCP_AUTH_JWT_SECRET", "your-256-bit-secret")], "MCP_AUTH_JWT_SECRET: must have at least 32 bytes for HS256".to_owned()),
        (
            vec![("MCP_AUTH_JWT_SECRET", "demo-secret-key-for-jwt-signing-change-in-production")],
            format!("MCP_AUTH_JWT_SECRET: {published}"),
        ),
        (
            vec![("MCP_AUTH_API_KEY", STRONG), ("MCP_AUTH_ROLES", "viewer,absent")],
            "MCP_AUTH_ROLES: there is no McpRole or ClusterMcpRole \"absent\" in the directory".to_owned(),
        ),
        (
            vec![("MCP_AUTH_ROLES", "viewer")],
            "MCP_AUTH_ROLES: no variable proves a key or a user that could hold them; users and groups of tokens are \
             named in the subjects of roles"
                .to_owned(),
        ),
        (
            vec![("MCP_AUTH_API_KEY", STRONG), ("MCP_AUTH_BEARER_TOKEN", STRONG)],
            "DIR: McpApiKeys env-api-key and env-bearer-token import the same key".to_owned(),
        ),
        (
            vec![("MCP_AUTH_JWT_SECRET", SECRET_32), ("MCP_AUTH_JWT_ISSUER", "kubernetes")],
            "MCP_AUTH_JWT_ISSUER: \"kubernetes\" is the name of another method".to_owned(),
        ),
    ] {
        assert_eq!(error(&all(), &variables), expected);
    }
    let taken = all().replace("{name: ci}", "{name: env-api-key}");
    let expected = "DIR/a.yaml, document 3: metadata.name: \"env-api-key\" is the name of a variable's key";
    assert_eq!(error(&taken, &[("MCP_AUTH_API_KEY", STRONG)]), expected);
}
