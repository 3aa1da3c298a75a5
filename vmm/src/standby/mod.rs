//! The standby's driver. It receives checkpoints for the protocol core, applies them to a machine that does not run, and hands
//! the machine over when the core has won the right to run it.
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

use crate::engine::{MachineState, ReadEnd, StateBlobError, Watched, hash_memory, read_frames};
use crate::link::{Buffers, Link, LinkListener};
use kemari_machine::boot::Boot;
use kemari_machine::config::MachineConfig;
use kemari_machine::{LoopError, Machine, disks};

use describe::Describing;
use former::Former;
use images::Images;
use pulse::Pulse;
use question::Question;
use resources::{Devices, Expected, Reserve, Resources};

pub use host::{HostError, MachineFactory};
pub(crate) use ready::Preparing;
pub use status::StandbyStatus;

/// Upper bound for queued inputs: further data waits in the socket (constant memory).
const QUEUE: usize = 16;
/// Upper bound for frames of a checkpoint in one input: this thread is woken once for several frames, and checks them while the
/// next ones are received.
const TOGETHER: usize = 8;
/// Upper bound for the bytes of an input made of several frames, not counting the last frame.
const BYTES_TOGETHER: usize = 4 << 20;
/// The device thread usually takes a checkpoint's state on in a fraction of this time.
const SOON: Duration = Duration::from_millis(20);
/// P9: a state that the device thread has not taken on within this time is refused: the thread is stuck and could not serve the
/// guest either.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
/// A checkpoint of at most this many pages is processed long before the primary misses a sign of life.
const FEW_PAGES: u64 = 1024;
/// A primary that does not take an acknowledgement within this time is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stopped standby waits for the arbiter's answer.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// A standby's identity and options.
#[derive(Clone, Debug)]
pub struct StandbyConfig {
    /// The virtual machine's name.
    pub name: String,
    /// The protocol core's options.
    pub options: StandbyOptions,
    /// What the guest boots at a reset; `None`: the primary sends its files.
    pub boot: Option<Arc<Boot>>,
    /// The audit log: what this side did, and when.
    pub audit: Option<Arc<Recorder>>,
}

/// Input for the standby's thread from the other threads.
pub enum Input {
    /// An event for the core.
    Event(Event),
    /// Frames for the core, in this order.
    Frames(LinkId, Vec<Frame>),
    /// A peer has connected, is permitted to, and has said Hello.
    Link(Link, String, Box<Frame>),
    /// An event for the core from an operator, who is answered; with the session that the operator saw, if the request is for
    /// that one only.
    Operator(Event, Option<SessionId>, Answer),
    /// For a request in this session: the result of opening what a takeover without an arbiter needs.
    Opened(SessionId, Result<(), String>, Answer),
    /// The operator asks for new keys on the link.
    RotateKeys(Answer),
}

/// Answers an operator's request. Has room for one answer, so that no thread waits.
pub type Answer = SyncSender<Result<(), String>>;

/// This side's number for a session with a primary; 0: no session.
pub type SessionId = u64;

/// Stops a standby without waiting for it.
#[derive(Clone)]
pub struct StopHandle {
    wanted: Arc<AtomicBool>,
    inputs: SyncSender<Input>,
}

impl StopHandle {
    /// Stops the standby after its current input.
    pub fn stop(&self) {
        self.wanted.store(true, Ordering::Release);
        // Only to wake the thread: it checks `stop_wanted` before it waits, so a full queue loses nothing. A standby that has
        // ended needs no stop.
        let _ = self.inputs.try_send(Input::Event(Event::Tick));
    }
}

/// How a standby has ended.
pub enum End {
    /// It has won the right to continue the guest.
    TakeOver(Box<Inheritance>),
    /// It was stopped.
    Stopped {
        /// Who or what stopped it.
        reason: String,
        /// Whether it had won the right to continue by then; that right is released.
        had_won: bool,
    },
}

/// A machine that can be continued, and the right to do so.
pub struct Inheritance {
    /// The machine; its memory is the checkpoint's.
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

struct Hosted {
    session: SessionId,
    machine: Arc<Machine>,
    authority: CommitAuthority,
    /// The primary's term and name.
    primary: (Term, String),
    /// What the primary boots.
    boot: Option<BootSource>,
    /// The state of the last checkpoint that was tried, and of the last one that was applied.
    tried: Option<MachineState>,
    applied: Option<MachineState>,
    /// The virtual machine that states are tried on, made at a session's first checkpoint.
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
    /// The last accepted session and its link.
    session: (LinkId, u64),
    next_link: u64,
    origin: Instant,
    inputs: SyncSender<Input>,
    queue: Receiver<Input>,
    /// P9: set by threads that must not wait for room in the queue.
    stop_wanted: Arc<AtomicBool>,
    status: Arc<Mutex<StandbyStatus>>,
    /// The question to the arbiter that is asked or about to be asked.
    asked: Option<Question>,
    /// The last term that was claimed, and the machine it was claimed for: that machine may be dropped before the answer comes.
    asked_for: Option<(Term, MachineConfig)>,
    /// Descriptors held for a takeover.
    reserve: Arc<Reserve>,
    pulse: Pulse,
    preparing: Preparing,
    /// Whether backends are being opened for an operator's takeover; the request is repeated when they are open.
    opens_for_operator: bool,
    /// The expected holder of the records beside the disks.
    expected: Arc<Expected>,
    /// The device thread that must answer.
    devices: Devices,
    /// Buffers for received frames.
    buffers: Buffers,
    /// What was received of the primary's kernel and initrd.
    images: Images,
}

impl StandbyDriver {
    /// Makes a standby that makes its machines with `factory`.
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

