//! Passwords and imported keys at rest: Argon2id in the PHC string format, with a salt of their own each.
//!
//! What is made here costs 19 MiB and two passes. Hashes that were made elsewhere are taken when they cost at least as
//! much to guess and not so much that proving them would starve the pod.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};

/// KiB of memory, passes and lanes of what is made here: the first recommendation of OWASP.
const MEMORY: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// The least memory, and the least of memory times passes, that OWASP lists as worth as much.
const MIN_MEMORY: u32 = 7 * 1024;
const MIN_WORK: u64 = 35 * 1024;
/// The most that proving may cost.
const MAX_MEMORY: u32 = 64 * 1024;
const MAX_PASSES: u32 = 10;
const MAX_LANES: u32 = 4;

/// The hash of nobody's password, made of 32 random bytes that were thrown away: proving against it takes as long as
/// against a real one, so that unknown users cannot be told from known ones.
pub(crate) const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$R6iVZWEaMjBG+eyTuSk1eQ$YGgvAmT2j0O0Fb1Y54rLRVTeaukAmQlLahfhn3zkGfY";

/// The password cannot be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password cannot be hashed")]
pub(crate) struct HashPassword;

/// Why a hash is not accepted. It never repeats the text, which may be a password by mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidHash {
    /// It cannot be read.
    #[error("not a hash in the PHC format ($argon2id$...)")]
    Form,
    /// It is of another function.
    #[error("not Argon2id version 19")]
    Algorithm,
    /// It is guessed too cheaply.
    #[error("too cheap to guess: at least m=19456,t=2 or its like")]
    Weak,
    /// Proving would take too much memory or time.
    #[error("too costly to prove: at most m=65536,t=10,p=4")]
    Costly,
}

/// Hashes a password with a salt that nobody else has.
///
/// # Errors
/// [`HashPassword`] when it is larger than four gigabytes.
pub(crate) fn hash(password: &[u8], salt: [u8; 16]) -> Result<String, HashPassword> {
    let params = Params::new(MEMORY, PASSES, LANES, None).map_err(|_| HashPassword)?;
    let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash: PasswordHash = hasher.hash_password_with_salt(password, &salt).map_err(|_| HashPassword)?;
    Ok(hash.to_string())
}

/// Whether this is the password. It takes tens of milliseconds and up to 64 MiB: not for a thread that serves others.
pub(crate) fn verify(password: &[u8], phc: &str) -> bool {
    acceptable(phc).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

/// Checks a hash without a password.
///
/// # Errors
/// [`InvalidHash`] says why it proves nothing.
pub(crate) fn check(phc: &str) -> Result<(), InvalidHash> {
    acceptable(phc).map(|_| ())
}

fn acceptable(phc: &str) -> Result<PasswordHash, InvalidHash> {
    let hash = PasswordHash::new(phc).map_err(|_| InvalidHash::Form)?;
    if hash.algorithm.as_str() != "argon2id" || hash.version != Some(Version::V0x13.into()) {
        return Err(InvalidHash::Algorithm);
    }
    let params = Params::try_from(&hash).map_err(|_| InvalidHash::Form)?;
    let (memory, passes) = (params.m_cost(), params.t_cost());
    if memory > MAX_MEMORY || passes > MAX_PASSES || params.p_cost() > MAX_LANES {
        return Err(InvalidHash::Costly);
    }
    let long =
        hash.salt.is_some_and(|salt| salt.len() >= 8) && hash.hash.is_some_and(|hash| hash.len() >= 16);
    if !long || memory < MIN_MEMORY || u64::from(memory) * u64::from(passes) < MIN_WORK {
        return Err(InvalidHash::Weak);
    }
    Ok(hash)
}

/// A hash as others make it.
#[cfg(test)]
pub(crate) fn hash_with(
    password: &[u8],
    algorithm: Algorithm,
    memory: u32,
    passes: u32,
    lanes: u32,
) -> String {
    use argon2::CustomizedPasswordHasher;

    let params = Params::new(memory, passes, lanes, None).expect("parameters");
    Argon2::default()
        .hash_password_customized(password, &[7; 16], Some(algorithm.as_str()), Some(19), params)
        .expect("it is hashed")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_proves_itself_and_no_other() {
        let phc = hash(b"correct horse", [1; 16]).expect("it is hashed");
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(verify(b"correct horse", &phc));
        assert!(!verify(b"correct horsf", &phc));
        assert!(!verify(b"", &phc));
        assert_ne!(phc, hash(b"correct horse", [2; 16]).expect("it is hashed"), "the salt counts");
    }

    #[test]
    fn nobody_costs_as_much_as_somebody() {
        assert_eq!(check(NOBODY), Ok(()));
        assert!(NOBODY.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(!verify(b"", NOBODY));
    }

    #[test]
    fn the_hash_that_the_reference_implementation_publishes_proves_its_password() {
        // From src/test.c of P-H-C/phc-winner-argon2.
        let phc = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert!(verify(b"password", phc));
        assert!(!verify(b"Password", phc));
    }

    #[test]
    fn weak_and_starving_hashes_are_refused_before_any_work() {
        let of = |algorithm, memory, passes, lanes| check(&hash_with(b"x", algorithm, memory, passes, lanes));
        assert_eq!(of(Algorithm::Argon2i, 19_456, 2, 1), Err(InvalidHash::Algorithm));
        assert_eq!(of(Algorithm::Argon2id, 19_456, 1, 1), Err(InvalidHash::Weak));
        assert_eq!(of(Algorithm::Argon2id, 4096, 10, 1), Err(InvalidHash::Weak));
        assert_eq!(of(Algorithm::Argon2id, 8192, 11, 1), Err(InvalidHash::Costly));
        let greedy = NOBODY.replace("m=19456", "m=4194304");
        assert_eq!(check(&greedy), Err(InvalidHash::Costly));
        assert!(!verify(b"x", &greedy));
    }

    #[test]
    fn text_that_is_no_hash_is_refused_without_being_repeated() {
        let bcrypt = "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW";
        for text in ["", "hunter2", "$argon2id$", "$argon2id$v=19$m=19456,t=2,p=1", bcrypt] {
            let error = check(text).expect_err("it is refused");
            assert!(text.starts_with("$argon2id") || text.is_empty() || !error.to_string().contains(text));
            assert!(!verify(b"hunter2", text));
        }
        let (_, cut) = NOBODY.rsplit_once('$').expect("it has parts");
        assert!(check(&NOBODY.replace(cut, &cut[..16])).is_err(), "a short hash is met by chance");
    }
}
