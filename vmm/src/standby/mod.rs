//! The standby's driver: it receives checkpoints for the protocol core, applies them to a machine
//! that does not run, and hands the machine over when the core has won the right to it.
//!
//! ```text
//!   acceptor thread ─ links ─┐
//!   reader thread ─ frames ──┼─► events (bounded) ─► this thread: Standby ─► actions
//!   arbiter, operator ───────┘                        machine, memory, acknowledgements
//! ```

mod describe;
mod former;
mod host;
mod images;
mod pulse;
mod question;
mod ready;
pub mod resources;
mod status;
mod strangers;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ft_core::handshake::BootSource;
use ft_core::pages::{PAGE_SIZE, is_zero};
use ft_core::standby::{
    Action, CheckedPages, Checkpoint, Event, Phase, Report, Standby, StandbyOptions, TakenOver,
};
use ft_core::wire::{Frame, Hashes, Kind, Message, Outgoing};
use ft_core::{Illegal, LinkId, Term, Time};
use io_gate::host::CommitAuthority;
use kemari_arbiter::{Arbiter, ask};
use kemari_audit::{Recorder, Won};
use kemari_confine::logging::STATE;
use kemari_confine::seccomp::{self, Role};
use kemari_confine::threads;
use kemari_hypervisor::kvm::trial::{Trial, TrialError};
use kemari_support::aside::Aside;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::Boot;
use crate::config::MachineConfig;
use crate::engine::{MachineState, ReadEnd, StateBlobError, Watched, hash_memory, read_frames};
use crate::link::{Buffers, Link, LinkListener};
use crate::machine::{LoopError, Machine, disks};

use describe::Describing;
use former::Former;
use images::Images;
use pulse::Pulse;
use question::Question;
use resources::{Devices, Expected, Reserve, Resources};

pub use host::{HostError, MachineFactory};
pub(crate) use ready::Preparing;
pub use status::StandbyStatus;

/// Inputs that wait for this thread, at most: the rest waits in the socket (constant memory).
const QUEUE: usize = 16;
/// Frames of a checkpoint that become one input, at most: this thread is woken for some of them together, and checks them
/// while the next ones are received.
const TOGETHER: usize = 8;
/// Bytes in an input that is made of several frames, but for the last of these.
const BYTES_TOGETHER: usize = 4 << 20;
/// The device thread takes on a checkpoint's state in a fraction of it.
const SOON: Duration = Duration::from_millis(20);
/// P9: what it has not taken on for so long is refused: the device thread is stuck, and would not serve the guest either.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
/// A checkpoint of so many pages is done with long before anybody misses this side.
const FEW_PAGES: u64 = 1024;
/// A primary that does not take an acknowledgement for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a standby that was told to end waits for the answer of an arbiter.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// What this side says of itself, and what it can be tuned by.
#[derive(Clone, Debug)]
pub struct StandbyConfig {
    /// The virtual machine's name.
    pub name: String,
    /// The protocol core's options.
    pub options: StandbyOptions,
    /// What the guest boots when it is reset; without, the primary's files are sent.
    pub boot: Option<Arc<Boot>>,
    /// Where it is recorded what this side did, and when.
    pub audit: Option<Arc<Recorder>>,
}

/// What happens to a standby: for the threads that feed it.
pub enum Input {
    /// For the core.
    Event(Event),
    /// For the core, in this order.
    Frames(LinkId, Vec<Frame>),
    /// Somebody has connected, may, and has said Hello.
    Link(Link, String, Box<Frame>),
    /// For the core, from an operator, who is told whether it was taken; with the session that he has seen, where the wish is for
    /// that one only.
    Operator(Event, Option<SessionId>, Answer),
    /// What a takeover without an arbiter needs is open, or cannot be, for a wish of this session.
    Opened(SessionId, Result<(), String>, Answer),
    /// The operator wants new keys on the link.
    RotateKeys(Answer),
}

/// Tells an operator whether a wish was taken, or why not. Has room for one answer, so that nobody waits.
pub type Answer = SyncSender<Result<(), String>>;

/// A session with a primary, by this side's number for it; 0: none.
pub type SessionId = u64;

/// Ends a standby, without waiting for it.
#[derive(Clone)]
pub struct StopHandle {
    wanted: Arc<AtomicBool>,
    inputs: SyncSender<Input>,
}

impl StopHandle {
    /// The standby ends when it is done with the input that it is at.
    pub fn stop(&self) {
        self.wanted.store(true, Ordering::Release);
        // Only to wake it: a full queue, too, has it look at what is wanted before it waits. One that has ended needs no stopping.
        let _ = self.inputs.try_send(Input::Event(Event::Tick));
    }
}

