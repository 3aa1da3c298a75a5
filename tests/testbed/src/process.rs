//! Child processes: each starts in a process group of its own, its output is read line by line, and it is signalled by its id
//! and always killed at the end.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::unread::Valve;
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A running child. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    exit: Option<ExitStatus>,
    heard: Arc<Heard>,
    log: PathBuf,
    peak: PeakMemory,
    /// The valves of its standard output, if that is kept, and of its standard error.
    valves: [Option<Valve>; 2],
}

/// The largest peak memory of several processes, as the kernel counts it (`VmHWM` of proc_pid_status(5)).
#[derive(Clone, Debug, Default)]
pub struct PeakMemory(Arc<AtomicU64>);

impl PeakMemory {
    /// The peak in KiB.
    pub fn kib(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Reads the peak of a process. A process that has ended has no memory any more: its last reading counts.
    fn look(&self, pid: u32) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = field.and_then(|field| field.trim().strip_suffix(" kB")?.parse().ok());
        self.0.fetch_max(kib.unwrap_or(0), Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Heard {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    /// Starts `command`; its standard error is read, and also written to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        // A group of its own: Ctrl-C on the terminal must only reach the harness, which ends its children in order.
        command.process_group(0).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", command.get_program().display()))?;
        let stderr = child.stderr.take().context("the child's standard error is a pipe")?;
        let pid = Pid::from_child(&child);
        let heard = Arc::new(Heard::default());
        let listener = Arc::clone(&heard);
        let valve = Valve::default();
        let valves = [None, Some(valve.clone())];
        thread::spawn(move || listen(stderr, file, &listener, &valve));
        let (name, log, peak) = (name.to_owned(), log.to_owned(), PeakMemory::default());
        Ok(Self { name, child, pid, exit: None, heard, log, peak, valves })
    }

    /// From now on its memory counts in `peak`; it is read at each check for its end and at each signal.
    pub fn counts_in(&mut self, peak: &PeakMemory) {
        self.peak = peak.clone();
    }

    /// Its name in the harness.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with its standard error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The other ends of its standard input and output if they are pipes; only the first call returns them.
    pub fn take_console(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        self.child.stdin.take().zip(self.child.stdout.take())
    }

    /// Writes its standard output, which must be a pipe, to `path`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn keep_output(&mut self, path: &Path) -> Result<()> {
        let mut file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut output = self.child.stdout.take().context("standard output is no pipe")?;
        let valve = Valve::default();
        self.valves[0] = Some(valve.clone());
        thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                valve.pass();
                match output.read(&mut piece) {
                    Ok(count) if count > 0 => drop(file.write_all(&piece[..count])),
                    _ => break,
                }
            }
            valve.end();
        });
        Ok(())
    }

    /// Stops reading its standard error, and its standard output if that is kept: both pipes are full when this returns.
    ///
    /// # Errors
    /// When it has ended.
    pub fn leave_unread(&self, patience: Duration) -> Result<()> {
        for (valve, fd) in self.valves.iter().zip(1..) {
            let closed = valve.as_ref().map(|valve| valve.close(self.pid(), fd, patience));
            closed.unwrap_or(Ok(())).with_context(|| format!("{} left unread", self.name))?;
        }
        Ok(())
    }

    /// Reads its output again.
    pub fn read_on(&self) {
        self.valves.iter().flatten().for_each(Valve::open);
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::KILL);
        self.wait_exit(Duration::from_secs(30))
    }

    /// Sends `signal`, unless the child is known to have ended.
    pub fn signal(&mut self, signal: Signal) {
        // Only the id of a child that was not reaped is certainly still its own.
        if self.exit.is_none() {
            self.peak.look(self.pid());
            let _ = kill_process(self.pid, signal);
        }
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.peak.look(self.pid());
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }

    /// Waits for the end; `None` when `timeout` comes first.
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        if self.exited().is_none() {
            self.poll_exit(timeout).ok()?;
        }
        self.exited()
    }

    fn poll_exit(&self, timeout: Duration) -> io::Result<()> {
        let descriptor = pidfd_open(self.pid, PidfdFlags::empty())?;
        let mut wanted = [PollFd::new(&descriptor, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        poll(&mut wanted, Some(&timeout))?;
        Ok(())
    }

    /// All lines that it has printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.said().lines.clone()
    }

    /// Waits for a line that contains `text`; `None` when `timeout` or the child's end comes first.
    pub fn wait_line(&self, text: &str, timeout: Duration) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut said = self.said();
        loop {
            if let Some(line) = said.lines.iter().find(|line| line.contains(text)) {
                return Some(line.clone());
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|_| !said.ended)?;
            said = self.heard.more.wait_timeout(said, left).expect("the listener does not panic").0;
        }
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.heard.said.lock().expect("the listener does not panic")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.read_on();
        if self.exited().is_none() {
            self.kill();
        }
    }
}

