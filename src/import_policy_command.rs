//! `portcullis import-policy`: makes objects of the roles of a policy file and prints them.
//!
//! It reads one file and asks no cluster. The objects go to standard output, for `kubectl apply -f -`; what people should
//! know goes to standard error.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{ArgGroup, Args};

use crate::api::ServerReference;
use crate::import_policy::{MAX, Target, import};
use crate::terminal::{self, parse_server, visible};

/// Makes roles of a policy file into objects, and prints them.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("target").required(true).multiple(false))]
pub(crate) struct ImportPolicy {
    /// The file with the list `roles`, or `-` for standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Make ClusterMcpRoles for this server; may be repeated.
    #[arg(long = "server", value_name = "NAMESPACE/NAME", value_parser = parse_server, group = "target")]
    servers: Vec<ServerReference>,
    /// Make McpRoles of this namespace, of the roles that name it and no other.
    #[arg(long, value_name = "NAMESPACE", group = "target")]
    namespace: Option<String>,
    /// Leave out permissions that are not in the catalogue, instead of failing.
    #[arg(long)]
    skip_unknown: bool,
}

const EXAMPLES: &str = "\
The file is a list of roles, each with name, description, permissions and, if it does not count in every namespace,
namespaces (names, or patterns such as feature-*). Nothing is written to a cluster.

Examples:
  portcullis import-policy configs/rbac-policies.yaml --server agents/ops | kubectl apply -f -
  portcullis import-policy rbac-policies.yaml --server agents/ops --server agents/audit --skip-unknown > roles.yaml
  portcullis import-policy rbac-policies.yaml --namespace development | kubectl diff -f -";

impl ImportPolicy {
    /// Runs the command.
    ///
    /// # Errors
    /// When the file cannot be read or imported, or has permissions that are not in the catalogue. Then nothing is
    /// printed for `kubectl`.
    pub(crate) fn run(self, output: &mut dyn Write, notes: &mut dyn Write) -> anyhow::Result<()> {
        let text = self.text().with_context(|| format!("cannot read {}", self.file.display()))?;
        let target = match self.namespace {
            Some(namespace) => Target::Namespace(namespace),
            None => Target::Cluster(self.servers),
        };
        let imported =
            import(&text, &target).with_context(|| format!("cannot import {}", self.file.display()))?;
        // What stands in the file was written by others.
        for unknown in &imported.unknown {
            writeln!(notes, "{}", visible(&unknown.to_string(), 600))?;
        }
        for note in &imported.notes {
            writeln!(notes, "note: {}", visible(note, 600))?;
        }
        let count = imported.unknown.len();
        ensure!(
            count == 0 || self.skip_unknown,
            "{count} of the permissions cannot be granted: correct them, or leave them out with --skip-unknown"
        );
        ensure!(!imported.objects.is_empty(), "no role of {} can be imported", self.file.display());
        let yaml = serde_saphyr::to_string_multiple(&imported.objects)?;
        terminal::written(output.write_all(yaml.as_bytes()).and_then(|()| output.flush()))
    }

    fn text(&self) -> io::Result<String> {
        let mut text = String::new();
        let most = MAX as u64 + 1;
        match self.file.as_os_str() == "-" {
            true => io::stdin().lock().take(most).read_to_string(&mut text)?,
            false => File::open(&self.file)?.take(most).read_to_string(&mut text)?,
        };
        Ok(text)
    }
}
