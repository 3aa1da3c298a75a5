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

/// A certificate authority. Its key exists only in this value and is never written to a file.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Creates an authority. No host trusts it yet.
    ///
    /// # Errors
    /// Key generation fails.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// The authority's certificate.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Writes `ca.pem`, `cert.pem` and `key.pem` to `dir`, for a host with these names.
    ///
    /// # Errors
    /// A name is not valid in a certificate, or a file cannot be written.
    pub fn issue(&self, dir: &Path, names: &[String]) -> Result<()> {
        let first = names.first().context("expected at least one name for the certificate")?;
        let mut params = CertificateParams::new(names.to_vec())
            .with_context(|| format!("expected DNS names or IP addresses, found {names:?}"))?;
        params.distinguished_name.push(DnType::CommonName, first.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // The certificate serves both roles, because either side may listen.
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

/// Writes the credentials of all hosts: one directory below `dir` for each host.
///
/// # Errors
/// A name is not valid or is given twice, a host's directory exists already, or a file cannot be
/// written.
pub fn write_set(dir: &Path, hosts: &[Vec<String>]) -> Result<Vec<PathBuf>> {
    // Check all names and directories before writing the first: the authority's key is lost on an
    // error, so an incomplete set is useless.
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

/// Whether two hosts would collide: equal IP addresses in any spelling, or names that differ only
/// in case (some file systems and all certificates ignore case).
fn is_same(one: &str, other: &str) -> bool {
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other),
    }
}

/// Checks a host's name or address, which becomes the name of a directory and a name in a
/// certificate.
///
/// # Errors
/// The name is not valid.
pub fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    let is_address = name.parse::<IpAddr>().is_ok();
    let is_name = name.len() <= 253
        && !name.contains(':')
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
        })
        // Refuse invalid addresses, for instance 1.2.3: no name ends with a number (RFC 1123,
        // section 2.1).
        && !name.split('.').next_back().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    ensure!(
        name.chars().all(fits) && (is_address || is_name),
        "`{name}`: expected the name or the address of a host: letters, digits, `-` and `.`, or an IPv6 address"
    );
    Ok(())
}

/// Replaces a file atomically: a reader sees the old or the new contents.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    // Remove a temporary file of an interrupted run: it keeps its old permissions.
    let _ = fs::remove_file(&new);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
