//! Holds `docs/requirements.md` to the tests: every row is there once, and every test that it names exists.
//!
//! Names are those that `cargo test` prints; tests of `e2e/` begin with `e2e::`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rows of the requirements, numbered from one.
const ROWS: usize = 247;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the sources can be read") {
        let path = entry.expect("the sources can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Module of a source: `src/audit/log_tests.rs` is `audit::log::tests`.
fn module(relative: &Path) -> String {
    let path = relative.with_extension("");
    let parts = path.iter().map(|part| part.to_string_lossy().into_owned()).filter(|part| part != "mod");
    let module = parts.collect::<Vec<_>>().join("::");
    match module.strip_suffix("_tests") {
        Some(tested) => format!("{tested}::tests"),
        None => module,
    }
}

/// Names of the tests in a source: functions below an attribute of a test.
fn tests_in(module: &str, text: &str, found: &mut BTreeSet<String>) {
    let mut module = module.to_owned();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.ends_with("mod tests {") {
            module.push_str("::tests");
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))
            && std::mem::take(&mut is_test)
        {
            let end = name.find('(').expect("a function has parentheses");
            found.insert(format!("{module}::{}", &name[..end]));
        }
    }
}

fn all_tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for (directory, below) in [("src", root.join("src")), ("e2e", root.to_owned())] {
        let mut paths = Vec::new();
        sources(&root.join(directory), &mut paths);
        for path in paths {
            let text = fs::read_to_string(&path).expect("a source can be read");
            tests_in(&module(path.strip_prefix(&below).expect("inside")), &text, &mut found);
        }
    }
    found
}

/// A row of the table: its number, what it asks for, and the tests that show it.
struct Row {
    number: usize,
    what: String,
    shown_by: Vec<String>,
}

fn rows(document: &str) -> Vec<Row> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let number = cells.first()?.parse().ok()?;
        let [_, what, shown_by] = cells[..] else { panic!("not three columns: {line}") };
        let shown_by = shown_by.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some(Row { number, what: what.to_owned(), shown_by })
    };
    document.lines().filter(|line| line.starts_with('|')).filter_map(row).collect()
}

fn document() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/requirements.md");
    rows(&fs::read_to_string(path).expect("docs/requirements.md can be read"))
}

#[test]
fn every_row_of_the_requirements_stands_in_the_table_once_and_in_order() {
    let numbers: Vec<usize> = document().iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=ROWS).collect::<Vec<_>>());
    for row in document() {
        assert!(row.what.len() > 8, "row {} does not say what it asks for", row.number);
    }
}

#[test]
fn every_test_that_the_requirements_name_exists() {
    let tests = all_tests();
    assert!(tests.len() > 150, "only {} tests were found", tests.len());
    let missing: Vec<String> = document()
        .iter()
        .flat_map(|row| row.shown_by.iter().map(move |name| (row.number, name)))
        .filter(|(_, name)| !tests.contains(*name))
        .map(|(number, name)| format!("row {number}: {name}"))
        .collect();
    assert!(missing.is_empty(), "these tests do not exist:\n{}", missing.join("\n"));
}

#[test]
fn tests_are_found_by_the_names_that_cargo_prints() {
    let tests = all_tests();
    for name in [
        "requirements::tests_are_found_by_the_names_that_cargo_prints",
        "authz::tests::without_a_role_everything_is_denied",
        "authz::permission::tests::parsing_never_panics_and_what_parses_reads_back",
        "audit::log::tests::an_event_is_on_disk_when_recording_it_resolves",
        "e2e::access::a_role_edited_with_kubectl_takes_effect",
    ] {
        assert!(tests.contains(name), "{name}");
    }
    assert!(!tests.contains("requirements::all_tests"), "a helper is no test");
    let row = &rows("| 7 | what | `a::b`, `c::d` |")[0];
    assert_eq!((row.number, row.shown_by.as_slice()), (7, &["a::b".to_owned(), "c::d".to_owned()][..]));
}
