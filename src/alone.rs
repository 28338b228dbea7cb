//! Tests that need a process of their own, because what they set is set once in the life of a process.

use std::process::Command;

/// Set in the process of such a test.
const OWN_PROCESS: &str = "PORTCULLIS_TEST_OF_ITS_OWN";

/// Whether this process is the test's own. If it is not, runs the test, by its whole name, in one that is, and holds
/// that it passes there.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::var_os(OWN_PROCESS).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let output = command.args(["--exact", test]).env(OWN_PROCESS, "1").output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    false
}
