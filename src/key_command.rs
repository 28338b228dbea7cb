//! `portcullis key`: makes keys, hashes passwords, and judges keys that were made elsewhere.
//!
//! Nothing here asks a cluster. A key or password is read from a file or standard input and is never shown again.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, anyhow, ensure};
use aws_lc_rs::rand;
use clap::{Args, Subcommand};
use secrecy::ExposeSecret;

use crate::authn::api_key::{ParseKey, format_digest};
use crate::authn::users::User;
use crate::authn::{ApiKey, key_rules, password};
use crate::terminal;

/// Bytes of the longest password that basic authentication takes.
const MAX_PASSWORD: usize = 1024;
/// A password shorter than this is hashed with a warning.
const SHORT_PASSWORD: usize = 12;

/// Makes, hashes and judges keys.
#[derive(Args, Debug)]
pub(crate) struct Key {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Prints a new key with 256 random bits. By itself it opens nothing: in a cluster, keys are made from McpApiKeys.
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(Generate),
    /// Prints the Argon2id hash of a password or key, as spec.authentication.basic.users wants it.
    #[command(after_help = HASH_EXAMPLES)]
    Hash(Hash),
    /// Says whether a key is one of ours and intact, or whether a foreign one is strong enough to import. Fails if not.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
}

const GENERATE_EXAMPLES: &str = "\
Examples:
  portcullis key generate > ci-bot.key
  portcullis key generate --json | jq -r .digest";

const HASH_EXAMPLES: &str = "\
Examples:
  portcullis key hash                                     asks for the password, twice
  portcullis key hash --user ann --group ops >> users     a whole line of the Secret
  pwgen -s 24 1 | tee ann.txt | portcullis key hash --user ann";

const CHECK_EXAMPLES: &str = "\
Examples:
  portcullis key check < ci-bot.key
  portcullis key check --file ci-bot.key --json
  kubectl get secret old-key -o go-template='{{index .data \"api-key\" | base64decode}}' | portcullis key check";

#[derive(Args, Debug)]
struct Generate {
    /// Print a JSON object with id, key and digest instead of the key alone.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Hash {
    /// Print the whole line of this user.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A group of the user; may be repeated.
    #[arg(long = "group", value_name = "GROUP", requires = "user")]
    groups: Vec<String>,
    /// Read the password from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Check {
    /// Read the key from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print a JSON object instead of a sentence.
    #[arg(long)]
    json: bool,
}

impl Key {
    /// Runs the command.
    ///
    /// # Errors
    /// When the input cannot be read, or the key that was to be checked is not sound.
    pub(crate) fn run(self, output: &mut dyn Write) -> anyhow::Result<()> {
        let text = match self.command {
            Command::Generate(arguments) => arguments.run()?,
            Command::Hash(arguments) => arguments.run()?,
            Command::Check(arguments) => arguments.run()?,
        };
        terminal::written(writeln!(output, "{text}").and_then(|()| output.flush()))
    }
}

impl Generate {
    fn run(self) -> anyhow::Result<String> {
        let key = ApiKey::generate(random()?, random()?);
        if !self.json {
            return Ok(key.expose().to_owned());
        }
        let json = serde_json::json!({
            "id": key.id(), "key": key.expose(), "digest": format_digest(&key.digest()),
        });
        Ok(format!("{json:#}"))
    }
}

impl Hash {
    fn run(self) -> anyhow::Result<String> {
        let secret = terminal::read_secret(self.file.as_deref(), "Password")?;
        if self.file.is_none() && terminal::asks_a_person() {
            let again = terminal::read_secret(None, "Again")?;
            ensure!(secret.expose_secret() == again.expose_secret(), "the two passwords differ");
        }
        let text = secret.expose_secret();
        ensure!(text.len() <= MAX_PASSWORD, "the password is longer than {MAX_PASSWORD} bytes");
        ensure!(
            !text.chars().any(char::is_control),
            "the password has control characters, which no client can send"
        );
        if text.chars().count() < SHORT_PASSWORD {
            eprintln!("warning: the password has fewer than {SHORT_PASSWORD} characters");
        }
        let phc = password::hash(text.as_bytes(), random()?)?;
        let Some(name) = self.user else { return Ok(phc) };
        let user = User::new(&name, &phc, self.groups)
            .map_err(|problem| anyhow!("the user cannot stand in a line: {problem}"))?;
        Ok(user.line())
    }
}

impl Check {
    fn run(self) -> anyhow::Result<String> {
        let secret = terminal::read_secret(self.file.as_deref(), "Key")?;
        match ApiKey::parse(secret.expose_secret()) {
            Ok(key) => Ok(self.ours(&key)),
            Err(damaged @ ParseKey::Damaged) => Err(anyhow!(
                "the key begins with \"pcl_\" and {damaged}; was it cut or changed when it was copied?"
            )),
            Err(ParseKey::Foreign) => self.foreign(secret.expose_secret()),
        }
    }

    fn ours(&self, key: &ApiKey) -> String {
        let digest = format_digest(&key.digest());
        if self.json {
            let json = serde_json::json!({"kind": "portcullis", "id": key.id(), "digest": digest});
            return format!("{json:#}");
        }
        format!(
            "ok: a key of Portcullis, intact\nid: {}\ndigest: {digest}\nWhether a server accepts it: portcullis whoami",
            key.id()
        )
    }

