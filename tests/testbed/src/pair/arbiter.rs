//! The arbiter of a run: a directory or a real etcd server. It can disappear, fall silent, be
//! copied (a directory), or be cut off from one host, and recover.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::config::{ArbiterKind, PairConfig};
use crate::etcd::Etcd;
use crate::network::{Host, Relay, TestNetwork};

/// The lease duration at etcd on an ordinary machine.
const LEASE: Duration = Duration::from_secs(1);

/// The ways in which the arbiter fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outage {
    /// The directory does not exist, or the server refuses connections.
    Gone,
    /// Each access to the directory fails, or the server never answers.
    Silent,
    /// This host cannot reach the arbiter; the other host can.
    CutFrom(Host),
    /// This host uses a copy of the directory, which the other host does not see. Not available for
    /// etcd.
    Copied(Host),
}

/// The arbiter of a pair, and the connection of each host to it.
#[derive(Debug)]
pub(super) enum Arbiter {
    /// A directory. Each host reaches it through a symbolic link of its own.
    File(PathBuf),
    Etcd {
        server: Box<Etcd>,
        lease: Duration,
        /// The relay between each host and the server; only on loopback.
        relays: Option<[Relay; 2]>,
    },
}

impl Arbiter {
    /// Creates the directory or starts the server, with its files in `dir`.
    pub(super) fn start(config: &PairConfig, network: &TestNetwork, dir: &Path) -> Result<Self> {
        match config.arbiter {
            ArbiterKind::File => {
                let terms = dir.join("arbiter");
                fs::create_dir_all(&terms)
                    .with_context(|| format!("cannot make {}", terms.display()))?;
                link(&terms, Host::A)?;
                link(&terms, Host::B)?;
                Ok(Self::File(terms))
            }
            ArbiterKind::Etcd => {
                let prefix = network.arbiter_prefix();
                ensure!(
                    prefix.is_empty() || !config.tls,
                    "--arbiter etcd: its server is not encrypted here, which --tls allows only with --loopback"
                );
                let address =
                    if prefix.is_empty() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
                let here = prefix.is_empty();
                let server = Box::new(Etcd::start_at(&dir.join("etcd"), None, address, prefix)?);
                let relay = || Relay::to(server.address());
                let relays = if here { Some([relay()?, relay()?]) } else { None };
                Ok(Self::Etcd { server, lease: config.scaled(LEASE), relays })
            }
        }
    }

    /// The flags that name the arbiter to `kemari` on `host`.
    pub(super) fn flags(&self, network: &TestNetwork, host: Host) -> Vec<String> {
        match self {
            Self::File(dir) => vec![format!("--arbiter=file:{}", link_of(dir, host).display())],
            Self::Etcd { server, lease, relays } => {
                let at = match relays {
                    Some(relays) => relays[host.index()].address().to_string(),
                    None => {
                        format!("{}:{}", network.arbiter_address(host), server.address().port())
                    }
                };
                vec![
                    format!("--arbiter=etcd:{at}"),
                    format!("--arbiter-lease={}", lease.as_millis()),
                ]
            }
        }
    }

    /// Begins an outage.
    pub(super) fn fail(&mut self, network: &TestNetwork, outage: Outage) -> Result<()> {
        match (self, outage) {
            (Self::File(dir), Outage::Gone) => move_directory(dir, &away(dir)),
            (Self::File(dir), Outage::Silent) => {
                move_directory(dir, &away(dir))?;
                // A file in place of the directory: each access returns an error.
                fs::write(&*dir, "").with_context(|| format!("cannot make {}", dir.display()))
            }
            (Self::File(dir), Outage::CutFrom(host)) => unlink(&link_of(dir, host)),
            (Self::File(dir), Outage::Copied(host)) => {
                let copy = copy_of(dir, host);
                copy_directory(dir, &copy)?;
                unlink(&link_of(dir, host))?;
                link_to(&copy, &link_of(dir, host))
            }
            (Self::Etcd { .. }, Outage::Copied(_)) => bail!("an etcd arbiter cannot be copied"),
            (Self::Etcd { server, .. }, Outage::Gone) => {
                server.kill();
                Ok(())
            }
            (Self::Etcd { server, .. }, Outage::Silent) => {
                server.pause();
                Ok(())
            }
            (Self::Etcd { relays: Some(relays), .. }, Outage::CutFrom(host)) => {
                relays[host.index()].set_cut(true);
                Ok(())
            }
            (Self::Etcd { relays: None, .. }, Outage::CutFrom(host)) => network.cut_arbiter(host),
        }
    }

