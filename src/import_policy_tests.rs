//! `portcullis import-policy`, from the file that somebody has to what `kubectl` is given.

use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::authz::{Grants, Permission, Target as Place, authorize};
use crate::import_policy_command::ImportPolicy as Command;
use crate::index::files;

/// The four roles that the document begins with.
const PRESETS: &str = r#"roles:
  - name: "viewer"
    description: "Read-only access to Kubernetes resources"
    permissions:
      - "k8s:pods:list"
      - "k8s:services:list"
      - "k8s:deployments:list"
      - "k8s:pods:logs"
    namespaces:
      - "default"
      - "development"

  - name: "operator"
    description: "Operational access for routine maintenance"
    permissions:
      - "k8s:pods:*"
      - "k8s:services:list"
      - "k8s:deployments:*"
    namespaces:
      - "default"
      - "development"
      - "staging"

  - name: "admin"
    description: "Full administrative access"
    permissions:
      - "k8s:*"
    # No namespaces = access to all namespaces

  - name: "developer"
    description: "Development environment access"
    permissions:
      - "k8s:pods:list"
      - "k8s:pods:logs"
      - "k8s:deployments:list"
      - "k8s:deployments:scale"
    namespaces:
      - "development"
      - "feature-*"  # Wildcard namespace matching
"#;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    command: Command,
}

/// What the command prints on standard output and standard error, and how it fails.
struct Ran {
    yaml: String,
    notes: String,
    error: Option<String>,
}

fn run(text: &str, arguments: &[&str]) -> Ran {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("it is written");
    let path = file.path().to_string_lossy().into_owned();
    let line = Line::try_parse_from([&["import-policy", &path], arguments].concat()).expect("a command line");
    let (mut yaml, mut notes) = (Vec::new(), Vec::new());
    let outcome = line.command.run(&mut yaml, &mut notes);
    let text = |bytes| String::from_utf8(bytes).expect("text").replace(&path, "FILE");
    let error = outcome.err().map(|error| format!("{error:#}").replace(&path, "FILE"));
    Ran { yaml: text(yaml), notes: text(notes), error }
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).expect("YAML")
}

/// The specs of the objects, for the server agents/ops.
fn specs(text: &str) -> Vec<Value> {
    let ran = run(text, &["--server", "agents/ops"]);
    assert_eq!(ran.error, None, "{}", ran.notes);
    documents(&ran.yaml).into_iter().map(|mut object| object["spec"].take()).collect()
}

/// One role with these lines.
fn file(lines: &str) -> String {
    format!("roles:\n- name: team\n{lines}\n")
}

#[test]
fn the_four_presets_become_the_objects_that_say_the_same() {
    let servers = json!([{"namespace": "agents", "name": "ops"}]);
    let object = |name: &str, description: &str, permissions: &[&str], namespaces: Option<&[&str]>| {
        let mut spec = json!({"description": description, "permissions": permissions, "servers": servers,
            "allNamespaces": namespaces.is_none()});
        if let Some(namespaces) = namespaces {
            spec["namespaces"] = json!(namespaces);
        }
        json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole", "metadata": {"name": name}, "spec": spec})
    };
    let expected = [
        object(
            "viewer",
            "Read-only access to Kubernetes resources",
            &["k8s:pods:list", "k8s:services:list", "k8s:deployments:list", "k8s:pods:logs"],
            Some(&["default", "development"]),
        ),
        object(
            "operator",
            "Operational access for routine maintenance",
            &["k8s:pods:*", "k8s:services:list", "k8s:deployments:*"],
            Some(&["default", "development", "staging"]),
        ),
        object("admin", "Full administrative access", &["k8s:*"], None),
        object(
            "developer",
            "Development environment access",
            &["k8s:pods:list", "k8s:pods:logs", "k8s:deployments:list", "k8s:deployments:scale"],
            Some(&["development", "feature-*"]),
        ),
    ];
    let ran = run(PRESETS, &["--server", "agents/ops"]);
    assert_eq!(ran.error, None);
    assert_eq!(documents(&ran.yaml), expected);
    assert_eq!(ran.notes, "note: role \"admin\" counts in every namespace: allNamespaces is true\n");
}

