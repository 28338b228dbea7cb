use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::authn::authenticate_key;
use crate::authz::{Permission, Target, authorize};

const SERVER: &str =
    "apiVersion: portcullis.dev/v1alpha1\nkind: McpServer\nmetadata: {name: ops}\nspec: {}\n";
const ROLE: &str = "apiVersion: portcullis.dev/v1alpha1\nkind: McpRole\nmetadata: {name: viewer}\nspec: {permissions: ['k8s:pods:list']}\n";
const KEY: &str = "apiVersion: portcullis.dev/v1alpha1\nkind: McpApiKey\nmetadata: {name: ci}\nspec: {identity: ci-bot, servers: [ops], roles: [{kind: McpRole, name: viewer}]}\n";

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("written");
    }
    directory
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
    assert!(authorize(&held.roles, Permission::of("pods", "list"), Target::Namespace("default")).is_ok());
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
    assert!(error(&[("a.yaml", SERVER), ("b.yaml", &elsewhere)]).contains("metadata.namespace is \"other\""));
    assert!(error(&[("a.yaml", SERVER), ("b.yaml", ROLE), ("c.yaml", ROLE)]).contains("is there twice"));
}

#[tokio::test(start_paused = true)]
async fn an_edit_is_noticed_and_a_broken_one_changes_nothing() {
    let directory = directory(&[("a.yaml", SERVER), ("b.yaml", ROLE)]);
    let stop = CancellationToken::new();
    let path = directory.path().to_owned();
    let (policy, _, _, task) = follow(path, "portcullis-system".into(), None, stop.clone()).expect("loads");
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
