use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use super::*;
use crate::authn::{ApiKey, authenticate_key};
use crate::authz::{Permission, Target, authorize};

pub(super) const SERVER: &str =
    "apiVersion: portcullis.dev/v1alpha1\nkind: McpServer\nmetadata: {name: ops}\nspec: {}\n";
pub(super) const ROLE: &str = "apiVersion: portcullis.dev/v1alpha1\nkind: McpRole\nmetadata: {name: viewer}\nspec: {permissions: ['k8s:pods:list']}\n";
pub(super) const KEY: &str = "apiVersion: portcullis.dev/v1alpha1\nkind: McpApiKey\nmetadata: {name: ci}\nspec: {identity: ci-bot, servers: [ops], roles: [{kind: McpRole, name: viewer}]}\n";

pub(super) fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("written");
    }
    directory
}

/// What a directory is read with on this machine.
pub(super) fn source(directory: &Path, variables: &[(&str, &str)]) -> Source {
    Source {
        directory: directory.to_owned(),
        operator_namespace: "portcullis-system".to_owned(),
        environment: variables.iter().map(|(name, value)| (OsString::from(name), value.into())).collect(),
        listen: "127.0.0.1:8443".parse().expect("an address"),
        unsafe_anonymous: false,
    }
}

/// Reads one file with these variables. Errors name the directory `DIR`.
pub(super) fn read(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let directory = directory(&[("a.yaml", text)]);
    let loaded = source(directory.path(), variables).load(&mut Kept::default());
    loaded.map_err(|error| error.to_string().replace(&directory.path().display().to_string(), "DIR"))
}

fn error(files: &[(&str, &str)]) -> String {
    let directory = directory(files);
    load(directory.path(), "portcullis-system").expect_err("refused").to_string()
}

#[test]
fn three_documents_are_a_server_with_a_key_that_works() {
    let all = format!("{SERVER}---\n{ROLE}---\n{KEY}");
    let directory = directory(&[("all.yaml", &all)]);
    let loaded = load(directory.path(), "portcullis-system").expect("loads");
    let [file] = &loaded.keys[..] else { panic!("one key") };
    assert!(file.generated);
    assert_eq!(fs::metadata(&file.path).expect("there").permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file.path).expect("readable");
    let key = ApiKey::parse(text.trim()).expect("a key");
    let snapshot = loaded.subject.snapshot(&loaded.objects);
    let held = &snapshot.keys[key.id()];
    let identity = authenticate_key(&key, Some(&held.record)).expect("proves");
    assert_eq!(identity.subject, "ci-bot");
    let grants = snapshot.grants_of_key(key.id()).expect("there is a key");
    assert!(authorize(&grants, Permission::of("pods", "list"), Target::Namespace("default")).is_ok());
    let again = load(directory.path(), "portcullis-system").expect("loads");
    assert!(!again.keys[0].generated, "a key is generated once");
    assert_eq!(again.subject.snapshot(&again.objects).keys[key.id()].record.verifier, held.record.verifier);
}

#[test]
fn an_error_names_file_document_and_field() {
    let typo = SERVER.replace("spec: {}", "spec: {transports: {sse: {pth: /x}}}");
    let two = format!("{ROLE}---\n{typo}");
    let text = error(&[("a.yaml", &two)]);
    assert!(text.ends_with("a.yaml, document 2: spec.transports.sse.pth: no such field"), "{text}");
    let text = error(&[("a.yaml", &SERVER.replace("spec: {}", "spec: {replicas: 99}"))]);
    assert!(text.ends_with("document 1: spec.replicas: must be from 1 to 20, not 99"), "{text}");
    let text = error(&[("a.yaml", &KEY.replace("identity: ci-bot, ", ""))]);
    assert!(text.contains("missing field `identity`"), "{text}");
    let text = error(&[("a.yaml", &SERVER.replace("McpServer", "McpServant"))]);
    assert!(text.contains("document 1: kind: must be McpServer,"), "{text}");
    let text = error(&[("a.yaml", "a: [")]);
    assert!(text.contains("a.yaml: not YAML"), "{text}");
}

#[test]
fn exactly_one_server_is_served_with_objects_of_its_namespace() {
    assert!(error(&[("a.yaml", ROLE)]).ends_with("one McpServer is needed, and there are 0"));
    let elsewhere = ROLE.replace("{name: viewer}", "{name: viewer, namespace: other}");
    let text = error(&[("a.yaml", SERVER), ("b.yaml", &elsewhere)]);
    let expected = "b.yaml, document 1: metadata.namespace: must be the server's, \"default\", not \"other\"";
    assert!(text.ends_with(expected), "{text}");
    assert!(error(&[("a.yaml", SERVER), ("b.yaml", ROLE), ("c.yaml", ROLE)]).contains("is there twice"));
}