#[test]
fn what_the_presets_grant_is_what_the_document_says_and_where() {
    let ran = run(PRESETS, &["--server", "agents/ops"]);
    let may = |role: &str, permission: &str, namespace: &str| {
        let object = documents(&ran.yaml).into_iter().find(|object| object["metadata"]["name"] == role);
        let role: ClusterMcpRole = serde_json::from_value(object.expect("it is there")).expect("a role");
        let role = std::sync::Arc::new(
            Role::from_cluster_role(&role, "portcullis-system", &NamespaceLabels::new(), &|_| None)
                .expect("it counts"),
        );
        let (resource, verb) = permission.split_once(':').expect("two parts");
        let permission = Permission::named(resource, verb).expect("in the catalogue");
        authorize(&Grants::all_of([role]), permission, Place::Namespace(namespace)).is_ok()
    };
    for (role, permission, namespace, allowed) in [
        ("viewer", "pods:logs", "default", true),
        ("viewer", "pods:delete", "default", false),
        ("viewer", "pods:list", "production", false),
        ("operator", "pods:delete", "staging", true),
        ("operator", "deployments:scale", "development", true),
        ("operator", "deployments:scale", "production", false),
        ("operator", "replicasets:list", "default", false),
        ("admin", "pods:delete", "production", true),
        ("admin", "services:list", "kube-system", true),
        ("developer", "deployments:scale", "feature-login", true),
        ("developer", "deployments:scale", "features", false),
        ("developer", "deployments:restart", "development", false),
    ] {
        assert_eq!(may(role, permission, namespace), allowed, "{role} {permission} {namespace}");
    }
}

#[test]
fn what_is_printed_can_be_served() {
    let ran = run(PRESETS, &["--server", "default/ops"]);
    let directory = tempfile::tempdir().expect("a directory");
    let server = "apiVersion: portcullis.dev/v1alpha1\nkind: McpServer\nmetadata: {name: ops}\nspec: {}\n";
    std::fs::write(directory.path().join("server.yaml"), server).expect("it is written");
    std::fs::write(directory.path().join("roles.yaml"), &ran.yaml).expect("it is written");
    let loaded = files::load(directory.path(), "portcullis-system").expect("it can be served");
    assert_eq!(loaded.objects.cluster_roles.len(), 4);
}

#[test]
fn no_namespaces_an_empty_list_and_a_star_mean_every_namespace() {
    for namespaces in
        ["", "  namespaces:", "  namespaces: []", "  namespaces: ['*']", "  namespaces: [default, '*']"]
    {
        let spec = &specs(&file(&format!("  permissions: ['k8s:pods:list']\n{namespaces}")))[0];
        assert_eq!(
            (&spec["allNamespaces"], &spec["namespaces"]),
            (&json!(true), &Value::Null),
            "{namespaces}"
        );
    }
    let spec = &specs(&file("  permissions: ['k8s:pods:list']\n  namespaces: [on, 'team-*', on]"))[0];
    assert_eq!((&spec["allNamespaces"], &spec["namespaces"]), (&json!(false), &json!(["on", "team-*"])));
}

#[test]
fn texts_that_a_reader_of_yaml_could_take_for_something_else_stay_texts() {
    let text = "roles:\n- name: 'on'\n  description: \"yes: # no\\n- 1\"\n  permissions: ['k8s:*']\n  namespaces: ['123', 'null', '1e3', 'no']\n";
    let ran = run(text, &["--server", "agents/ops"]);
    let object = &documents(&ran.yaml)[0];
    assert_eq!(
        (&object["metadata"]["name"], &object["spec"]["description"]),
        (&json!("on"), &json!("yes: # no\n- 1"))
    );
    assert_eq!(object["spec"]["namespaces"], json!(["123", "null", "1e3", "no"]));
    // kubectl reads YAML 1.1, to which these are no texts without quotes.
    assert!(!ran.yaml.contains("name: on\n") && !ran.yaml.contains("- no\n"), "{}", ran.yaml);
}

