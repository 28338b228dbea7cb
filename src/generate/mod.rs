//! Files of the repository that are made from the code: the definitions of the kinds, the chart's catalogue of
//! ClusterRoles, and the admission policies that look at authors.
//!
//! Text in, text out, always the same for the same code; only [`generate`] writes. A test compares what is checked
//! in with what would be written.

mod authors;
mod catalogue;
mod kinds;
mod unknown;

use std::io;
use std::path::{Path, PathBuf};

/// First lines of every generated file.
const HEADER: &str = "# Generated from the code by `just generate`; edit the code instead.\n";

/// Labels that every object of the chart carries, as the chart's helper makes them.
const LABELS: &str = "  labels:\n    {{- include \"portcullis.labels\" . | nindent 4 }}\n";

/// Folders in which every YAML file is generated: one that is no longer made is removed.
const OWNED_FOLDERS: [&str; 2] = ["crds", "charts/portcullis/templates/crds"];

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Generate {
    /// A kind has no form in YAML.
    #[error("cannot express {name} in YAML")]
    Serialize {
        /// Name of the definition.
        name: String,
        /// What the serializer says.
        source: serde_saphyr::ser::Error,
    },
    /// A file or folder cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// One generated file: its path in the repository and its text.
type File = (PathBuf, String);

/// Writes every generated file below `out`, which has the layout of the repository, and returns their paths.
///
/// # Errors
/// [`Generate`] names the file at fault. Files before it have been written.
pub(crate) fn generate(out: &Path) -> Result<Vec<PathBuf>, Generate> {
    let files = files()?;
    let mut written = Vec::new();
    for (path, text) in &files {
        let path = out.join(path);
        let folder = path.parent().unwrap_or(out);
        std::fs::create_dir_all(folder)
            .map_err(|source| Generate::Write { path: folder.to_owned(), source })?;
        std::fs::write(&path, text).map_err(|source| Generate::Write { path: path.clone(), source })?;
        written.push(path);
    }
    for stale in leftovers(out, &files)? {
        std::fs::remove_file(&stale).map_err(|source| Generate::Write { path: stale, source })?;
    }
    Ok(written)
}

/// Every generated file.
fn files() -> Result<Vec<File>, Generate> {
    let mut files = kinds::files()?;
    files.extend(catalogue::files());
    files.push(authors::file());
    Ok(files)
}

/// YAML files in the folders of generated files that are not made any more.
fn leftovers(out: &Path, files: &[File]) -> Result<Vec<PathBuf>, Generate> {
    let mut found = Vec::new();
    for folder in OWNED_FOLDERS {
        let folder = out.join(folder);
        let unreadable = |source| Generate::Write { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let made = files.iter().any(|(file, _)| out.join(file) == path);
            if !made && path.extension().is_some_and(|extension| extension == "yaml") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Makes text safe inside a Helm template, where two braces would begin an action.
fn escape_template(text: &str) -> String {
    text.replace("{{", "{{ \"{{\" }}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{NamespaceLabels, Role};

    #[test]
    fn the_generated_files_are_checked_in_as_the_code_makes_them() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = files().unwrap();
        for (path, text) in &files {
            let found = std::fs::read_to_string(root.join(path)).unwrap_or_default();
            assert!(found == *text, "{} is stale: run `just generate`", path.display());
        }
        let stale = leftovers(root, &files).unwrap();
        assert!(stale.is_empty(), "{stale:?} are not made any more: run `just generate`");
    }

    #[test]
    fn generating_twice_gives_the_same_files_and_removes_those_of_kinds_that_are_gone() {
        let out = tempfile::tempdir().unwrap();
        let first = generate(out.path()).unwrap();
        let gone = out.path().join("crds/mcpghosts.yaml");
        std::fs::write(&gone, "kind: CustomResourceDefinition").unwrap();
        let texts = |paths: &[PathBuf]| -> Vec<String> {
            paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
        };
        let before = texts(&first);
        let second = generate(out.path()).unwrap();
        assert_eq!(first, second);
        assert_eq!(before, texts(&second));
        assert!(!gone.exists());
    }

    #[test]
    fn braces_in_documentation_do_not_become_actions_of_the_template() {
        assert_eq!(escape_template("a {{ b }} c"), "a {{ \"{{\" }} b }} c");
    }

    fn sample(file: &str) -> Vec<serde_json::Value> {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/samples");
        let text = std::fs::read_to_string(samples.join(file)).unwrap();
        serde_saphyr::from_multiple(&text).unwrap()
    }

    #[test]
    fn what_the_sample_of_authentication_says_is_what_is_read_from_it() {
        let objects = sample("authentication.yaml");
        let one = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap().clone();
        let server: crate::api::McpServer = serde_json::from_value(one("McpServer")).unwrap();
        let key: crate::api::McpApiKey = serde_json::from_value(one("McpApiKey")).unwrap();
        // A field that nobody knows would be dropped in silence.
        for (written, read) in [
            (&one("McpServer")["spec"]["authentication"], serde_json::json!(server.spec.authentication)),
            (&one("McpApiKey")["spec"], serde_json::json!(key.spec)),
        ] {
            assert!(holds(&read, written), "{written} is read as {read}");
        }
    }

    /// Whether everything that was written was read.
    fn holds(read: &serde_json::Value, written: &serde_json::Value) -> bool {
        use serde_json::Value;
        match (read, written) {
            (Value::Object(read), Value::Object(written)) => {
                written.iter().all(|(key, value)| read.get(key).is_some_and(|found| holds(found, value)))
            }
            (Value::Array(read), Value::Array(written)) => {
                read.len() == written.len()
                    && read.iter().zip(written).all(|(read, written)| holds(read, written))
            }
            (read, written) => read == written,
        }
    }

    #[test]
    fn every_role_of_the_samples_grants_something() {
        let mut roles = 0;
        for file in ["quickstart.yaml", "roles-presets.yaml", "authentication.yaml"] {
            for object in sample(file) {
                let role = match object["kind"].as_str().unwrap() {
                    "McpRole" => Role::from_role(&serde_json::from_value(object).unwrap(), &|_| None),
                    "ClusterMcpRole" => Role::from_cluster_role(
                        &serde_json::from_value(object).unwrap(),
                        "portcullis-system",
                        &NamespaceLabels::new(),
                        &|_| None,
                    ),
                    _ => continue,
                };
                assert!(!role.unwrap().permissions().is_empty());
                roles += 1;
            }
        }
        assert_eq!(roles, 8);
    }
}
