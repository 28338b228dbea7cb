//! `portcullis whoami`: asks an endpoint whom it takes a credential for.
//!
//! One request, `GET /auth/whoami` of the endpoint's origin, over verified TLS only; redirects are not followed. The
//! credential comes from a file, the environment or standard input, never from an argument, and goes nowhere else.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::terminal::{self, visible};

/// Where endpoints say who is calling.
const PATH: &str = "/auth/whoami";
/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of the largest answer.
const MAX_ANSWER: usize = 256 * 1024;
/// The environment variable of a key or token.
pub(crate) const CREDENTIAL_VARIABLE: &str = "PORTCULLIS_CREDENTIAL";

/// Asks an endpoint whom it takes a credential for.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Whoami {
    /// Address of the endpoint, as clients have it.
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    url: Uri,
    /// Present the API key of this file.
    #[arg(long, value_name = "FILE", group = "credential")]
    key_file: Option<PathBuf>,
    /// Present the token of this file.
    #[arg(long, value_name = "FILE", group = "credential")]
    token_file: Option<PathBuf>,
    /// Present the user and password of this file, `user:password`.
    #[arg(long, value_name = "FILE", group = "credential")]
    basic_file: Option<PathBuf>,
    /// Present no credential in a header.
    #[arg(long, group = "credential")]
    anonymous: bool,
    /// Certificate authorities in PEM that the endpoint is verified with [default: those that browsers trust].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Present this client certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Print the answer as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Agents have the tool access_whoami, where a role grants mcp:tools:access_whoami.

Without one of the files, the credential is the key or token of the environment variable PORTCULLIS_CREDENTIAL, or, if
there is none and no client certificate either, of standard input.

Examples:
  portcullis whoami --url https://ops-mcp.agents.svc/mcp --ca ca.crt --key-file ci-bot.key
  kubectl create token ci-bot --audience https://ops-mcp.agents.svc/mcp \\
    | portcullis whoami --url https://localhost:8443/mcp --ca ca.crt
  portcullis whoami --url https://ops.example.org/mcp --cert ann.crt --key ann.key --json | jq .roles";

/// What is presented, and with which header.
enum Presented {
    Nothing,
    Key(SecretString),
    Token(SecretString),
    Basic(SecretString),
    /// From the environment or standard input: every form goes under `Bearer`.
    KeyOrToken(SecretString),
}

impl Whoami {
    /// Runs the command with the credential of the environment, if there is one.
    ///
    /// # Errors
    /// When the credential cannot be read, the endpoint not reached, or the endpoint does not know the caller.
    pub(crate) fn run(self, environment: Option<String>, output: &mut dyn Write) -> anyhow::Result<()> {
        let presented = self.credential(environment.map(SecretString::from))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = async { tokio::time::timeout(DEADLINE, self.ask(&presented)).await };
        let asked = runtime.block_on(asked).map_err(|_| anyhow!("no answer within {} s", DEADLINE.as_secs()));
        let (status, body) = asked.flatten().with_context(|| format!("cannot ask {}", self.url))?;
        let answer = self.judge(status, &body, &presented)?;
        terminal::written(match self.json {
            true => writeln!(output, "{answer:#}").and_then(|()| output.flush()),
            false => terminal::write_pairs(&table(&answer), output),
        })
    }

    fn credential(&self, environment: Option<SecretString>) -> anyhow::Result<Presented> {
        let read = |path: &Path| terminal::read_secret(Some(path), "");
        Ok(match (&self.key_file, &self.token_file, &self.basic_file) {
            (Some(path), _, _) => Presented::Key(read(path)?),
            (_, Some(path), _) => Presented::Token(read(path)?),
            (_, _, Some(path)) => {
                let pair = read(path)?;
                let parts = pair.expose_secret().split_once(':');
                let whole = parts.is_some_and(|(user, password)| !user.is_empty() && !password.is_empty());
                ensure!(whole, "{} does not hold user:password", path.display());
                Presented::Basic(pair)
            }
            _ if self.anonymous => Presented::Nothing,
            _ => match environment {
                Some(credential) => Presented::KeyOrToken(credential),
                None if self.cert.is_some() => Presented::Nothing,
                None => Presented::KeyOrToken(terminal::read_secret(None, "Key or token").context(
                    "there is no credential: name a file, set PORTCULLIS_CREDENTIAL, or say --anonymous",
                )?),
            },
        })
    }

    async fn ask(&self, presented: &Presented) -> anyhow::Result<(StatusCode, Bytes)> {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(self.tls()?).https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let mut request = Request::get(&self.url).header(header::ACCEPT, "application/json");
        if let Some((name, value)) = presented.header()? {
            request = request.header(name, value);
        }
        let response = client.request(request.body(Empty::<Bytes>::new())?).await.map_err(explain)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow!(error).context("cannot read the answer"))?;
        Ok((status, body.to_bytes()))
    }

    fn tls(&self) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                for certificate in certificates(path)? {
                    let wrong = || format!("{} holds a certificate that is no authority", path.display());
                    roots.add(certificate).with_context(wrong)?;
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            return Ok(config.with_no_client_auth());
        };
        let pem = fs::read(key).with_context(|| format!("cannot read {}", key.display()))?;
        let private = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| anyhow!("{} holds no private key in PEM", key.display()))?;
        let pair = config.with_client_auth_cert(certificates(cert)?, private);
        pair.with_context(|| format!("{} and {} do not fit together", cert.display(), key.display()))
    }

    fn judge(&self, status: StatusCode, body: &[u8], presented: &Presented) -> anyhow::Result<Value> {
        match status {
            StatusCode::OK => {
                let answer: Value =
                    serde_json::from_slice(body).ok().filter(Value::is_object).ok_or_else(|| {
                        anyhow!("{} does not answer as an endpoint of Portcullis does", self.url)
                    })?;
                Ok(answer)
            }
            StatusCode::UNAUTHORIZED => bail!("{}", presented.what_to_check(self.cert.is_some())),
            StatusCode::FORBIDDEN => bail!(
                "the endpoint refuses to answer requests of this kind (403): is {} the name that it is known by?",
                self.url
            ),
            StatusCode::NOT_FOUND => {
                bail!("there is nothing at {} (404): is this an endpoint of Portcullis?", self.url)
            }
            StatusCode::TOO_MANY_REQUESTS => {
                bail!("too many failed attempts from this address (429): wait a minute")
            }
            status if status.is_redirection() => {
                bail!(
                    "{} redirects ({status}), and a credential does not follow: use the address of the endpoint",
                    self.url
                )
            }
            status => bail!("the endpoint answered {status}"),
        }
    }
}

