//! `portcullis can-i`: whether a caller may do something on a server, and which role decides.
//!
//! The answer is an exit code too: 0 is yes, 1 is no, 2 is an error. It reads the cluster of the kubeconfig, or a
//! directory, and writes nothing.

use std::io::Write;

use anyhow::{Context, anyhow, bail, ensure};
use clap::{ArgGroup, Args};
use jiff::Timestamp;

use crate::api::ServerReference;
use crate::authz::permission::Pattern;
use crate::authz::{Permission, suggestion};
use crate::index::files::Environment;
use crate::review::{Caller, Place, Policy, Question, Where, answer};
use crate::terminal::{self, parse_server, visible};

/// Exit code of an answer that could not be given.
pub(crate) const FAILED: u8 = 2;

/// Says whether a caller may do something on a server, and which role decides.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("caller").required(true).multiple(false))]
pub(crate) struct CanI {
    /// What is to be done, such as k8s:pods:list.
    #[arg(value_name = "PERMISSION")]
    permission: String,
    /// Ask for somebody of this name; a ServiceAccount is system:serviceaccount:NAMESPACE:NAME.
    #[arg(long = "as", value_name = "SUBJECT", group = "caller", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    subject: Option<String>,
    /// A group that comes with the name; may be repeated.
    #[arg(long = "as-group", value_name = "GROUP", conflicts_with = "key")]
    groups: Vec<String>,
    /// Who vouches for the name: the issuer of a token, or basic, certificate, kubernetes or anonymous [default: whoever
    /// the server trusts].
    #[arg(long, value_name = "ISSUER", conflicts_with = "key")]
    issuer: Option<String>,
    /// The tenant that the token or certificate of the caller names. A key has its own, and a ServiceAccount that of its
    /// namespace.
    #[arg(long, value_name = "TENANT", conflicts_with = "key", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    tenant: Option<String>,
    /// Ask for the holder of this McpApiKey.
    #[arg(long = "as-key", value_name = "KEY", group = "caller")]
    key: Option<String>,
    /// In this namespace [default: in any].
    #[arg(short, long, value_name = "NAMESPACE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    namespace: Option<String>,
    /// In every namespace there is.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// On this server. A directory has one, which need not be named.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_server, required_unless_present = "from")]
    server: Option<ServerReference>,
    #[command(flatten)]
    place: Place,
    /// Print a JSON object instead of a sentence.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
The exit code is 0 for yes, 1 for no, and 2 for an error. What spec.tools of the server lets in no tool for is a no,
whatever the roles grant. Scopes by which a token narrows its holder are not asked.

Of a cluster it lists McpServers, McpRoles and McpApiKeys of the namespace of the server, and ClusterMcpRoles. It lists
the namespaces of the whole cluster too, for their labels say which tenant has them and which roles select them. Where
that is forbidden it gets the one of the server, and fails if another one could count: if the server accepts
ServiceAccounts, a key or a credential has a tenant, tenancy is Required, or a role has a namespaceSelector.

Examples:
  portcullis can-i k8s:pods:delete --as-key ci-bot -n team-a --server agents/ops
  portcullis can-i k8s:deployments:scale --as ann --as-group platform -n team-a --server agents/ops
  portcullis can-i k8s:pods:list --as system:serviceaccount:agents:bot -A --server agents/ops --json
  portcullis can-i k8s:pods:list --as ann --tenant red -n red-web --server agents/ops
  portcullis can-i k8s:pods:logs --as ann --issuer basic --from ./policy";

impl CanI {
    /// Runs the command, with the variables that a directory may name and the time at which keys are judged. Tells
    /// whether the answer is yes.
    ///
    /// # Errors
    /// When something cannot be read, or there is no such server or key.
    pub(crate) fn run(
        self,
        environment: Environment,
        now: Timestamp,
        output: &mut dyn Write,
    ) -> anyhow::Result<bool> {
        // Not by the parser of the command line, which ends before the catalogue is whole.
        let permission = parse_permission(&self.permission).with_context(|| self.permission.clone())?;
        let server = self.server.as_ref();
        let (namespace, name) = (server.map(|s| s.namespace.as_str()), server.map(|s| s.name.as_str()));
        let policies = self.place.policies(namespace, name, environment)?;
        ensure!(policies.len() == 1, "{} servers are meant: name one with --server", policies.len());
        let policy = &policies[0];
        let answer = answer(policy, &self.question(permission)?, now)?;
        let written = match self.json {
            true => writeln!(output, "{:#}", self.json(policy, permission, &serde_json::to_value(&answer)?)),
            false => {
                let word = if answer.allowed { "yes" } else { "no" };
                writeln!(output, "{word}: {}", visible(&answer.reason, 2000))
            }
        };
        terminal::written(written.and_then(|()| output.flush()))?;
        Ok(answer.allowed)
    }

    fn question(&self, permission: Permission) -> anyhow::Result<Question<'_>> {
        let caller = match (&self.key, &self.subject) {
            (Some(key), _) => Caller::Key(key),
            (None, Some(name)) => {
                let (issuer, tenant) = (self.issuer.as_deref(), self.tenant.as_deref());
                Caller::Subject { name, groups: &self.groups, issuer, tenant }
            }
            (None, None) => return Err(anyhow!("name somebody with --as or --as-key")),
        };
        let place = match (&self.namespace, self.all_namespaces) {
            (Some(namespace), _) => Where::Namespace(namespace),
            (None, true) => Where::Everywhere,
            (None, false) => Where::Anywhere,
        };
        Ok(Question { permission, place, caller })
    }

