//! The two sides of a pair, built from the product's own parts as the command line builds them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ft_core::Backoff;
use ft_core::handshake::MachineLayout;
use ft_core::policy::PolicyOptions;
use ft_core::primary::PrimaryOptions;
use ft_core::standby::StandbyOptions;
use io_gate::host::{CommitAuthority, new_gate};
use io_gate_host::GuestMemory;
use kemari_arbiter::{Arbiter, FileArbiter};
use kemari_machine::boot::Boot;
use kemari_machine::config::{BootSource, ConsoleConfig, MachineConfig};
use kemari_machine::{AttachOptions, Ended, Machine};
use kemari_replication::descriptors::Reserve;
use kemari_replication::link::{LinkAddr, LinkSecurity};
use kemari_replication::primary::{
    Engine, EngineOptions, EngineResources, Sealer, Step, StepHooks,
};
use kemari_replication::standby::resources::Resources;
use kemari_replication::standby::{
    End, HostError, Inheritance, MachineFactory, StandbyConfig, StandbyDriver, StopHandle,
};
use kemari_vmm::signals;

use vm_memory::{Bytes, GuestAddress};

use crate::guest::Orders;
use crate::scheduler::Host;
use crate::{faults, guest, judge, trace, watch};

const MEMORY: u64 = 4 << 20;
pub(crate) const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(200);
const SETUP_TIMEOUT: Duration = Duration::from_secs(4);

/// The files, sockets and settings that the sides share with the world.
#[derive(Clone)]
pub(crate) struct Places {
    pub(crate) dir: PathBuf,
    /// Each side has its own arbiter: a configuration error.
    pub(crate) two_arbiters: bool,
    /// What the guest does at which step.
    pub(crate) orders: Orders,
    /// Standbys have the guest's kernel file, as their command line permits; otherwise the primary
    /// sends the kernel.
    pub(crate) own_kernel: bool,
    /// The primary begins without a standby, and gets the standby's address later.
    pub(crate) late: bool,
}

impl Places {
    pub(crate) fn console(&self, host: Host) -> PathBuf {
        self.dir.join(format!("{}{host:?}", watch::CONSOLE))
    }

    /// The path of the primary's end of the cable to `standby`.
    pub(crate) fn near(&self, standby: Host) -> PathBuf {
        self.dir.join(format!("near-{standby:?}"))
    }

    /// The path on which the standby listens.
    pub(crate) fn far(&self, standby: Host) -> PathBuf {
        self.dir.join(format!("far-{standby:?}"))
    }

    fn kernel(&self) -> PathBuf {
        self.dir.join("kernel")
    }

    /// Writes the guest's kernel, before any side begins.
    pub(crate) fn write_kernel(&self) {
        std::fs::write(self.kernel(), self.orders.kernel())
            .expect("a file in the world's directory");
    }

    /// Begins a machine of the same name, as after a reboot; `Err` if the name is still taken.
    pub(crate) fn begin_again(&self) -> Result<(), String> {
        self.arbiter("operator").begin(false).map(drop).map_err(|error| error.to_string())
    }

    fn arbiter(&self, name: &str) -> Arc<dyn Arbiter> {
        let own = if self.two_arbiters { name } else { "shared" };
        let dir = self.dir.join(format!("arbiter-{own}"));
        // The other side may have created it.
        let _ = std::fs::create_dir(&dir);
        let open = || FileArbiter::open(&dir, "pair", name.to_owned());
        Arc::new(open().expect("an arbiter in the world's directory"))
    }

    fn config(&self, host: Host, memory: u64, cpus: u32) -> MachineConfig {
        let serial = ConsoleConfig::File(self.console(host));
        MachineConfig { serial, ..MachineConfig::bare("pair", memory, cpus) }
    }

    fn engine_options(&self, standby: Option<&PathBuf>) -> EngineOptions {
        EngineOptions {
            name: "pair".into(),
            standby: standby.cloned().map(LinkAddr::Unix),
            security: LinkSecurity::default(),
            audit: None,
            verify: false,
            delta_cache: 1 << 20,
            stall_timeout: Duration::from_secs(5),
            primary: PrimaryOptions {
                heartbeat_interval: HEARTBEAT_TIMEOUT / 10,
                heartbeat_timeout: HEARTBEAT_TIMEOUT,
                setup_timeout: SETUP_TIMEOUT,
                ack_timeout: Duration::from_secs(3),
                connect_retry: Backoff {
                    first: Duration::from_millis(5),
                    longest: Duration::from_millis(100),
                },
                ..PrimaryOptions::default()
            },
            policy: PolicyOptions::default(),
            steps: StepHooks { at: Some(Arc::new(|_, step| come_to(step))), state: None },
        }
    }
}

/// Reports a step of the product to the traps.
fn come_to(step: Step) {
    if step == Step::LogStarted {
        faults::called(faults::Call::LogStarted);
    }
}

/// What the world knows of a side.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) engine: Option<Arc<Engine>>,
    pub(crate) stop: Option<StopHandle>,
    /// Why the side has ended.
    pub(crate) ended: Option<String>,
    /// Whether the side has released its name at the arbiter.
    pub(crate) freed: bool,
}

pub(crate) type Shared = Arc<Mutex<Side>>;

fn note(side: &Shared, note: impl FnOnce(&mut Side)) {
    note(&mut side.lock().expect("not poisoned"));
}

/// Guest memory in the product's mapping.
struct Whole<'m>(&'m GuestMemory);

impl guest::Memory for Whole<'_> {
    fn read(&mut self, address: u64) -> u64 {
        self.0.read_obj(GuestAddress(address)).expect("an address in the guest's memory")
    }

    fn write(&mut self, address: u64, value: u64) {
        self.0.write_obj(value, GuestAddress(address)).expect("an address in the guest's memory");
    }
}

