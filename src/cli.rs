//! Command line of both halves: every flag and environment variable, typed. The only reader of the environment.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Safe access of AI agents to Kubernetes.
#[derive(Parser, Debug)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Prints the definitions of the kinds as YAML.
    Crds,
    /// Writes the files of the repository that are made from the code.
    #[command(hide = true)]
    Generate {
        /// Root of the repository.
        #[arg(long)]
        out: PathBuf,
    },
    /// Shows the audit record of a server, or checks that nobody changed it.
    Audit(crate::audit_command::Audit),
}

impl Cli {
    /// Runs the command and says how it went.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Crds => {
                for crd in crate::api::crds() {
                    match serde_saphyr::to_string(&crd) {
                        Ok(text) => println!("---\n{text}"),
                        Err(error) => {
                            eprintln!("error: {error}");
                            return ExitCode::FAILURE;
                        }
                    }
                }
                ExitCode::SUCCESS
            }
            Command::Generate { out } => match crate::generate::generate(&out) {
                Ok(written) => {
                    println!("{} files written", written.len());
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    eprintln!("error: {:#}", anyhow::Error::new(error));
                    ExitCode::FAILURE
                }
            },
            Command::Audit(audit) => {
                let mut output = std::io::BufWriter::new(std::io::stdout().lock());
                match audit.run(jiff::Timestamp::now(), &mut output) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => {
                        eprintln!("error: {error:#}");
                        ExitCode::FAILURE
                    }
                }
            }
        }
    }
}
