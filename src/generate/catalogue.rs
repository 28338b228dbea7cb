//! The built-in catalogue as the chart needs it: one ClusterRole for each permission, and the list of their names, by
//! which the operator's right to bind and the admission policies are limited. What an administrator adds by values, the
//! chart's own helpers make of them.

use std::fmt::Write;

use crate::authz::catalogue::OBJECTS;
use crate::authz::{Object, Permission, Place};

use super::{File, HEADER, LABELS};

/// A right on the cluster that is wider than its permission, for RBAC has no verb for restarting. Its ClusterRole carries
/// a mark, so that whoever has the right by it has the mark as well, and an admission policy holds the two together.
const MARKED: Permission = Permission::of("deployments", "restart");
/// The mark, as a rule: it is a right on nothing.
const MARK: &str = "  - apiGroups: [portcullis.dev]\n    resources: [deployments]\n    verbs: [restart]\n";

/// The ClusterRoles and the helper with their names.
pub(super) fn files() -> Vec<File> {
    vec![
        ("charts/portcullis/templates/catalogue.yaml".into(), cluster_roles()),
        ("charts/portcullis/templates/_catalogue.tpl".into(), names()),
    ]
}

/// Permissions that need something beyond a server's baseline.
fn carried() -> impl Iterator<Item = Permission> {
    Permission::all().filter(|permission| !permission.entry().rules.is_empty())
}

fn cluster_roles() -> String {
    let mut text = HEADER.to_owned();
    for permission in carried() {
        let _ = write!(
            text,
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: {}\n{LABELS}  \
             annotations:\n    portcullis.dev/permission: {permission}\nrules:\n",
            permission.cluster_role(),
        );
        for rule in permission.entry().rules {
            let _ = write!(
                text,
                "  - apiGroups: [{:?}]\n    resources: [{}]\n    verbs: [{}]\n",
                rule.group,
                rule.resource,
                rule.verbs.join(", "),
            );
        }
        if permission == MARKED {
            text.push_str(MARK);
        }
    }
    text
}

fn names() -> String {
    let mut text = String::from(
        "{{/* Generated from the code by `just generate`; edit the code instead.\n     \
         Names of the built-in catalogue's ClusterRoles, as a YAML list. */}}\n\
         {{- define \"portcullis.builtInCatalogue\" -}}\n",
    );
    for permission in carried() {
        let _ = writeln!(text, "- {}", permission.cluster_role());
    }
    text.push_str(
        "{{- end }}\n\n\
         {{/* Permissions of the built-in catalogue, as a YAML list. */}}\n\
         {{- define \"portcullis.builtInPermissions\" -}}\n",
    );
    for permission in Permission::all() {
        let _ = writeln!(text, "- {permission}");
    }
    text.push_str(
        "{{- end }}\n\n\
         {{/* Resources with their groups that permissions write without, as YAML: what is known about them. */}}\n\
         {{- define \"portcullis.builtInObjects\" -}}\n",
    );
    for Object { qualified, kind, version, place, .. } in &OBJECTS {
        let scope = if *place == Place::Cluster { "Cluster" } else { "Namespaced" };
        let _ = writeln!(text, "{qualified}: {{kind: {kind}, version: {version}, scope: {scope}}}");
    }
    text.push_str("{{- end }}\n");
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::authz::catalogue::Rule;

    #[test]
    fn a_permission_becomes_one_cluster_role_with_its_rules_and_nothing_else() {
        let text = cluster_roles();
        let logs = text.split("---\n").find(|role| role.contains("name: portcullis:catalogue:pods:logs\n"));
        let logs = logs.expect("pods:logs has a role");
        assert!(
            logs.ends_with("rules:\n  - apiGroups: [\"\"]\n    resources: [pods/log]\n    verbs: [get]\n")
        );
        assert_eq!(text.matches("kind: ClusterRole").count(), carried().count());
    }

    /// A row of the table in the documentation.
    fn documented(permission: Permission) -> String {
        let entry = permission.entry();
        let rule = |rule: &Rule| {
            let dot = if rule.group.is_empty() { "" } else { "." };
            let (resource, subresource) = rule.resource.split_once('/').unwrap_or((rule.resource, ""));
            let slash = if subresource.is_empty() { "" } else { "/" };
            let verbs = rule.verbs.join(", ");
            format!("{verbs} {resource}{dot}{}{slash}{subresource}", rule.group)
        };
        let rules: Vec<String> = entry.rules.iter().map(rule).collect();
        let class = serde_json::json!(entry.class);
        format!("| `{permission}` | {} | {} |", class.as_str().unwrap(), rules.join("; "))
    }

    #[test]
    fn the_documentation_lists_every_permission_with_its_class_and_rights() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/permissions.md");
        let text = fs::read_to_string(&path).unwrap();
        let is_row = |line: &&str| line.starts_with("| `k8s:") || line.starts_with("| `mcp:");
        let found: Vec<&str> = text.lines().filter(is_row).collect();
        let wanted: Vec<String> = Permission::all().map(documented).collect();
        assert!(found == wanted, "the table of {} should be\n{}", path.display(), wanted.join("\n"));
    }

    #[test]
    fn a_permission_that_the_baseline_covers_has_no_cluster_role() {
        assert!(!cluster_roles().contains("portcullis:catalogue:namespaces:list"));
        assert!(!names().contains("portcullis:catalogue:namespaces:list"));
    }
}
