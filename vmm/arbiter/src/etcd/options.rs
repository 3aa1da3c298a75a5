//! How to reach etcd: addresses, TLS, user and lease.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ft_core::arbiter::ClientOptions;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// The options of the command line for etcd.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Client addresses of the members, `HOST:PORT`.
    pub endpoints: Vec<String>,
    /// The certificate authority of the members (PEM); `None`: no TLS.
    pub ca: Option<PathBuf>,
    /// This side's certificate and private key (PEM), where etcd requires one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// This side's user name and password, where etcd has users.
    pub user: Option<(String, String)>,
    /// The length of a lease; see [`ft_core::arbiter::Lease`].
    pub lease: Duration,
}

impl EtcdOptions {
    /// The TLS configuration; `None`: no TLS.
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

    /// Time limit for one question. With several members, a silent member must leave time to ask
    /// another one before the lease ends.
    pub(super) fn patience(&self) -> Duration {
        let share = u32::try_from(self.endpoints.len() + 1).unwrap_or(u32::MAX).min(4);
        self.lease / share
    }

    /// The client's times, as fractions of the lease.
    pub(super) fn client(&self, vm: &str, holder: String) -> ClientOptions {
        ClientOptions {
            vm: vm.to_owned(),
            holder,
            lease: self.lease,
            interval: self.lease / 4,
            retry: self.lease / 8,
        }
    }
}

fn read(path: &Path, flag: &str) -> Result<Vec<u8>, String> {
    kemari_support::given_file::read(path).map_err(|error| {
        format!("{flag}: expected a readable PEM file at {}, found: {error}", path.display())
    })
}