impl Presented {
    /// The header that carries it.
    fn header(&self) -> anyhow::Result<Option<(&'static str, HeaderValue)>> {
        let (name, text) = match self {
            Presented::Nothing => return Ok(None),
            Presented::Key(key) => ("x-api-key", key.expose_secret().to_owned()),
            Presented::Token(text) | Presented::KeyOrToken(text) => {
                ("authorization", format!("Bearer {}", text.expose_secret()))
            }
            Presented::Basic(pair) => {
                ("authorization", format!("Basic {}", STANDARD.encode(pair.expose_secret())))
            }
        };
        let mut value = HeaderValue::try_from(text)
            .map_err(|_| anyhow!("the credential has characters that cannot stand in a header"))?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }

    /// What a person can look at when an endpoint does not say why it refuses.
    fn what_to_check(&self, certificate: bool) -> String {
        let key = "the key is whole (portcullis key check); its McpApiKey is Ready, names this server, and is not \
                   disabled, expired or revoked; its allowedCidrs include this machine";
        let token = "the token is not expired and is for this endpoint (portcullis token inspect); its issuer is in \
                     spec.authentication.jwt, or serviceAccounts or tokens is enabled";
        let password = "spec.authentication.basic is enabled; the Secret has a line of this user with the hash of this \
                        password (portcullis key hash)";
        let handshake = "spec.authentication.clientCertificates.mode verifies certificates; its authority made this \
                         one, which is not expired and has the name that identity asks for";
        let anonymous = "without a credential an endpoint answers only if spec.authentication.anonymous.unsafeEnabled \
                         is true";
        let mut checks = match self {
            Presented::Nothing if certificate => vec![handshake],
            Presented::Nothing => vec![anonymous],
            Presented::Key(_) => vec![key],
            Presented::Token(_) => vec![token],
            Presented::Basic(_) => vec![password],
            Presented::KeyOrToken(_) => vec![key, token],
        };
        checks.push("nobody in spec.authentication.blocked is meant");
        checks.push("the record knows the reason: portcullis audit query --type authentication --since 5m, in the pod");
        let list: String = checks.iter().map(|check| format!("\n  - {check}")).collect();
        format!(
            "the endpoint does not accept this caller (401). It tells callers no reason; check that{list}"
        )
    }
}

/// The address to ask, made from the one that MCP clients have.
fn parse_url(text: &str) -> Result<Uri, String> {
    let wrong = || "expected an https URL such as https://ops-mcp.agents.svc/mcp".to_owned();
    let url: Uri = text.parse().map_err(|_| wrong())?;
    let authority = url.authority().ok_or_else(wrong)?;
    if url.scheme_str() != Some("https") {
        return Err(wrong());
    }
    if authority.as_str().contains('@') {
        return Err("a URL must not hold a user or password: use --basic-file".to_owned());
    }
    Uri::builder()
        .scheme("https")
        .authority(authority.clone())
        .path_and_query(PATH)
        .build()
        .map_err(|_| wrong())
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = read.map_err(|_| anyhow!("{} cannot be read as PEM", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate in PEM", path.display());
    Ok(found)
}

/// Says what to do about a connection that failed, where that can be said.
fn explain(error: hyper_util::client::legacy::Error) -> anyhow::Error {
    let error = anyhow!(error);
    let text = format!("{error:#}");
    // A bad signature is what another authority of the same name leads to.
    if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        return error
            .context("the certificate of the endpoint is from an unknown authority: name it with --ca");
    }
    if text.contains("NotValidForName") {
        return error
            .context("the certificate of the endpoint is for another name: use one that it is made for");
    }
    if text.contains("CertificateRequired") {
        return error.context("the endpoint wants a client certificate: give one with --cert and --key");
    }
    error
}

fn table(answer: &Value) -> Vec<(&'static str, String)> {
    let fields = [
        ("SUBJECT", "subject"),
        ("METHOD", "method"),
        ("ISSUER", "issuer"),
        ("GROUPS", "groups"),
        ("TENANT", "tenant"),
        ("API KEY", "key"),
        ("CREDENTIAL", "credentialId"),
        ("EXPIRES", "expiresAt"),
        ("SCOPES", "scopes"),
        ("ROLES", "roles"),
        ("SERVER", "server"),
    ];
    fields.map(|(name, field)| (name, in_words(answer.get(field)))).to_vec()
}

fn in_words(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::Array(many)) if many.is_empty() => "none".to_owned(),
        Some(Value::Array(many)) => many.iter().map(|one| in_words(Some(one))).collect::<Vec<_>>().join(", "),
        Some(Value::String(text)) => visible(text, 200),
        Some(other) => visible(&other.to_string(), 200),
    }
}

#[cfg(test)]
#[path = "whoami_command_tests.rs"]
mod tests;
