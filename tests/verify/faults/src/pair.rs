//! A pair of real processes, one of which has its system calls intercepted, and the client that
//! observes the guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kemari_inject::{Call, CallResult, Injector, intercept};
use kemari_testbed::micro::{DISK_BYTES, Load, MicroObserver, command_line};
use kemari_testbed::pair::observer::Observer;
use kemari_testbed::process::{Process, tied_to_us};
use kemari_testbed::switch::Switch;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Polling interval.
pub(crate) const TURN: Duration = Duration::from_millis(20);
/// The longest time of a step that succeeds on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The longest time until a control socket answers.
const ANSWER: Duration = Duration::from_secs(2);
/// The guest counts as running after this many further answers.
pub(crate) const ENOUGH: u64 = 20;
/// Names of the processes of a scenario, which has at most this many.
const SIDES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Small, so that checkpoints are small.
const MEMORY: &str = "32";

/// The programs that a pair runs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) kemari: PathBuf,
    pub(crate) guest: PathBuf,
}

/// The system calls of a side to intercept, and the rule that answers them.
pub(crate) struct Asked {
    pub(crate) calls: Vec<i64>,
    pub(crate) rule: Box<dyn FnMut(&Call) -> CallResult + Send>,
}

/// A `kemari` process.
pub(crate) struct Side {
    pub(crate) index: usize,
    pub(crate) process: Process,
    injector: Option<Injector>,
    control: PathBuf,
    link: PathBuf,
}

/// The processes, the network, the client and the files of one run. The files are removed with it.
pub(crate) struct Pair {
    programs: Programs,
    dir: tempfile::TempDir,
    switch: Switch,
    pub(crate) observer: MicroObserver,
    started: usize,
}

impl Pair {
    pub(crate) fn new(programs: &Programs, seed: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kemari-faults-").tempdir()?;
        let switch = Switch::new(dir.path(), &SIDES)?;
        let disk = dir.path().join("disk.img");
        std::fs::File::create(&disk)?.set_len(DISK_BYTES)?;
        let load = Load { writers: 4, seed, dirty: 200, resend: Duration::from_millis(100) };
        let observer = MicroObserver::start(switch.plug_in(), load, &disk)?;
        Ok(Self { programs: programs.clone(), dir, switch, observer, started: 0 })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the first side, with `standby` as its standby if there is one.
    pub(crate) fn run(&mut self, standby: Option<&Side>, asked: Option<Asked>) -> Result<Side> {
        let mut arguments =
            vec!["run".to_owned(), format!("--kernel={}", self.programs.guest.display())];
        arguments.push(format!("--cmdline={}", command_line(1)));
        arguments.extend(["--memory".to_owned(), MEMORY.to_owned()]);
        if let Some(standby) = standby {
            arguments.extend(["--standby".to_owned(), standby.address()]);
        }
        self.start(arguments, asked)
    }

    /// Starts a standby that waits for a primary.
    pub(crate) fn standby(&mut self, asked: Option<Asked>) -> Result<Side> {
        let link = self.path(&format!("{}.link", SIDES[self.started]));
        self.start(vec!["standby".to_owned(), format!("--listen=unix:{}", link.display())], asked)
    }

    fn start(&mut self, arguments: Vec<String>, asked: Option<Asked>) -> Result<Side> {
        let index = self.started;
        let name = *SIDES.get(index).context("too many sides were started")?;
        self.started += 1;
        let mut command = tied_to_us(&self.programs.kemari);
        command.args(arguments).args(self.flags(index)).stdin(Stdio::null()).stdout(Stdio::null());
        // Without a backtrace, the last line of an abort is its reason.
        command.env("RUST_BACKTRACE", "0");
        let pending =
            asked.as_ref().map(|asked| intercept(&mut command, &asked.calls)).transpose()?;
        let process = Process::start(name, command, &self.path(&format!("{name}.log")))?;
        let injector = match pending.zip(asked) {
            Some((pending, asked)) => Some(Injector::start(pending.listener()?, asked.rule)),
            None => None,
        };
        let (control, link) =
            (self.path(&format!("{name}.ctl")), self.path(&format!("{name}.link")));
        Ok(Side { index, process, injector, control, link })
    }

    fn flags(&self, index: usize) -> Vec<String> {
        let name = SIDES[index];
        let path = |file: &str| self.path(file).display().to_string();
        let mut flags = vec![
            "--name=pair".to_owned(),
            format!("--disk=path={},cache=writeback", path("disk.img")),
            format!("--net=stream={},mac=52:54:00:4b:45:4d", self.switch.socket(index).display()),
            format!("--serial=file={}", path(&format!("{name}.serial"))),
            format!("--audit={}", path(&format!("{name}.audit"))),
            format!("--control={}", path(&format!("{name}.ctl"))),
            format!("--arbiter=file:{}", path("arbiter")),
            "--heartbeat-interval=100".to_owned(),
            "--heartbeat-timeout=1000".to_owned(),
            "--ack-timeout=3000".to_owned(),
            "--stall-timeout=5000".to_owned(),
        ];
        flags.extend(["--rng", "--rtc", "--verify"].map(str::to_owned));
        flags
    }

    /// The sides that sent the guest's frames, in order.
    pub(crate) fn senders(&self) -> Vec<usize> {
        self.switch.with_capture(|frames| {
            let mut senders: Vec<usize> =
                frames.iter().map(|frame| frame.port).filter(|port| *port < SIDES.len()).collect();
            senders.dedup();
            senders
        })
    }

    /// Keeps the files for a person to read, and prints their directory.
    pub(crate) fn keep(self) {
        eprintln!("kept: {}", self.dir.keep().display());
    }

    /// Whether [`ENOUGH`] more requests are answered within `patience`.
    pub(crate) fn goes_on(&self, patience: Duration) -> bool {
        self.observer.wait_answered(self.observer.answered() + ENOUGH, patience)
    }
}

impl Side {
    fn address(&self) -> String {
        format!("unix:{}", self.link.display())
    }

