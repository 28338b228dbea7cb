//! The plaintexts of keys: generated once into `.portcullis/keys/<name>`, or imported from a Secret or a variable.
//!
//! Of an imported key a salted hash stays in `.portcullis/imported.json`, as in the Secret that the operator keeps, so
//! that it has the same id after a restart. What was hashed once in this process is not hashed again.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use secrecy::{ExposeSecret, SecretString};

use super::{GENERATED, LoadFiles, read_error};
use crate::api::{KeyGeneration, KeyState, McpApiKey};
use crate::authn::imported::{self, AddImportedKey, ImportedKeys};
use crate::authn::{ApiKey, Credential, Reason, api_key, credential, key_rules, password};

/// File with the salted hashes of imported keys.
const IMPORTED: &str = "imported.json";

/// The file with the plaintext of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFile {
    /// Name of the `McpApiKey`.
    pub(crate) key: String,
    /// Where the plaintext is.
    pub(crate) path: PathBuf,
    /// Whether it was generated just now.
    pub(crate) generated: bool,
}

/// A key to be imported.
pub(super) struct Import {
    /// Name of the `McpApiKey`.
    pub(super) key: String,
    /// The key itself.
    pub(super) plaintext: SecretString,
}

/// What is remembered from one reading of the directory to the next, so that hashing is done once.
pub(crate) struct Kept {
    /// Key of the marks below; it is new in every process.
    secret: hmac::Key,
    /// Imported keys, once they were read.
    imported: Option<ImportedKeys>,
    /// By `McpApiKey`: a mark of the plaintext, and the id that it has.
    known: HashMap<String, (Vec<u8>, String)>,
    /// By user: a mark of the password, and its hash.
    passwords: HashMap<String, (Vec<u8>, String)>,
    /// Files outside the directory that were read for it last time.
    pub(super) read: Vec<PathBuf>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            secret: hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()),
            imported: None,
            known: HashMap::new(),
            passwords: HashMap::new(),
            read: Vec::new(),
        }
    }
}

impl Kept {
    fn mark(&self, plaintext: &str) -> Vec<u8> {
        hmac::sign(&self.secret, plaintext.as_bytes()).as_ref().to_vec()
    }

    /// The salted hash of a user's password.
    ///
    /// # Errors
    /// A text for people if it cannot be hashed.
    pub(super) fn password(&mut self, user: &str, plaintext: &str) -> Result<String, String> {
        let mark = self.mark(plaintext);
        if let Some((_, hash)) = self.passwords.get(user).filter(|(known, _)| *known == mark) {
            return Ok(hash.clone());
        }
        let hash = password::hash(plaintext.as_bytes(), random()).map_err(|error| error.to_string())?;
        self.passwords.insert(user.to_owned(), (mark, hash.clone()));
        Ok(hash)
    }

    /// Imports these keys and forgets all others. Gives the generation of each, and what the Authenticator needs to
    /// prove those that are not of our own form; nothing where there are none.
    ///
    /// # Errors
    /// [`LoadFiles`] if the file with the hashes cannot be used.
    pub(super) fn import(
        &mut self,
        directory: &Path,
        imports: &[Import],
    ) -> Result<(Vec<KeyGeneration>, Option<Vec<u8>>), LoadFiles> {
        let path = directory.join(GENERATED).join(IMPORTED);
        let mut held = match self.imported.take() {
            Some(held) => held,
            None => stored(&path)?,
        };
        let outcome = self.renew(&mut held, imports);
        let refuse = |text: String| LoadFiles::Object { path: path.clone(), text };
        let generations = outcome.map_err(|error| refuse(error.to_string()))?;
        if held.iter().next().is_none() {
            self.imported = Some(held);
            return match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => Err(read_error(&path, source)),
                _ => Ok((generations, None)),
            };
        }
        let json = serde_json::to_vec(&held).map_err(|error| refuse(error.to_string()))?;
        self.imported = Some(held);
        if fs::read(&path).ok().as_deref() != Some(&json) {
            write_private(&path, &json).map_err(|source| read_error(&path, source))?;
        }
        Ok((generations, Some(json)))
    }

    fn renew(
        &mut self,
        held: &mut ImportedKeys,
        imports: &[Import],
    ) -> Result<Vec<KeyGeneration>, AddImportedKey> {
        let named = |key: &str| imports.iter().any(|import| import.key == key);
        let gone: Vec<String> = held.iter().filter(|k| !named(&k.key)).map(|k| k.id.clone()).collect();
        gone.iter().for_each(|id| {
            held.remove(id);
        });
        let mut generations = Vec::new();
        for Import { key, plaintext } in imports {
            let plaintext = plaintext.expose_secret();
            if let Ok(own) = ApiKey::parse(plaintext) {
                generations.push(generation(own.id().to_owned(), api_key::format_digest(&own.digest())));
                continue;
            }
            let mark = self.mark(plaintext);
            let known = self.known.get(key).filter(|(known, _)| *known == mark).map(|(_, id)| id.clone());
            let is_held = |id: &String| held.iter().any(|held| held.id == *id);
            let id = match known.filter(is_held) {
                Some(id) => id,
                None => add(held, key, plaintext)?,
            };
            // What the object imported before is over.
            let old: Vec<String> =
                held.iter().filter(|k| k.key == *key && k.id != id).map(|k| k.id.clone()).collect();
            old.iter().for_each(|id| {
                held.remove(id);
            });
            let fingerprint = held.iter().find(|held| held.id == id).map(|held| held.fingerprint());
            let digest = api_key::format_digest(&fingerprint.unwrap_or_default());
            generations.push(generation(id.clone(), digest.replacen("sha256:", "argon2id:", 1)));
            self.known.insert(key.clone(), (mark, id));
        }
        Ok(generations)
    }
}

