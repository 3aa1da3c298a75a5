//! What a side works with is slow for a while: its disk, its console's file, its arbiter's directory. Each system call that
//! touches it takes long; the program is unchanged, and started with a filter that asks about such calls.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use kemari_inject::{Answer, Call, Injector, Pending, intercept};
use libc::c_long;

use crate::bed::Host;

/// Calls whose first argument is a descriptor of what they touch.
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
/// Calls that begin with a path.
const BY_PATH: [c_long; 4] = [libc::SYS_link, libc::SYS_unlink, libc::SYS_statfs, libc::SYS_access];
/// Calls that begin with a directory and a path in it.
const BY_PATH_IN: [c_long; 6] = [
    libc::SYS_statx,
    libc::SYS_openat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_faccessat,
];

/// What is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// The disk that both hosts see.
    Disk,
    /// Whoever takes what consoles print: a file, or a pipe on standard output.
    Console,
    /// The arbiter's directory, by the path that a host has to it.
    Arbiter,
}

/// What is slow on a host at the moment, and how long a call takes then.
type Now = Arc<Mutex<Option<(What, Duration)>>>;

/// See the module: for the sides of a pair, whenever they are started.
#[derive(Debug)]
pub(super) struct Slowness {
    /// As `/proc/PID/fd` shows it.
    disk: PathBuf,
    /// What the path of each host to the arbiter's directory begins with.
    arbiter: String,
    hosts: [Now; 2],
}

impl Slowness {
    /// Of a pair that has its files in `dir`: the disk is there already.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let disk = dir.join("disk.img");
        let disk = disk.canonicalize().with_context(|| format!("no {}", disk.display()))?;
        let arbiter = dir.join("arbiter.").display().to_string();
        Ok(Self { disk, arbiter, hosts: [Now::default(), Now::default()] })
    }

    /// From now on each call of a host's sides that touches `what` takes so long.
    pub(super) fn begin(&self, host: Host, what: What, each: Duration) {
        *now(&self.hosts[host.index()]) = Some((what, each));
    }

    /// Nothing is slow any more; what waits already waits for its time.
    pub(super) fn end(&self) {
        self.hosts.iter().for_each(|host| *now(host) = None);
    }

    /// Has a side that is to be started on `host` be asked about its calls: give what comes back to [`answer`](Self::answer).
    pub(super) fn ask(command: &mut Command) -> Result<Pending> {
        let calls = [&BY_DESCRIPTOR[..], &BY_PATH, &BY_PATH_IN].concat();
        intercept(command, &calls).context("a side whose calls are slow")
    }

    /// Answers for a side that was started on `host`, as long as what is given back lives.
    pub(super) fn answer(&self, host: Host, pending: Pending) -> Result<Injector> {
        let slow = Arc::clone(&self.hosts[host.index()]);
        let (disk, arbiter) = (self.disk.clone(), self.arbiter.clone());
        let listener = pending.listener().context("a side whose calls are slow")?;
        Ok(Injector::start(listener, move |call| {
            let slow = *now(&slow);
            let slow = slow.filter(|(what, _)| match what {
                What::Disk => file(call).is_some_and(|file| Path::new(&file) == disk),
                What::Console => file(call).is_some_and(|file| is_console(&file, call)),
                What::Arbiter => path(call).is_some_and(|path| path.starts_with(&arbiter)),
            });
            slow.map_or(Answer::Proceed, |(_, each)| Answer::After(each))
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

    /// How long a shell on host A takes for a script, where a call that touches `what` on `host` takes `each`.
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

    /// Fails where a call that touches what is slow is not known, where another is taken for it, or where what is slow for one
    /// host is so for both.
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
