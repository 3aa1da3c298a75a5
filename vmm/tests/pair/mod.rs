//! A pair in this process: real machines on the real `/dev/kvm`, a real engine and a real standby.
//! A Unix socket that a test can cut connects them, and a test can hold their threads.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ft_core::arbiter::DiskClaim;
use ft_core::handshake::{ArbiterView, MachineLayout};
use ft_core::policy::PolicyOptions;
use ft_core::primary::{Phase, PrimaryOptions};
use ft_core::standby::StandbyOptions;
use ft_core::{Backoff, Term};
use io_gate::host::{CommitAuthority, new_gate};
use io_gate_host::{Fence, Permission, Unfenced};
use kemari_arbiter::{Arbiter, ArbiterError, FileArbiter, Verdict};
use kemari_machine::boot::Boot;
use kemari_machine::config::{DiskConfig, MachineConfig};
use kemari_machine::{AttachOptions, Machine};
use kemari_replication::descriptors::Reserve;
use kemari_replication::link::{LinkAddr, LinkSecurity};
use kemari_replication::primary::{Engine, EngineOptions, EngineResources, Sealer, StepHooks};
use kemari_replication::standby::resources::Resources;
use kemari_replication::standby::{
    End, HostError, Input, MachineFactory, SessionId, StandbyConfig, StandbyDriver, StandbyStatus,
    StopHandle,
};
use kvm_bindings::kvm_regs;

use crate::common;

/// Upper bound for any wait. Only failures take this long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// `jmp $`: the guest writes nothing.
pub const IDLE: &[u8] = &[0xeb, 0xfe];
/// `mov dx, 0x3f8; mov al, '.'; 1: mov ecx, 1000000; 2: dec ecx; jnz 2b; out dx, al; jmp 1b`:
/// writes a byte to the serial line about every half millisecond, forever.
pub const CHATTY: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xb9, 0x40, 0x42, 0x0f, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0xee,
    0xeb, 0xf4,
];
/// Address of a zeroed TSS, three pages long, that lets ring 3 use every port.
const TSS: u64 = 0xa000;

pub fn config(memory: u64, cpus: u32) -> MachineConfig {
    MachineConfig::bare("pair", memory, cpus)
}

/// One disk in `dir`, which both sides can use.
pub fn disks(dir: &Path) -> Vec<DiskConfig> {
    let disk = dir.join("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    vec![format!("path={},readonly=on,fence=off", disk.display()).parse().unwrap()]
}

/// Options for tests: a busy machine is not a failure, and a link that was cut is tried again at
/// once.
pub fn engine_options(standby: &Path) -> EngineOptions {
    EngineOptions {
        name: "pair".into(),
        standby: Some(LinkAddr::Unix(standby.to_owned())),
        security: LinkSecurity::default(),
        audit: None,
        verify: false,
        delta_cache: 1 << 20,
        stall_timeout: PATIENCE,
        primary: PrimaryOptions {
            heartbeat_interval: Duration::from_millis(50),
            heartbeat_timeout: PATIENCE,
            setup_timeout: PATIENCE,
            connect_retry: Backoff {
                first: Duration::from_millis(1),
                longest: Duration::from_millis(20),
            },
            ..PrimaryOptions::default()
        },
        policy: PolicyOptions::default(),
        steps: StepHooks::default(),
    }
}

struct Factory {
    fence: Arc<dyn Fence>,
    /// The standby's thread calls this before it builds a machine.
    before: Box<dyn Fn() + Send>,
    disks: Vec<DiskConfig>,
}

impl MachineFactory for Factory {
    fn build(&self, layout: &MachineLayout) -> Result<(Arc<Machine>, CommitAuthority), HostError> {
        (self.before)();
        let (ledger, authority) = new_gate();
        let mut config = config(layout.memory_size(), layout.cpus);
        config.disks = self.disks.clone();
        Ok((Machine::build(config, ledger, self.fence.clone())?, authority))
    }
}

/// A standby that runs in this process.
pub struct Standby {
    pub inputs: SyncSender<Input>,
    pub status: Arc<Mutex<StandbyStatus>>,
    pub stop: StopHandle,
    thread: JoinHandle<End>,
}

impl std::fmt::Debug for Standby {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standby").field("status", &self.status()).finish()
    }
}

impl Standby {
    pub fn start(listen: &Path, timeout: Duration, arbiter: Option<Arc<dyn Arbiter>>) -> Self {
        Self::start_with(listen, timeout, arbiter, None)
    }

