//! The text of an API key: `pcl_<id>_<secret><checksum>`.
//!
//! ```text
//! pcl_ 0123456789abcdef _ 43 characters, 256 bits _ 6 characters
//!      id (80 bits,       secret, base62            CRC-32, base62
//!      16 of base32)
//! ```
//!
//! The id finds the record in one lookup, the secret proves it, and the checksum lets scanners of leaked secrets tell
//! a key from other text without asking anybody. The secret is random, so its SHA-256 needs no salt and no stretching.

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

const PREFIX: &str = "pcl_";
const ID_LENGTH: usize = 16;
const SECRET_LENGTH: usize = 43;
const CHECKSUM_LENGTH: usize = 6;
/// Characters of a whole key.
pub(crate) const LENGTH: usize = PREFIX.len() + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH;

const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key of ours, well formed. Its `Debug` shows the id only.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ApiKey(String);

/// Why a text is not a key of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseKey {
    /// It does not begin with `pcl_`: somebody else's credential.
    #[error("does not begin with \"pcl_\"")]
    Foreign,
    /// Its length, alphabet or checksum is wrong.
    #[error("is damaged: length, alphabet or checksum do not fit")]
    Damaged,
}

impl ApiKey {
    /// Makes a key from 80 random bits of id and 256 random bits of secret.
    pub(crate) fn generate(id: [u8; 10], secret: [u8; 32]) -> Self {
        let mut text = String::with_capacity(LENGTH);
        text.push_str(PREFIX);
        text.push_str(&base32(&id));
        text.push('_');
        text.push_str(&base62(&secret, SECRET_LENGTH));
        let sum = crc32(text.as_bytes());
        text.push_str(&base62(&sum.to_be_bytes(), CHECKSUM_LENGTH));
        Self(text)
    }

    /// Reads a presented key.
    ///
    /// # Errors
    /// [`ParseKey::Foreign`] for another method's credential, [`ParseKey::Damaged`] for a broken one of ours.
    pub(crate) fn parse(text: &str) -> Result<Self, ParseKey> {
        let rest = text.strip_prefix(PREFIX).ok_or(ParseKey::Foreign)?;
        let plain = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if text.len() != LENGTH || !plain || rest.as_bytes()[ID_LENGTH] != b'_' {
            return Err(ParseKey::Damaged);
        }
        if !rest.as_bytes()[..ID_LENGTH].iter().all(|byte| BASE32.contains(byte)) {
            return Err(ParseKey::Damaged);
        }
        let (body, checksum) = text.split_at(LENGTH - CHECKSUM_LENGTH);
        if base62(&crc32(body.as_bytes()).to_be_bytes(), CHECKSUM_LENGTH) != checksum {
            return Err(ParseKey::Damaged);
        }
        Ok(Self(text.to_owned()))
    }

    /// The public part by which the record is found.
    pub(crate) fn id(&self) -> &str {
        &self.0[PREFIX.len()..PREFIX.len() + ID_LENGTH]
    }

    /// SHA-256 of the whole key.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, self.0.as_bytes()).as_ref());
        bytes
    }

    /// The plaintext, for the one Secret that holds it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", self.id())
    }
}

/// Writes a digest as it stands in a key's status.
pub(crate) fn format_digest(digest: &[u8; 32]) -> String {
    format!("sha256:{}", HEXLOWER.encode(digest))
}

/// Reads a digest as it stands in a key's status.
pub(crate) fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:")?;
    HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?.try_into().ok()
}

/// Crockford's base 32 of 80 bits.
pub(super) fn base32(bytes: &[u8; 10]) -> String {
    let mut padded = [0; 16];
    padded[6..].copy_from_slice(bytes);
    let number = u128::from_be_bytes(padded);
    let digit = |i: usize| BASE32[(number >> (75 - 5 * i)) as usize & 31] as char;
    (0..ID_LENGTH).map(digit).collect()
}

/// Base 62 of a big-endian number, padded to a length.
fn base62(bytes: &[u8], length: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; length];
    for place in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let value = remainder << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            remainder = value % 62;
        }
        *place = BASE62[remainder as usize];
    }
    digits.into_iter().map(char::from).collect()
}

/// CRC-32 (ISO-HDLC), as in gzip: the check that secret scanners expect.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_generated_key_reads_back_and_shows_only_its_id() {
        let key = ApiKey::generate([1; 10], [2; 32]);
        assert_eq!(key.expose().len(), LENGTH);
        assert_eq!(ApiKey::parse(key.expose()), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), format!("ApiKey({})", key.id()));
    }

    #[test]
    fn the_checksum_is_the_one_of_gzip() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_digest_reads_back() {
        let digest = ApiKey::generate([1; 10], [2; 32]).digest();
        assert_eq!(parse_digest(&format_digest(&digest)), Some(digest));
        assert_eq!(parse_digest("sha256:00"), None);
        assert_eq!(parse_digest("md5:00"), None);
    }

    proptest! {
        #[test]
        fn any_change_of_one_character_is_noticed(id: [u8; 10], secret: [u8; 32], at in 0..LENGTH, with in "[0-9A-Za-z_]") {
            let key = ApiKey::generate(id, secret);
            let mut text = key.expose().to_owned();
            text.replace_range(at..=at, &with);
            prop_assert!(text == key.expose() || ApiKey::parse(&text).is_err());
        }

        #[test]
        fn parsing_never_panics(text in "(pcl_)?\\PC{0,80}") {
            let _ = ApiKey::parse(&text);
        }
    }
}