/// A role of this kind and name with this `spec`.
fn role(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: portcullis.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_role_that_cannot_count_is_refused_with_its_place() {
    let everywhere = |scope: &str| {
        let servers = "servers: [{namespace: default, name: ops}]";
        role("ClusterMcpRole", "wide", &format!("{{permissions: ['k8s:pods:list'], {servers}, {scope}}}"))
    };
    for (roles, error) in [
        (
            role("McpRole", "reader", "{permissions: ['k8s:pods:list', 'k8s:pods:lst']}"),
            "document 2: McpRole reader grants nothing: spec.permissions[1]: \"k8s:pods:lst\" is not in the catalogue",
        ),
        (
            role("McpRole", "reader", "{permissions: ['k8s:po*ds:list']}"),
            "document 2: McpRole reader grants nothing: spec.permissions[0]: \"k8s:po*ds:list\" ",
        ),
        (
            role("McpRole", "reader", "{inherits: [gone]}"),
            "document 2: McpRole reader grants nothing: spec.inherits[0]: there is no role \"gone\"",
        ),
        (
            role("McpRole", "a", "{inherits: [b]}") + &role("McpRole", "b", "{inherits: [a]}"),
            "document 2: McpRole a grants nothing: spec.inherits[0]: roles inherit in a circle: a -> b -> a",
        ),
        (
            // The role that is at fault is named, and not one that inherits from it.
            role("McpRole", "a", "{inherits: [b]}")
                + &role("McpRole", "b", "{permissions: ['k8s:pods:lst']}"),
            "document 3: McpRole b grants nothing: spec.permissions[0]: \"k8s:pods:lst\" is not in the catalogue",
        ),
        (
            everywhere("namespaces: ['kube-*']"),
            "document 2: ClusterMcpRole wide grants nothing: spec.namespaces[0]: \"kube-*\" matches nothing",
        ),
        (
            everywhere("inherits: [gone], allNamespaces: true"),
            "document 2: ClusterMcpRole wide grants nothing: spec.inherits[0]: there is no role \"gone\"",
        ),
    ] {
        let directory = directory(&[("a.yaml", &format!("{SERVER}{roles}---\n{KEY}"))]);
        let source = source(directory.path(), &[]);
        let expected = format!("{}/a.yaml, {error}", directory.path().display());
        for refused in [
            source.load(&mut Kept::default()).expect_err("refused").to_string(),
            source.survey().expect_err("refused").to_string(),
        ] {
            assert!(refused.starts_with(&expected), "{refused}");
        }
        assert!(!directory.path().join(GENERATED).exists(), "no key is made for what is not served");
    }
}

#[tokio::test(start_paused = true)]
async fn a_role_that_an_edit_breaks_keeps_what_it_granted() {
    let directory = directory(&[("a.yaml", SERVER), ("b.yaml", ROLE)]);
    let stop = CancellationToken::new();
    let (policy, _, task) = follow(source(directory.path(), &[]), None, |_| {}, stop.clone()).expect("loads");
    let (task, mut changes) = (tokio::spawn(task), policy.changes());
    let roles = || policy.load().roles.iter().map(|role| role.permissions().len()).collect::<Vec<_>>();
    assert_eq!(roles(), [1]);
    fs::write(directory.path().join("b.yaml"), ROLE.replace("pods:list", "pods:lst")).expect("written");
    changes.changed().await.expect("followed");
    assert_eq!(roles(), [1], "the last good policy stays in use");
    let mended = ROLE.replace("'k8s:pods:list'", "'k8s:pods:list', 'k8s:services:list'");
    fs::write(directory.path().join("b.yaml"), mended).expect("written");
    changes.changed().await.expect("followed");
    assert_eq!(roles(), [2]);
    stop.cancel();
    task.await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn an_edit_is_noticed_and_a_broken_one_changes_nothing() {
    let directory = directory(&[("a.yaml", SERVER), ("b.yaml", ROLE)]);
    let stop = CancellationToken::new();
    let path = directory.path().to_owned();
    let source = source(&path, &[]);
    let (policy, _, task) = follow(source, None, |_| {}, stop.clone()).expect("loads");
    let task = tokio::spawn(task);
    let replicas = || policy.load().server.as_ref().map(|server| server.spec.replicas);
    assert_eq!(replicas(), Some(1));
    let mut changes = policy.changes();
    let edited = SERVER.replace("spec: {}", "spec: {replicas: 2}");
    fs::write(directory.path().join("a.yaml"), &edited).expect("written");
    changes.changed().await.expect("followed");
    assert_eq!(replicas(), Some(2));
    fs::write(directory.path().join("c.yaml"), "kind: [").expect("written");
    changes.changed().await.expect("followed");
    assert_eq!(replicas(), Some(2));
    stop.cancel();
    task.await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_changed_secret_reaches_the_materials_before_the_policy() {
    let secret = directory(&[("users", "v1\n")]);
    let users = secret.path().join("users");
    let text = format!(
        "{}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: people}}\nstringData: {{users: '${{USERS}}'}}\n",
        SERVER.replace(
            "spec: {}",
            "spec: {authentication: {basic: {enabled: true, users: {name: people, key: users}}}}"
        )
    );
    let directory = directory(&[("a.yaml", &text)]);
    let source = source(directory.path(), &[("USERS_FILE", users.to_str().expect("a path"))]);
    let published = Arc::new(Mutex::new(Vec::new()));
    let (seen, stop) = (published.clone(), CancellationToken::new());
    let publish = move |materials: Materials| {
        let text =
            materials.get("secret/people/users").map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        seen.lock().expect("no panic").push(text.unwrap_or_default());
    };
    let (policy, _, task) = follow(source, None, publish, stop.clone()).expect("loads");
    let (task, mut changes) = (tokio::spawn(task), policy.changes());
    fs::write(&users, "version 2").expect("written");
    changes.changed().await.expect("followed");
    assert_eq!(*published.lock().expect("no panic"), ["v1", "version 2"]);
    fs::remove_file(&users).expect("removed");
    changes.changed().await.expect("followed");
    assert_eq!(published.lock().expect("no panic").len(), 2, "what cannot be read changes nothing");
    fs::write(&users, "version three").expect("written");
    changes.changed().await.expect("followed");
    assert_eq!(*published.lock().expect("no panic"), ["v1", "version 2", "version three"]);
    stop.cancel();
    task.await.expect("ends");
}

fn server(authentication: &str) -> String {
    SERVER.replace("spec: {}", &format!("spec: {{authentication: {authentication}}}"))
}

#[test]
fn secrets_and_config_maps_are_what_the_server_refers_to() {
    let text = server(
        "{jwt: [{issuer: a, jwks: {name: keys, key: jwks.json}}, {issuer: b, hmacSecret: {name: mcp-secrets, key: jwt-secret}}]}",
    ) + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: keys}\ndata: {jwks.json: '{}', other: x}\n"
        + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: mcp-secrets}\ntype: Opaque\ndata: {jwt-secret: aGVs\n    bG8=, api-key: eA==}\n";
    let loaded = read(&text, &[]).expect("loads");
    let texts = loaded.materials.iter().map(|(path, bytes)| (path.as_str(), &**bytes));
    let expected: Vec<(&str, &[u8])> =
        vec![("configmap/keys/jwks.json", b"{}"), ("secret/mcp-secrets/jwt-secret", b"hello")];
    assert_eq!(texts.collect::<Vec<_>>(), expected, "and nothing else of them");
}

#[test]
fn a_reference_that_leads_nowhere_is_an_error_that_names_field_and_entry() {
    let people = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: people}\nstringData: {a: b}\n";
    for (authentication, error) in [
        (
            "{basic: {enabled: true, users: {name: people, key: users}}}",
            "spec.authentication.basic.users: Secret \"people\" has no entry \"users\"",
        ),
        (
            "{basic: {enabled: true, users: {name: folk, key: users}}}",
            "spec.authentication.basic.users: there is no document of Secret \"folk\" in the directory",
        ),
        (
            "{jwt: [{issuer: a, jwks: {name: people, key: a}}]}",
            "spec.authentication.jwt[0].jwks: there is no document of ConfigMap \"people\" in the directory",
        ),
        (
            "{jwt: [{issuer: a, hmacSecret: {name: people, key: b}}]}",
            "spec.authentication.jwt[0].hmacSecret: Secret \"people\" has no entry \"b\"",
        ),
        (
            "{clientCertificates: {mode: VerifyIfGiven, ca: {name: ca, key: ca.crt}}}",
            "spec.authentication.clientCertificates.ca: there is no document of ConfigMap \"ca\" in the directory",
        ),
        (
            "{clientCertificates: {mode: RequireAndVerify}}",
            "spec.authentication.clientCertificates.ca: is required when client certificates are verified",
        ),
        (
            "{jwt: [{issuer: basic, jwks: {kind: Secret, name: people, key: a}}]}",
            "spec.authentication.jwt[0].issuer: \"basic\" is the name of another method",
        ),
        (
            "{jwt: [{issuer: a}]}",
            "spec.authentication.jwt[0].issuer: must be an https URL when its keys are discovered",
        ),
        (
            "{jwt: [{issuer: https://a}, {issuer: https://a}]}",
            "spec.authentication.jwt[1].issuer: \"https://a\" is there twice",
        ),
        (
            "{resource: 'http://here'}",
            "spec.authentication.resource: must begin with https:// and have neither query nor fragment",
        ),
    ] {
        let outcome = read(&(server(authentication) + people), &[]);
        assert_eq!(outcome.expect_err("refused"), format!("DIR/a.yaml, document 1: {error}"));
    }
}

