//! Keys that were made elsewhere, as the Secret `<server>-mcp-imported` holds them: salted hashes, found by a tag.
//!
//! The tag is twelve bits of a keyed hash. It spares hashing the presented text for each key, and tells a thief of the
//! file next to nothing: one guess in 4096 passes it. The proof is Argon2id.

use std::fmt;

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::api_key;
use super::password::{self, InvalidHash};

/// What ids of imported keys begin with. Ids of our own keys are random: one in 2^15 begins so, and one in 2^80 is equal.
pub(crate) const ID_PREFIX: &str = "imp";
/// Bits of a tag.
const TAG_BITS: u32 = 12;

/// Every imported key that a server accepts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportedKeys {
    pepper: Pepper,
    keys: Vec<ImportedKey>,
}

/// One imported key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportedKey {
    /// The id of its generation, as in the status of its object.
    pub(crate) id: String,
    /// Name of the `McpApiKey`.
    pub(crate) key: String,
    /// What finds it.
    tag: u16,
    /// What proves it: a salted hash.
    phc: String,
}

/// The secret of the tags.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Pepper([u8; 32]);

/// Why the file is not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidImportedKeys {
    /// It is not JSON of this form.
    #[error("cannot read the imported keys")]
    Read(#[source] serde_json::Error),
    /// A key of it proves nothing.
    #[error("the hash of imported key {id} is {problem}")]
    Hash {
        /// Its id.
        id: String,
        /// What is wrong.
        problem: InvalidHash,
    },
    /// Two keys have the same id.
    #[error("imported key {id} is there twice")]
    Duplicate {
        /// The id.
        id: String,
    },
    /// A tag has more bits than tags have.
    #[error("the tag of imported key {id} is out of range")]
    Tag {
        /// Its id.
        id: String,
    },
}

/// Why a key is not added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddImportedKey {
    /// Another object has imported the same text: whose it is could not be said.
    #[error("McpApiKey {key} has imported the same key")]
    Taken {
        /// Name of that `McpApiKey`.
        key: String,
    },
    /// The id is in use.
    #[error("the id is in use")]
    Id,
    /// It cannot be hashed.
    #[error(transparent)]
    Hash(#[from] password::HashPassword),
}

impl ImportedKeys {
    /// No keys yet, and the secret of their tags.
    pub(crate) fn new(pepper: [u8; 32]) -> Self {
        Self { pepper: Pepper(pepper), keys: Vec::new() }
    }

    /// Reads the file of the Secret. Either every key is sound or none counts.
    ///
    /// # Errors
    /// [`InvalidImportedKeys`] names the key and never what it holds.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, InvalidImportedKeys> {
        let keys: Self = serde_json::from_slice(json).map_err(InvalidImportedKeys::Read)?;
        for (index, key) in keys.keys.iter().enumerate() {
            let id = || key.id.clone();
            password::check(&key.phc).map_err(|problem| InvalidImportedKeys::Hash { id: id(), problem })?;
            if key.tag >> TAG_BITS != 0 {
                return Err(InvalidImportedKeys::Tag { id: id() });
            }
            if keys.keys[..index].iter().any(|earlier| earlier.id == key.id) {
                return Err(InvalidImportedKeys::Duplicate { id: id() });
            }
        }
        Ok(keys)
    }

    /// The keys that the presented text may be: none or one, rarely more.
    pub(crate) fn candidates(&self, presented: &str) -> impl Iterator<Item = &ImportedKey> {
        let tag = self.tag(presented);
        self.keys.iter().filter(move |key| key.tag == tag)
    }

    /// Every key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ImportedKey> {
        self.keys.iter()
    }

    /// Takes in a text for an `McpApiKey` and says under which id: its own, if that object has it already. Whether the
    /// text is strong enough is judged before (`key_rules`). It hashes, so it takes tens of milliseconds.
    ///
    /// # Errors
    /// [`AddImportedKey`] when another object has the same text, the id is in use, or it cannot be hashed.
    pub(crate) fn add(
        &mut self,
        id: String,
        key: &str,
        plaintext: &str,
        salt: [u8; 16],
    ) -> Result<&ImportedKey, AddImportedKey> {
        let tag = self.tag(plaintext);
        let held = self.keys.iter().position(|held| held.tag == tag && held.proves(plaintext));
        if let Some(at) = held {
            let held = &self.keys[at];
            return match held.key == key {
                true => Ok(held),
                false => Err(AddImportedKey::Taken { key: held.key.clone() }),
            };
        }
        if self.keys.iter().any(|held| held.id == id) {
            return Err(AddImportedKey::Id);
        }
        let phc = password::hash(plaintext.as_bytes(), salt)?;
        let at = self.keys.len();
        self.keys.push(ImportedKey { id, key: key.to_owned(), tag, phc });
        Ok(&self.keys[at])
    }

    /// Takes in a key as another server has it, under the same id and hash. Whether it proves the text, and that no other
    /// object has the text, was found out before.
    pub(crate) fn copy(&mut self, key: &ImportedKey, plaintext: &str) {
        self.remove(&key.id);
        self.keys.push(ImportedKey { tag: self.tag(plaintext), ..key.clone() });
    }

    /// Forgets a key; says whether it was there.
    pub(crate) fn remove(&mut self, id: &str) -> bool {
        let before = self.keys.len();
        self.keys.retain(|key| key.id != id);
        self.keys.len() < before
    }

    fn tag(&self, text: &str) -> u16 {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.pepper.0);
        let tag = hmac::sign(&key, text.as_bytes());
        u16::from_be_bytes([tag.as_ref()[0], tag.as_ref()[1]]) >> (16 - TAG_BITS)
    }
}