/// Adds a key. The texts of the keys differ, so whichever object has this one had it before.
fn add(held: &mut ImportedKeys, key: &str, plaintext: &str) -> Result<String, AddImportedKey> {
    loop {
        match held.add(imported::id(&random()), key, plaintext, random()) {
            Ok(added) => return Ok(added.id.clone()),
            Err(AddImportedKey::Taken { key: other }) => {
                let old = held.candidates(plaintext).find(|held| held.key == other && held.proves(plaintext));
                let Some(id) = old.map(|held| held.id.clone()) else {
                    return Err(AddImportedKey::Taken { key: other });
                };
                held.remove(&id);
            }
            Err(AddImportedKey::Id) => {}
            Err(error) => return Err(error),
        }
    }
}

fn stored(path: &Path) -> Result<ImportedKeys, LoadFiles> {
    match fs::read(path) {
        Ok(json) => ImportedKeys::from_json(&json)
            .map_err(|error| LoadFiles::Object { path: path.to_owned(), text: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(ImportedKeys::new(random())),
        Err(source) => Err(read_error(path, source)),
    }
}

fn generation(id: String, digest: String) -> KeyGeneration {
    KeyGeneration { id, digest, created_at: Time(Timestamp::now()), not_after: None, state: KeyState::Active }
}

/// Whether a text may be taken in as a key: one of our own, or one that is strong enough.
///
/// # Errors
/// A text for people that goes after the name of the field and repeats nothing of the key.
pub(super) fn judge(plaintext: &str) -> Result<(), String> {
    if plaintext.starts_with("pcl_") {
        return ApiKey::parse(plaintext).map(|_| ()).map_err(|error| error.to_string());
    }
    key_rules::check(plaintext).map_err(|error| error.to_string())?;
    match presented(plaintext) {
        Ok(Credential::ImportedKey(_)) => Ok(()),
        _ => Err("has the form of a token, and those are verified, never compared; name their issuer in \
                  spec.authentication.jwt or give MCP_AUTH_JWT_SECRET"
            .to_owned()),
    }
}

/// What the endpoint makes of a key where the most forms are known.
fn presented(plaintext: &str) -> Result<Credential, Reason> {
    let value = HeaderValue::try_from(format!("Bearer {plaintext}")).map_err(|_| Reason::UnknownForm)?;
    credential::take(&mut HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

/// Finds or generates the plaintext of a key, and puts its digest where the operator would put it.
pub(super) fn generated(directory: &Path, key: &mut McpApiKey) -> Result<KeyFile, LoadFiles> {
    let name = key.name_any();
    let path = directory.join(GENERATED).join("keys").join(&name);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !name.chars().all(plain) || name.starts_with('.') {
        let text = "metadata.name: must have lower-case letters, digits, '-' and '.' only".to_owned();
        return Err(LoadFiles::Object { path, text });
    }
    let (secret, generated) = match fs::read_to_string(&path) {
        Ok(text) => (ApiKey::parse(text.trim()), false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let fresh = ApiKey::generate(random(), random());
            let text = format!("{}\n", fresh.expose());
            write_private(&path, text.as_bytes()).map_err(|source| read_error(&path, source))?;
            (Ok(fresh), true)
        }
        Err(source) => return Err(read_error(&path, source)),
    };
    let secret = secret.map_err(|error| LoadFiles::Object { path: path.clone(), text: error.to_string() })?;
    let made = generation(secret.id().to_owned(), api_key::format_digest(&secret.digest()));
    key.status.get_or_insert_default().keys.push(made);
    Ok(KeyFile { key: name, path, generated })
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

/// Writes a new file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = parent.join(name);
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests;
