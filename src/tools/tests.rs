use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;

use super::*;

/// The tool of this name, canonical or alias.
fn find(name: &str) -> Option<&'static Tool> {
    registry().iter().find(|tool| tool.name == name || tool.aliases.contains(&name))
}

/// What the tool needs, as a role would write it.
fn needed(tool: &Tool) -> String {
    match tool.needs {
        Needs::Permission(permission) => permission.to_string(),
        Needs::Verb(verb) => format!("k8s:<resource>:{verb}"),
    }
}

fn described(schema: &Value, path: &str, undescribed: &mut Vec<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if property["description"].as_str().unwrap_or_default().is_empty() {
            undescribed.push(path.clone());
        }
        described(property, &path, undescribed);
        described(&property["items"], &path, undescribed);
    }
}

#[test]
fn the_schemas_of_all_tools_are_the_agreed_ones() {
    let tools: Vec<Value> = registry()
        .iter()
        .map(|tool| {
            json!({
                "name": tool.name, "aliases": tool.aliases, "title": tool.title, "description": tool.description,
                "permission": needed(tool), "class": tool.needs.class(), "idempotent": tool.idempotent,
                "inputSchema": (tool.input_schema)(), "outputSchema": (tool.output_schema)(),
            })
        })
        .collect();
    let actual = serde_json::to_string_pretty(&tools).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tools/testdata/tools.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &actual).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == actual,
        "schemas changed: look at the difference after UPDATE_GOLDEN=1, it breaks callers"
    );
}

#[test]
fn tools_are_sorted_and_each_name_or_alias_is_used_once() {
    let names: Vec<&str> = registry().iter().map(|tool| tool.name).collect();
    assert!(names.is_sorted(), "{names:?}");
    let mut all = BTreeSet::new();
    for tool in registry() {
        for name in tool.aliases.iter().chain([&tool.name]) {
            assert!(all.insert(*name), "{name} is used twice");
            assert_eq!(find(name).map(|found| found.name), Some(tool.name));
        }
    }
    assert!(find("pods_exec").is_none() && find("").is_none());
}

#[test]
fn each_tool_is_known_by_the_names_that_other_servers_gave_it() {
    for (alias, name) in [
        ("kubernetes_list_pods", "pods_list"),
        ("k8s_list_pods", "pods_list"),
        ("k8s_get_pod_logs", "pods_log"),
        ("k8s_delete_pod", "pods_delete"),
        ("scale_deployment", "deployments_scale"),
        ("k8s_scale_deployment", "deployments_scale"),
        ("k8s_restart_deployment", "deployments_restart"),
        ("kubernetes_list_namespaces", "namespaces_list"),
    ] {
        assert_eq!(find(alias).map(|tool| tool.name), Some(name), "{alias}");
    }
    for tool in registry() {
        for prefix in ["kubernetes_", "k8s_", ""] {
            let Some(family) = tool.aliases.last() else { continue };
            assert!(tool.aliases.contains(&format!("{prefix}{family}").as_str()), "{prefix}{family}");
        }
    }
}

#[test]
fn each_tool_needs_a_permission_of_the_catalogue_that_names_its_resource() {
    for tool in registry() {
        assert!(tool.needs.permissions().next().is_some(), "{}", tool.name);
        let Needs::Permission(permission) = tool.needs else { continue };
        assert!(Permission::all().any(|known| known == permission), "{}", tool.name);
        let entry = permission.entry();
        match entry.family {
            "k8s" => assert!(tool.name.starts_with(entry.resource), "{} needs {permission}", tool.name),
            _ => assert_eq!((entry.resource, entry.verb), ("tools", tool.name)),
        }
    }
}

#[test]
fn tools_and_all_their_fields_are_described() {
    let mut undescribed = Vec::new();
    for tool in registry() {
        assert!(tool.title.len() > 3 && tool.description.ends_with('.'), "{}", tool.name);
        described(&Value::Object((tool.input_schema)()), tool.name, &mut undescribed);
        described(&Value::Object((tool.output_schema)()), tool.name, &mut undescribed);
    }
    assert!(undescribed.is_empty(), "{undescribed:?}");
}

#[test]
fn schemas_are_closed_objects_without_references() {
    for tool in registry() {
        let (input, output) = ((tool.input_schema)(), (tool.output_schema)());
        assert_eq!(input["additionalProperties"], json!(false), "{}", tool.name);
        for schema in [&input, &output] {
            assert_eq!(schema["type"], json!("object"), "{}", tool.name);
            assert_eq!(schema["$schema"], json!("https://json-schema.org/draft/2020-12/schema"));
            assert!(!Value::Object(schema.clone()).to_string().contains("$ref"), "{}", tool.name);
        }
    }
}

#[test]
fn what_changes_something_names_one_object_in_one_namespace() {
    for tool in registry().iter().filter(|tool| !tool.needs.class().is_read_only()) {
        let required = &(tool.input_schema)()["required"];
        for argument in ["namespace", "name"] {
            assert!(required.as_array().unwrap().contains(&json!(argument)), "{} {argument}", tool.name);
        }
    }
}

#[test]
fn every_tool_takes_what_its_schema_requires_and_refuses_what_it_does_not_know() {
    for tool in registry() {
        let required = (tool.input_schema)()["required"].clone();
        let mut given = Map::new();
        for name in required.as_array().unwrap() {
            let name = name.as_str().unwrap();
            let value = match name {
                "replicas" => json!(3),
                "resource" => json!("pods"),
                "namespace" => json!("shop"),
                _ => json!("web"),
            };
            given.insert(name.to_owned(), value);
        }
        let call = (tool.parse)(given.clone()).unwrap_or_else(|error| panic!("{}: {error}", tool.name));
        let expected =
            if given.contains_key("namespace") { Target::Namespace("shop") } else { Target::Anywhere };
        assert_eq!(call.target(), expected, "{}", tool.name);
        let permission = tool
            .needs
            .permissions()
            .find(|permission| call.permission().is_none_or(|chosen| chosen == *permission));
        let entry = permission.expect("the tool can need it").entry();
        if entry.family == "k8s" {
            assert!(call.resource().starts_with(entry.resource), "{}", call.resource());
        }
        if given.contains_key("name") {
            assert!(call.resource().ends_with("/web"), "{}: {}", tool.name, call.resource());
        }
        given.insert("confirm".to_owned(), json!(true));
        let error = (tool.parse)(given).map(|_| ()).expect_err("refused").to_string();
        assert!(error.starts_with("argument \"confirm\" is not known"), "{}: {error}", tool.name);
    }
}

#[test]
fn a_list_with_a_namespace_acts_on_that_namespace_alone() {
    for tool in registry().iter().filter(|tool| (tool.input_schema)()["properties"].get("continue").is_some())
    {
        if tool.name == "namespaces_list" {
            continue;
        }
        let mut given = json!({"namespace": "shop"});
        if matches!(tool.needs, Needs::Verb(_)) {
            given["resource"] = json!("deployments.apps");
        }
        let call = (tool.parse)(given.as_object().unwrap().clone()).expect("valid");
        assert_eq!(call.target(), Target::Namespace("shop"), "{}", tool.name);
        given["namespace"] = json!("*");
        assert!((tool.parse)(given.as_object().unwrap().clone()).is_err());
    }
}