#[test]
fn a_secret_that_is_written_wrong_is_refused_without_showing_it() {
    for (text, error) in [
        ("kind: Secret\nmetadata: {name: a}\ndata: {k: hidden!}", "data.k: is not base64"),
        ("kind: Secret\nmetadata: {name: a}\nstringData: {k: 1}", "stringData.k: must be a text"),
        ("kind: Secret\nmetadata: {name: a}\nstringData: hidden", "stringData: must be an object"),
        ("kind: Secret\nmetadata: {name: a}\nbinaryData: {}", "binaryData: no such field"),
        ("kind: ConfigMap\nmetadata: {name: a}\ntype: x", "type: no such field"),
        (
            "kind: ConfigMap\nmetadata: {name: a_b}",
            "metadata.name: must have lower-case letters, digits, '-' and '.' only",
        ),
        (
            "kind: ConfigMap\nmetadata: {name: a}\ndata: {../x: text}",
            "data: \"../x\" must have letters, digits, '-', '.' and '_' only",
        ),
        (
            "kind: ConfigMap\nmetadata: {name: a}\ndata: {x: text}\nbinaryData: {x: eA==}",
            "data.x: is in binaryData as well",
        ),
        (
            "kind: Secret\nmetadata: {name: a, namespace: b}",
            "metadata.namespace: must be the server's, \"default\", not \"b\"",
        ),
    ] {
        let outcome = read(&format!("{SERVER}---\napiVersion: v1\n{text}\n"), &[]);
        assert_eq!(outcome.expect_err("refused"), format!("DIR/a.yaml, document 2: {error}"));
    }
    let twice = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: a}\n";
    let outcome = read(&format!("{SERVER}{twice}{twice}"), &[]);
    assert_eq!(
        outcome.expect_err("refused"),
        "DIR/a.yaml, document 3: metadata.name: Secret a is there twice"
    );
}