    /// A standby with its own kernel.
    pub fn start_with(
        listen: &Path,
        timeout: Duration,
        arbiter: Option<Arc<dyn Arbiter>>,
        boot: Option<Arc<Boot>>,
    ) -> Self {
        Self::start_held(listen, timeout, arbiter, boot, || {})
    }

    /// A standby whose thread calls `before` when a primary has said Hello.
    pub fn start_held(
        listen: &Path,
        timeout: Duration,
        arbiter: Option<Arc<dyn Arbiter>>,
        boot: Option<Arc<Boot>>,
        before: impl Fn() + Send + 'static,
    ) -> Self {
        let fence = arbiter
            .as_ref()
            .map_or_else(|| Arc::new(Unfenced) as Arc<dyn Fence>, |arbiter| arbiter.fence());
        let factory = Factory { fence, before: Box::new(before), disks: Vec::new() };
        Self::start_driver(listen, timeout, arbiter, boot, Box::new(factory), Arc::default())
    }

    /// A standby whose machines come from the test's `factory`.
    pub fn start_factory(
        listen: &Path,
        arbiter: Option<Arc<dyn Arbiter>>,
        factory: Box<dyn MachineFactory>,
    ) -> Self {
        Self::start_driver(listen, PATIENCE, arbiter, None, factory, Arc::default())
    }

    /// A standby whose machines have disks, and a fence that may differ from the arbiter's.
    pub fn start_with_disks(
        listen: &Path,
        arbiter: Option<Arc<dyn Arbiter>>,
        fence: Arc<dyn Fence>,
        disks: Vec<DiskConfig>,
        reserve: Arc<Reserve>,
    ) -> Self {
        let factory = Factory { fence, before: Box::new(|| {}), disks };
        Self::start_driver(listen, PATIENCE, arbiter, None, Box::new(factory), reserve)
    }

    fn start_driver(
        listen: &Path,
        timeout: Duration,
        arbiter: Option<Arc<dyn Arbiter>>,
        boot: Option<Arc<Boot>>,
        factory: Box<dyn MachineFactory>,
        reserve: Arc<Reserve>,
    ) -> Self {
        let options = StandbyOptions {
            heartbeat_timeout: timeout,
            setup_timeout: PATIENCE,
            ..StandbyOptions::default()
        };
        let config = StandbyConfig { name: "pair".into(), options, boot, audit: None };
        let resources = Resources::new(self::config(16 << 20, 1), None, arbiter.clone(), reserve);
        let driver = StandbyDriver::new(config, arbiter, factory).with_resources(&resources);
        let listener = LinkAddr::Unix(listen.to_owned()).listen(LinkSecurity::default()).unwrap();
        let (inputs, status, stop) = (driver.inputs(), driver.status(), driver.stop_handle());
        let thread = std::thread::spawn(move || driver.run(listener).unwrap());
        Self { inputs, status, stop, thread }
    }

    pub fn status(&self) -> serde_json::Value {
        self.status.lock().unwrap().json()
    }

    pub fn session(&self) -> SessionId {
        self.status.lock().unwrap().session()
    }

    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops the standby and expects an orderly end.
    #[track_caller]
    pub fn stops(self) {
        self.stop.stop();
        self.has_stopped();
    }

    /// Waits for the standby's end and expects an orderly one.
    #[track_caller]
    pub fn has_stopped(self) {
        let end = self.end();
        assert!(matches!(end, End::Stopped { .. }), "it has taken over");
    }

    #[track_caller]
    pub fn end(self) -> End {
        wait_for("the end of the standby", || self.thread.is_finished());
        self.thread.join().unwrap()
    }
}

/// A machine whose guest runs `code` in ring 3.
pub fn machine(
    config: MachineConfig,
    code: &[u8],
    regs: kvm_regs,
) -> (Arc<Machine>, CommitAuthority) {
    machine_with(config, code, regs, Arc::new(Unfenced))
}

pub fn machine_with(
    config: MachineConfig,
    code: &[u8],
    regs: kvm_regs,
    fence: Arc<dyn Fence>,
) -> (Arc<Machine>, CommitAuthority) {
    let (ledger, authority) = new_gate();
    let machine = Machine::build(config, ledger, fence).unwrap();
    common::load(machine.memory(), code);
    let enter = |fd: &mut kvm_ioctls::VcpuFd| {
        common::enter(fd, regs);
        let mut sregs = fd.get_sregs().unwrap();
        (sregs.tr.base, sregs.tr.limit) = (TSS, 0x2fff);
        fd.set_sregs(&sregs).unwrap();
    };
    machine.vcpus().with_vcpu(0, enter).unwrap();
    (machine, authority)
}

