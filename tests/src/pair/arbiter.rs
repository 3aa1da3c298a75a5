//! The arbiter of a run: a directory or a real etcd, which can go away and come back.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::config::{ArbiterKind, PairConfig};
use crate::bed::{Bed, Host};
use crate::etcd::Etcd;

/// The lease at etcd, on an ordinary machine.
const LEASE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) enum Arbiter {
    File(PathBuf),
    Etcd { server: Box<Etcd>, lease: Duration },
}

impl Arbiter {
    /// Makes or starts it, with its files in `dir`.
    pub(super) fn start(config: &PairConfig, bed: &Bed, dir: &Path) -> Result<Self> {
        match config.arbiter {
            ArbiterKind::File => {
                let terms = dir.join("arbiter");
                fs::create_dir_all(&terms)
                    .with_context(|| format!("cannot make {}", terms.display()))?;
                Ok(Self::File(terms))
            }
            ArbiterKind::Etcd => {
                let prefix = bed.arbiter_prefix();
                ensure!(
                    prefix.is_empty() || !config.tls,
                    "--arbiter etcd: its server speaks plain here, which --tls allows on --loopback only"
                );
                let address =
                    if prefix.is_empty() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
                let server = Etcd::start_at(&dir.join("etcd"), None, address, prefix)?;
                Ok(Self::Etcd { server: Box::new(server), lease: config.scaled(LEASE) })
            }
        }
    }

    /// The flags that tell `kemari` on `host` of it.
    pub(super) fn flags(&self, bed: &Bed, host: Host) -> Vec<String> {
        match self {
            Self::File(dir) => vec![format!("--arbiter=file:{}", dir.display())],
            Self::Etcd { server, lease } => {
                let (address, port) = (bed.arbiter_address(host), server.address().port());
                vec![
                    format!("--arbiter=etcd:{address}:{port}"),
                    format!("--arbiter-lease={}", lease.as_millis()),
                ]
            }
        }
    }

    /// It is gone: nobody can ask it.
    pub(super) fn go_away(&mut self) -> Result<()> {
        match self {
            Self::File(dir) => move_directory(dir, &away(dir)),
            Self::Etcd { server, .. } => {
                server.kill();
                Ok(())
            }
        }
    }

    /// It is back, and knows what it knew.
    pub(super) fn come_back(&mut self) -> Result<()> {
        match self {
            Self::File(dir) => move_directory(&away(dir), dir),
            Self::Etcd { server, .. } => server.restart(),
        }
    }
}

fn away(dir: &Path) -> PathBuf {
    dir.with_extension("away")
}

fn move_directory(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}