#[test]
fn a_variable_in_the_files_is_a_text_and_never_shown() {
    let text = SERVER.to_owned() + "---\n" + ROLE + "---\n" + &KEY.replace("ci-bot", "'${WHO}'");
    let loaded = read(&text, &[("WHO", "ann")]).expect("loads");
    assert_eq!(loaded.objects.keys["ci"].spec.identity, "ann");
    let unset = read(&text, &[]).expect_err("refused");
    assert_eq!(unset, "DIR/a.yaml, document 3: spec.identity: variable WHO is not set");
    let text = SERVER.replace("{}", "{replicas: '${COUNT}'}");
    let hidden = read(&text, &[("COUNT", "hidden")]).expect_err("refused");
    let expected = "DIR/a.yaml, document 1: spec.replicas: what the variable holds does not fit here; it is always a text";
    assert_eq!(hidden, expected);
}

#[test]
fn fields_that_the_spec_does_not_have_are_refused_at_every_depth() {
    for (authentication, error) in [
        ("{apiKey: {}}", "spec.authentication.apiKey: no such field"),
        ("{basic: {enabld: true}}", "spec.authentication.basic.enabld: no such field"),
        (
            "{jwt: [{issuer: https://a, claims: {usr: x}}]}",
            "spec.authentication.jwt[0].claims.usr: no such field",
        ),
        (
            "{tokens: {lifetimeSeconds: 7200}}",
            "spec.authentication.tokens.lifetimeSeconds: must be from 60 to 3600, not 7200",
        ),
        (
            "{clientCertificates: {ca: {nam: x}}}",
            "spec.authentication.clientCertificates.ca.nam: no such field",
        ),
        (
            "{blocked: [{kind: User, name: ''}]}",
            "spec.authentication.blocked[0].name: must have at least 1 characters",
        ),
        (
            "{clientCertificates: {mode: Maybe}}",
            "spec.authentication.clientCertificates.mode: unknown variant `Maybe`, expected one of `None`, `Request`, `RequireAny`, `VerifyIfGiven`, `RequireAndVerify`",
        ),
    ] {
        let outcome = read(&server(authentication), &[]);
        assert_eq!(outcome.expect_err("refused"), format!("DIR/a.yaml, document 1: {error}"));
    }
    let all = "{apiKeys: {}, jwt: [], serviceAccounts: {}, basic: {}, clientCertificates: {}, tokens: {}, anonymous: {}, blocked: []}";
    let defaults = read(&server(all), &[]).expect("loads").objects.server.expect("a server");
    assert_eq!(defaults.spec.authentication, crate::api::AuthenticationSpec::default());
}
