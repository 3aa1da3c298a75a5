//! The files that a command line names. Each may be named for one purpose only.
//!
//! A disk that is also a log, a socket or a pid file would be overwritten. Files are compared by
//! identity, not by path, so symbolic links, hard links and other spellings are found. A file that
//! does not exist yet is compared by its directory and name. The files that kemari creates beside a
//! disk are included.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use io_gate_host::disk_use::disk_fence::DiskFence;
use io_gate_host::own_files::{self, FileId};
use kemari_arbiter::ArbiterSpec;
use kemari_machine::config::{ConsoleConfig, DiskConfig, FenceRecord, MachineConfig, NetBackend};
use kemari_replication::link::{Credentials, LinkAddr};
use kemari_replication::session::mark_files;

use super::CliError;
use super::args::PairArgs;

/// The purpose of a file. It decides which other purposes the file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The file may have no other purpose.
    Alone,
    /// Keys and certificates: the standby and the arbiter may use the same set.
    Credential,
    /// A socket on which another process listens. It may take several connections.
    Peer,
    /// A datagram socket of this process. It may be the peer of another one of this process.
    Datagrams,
    /// The arbiter's directory. No other file may be created in it.
    Arbiter,
    /// A file that kemari itself keeps beside a disk.
    Record,
    /// As [`Record`](Self::Record), at a path that the operator chose.
    ChosenRecord,
}

/// A path, and the flag that names it.
#[derive(Clone, Debug)]
struct Given {
    flag: String,
    path: PathBuf,
    purpose: Purpose,
    /// Whether kemari creates it if it does not exist.
    made: bool,
}

/// Identifies a file, to compare two paths.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    File(FileId),
    Device(u64),
    /// The file does not exist: its directory and name.
    Name(PathBuf),
}

/// All paths on a command line.
#[derive(Debug, Default)]
pub(super) struct Paths(Vec<Given>);

impl Paths {
    /// The paths of a machine.
    pub(super) fn of_machine(config: &MachineConfig) -> Self {
        let mut paths = Self::default();
        if let Some(boot) = &config.boot {
            paths.add("--kernel", &boot.kernel);
            boot.initrd.iter().for_each(|initrd| paths.add("--initrd", initrd));
        }
        config.memory_file.iter().for_each(|path| paths.make("--memory file=", path));
        for slot in config.slots() {
            let flag = slot.flag();
            slot.disk().iter().for_each(|disk| paths.disk(flag, disk));
            slot.network().iter().for_each(|network| paths.net(flag, network.backend));
            slot.console().iter().for_each(|console| paths.console(flag, console));
        }
        paths
    }

    /// Adds the paths of the flags for the pair.
    pub(super) fn and_of_pair(mut self, args: &PairArgs) -> Self {
        args.operation.pid_file.iter().for_each(|path| self.make("--pid-file", path));
        args.operation.control.iter().for_each(|path| self.make("--control", path));
        if let Some(audit) = &args.operation.audit {
            // The first file of the next run is the one that another flag can name.
            self.make("--audit", &audit.first());
        }
        if let ArbiterSpec::File(directory) = &args.arbiter.spec {
            self.push("--arbiter file:", directory, Purpose::Arbiter);
        }
        if let Some(directory) = &args.security.tls {
            for file in Credentials::files(directory) {
                self.push("--tls", &file, Purpose::Credential);
            }
        }
        let access = &args.arbiter;
        for (flag, file) in [
            ("--arbiter-ca", &access.ca),
            ("--arbiter-cert", &access.cert),
            ("--arbiter-key", &access.key),
            ("--arbiter-password-file", &access.password_file),
        ] {
            file.iter().for_each(|file| self.push(flag, file, Purpose::Credential));
        }
        self.link("--standby", args.replication.standby.as_ref());
        self
    }

    /// Adds the address that a standby listens on.
    pub(super) fn and_listen(mut self, listen: &LinkAddr) -> Self {
        match listen {
            LinkAddr::Unix(path) => self.make("--listen", path),
            LinkAddr::Tcp(_) => self.link("--listen", Some(listen)),
        }
        self
    }

    /// Checks that each file has one purpose.
    pub(super) fn check(&self) -> Result<(), CliError> {
        let identities: Vec<_> = self.0.iter().map(|given| identity(&given.path)).collect();
        for (at, second) in self.0.iter().enumerate() {
            let first = self.0[..at].iter().zip(&identities).find(|(first, identity)| {
                **identity == identities[at] && identity.is_some() && !may_be_one(first, second)
            });
            if let Some((first, _)) = first {
                return Err(twice(first, second));
            }
        }
        self.check_names()?;
        self.check_arbiter()
    }

    /// P2: checks that no other file has the name of a record that decides which machine may run.
    /// Another machine would find such a file, or write its own record into it.
    fn check_names(&self) -> Result<(), CliError> {
        let mistaken = self.0.iter().find(|given| {
            let place = place(&given.path);
            let is_meant = match given.purpose {
                Purpose::Record => true,
                Purpose::ChosenRecord => own_files::is_name_of_fence(&place),
                _ => false,
            };
            !is_meant && own_files::is_name_of_record(&place)
        });
        mistaken.map_or(Ok(()), |given| {
            Err(CliError::usage(format!(
                "{} {}: expected another name, found one that kemari uses for its own records; the file is left alone: \
                choose another path",
                given.flag,
                given.path.display(),
            )))
        })
    }