    /// The status, or `None` if the process does not answer.
    pub(crate) fn status(&self) -> Option<Value> {
        self.ask(&json!({ "command": "status", "wait_ms": 0 })).ok()
    }

    /// The reported state, or an empty string if the process does not answer.
    pub(crate) fn state(&self) -> String {
        let status = self.status().unwrap_or_default();
        status["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Orders the machine to be protected by `standby`, without waiting.
    pub(crate) fn protect(&self, standby: &Self) -> Result<()> {
        let request = json!({ "command": "protect", "standby": standby.address(), "wait_ms": 0 });
        self.ask(&request).map(drop)
    }

    fn ask(&self, request: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.control)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        ensure!(answer.get("error").is_none(), "{answer}");
        Ok(answer)
    }

    /// Waits until the process reports one of these states; returns that state.
    pub(crate) fn wait_state(&mut self, states: &[&str], patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let state = self.state();
            if states.contains(&&*state) {
                return Ok(state);
            }
            if let Some(end) = self.process.exited() {
                bail!("{} ended ({end}): {}", self.process.name(), self.last_words());
            }
            ensure!(
                Instant::now() < deadline,
                "{}: expected {}, found `{state}`",
                self.process.name(),
                states.join(" or ")
            );
            std::thread::sleep(TURN);
        }
    }

    /// Waits until a standby accepts connections.
    pub(crate) fn wait_listening(&self, patience: Duration) -> Result<()> {
        self.process.wait_line("listening on", patience).map(drop).context("no standby came up")
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.exited().is_none()
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
    }

    /// Lets held calls proceed; no further fault is injected.
    pub(crate) fn release(&self) {
        self.injector.iter().for_each(Injector::release);
    }

    /// Whether the log says that the protection was lost before the first error.
    pub(crate) fn was_unprotected(&self) -> bool {
        let lines = self.process.lines();
        let before = lines.iter().take_while(|line| !line.starts_with("[ERROR]"));
        let told = before.filter(|line| line.contains("protected: ")).last();
        told.is_some_and(|line| line.contains("unprotected: "))
    }

    /// The reason of the end if the log has one, else the last line of the log.
    pub(crate) fn last_words(&self) -> String {
        // No line contains this text: the wait ends when all output was read.
        self.process.wait_line("\0", ANSWER);
        let lines = self.process.lines();
        let begins = ["error: ", "kemari: ", "memory allocation of "];
        let reason = |line: &&String| begins.iter().any(|begin| line.starts_with(begin));
        let said = lines.iter().rfind(reason).or(lines.last()).cloned().unwrap_or_default();
        said.chars().take(300).collect()
    }
}
