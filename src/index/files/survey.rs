//! Reads a directory for questions about it, as [`Source::load`] reads it to serve it, and leaves it as it is.
//!
//! Keys that serving would generate or import count as made: a generation that nobody can prove stands for them. It
//! reads files and writes none.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::documents::{Found, Placed};
use super::keys::Kept;
use super::{DEFAULT_NAMESPACE, LoadFiles, Source, Variables, imported_text, overrides, push, rules};
use crate::api::{KeyGeneration, KeyState, McpApiKey};
use crate::index::{Objects, Subject};

impl Source {
    /// The server of the directory and its objects, as the endpoint would have them.
    ///
    /// # Errors
    /// [`LoadFiles`] names the file, the document and the field.
    pub(crate) fn survey(&self) -> Result<(Subject, Objects), LoadFiles> {
        let variables = Variables::parse(&self.environment).map_err(LoadFiles::Variable)?;
        let mut found = Found::default();
        found.read(&self.directory, &self.environment)?;
        let Placed { object: mut server, place } = self.server(&mut found)?;
        let namespace = server.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        found.entries.check_namespace(&namespace)?;
        overrides::apply(&variables, &mut server, &mut found, &mut Kept::default())
            .map_err(LoadFiles::Variable)?;
        rules::server(&server, &found.entries).map_err(|text| match &place {
            Some(place) => place.refuse(text),
            None => LoadFiles::Object { path: self.directory.clone(), text },
        })?;
        let roles = self.roles(&namespace, &mut found)?;
        for Placed { object: key, place } in &mut found.keys {
            let name = key.name_any();
            if let Some(place) = place {
                rules::key(key).map_err(|text| place.refuse(text))?;
                if let Some(reference) = key.spec.import.clone().map(|import| import.secret_ref) {
                    imported_text(&found.entries, reference, place, &name)?;
                }
            }
            let is_made = key.status.as_ref().is_some_and(|status| !status.keys.is_empty());
            if key.spec.import.is_some() || !is_made {
                push(key, stand_in(key));
            }
        }
        let subject = Subject {
            namespace: namespace.clone(),
            server: server.name_any(),
            operator_namespace: self.operator_namespace.clone(),
        };
        let objects = self.objects(roles, &namespace, server, found.keys)?;
        Ok((subject, objects))
    }
}

/// A generation that is accepted and that no text proves. Its id is nobody's: those of keys have no blanks.
fn stand_in(key: &McpApiKey) -> KeyGeneration {
    KeyGeneration {
        id: format!("key {}", key.name_any()),
        digest: format!("sha256:{}", "0".repeat(64)),
        created_at: Time(Timestamp::UNIX_EPOCH),
        not_after: None,
        state: KeyState::Active,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{KEY, ROLE, SERVER, directory, source};
    const IMPORTING: &str = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: old}\nstringData: {api-key: qW7-tZ3_xR9.mK5vB2pLd8}\n\
        ---\napiVersion: portcullis.dev/v1alpha1\nkind: McpApiKey\nmetadata: {name: old}\n\
        spec: {identity: old, servers: [ops], import: {secretRef: {name: old}}}\n";

    #[test]
    fn a_question_leaves_the_directory_as_it_is_and_knows_the_keys_that_serving_would_make() {
        let text = format!("{SERVER}---\n{ROLE}---\n{KEY}{IMPORTING}");
        let directory = directory(&[("a.yaml", &text)]);
        let variables = [("MCP_AUTH_API_KEY", "xR9-qW7_tZ3.mK5vB2pLd8")];
        let (subject, objects) = source(directory.path(), &variables).survey().expect("it is read");
        assert_eq!((subject.namespace.as_str(), subject.server.as_str()), ("default", "ops"));
        assert_eq!(objects.keys.keys().collect::<Vec<_>>(), ["ci", "env-api-key", "old"]);
        let snapshot = subject.snapshot(&objects);
        assert_eq!(snapshot.keys.len(), 3);
        assert_eq!(snapshot.keys["key ci"].held.count_ones(..), 1);
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 1);
    }

    #[test]
    fn what_could_not_be_served_is_refused_with_its_place() {
        let text =
            format!("{SERVER}---\n{}", KEY.replace("servers: [ops]", "servers: [ops], allowedCidrs: [x/8]"));
        let directory = directory(&[("a.yaml", &text)]);
        let error = source(directory.path(), &[]).survey().expect_err("it is refused").to_string();
        assert!(
            error.ends_with(
                "a.yaml, document 2: spec.allowedCidrs[0]: \"x/8\" is not a network such as 10.0.0.0/8"
            ),
            "{error}"
        );
    }
}
