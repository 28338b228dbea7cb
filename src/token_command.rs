//! `portcullis token inspect`: shows what a token says, and proves nothing of it.
//!
//! It asks nobody and needs no key. It is lenient where the endpoint is strict, so that a person sees why a token is
//! refused; what the endpoint would mind is among the warnings. The signature is never shown.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;
use serde_json::{Map, Value};

use crate::terminal::{self, visible};

/// Longest life of a token that endpoints accept.
const MAX_LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// How far clocks may differ.
const LEEWAY: SignedDuration = SignedDuration::from_secs(30);
/// Largest token that endpoints accept.
const MAX_SIZE: usize = 16 * 1024;
/// Characters of a claim that a table shows.
const WIDTH: usize = 200;

/// Shows tokens.
#[derive(Args, Debug)]
pub(crate) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Shows what a JSON Web Token says. NOTHING is verified: anybody can write any token.
    #[command(after_help = EXAMPLES)]
    Inspect(Inspect),
}

const EXAMPLES: &str = "\
Examples:
  kubectl create token ci-bot --audience https://ops-mcp.agents.svc/mcp | portcullis token inspect
  portcullis token inspect --file token.jwt --json | jq .warnings";

#[derive(Args, Debug)]
struct Inspect {
    /// Read the token from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print a JSON object with the header, every claim and the warnings instead of a table.
    #[arg(long)]
    json: bool,
}

impl Token {
    /// Runs the command. The time makes an expiry a distance.
    ///
    /// # Errors
    /// When the input cannot be read or is no token; the text says which part of it is wrong.
    pub(crate) fn run(self, now: Timestamp, output: &mut dyn Write) -> anyhow::Result<()> {
        let Command::Inspect(arguments) = self.command;
        let secret = terminal::read_secret(arguments.file.as_deref(), "Token")?;
        let parts = Parts::read(secret.expose_secret())?;
        let warnings = parts.warnings(now);
        terminal::written(match arguments.json {
            true => parts.write_json(&warnings, now, output),
            false => parts.write_table(&warnings, now, output),
        })
    }
}

/// What a token says.
struct Parts {
    size: usize,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl Parts {
    fn read(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let text = match text.split_once(' ') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim_start(),
            _ => text,
        };
        ensure!(
            !text.starts_with("pcl_"),
            "this is an API key of Portcullis and not a token: see `portcullis key check`"
        );
        let parts: Vec<&str> = text.split('.').collect();
        let &[header, claims, signature] = parts.as_slice() else {
            let count = parts.len();
            if count == 5 {
                bail!("the token has 5 parts: it is encrypted (JWE), which no endpoint accepts");
            }
            bail!(
                "the token has {count} part{}; expected header.payload.signature",
                if count == 1 { "" } else { "s" }
            );
        };
        let parts =
            Self { size: text.len(), header: object("header", header)?, claims: object("payload", claims)? };
        URL_SAFE_NO_PAD.decode(signature).map_err(|error| not_base64("signature", signature, error))?;
        Ok(parts)
    }