impl ImportedKey {
    /// Whether the presented text is this key. It takes tens of milliseconds.
    pub(crate) fn proves(&self, presented: &str) -> bool {
        password::verify(presented.as_bytes(), &self.phc)
    }

    /// SHA-256 of the hash: it stands in the status of the object as `argon2id:<hex>` and binds the two together.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, self.phc.as_bytes()).as_ref());
        bytes
    }
}

/// Makes the id of an imported key from random bits.
pub(crate) fn id(random: &[u8; 10]) -> String {
    let text = api_key::base32(random);
    format!("{ID_PREFIX}{}", &text[ID_PREFIX.len()..])
}

impl fmt::Debug for ImportedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImportedKey({}, {})", self.id, self.key)
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper")
    }
}

impl TryFrom<String> for Pepper {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("the pepper is not 32 bytes in base64")
    }
}

impl From<Pepper> for String {
    fn from(pepper: Pepper) -> Self {
        STANDARD.encode(pepper.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "Zx9!kQ-4mB7(vT2;";

    fn with_one() -> ImportedKeys {
        let mut keys = ImportedKeys::new([5; 32]);
        keys.add(id(&[1; 10]), "ci", OLD, [6; 16]).expect("it is added");
        keys
    }

    #[test]
    fn an_imported_key_is_found_and_proved_and_others_are_not() {
        let keys = with_one();
        let found: Vec<_> = keys.candidates(OLD).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].key.as_str(), found[0].id.len(), &found[0].id[..3]), ("ci", 16, "imp"));
        assert!(found[0].proves(OLD));
        assert!(!found[0].proves("Zx9!kQ-4mB7(vT2:"));
        let others = (0..4096).filter(|i| keys.candidates(&format!("other-{i}")).next().is_some()).count();
        assert!(others < 10, "{others} of 4096 others have its tag");
    }

    #[test]
    fn the_file_reads_back_and_shows_no_secret() {
        let keys = with_one();
        let json = serde_json::to_vec(&keys).expect("it is written");
        let again = ImportedKeys::from_json(&json).expect("it is read");
        assert!(again.iter().eq(keys.iter()));
        assert_eq!(again.candidates(OLD).count(), 1);
        assert_eq!(
            again.iter().next().map(ImportedKey::fingerprint),
            keys.iter().next().map(ImportedKey::fingerprint)
        );
        assert!(!String::from_utf8_lossy(&json).contains(OLD));
        let shown = format!("{again:?}");
        assert!(!shown.contains("argon2") && !shown.contains("BQUF"), "{shown}");
    }

    #[test]
    fn adding_again_changes_nothing_and_another_owner_is_refused() {
        let mut keys = with_one();
        let first = keys.iter().next().expect("one").clone();
        assert_eq!(keys.add(id(&[2; 10]), "ci", OLD, [7; 16]), Ok(&first));
        let taken = AddImportedKey::Taken { key: "ci".into() };
        assert_eq!(keys.add(id(&[2; 10]), "other", OLD, [7; 16]), Err(taken));
        assert_eq!(keys.add(id(&[1; 10]), "ci", "another-Key-0815", [7; 16]), Err(AddImportedKey::Id));
        assert_eq!(keys.iter().count(), 1);
        assert!(keys.remove(&first.id));
        assert!(!keys.remove(&first.id));
        assert_eq!(keys.candidates(OLD).count(), 0);
    }

    #[test]
    fn a_key_that_another_server_has_is_found_here_by_the_tag_of_here() {
        let keys = with_one();
        let mut others = ImportedKeys::new([9; 32]);
        let key = keys.iter().next().expect("one");
        others.copy(key, OLD);
        others.copy(key, OLD);
        let found: Vec<_> = others.candidates(OLD).collect();
        assert_eq!(found.len(), 1);
        assert!(found[0].proves(OLD) && found[0].fingerprint() == key.fingerprint());
    }

    #[test]
    fn a_file_that_was_tampered_with_counts_for_nothing() {
        let json = serde_json::to_value(with_one()).expect("it is written");
        let refused = |change: fn(&mut serde_json::Value)| {
            let mut json = json.clone();
            change(&mut json);
            ImportedKeys::from_json(json.to_string().as_bytes()).expect_err("it is refused").to_string()
        };
        let twice = refused(|json| {
            let key = json["keys"][0].clone();
            json["keys"].as_array_mut().expect("a list").push(key);
        });
        assert!(twice.ends_with("is there twice"), "{twice}");
        assert!(refused(|json| json["keys"][0]["tag"] = 4096.into()).ends_with("out of range"));
        assert!(refused(|json| json["keys"][0]["phc"] = OLD.into()).contains("PHC"));
        assert!(!refused(|json| json["keys"][0]["phc"] = OLD.into()).contains(OLD));
        assert_eq!(refused(|json| json["pepper"] = "c2hvcnQ=".into()), "cannot read the imported keys");
    }
}