/// How a standby ends.
pub enum End {
    /// It has the right to go on with the guest.
    TakeOver(Box<Inheritance>),
    /// It was told to end.
    Stopped {
        /// By whom, or what.
        reason: String,
        /// Whether it had won the right to go on by then, which is given back.
        had_won: bool,
    },
}

/// A machine to go on with, and the right to.
pub struct Inheritance {
    /// The machine; its memory is the checkpoint's.
    pub machine: Arc<Machine>,
    /// Over the machine's gate.
    pub authority: CommitAuthority,
    /// The checkpoint's other state.
    pub state: MachineState,
    /// The right.
    pub taken: TakenOver,
    /// What led to it.
    pub reason: String,
    /// When the right was won.
    pub won_at: Instant,
}

struct Hosted {
    session: SessionId,
    machine: Arc<Machine>,
    authority: CommitAuthority,
    /// The primary: its term, and what it is called.
    primary: (Term, String),
    /// What the primary boots.
    boot: Option<BootSource>,
    /// The state of the checkpoint that was tried last, and of the one that was applied last.
    tried: Option<MachineState>,
    applied: Option<MachineState>,
    /// What states are tried on, from a session's first checkpoint on.
    trial: Option<Trial>,
}

impl Hosted {
    fn trial(&mut self) -> Result<&mut Trial, StateBlobError> {
        Self::trial_of(&self.machine, &mut self.trial)
    }

    fn trial_of<'t>(
        machine: &Machine,
        trial: &'t mut Option<Trial>,
    ) -> Result<&'t mut Trial, StateBlobError> {
        match trial {
            Some(trial) => Ok(trial),
            none => Ok(none.insert(MachineState::trial(machine)?)),
        }
    }
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
    /// The session that was accepted last, and its link.
    session: (LinkId, u64),
    next_link: u64,
    origin: Instant,
    inputs: SyncSender<Input>,
    queue: Receiver<Input>,
    /// P9: asked for by threads that do not wait for room in the queue.
    stop_wanted: Arc<AtomicBool>,
    status: Arc<Mutex<StandbyStatus>>,
    /// What the arbiter is being asked, or is about to be.
    asked: Option<Question>,
    /// The term that was asked for last, and for which machine, which may be given up before the answer comes.
    asked_for: Option<(Term, MachineConfig)>,
    /// Descriptors for a takeover.
    reserve: Arc<Reserve>,
    pulse: Pulse,
    preparing: Preparing,
    /// For an operator, whose wish comes again then.
    opens_for_operator: bool,
    /// Whose the records beside the disks are to be.
    expected: Arc<Expected>,
    /// Whose device thread is to answer.
    devices: Devices,
    /// What frames come in.
    buffers: Buffers,
    /// What came of the primary's kernel and initrd.
    images: Images,
}

impl StandbyDriver {
    /// A standby that makes its machines by `factory`.
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

    /// Tells `resources` whose machine this side holds, and what it has open; lets go of their reserve when a takeover needs it.
    #[must_use]
    pub fn with_resources(mut self, resources: &Resources) -> Self {
        self.reserve = resources.reserve();
        self.expected = resources.expected();
        self.devices = resources.devices();
        self.preparing = Preparing::telling(resources.prepared());
        self
    }

    /// Where the operator's wishes go.
    pub fn inputs(&self) -> SyncSender<Input> {
        self.inputs.clone()
    }