    fn text<'a>(from: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
        from.get(name).and_then(Value::as_str)
    }

    fn time(&self, claim: &str) -> Option<Timestamp> {
        let value = self.claims.get(claim)?;
        let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))?;
        Timestamp::from_second(seconds).ok()
    }

    /// `aud` is a text or a list of them.
    fn audience(&self) -> Vec<&str> {
        match self.claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        }
    }

    fn lifetime(&self) -> Option<SignedDuration> {
        Some(self.time("exp")?.duration_since(self.time("iat").or(self.time("nbf"))?))
    }

    /// What an endpoint, or a careful reader, would mind.
    fn warnings(&self, now: Timestamp) -> Vec<String> {
        let mut found = Vec::new();
        let mut warn = |text: String| found.push(text);
        match Self::text(&self.header, "alg") {
            None => warn("alg is missing: no endpoint accepts it".to_owned()),
            Some(alg) if alg.eq_ignore_ascii_case("none") => {
                warn("alg is none: the token is not signed and no endpoint accepts it".to_owned());
            }
            Some(alg) if alg.starts_with("HS") => warn(format!(
                "alg is {}: whoever can verify such tokens can also make them",
                visible(alg, 20)
            )),
            Some(_) => {}
        }
        for name in ["jwk", "jku", "x5u", "x5c"] {
            if self.header.contains_key(name) {
                warn(format!("the header brings its own key ({name}): endpoints never use it"));
            }
        }
        if self.header.contains_key("crit") {
            warn("the header has crit: endpoints refuse what they must understand and do not".to_owned());
        }
        match Self::text(&self.header, "typ").map(str::to_ascii_lowercase).as_deref() {
            None | Some("jwt" | "at+jwt" | "application/at+jwt") => {}
            Some(_) => warn("typ is not JWT or at+jwt: it is not an access token".to_owned()),
        }
        for (claim, consequence) in [("iss", "no issuer can be found for it"), ("sub", "it names nobody")] {
            if Self::text(&self.claims, claim).is_none_or(str::is_empty) {
                warn(format!("{claim} is missing or no text: {consequence}"));
            }
        }
        if self.audience().is_empty() {
            warn("aud is missing: it is good for anybody, so no endpoint accepts it".to_owned());
        }
        found.extend(self.warnings_of_time(now));
        if self.size > MAX_SIZE {
            found.push(format!("it has {} bytes; endpoints accept {MAX_SIZE} at most", self.size));
        }
        found
    }

    fn warnings_of_time(&self, now: Timestamp) -> Vec<String> {
        let mut found = Vec::new();
        match self.time("exp") {
            None => {
                found.push("exp is missing or no time: it never ends, so no endpoint accepts it".to_owned())
            }
            Some(end) if end + LEEWAY <= now => found.push(format!("it expired {}", relative(end, now))),
            Some(_) => {}
        }
        if self.lifetime().is_some_and(|life| life > MAX_LIFETIME) {
            found.push("it lasts longer than 24 hours, which no endpoint accepts".to_owned());
        }
        if self.lifetime().is_some_and(|life| life <= SignedDuration::ZERO) {
            found.push("it ends before it begins".to_owned());
        }
        for (claim, text) in [("nbf", "it is not valid yet"), ("iat", "it was issued in the future")] {
            if let Some(time) = self.time(claim).filter(|time| *time > now + LEEWAY) {
                found.push(format!("{text}: {}", relative(time, now)));
            }
        }
        found
    }

    fn write_table(&self, warnings: &[String], now: Timestamp, output: &mut dyn Write) -> io::Result<()> {
        let shown = |value: Option<&Value>| match value {
            None => "-".to_owned(),
            Some(Value::String(text)) => visible(text, WIDTH),
            Some(other) => visible(&other.to_string(), WIDTH),
        };
        let time = |claim: &str| match (self.time(claim), self.claims.get(claim)) {
            (Some(time), _) => format!("{time:.0} ({})", relative(time, now)),
            (None, other) => shown(other),
        };
        let audience = self.audience();
        let mut pairs = vec![
            ("ALGORITHM", shown(self.header.get("alg"))),
            ("KEY ID", shown(self.header.get("kid"))),
            ("TYPE", shown(self.header.get("typ"))),
            ("ISSUER", shown(self.claims.get("iss"))),
            ("SUBJECT", shown(self.claims.get("sub"))),
            (
                "AUDIENCE",
                if audience.is_empty() { "-".to_owned() } else { visible(&audience.join(", "), WIDTH) },
            ),
            ("EXPIRES", time("exp")),
            ("NOT BEFORE", time("nbf")),
            ("ISSUED", time("iat")),
            ("LIFETIME", self.lifetime().map_or("-".to_owned(), distance)),
            ("TOKEN ID", shown(self.claims.get("jti"))),
        ];
        let known = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"];
        let others: Vec<(String, String)> = self
            .claims
            .iter()
            .filter(|(name, _)| !known.contains(&name.as_str()))
            .map(|(name, value)| (visible(name, 40), shown(Some(value))))
            .collect();
        pairs.extend(others.iter().map(|(name, value)| (name.as_str(), value.clone())));
        writeln!(
            output,
            "NOT VERIFIED: anybody can write this. It does not say that the token is genuine.\n"
        )?;
        terminal::write_pairs(&pairs, output)?;
        if !warnings.is_empty() {
            writeln!(output)?;
        }
        for warning in warnings {
            writeln!(output, "warning: {warning}")?;
        }
        output.flush()
    }

    fn write_json(&self, warnings: &[String], now: Timestamp, output: &mut dyn Write) -> io::Result<()> {
        let time = |claim: &str| self.time(claim).map(|time| time.to_string());
        let json = serde_json::json!({
            "verified": false,
            "header": self.header,
            "claims": self.claims,
            "algorithm": self.header.get("alg"),
            "keyId": self.header.get("kid"),
            "issuer": self.claims.get("iss"),
            "subject": self.claims.get("sub"),
            "audience": self.audience(),
            "expiresAt": time("exp"),
            "notBefore": time("nbf"),
            "issuedAt": time("iat"),
            "expiresInSeconds": self.time("exp").map(|end| end.duration_since(now).as_secs()),
            "lifetimeSeconds": self.lifetime().map(|life| life.as_secs()),
            "warnings": warnings,
        });
        writeln!(output, "{json:#}")?;
        output.flush()
    }
}

fn object(part: &str, encoded: &str) -> anyhow::Result<Map<String, Value>> {
    ensure!(!encoded.is_empty(), "the {part} is empty");
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|error| not_base64(part, encoded, error))?;
    let value: Value = serde_json::from_slice(&bytes)
        .with_context(|| format!("the {part} is base64url, but not of JSON"))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(anyhow!("the {part} is JSON, but not an object")),
    }
}

fn not_base64(part: &str, encoded: &str, error: base64::DecodeError) -> anyhow::Error {
    let hint = match encoded.bytes().find(|byte| !byte.is_ascii_alphanumeric() && !b"-_".contains(byte)) {
        Some(b'+' | b'/') => ": + and / belong to plain base64",
        Some(b'=') => ": tokens have no padding",
        Some(_) => ": it has a character that base64url does not have",
        None => "; was it cut?",
    };
    anyhow::Error::new(error).context(format!("the {part} is not base64url{hint}"))
}

/// `in 55m 3s`, `2h 5m ago`.
fn relative(time: Timestamp, now: Timestamp) -> String {
    let from_now = time.duration_since(now);
    match from_now.is_negative() {
        true => format!("{} ago", distance(from_now.abs())),
        false => format!("in {}", distance(from_now)),
    }
}

/// The two largest units of a distance.
fn distance(distance: SignedDuration) -> String {
    let seconds = distance.as_secs();
    let sign = if seconds < 0 { "-" } else { "" };
    let seconds = seconds.unsigned_abs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(3);
    let mut rest = seconds;
    let mut words = Vec::new();
    for (size, unit) in units.iter().skip(first).take(2) {
        if rest / size > 0 || words.is_empty() {
            words.push(format!("{}{unit}", rest / size));
        }
        rest %= size;
    }
    format!("{sign}{}", words.join(" "))
}

#[cfg(test)]
#[path = "token_command_tests.rs"]
mod tests;
