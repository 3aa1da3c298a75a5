//! The standby's driver. It receives checkpoints for the protocol core, applies them to a machine
//! that does not run, and hands the machine over when the core has won the right to run it.
//!
//! ```text
//!   acceptor thread ─ links ─┐
//!   reader thread ─ frames ──┼─► events (bounded) ─► this thread: Standby ─► actions
//!   arbiter, operator ───────┘                        machine, memory, acknowledgements
//! ```

mod apply;
mod claim;
mod connection;
mod describe;
mod end;
mod former;
mod host;
mod hosted;
mod images;
mod input;
mod operator;
mod pulse;
mod question;
mod ready;
pub mod resources;
mod serve;
mod shown;
mod status;
mod strangers;

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use ft_core::standby::{Standby, StandbyOptions, TakenOver};
use ft_core::{LinkId, Term, Time};
use io_gate::host::CommitAuthority;
use kemari_arbiter::Arbiter;
use kemari_audit::Recorder;
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_machine::Machine;
use kemari_machine::boot::Boot;
use kemari_machine::config::MachineConfig;

use crate::descriptors::Reserve;
use crate::link::{Buffers, Link, LinkListener};
use crate::session::MachineState;

use describe::Describing;
use former::Former;
use hosted::Hosted;
use images::Images;
use input::QUEUE;
use pulse::Pulse;
use question::Question;
use resources::{Devices, Expected, Resources};

pub use host::{HostError, HostFactory, MachineFactory};
pub use input::{Input, ReplySender, SessionId, StopHandle};
pub use operator::OperatorRequest;
pub(crate) use ready::Preparing;
pub use shown::{Shown, shown};
pub use status::StandbyStatus;

/// A standby's identity and options.
#[derive(Clone, Debug)]
pub struct StandbyConfig {
    /// The virtual machine's name.
    pub name: String,
    /// The protocol core's options.
    pub options: StandbyOptions,
    /// The guest's boot files for a reset. With `None` the primary sends its own.
    pub boot: Option<Arc<Boot>>,
    /// The audit log of this side.
    pub audit: Option<Arc<Recorder>>,
}

/// How a standby has ended.
pub enum End {
    /// It has won the right to continue the guest.
    TakeOver(Box<Inheritance>),
    /// It was stopped.
    Stopped {
        /// Who or what stopped it.
        reason: String,
        /// Whether it had already won the term. That term is released.
        had_won: bool,
    },
}

/// A machine that this side may continue, and the proof of that right.
pub struct Inheritance {
    /// The machine. Its memory is that of the checkpoint.
    pub machine: Arc<Machine>,
    /// The authority over the machine's gate.
    pub authority: CommitAuthority,
    /// The rest of the checkpoint's state.
    pub state: MachineState,
    /// The proof that the term is won.
    pub taken: TakenOver,
    /// Why this side takes over.
    pub reason: String,
    /// When the term was won.
    pub won_at: Instant,
}

/// See the module.
pub struct StandbyDriver {
    config: StandbyConfig,
    arbiter: Option<Arc<dyn Arbiter>>,
    describing: Describing,
    core: Standby,
    hosted: Option<Hosted>,
    former: Former,
    link: Option<(LinkId, Link)>,
    /// The link and the number of the last accepted session.
    session: (LinkId, u64),
    next_link: u64,
    origin: Instant,
    inputs: SyncSender<Input>,
    queue: Receiver<Input>,
    /// P9: set by threads that must not wait for room in the queue.
    stop_wanted: Arc<AtomicBool>,
    status: Shown,
    /// The request to the arbiter that is sent or about to be sent.
    asked: Option<Question>,
    /// The last claimed term, and the configuration of its machine: the machine may be dropped
    /// before the answer comes.
    asked_for: Option<(Term, MachineConfig)>,
    /// Descriptors that are reserved for a takeover.
    reserve: Arc<Reserve>,
    pulse: Pulse,
    preparing: Preparing,
    /// Whether backends are being opened for an operator's takeover. The request is repeated when
    /// they are open.
    opens_for_operator: bool,
    /// The expected holder of the records beside the disks.
    expected: Arc<Expected>,
    /// The device thread that is checked for an answer.
    devices: Devices,
    /// Buffers for received frames.
    buffers: Buffers,
    /// The received files of the primary's kernel and initrd.
    images: Images,
}

impl StandbyDriver {
    /// Creates a standby that builds its machines with `factory`.
    pub fn new(
        mut config: StandbyConfig,
        arbiter: Option<Arc<dyn Arbiter>>,
        factory: Box<dyn MachineFactory>,
    ) -> Self {
        config.options.arbiter = arbiter.is_some();
        let (inputs, queue) = sync_channel(QUEUE);
        Self {
            core: Standby::new(config.options),
            status: Arc::new(Mutex::new(StandbyStatus::new(&config.name))),
            config,
            arbiter,
            describing: Describing::new(factory),
            hosted: None,
            former: Former::default(),
            link: None,
            session: (LinkId(0), 0),
            next_link: 1,
            origin: Instant::now(),
            inputs,
            queue,
            stop_wanted: Arc::default(),
            asked: None,
            asked_for: None,
            reserve: Arc::default(),
            pulse: Pulse::default(),
            preparing: Preparing::default(),
            opens_for_operator: false,
            expected: Arc::default(),
            devices: Devices::default(),
            buffers: Buffers::default(),
            images: Images::default(),
        }
    }

    /// Shares with `resources` which machine this side holds and what it has open, and uses their
    /// reserve of descriptors.
    #[must_use]
    pub fn with_resources(mut self, resources: &Resources) -> Self {
        self.reserve = resources.reserve();
        self.expected = resources.expected();
        self.devices = resources.devices();
        self.preparing = Preparing::telling(resources.prepared());
        self
    }

    /// The queue for an operator's requests.
    pub fn inputs(&self) -> SyncSender<Input> {
        self.inputs.clone()
    }

    /// A handle to stop the standby, for a thread that must not block.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle::new(self.stop_wanted.clone(), self.inputs.clone())
    }

    /// The status for operators.
    pub fn status(&self) -> Shown {
        self.status.clone()
    }

    /// Runs until the standby takes over or is stopped.
    ///
    /// # Errors
    /// When the process is out of threads.
    pub fn run(mut self, listener: LinkListener) -> std::io::Result<End> {
        let (inputs, reserve) = (self.inputs.clone(), self.reserve.clone());
        // It starts a thread for each unauthenticated connection.
        threads::start("acceptor", Role::Main, move || {
            strangers::accept(&listener, &inputs, &reserve);
        })?;
        let options = &self.config.options;
        self.pulse = Pulse::start(options.heartbeat_interval, options.setup_timeout)?;
        let mut end = self.serve();
        if let (End::Stopped { had_won, .. }, Some(question)) = (&mut end, &self.asked)
            && !question.withdraw()
        {
            *had_won = self.give_back(question.term());
        }
        self.let_go();
        Ok(end)
    }

    fn shown(&self) -> MutexGuard<'_, StandbyStatus> {
        shown(&self.status)
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
