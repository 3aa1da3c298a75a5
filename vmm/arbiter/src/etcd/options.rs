//! How to reach etcd: addresses, TLS, a user, and the lease.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ft_core::arbiter::ClientOptions;
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
    /// How long a lease is; see [`ft_core::arbiter::Lease`].
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

    /// How long one question may take. With several members, one that does not answer must leave
    /// time to ask another before the lease ends.
    pub(super) fn patience(&self) -> Duration {
        let share = u32::try_from(self.endpoints.len() + 1).unwrap_or(u32::MAX).min(4);
        self.lease / share
    }

    /// The times of whoever holds or watches a lease.
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