    /// The answer with what was asked.
    fn json(&self, policy: &Policy, permission: Permission, answer: &serde_json::Value) -> serde_json::Value {
        let mut json = serde_json::json!({
            "server": policy.server(), "permission": permission, "namespace": self.namespace,
            "allNamespaces": self.all_namespaces, "subject": self.subject, "groups": self.groups, "tenant": self.tenant,
            "key": self.key,
        });
        if let (Some(json), Some(answer)) = (json.as_object_mut(), answer.as_object()) {
            json.extend(answer.clone());
        }
        json
    }
}

/// One permission, as roles name it. A pattern is many questions.
fn parse_permission(text: &str) -> anyhow::Result<Permission> {
    let pattern = Pattern::parse(text).map_err(|error| anyhow!("{error}{}", suggestion(text)))?;
    let mut meant = Permission::all().filter(|permission| pattern.matches(*permission));
    match (meant.next(), pattern.is_literal()) {
        (Some(permission), true) => Ok(permission),
        _ => bail!("ask for one permission at a time, without a wildcard"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        can_i: CanI,
    }

    const POLICY: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {name: ops, namespace: agents}
spec: {authentication: {jwt: [{issuer: 'https://issuer.example.com'}]}}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: viewer, namespace: agents}
spec: {permissions: ['k8s:pods:list'], subjects: [{kind: Group, name: platform}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: ClusterMcpRole
metadata: {name: admin}
spec: {permissions: ['k8s:*'], allNamespaces: true, servers: [{namespace: agents, name: ops}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: ci, namespace: agents}
spec: {identity: ci-bot, servers: [ops], roles: [{kind: ClusterMcpRole, name: admin}]}
";

    fn run(arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("policy.yaml"), POLICY).expect("it is written");
        let from = directory.path().to_string_lossy().into_owned();
        let line = Line::try_parse_from([&["can-i", "--from", &from], arguments].concat())?;
        let mut output = Vec::new();
        let now = "2026-11-23T10:00:00Z".parse().expect("a time");
        let allowed = line.can_i.run(Environment::default(), now, &mut output)?;
        Ok((allowed, String::from_utf8(output).expect("text")))
    }

    #[test]
    fn a_person_reads_yes_or_no_and_why() {
        let asked = |arguments: &[&str]| run(arguments).expect("it answers");
        let admin = "yes: ClusterMcpRole admin grants k8s:pods:delete in every namespace\n";
        assert_eq!(asked(&["k8s:pods:delete", "--as-key", "ci", "-A"]), (true, admin.to_owned()));
        let group = "yes: McpRole agents/viewer grants k8s:pods:list in namespace agents, if https://issuer.example.com \
                     vouches for the caller\n";
        let line = [
            "k8s:pods:list",
            "--as",
            "ann",
            "--as-group",
            "platform",
            "-n",
            "agents",
            "--server",
            "agents/ops",
        ];
        assert_eq!(asked(&line), (true, group.to_owned()));
        let elsewhere = "no: none of 1 roles grants k8s:pods:list in namespace \"kube-system\"\n";
        let line = ["k8s:pods:list", "--as", "ann", "--as-group", "platform", "-n", "kube-system"];
        assert_eq!(asked(&line), (false, elsewhere.to_owned()));
        let nobody = "no: the caller has no role that counts for this server\n";
        assert_eq!(asked(&["k8s:deployments.apps:scale", "--as", "ann"]), (false, nobody.to_owned()));
    }

    #[test]
    fn a_script_reads_an_object() {
        let (allowed, text) =
            run(&["k8s:pods:delete", "--as-key", "ci", "-n", "team-a", "--json"]).expect("it answers");
        let expected = json!({
            "server": "agents/ops", "permission": "k8s:pods:delete", "namespace": "team-a", "allNamespaces": false,
            "subject": null, "groups": [], "tenant": null, "key": "ci", "allowed": true, "role": "ClusterMcpRole admin", "issuer": null,
            "reason": "ClusterMcpRole admin grants k8s:pods:delete in namespace team-a"
        });
        assert_eq!((allowed, serde_json::from_str::<Value>(&text).expect("JSON")), (true, expected));
    }

    #[test]
    fn what_cannot_be_answered_is_an_error_and_no_no() {
        let error = |arguments: &[&str]| format!("{:#}", run(arguments).expect_err("it cannot be answered"));
        assert!(error(&["k8s:pods:lst", "--as", "ann"]).contains("the nearest there is k8s:pods:list"));
        assert!(error(&["k8s:pods:*", "--as", "ann"]).contains("one permission at a time"));
        assert!(error(&["k8s:pods:list", "--as-key", "typo"]).contains("there is no McpApiKey typo"));
        assert!(
            error(&["k8s:pods:list", "--as", "ann", "--server", "agents/typo"])
                .contains("there is no McpServer")
        );
        for line in [
            &["k8s:pods:list"][..],
            &["k8s:pods:list", "--as", ""],
            &["k8s:pods:list", "--as", "ann", "--as-key", "ci"],
            &["k8s:pods:list", "--as", "ann", "-n", "a", "-A"],
            &["k8s:pods:list", "--as", "ann", "-n", ""],
            &["k8s:pods:list", "--as-key", "ci", "--as-group", "platform"],
            &["k8s:pods:list", "--as-key", "ci", "--tenant", "red"],
            &["k8s:pods:list", "--as", "ann", "--tenant", ""],
        ] {
            assert!(run(line).is_err(), "{line:?}");
        }
        assert!(Line::try_parse_from(["can-i", "k8s:pods:list", "--as", "ann"]).is_err(), "which server?");
    }
}