    /// How it is ended by whoever must not wait for it.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { wanted: self.stop_wanted.clone(), inputs: self.inputs.clone() }
    }

    /// What an operator may see of it.
    pub fn status(&self) -> Arc<Mutex<StandbyStatus>> {
        self.status.clone()
    }

    /// Runs until the standby takes over or is told to end.
    ///
    /// # Errors
    /// When the process is out of threads.
    pub fn run(mut self, listener: LinkListener) -> std::io::Result<End> {
        let (inputs, reserve) = (self.inputs.clone(), self.reserve.clone());
        threads::start("acceptor", move || {
            // It starts a thread for each stranger.
            seccomp::enter(Role::Main, &[]);
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

    fn serve(&mut self) -> End {
        loop {
            let input = self.next_input();
            if let Some(waits) = self.asked.as_mut().and_then(Question::newly_overdue) {
                log::warn!(target: STATE, "{waits}");
            }
            let event = match input {
                Some(Input::Event(event)) => event,
                Some(Input::Frames(link, frames)) => {
                    for frame in frames {
                        if let Some(end) = self.event(Event::Frame { link, frame }) {
                            return end;
                        }
                    }
                    continue;
                }
                Some(Input::Link(link, peer, hello)) => match self.admit(link, &peer) {
                    // The core ignores what a link says that it has turned away.
                    Some(link) => Event::Frame { link, frame: *hello },
                    None => continue,
                },
                Some(Input::Operator(event, said, answer)) => {
                    if let Some(end) = self.operator(event, said, answer) {
                        return end;
                    }
                    continue;
                }
                Some(Input::Opened(said, opened, answer)) => {
                    if let Some(end) = self.opened(said, opened, answer) {
                        return end;
                    }
                    continue;
                }
                Some(Input::RotateKeys(answer)) => {
                    // Whoever asked may have gone.
                    let _ = answer.try_send(self.rotate_keys());
                    continue;
                }
                None => Event::Tick,
            };
            if let Some(end) = self.event(event) {
                return end;
            }
        }
    }

    /// A standby that was told to end while it asked for `term`, and may be given it: nobody will act in it, so it is free.
    /// Whether it was given it.
    fn give_back(&self, term: Term) -> bool {
        let Some(arbiter) = &self.arbiter else { return false };
        let deadline = Instant::now() + LAST_ANSWER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let given_back = match self.queue.recv_timeout(left) {
                Ok(Input::Event(Event::ArbiterGranted { .. })) => {
                    if let Some(hosted) = &self.hosted {
                        give_disks_back(hosted.machine.config().clone(), term, arbiter.holder());
                    }
                    kemari_arbiter::end(arbiter, term)
                }
                Ok(Input::Event(
                    Event::ArbiterDenied { .. } | Event::ArbiterUnreachable { .. },
                )) => return false,
                Ok(_) => continue,
                Err(_) => {
                    log::warn!(
                        "the arbiter has not answered for {LAST_ANSWER:?} whether this side has term {term}: the next start may \
                         need --seize"
                    );
                    return false;
                }
            };
            if let Err(error) = given_back {
                log::warn!(
                    "term {term} was won and is not free, the next start needs --seize: {error}"
                );
            }
            return true;
        }
    }

    /// The next input; none when the core's deadline has passed and no input waits: frames that
    /// have come are given before a tick, or a busy standby would suspect a primary that speaks.
    fn next_input(&self) -> Option<Input> {
        if self.stop_wanted.swap(false, Ordering::AcqRel) {
            return Some(Input::Event(Event::OperatorStop));
        }
        match self.queue.try_recv() {
            Ok(input) => return Some(input),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => unreachable!("this thread holds a sender itself"),
        }
        let deadline = self.core.next_deadline().map(|deadline| deadline.since(self.now()));
        let overdue = self.asked.as_ref().and_then(Question::overdue_in);
        let wait = deadline.into_iter().chain(overdue).min();
        match self.queue.recv_timeout(wait.unwrap_or(Duration::from_secs(3600))) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("this thread holds a sender itself")
            }
        }
    }

    /// Starts to read from a link, after the Hello that came over it.
    fn admit(&mut self, link: Link, peer: &str) -> Option<LinkId> {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let (inputs, buffers) = (self.inputs.clone(), self.buffers.clone());
        let every = self.config.options.heartbeat_interval;
        let reader = link.set_write_timeout(Some(WRITE_TIMEOUT)).and_then(|()| link.try_clone());
        let started = reader.and_then(|reader| {
            threads::start("reader", move || {
                seccomp::enter(Role::LinkReader, &[]);
                read(reader, id, every, &buffers, &inputs);
            })
        });
        if let Err(error) = started {
            log::warn!("a connection from {peer} could not be served: {error}");
            return None;
        }
        let secured = if link.is_secured() { "TLS" } else { "not encrypted" };
        log::info!("connection from {peer} ({secured})");
        if self.link.is_some() {
            // The core answers on this link and has it closed: keep the current one's place.
            self.refuse_second(id, link);
        } else {
            self.link = Some((id, link));
            let end = self.event(Event::Connected { link: id });
            debug_assert!(end.is_none(), "a new connection ends no standby");
        }
        Some(id)
    }

    /// One primary at a time: whoever else connects is told so, by the core's own words.
    fn refuse_second(&mut self, id: LinkId, link: Link) {
        let current = self.link.replace((id, link));
        let end = self.event(Event::Connected { link: id });
        debug_assert!(end.is_none(), "a new connection ends no standby");
        if self.link.is_none() {
            self.link = current;
        } else if let Some((_, old)) = current {
            // The core has taken the newcomer: a primary of a later term.
            old.shutdown();
        }
    }

    fn rotate_keys(&self) -> Result<(), String> {
        let (_, link) = self.link.as_ref().ok_or("expected a link to a primary, found none")?;
        if !link.is_secured() {
            return Err("expected a link with --tls, found one without".to_owned());
        }
        // Where it fails its reader finds the same, and tells the core.
        link.rotate_keys()
            .map_err(|error| format!("the keys of the link are unchanged: {error}"))?;
        log::info!("the link has new keys");
        Ok(())
    }

    fn held_session(&self) -> SessionId {
        self.hosted.as_ref().map_or(0, |hosted| hosted.session)
    }

    /// P2: an operator who wanted one checkpoint to be used, or given up, has not spoken of any later one.
    fn check_session(&self, said: SessionId) -> Result<(), String> {
        if said == self.held_session() {
            return Ok(());
        }
        Err("expected the session in which this was said, found that it has ended: give the command again if you still want it".to_owned())
    }

    fn operator(&mut self, event: Event, said: Option<SessionId>, answer: Answer) -> Option<End> {
        if let Some(Err(ended)) = said.map(|said| self.check_session(said)) {
            // Whoever asked may have gone.
            let _ = answer.try_send(Err(ended));
            return None;
        }
        if event == Event::OperatorTakeOver && self.may_be_taken_over() {
            let prepared = self.hosted.as_ref().is_some_and(|hosted| hosted.machine.is_prepared());
            if !prepared && self.opens_for_operator {
                let why = "expected one take-over at a time, found that one is under way";
                // Whoever asked may have gone.
                let _ = answer.try_send(Err(why.to_owned()));
                return None;
            }
            if !prepared && self.core.lack().is_none_or(|lack| !lack.blocks) {
                self.prepare_for_operator(answer);
                return None;
            }
            self.opens_for_operator = false;
        }
        let mut taken = Ok(());
        let end = self.event_or(event, |illegal| taken = Err(illegal.to_string()));
        if taken.is_err() && self.may_be_taken_over() {
            // P9: there is no takeover after all, and the door is open to a primary that was allowed to go on.
            self.reserve.renew();
        }
        // Whoever asked may have gone.
        let _ = answer.try_send(taken);
        end
    }

    /// Whether an operator's wish can lead to a takeover: where the operator decides, or from a primary that lives.
    fn may_be_taken_over(&self) -> bool {
        match self.core.phase() {
            Phase::WaitingForOperator => true,
            phase => phase == Phase::Ready && self.arbiter.is_some(),
        }
    }

    /// What can go wrong is tried before. Without an arbiter the operator's word is all that a takeover needs; with one the primary's
    /// output is held from the wish on, as nothing is acknowledged any more: it is not to wait for what is opened here.
    fn prepare_for_operator(&mut self, answer: Answer) {
        let Some(hosted) = &self.hosted else { return };
        let (machine, said) = (hosted.machine.clone(), hosted.session);
        self.reserve.release();
        self.opens_for_operator = true;
        let (preparing, inputs, refused) =
            (self.preparing.clone(), self.inputs.clone(), answer.clone());
        let arbiter = self.arbiter.clone();
        let prepare = move || {
            let opened = preparing.prepare(&machine);
            drop(machine);
            let opened = match (opened, arbiter) {
                (Ok(()), Some(arbiter)) => preparing.can_ask(arbiter),
                (opened, _) => opened,
            };
            // A standby that has ended needs none of it.
            let _ = inputs.send(Input::Opened(said, opened, answer));
        };
        if let Err(error) = std::thread::Builder::new().name("takeover".to_owned()).spawn(prepare) {
            self.opens_for_operator = false;
            self.reserve.renew();
            let _ =
                refused.try_send(Err(format!("cannot start a thread for the takeover: {error}")));
        }
    }

    /// The wish goes on, unless its session has ended meanwhile.
    fn opened(
        &mut self,
        said: SessionId,
        opened: Result<(), String>,
        answer: Answer,
    ) -> Option<End> {
        let session = self.check_session(said);
        // Of a later session another wish may be under way.
        self.opens_for_operator &= session.is_err();
        match (session, opened) {
            (Ok(()), Ok(())) => self.operator(Event::OperatorTakeOver, Some(said), answer),
            (Ok(()), Err(reason)) => {
                // Whoever asked may have gone.
                let _ = answer.try_send(Err(format!("cannot take over: {reason}")));
                match self.core.phase() {
                    // The primary goes on, and this side holds what it held.
                    Phase::Ready => self.reserve.renew(),
                    Phase::WaitingForOperator => return self.event(Event::CannotGoOn { reason }),
                    // P7: the primary has gone out of reach meanwhile. What is held is kept, as all is tried again for the arbiter.
                    _ => {}
                }
                None
            }
            (Err(ended), _) => {
                let _ = answer.try_send(Err(ended));
                None
            }
        }
    }

    fn event(&mut self, event: Event) -> Option<End> {
        self.event_or(event, |illegal| log::debug!("{illegal}"))
    }

    /// Gives the core an event, and what follows from it; `refused` is told what the core does not take.
    fn event_or(&mut self, event: Event, mut refused: impl FnMut(Illegal)) -> Option<End> {
        let mut events = vec![self.if_it_can_go_on(event)];
        while let Some(event) = events.pop() {
            if matches!(
                event,
                Event::ArbiterGranted { .. }
                    | Event::ArbiterDenied { .. }
                    | Event::ArbiterUnreachable { .. }
                    | Event::NotReady { .. }
            ) {
                self.asked = None;
            }
            if matches!(event, Event::CannotGoOn { .. }) {
                self.opens_for_operator = false;
            }
            let won = match &event {
                Event::ArbiterGranted { term } => Some(*term),
                _ => None,
            };
            match self.core.handle(self.now(), event) {
                Ok(actions) => {
                    for action in actions {
                        match self.perform(action) {
                            Next::Nothing => {}
                            Next::Event(event) => events.insert(0, event),
                            Next::End(end) => {
                                self.show();
                                return Some(end);
                            }
                        }
                    }
                }
                Err(illegal) => {
                    if let Some(term) = won {
                        self.give_free(term);
                    }
                    refused(illegal);
                }
            }
        }
        // What waits holds nothing: no lock of a disk either, which a primary that was refused needs when it comes corrected.
        if self.core.phase() == Phase::Waiting {
            self.let_go();
        }
        self.show();
        None
    }

    /// P9: what is held is given up; nothing waits long for its end.
    fn let_go(&mut self) {
        self.devices.set(None);
        if let Some(hosted) = self.hosted.take() {
            self.former.take_apart(hosted);
        }
    }

    /// P7: `term` was won and is wanted no more. Nobody acts in it, so that nobody else need be kept from the next one, or from
    /// the disks.
    fn give_free(&mut self, term: Term) {
        let Some(arbiter) = self.arbiter.clone() else { return };
        let machine = self.asked_for.take_if(|(asked, _)| *asked == term);
        let end = move || {
            if let Some((term, machine)) = machine {
                give_disks_back(machine, term, arbiter.holder());
            }
            match arbiter.end(term) {
                Ok(()) => log::warn!("term {term} was won when it was wanted no more: it is free"),
                Err(error) => log::warn!("term {term} was won and is not free: {error}"),
            }
        };
        if let Err(error) = threads::start("arbiter", end) {
            log::warn!("term {term} was won and is not free: {error}");
        }
    }

    fn perform(&mut self, action: Action) -> Next {
        match action {
            Action::Describe { hello } => Next::Event(self.describe(&hello)),
            Action::Send { link, frame } => self.send(link, &frame),
            Action::CloseLink { link, reason } => {
                if self.link.as_ref().is_some_and(|(id, _)| *id == link)
                    && let Some((id, link)) = self.link.take()
                {
                    log::info!("link closed: {reason}");
                    link.shutdown();
                    // Not so for a second primary that was turned away.
                    if id == self.session.0 {
                        self.record(kemari_audit::Event::Left { session: self.session.1 });
                    }
                }
                Next::Nothing
            }
            Action::ApplyBulk(pages) => {
                self.apply_bulk(&pages);
                self.buffers.give(pages.into_bytes());
                Next::Nothing
            }
            Action::StoreImages(bytes) => {
                self.images.take(&bytes.0);
                self.buffers.give(bytes.0);
                Next::Nothing
            }
            Action::Check(checkpoint) => {
                self.give_signs_of_life_for(&checkpoint);
                let checked = self.check(&checkpoint);
                self.pulse.stop();
                Next::Event(checked)
            }
            Action::Apply(checkpoint) => {
                self.give_signs_of_life_for(&checkpoint);
                let applied = self.apply(&checkpoint);
                self.pulse.stop();
                if let Some(checkpoint) = Arc::into_inner(checkpoint) {
                    checkpoint.into_buffers().for_each(|buffer| self.buffers.give(buffer));
                }
                applied
            }
            Action::AskArbiter { term, why } => {
                // From here on they are needed.
                self.reserve.release();
                self.ask_arbiter(term, why)
            }
            Action::TakeOver { taken, reason } => self.take_over(taken, reason),
            Action::Discard { reason } => {
                log::info!("checkpoint discarded: {reason}");
                self.record(kemari_audit::Event::Discarded { session: self.session.1 });
                self.let_go();
                self.opens_for_operator = false;
                if self.asked.as_ref().is_some_and(Question::withdraw) {
                    self.asked = None;
                }
                self.expected.set(None);
                self.reserve.renew();
                Next::Nothing
            }
            Action::Stop { reason } => Next::End(End::Stopped { reason, had_won: false }),
            Action::Report(report) => {
                let is_new = self.shown().report(&report);
                if let Report::WillNotTakeOver { .. } | Report::WaitingForOperator { .. } = report {
                    self.reserve.renew();
                }
                match &report {
                    _ if !is_new => log::debug!("{report}"),
                    Report::Verified { verified, .. } if verified.agree => log::debug!("{report}"),
                    Report::Verified { .. } => log::error!(target: STATE, "{report}"),
                    Report::Filling { .. } | Report::Ready { .. } | Report::Whole => {
                        log::info!(target: STATE, "{report}");
                    }
                    _ => log::warn!(target: STATE, "{report}"),
                }
                Next::Nothing
            }
        }
    }

    /// Whether the guest can be reset here (P7): the files that it boots are this side's own, or have come.
    fn ready_to_boot(&self) -> Result<(), String> {
        let Some(Hosted { machine, boot: Some(source), .. }) = &self.hosted else { return Ok(()) };
        let boot = match &self.config.boot {
            Some(own) => own.clone(),
            None => Arc::new(self.images.boot(source)?),
        };
        machine.set_boot_files(boot);
        Ok(())
    }

    fn record(&self, event: kemari_audit::Event) {
        if let Some(audit) = &self.config.audit {
            audit.record(event);
        }
    }

    /// What lets the primary do something is on record before it is said (P1).
    fn record_word(&mut self, link: LinkId, frame: &Outgoing) {
        let Some(audit) = self.config.audit.clone() else { return };
        let (epoch, term) = (frame.epoch.0, frame.term.0);
        match &frame.message {
            Message::Welcome(ours) => {
                self.session = (link, ours.session);
                audit.record(kemari_audit::Event::Accepted { term, session: ours.session });
            }
            Message::Ack => {
                let tried = self.hosted.as_ref().and_then(|hosted| hosted.tried.as_ref());
                let next = tried.map_or(0, |state| state.next_id().0);
                let session = self.session.1;
                audit.settle(kemari_audit::Event::AckSent { epoch, term, session, next });
            }
            Message::Bye { session, .. } => {
                audit.settle(kemari_audit::Event::GaveUp { session: *session });
            }
            _ => {}
        }
    }

    fn send(&mut self, to: LinkId, frame: &Outgoing) -> Next {
        if self.link.as_ref().is_some_and(|(id, _)| *id == to) {
            self.record_word(to, frame);
            if matches!(frame.message, Message::Welcome(_)) {
                self.follow();
            }
        }
        let Some((_, link)) = self.link.as_mut().filter(|(id, _)| *id == to) else {
            return Next::Nothing;
        };
        let mut bytes = Vec::new();
        let sent = frame
            .encode(&mut bytes)
            .map_err(std::io::Error::other)
            .and_then(|_| link.write_all(&bytes));
        if let Err(error) = sent {
            // That the link is lost is for its reader to say, after what has come: a primary that has said good-bye has closed,
            // and its last word may still be unread here (P7).
            log::debug!("cannot send the primary any more: {error}");
            link.shutdown();
        }
        Next::Nothing
    }

    /// A primary is let in. P2: this side claims the next term as the successor of this process, and of no other.
    fn follow(&self) {
        let primary = self.hosted.as_ref().map(|hosted| hosted.primary.clone());
        if let (Some(arbiter), Some((term, holder))) = (&self.arbiter, &primary) {
            arbiter.follow(*term, holder);
        }
        self.expected.set(primary);
        self.devices.set(self.hosted.as_ref().map(|hosted| hosted.machine.device_loop().clone()));
    }

    fn apply_bulk(&mut self, pages: &CheckedPages) {
        if let Some(hosted) = &self.hosted {
            let written =
                pages.for_each_piece(|address, page| fill(&hosted.machine, address, page));
            written.expect("P4: the core has checked every address against the machine's layout");
        }
    }

    /// Where the work with it may take long.
    fn give_signs_of_life_for(&mut self, checkpoint: &Checkpoint) {
        let first = self.hosted.as_ref().is_some_and(|hosted| hosted.applied.is_none());
        if first || checkpoint.pages() > FEW_PAGES || checkpoint.hashes().is_some() {
            self.give_signs_of_life();
        }
    }

    /// Until the pulse is stopped: this thread is about to do work that may take long, and hears
    /// and says nothing meanwhile.
    fn give_signs_of_life(&mut self) {
        let now = self.now();
        let Some((id, frame)) = self.core.sign_of_life(now) else { return };
        let Some((_, link)) = self.link.as_ref().filter(|(current, _)| *current == id) else {
            return;
        };
        let mut bytes = Vec::new();
        // A link that cannot be written to is found out by whoever reads it.
        if frame.encode(&mut bytes).is_ok()
            && let Ok(link) = link.try_clone()
        {
            self.pulse.give(link, bytes);
        }
    }

    /// Whether the checkpoint can be applied (P4): its state decodes, and the devices and KVM take
    /// it on.
    fn check(&mut self, checkpoint: &Checkpoint) -> Event {
        let epoch = checkpoint.epoch();
        let refuse = |reason: String| Event::NotApplicable { epoch, reason };
        if self.hosted.as_ref().is_some_and(|hosted| hosted.applied.is_none())
            && let Err(reason) = self.ready_to_boot()
        {
            return refuse(reason);
        }
        let blob: Vec<u8> = checkpoint.state().flatten().copied().collect();
        match self.try_state(&blob) {
            Ok(state) if state.epoch() == epoch => {
                if let Some(hosted) = &mut self.hosted {
                    hosted.tried = Some(state);
                }
                Event::Applicable { epoch }
            }
            Ok(state) => refuse(format!("its state is of epoch {}", state.epoch())),
            Err(reason) => refuse(reason.to_string()),
        }
    }

    fn try_state(&mut self, blob: &[u8]) -> Result<MachineState, Box<dyn std::error::Error>> {
        let hosted = self.hosted.as_ref().ok_or("there is no machine for it")?;
        let state = MachineState::decode(blob, &hosted.machine)?;
        let answer = state.try_on(&hosted.machine)?;
        let mut tried = answer.within(SOON);
        if matches!(tried, Err(LoopError::Silent(_))) {
            self.give_signs_of_life();
            tried = answer.within(DEVICE_PATIENCE);
        }
        tried??;
        let hosted = self.hosted.as_mut().ok_or("there is no machine for it")?;
        state.admit(hosted.trial()?)?;
        Ok(state)
    }

    fn apply(&mut self, checkpoint: &Checkpoint) -> Next {
        let Some(hosted) = &mut self.hosted else {
            unreachable!("a checkpoint is applied after it was checked against the machine");
        };
        let applied =
            checkpoint.for_each_piece(|address, piece| write(&hosted.machine, address, piece));
        applied.expect("P4: the core has checked every address against the machine's layout");
        hosted.applied = hosted.tried.take();
        self.shown().applied(checkpoint.pages());
        match checkpoint.hashes() {
            None => Next::Nothing,
            Some(_) => match self.hash() {
                Ok(hashes) => Next::Event(Event::Hashed { epoch: checkpoint.epoch(), hashes }),
                Err(error) => {
                    let (epoch, reason) = (checkpoint.epoch(), error.to_string());
                    Next::Event(Event::CannotHash { epoch, reason })
                }
            },
        }
    }

    fn hash(&self) -> Result<Hashes, Box<dyn std::error::Error>> {
        let hosted = self.hosted.as_ref().ok_or("there is no machine")?;
        let state = hosted.applied.as_ref().ok_or("there is no checkpoint")?;
        Ok(Hashes {
            memory: hash_memory(hosted.machine.memory())?,
            state: state.hash_after_restore(&hosted.machine, DEVICE_PATIENCE)?,
        })
    }

    /// Without an arbiter the operator's word is all that a takeover needs: also then it is tried before.
    fn if_it_can_go_on(&mut self, event: Event) -> Event {
        if event != Event::OperatorTakeOver || self.core.phase() != Phase::WaitingForOperator {
            return event;
        }
        match self.try_applied() {
            Ok(()) => event,
            Err(reason) => Event::CannotGoOn { reason },
        }
    }

    /// Whether this host's KVM takes the state that a takeover would begin with. What cannot be tried, as the host is out of
    /// something, is not refused.
    fn try_applied(&mut self) -> Result<(), String> {
        let Some(Hosted { machine, applied: Some(state), trial, .. }) = &mut self.hosted else {
            return Err("there is no checkpoint".to_owned());
        };
        match Hosted::trial_of(machine, trial).and_then(|trial| state.attempt(trial)) {
            Ok(()) => Ok(()),
            Err(StateBlobError::Trial(error @ TrialError::State(_))) => Err(error.to_string()),
            Err(error) => {
                log::warn!(
                    "the checkpoint could not be tried once more before the takeover: {error}"
                );
                Ok(())
            }
        }
    }

    fn ask_arbiter(&mut self, term: Term, why: String) -> Next {
        let Some(arbiter) = self.arbiter.clone() else { return Next::Nothing };
        // P4: before the term is won, not after. In a session only states of a kind that was new were tried.
        if let Err(reason) = self.try_applied() {
            return Next::Event(Event::CannotGoOn { reason });
        }
        let Some(machine) = self.hosted.as_ref().map(|hosted| hosted.machine.clone()) else {
            return Next::Nothing;
        };
        let event = move |answer| match answer {
            kemari_arbiter::Answer::Granted => Event::ArbiterGranted { term },
            kemari_arbiter::Answer::Denied { holder } => Event::ArbiterDenied { term, holder },
            kemari_arbiter::Answer::Unreachable { reason } => Event::ArbiterUnreachable { reason },
        };
        let question = Question::new(term);
        self.asked = Some(question.clone());
        self.asked_for = Some((term, machine.config().clone()));
        let (preparing, inputs) = (self.preparing.clone(), self.inputs.clone());
        let asking = move || {
            // P9: all that can fail in a takeover is done before the term is won.
            let prepared = preparing.prepare(&machine);
            drop(machine);
            let event = match prepared {
                Ok(()) if question.may_be_asked() => event(ask(&*arbiter, term, &why)),
                Ok(()) => return,
                Err(reason) => Event::NotReady { reason },
            };
            // A standby that has ended needs no answer.
            let _ = inputs.send(Input::Event(event));
        };
        match std::thread::Builder::new().name("arbiter".to_owned()).spawn(asking) {
            Ok(_) => Next::Nothing,
            Err(error) => Next::Event(event(kemari_arbiter::Answer::no_thread(&error))),
        }
    }

    fn take_over(&mut self, taken: TakenOver, reason: String) -> Next {
        if let Some((_, link)) = self.link.take() {
            link.shutdown();
        }
        let Some(Hosted { machine, authority, applied: Some(state), .. }) = self.hosted.take()
        else {
            unreachable!("P4: the core takes over only after a checkpoint was applied");
        };
        assert!(state.epoch() == taken.epoch(), "P4: the checkpoint applied is the one taken over");
        let won_at = Instant::now();
        self.reserve.release();
        self.record(kemari_audit::Event::TermWon {
            how: Won::TakeOver,
            term: taken.term().0,
            epoch: taken.epoch().0,
            session: self.session.1,
            next: state.next_id().0,
        });
        Next::End(End::TakeOver(Box::new(Inheritance {
            machine,
            authority,
            state,
            taken,
            reason,
            won_at,
        })))
    }

    fn show(&self) {
        self.shown().update(&self.core, self.held_session(), self.asked.as_ref());
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, StandbyStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// P2: `term` is this side's, and nobody has written in it. Storage may not answer, and an end does not wait for it (P9).
fn give_disks_back(machine: MachineConfig, term: Term, holder: &str) {
    let holder = holder.to_owned();
    let work = move || disks::give_back(&machine, term, &holder).map_err(|error| error.to_string());
    let what = ("disks", "the records of the disks");
    if let Err(error) = Aside::default().run(what, LAST_ANSWER, work) {
        log::warn!(
            "term {term} was won and is not free on the disks, a start without an arbiter needs --seize: {error}"
        );
    }
}

enum Next {
    Nothing,
    Event(Event),
    End(End),
}

/// As [`write`]; memory that is all zero already is left alone, so that what the guest never touched takes no memory of
/// this host either.
fn fill(machine: &Machine, address: u64, page: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
    if page.try_into().is_ok_and(is_zero) {
        let mut present = [0; PAGE_SIZE];
        machine.memory().read_slice(&mut present, GuestAddress(address))?;
        if is_zero(&present) {
            return Ok(());
        }
    }
    write(machine, address, page)
}

fn write(machine: &Machine, address: u64, piece: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
    machine.memory().write_slice(piece, GuestAddress(address))
}

fn read(link: Link, id: LinkId, every: Duration, buffers: &Buffers, inputs: &SyncSender<Input>) {
    // A standby that has ended reads no more.
    let progress = || {
        let _ = inputs.send(Input::Event(Event::Progress { link: id }));
    };
    let (mut frames, mut bytes) = (Vec::new(), 0);
    let end = read_frames(Watched::new(link, every, progress), buffers, |frame| {
        // Of no use before the end of the checkpoint has come.
        let waits = matches!(frame.header.kind, Kind::Pages | Kind::State);
        bytes += frame.header.body_len as usize;
        frames.push(frame);
        if !waits || frames.len() == TOGETHER || bytes >= BYTES_TOGETHER {
            let _ = inputs.send(Input::Frames(id, std::mem::take(&mut frames)));
            bytes = 0;
        }
    });
    let event = match end {
        ReadEnd::Garbled(error) => Event::Garbled { link: id, error },
        ReadEnd::Lost(reason) => Event::LinkLost { link: id, reason },
    };
    let _ = inputs.send(Input::Event(event));
}