    /// Ends the outage. The arbiter keeps its state.
    pub(super) fn recover(&mut self, network: &TestNetwork, outage: Outage) -> Result<()> {
        match (self, outage) {
            (Self::File(dir), Outage::Gone) => move_directory(&away(dir), dir),
            (Self::File(dir), Outage::Silent) => {
                unlink(dir)?;
                move_directory(&away(dir), dir)
            }
            (Self::File(dir), Outage::CutFrom(host)) => link(dir, host),
            (Self::File(dir), Outage::Copied(host)) => {
                unlink(&link_of(dir, host))?;
                link(dir, host)?;
                let copy = copy_of(dir, host);
                fs::remove_dir_all(&copy)
                    .with_context(|| format!("cannot remove {}", copy.display()))
            }
            (Self::Etcd { .. }, Outage::Copied(_)) => Ok(()),
            (Self::Etcd { server, .. }, Outage::Gone) => server.restart(),
            (Self::Etcd { server, .. }, Outage::Silent) => {
                server.resume();
                Ok(())
            }
            (Self::Etcd { relays: Some(relays), .. }, Outage::CutFrom(host)) => {
                relays[host.index()].set_cut(false);
                Ok(())
            }
            (Self::Etcd { relays: None, .. }, Outage::CutFrom(host)) => network.heal_arbiter(host),
        }
    }
}

fn away(dir: &Path) -> PathBuf {
    dir.with_extension("away")
}

/// The path at which `host` reaches the directory.
fn link_of(dir: &Path, host: Host) -> PathBuf {
    dir.with_extension(host.name())
}

fn link(dir: &Path, host: Host) -> Result<()> {
    link_to(dir, &link_of(dir, host))
}

fn link_to(target: &Path, link: &Path) -> Result<()> {
    symlink(target, link).with_context(|| format!("cannot make {}", link.display()))
}

fn copy_of(dir: &Path, host: Host) -> PathBuf {
    dir.with_extension(format!("copy-{}", host.name()))
}

/// Copies the directory. A file that disappears during the copy is temporary and not part of the
/// arbiter's state.
fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_directory(&path, &copy)?;
            continue;
        }
        match fs::copy(&path, &copy) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot copy {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn unlink(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

fn move_directory(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The error of each host when it lists the directory.
    fn seen(dir: &Path) -> [Option<ErrorKind>; 2] {
        [Host::A, Host::B].map(|host| fs::read_dir(link_of(dir, host)).err().map(|e| e.kind()))
    }

    #[test]
    fn a_directory_fails_as_told_and_comes_back_with_what_it_held() {
        let scratch = tempfile::tempdir().unwrap();
        let terms = scratch.path().join("arbiter");
        fs::create_dir(&terms).unwrap();
        fs::write(terms.join("term"), "1").unwrap();
        link(&terms, Host::A).unwrap();
        link(&terms, Host::B).unwrap();
        let network = TestNetwork::loopback("a test".to_owned()).unwrap();
        let mut arbiter = Arbiter::File(terms.clone());
        let (gone, errs) = (Some(ErrorKind::NotFound), Some(ErrorKind::NotADirectory));
        for (outage, expected) in [
            (Outage::Gone, [gone, gone]),
            (Outage::Silent, [errs, errs]),
            (Outage::CutFrom(Host::A), [gone, None]),
            (Outage::CutFrom(Host::B), [None, gone]),
        ] {
            arbiter.fail(&network, outage).unwrap();
            assert_eq!(seen(&terms), expected, "{outage:?}");
            arbiter.recover(&network, outage).unwrap();
            for host in [Host::A, Host::B] {
                assert_eq!(fs::read(link_of(&terms, host).join("term")).unwrap(), b"1");
            }
        }
        arbiter.fail(&network, Outage::Copied(Host::A)).unwrap();
        let read = |host| fs::read(link_of(&terms, host).join("term")).unwrap();
        fs::write(link_of(&terms, Host::A).join("term"), "2").unwrap();
        assert_eq!([read(Host::A), read(Host::B)], [b"2", b"1"]);
        arbiter.recover(&network, Outage::Copied(Host::A)).unwrap();
        assert_eq!([read(Host::A), read(Host::B)], [b"1", b"1"]);
        assert!(!copy_of(&terms, Host::A).exists());
    }
}
