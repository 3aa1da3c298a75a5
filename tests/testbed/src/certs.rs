//! Certificates for tests: an authority, and a directory of credentials for each host.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// An authority that lives as long as this value: its key is never written to a file.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new authority, which no other host trusts yet.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Writes `ca.pem`, `cert.pem` and `key.pem` for a host that is known by each of `names`.
    ///
    /// # Errors
    /// When a name cannot be in a certificate, or a file cannot be written.
    pub fn issue(&self, dir: &Path, names: &[String]) -> Result<()> {
        let first = names.first().context("expected at least one name for the certificate")?;
        let mut params = CertificateParams::new(names.to_vec())
            .with_context(|| format!("expected DNS names or IP addresses, found {names:?}"))?;
        params.distinguished_name.push(DnType::CommonName, first.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Either side may be the one that listens.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| format!("cannot make the directory {}", dir.display()))?;
        write(&dir.join("ca.pem"), &self.pem(), 0o644)?;
        write(&dir.join("cert.pem"), &certificate.pem(), 0o644)?;
        write(&dir.join("key.pem"), &key.serialize_pem(), 0o600)
    }
}

/// Writes a whole set below `dir`: one directory for each host.
///
/// # Errors
/// When there is one already, or it cannot be written.
pub fn write_set(dir: &Path, hosts: &[Vec<String>]) -> Result<Vec<PathBuf>> {
    // All are checked before the first is written: half a set is useless, because its authority's key is gone.
    let mut free: Vec<PathBuf> = Vec::new();
    for names in hosts {
        names.iter().try_for_each(|name| check_name(name))?;
        let name = names.first().context("expected a name for each host")?;
        let host = dir.join(name);
        let is_it = |other: &Vec<String>| other.first().is_some_and(|other| is_same(name, other));
        ensure!(
            !hosts[..free.len()].iter().any(is_it),
            "`{name}`: expected each host once, found it twice"
        );
        ensure!(
            host.symlink_metadata().is_err(),
            "{}: expected no such directory, found one: remove it, or choose another",
            host.display()
        );
        free.push(host);
    }
    let authority = Authority::new("kemari trial authority")?;
    for (host, names) in free.iter().zip(hosts) {
        authority.issue(host, names)?;
    }
    Ok(free)
}

/// Whether two names are the same in certificates and on file systems that do not distinguish `A` from `a`, or two spellings
/// are the same address.
fn is_same(one: &str, other: &str) -> bool {
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other),
    }
}

/// Checks a host's name or address: it becomes a directory, and a name in a certificate.
///
/// # Errors
/// It is not valid.
pub fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    let is_address = name.parse::<IpAddr>().is_ok();
    let is_name = name.len() <= 253
        && !name.contains(':')
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
        })
        // An invalid address such as 1.2.3: no name ends with a number (RFC 1123, 2.1).
        && !name.split('.').next_back().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    ensure!(
        name.chars().all(fits) && (is_address || is_name),
        "`{name}`: expected the name or the address of a host: letters, digits, `-` and `.`, or an IPv6 address"
    );
    Ok(())
}

/// Replaces a file atomically, so that a reader sees the old or the new contents.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    // A temporary file that was left behind has permissions of its own.
    let _ = fs::remove_file(&new);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
