//! Command line of both halves: every flag and environment variable, typed. The only reader of the environment.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::api::names::CATALOGUE_VARIABLE;
use crate::authz::extension::Extension;
use crate::can_i_command;
use crate::index::files::VARIABLES_HELP;
use crate::start;
use crate::telemetry::{self, LogFormat};
use crate::whoami_command::CREDENTIAL_VARIABLE;

/// Safe access of AI agents to Kubernetes.
///
/// `portcullis operator` turns McpServers, McpRoles and McpApiKeys into running MCP endpoints; `portcullis serve` is
/// such an endpoint.
#[derive(Parser, Debug)]
#[command(version, about, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is added to the catalogue of permissions: the chart's values `catalogue` as JSON.
    #[arg(long, env = CATALOGUE_VARIABLE, value_name = "JSON", global = true, default_value = "", hide_default_value = true)]
    catalogue: String,
}

const EXAMPLES: &str = "\
Examples:
  portcullis serve --from ./policy                       an endpoint on this machine, with your kubeconfig
  kubectl exec deploy/ops-mcp -- /portcullis audit query --status denied --since 1h
  portcullis whoami --url https://ops-mcp.agents.svc/mcp --ca ca.crt --key-file ci-bot.key
  portcullis can-i k8s:pods:delete --as-key ci-bot -n team-a --server agents/ops
  portcullis access-review -o csv > access.csv           who can do what, on every server of the cluster
  portcullis crds | kubectl apply -f -                   the kinds, without Helm
  portcullis completions bash > /etc/bash_completion.d/portcullis";

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs the operator in a cluster. The chart starts it.
    Operator(OperatorArguments),
    /// Runs an MCP endpoint: for an McpServer of a cluster, or from a directory of YAML files.
    Serve(ServeArguments),
    /// Shows the audit record of a server, or checks that nobody changed it.
    Audit(crate::audit_command::Audit),
    /// Makes keys, hashes passwords, and checks keys.
    Key(crate::key_command::Key),
    /// Shows what a token says, without verifying it.
    Token(crate::token_command::Token),
    /// Asks an endpoint whom it takes a credential for.
    Whoami(Box<crate::whoami_command::Whoami>),
    /// Says whether a caller may do something on a server, and which role decides.
    CanI(Box<crate::can_i_command::CanI>),
    /// Shows who can do what, on which server, and from which role.
    AccessReview(crate::access_review_command::AccessReview),
    /// Makes roles of a policy file into objects, and prints them.
    ImportPolicy(crate::import_policy_command::ImportPolicy),
    /// Prints the definitions of the kinds as YAML.
    Crds,
    /// Prints the completions of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes the files of the repository that are made from the code.
    #[command(hide = true)]
    Generate {
        /// Root of the repository.
        #[arg(long)]
        out: PathBuf,
    },
}

/// How a process logs.
#[derive(Args, Debug)]
struct LogArguments {
    /// How log lines look.
    #[arg(long, value_enum, default_value_t, env = "PORTCULLIS_LOG_FORMAT")]
    log_format: LogFormat,
    /// What is logged, for example `info,portcullis=debug`.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER")]
    log: Option<String>,
}

/// Flags of the operator.
#[derive(Args, Debug)]
pub(crate) struct OperatorArguments {
    /// Namespace of the operator.
    #[arg(long, env = "POD_NAMESPACE")]
    pub(crate) namespace: String,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: String,
    /// ServiceAccount of the operator.
    #[arg(long, env = "PORTCULLIS_SERVICE_ACCOUNT", default_value = "portcullis-operator")]
    pub(crate) service_account: String,
    /// Image of the servers.
    #[arg(long, env = "PORTCULLIS_IMAGE")]
    pub(crate) image: String,
    /// When nodes pull that image.
    #[arg(long, env = "PORTCULLIS_IMAGE_PULL_POLICY", default_value = "IfNotPresent",
          value_parser = ["Always", "IfNotPresent", "Never"])]
    pub(crate) image_pull_policy: String,
    /// Where health and metrics are served.
    #[arg(long, default_value = "[::]:9090")]
    pub(crate) admin_listen: SocketAddr,
    #[command(flatten)]
    log: LogArguments,
}

/// Flags of an endpoint.
#[derive(Args, Debug)]
#[command(after_help = SERVE_EXAMPLES, after_long_help = format!("{SERVE_EXAMPLES}\n\n{VARIABLES_HELP}"))]
pub(crate) struct ServeArguments {
    /// Serve what the YAML files of this directory say, instead of an McpServer of the cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["namespace", "server"])]
    pub(crate) from: Option<PathBuf>,
    /// Namespace of the McpServer.
    #[arg(long, env = "PORTCULLIS_NAMESPACE", required_unless_present = "from")]
    pub(crate) namespace: Option<String>,
    /// Name of the McpServer.
    #[arg(long, env = "PORTCULLIS_SERVER", required_unless_present = "from")]
    pub(crate) server: Option<String>,
    /// Namespace of the operator.
    #[arg(long, env = "PORTCULLIS_OPERATOR_NAMESPACE", default_value = "portcullis-system")]
    pub(crate) operator_namespace: String,
    /// Address of this pod, by which other replicas reach it.
    #[arg(long, env = "POD_IP", default_value = "127.0.0.1")]
    pub(crate) pod_ip: std::net::IpAddr,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME", default_value = "portcullis")]
    pub(crate) pod_name: String,
    /// Where MCP is served [default: [::]:8443, with --from 127.0.0.1:8443].
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Serve the same endpoint without TLS too, at a loopback address such as 127.0.0.1:8080, for clients that cannot be
    /// told of a certificate authority. Passwords are not accepted there. Only with --from.
    #[arg(long, value_name = "ADDRESS", requires = "from")]
    pub(crate) plain_listen: Option<SocketAddr>,
    /// Where health and metrics are served [default: [::]:9090, with --from 127.0.0.1:9090].
    #[arg(long)]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// Let callers without a credential in from other machines too, where the files or MCP_AUTH_ENABLED let them in.
    #[arg(long, conflicts_with_all = ["namespace", "server"])]
    pub(crate) unsafe_anonymous: bool,
    #[command(flatten)]
    log: LogArguments,
}