#[test]
fn a_permission_that_is_not_in_the_catalogue_fails_the_command_with_its_place() {
    let text = file(
        "  permissions:\n  - k8s:pods:list\n  - k8s:secrets:manage\n  - k8s:deployment:scale\n  - k8s:pods:exec\n  - pods:logs\n  - 'k8s:*:list'",
    );
    let ran = run(&text, &["--server", "agents/ops"]);
    assert_eq!(ran.yaml, "");
    let expected = "\
line 5: role \"team\", permissions[1]: \"k8s:secrets:manage\" is not in the catalogue of permissions; nothing there is like it
line 6: role \"team\", permissions[2]: \"k8s:deployment:scale\" is not in the catalogue of permissions; the nearest there is k8s:deployments:scale
line 7: role \"team\", permissions[3]: \"k8s:pods:exec\" is not in the catalogue of permissions; of pods there are get, list, watch, logs, restart, delete
line 8: role \"team\", permissions[4]: \"pods:logs\" must begin with \"k8s:\" or \"mcp:\"; the nearest there is k8s:pods:logs
line 9: role \"team\", permissions[5]: \"k8s:*:list\" has a wildcard elsewhere than at the end, which grants nothing there; name each resource
note: role \"team\" counts in every namespace: allNamespaces is true
";
    assert_eq!(ran.notes, expected);
    let error = "5 of the permissions cannot be granted: correct them, or leave them out with --skip-unknown";
    assert_eq!(ran.error.as_deref(), Some(error));
    let ran = run(&text, &["--server", "agents/ops", "--skip-unknown"]);
    assert_eq!((ran.error, ran.notes.as_str()), (None, expected));
    assert_eq!(documents(&ran.yaml)[0]["spec"]["permissions"], json!(["k8s:pods:list"]));
}

#[test]
fn a_role_of_which_nothing_is_left_is_left_out() {
    let text = format!("{PRESETS}  - name: keeper\n    permissions: ['k8s:secrets:manage']\n");
    let ran = run(&text, &["--server", "agents/ops", "--skip-unknown"]);
    assert_eq!(documents(&ran.yaml).len(), 4);
    assert!(ran.notes.contains("note: role \"keeper\" grants nothing and is left out\n"), "{}", ran.notes);
    let ran = run(&file("  permissions: []"), &["--server", "agents/ops"]);
    assert_eq!((ran.yaml.as_str(), ran.error.as_deref()), ("", Some("no role of FILE can be imported")));
}

#[test]
fn for_one_namespace_only_the_roles_of_that_namespace_are_made() {
    let text = format!(
        "{PRESETS}  - name: tester\n    permissions: ['k8s:pods:*']\n    namespaces: [development]\n"
    );
    let ran = run(&text, &["--namespace", "development"]);
    let expected = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
        "metadata": {"name": "tester", "namespace": "development"}, "spec": {"permissions": ["k8s:pods:*"]}});
    assert_eq!(documents(&ran.yaml), [expected]);
    assert_eq!(ran.notes.lines().count(), 4);
    assert!(
        ran.notes.contains("role \"developer\" is for development, feature-* and is left out"),
        "{}",
        ran.notes
    );
    assert!(ran.notes.contains("role \"admin\" is for every namespace and is left out"), "{}", ran.notes);
}

#[test]
fn a_file_that_cannot_be_imported_is_refused_with_line_and_role() {
    let one = "  permissions: ['k8s:pods:list']";
    for (text, error) in [
        (
            format!("roles:\n- name: Team A\n{one}\n"),
            "cannot import FILE: line 2: role \"Team A\": the name of an object",
        ),
        (
            format!("{}- name: team\n{one}\n", file(one)),
            "cannot import FILE: line 4: role \"team\" is there twice",
        ),
        (
            file(&format!("{one}\n  namespaces: [Team]")),
            "cannot import FILE: line 2: role \"team\": spec.namespaces[0]: \"Team\" must be a namespace",
        ),
        (
            file(&format!("{one}\n  namespaces: ['kube-*']")),
            "cannot import FILE: line 2: role \"team\": spec.namespaces[0]: \"kube-*\" matches nothing",
        ),
        (
            file(&format!("{one}\n  description: {}", "x".repeat(1025))),
            "cannot import FILE: line 2: role \"team\": spec.description: must have at most 1024 characters",
        ),
        (file(&format!("{one}\n  namespace: default")), "cannot import FILE: "),
        ("rules: []".to_owned(), "cannot import FILE: "),
        ("roles: [".to_owned(), "cannot import FILE: "),
        ("a".repeat(MAX + 1), "cannot import FILE: has more than"),
    ] {
        let ran = run(&text, &["--server", "agents/ops"]);
        let said = ran.error.expect("it is refused");
        assert!(said.starts_with(error) && ran.yaml.is_empty(), "{said}");
    }
}

#[test]
fn the_target_must_be_said_once() {
    let parse =
        |arguments: &[&str]| Line::try_parse_from([&["import-policy", "file"], arguments].concat()).is_ok();
    assert!(
        parse(&["--server", "agents/ops", "--server", "agents/other"]) && parse(&["--namespace", "agents"])
    );
    assert!(
        !parse(&[])
            && !parse(&["--server", "ops"])
            && !parse(&["--server", "agents/ops", "--namespace", "agents"])
    );
}
