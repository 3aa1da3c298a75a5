//! Slows a resource of a side for a while: its disk, its console's output or its arbiter's
//! directory. Each system call on the resource is delayed. The program is unchanged; a seccomp
//! filter intercepts its calls.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use kemari_inject::{Call, CallResult, Injector, Pending, intercept};
use libc::c_long;

use crate::network::Host;

/// System calls whose first argument is a file descriptor.
const BY_DESCRIPTOR: [c_long; 9] = [
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_pread64,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fallocate,
];
/// System calls whose first argument is a path.
const BY_PATH: [c_long; 4] = [libc::SYS_link, libc::SYS_unlink, libc::SYS_statfs, libc::SYS_access];
/// System calls whose first arguments are a directory and a path in it.
const BY_PATH_IN: [c_long; 6] = [
    libc::SYS_statx,
    libc::SYS_openat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_faccessat,
];

/// The slow resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// The disk, which both hosts share.
    Disk,
    /// The console's output: a file, or a pipe on standard output.
    Console,
    /// The arbiter's directory, by its path on the host.
    Arbiter,
}

/// The slow resource of a host and the delay of each call; `None` while no resource is slow.
type Now = Arc<Mutex<Option<(What, Duration)>>>;

/// The slow resources of both hosts. They also affect processes that start later.
#[derive(Debug)]
pub(super) struct Slowness {
    /// The disk's path, as in `/proc/PID/fd`.
    disk: PathBuf,
    /// The common prefix of both hosts' paths to the arbiter's directory.
    arbiter: String,
    hosts: [Now; 2],
}

impl Slowness {
    /// For a pair with its files in `dir`, which must contain the disk.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let disk = dir.join("disk.img");
        let disk = disk.canonicalize().with_context(|| format!("no {}", disk.display()))?;
        let arbiter = dir.join("arbiter.").display().to_string();
        Ok(Self { disk, arbiter, hosts: [Now::default(), Now::default()] })
    }

    /// Delays each call on `what` by the processes of `host` from now on.
    pub(super) fn begin(&self, host: Host, what: What, each: Duration) {
        *now(&self.hosts[host.index()]) = Some((what, each));
    }

    /// Ends the slowness. A call that is being delayed keeps its full delay.
    pub(super) fn end(&self) {
        self.hosts.iter().for_each(|host| *now(host) = None);
    }

    /// Prepares the interception of a process's calls. Pass the result to [`answer`](Self::answer)
    /// after the start.
    pub(super) fn ask(command: &mut Command) -> Result<Pending> {
        let calls = [&BY_DESCRIPTOR[..], &BY_PATH, &BY_PATH_IN].concat();
        intercept(command, &calls).context("cannot prepare to slow down a process's calls")
    }

    /// Handles the intercepted calls of a process on `host` until the returned value is dropped.
    pub(super) fn answer(&self, host: Host, pending: Pending) -> Result<Injector> {
        let slow = Arc::clone(&self.hosts[host.index()]);
        let (disk, arbiter) = (self.disk.clone(), self.arbiter.clone());
        let listener = pending.listener().context("cannot slow down a process's calls")?;
        Ok(Injector::start(listener, move |call| {
            let slow = *now(&slow);
            let slow = slow.filter(|(what, _)| match what {
                What::Disk => file(call).is_some_and(|file| Path::new(&file) == disk),
                What::Console => file(call).is_some_and(|file| is_console(&file, call)),
                What::Arbiter => path(call).is_some_and(|path| path.starts_with(&arbiter)),
            });
            slow.map_or(CallResult::Proceed, |(_, each)| CallResult::After(each))
        }))
    }
}

fn now(host: &Now) -> MutexGuard<'_, Option<(What, Duration)>> {
    host.lock().expect("no holder panics")
}

fn file(call: &Call) -> Option<String> {
    BY_DESCRIPTOR.contains(&call.number).then(|| call.descriptor(call.arguments[0]))
}

fn path(call: &Call) -> Option<String> {
    match call.number {
        number if BY_PATH.contains(&number) => call.path(0),
        number if BY_PATH_IN.contains(&number) => call.path(1),
        _ => None,
    }
}

fn is_console(file: &str, call: &Call) -> bool {
    file.ends_with(".serial") || (file.starts_with("pipe:") && file == call.descriptor(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Stdio;
    use std::time::Instant;

    use super::*;
    use crate::process::tied_to_us;

    const SCRIPTS: [(What, &str); 3] = [
        (What::Disk, "echo x >> DIR/disk.img"),
        (What::Console, "echo x > DIR/a.serial"),
        (What::Arbiter, ": > DIR/arbiter.a/term"),
    ];

    /// The time that a shell on host A needs for a script while each call on `what` of `host` is
    /// delayed by `each`.
    fn time(script: &str, what: What, host: Host, each: Duration) -> Duration {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk.img"), "disk").unwrap();
        std::fs::create_dir(dir.path().join("arbiter.a")).unwrap();
        let slowness = Slowness::new(dir.path()).unwrap();
        let mut command = tied_to_us(Path::new("/bin/sh"));
        let script = script.replace("DIR", &dir.path().display().to_string());
        command.args(["-c", &script]).stdout(Stdio::null());
        let pending = Slowness::ask(&mut command).unwrap();
        slowness.begin(host, what, each);
        let begun = Instant::now();
        let mut child = command.spawn().unwrap();
        let _injector = slowness.answer(Host::A, pending).unwrap();
        assert!(child.wait().unwrap().success());
        begun.elapsed()
    }

    /// Fails if a call on the slow resource is not recognised, if another resource is slow too, or
    /// if the slowness affects the other host.
    #[test]
    fn what_is_slow_takes_long_and_nothing_else_does() {
        let (some, forever) = (Duration::from_millis(200), Duration::from_secs(3600));
        for (what, script) in SCRIPTS {
            let took = time(script, what, Host::A, some);
            assert!(took >= some, "{what:?}: {took:?}");
            assert!(time(script, what, Host::B, forever) < forever);
            for (other, _) in SCRIPTS.iter().filter(|(other, _)| *other != what) {
                assert!(time(script, *other, Host::A, forever) < forever, "{what:?}, {other:?}");
            }
        }
    }
}
