//! `serve --from DIR`: an endpoint of this machine, from the files of a directory, with the cluster of the kubeconfig.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Process, client, endpoint, metrics, stop_on_signal};
use crate::api::names;
use crate::audit::Settings;
use crate::authenticator::{self, Authenticator, Materials};
use crate::cli::ServeArguments;
use crate::index::files::{self, Environment, Loaded, Source};
use crate::server::{self, ServeConfig, Times};

/// Port of the endpoint on a laptop.
const LOCAL_PORT: u16 = 8443;

/// Serves what the files of a directory say.
pub(super) async fn serve(
    directory: &Path,
    arguments: ServeArguments,
    environment: Environment,
) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let listen = arguments.listen.unwrap_or_else(|| local(LOCAL_PORT));
    let client = client().await?;
    let ended = CancellationToken::new();
    let source = Source {
        directory: directory.to_owned(),
        operator_namespace: arguments.operator_namespace,
        environment,
        listen,
        unsafe_anonymous: arguments.unsafe_anonymous,
    };
    let materials = Materials::given(Default::default());
    let given = materials.clone();
    let publish = move |entries| given.set(entries);
    let (policy, loaded, following) = files::follow(source, Some(client.clone()), publish, ended.clone())?;
    let generated = directory.join(files::GENERATED);
    let tls_dir = generated.join("tls");
    let server = policy.load().server.clone();
    let hosts = server.iter().flat_map(|server| server.spec.tls.hosts.clone()).collect::<Vec<_>>();
    server::self_signed::ensure(&tls_dir, &hosts)?;
    let path = server.map_or_else(String::new, |server| server.spec.transports.streamable_http.path.clone());
    let url = format!("https://{listen}{path}");
    let plain = arguments.plain_listen.map(|address| format!("http://{address}{path}"));
    for line in announcement(&url, plain.as_deref(), &tls_dir, &generated, &loaded) {
        eprintln!("{line}");
    }
    let proving = authenticator::Settings {
        namespace: loaded.subject.namespace.clone(),
        server: loaded.subject.server.clone(),
        resource: Some(url),
        token_file: None,
    };
    let authenticator = Authenticator::new(client.clone(), materials, proving);
    let config = ServeConfig {
        namespace: loaded.subject.namespace,
        server: loaded.subject.server,
        pod_ip: None,
        listen,
        plain_listen: arguments.plain_listen,
        tls_dir,
        internal: None,
        // Nobody has to notice that a laptop's endpoint goes away.
        times: Times { linger: Duration::ZERO, ..Times::default() },
    };
    let admin = arguments.admin_listen.unwrap_or_else(|| local(names::ADMIN_PORT as u16));
    let audit = (generated.join("audit.db"), Settings::default());
    let (registry, metrics) = metrics(Some(&policy));
    let process = Process { client, policy, authenticator, registry, metrics, stop, ended };
    endpoint(config, admin, audit, process, following).await
}

/// What people need to know at the start: where to connect, how to prove who they are, and where the keys are.
fn announcement(
    url: &str,
    plain: Option<&str>,
    tls_dir: &Path,
    generated: &Path,
    loaded: &Loaded,
) -> Vec<String> {
    let mut lines = vec![format!("url      {url}"), format!("ca       {}", tls_dir.join("ca.crt").display())];
    lines.extend(plain.map(|plain| format!("url      {plain} (without TLS, this machine only)")));
    let anonymous =
        loaded.objects.server.as_ref().is_some_and(|s| s.spec.authentication.anonymous.unsafe_enabled);
    let mut methods = loaded.methods.clone();
    if anonymous {
        methods.push("none at all (anonymous)".to_owned());
    }
    let methods = match methods.is_empty() {
        true => "none, so that nobody can come in".to_owned(),
        false => methods.join(", "),
    };
    lines.push(format!("methods  {methods}"));
    for key in &loaded.keys {
        let how = if key.generated { "generated" } else { "from an earlier run" };
        lines.push(format!("key      {} ({}, {how})", key.path.display(), key.key));
    }
    for (key, from) in &loaded.imported {
        lines.push(format!("key      {from} ({key}, imported)"));
    }
    lines.push(format!("audit    {}", generated.join("audit.db").display()));
    lines.extend(loaded.warnings.iter().map(|warning| format!("warning  {warning}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_tells_the_methods_and_where_keys_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let secret = "qW7-tZ3_xR9.mK5vB2pLd8";
        let key = |name: &str, more: &str| {
            format!(
                "---\napiVersion: portcullis.dev/v1alpha1\nkind: McpApiKey\nmetadata: {{name: {name}}}\n\
                 spec: {{identity: {name}, servers: [ops]{more}}}\n"
            )
        };
        let text = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: McpServer\nmetadata: {{name: ops}}\n\
             spec: {{authentication: {{jwt: [{{issuer: https://a}}], tokens: {{enabled: true}}}}}}\n\
             ---\napiVersion: v1\nkind: Secret\nmetadata: {{name: mcp-secrets}}\nstringData: {{api-key: {secret}}}\n{}{}",
            key("ci", ""),
            key("old", ", import: {secretRef: {name: mcp-secrets}}"),
        );
        std::fs::write(directory.path().join("a.yaml"), text).expect("written");
        let loaded = files::load(directory.path(), "portcullis-system").expect("loads");
        let url = "https://127.0.0.1:8443/mcp";
        let lines = announcement(
            url,
            Some("http://127.0.0.1:8080/mcp"),
            Path::new("tls"),
            Path::new("here"),
            &loaded,
        );
        let generated = directory.path().join(".portcullis/keys/ci");
        let expected = [
            "url      https://127.0.0.1:8443/mcp".to_owned(),
            "ca       tls/ca.crt".to_owned(),
            "url      http://127.0.0.1:8080/mcp (without TLS, this machine only)".to_owned(),
            "methods  API keys (2), tokens of https://a, tokens of this endpoint".to_owned(),
            format!("key      {} (ci, generated)", generated.display()),
            "key      Secret mcp-secrets, api-key (old, imported)".to_owned(),
            "audit    here/audit.db".to_owned(),
        ];
        assert_eq!(lines, expected);
    }
}