const SERVE_EXAMPLES: &str = "\
Examples:
  portcullis serve --from ./policy
  portcullis serve --from ./policy --listen 127.0.0.1:9443 --log debug";

impl Cli {
    /// Runs the command and says how it went.
    pub fn run(self) -> ExitCode {
        // Of a question with two answers, "no" is no error.
        let failed = match &self.command {
            Command::CanI(_) => ExitCode::from(can_i_command::FAILED),
            _ => ExitCode::FAILURE,
        };
        // Before anything reads a role: the table of permissions is one for the life of the process.
        let extended = Extension::parse(&self.catalogue).and_then(Extension::install);
        match extended.context(CATALOGUE_VARIABLE).and_then(|()| self.command.run()) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("error: {error:#}");
                failed
            }
        }
    }
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (now, mut output) = (jiff::Timestamp::now(), io::BufWriter::new(io::stdout().lock()));
        match self {
            Command::Operator(arguments) => {
                drop(output);
                telemetry::init(arguments.log.log_format, arguments.log.log.as_deref())?;
                start::operator(arguments)?;
            }
            Command::Serve(arguments) => {
                drop(output);
                telemetry::init(arguments.log.log_format, arguments.log.log.as_deref())?;
                start::serve(arguments, std::env::vars_os().collect())?;
            }
            Command::Audit(audit) => audit.run(now, &mut output)?,
            Command::Key(key) => key.run(&mut output)?,
            Command::Token(token) => token.run(now, &mut output)?,
            Command::Whoami(whoami) => whoami.run(credential_of_environment()?, &mut output)?,
            Command::CanI(question) => {
                let allowed = question.run(std::env::vars_os().collect(), now, &mut output)?;
                return Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Command::AccessReview(review) => review.run(std::env::vars_os().collect(), now, &mut output)?,
            Command::ImportPolicy(policy) => policy.run(&mut output, &mut io::stderr())?,
            Command::Crds => {
                let text = serde_saphyr::to_string_multiple(&crate::api::crds())?;
                output.write_all(text.as_bytes())?;
                output.flush()?;
            }
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "portcullis", &mut output);
            }
            Command::Generate { out } => {
                writeln!(output, "{} files written", crate::generate::generate(&out)?.len())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A credential cannot be a flag with a variable, because then it could be a flag.
fn credential_of_environment() -> anyhow::Result<Option<String>> {
    match std::env::var(CREDENTIAL_VARIABLE) {
        Ok(credential) => Ok(Some(credential).filter(|credential| !credential.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => anyhow::bail!("{CREDENTIAL_VARIABLE} is not text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_endpoint_needs_a_server_or_a_directory() {
        assert!(Cli::try_parse_from(["portcullis", "serve"]).is_err());
        assert!(Cli::try_parse_from(["portcullis", "serve", "--from", "policy"]).is_ok());
        assert!(
            Cli::try_parse_from(["portcullis", "serve", "--namespace", "agents", "--server", "ops"]).is_ok()
        );
    }

    #[test]
    fn the_help_of_serve_lists_the_variables() {
        let mut command = Cli::command();
        let serve = command.find_subcommand_mut("serve").expect("it is there");
        let help = serve.render_long_help().to_string();
        assert!(help.contains("MCP_AUTH_API_KEY_FILE") && help.contains("--unsafe-anonymous"), "{help}");
        let server = ["portcullis", "serve", "--namespace", "a", "--server", "b", "--unsafe-anonymous"];
        assert!(Cli::try_parse_from(server).is_err());
    }

    #[test]
    fn a_catalogue_that_cannot_be_read_ends_the_process_before_it_does_anything() {
        let directory = tempfile::tempdir().expect("a directory");
        let out = directory.path().to_str().expect("a path");
        for broken in ["{", r#"{"extras": []}"#, r#"{"extra": [{"resource": "secrets", "verbs": ["get"]}]}"#]
        {
            let cli = Cli::try_parse_from(["portcullis", "--catalogue", broken, "generate", "--out", out]);
            let code = cli.expect("the command line is fine").run();
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE), "{broken}");
            let written = std::fs::read_dir(directory.path()).expect("it is there").count();
            assert_eq!(written, 0, "{broken}");
        }
    }
}
