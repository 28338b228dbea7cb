//! The environment as an argument, and `${VARIABLE}` in the documents.
//!
//! Variables are put in after the YAML was parsed, into texts only: whatever a value holds, it stays one text. A value is
//! never shown, neither by `Debug` nor in an error.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Largest file that a variable may name.
const LARGEST_FILE: u64 = 1 << 20;
/// What follows the name of a variable whose value is in a file.
pub(super) const FILE_SUFFIX: &str = "_FILE";

/// Variables by name. Its `Debug` shows none of them.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<OsString, OsString>);

impl FromIterator<(OsString, OsString)> for Environment {
    fn from_iter<I: IntoIterator<Item = (OsString, OsString)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({} variables)", self.0.len())
    }
}

impl Environment {
    /// The value of a variable, if it is set.
    ///
    /// # Errors
    /// A text for people if the value is not UTF-8.
    pub(super) fn value(&self, name: &str) -> Result<Option<&str>, String> {
        let value = self.0.get(OsStr::new(name));
        value.map(|value| value.to_str().ok_or_else(|| format!("{name} is not UTF-8"))).transpose()
    }

    /// The names that begin so.
    pub(super) fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.keys().filter_map(|name| name.to_str()).filter(move |name| name.starts_with(prefix))
    }
}

/// The text of a file that a variable names, without the newline at its end.
///
/// # Errors
/// A text for people that names the file.
pub(super) fn read_value(path: &Path) -> Result<String, String> {
    let read = || {
        let mut text = String::new();
        let count = File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
        if count as u64 > LARGEST_FILE {
            return Err(io::Error::other("is larger than 1 MiB"));
        }
        Ok(text)
    };
    let mut text = read().map_err(|error: io::Error| format!("cannot read {}: {error}", path.display()))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Where variables were put in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Substituted {
    /// Paths of the fields, such as `spec.identity`.
    pub(super) fields: Vec<String>,
    /// Files that were read for it.
    pub(super) files: Vec<PathBuf>,
}

/// Puts variables into every text of a document, its `apiVersion`, its `kind` and the names of fields aside.
///
/// # Errors
/// A text for people that names the field and the variable.
pub(super) fn substitute(document: &mut Value, environment: &Environment) -> Result<Substituted, String> {
    let mut done = Substituted::default();
    let Value::Object(fields) = document else { return Ok(done) };
    for (name, value) in fields {
        if name != "apiVersion" && name != "kind" {
            walk(value, name, environment, &mut done)?;
        }
    }
    Ok(done)
}

fn walk(value: &mut Value, path: &str, from: &Environment, done: &mut Substituted) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            fields.iter_mut().try_for_each(|(name, value)| walk(value, &format!("{path}.{name}"), from, done))
        }
        Value::Array(items) => items
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, value)| walk(value, &format!("{path}[{index}]"), from, done)),
        Value::String(text) if text.contains("${") => {
            *text = expand(text, from, &mut done.files).map_err(|error| format!("{path}: {error}"))?;
            done.fields.push(path.to_owned());
            Ok(())
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// The text with its variables put in. What a variable holds is not looked at again.
fn expand(text: &str, environment: &Environment, files: &mut Vec<PathBuf>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(literal) = before.strip_suffix('$') {
            expanded.push_str(literal);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let end = after.find('}').ok_or("\"${\" without \"}\"; \"$${\" stands for the text \"${\"")?;
        let (name, default) = match after[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&after[..end], None),
        };
        expanded.push_str(&lookup(name, default, environment, files)?);
        rest = &after[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn lookup(
    name: &str,
    default: Option<&str>,
    environment: &Environment,
    files: &mut Vec<PathBuf>,
) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(plain) {
        return Err(format!("{name:?} is not the name of a variable"));
    }
    let empty_counts = |value: &str| default.is_none() || !value.is_empty();
    let in_file = format!("{name}{FILE_SUFFIX}");
    if let Some(value) = environment.value(name)?.filter(|value| empty_counts(value)) {
        return Ok(value.to_owned());
    }
    if let Some(path) = environment.value(&in_file)?.filter(|path| !path.is_empty()) {
        files.push(PathBuf::from(path));
        return read_value(Path::new(path)).map_err(|error| format!("variable {in_file}: {error}"));
    }
    default.map(str::to_owned).ok_or_else(|| format!("variable {name} is not set"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    fn expanded(text: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let mut document = json!({"spec": {"identity": text}});
        substitute(&mut document, &environment(variables))?;
        Ok(document["spec"]["identity"].as_str().expect("a text").to_owned())
    }

    #[test]
    fn variables_are_put_into_texts() {
        let set = [("USER", "ann"), ("EMPTY", ""), ("_x1", "x")];
        for (text, outcome) in [
            ("${USER}", "ann"),
            ("a-${USER}-${_x1}!", "a-ann-x!"),
            ("${EMPTY}", ""),
            ("${EMPTY:-nobody}", "nobody"),
            ("${ABSENT:-}", ""),
            ("${ABSENT:-a:-b}", "a:-b"),
            ("${USER:-bob}", "ann"),
            ("$${USER}", "${USER}"),
            ("$USER $ {USER} $argon2id$v=19$m=1", "$USER $ {USER} $argon2id$v=19$m=1"),
        ] {
            assert_eq!(expanded(text, &set), Ok(outcome.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_an_error_that_names_field_and_variable() {
        for (text, error) in [
            ("${ABSENT}", "spec.identity: variable ABSENT is not set"),
            ("${USER", "spec.identity: \"${\" without \"}\"; \"$${\" stands for the text \"${\""),
            ("${}", "spec.identity: \"\" is not the name of a variable"),
            ("${1A}", "spec.identity: \"1A\" is not the name of a variable"),
            ("${A B:-x}", "spec.identity: \"A B\" is not the name of a variable"),
        ] {
            assert_eq!(expanded(text, &[("USER", "ann")]), Err(error.to_owned()));
        }
    }

    #[test]
    fn a_variable_may_be_in_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        std::fs::write(&path, "from a file\n").expect("written");
        let text = path.to_str().expect("a path");
        let set = [("TOKEN_FILE", text)];
        assert_eq!(expanded("${TOKEN}", &set), Ok("from a file".to_owned()));
        let both = [("TOKEN", "direct"), ("TOKEN_FILE", text)];
        assert_eq!(expanded("${TOKEN}", &both), Ok("direct".to_owned()));
        let mut document = json!({"spec": {"a": ["${TOKEN}"]}});
        let done = substitute(&mut document, &environment(&set)).expect("set");
        assert_eq!(done, Substituted { fields: vec!["spec.a[0]".to_owned()], files: vec![path.clone()] });
        std::fs::remove_file(&path).expect("removed");
        let error = expanded("${TOKEN}", &set).expect_err("gone");
        let start = format!("spec.identity: variable TOKEN_FILE: cannot read {text}: ");
        assert!(error.starts_with(&start), "{error}");
    }

    #[test]
    fn kinds_names_of_fields_and_other_values_are_left_alone() {
        let document = json!({"apiVersion": "${A}", "kind": "${A}", "data": {"${A}": 1, "b": [true, null]}});
        let mut substituted = document.clone();
        substitute(&mut substituted, &environment(&[("A", "x")])).expect("nothing to put in");
        assert_eq!(substituted, document);
    }

    /// The document with every text replaced by the same one.
    fn shape(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                Value::Object(fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect())
            }
            Value::Array(items) => Value::Array(items.iter().map(shape).collect()),
            Value::String(_) => Value::String(String::new()),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn a_value_never_changes_the_structure(
            value in any::<String>(), nasty in "[-{}\\[\\]:#&*!|>'\"%@`$\n ,a-z]{0,40}", text in "(\\$\\{A\\}|\\$\\{B:-x\\}|[a-z:{ ]){0,6}",
        ) {
            let quoted = format!("- {text:?}\n- {{b: {text:?}, c: [1, true, null, {text:?}]}}\n");
            let yaml = format!("kind: X\nspec:\n{quoted}");
            let parsed: Value = serde_saphyr::from_str(&yaml).expect("YAML");
            let value = value.replace('\0', "");
            let mut substituted = parsed.clone();
            substitute(&mut substituted, &environment(&[("A", &value), ("B", &nasty)])).expect("set");
            prop_assert_eq!(shape(&parsed), shape(&substituted));
            if text == "${A}" {
                prop_assert_eq!(substituted["spec"][0].as_str(), Some(value.as_str()));
            }
        }
    }
}