    /// Checks that no file is created in the arbiter's directory. A file that fills its storage, or
    /// that has a machine's name, would take terms away.
    fn check_arbiter(&self) -> Result<(), CliError> {
        let Some(arbiter) = self.0.iter().find(|given| given.purpose == Purpose::Arbiter) else {
            return Ok(());
        };
        let directory = place(&arbiter.path.join("any")).with_file_name("");
        let inside =
            self.0.iter().find(|given| given.made && place(&given.path).starts_with(&directory));
        inside.map_or(Ok(()), |given| {
            Err(CliError::usage(format!(
                "{} {}: expected a path outside of the arbiter's directory, found one in {}; choose another directory",
                given.flag,
                given.path.display(),
                arbiter.path.display()
            )))
        })
    }

    fn add(&mut self, flag: &str, path: &Path) {
        self.push(flag, path, Purpose::Alone);
    }

    fn make(&mut self, flag: &str, path: &Path) {
        let (flag, path) = (flag.to_owned(), path.to_owned());
        self.0.push(Given { flag, path, purpose: Purpose::Alone, made: true });
    }

    fn record(&mut self, flag: String, path: &Path) {
        self.push(&flag, path, Purpose::Record);
    }

    fn push(&mut self, flag: &str, path: &Path, purpose: Purpose) {
        let (flag, path) = (flag.to_owned(), path.to_owned());
        self.0.push(Given { flag, path, purpose, made: false });
    }

    fn disk(&mut self, flag: &str, disk: &DiskConfig) {
        self.add(flag, &disk.path);
        if disk.read_only {
            return;
        }
        match &disk.fence {
            FenceRecord::At(path) => {
                let (flag, purpose) = (format!("fence= of {flag}"), Purpose::ChosenRecord);
                self.0.push(Given { flag, path: path.clone(), purpose, made: true });
            }
            FenceRecord::Beside => {
                self.record(format!("the fence record of {flag}"), &DiskFence::beside(&disk.path))
            }
            FenceRecord::Off => {}
        }
        for (what, file) in mark_files(disk) {
            self.record(format!("the {what} of {flag}"), &file);
        }
    }

    fn net(&mut self, flag: &str, backend: &NetBackend) {
        match backend {
            NetBackend::Tap(_) => {}
            NetBackend::Stream(path) => self.push(flag, path, Purpose::Peer),
            NetBackend::Dgram(local, peer) => {
                self.push(flag, local, Purpose::Datagrams);
                self.0.last_mut().into_iter().for_each(|given| given.made = true);
                // The peer of a network may be another network, but not the network itself.
                let purpose = if local == peer { Purpose::Alone } else { Purpose::Peer };
                self.push(flag, peer, purpose);
            }
        }
    }

    fn console(&mut self, flag: &str, console: &ConsoleConfig) {
        if let ConsoleConfig::File(path) = console {
            self.make(flag, path);
        }
    }

    fn link(&mut self, flag: &str, addr: Option<&LinkAddr>) {
        match addr {
            Some(LinkAddr::Unix(path)) => self.add(flag, path),
            // No file has this name, and different addresses get different names.
            Some(LinkAddr::Tcp(addr)) => self.add(flag, Path::new(&format!("/\0/{addr}"))),
            None => {}
        }
    }
}

fn may_be_one(first: &Given, second: &Given) -> bool {
    use Purpose::{Credential, Datagrams, Peer};
    matches!(
        (first.purpose, second.purpose),
        (Credential, Credential) | (Peer, Peer) | (Datagrams, Peer) | (Peer, Datagrams)
    )
}

fn twice(first: &Given, second: &Given) -> CliError {
    let path = |given: &Given| given.path.display().to_string().replace("/\0/", "");
    CliError::usage(format!(
        "{} {}: given twice: expected its own path, found that of {} ({}); change one of them",
        second.flag,
        path(second),
        first.flag,
        path(first)
    ))
}

/// Returns `None` for the null device: any number of flags may write to it.
fn identity(path: &Path) -> Option<Identity> {
    if let Ok(found) = fs::metadata(path) {
        let kind = found.file_type();
        if kind.is_char_device() && found.rdev() == libc::makedev(1, 3) {
            return None;
        }
        let device = kind.is_block_device();
        return Some(if device {
            Identity::Device(found.rdev())
        } else {
            Identity::File(FileId::of(&found))
        });
    }
    Some(Identity::Name(place(path)))
}

/// The real path of the directory, and the name in it.
fn place(path: &Path) -> PathBuf {
    /// The number of symbolic links that the kernel follows (path_resolution(7)).
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().map_or(target.clone(), |parent| parent.join(&target));
    }
    let name = path.file_name().map(OsString::from);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match (fs::canonicalize(parent.unwrap_or(Path::new("."))), name) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path,
    }
}
