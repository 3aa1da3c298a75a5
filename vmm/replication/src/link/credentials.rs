//! The credentials of one side of the link: its key, its certificate, and the authority that it
//! trusts.
//!
//! The files are read again for each connection, so replacing the files renews the certificates:
//! the current connection stays, and the next one uses the new certificate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kemari_support::given_file;
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

/// The authority that has signed both sides' certificates.
const AUTHORITY: &str = "ca.pem";
/// This side's certificate, and any certificates between it and the authority.
const CERTIFICATE: &str = "cert.pem";
/// This side's private key.
const KEY: &str = "key.pem";

/// A directory with `ca.pem`, `cert.pem` and `key.pem`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    dir: PathBuf,
    peer: Option<String>,
}

/// Why a directory of credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file is missing or not PEM.
    #[error(
        "--tls: expected {what} in {path}, found {found}; `cargo xtask certs` writes a set for trials"
    )]
    File {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// The files do not match.
    #[error(
        "--tls {dir}: expected a key, its certificate and an authority that belong together, found {found}"
    )]
    Mismatch {
        /// The directory.
        dir: PathBuf,
        /// The error from TLS.
        found: String,
    },
    /// A peer would not accept the certificate now.
    #[error(
        "--tls: expected a certificate in {path} that is valid now and for both ends of a connection, found: {found}; look at this host's clock and at `openssl x509 -noout -text -in {path}`, and renew it"
    )]
    Refused {
        /// The certificate.
        path: PathBuf,
        /// What is wrong with the certificate.
        found: String,
    },
    /// The peer's name is not valid.
    #[error("--tls-peer: expected a DNS name or an IP address, found `{0}`")]
    Name(String),
}

impl Credentials {
    /// Reads the credentials in `dir`. `peer` is the name that the other side's certificate must
    /// carry.
    ///
    /// # Errors
    /// When a file cannot be used. This is found now, not when the standby is needed.
    pub fn open(dir: &Path, peer: Option<&str>) -> Result<Self, CredentialsError> {
        let credentials = Self { dir: dir.to_owned(), peer: peer.map(str::to_owned) };
        credentials.client()?;
        credentials.server()?;
        credentials.peer_name()?;
        credentials.check_validity()?;
        Ok(credentials)
    }

    /// Checks that the certificate is valid now and for both ends of a connection, because a
    /// standby that has taken over is the other end. Does not check the authority that signed it:
    /// the peer decides which authority it trusts, which may not be the one that this side trusts.
    ///
    /// # Errors
    /// When the certificate is not valid.
    pub fn check_validity(&self) -> Result<(), CredentialsError> {
        let (chain, _) = self.identity()?;
        let Some((own, between)) = chain.split_first() else { return Ok(()) };
        let (roots, now) = (self.authority()?, UnixTime::now());
        let certificate = ParsedCertificate::try_from(own).map_err(|e| self.mismatch(&e))?;
        let algorithms = provider().signature_verification_algorithms.all;
        let as_server = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &roots,
            between,
            now,
            algorithms,
        );
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let clients = clients.build().map_err(|error| self.mismatch(&error))?;
        let as_client = clients.verify_client_cert(own, between, now).map(drop);
        as_server.and(as_client).or_else(|error| match error {
            rustls::Error::InvalidCertificate(reason) if is_of_its_own(&reason) => {
                let (path, found) = (self.dir.join(CERTIFICATE), reason.to_string());
                Err(CredentialsError::Refused { path, found })
            }
            _ => Ok(()),
        })
    }

    /// The files in `dir`.
    #[must_use]
    pub fn files(dir: &Path) -> [PathBuf; 3] {
        [AUTHORITY, CERTIFICATE, KEY].map(|file| dir.join(file))
    }

    /// The name that the other side's certificate must carry, if one was given.
    ///
    /// # Errors
    /// When the name is not valid.
    pub(super) fn peer_name(&self) -> Result<Option<ServerName<'static>>, CredentialsError> {
        self.peer.as_deref().map(server_name).transpose()
    }

    /// The configuration for the side that connects.
    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, CredentialsError> {
        let (chain, key) = self.identity()?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| self.mismatch(&error))?
            .with_root_certificates(self.authority()?)
            .with_client_auth_cert(chain, key)
            .map_err(|error| self.mismatch(&error))?;
        // Each session authenticates again: the secrets of an old session open no new one.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// The configuration for the side that listens. A peer must show a certificate of the
    /// authority.
    pub(super) fn server(&self) -> Result<Arc<ServerConfig>, CredentialsError> {
        let (chain, key) = self.identity()?;
        let authority = Arc::new(self.authority()?);
        let clients = WebPkiClientVerifier::builder_with_provider(authority, provider())
            .build()
            .map_err(|error| self.mismatch(&error))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| self.mismatch(&error))?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(|error| self.mismatch(&error))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn identity(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CredentialsError> {
        let chain = self.certificates(CERTIFICATE, "this host's certificate")?;
        let path = self.dir.join(KEY);
        let read = given_file::read(&path).map_err(pem::Error::Io);
        let key = read
            .and_then(|text| PrivateKeyDer::from_pem_slice(&text))
            .map_err(|error| unusable("this host's private key", path, &error))?;
        Ok((chain, key))
    }

    fn authority(&self) -> Result<RootCertStore, CredentialsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(AUTHORITY, "the authority's certificate")? {
            roots.add(certificate).map_err(|error| self.mismatch(&error))?;
        }
        Ok(roots)
    }

    fn certificates(
        &self,
        file: &str,
        what: &'static str,
    ) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
        let path = self.dir.join(file);
        let read = given_file::read(&path)
            .map_err(pem::Error::Io)
            .and_then(|text| CertificateDer::pem_slice_iter(&text).collect());
        let certificates: Vec<_> = read.map_err(|error| unusable(what, path.clone(), &error))?;
        if certificates.is_empty() {
            return Err(unusable(what, path, &pem::Error::NoItemsFound));
        }
        Ok(certificates)
    }

    fn mismatch(&self, found: &dyn fmt::Display) -> CredentialsError {
        CredentialsError::Mismatch { dir: self.dir.clone(), found: found.to_string() }
    }
}

/// Whether the certificate itself is wrong, regardless of its authority.
fn is_of_its_own(reason: &CertificateError) -> bool {
    use CertificateError::{
        Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext, NotValidYet,
        NotValidYetContext,
    };
    matches!(
        reason,
        Expired
            | ExpiredContext { .. }
            | NotValidYet
            | NotValidYetContext { .. }
            | InvalidPurpose
            | InvalidPurposeContext { .. }
    )
}

/// Parses a name that a certificate can carry.
pub(super) fn server_name(text: &str) -> Result<ServerName<'static>, CredentialsError> {
    // Brackets enclose an IPv6 address that is followed by a port.
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    ServerName::try_from(bare.to_owned()).map_err(|_| CredentialsError::Name(text.to_owned()))
}

fn unusable(what: &'static str, path: PathBuf, error: &pem::Error) -> CredentialsError {
    let found = match error {
        pem::Error::NoItemsFound => "no such PEM section".to_owned(),
        pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => "no file".to_owned(),
        pem::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    CredentialsError::File { what, path, found }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