/// Runs the primary (`kemari run`).
pub(crate) fn run_primary(places: &Places, side: &Shared) {
    let arbiter = places.arbiter("primary");
    let (ledger, authority) = new_gate();
    let boot = BootSource { kernel: places.kernel(), initrd: None, cmdline: String::new() };
    let config = MachineConfig { boot: Some(boot), ..places.config(Host::A, MEMORY, 1) };
    let machine = Machine::build(config, ledger, arbiter.fence()).expect("a machine");
    machine.boot().expect("a kernel");
    let term = arbiter.begin(false).expect("the first term");
    let attach = AttachOptions { shared_disks: true, append: false };
    machine.attach_backends(attach).expect("what is behind the devices");
    let ends = machine.clone();
    signals::watch(move |number| ends.end(Ended::Signal(number))).expect("signal handlers");
    let near = places.near(Host::B);
    let options = places.engine_options(Some(&near).filter(|_| !places.late));
    judge::begins(Host::A, guest::check(&mut Whole(machine.memory())));
    let resources = EngineResources::new(Some(&arbiter)).expect("threads");
    let asked = Some(arbiter.clone());
    let engine = Engine::begin(resources, machine.clone(), authority, asked, term, options);
    start(&machine, &engine);
    to_the_end(Host::A, &engine, &arbiter, side);
}

fn start(machine: &Arc<Machine>, engine: &Arc<Engine>) {
    let sealer = Sealer::new(engine.clone()).expect("a sealer");
    let add = move |context: &mut kemari_machine::LoopContext<'_>| {
        context.add(Box::new(sealer));
    };
    machine.device_loop().call(add).expect("a device thread");
    machine.start().expect("a machine that runs");
}

fn to_the_end(host: Host, engine: &Arc<Engine>, arbiter: &Arc<dyn Arbiter>, side: &Shared) {
    note(side, |side| side.engine = Some(engine.clone()));
    let ended: Ended = engine.machine().wait();
    if let Some(term) = engine.conclude(&ended) {
        judge::is_free(host);
        match kemari_arbiter::end(arbiter, term) {
            Ok(()) => note(side, |side| side.freed = true),
            Err(error) => trace(&format!("the end could not be recorded: {error}")),
        }
    }
    engine.note_put_away(ended.clone());
    trace(&format!("ended: {ended:?}"));
    note(side, |side| side.ended = Some(format!("{ended:?}")));
}

struct Factory {
    places: Places,
    host: Host,
    arbiter: Arc<dyn Arbiter>,
}

impl MachineFactory for Factory {
    fn build(&self, layout: &MachineLayout) -> Result<(Arc<Machine>, CommitAuthority), HostError> {
        let (ledger, authority) = new_gate();
        let config = self.places.config(self.host, layout.memory_size(), layout.cpus);
        Ok((Machine::build(config, ledger, self.arbiter.fence())?, authority))
    }
}

/// Runs a standby (`kemari standby`).
pub(crate) fn run_standby(places: &Places, host: Host, side: &Shared) {
    let arbiter = places.arbiter(if host == Host::B { "standby" } else { "third" });
    if places.two_arbiters {
        // The term may still be held by an earlier, killed run.
        arbiter.begin(false).expect("the first term");
    }
    let options = StandbyOptions {
        heartbeat_interval: HEARTBEAT_TIMEOUT / 10,
        heartbeat_timeout: HEARTBEAT_TIMEOUT,
        setup_timeout: SETUP_TIMEOUT,
        ..StandbyOptions::default()
    };
    let boot = places.own_kernel.then(|| Boot::open(&places.kernel(), None, ""));
    let boot = boot.map(|boot| Arc::new(boot.expect("the kernel that the world has written")));
    let config = StandbyConfig { name: "pair".into(), options, boot, audit: None };
    let reserve: Arc<Reserve> = Arc::default();
    let resources =
        Resources::new(places.config(host, MEMORY, 1), None, Some(arbiter.clone()), reserve);
    let factory = Factory { places: places.clone(), host, arbiter: arbiter.clone() };
    let driver = StandbyDriver::new(config, Some(arbiter.clone()), Box::new(factory))
        .with_resources(&resources);
    note(side, |side| side.stop = Some(driver.stop_handle()));
    let listener = LinkAddr::Unix(places.far(host)).listen(LinkSecurity::default());
    match driver.run(listener.expect("a place to listen")).expect("threads") {
        End::Stopped { reason: why, .. } => {
            trace(&format!("the standby has ended: {why}"));
            note(side, |side| side.ended = Some(why));
        }
        End::TakeOver(inheritance) => take_over(places, host, &arbiter, *inheritance, side),
    }
}

fn take_over(
    places: &Places,
    host: Host,
    arbiter: &Arc<dyn Arbiter>,
    found: Inheritance,
    side: &Shared,
) {
    let Inheritance { machine, authority, state, taken, reason, .. } = found;
    trace(&format!("takes over: {reason}"));
    state.restore(&machine).expect("a state that was tried");
    let attach = AttachOptions { shared_disks: true, append: true };
    machine.attach_backends(attach).expect("what is behind the devices");
    judge::begins(host, guest::check(&mut Whole(machine.memory())));
    let options = places.engine_options(None);
    let resources = EngineResources::new(Some(arbiter)).expect("threads");
    let asked = Some(arbiter.clone());
    let engine =
        Engine::after_takeover(resources, machine.clone(), authority, asked, taken, options);
    start(&machine, &engine);
    to_the_end(host, &engine, arbiter, side);
}
