//! Which generation an imported text is, and which entries the servers must hold for it. Pure; it hashes, so it runs
//! where waiting harms nobody.
//!
//! A text has one entry in each server's file. Entries stay as long as the status knows their generation: that is how
//! a text which was revoked is known again.

use data_encoding::HEXLOWER;

use crate::api::{KeyGeneration, KeyState};
use crate::authn::imported::{self, AddImportedKey, ImportedKey, ImportedKeys};

use crate::controller::mcp_api_key::generations::is_living;

/// Random bits for a generation that may have to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fresh {
    /// Of its id.
    pub(super) id: [u8; 10],
    /// Of its hash.
    pub(super) salt: [u8; 16],
}

/// What a text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// This generation, which lives.
    Known(String),
    /// This generation, which was revoked or has ended by its age.
    Over(String),
    /// None that lives: it is to be taken in under this id and digest.
    New {
        /// Its id.
        id: String,
        /// Its digest as it stands in a status.
        digest: String,
    },
}

/// How a digest of an imported key stands in a status.
pub(super) fn format_digest(fingerprint: &[u8; 32]) -> String {
    format!("argon2id:{}", HEXLOWER.encode(fingerprint))
}

/// Finds out what a text is to the key `name`, and brings the files of its servers in line: each has one entry for the
/// text, and none for generations that the status does not know any more.
///
/// # Errors
/// [`AddImportedKey`] when another object has the same text, or it cannot be hashed.
pub(super) fn resolve(
    files: &mut [ImportedKeys],
    name: &str,
    text: &str,
    keys: &[KeyGeneration],
    is_over: impl Fn(&KeyGeneration) -> bool,
    fresh: Fresh,
) -> Result<Resolved, AddImportedKey> {
    let proved = entries_of(files, text)?.into_iter();
    let (own, others): (Vec<_>, Vec<_>) = proved.partition(|entry| entry.key == name);
    if let Some(other) = others.into_iter().next() {
        return Err(AddImportedKey::Taken { key: other.key });
    }
    let generation = |entry: &ImportedKey| {
        let digest = format_digest(&entry.fingerprint());
        keys.iter().find(|generation| generation.id == entry.id && generation.digest == digest)
    };
    if let Some(over) = own.iter().filter_map(generation).find(|generation| is_over(generation)) {
        let id = over.id.clone();
        prune(files, name, keys, None);
        return Ok(Resolved::Over(id));
    }
    let is_current = |entry: &&ImportedKey| {
        generation(entry).is_some_and(|g| matches!(g.state, KeyState::Active | KeyState::Pending))
    };
    // One that no status knows was written just before a crash, or by another operator a moment ago.
    let is_unknown = |entry: &&ImportedKey| !keys.iter().any(|generation| generation.id == entry.id);
    let found = own.iter().find(is_current).or_else(|| own.iter().filter(is_unknown).min_by_key(|e| &e.id));
    let entry = match found {
        Some(entry) => entry.clone(),
        None => {
            for file in files.iter_mut() {
                for entry in &own {
                    file.remove(&entry.id);
                }
            }
            let Some(first) = files.first_mut() else { return Err(AddImportedKey::Id) };
            first.add(imported::id(&fresh.id), name, text, fresh.salt)?.clone()
        }
    };
    for file in files.iter_mut() {
        for other in own.iter().filter(|other| other.id != entry.id) {
            file.remove(&other.id);
        }
        if !file.iter().any(|held| held.id == entry.id && held.fingerprint() == entry.fingerprint()) {
            file.copy(&entry, text);
        }
    }
    prune(files, name, keys, Some(&entry.id));
    match generation(&entry).filter(|generation| is_living(generation)) {
        Some(generation) => Ok(Resolved::Known(generation.id.clone())),
        None => Ok(Resolved::New { digest: format_digest(&entry.fingerprint()), id: entry.id }),
    }
}

/// Entries that prove the text, each once, however many servers hold it.
fn entries_of(files: &[ImportedKeys], text: &str) -> Result<Vec<ImportedKey>, AddImportedKey> {
    let mut found: Vec<ImportedKey> = Vec::new();
    for entry in files.iter().flat_map(|file| file.candidates(text)) {
        let is_known =
            |other: &ImportedKey| other.id == entry.id && other.fingerprint() == entry.fingerprint();
        if !found.iter().any(is_known) && entry.proves(text) {
            found.push(entry.clone());
        }
    }
    Ok(found)
}