    fn foreign(&self, text: &str) -> anyhow::Result<String> {
        let strength = key_rules::check(text).map_err(|problem| anyhow!("the key {problem}"))?;
        let key_rules::Strength { length, classes, bits } = strength;
        if self.json {
            let json = serde_json::json!({"kind": "foreign", "length": length, "classes": classes, "estimatedBits": bits});
            return Ok(format!("{json:#}"));
        }
        Ok(format!(
            "ok: not a key of Portcullis, strong enough to import\n\
             {length} characters of {classes} classes, about {bits} bits to guess ({} are needed)",
            key_rules::MIN_BITS
        ))
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| anyhow!("no random numbers")).context("cannot make it")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::authn::users::Users;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        key: Key,
    }

    /// Runs a command whose secret is in a file.
    fn run(line: &[&str], secret: Option<&str>) -> anyhow::Result<String> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret").to_string_lossy().into_owned();
        let mut line = [&["key"], line].concat();
        if let Some(secret) = secret {
            std::fs::write(&path, secret).expect("it is written");
            line.extend(["--file", &path]);
        }
        let mut output = Vec::new();
        Line::try_parse_from(line)?.key.run(&mut output)?;
        Ok(String::from_utf8(output).expect("text"))
    }

    #[test]
    fn a_generated_key_is_whole_and_new_each_time() {
        let text = run(&["generate"], None).expect("a key");
        let key = ApiKey::parse(text.trim_end()).expect("it is one of ours");
        assert_ne!(text, run(&["generate"], None).expect("a key"));
        let checked = run(&["check"], Some(&text)).expect("it is intact");
        assert!(checked.starts_with("ok: a key of Portcullis, intact\nid: "), "{checked}");
        assert!(checked.contains(key.id()) && !checked.contains(key.expose()));
    }

    #[test]
    fn a_script_gets_the_id_and_the_digest() {
        let json = run(&["generate", "--json"], None).expect("a key");
        let made: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let key = made["key"].as_str().expect("a key");
        let checked = run(&["check", "--json"], Some(key)).expect("it is intact");
        let checked: serde_json::Value = serde_json::from_str(&checked).expect("JSON");
        assert_eq!((&checked["id"], &checked["digest"]), (&made["id"], &made["digest"]));
        assert_eq!(checked["kind"], "portcullis");
    }

    #[test]
    fn a_hash_can_be_used_as_it_is_printed() {
        let phc = run(&["hash"], Some("correct horse battery\n")).expect("a hash");
        assert!(password::verify(b"correct horse battery", phc.trim_end()));
        let line =
            run(&["hash", "--user", "ann", "--group", "ops", "--group", "dev"], Some("hunter22hunter22"));
        let users = Users::parse(&line.expect("a line")).expect("it is understood");
        let ann = users.get("ann").expect("it is ann's");
        assert_eq!(ann.groups, ["ops", "dev"]);
        assert!(password::verify(b"hunter22hunter22", &ann.phc));
    }

    #[test]
    fn what_cannot_work_is_refused_before_it_is_stored() {
        let refused =
            |line: &[&str], secret: &str| run(line, Some(secret)).expect_err("it is refused").to_string();
        assert!(refused(&["hash", "--user", "a:b"], "hunter22hunter22").contains("no colon"));
        assert!(refused(&["hash", "--user", "ann", "--group", "a,b"], "hunter22hunter22").contains("groups"));
        assert!(refused(&["hash"], "a\u{7}b").contains("control characters"));
        assert_eq!(refused(&["hash"], ""), "the input is empty");
        assert!(run(&["hash", "--group", "ops"], Some("x")).is_err(), "a group needs a user");
        assert!(run(&["hash", "hunter2"], None).is_err(), "a secret is never an argument");
        assert!(run(&["check", "hunter2"], None).is_err(), "a secret is never an argument");
    }

    #[test]
    fn a_foreign_key_is_judged_and_never_repeated() {
        let answer = run(&["check"], Some("Zx9!kQ-4mB7(vT2;\n")).expect("it is strong");
        assert!(
            answer.starts_with("ok: not a key of Portcullis, strong enough to import\n16 characters"),
            "{answer}"
        );
        assert!(!answer.contains("Zx9"));
        let json = run(&["check", "--json"], Some("Zx9!kQ-4mB7(vT2;")).expect("it is strong");
        assert!(json.contains("\"kind\": \"foreign\""), "{json}");
        for (key, expected) in [
            ("Abc123!@#Xyz789!@#", "the key is, or holds, an example that a document has published"),
            ("Abc123!@#", "the key has 9 characters; at least 16 are needed"),
            ("Password12345678!", "the key is guessed too easily"),
            ("pcl_0123456789abcdef_cut", "the key begins with \"pcl_\" and is damaged"),
            ("Zx9!kQ-4mB7(vT2; ", "the key has a blank"),
        ] {
            let error = run(&["check"], Some(key)).expect_err("it is refused").to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains(key));
        }
    }
}
