//! How to reach etcd: addresses, TLS, a user, and the lease.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::ConnectOptions;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// What the command line says about etcd, besides the addresses.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Client addresses of the members, `HOST:PORT`.
    pub endpoints: Vec<String>,
    /// The certificate authority that vouches for the members (PEM); none: no TLS.
    pub ca: Option<PathBuf>,
    /// This side's certificate and its private key (PEM), where etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Who this side is, where etcd asks for a user: name and password.
    pub user: Option<(String, String)>,
    /// How long a lease is; see the module `lease`.
    pub lease: Duration,
}

impl EtcdOptions {
    /// TLS, if there is to be any.
    pub(super) fn tls(&self) -> Result<Option<ClientTlsConfig>, String> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca, "--arbiter-ca")?));
        if let Some((certificate, key)) = &self.identity {
            let certificate = read(certificate, "--arbiter-cert")?;
            tls = tls.identity(Identity::from_pem(certificate, read(key, "--arbiter-key")?));
        }
        Ok(Some(tls))
    }

    pub(super) fn connect_options(&self) -> Option<ConnectOptions> {
        let (name, password) = self.user.as_ref()?;
        Some(ConnectOptions::new().with_user(name, password))
    }

    /// How long one question may take. With several members, one that does not answer must leave
    /// time to ask another before the lease ends.
    pub(super) fn patience(&self) -> Duration {
        let share = u32::try_from(self.endpoints.len() + 1).unwrap_or(u32::MAX).min(4);
        self.lease / share
    }

    /// How often the holder renews, and how often others look.
    pub(super) fn interval(&self) -> Duration {
        self.lease / 4
    }

    /// How soon to try again what has failed.
    pub(super) fn retry(&self) -> Duration {
        self.lease / 8
    }
}

fn read(path: &Path, flag: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| {
        format!("{flag}: expected a readable PEM file at {}, found: {error}", path.display())
    })
}
