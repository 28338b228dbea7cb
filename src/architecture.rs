//! Holds the direction of imports: a module imports from lower layers only, and the rules do no I/O.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module, its layer, and the modules of the same layer that it may import.
const LAYERS: &[(&str, u8, &[&str])] = &[
    ("api", 1, &[]),
    ("alone", 1, &[]),
    ("metrics", 1, &[]),
    ("authn", 2, &["authz"]),
    ("authz", 2, &[]),
    ("mcp", 2, &[]),
    ("pki", 2, &[]),
    ("ratelimit", 2, &[]),
    ("k8s", 3, &[]),
    ("index", 3, &["k8s"]),
    ("authenticator", 3, &["index"]),
    ("tools", 3, &[]),
    ("audit", 3, &[]),
    ("controller", 4, &[]),
    ("server", 4, &[]),
    ("admin", 5, &["telemetry"]),
    ("telemetry", 5, &[]),
    ("start", 5, &["admin", "cli", "telemetry"]),
    ("terminal", 5, &[]),
    ("audit_command", 5, &["terminal"]),
    ("key_command", 5, &["terminal"]),
    ("token_command", 5, &["terminal"]),
    ("token_command_tests", 5, &["terminal"]),
    ("whoami_command", 5, &["terminal"]),
    ("review", 5, &[]),
    ("access_review_command", 5, &["review", "terminal"]),
    ("can_i_command", 5, &["review", "terminal"]),
    ("import_policy", 5, &[]),
    ("import_policy_command", 5, &["import_policy", "terminal"]),
    ("import_policy_tests", 5, &["import_policy_command"]),
    ("whoami_command_tests", 5, &["terminal"]),
    ("bench", 5, &[]),
    ("chart", 5, &[]),
    ("generate", 5, &[]),
    (
        "cli",
        5,
        &[
            "start",
            "admin",
            "telemetry",
            "generate",
            "access_review_command",
            "audit_command",
            "can_i_command",
            "import_policy_command",
            "key_command",
            "token_command",
            "whoami_command",
        ],
    ),
    ("main", 5, &["cli"]),
    ("lib", 5, &["cli"]),
    ("architecture", 5, &[]),
    ("requirements", 5, &[]),
];

/// What a rule must not name: clients, clocks, runtimes and randomness come from outside.
const FORBIDDEN_IN_RULES: &[&str] = &[
    "tokio",
    "async fn",
    "kube::Client",
    "kube::Api",
    "axum",
    "Timestamp::now",
    "SystemTime::now",
    "Instant::now",
    "std::fs",
    "std::net::Tcp",
    "std::env",
];

fn layer(module: &str) -> (u8, &'static [&'static str]) {
    let (_, layer, sideways) = LAYERS
        .iter()
        .find(|(name, _, _)| *name == module)
        .unwrap_or_else(|| panic!("module {module:?} has no layer: add it to LAYERS"));
    (*layer, sideways)
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("src can be read") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn each_source(mut check: impl FnMut(&str, &str, &str)) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    assert!(found.len() > 10, "the sources were not found");
    for path in found {
        let text = fs::read_to_string(&path).expect("a source can be read");
        let relative = path.strip_prefix(&root).expect("inside src").to_string_lossy().into_owned();
        let module = relative.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        check(&module, &relative, &text);
    }
}

#[test]
fn a_module_imports_from_lower_layers_only() {
    each_source(|module, file, text| {
        let (own, sideways) = layer(module);
        if module == "architecture" {
            return;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                continue;
            }
            for rest in code.split("crate::").skip(1) {
                let part = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_';
                let name: String = rest.chars().take_while(part).collect();
                if name.is_empty() || name == module {
                    continue;
                }
                let (other, _) = layer(&name);
                assert!(
                    other < own || sideways.contains(&name.as_str()),
                    "{file}:{}: {module} (layer {own}) imports {name} (layer {other})",
                    number + 1
                );
            }
        }
    });
}

#[test]
fn the_rules_do_no_io_and_read_no_clock() {
    each_source(|module, file, text| {
        if module == "architecture" || layer(module).0 != 2 {
            return;
        }
        for word in FORBIDDEN_IN_RULES {
            assert!(!text.contains(word), "{file} names {word:?}: pass it in as an argument");
        }
    });
}

#[test]
fn every_dependency_is_locked_by_a_checksum() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let text = fs::read_to_string(path).expect("the lock file can be read");
    let packages: Vec<&str> = text.split("[[package]]").skip(1).collect();
    assert!(packages.len() > 100, "the lock file was not understood");
    for package in packages {
        let own = package.contains("name = \"portcullis\"\n");
        assert!(own || package.contains("\nchecksum = \""), "not from a registry: {package}");
    }
}

#[test]
fn a_file_stays_under_six_hundred_lines() {
    each_source(|_, file, text| {
        let lines = text.lines().count();
        assert!(lines <= 600, "{file} has {lines} lines: split it by meaning");
    });
}
