//! `portcullis access-review`: who can do what, on which server, and from which role, as evidence for reviews of access.
//!
//! It reads the cluster of the kubeconfig, or a directory, and writes nothing. The rows are sorted, so that two reviews
//! can be compared.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use crate::index::files::Environment;
use crate::review::{Place, Row, record, rows};
use crate::terminal::{self, visible};

/// Shows who can do what, on which server, and from which role.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AccessReview {
    #[command(flatten)]
    place: Place,
    /// Only servers of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only servers of this name.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// A table for people, a JSON array, or CSV for spreadsheets.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

const EXAMPLES: &str = "\
A row is one permission of one caller by one role: of an API key, or of a user, group or ServiceAccount that a role
names. The state is \"active\", or says why there is no access: disabled, expired, revoked, other_server, blocked,
method_disabled, not_made, deleting, invalid, namespace_not_admitted, tenant_required, role_without_effect,
not_offered, which is a permission for which spec.tools of the server lets in no tool, or nobody.
To callers of a tenant a role grants what it names in the namespaces of the tenant, which are listed as they are now;
whose token or certificate names the tenant has the tenant \"(by credential)\". Who is in a group, and scopes by which a
token narrows its holder, are known to the issuer alone. CSV puts an apostrophe before what a spreadsheet would
calculate.

Of a cluster it lists McpServers, McpRoles and McpApiKeys, of the namespace where one is named, and ClusterMcpRoles. It
lists the namespaces of the whole cluster too, for their labels say which tenant has them and which roles select them.
Where that is forbidden it gets the one that is named, and fails if another one could count: if the server accepts
ServiceAccounts, a key or a credential has a tenant, tenancy is Required, or a role has a namespaceSelector.

Examples:
  portcullis access-review                                 every server of the cluster of the kubeconfig
  portcullis access-review -n agents --server ops -o csv > access-2026-q4.csv
  portcullis access-review --from ./policy
  portcullis access-review -o json | jq '.[] | select(.permission == \"k8s:pods:delete\") | .subject'";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Csv,
}

impl AccessReview {
    /// Runs the command, with the variables that a directory may name and the time at which keys are judged.
    ///
    /// # Errors
    /// When something cannot be read: half a review would be no evidence.
    pub(crate) fn run(
        self,
        environment: Environment,
        now: Timestamp,
        output: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let policies = self.place.policies(self.namespace.as_deref(), self.server.as_deref(), environment)?;
        let rows: Vec<Row> = policies.iter().flat_map(|policy| rows(policy, now)).collect();
        terminal::written(match self.output {
            Format::Table => {
                let titles = [
                    "SERVER",
                    "KIND",
                    "SUBJECT",
                    "KEY",
                    "ISSUER",
                    "TENANT",
                    "STATE",
                    "ROLE",
                    "PERMISSION",
                    "NAMESPACES",
                    "TOOLS",
                ];
                terminal::write_table(titles, rows.iter().map(cells), output)
            }
            Format::Json => write_json(&rows, output),
            Format::Csv => write_csv(&rows, output),
        })
    }
}

/// Where a role counts: everywhere, or in these namespaces. No namespace can be called `(all)`.
fn namespaces(row: &Row) -> String {
    match row.all_namespaces {
        true => "(all)".to_owned(),
        false => row.namespaces.join(" "),
    }
}

/// The tenant in whose namespaces alone the caller may act. No tenant is called `(by credential)`.
fn tenant(row: &Row) -> String {
    match row.tenant_by_credential {
        true => "(by credential)".to_owned(),
        false => row.tenant.clone().unwrap_or_default(),
    }
}

/// The cells of the table. What people and issuers called somebody must not steer the terminal.
fn cells(row: &Row) -> [String; 11] {
    let or_dash = |text: &str| match text.is_empty() {
        true => "-".to_owned(),
        false => visible(text, 60),
    };
    let optional = |text: &Option<String>| or_dash(text.as_deref().unwrap_or_default());
    [
        or_dash(&row.server),
        or_dash(row.kind),
        or_dash(&row.subject),
        optional(&row.key),
        optional(&row.issuer),
        or_dash(&tenant(row)),
        row.state.to_owned(),
        optional(&row.role),
        row.permission.map_or("-".to_owned(), |permission| permission.to_string()),
        or_dash(&namespaces(row)),
        or_dash(&row.tools.join(" ")),
    ]
}

fn write_json(rows: &[Row], output: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *output, rows)?;
    writeln!(output)?;
    output.flush()
}