    /// Tells `resources` which machine this side holds and what it has open, and releases their reserve when a takeover needs it.
    #[must_use]
    pub fn with_resources(mut self, resources: &Resources) -> Self {
        self.reserve = resources.reserve();
        self.expected = resources.expected();
        self.devices = resources.devices();
        self.preparing = Preparing::telling(resources.prepared());
        self
    }

    /// Where to send an operator's requests.
    pub fn inputs(&self) -> SyncSender<Input> {
        self.inputs.clone()
    }

    /// A handle to stop the standby, for a thread that must not wait.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { wanted: self.stop_wanted.clone(), inputs: self.inputs.clone() }
    }

    /// The status for operators.
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
            // This thread starts a thread for each stranger.
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
                    // The core ignores frames from a link that it has turned away.
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
                    // The requester may have gone.
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

    /// After a stop while `term` was claimed: waits for the answer, and releases the term if it was granted, because this side
    /// will not act in it. Returns whether it was granted.
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

    /// The next input; `None` when the core's deadline has passed and no input waits. Frames that have come are taken before a
    /// tick, or a busy standby would suspect a primary that sends.
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

    /// Starts the reader of a link whose Hello has come.
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
            // The core answers on this link and closes it: keep the current link's place.
            self.refuse_second(id, link);
        } else {
            self.link = Some((id, link));
            let end = self.event(Event::Connected { link: id });
            debug_assert!(end.is_none(), "a new connection ends no standby");
        }
        Some(id)
    }

    /// One primary at a time: the core refuses a second one with its own reason.
    fn refuse_second(&mut self, id: LinkId, link: Link) {
        let current = self.link.replace((id, link));
        let end = self.event(Event::Connected { link: id });
        debug_assert!(end.is_none(), "a new connection ends no standby");
        if self.link.is_none() {
            self.link = current;
        } else if let Some((_, old)) = current {
            // The core has accepted the new link: a primary of a later term.
            old.shutdown();
        }
    }

    fn rotate_keys(&self) -> Result<(), String> {
        let (_, link) = self.link.as_ref().ok_or("expected a link to a primary, found none")?;
        if !link.is_secured() {
            return Err("expected a link with --tls, found one without".to_owned());
        }
        // If this fails, the link's reader finds the same error and tells the core.
        link.rotate_keys()
            .map_err(|error| format!("the keys of the link are unchanged: {error}"))?;
        log::info!("the link has new keys");
        Ok(())
    }

    fn held_session(&self) -> SessionId {
        self.hosted.as_ref().map_or(0, |hosted| hosted.session)
    }

    /// P2: an operator's request to use or drop one checkpoint does not hold for a later one.
    fn check_session(&self, said: SessionId) -> Result<(), String> {
        if said == self.held_session() {
            return Ok(());
        }
        Err("expected the session in which this was said, found that it has ended: give the command again if you still want it".to_owned())
    }

    fn operator(&mut self, event: Event, said: Option<SessionId>, answer: Answer) -> Option<End> {
        if let Some(Err(ended)) = said.map(|said| self.check_session(said)) {
            // The requester may have gone.
            let _ = answer.try_send(Err(ended));
            return None;
        }
        if event == Event::OperatorTakeOver && self.may_be_taken_over() {
            let prepared = self.hosted.as_ref().is_some_and(|hosted| hosted.machine.is_prepared());
            if !prepared && self.opens_for_operator {
                let why = "expected one take-over at a time, found that one is under way";
                // The requester may have gone.
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
            // P9: no takeover follows, and a primary that was allowed to go on may join again.
            self.reserve.renew();
        }
        // The requester may have gone.
        let _ = answer.try_send(taken);
        end
    }

    /// Whether an operator's request can lead to a takeover: when the operator decides, or with a primary that lives.
    fn may_be_taken_over(&self) -> bool {
        match self.core.phase() {
            Phase::WaitingForOperator => true,
            phase => phase == Phase::Ready && self.arbiter.is_some(),
        }
    }

    /// Opens in another thread what the takeover needs, before the request takes effect. Without an arbiter the operator's word
    /// alone decides the takeover, so errors must be found before. With one the primary's output is held from the request on,
    /// because nothing is acknowledged any more, and must not wait for the opening.
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
            // A standby that has ended needs no result.
            let _ = inputs.send(Input::Opened(said, opened, answer));
        };
        if let Err(error) = std::thread::Builder::new().name("takeover".to_owned()).spawn(prepare) {
            self.opens_for_operator = false;
            self.reserve.renew();
            let _ =
                refused.try_send(Err(format!("cannot start a thread for the takeover: {error}")));
        }
    }

    /// Continues the operator's request, unless its session has ended meanwhile.
    fn opened(
        &mut self,
        said: SessionId,
        opened: Result<(), String>,
        answer: Answer,
    ) -> Option<End> {
        let session = self.check_session(said);
        // If the session is another one, a request of the new session may be under way.
        self.opens_for_operator &= session.is_err();
        match (session, opened) {
            (Ok(()), Ok(())) => self.operator(Event::OperatorTakeOver, Some(said), answer),
            (Ok(()), Err(reason)) => {
                // The requester may have gone.
                let _ = answer.try_send(Err(format!("cannot take over: {reason}")));
                match self.core.phase() {
                    // The primary goes on, and this side holds its reserve again.
                    Phase::Ready => self.reserve.renew(),
                    Phase::WaitingForOperator => return self.event(Event::CannotGoOn { reason }),
                    // P7: the primary has gone out of reach meanwhile. Keep what is open: everything is tried again for the
                    // arbiter.
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

    /// Gives the core an event and performs what follows; calls `refused` if the core does not take the event.
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
        // A waiting standby holds no machine and no disk lock: a refused primary needs the lock when it comes back corrected.
        if self.core.phase() == Phase::Waiting {
            self.let_go();
        }
        self.show();
        None
    }

    /// P9: drops the hosted machine; no thread waits long for its end.
    fn let_go(&mut self) {
        self.devices.set(None);
        if let Some(hosted) = self.hosted.take() {
            self.former.take_apart(hosted);
        }
    }

    /// P7: releases `term`, which was won and is not wanted any more. This side does not act in it, so other machines need not be
    /// kept from the next term or from the disks.
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
                    // Not for a second primary that was turned away.
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
                // From here on the takeover needs the descriptors.
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

    /// Whether the guest can be reset here (P7): this side has its own boot files, or has received them.
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

    /// P1: records a word that lets the primary do something before it is sent.
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
            // The link's reader reports the loss, after it has read what has come: a primary that said good-bye has closed, and
            // its last word may still be unread here (P7).
            log::debug!("cannot send the primary any more: {error}");
            link.shutdown();
        }
        Next::Nothing
    }

    /// Lets a primary in. P2: this side claims the next term as the successor of exactly this process.
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

    /// Gives signs of life if the work with this checkpoint may take long.
    fn give_signs_of_life_for(&mut self, checkpoint: &Checkpoint) {
        let first = self.hosted.as_ref().is_some_and(|hosted| hosted.applied.is_none());
        if first || checkpoint.pages() > FEW_PAGES || checkpoint.hashes().is_some() {
            self.give_signs_of_life();
        }
    }

    /// Gives signs of life until the pulse is stopped: this thread is about to do work that may take long, and neither reads nor
    /// writes the link meanwhile.
    fn give_signs_of_life(&mut self) {
        let now = self.now();
        let Some((id, frame)) = self.core.sign_of_life(now) else { return };
        let Some((_, link)) = self.link.as_ref().filter(|(current, _)| *current == id) else {
            return;
        };
        let mut bytes = Vec::new();
        // The link's reader finds a link that cannot be written to.
        if frame.encode(&mut bytes).is_ok()
            && let Ok(link) = link.try_clone()
        {
            self.pulse.give(link, bytes);
        }
    }

    /// Whether the checkpoint can be applied (P4): its state decodes, and the devices and KVM accept it.
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

    /// Without an arbiter a takeover needs only the operator's word: try the state in this case as well.
    fn if_it_can_go_on(&mut self, event: Event) -> Event {
        if event != Event::OperatorTakeOver || self.core.phase() != Phase::WaitingForOperator {
            return event;
        }
        match self.try_applied() {
            Ok(()) => event,
            Err(reason) => Event::CannotGoOn { reason },
        }
    }

    /// Whether this host's KVM accepts the state that a takeover would begin with. A state that cannot be tried because the host
    /// is out of a resource is not refused.
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
        // P4: try the state before the term is won. Within a session only states of a new kind were tried.
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
            // P9: everything that can fail in a takeover is done before the term is won.
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

/// P2: frees the disks in `term`, which this side has won and has not written in. Storage may not answer, and a stop does not
/// wait for it (P9).
fn give_disks_back(machine: MachineConfig, term: Term, holder: &str) {
    let holder = holder.to_owned();
    let work =
        move || disks::give_back(&machine, term.0, &holder).map_err(|error| error.to_string());
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

/// As [`write`], but leaves memory alone that is already all zero: what the guest never touched then takes no memory of this
/// host.
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
        // Such a frame is of no use before the end of the checkpoint has come.
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
