//! A certificate for a laptop: `serve --from` makes its own CA and leaf once, and uses them again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use super::tls::{self, Hot};
use crate::index::files::write_private;

/// How long the leaf is good for. Some clients accept no longer one.
const LIFE: Duration = Duration::days(397);
const MARGIN: Duration = Duration::days(30);

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeCertificate {
    /// It could not be generated.
    #[error("generate certificate")]
    Generate(#[from] rcgen::Error),
    /// It could not be written.
    #[error("write {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes `ca.crt`, `tls.crt` and `tls.key` in the directory, unless what is there can be used for a while longer.
///
/// # Errors
/// [`MakeCertificate`] says what could not be done.
pub(crate) fn ensure(directory: &Path, hosts: &[String]) -> Result<(), MakeCertificate> {
    if is_good(directory) {
        return Ok(());
    }
    let now = OffsetDateTime::now_utc();
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "portcullis local CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (authority.not_before, authority.not_after) = (now - Duration::HOUR, now + LIFE);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend_from_slice(hosts);
    let mut leaf = CertificateParams::new(names)?;
    leaf.distinguished_name.push(DnType::CommonName, "portcullis");
    leaf.use_authority_key_identifier_extension = true;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (leaf.not_before, leaf.not_after) = (now - Duration::HOUR, now + LIFE);
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &authority)?;
    // The CA's key is not kept: it has signed all that it ever will.
    for (name, content) in
        [("ca.crt", authority.pem()), ("tls.key", key.serialize_pem()), ("tls.crt", leaf.pem())]
    {
        let path = directory.join(name);
        write_private(&path, content.as_bytes()).map_err(|source| MakeCertificate::Write { path, source })?;
    }
    Ok(())
}

/// Whether the files fit together and the leaf does not end soon.
fn is_good(directory: &Path) -> bool {
    let fits = Hot::open(directory, false, tls::leaf).is_ok() && directory.join("ca.crt").is_file();
    let Some(pem) = fs::read(directory.join("tls.crt")).ok().filter(|_| fits) else { return false };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else { return false };
    let end = pem.parse_x509().map(|leaf| leaf.validity().not_after.to_datetime());
    end.is_ok_and(|end| end > OffsetDateTime::now_utc() + MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_again_when_it_is_damaged() {
        let directory = tempfile::tempdir().expect("a directory");
        let leaf = || fs::read(directory.path().join("tls.crt")).expect("there");
        ensure(directory.path(), &["mcp.test".to_owned()]).expect("made");
        let first = leaf();
        ensure(directory.path(), &[]).expect("kept");
        assert_eq!(first, leaf());
        fs::write(directory.path().join("tls.key"), "damaged").expect("written");
        ensure(directory.path(), &[]).expect("made again");
        assert_ne!(first, leaf());
    }
}