/// Removes the entries of a key whose generations its status does not know any more.
pub(super) fn prune(files: &mut [ImportedKeys], name: &str, keys: &[KeyGeneration], but: Option<&str>) {
    for file in files {
        let is_stale = |entry: &&ImportedKey| {
            entry.key == name
                && Some(entry.id.as_str()) != but
                && !keys.iter().any(|generation| generation.id == entry.id)
        };
        let stale: Vec<String> = file.iter().filter(is_stale).map(|entry| entry.id.clone()).collect();
        for id in &stale {
            file.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    const TEXT: &str = "Zx9!kQ-4mB7(vT2;";
    const OTHER: &str = "wP5_Lr8}hN3@cY6,";

    fn files() -> Vec<ImportedKeys> {
        vec![ImportedKeys::new([1; 32]), ImportedKeys::new([2; 32])]
    }

    fn fresh(seed: u8) -> Fresh {
        Fresh { id: [seed; 10], salt: [seed; 16] }
    }

    fn is_over(generation: &KeyGeneration) -> bool {
        generation.state == KeyState::Revoked
    }

    fn take(files: &mut [ImportedKeys], text: &str, keys: &[KeyGeneration], seed: u8) -> Resolved {
        resolve(files, "ci", text, keys, is_over, fresh(seed)).expect("it is resolved")
    }

    fn generation(resolved: &Resolved, state: KeyState) -> KeyGeneration {
        let Resolved::New { id, digest } = resolved else { panic!("{resolved:?}") };
        KeyGeneration {
            id: id.clone(),
            digest: digest.clone(),
            created_at: Time(Timestamp::UNIX_EPOCH),
            not_after: None,
            state,
        }
    }

    fn ids(files: &[ImportedKeys]) -> Vec<Vec<String>> {
        files.iter().map(|file| file.iter().map(|entry| entry.id.clone()).collect()).collect()
    }

    #[test]
    fn a_text_is_taken_in_once_with_one_hash_for_every_server() {
        let mut files = files();
        let first = take(&mut files, TEXT, &[], 1);
        let known = generation(&first, KeyState::Pending);
        assert_eq!(ids(&files), [[known.id.clone()], [known.id.clone()]]);
        assert!(files.iter().all(|file| file.candidates(TEXT).any(|entry| entry.proves(TEXT))));
        assert_eq!(take(&mut files, TEXT, &[], 2), first, "a crash before the status is written resumes");
        assert_eq!(take(&mut files, TEXT, std::slice::from_ref(&known), 3), Resolved::Known(known.id));
    }

    #[test]
    fn a_server_that_is_new_gets_the_same_entry() {
        let mut files = files();
        let known = generation(&take(&mut files, TEXT, &[], 1), KeyState::Active);
        files.push(ImportedKeys::new([3; 32]));
        assert_eq!(
            take(&mut files, TEXT, std::slice::from_ref(&known), 2),
            Resolved::Known(known.id.clone())
        );
        assert_eq!(files[2].candidates(TEXT).map(|entry| &entry.id).collect::<Vec<_>>(), [&known.id]);
    }

    #[test]
    fn another_text_is_another_generation_and_the_old_entry_stays_while_it_is_known() {
        let mut files = files();
        let old = generation(&take(&mut files, TEXT, &[], 1), KeyState::Active);
        let new = generation(&take(&mut files, OTHER, std::slice::from_ref(&old), 2), KeyState::Active);
        assert_eq!(ids(&files)[0], [old.id.clone(), new.id.clone()]);
        take(&mut files, OTHER, std::slice::from_ref(&new), 3);
        assert_eq!(ids(&files), [[new.id.clone()], [new.id]], "the status has forgotten the old one");
    }

    #[test]
    fn a_text_that_was_revoked_is_known_again() {
        let mut files = files();
        let revoked = generation(&take(&mut files, TEXT, &[], 1), KeyState::Revoked);
        let keys = [revoked.clone()];
        assert_eq!(take(&mut files, TEXT, &keys, 2), Resolved::Over(revoked.id.clone()));
        assert!(matches!(take(&mut files, OTHER, &keys, 3), Resolved::New { .. }));
        assert_eq!(take(&mut files, TEXT, &keys, 4), Resolved::Over(revoked.id));
    }

    #[test]
    fn a_text_that_is_taken_up_again_has_one_entry() {
        let mut files = files();
        for state in [KeyState::Expired, KeyState::Retiring] {
            let old = generation(&take(&mut files, TEXT, &[], 1), state);
            let again = take(&mut files, TEXT, std::slice::from_ref(&old), 2);
            assert!(matches!(&again, Resolved::New { id, .. } if *id != old.id), "{state:?}");
            assert!(files.iter().all(|file| file.candidates(TEXT).count() == 1));
            take(&mut files, OTHER, &[], 9);
            files.iter_mut().for_each(|file| *file = ImportedKeys::new([7; 32]));
        }
    }

    #[test]
    fn a_text_of_another_object_is_refused() {
        let mut files = files();
        take(&mut files, TEXT, &[], 1);
        let taken = resolve(&mut files, "other", TEXT, &[], is_over, fresh(2));
        assert_eq!(taken, Err(AddImportedKey::Taken { key: "ci".into() }));
    }
}