/// Starts the engine, as `kemari run` does.
pub fn start_engine(
    machine: &Arc<Machine>,
    authority: CommitAuthority,
    arbiter: Option<Arc<dyn Arbiter>>,
    term: Term,
    options: EngineOptions,
) -> Arc<Engine> {
    machine.attach_backends(AttachOptions { shared_disks: true, append: false }).unwrap();
    let resources = EngineResources::new(arbiter.as_ref()).unwrap();
    let engine = Engine::begin(resources, machine.clone(), authority, arbiter, term, options);
    start_sealing(machine, &engine);
    engine
}

/// Installs the engine's sealer on the device thread; then the guest runs.
pub fn start_sealing(machine: &Arc<Machine>, engine: &Arc<Engine>) {
    let sealer = Sealer::new(engine.clone()).unwrap();
    machine
        .device_loop()
        .call(move |context| {
            context.add(Box::new(sealer));
        })
        .unwrap();
    machine.start().unwrap();
}

/// The number of threads of this process with this name.
pub fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread that has ended since then has no name.
    let name_of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(|task| name_of(task.unwrap())).filter(|found| found.trim() == name).count()
}

#[track_caller]
pub fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
pub fn wait_phase(engine: &Engine, phase: Phase) {
    let deadline = Instant::now() + PATIENCE;
    while engine.phase() != phase {
        let found = engine.phase();
        assert!(Instant::now() < deadline, "expected {phase:?}, found {found:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a side that has lost its standby knows whether it has the next term.
#[track_caller]
pub fn wait_decided(engine: &Engine) {
    wait_for("the primary's term", || {
        !matches!(engine.phase(), Phase::Doubting | Phase::Protected)
    });
}

/// A fence that does not answer while the test sets `silent`, like that of an unreachable arbiter.
pub struct Mute {
    pub fence: Arc<dyn Fence>,
    pub silent: AtomicBool,
}

impl Mute {
    pub fn new(fence: Arc<dyn Fence>) -> Arc<Self> {
        Arc::new(Self { fence, silent: AtomicBool::new(false) })
    }
}

impl Fence for Mute {
    fn ask(&self) -> Permission {
        match self.silent.load(Ordering::SeqCst) {
            true => Permission::Unknown,
            false => self.fence.ask(),
        }
    }

    fn term(&self) -> Option<u64> {
        self.fence.term()
    }
}

/// A fence that blocks the preparation of a takeover until the test releases it, as slow storage
/// does.
pub struct Held {
    fence: Arc<dyn Fence>,
    is_opening: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Held {
    pub fn new(fence: Arc<dyn Fence>) -> (Arc<Self>, Receiver<()>, Sender<()>) {
        let (is_opening, opening) = channel();
        let (let_go, go_on) = channel();
        (Arc::new(Self { fence, is_opening, go_on: go_on.into() }), opening, let_go)
    }
}

impl Fence for Held {
    fn ask(&self) -> Permission {
        self.fence.ask()
    }

    fn term(&self) -> Option<u64> {
        if std::thread::current().name() == Some("prepare") {
            let _ = self.is_opening.send(());
            // Blocks until the test releases the preparation.
            let _ = self.go_on.lock().unwrap().recv();
        }
        self.fence.term()
    }

    fn holder(&self) -> &str {
        self.fence.holder()
    }
}

/// The arbiter of one of the two sides; `name` identifies the side.
pub fn arbiter(dir: &Path, name: &str) -> Arc<dyn Arbiter> {
    let dir = dir.join("arbiter");
    std::fs::create_dir_all(&dir).unwrap();
    Arc::new(FileArbiter::open(&dir, "pair", name.to_owned()).unwrap())
}

/// An arbiter that answers claims, marks sessions and shows marks only when the test allows it.
pub struct Slow {
    arbiter: Arc<dyn Arbiter>,
    asked: Sender<Term>,
    answers: Mutex<Receiver<()>>,
    pub is_slow_to_mark: AtomicBool,
    /// How often it was asked to mark a session while it was slow at that.
    pub slow_marks: AtomicUsize,
    pub is_slow_to_look: AtomicBool,
    pub is_slow_to_counter_mark: AtomicBool,
    /// Whether the arbiter is unreachable.
    pub is_away: AtomicBool,
    /// Number of further looks that still find old contents.
    pub stale_looks: AtomicUsize,
}

impl Slow {
    pub fn new(arbiter: Arc<dyn Arbiter>) -> (Arc<Self>, Receiver<Term>, Sender<()>) {
        let (asked, is_asked) = channel();
        let (answer, answers) = channel();
        (
            Arc::new(Self {
                arbiter,
                asked,
                answers: answers.into(),
                is_slow_to_mark: AtomicBool::new(false),
                slow_marks: AtomicUsize::new(0),
                is_slow_to_look: AtomicBool::new(false),
                is_slow_to_counter_mark: AtomicBool::new(false),
                is_away: AtomicBool::new(false),
                stale_looks: AtomicUsize::new(0),
            }),
            is_asked,
            answer,
        )
    }
}

impl Arbiter for Slow {
    fn claim(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError> {
        self.asked.send(term).unwrap();
        let _ = self.answers.lock().unwrap().recv();
        self.arbiter.claim(term, why)
    }

    fn kind(&self) -> &'static str {
        self.arbiter.kind()
    }

    fn answers(&self) -> Result<(), ArbiterError> {
        match self.is_away.load(Ordering::SeqCst) {
            true => Err(ArbiterError::Etcd {
                endpoint: "here".to_owned(),
                problem: "it is away".to_owned(),
            }),
            false => self.arbiter.answers(),
        }
    }

    fn holder(&self) -> &str {
        self.arbiter.holder()
    }

    fn follow(&self, term: Term, holder: &str) {
        self.arbiter.follow(term, holder);
    }

    fn begin_on(&self, disk: Option<&DiskClaim>, seize: bool) -> Result<Term, ArbiterError> {
        self.arbiter.begin_on(disk, seize)
    }

    fn end(&self, term: Term) -> Result<(), ArbiterError> {
        self.arbiter.end(term)
    }

    fn mark(&self) -> Result<ArbiterView, ArbiterError> {
        if self.is_slow_to_mark.load(Ordering::SeqCst) {
            self.slow_marks.fetch_add(1, Ordering::SeqCst);
            let _ = self.answers.lock().unwrap().recv();
        }
        self.arbiter.mark()
    }

    fn counter_mark(&self) -> Result<ArbiterView, ArbiterError> {
        if self.is_slow_to_counter_mark.load(Ordering::SeqCst) {
            let _ = self.answers.lock().unwrap().recv();
        }
        self.arbiter.counter_mark()
    }

    fn read_marks(&self) -> Result<ArbiterView, ArbiterError> {
        if self.is_slow_to_look.load(Ordering::SeqCst) {
            let _ = self.answers.lock().unwrap().recv();
        }
        let view = self.arbiter.read_marks()?;
        let left = self.stale_looks.load(Ordering::SeqCst);
        if left == 0 {
            return Ok(view);
        }
        self.stale_looks.store(left - 1, Ordering::SeqCst);
        Ok(ArbiterView { counter_mark: "of an earlier session".to_owned(), ..view })
    }

    fn fence(&self) -> Arc<dyn Fence> {
        self.arbiter.fence()
    }
}

/// Connects each peer at `path` to `target`, until the test cuts the cable.
pub struct Cable {
    pub path: PathBuf,
    /// Bytes sent to the target.
    pub bytes: Arc<AtomicU64>,
    ends: Arc<Mutex<Vec<UnixStream>>>,
    /// Number of pieces sent to the target.
    forth: Arc<AtomicUsize>,
}

/// Called for each piece of data, with its length in bytes.
type Each = Box<dyn Fn(usize) + Send>;

impl Cable {
    pub fn new(path: PathBuf, target: PathBuf) -> Self {
        Self::slow(path, target, Duration::ZERO)
    }

    /// Delays each answer by `back`.
    pub fn slow(path: PathBuf, target: PathBuf, back: Duration) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let ends = Arc::new(Mutex::new(Vec::new()));
        let all = ends.clone();
        let (forth, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let counters = (forth.clone(), bytes.clone());
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, UnixStream::connect(&target)) else { return };
                let (pieces, bytes) = counters.clone();
                let forth = move |count: usize| {
                    pieces.fetch_add(1, Ordering::SeqCst);
                    bytes.fetch_add(count as u64, Ordering::SeqCst);
                };
                let ways: [(_, _, Each); 2] = [
                    (&near, &far, Box::new(forth)),
                    (&far, &near, Box::new(move |_| std::thread::sleep(back))),
                ];
                for (from, to, each) in ways {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    all.lock().unwrap().push(from.try_clone().unwrap());
                    std::thread::spawn(move || copy(from, to, &*each));
                }
            }
        });
        Self { path, bytes, ends, forth }
    }

    /// Number of pieces sent to the target.
    pub fn sent(&self) -> usize {
        self.forth.load(Ordering::SeqCst)
    }

    /// Ends the current connections; new connections work as before.
    pub fn cut(&self) {
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream, each: &dyn Fn(usize)) {
    let mut buffer = [0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        each(count);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
