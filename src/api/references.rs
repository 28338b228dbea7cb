//! Holds every field of the kinds to the confused-deputy matrix: a field that names, selects, owns or templates something
//! has a case in `e2e/deputy/`, any other stands in `e2e/deputy/plain.yaml` with what it is instead.
//!
//! A tenant that may write our objects could otherwise have the operator do what it may not do itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Patterns of names and entries that hold neither a path, nor a query, nor a wildcard.
const SAFE_NAME: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";
const SAFE_ENTRY: &str = "^[-._a-zA-Z0-9]+$";
/// Fields of every object that a tenant writes, beside the spec.
const OF_EVERY_OBJECT: [&str; 7] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.labels",
    "metadata.annotations",
    "metadata.ownerReferences",
    "metadata.finalizers",
    "status",
];
/// The one field of a namespaced kind that holds the name of a namespace: it says who a caller is, and is compared with
/// what the API server says of the caller's token.
const NAMESPACE_OF_A_CALLER: &str = "McpRole.spec.subjects[].namespace";

/// Visits every property of a schema, innermost last, with its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &format!("{path}{{}}"), visit);
    }
}

/// Every property of the specs: whether its kind is namespaced, its path and its schema.
fn properties() -> Vec<(bool, String, Value)> {
    let mut found = Vec::new();
    for crd in super::crds() {
        let crd = serde_json::to_value(crd).expect("a definition is JSON");
        let (kind, scope) = (&crd["spec"]["names"]["kind"], &crd["spec"]["scope"]);
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert!(schema.is_object(), "{kind} has a spec");
        let path = format!("{}.spec", kind.as_str().expect("text"));
        walk(schema, &path, &mut |path, property| {
            found.push((scope == "Namespaced", path.to_owned(), property.clone()));
        });
    }
    found
}

/// Whether a field holds text, or anything: not a number, a switch, or what only holds other fields.
fn could_name(property: &Value) -> bool {
    let holds_others = ["properties", "items"].iter().any(|inner| property[inner].is_object())
        || property["additionalProperties"].is_object();
    !holds_others && !["boolean", "integer", "number"].iter().any(|plain| property["type"] == *plain)
}

fn matrix(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/deputy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fields that a case of the matrix tries.
fn tried() -> BTreeSet<String> {
    let mut tried = BTreeSet::new();
    for file in ["servers.yaml", "roles.yaml", "keys.yaml"] {
        let table: Value = serde_saphyr::from_str(&matrix(file)).expect("a table of cases");
        for case in table["cases"].as_array().expect("cases") {
            let fields = case["fields"].as_array().expect("fields");
            tried.extend(fields.iter().map(|field| field.as_str().expect("text").to_owned()));
        }
    }
    tried
}

/// Fields that name nothing.
fn plain() -> BTreeSet<String> {
    let plain: BTreeMap<String, Vec<String>> =
        serde_saphyr::from_str(&matrix("plain.yaml")).expect("a table");
    plain.into_values().flatten().collect()
}

#[test]
fn every_field_has_a_case_of_the_confused_deputy_or_a_word_why_it_needs_none() {
    let (tried, plain) = (tried(), plain());
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for (_, path, _) in properties().into_iter().filter(|(_, _, property)| could_name(property)) {
        match (tried.contains(&path), plain.contains(&path)) {
            (true, true) => wrong.push(format!("{path}: has a case and stands in e2e/deputy/plain.yaml too")),
            (false, false) => wrong.push(format!(
                "{path}: no row. If it names, selects, owns or templates anything, add cases to e2e/deputy/servers.yaml, roles.yaml or keys.yaml that try it with another namespace, a path, a pattern and an object of somebody else; if not, add it to e2e/deputy/plain.yaml below what it is"
            )),
            _ => {}
        }
        known.insert(path);
    }
    let kinds =
        properties().into_iter().filter(|(is_namespaced, path, _)| *is_namespaced && path.ends_with(".spec"));
    for (_, path, _) in kinds {
        let kind = path.trim_end_matches(".spec");
        for field in OF_EVERY_OBJECT.map(|field| format!("{kind}.{field}")) {
            if !tried.contains(&field) {
                wrong.push(format!("{field}: no case in e2e/deputy/ tries it"));
            }
            known.insert(field);
        }
    }
    known.extend(properties().into_iter().map(|(_, path, _)| path));
    let stale = tried.union(&plain).filter(|path| !known.contains(*path));
    wrong.extend(stale.map(|path| format!("{path}: there is no such field; take it out of e2e/deputy/")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_object_of_a_namespace_names_another_namespace() {
    let found: Vec<String> = properties()
        .into_iter()
        .filter(|(is_namespaced, path, _)| {
            let field = path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            *is_namespaced && field.contains("namespace")
        })
        .map(|(_, path, _)| path)
        .collect();
    assert_eq!(found, [NAMESPACE_OF_A_CALLER], "an object acts in its own namespace only");
}

#[test]
fn what_names_an_entry_of_a_secret_cannot_hold_a_path() {
    let mut references = 0;
    for (_, path, property) in properties() {
        let fields = &property["properties"];
        let names = match (&fields["name"], &fields["key"]) {
            (name, key) if name.is_object() && key.is_object() => vec![(name, SAFE_NAME), (key, SAFE_ENTRY)],
            _ if path.to_ascii_lowercase().ends_with("secretname") => vec![(&property, SAFE_NAME)],
            _ => continue,
        };
        // The operator puts these names into the paths of its own requests.
        for (name, pattern) in names {
            assert_eq!(name["pattern"], pattern, "{path}: {name}");
        }
        references += 1;
    }
    assert!(references >= 6, "the references are found: {references}");
}