fn write_csv(rows: &[Row], output: &mut dyn Write) -> io::Result<()> {
    let titles = [
        "server",
        "kind",
        "subject",
        "key",
        "issuer",
        "tenant",
        "state",
        "role",
        "permission",
        "namespaces",
        "tools",
        "expiresAt",
        "lastUsedAt",
    ];
    output.write_all(record(titles).as_bytes())?;
    for row in rows {
        let optional = |text: &Option<String>| text.clone().unwrap_or_default();
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
        let fields = [
            row.server.clone(),
            row.kind.to_owned(),
            row.subject.clone(),
            optional(&row.key),
            optional(&row.issuer),
            tenant(row),
            row.state.to_owned(),
            optional(&row.role),
            row.permission.map(|permission| permission.to_string()).unwrap_or_default(),
            namespaces(row),
            row.tools.join(" "),
            time(row.expires_at),
            time(row.last_used_at),
        ];
        output.write_all(record(fields.iter().map(String::as_str)).as_bytes())?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        review: AccessReview,
    }

    /// What somebody has in a directory: two keys, one of them switched off, and a user by password.
    const POLICY: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {name: ops, namespace: agents}
spec: {authentication: {basic: {enabled: true, users: {name: users, key: users}}}}
---
apiVersion: v1
kind: Secret
metadata: {name: users, namespace: agents}
stringData: {users: ''}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: viewer, namespace: agents}
spec: {permissions: ['k8s:pods:list'], subjects: [{kind: User, name: '=ann,\"x\"', issuer: basic}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: ClusterMcpRole
metadata: {name: admin}
spec: {permissions: ['k8s:pods:delete'], allNamespaces: true, servers: [{namespace: agents, name: ops}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: ci, namespace: agents}
spec: {identity: ci-bot, servers: [ops], expiresAt: '2027-01-01T00:00:00Z', roles: [{kind: ClusterMcpRole, name: admin}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: old, namespace: agents}
spec: {identity: old-bot, servers: [ops], enabled: false, roles: [{name: viewer}]}
";

    fn run(arguments: &[&str]) -> anyhow::Result<String> {
        run_with(POLICY, arguments)
    }

    fn run_with(policy: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("policy.yaml"), policy).expect("it is written");
        let from = directory.path().to_string_lossy().into_owned();
        let line = Line::try_parse_from([&["access-review", "--from", &from], arguments].concat())?;
        let mut output = Vec::new();
        let now = "2026-11-23T10:00:00Z".parse().expect("a time");
        line.review.run(Environment::default(), now, &mut output)?;
        Ok(String::from_utf8(output).expect("text"))
    }

    #[test]
    fn a_person_sees_a_table_of_who_can_do_what() {
        let expected = "\
SERVER       KIND        SUBJECT    KEY   ISSUER   TENANT   STATE      ROLE                   PERMISSION        NAMESPACES   TOOLS
agents/ops   McpApiKey   ci-bot     ci    -        -       active     ClusterMcpRole admin   k8s:pods:delete   (all)        pods_delete
agents/ops   McpApiKey   old-bot    old   -        -   disabled   -                      -                 -            -
agents/ops   User        =ann,\"x\"   -     basic    -   active     McpRole agents/viewer   k8s:pods:list     agents       pods_list resources_list
";
        let table = run(&[]).expect("it answers");
        let words = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(words(&table), words(expected));
        assert_eq!(run(&["-n", "agents", "--server", "ops"]).expect("it answers"), table);
        assert_eq!(run(&[]).expect("it answers"), table, "two reviews of the same policy are the same");
    }

    #[test]
    fn a_spreadsheet_gets_texts_and_never_formulas() {
        let expected = [
            "server,kind,subject,key,issuer,tenant,state,role,permission,namespaces,tools,expiresAt,lastUsedAt",
            "agents/ops,McpApiKey,ci-bot,ci,,,active,ClusterMcpRole admin,k8s:pods:delete,(all),pods_delete,2027-01-01T00:00:00Z,",
            "agents/ops,McpApiKey,old-bot,old,,,disabled,,,,,,",
            "agents/ops,User,\"'=ann,\"\"x\"\"\",,basic,,active,McpRole agents/viewer,k8s:pods:list,agents,pods_list resources_list,,",
            "",
        ];
        assert_eq!(run(&["-o", "csv"]).expect("it answers"), expected.join("\r\n"));
    }

    #[test]
    fn a_script_reads_a_json_array() {
        let rows: Vec<Value> =
            serde_json::from_str(&run(&["-o", "json"]).expect("it answers")).expect("JSON");
        let expected = json!({
            "server": "agents/ops", "kind": "McpApiKey", "subject": "ci-bot", "key": "ci", "issuer": null,
            "tenant": null, "tenantByCredential": false,
            "state": "active", "role": "ClusterMcpRole admin", "permission": "k8s:pods:delete", "allNamespaces": true,
            "namespaces": [], "tools": ["pods_delete"], "expiresAt": "2027-01-01T00:00:00Z", "lastUsedAt": null
        });
        assert_eq!((rows.len(), &rows[0]), (3, &expected));
    }

    #[test]
    fn a_tenant_has_a_column_of_its_own() {
        let policy = POLICY.replace("identity: ci-bot,", "identity: ci-bot, tenant: red,");
        let table = run_with(&policy, &[]).expect("it answers");
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0][5..7], ["TENANT", "STATE"]);
        // A directory knows of no namespaces with labels, so the tenant has none.
        assert_eq!(rows[1][3..8], ["ci", "-", "red", "role_without_effect", "ClusterMcpRole"]);
        let csv = run_with(&policy, &["-o", "csv"]).expect("it answers");
        assert!(csv.contains(",ci-bot,ci,,red,role_without_effect,"), "{csv}");
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_and_no_empty_review() {
        let error = run(&["-n", "agents", "--server", "typo"]).expect_err("there is none").to_string();
        assert!(error.starts_with("there is no McpServer agents/typo in /"), "{error}");
        let error = run(&["-n", "typo", "-o", "json"]).expect_err("there is none").to_string();
        assert!(error.starts_with("there is no McpServer in namespace typo in /"), "{error}");
    }
}
