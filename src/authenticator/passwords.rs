//! Passwords and imported keys: proved by Argon2id, which is costly, so only so much of it and only for those who have not
//! failed too often.
//!
//! What was proved is remembered for a minute by a keyed digest, so that a client who is right pays no hash for each
//! request and is not held up by the failures of others. The memory is of one hash: another password ends it.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::{digest, hmac};
use moka::sync::Cache;
use secrecy::{ExposeSecret, SecretString};

use super::places::Places;
use super::throttle::Throttle;
use crate::authn::imported::{ImportedKey, ImportedKeys};
use crate::authn::users::{User, Users};
use crate::authn::{BASIC, Identity, Method, Reason, password};

/// How long a proof is remembered, and how many are.
const REMEMBERED: Duration = Duration::from_secs(60);
const PROOFS: u64 = 4096;
/// Hashes at a time, and attempts that wait for one.
const AT_A_TIME: usize = 2;
const WAITING: usize = 32;
/// Most imported keys that one text is compared with. More than one of a tag is rare.
const CANDIDATES: usize = 8;

type Digest = [u8; 32];

/// Proves passwords and imported keys.
pub(super) struct Passwords {
    /// Of this process alone, so that what is remembered says nothing to anybody else.
    secret: hmac::Key,
    /// What proves it now, by the keyed digest of what was presented.
    proved: Cache<Digest, Digest>,
    by_address: Throttle<IpAddr>,
    by_user: Throttle<(Digest, IpAddr)>,
    places: Places,
}

/// An attempt that counts as a failure until it is given back.
struct Attempt {
    address: IpAddr,
    user: Option<Digest>,
}

impl Passwords {
    /// Nothing proved and nobody throttled.
    pub(super) fn new() -> Self {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).expect("the system has randomness");
        Self {
            secret: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            proved: Cache::builder().max_capacity(PROOFS).time_to_live(REMEMBERED).build(),
            by_address: Throttle::new(20, 10),
            by_user: Throttle::new(5, 5),
            places: Places::new(AT_A_TIME, WAITING),
        }
    }

    /// Proves a user name and a password.
    ///
    /// # Errors
    /// [`Reason::WrongPassword`], also for users that there are not, or [`Reason`] why it was not tried.
    pub(super) async fn login(
        &self,
        users: &Users,
        name: &str,
        password: &SecretString,
        client_ip: IpAddr,
    ) -> Result<Identity, Reason> {
        let known = users.get(name);
        let presented = self.keyed(&[b"user", name.as_bytes(), password.expose_secret().as_bytes()]);
        let remembered = self.proved.get(&presented);
        if let Some(user) = known.filter(|user| remembered == Some(sha256(user.phc.as_bytes()))) {
            return Ok(identify(user));
        }
        let attempt = self.attempt(Some(name), client_ip)?;
        let phc = known.map_or(password::NOBODY, |user| user.phc.as_str()).to_owned();
        let password = password.clone();
        let proof = self.hash(move || password::verify(password.expose_secret().as_bytes(), &phc)).await;
        let right = proof.inspect_err(|_| self.give_back(&attempt))?;
        let user = known.filter(|_| right).ok_or(Reason::WrongPassword)?;
        self.give_back(&attempt);
        self.proved.insert(presented, sha256(user.phc.as_bytes()));
        Ok(identify(user))
    }

    /// Proves a text as one of the imported keys of which there is a record.
    ///
    /// # Errors
    /// [`Reason::UnknownKey`], or [`Reason`] why it was not tried.
    pub(super) async fn imported(
        &self,
        keys: &ImportedKeys,
        text: &SecretString,
        client_ip: IpAddr,
        identify: impl Fn(&ImportedKey) -> Option<Identity>,
    ) -> Result<Identity, Reason> {
        let found = keys.candidates(text.expose_secret());
        let found = found.filter_map(|key| Some((key.clone(), identify(key)?)));
        let (candidates, mut identities): (Vec<_>, Vec<_>) = found.take(CANDIDATES).unzip();
        let presented = self.keyed(&[b"key", text.expose_secret().as_bytes()]);
        let remembered = self.proved.get(&presented);
        let proved = candidates.iter().position(|key| remembered == Some(key.fingerprint()));
        if let Some(index) = proved {
            return Ok(identities.swap_remove(index));
        }
        let attempt = self.attempt(None, client_ip)?;
        let (candidates, text) = (Arc::new(candidates), text.clone());
        let hashed = candidates.clone();
        let proof = self.hash(move || {
            if hashed.is_empty() {
                password::verify(text.expose_secret().as_bytes(), password::NOBODY);
            }
            hashed.iter().position(|key| key.proves(text.expose_secret()))
        });
        let right = proof.await.inspect_err(|_| self.give_back(&attempt))?;
        let index = right.ok_or(Reason::UnknownKey)?;
        self.give_back(&attempt);
        self.proved.insert(presented, candidates[index].fingerprint());
        Ok(identities.swap_remove(index))
    }

    /// Forgets who has not failed for a while.
    pub(super) fn forget(&self) {
        let now = Instant::now();
        self.by_address.forget(now);
        self.by_user.forget(now);
    }

    /// Runs a hash where it holds up nobody. The place is its own: it is taken even if nobody waits any more.
    async fn hash<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Reason> {
        let place = self.places.take().await?;
        let hashing = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        hashing.await.map_err(|_| Reason::Overloaded)
    }

    fn attempt(&self, user: Option<&str>, client_ip: IpAddr) -> Result<Attempt, Reason> {
        let (address, now) = (subscriber(client_ip), Instant::now());
        let user = user.map(|user| sha256(user.as_bytes()));
        if !self.by_address.take(address, now) {
            return Err(Reason::Throttled);
        }
        if user.is_some_and(|user| !self.by_user.take((user, address), now)) {
            self.by_address.give_back(&address);
            return Err(Reason::Throttled);
        }
        Ok(Attempt { address, user })
    }

    fn give_back(&self, attempt: &Attempt) {
        self.by_address.give_back(&attempt.address);
        if let Some(user) = attempt.user {
            self.by_user.give_back(&(user, attempt.address));
        }
    }

    fn keyed(&self, parts: &[&[u8]]) -> Digest {
        let mut context = hmac::Context::with_key(&self.secret);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }
}

/// The credential id of a password: another hash is another credential.
pub(super) fn credential_id(phc: &str) -> String {
    format!("basic:{}", super::hex_digest(phc.as_bytes(), 12))
}

fn identify(user: &User) -> Identity {
    Identity {
        issuer: Some(BASIC.to_owned()),
        groups: user.groups.clone(),
        ..Identity::new(Method::Basic, user.name.clone(), credential_id(&user.phc))
    }
}

/// Who has an address: of IPv6 a whole network of 64 bits belongs to one.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}