fn listen(stderr: ChildStderr, mut file: File, heard: &Heard, valve: &Valve) {
    for line in BufReader::new(stderr).split(b'\n') {
        let Ok(line) = line else { break };
        valve.pass();
        if line.is_empty() {
            continue;
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        // The file is for people; only the lines in memory are judged.
        let _ = writeln!(file, "{line}");
        heard.said.lock().expect("no holder panics").lines.push(line);
        heard.more.notify_all();
    }
    valve.end();
    heard.said.lock().expect("no holder panics").ended = true;
    heard.more.notify_all();
}

/// A command for `program` that dies with this process, however this process ends, if the system has `setpriv`.
pub fn tied_to_us(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The beginning of a command line that has mount and user namespaces of its own, in which a shell line was run. None where the
/// test has to be left out.
pub fn in_namespaces(shell: &str) -> Option<Command> {
    let permitted = Command::new("unshare")
        .args(["-Urm", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !permitted {
        kemari_not_tested::not_tested("this machine permits no user namespaces");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-ec", &format!("{shell}; exec \"$@\"")]).arg("sh");
    Some(command)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> (Process, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = tied_to_us(Path::new("/bin/sh"));
        command.args(["-c", script]);
        (Process::start("shell", command, &dir.path().join("log")).unwrap(), dir)
    }

    #[test]
    fn lines_and_exit_code_are_seen() {
        let (mut process, _dir) = shell("echo one >&2; echo two >&2; exit 3");
        assert_eq!(process.wait_line("tw", LONG).unwrap(), "two");
        assert_eq!(process.wait_exit(LONG).unwrap().code(), Some(3));
        assert_eq!(std::fs::read_to_string(process.log()).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn the_most_memory_is_seen() {
        // The shell stores 32 MiB in a variable, frees them, and stops.
        let (mut process, _dir) = shell(
            "x=$(head -c 33554432 /dev/zero | tr '\\0' x); unset x; echo full >&2; kill -STOP $$",
        );
        let peak = PeakMemory::default();
        process.counts_in(&peak);
        process.wait_line("full", LONG).unwrap();
        assert!(process.exited().is_none());
        assert!((32 << 10..1 << 20).contains(&peak.kib()), "{} KiB", peak.kib());
        process.kill();
    }

    #[test]
    fn a_line_that_never_comes_ends_with_the_child() {
        let (process, _dir) = shell("echo one >&2");
        assert_eq!(process.wait_line("two", LONG), None);
    }

    #[test]
    fn a_stopped_child_can_be_waited_for_and_killed() {
        let (mut process, _dir) = shell("echo up >&2; exec sleep 100");
        process.wait_line("up", LONG).unwrap();
        process.signal(Signal::STOP);
        assert!(process.wait_exit(Duration::from_millis(50)).is_none());
        assert!(process.kill().is_some());
    }

    /// A child whose pipes are not read cannot write a byte more; its output arrives when the pipes are read again.
    #[test]
    fn what_is_left_unread_waits_and_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = tied_to_us(Path::new("/bin/sh"));
        let script = "echo up; read go; echo out; echo end >&2";
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start("shell", command, &dir.path().join("log")).unwrap();
        let output = dir.path().join("output");
        process.keep_output(&output).unwrap();
        let printed = |end: &str| {
            let begin = Instant::now();
            while !std::fs::read_to_string(&output).unwrap().ends_with(end) {
                assert!(begin.elapsed() < LONG, "what it prints is kept");
                thread::yield_now();
            }
        };
        // The shell prints nothing on standard error here: it would change its descriptors for that, and the test opens them.
        printed("up\n");
        process.leave_unread(LONG).unwrap();
        for fd in [1, 2] {
            let path = format!("/proc/{}/fd/{fd}", process.pid());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK;
            let pipe = rustix::fs::open(path, flags, Mode::empty()).unwrap();
            assert_eq!(rustix::io::write(pipe, b"x"), Err(Errno::AGAIN));
        }
        drop(process.child.stdin.take());
        assert!(process.exited().is_none());
        process.read_on();
        process.wait_line("end", LONG).unwrap();
        assert!(process.wait_exit(LONG).is_some());
        assert_eq!(process.lines(), ["end"]);
        printed("out\n");
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let (process, _dir) = shell("echo up >&2; exec sleep 100");
        process.wait_line("up", LONG).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }
}
