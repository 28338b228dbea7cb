//! Namespaces, as the caller may see them.
//!
//! The list comes from the endpoint's own watch, not from a request, and holds only namespaces in which one of the
//! caller's roles allows something: the names of the others stay unknown.

use futures::FutureExt;
use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::args::{self, Argument, Arguments};
use super::list::{self, CONTINUE, LIMIT};
use super::{Context, Invocation, Needs, Output, Parsed, Tool, ToolError, output, output_schema, table};
use crate::authz::{Grants, Permission, Permit, Target};

static ARGUMENTS: [Argument; 2] = [LIMIT, CONTINUE];

pub(super) const LIST: Tool = Tool {
    name: "namespaces_list",
    aliases: &["kubernetes_list_namespaces", "k8s_list_namespaces", "list_namespaces"],
    title: "List namespaces",
    description: "Lists the Kubernetes namespaces in which you may do something, by name.",
    needs: Needs::Permission(Permission::of("namespaces", "list")),
    idempotent: true,
    input_schema: || args::schema(&ARGUMENTS),
    output_schema: output_schema::<Listed>,
    parse: |given| parse(&given),
};

/// Namespaces of one page.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Listed {
    /// The namespaces.
    items: Vec<Namespace>,
    /// Give it as the argument "continue" to get the next page; absent on the last one.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// How many namespaces follow this page.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<i64>,
}

/// A namespace in which the caller may do something.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Namespace {
    /// Name of the namespace.
    name: String,
}

/// The last namespace of the page before.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    after_namespace: String,
}

#[derive(Debug)]
struct List {
    limit: usize,
    after: Option<String>,
}

fn parse(given: &Map<String, Value>) -> Parsed {
    let mut arguments = Arguments::check(given, &ARGUMENTS)?;
    let cursor = arguments.text(CONTINUE.name).map(|text| list::decode::<Cursor>(&text)).transpose()?;
    let limit = arguments.count(LIMIT.name).expect("the table has a default") as usize;
    Ok(Box::new(List { limit, after: cursor.map(|cursor| cursor.after_namespace) }))
}

impl Invocation for List {
    fn target(&self) -> Target<'_> {
        Target::Anywhere
    }

    fn resource(&self) -> String {
        "namespaces".to_owned()
    }

    fn run(
        self: Box<Self>,
        context: Context,
        _permit: Permit,
    ) -> BoxFuture<'static, Result<Output, ToolError>> {
        async move {
            let listed = self.page(&context.grants, &context.namespaces);
            let rows: Vec<_> = listed.items.iter().map(|item| vec![item.name.clone()]).collect();
            let mut text = match rows.is_empty() {
                true => "No namespaces here.\n".to_owned(),
                false => table::render(&["Name".to_owned()], &rows),
            };
            list::push_notes(&mut text, listed.next.as_deref(), listed.remaining, &[]);
            output(text, &listed)
        }
        .boxed()
    }
}

impl List {
    fn page(&self, grants: &Grants, namespaces: &[String]) -> Listed {
        let allowed = |name: &&String| grants.reach(name);
        let after = |name: &&String| self.after.as_ref().is_none_or(|after| *name > after);
        let mut visible = namespaces.iter().filter(after).filter(allowed);
        let items: Vec<_> =
            visible.by_ref().take(self.limit).map(|name| Namespace { name: name.clone() }).collect();
        let remaining = i64::try_from(visible.count()).ok().filter(|count| *count > 0);
        let last = items.last().filter(|_| remaining.is_some());
        let next = last.map(|item| list::encode(&Cursor { after_namespace: item.name.clone() }));
        Listed { items, next, remaining }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::api::McpRole;
    use crate::authz::Role;

    fn role(namespace: &str) -> Arc<Role> {
        let role: McpRole = serde_json::from_value(json!({
            "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
            "metadata": {"name": "viewer", "namespace": namespace},
            "spec": {"permissions": ["k8s:pods:list"]},
        }))
        .expect("a role");
        Arc::new(Role::from_role(&role, &|_| None).expect("valid"))
    }

    fn names(listed: &Listed) -> Vec<&str> {
        listed.items.iter().map(|item| item.name.as_str()).collect()
    }

    #[test]
    fn a_caller_sees_the_namespaces_in_which_a_role_allows_anything() {
        let namespaces = ["agents", "kube-system", "shop"].map(str::to_owned);
        let (agents, shop) = (role("agents"), role("shop"));
        let list = List { limit: 10, after: None };
        assert_eq!(names(&list.page(&Grants::all_of([agents, shop]), &namespaces)), ["agents", "shop"]);
        assert_eq!(names(&list.page(&Grants::default(), &namespaces)), [""; 0]);
    }

    #[test]
    fn pages_of_namespaces_follow_each_other() {
        let namespaces = ["a", "b", "c"].map(str::to_owned);
        let roles = Grants::all_of([role("a"), role("b"), role("c")]);
        let first = List { limit: 2, after: None }.page(&roles, &namespaces);
        assert_eq!((names(&first), first.remaining), (vec!["a", "b"], Some(1)));
        let cursor: Cursor = list::decode(&first.next.expect("more")).expect("our own");
        let second = List { limit: 2, after: Some(cursor.after_namespace) }.page(&roles, &namespaces);
        assert_eq!((names(&second), &second.next, second.remaining), (vec!["c"], &None, None));
    }
}
