//! Credentials proved with what is outside: an issuer on this machine, files, passwords.

mod fixture;
mod keys;
mod methods;
mod passwords;
