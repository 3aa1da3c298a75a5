//! Builds the answer to a primary's Hello: a machine like the primary's, and what this side finds
//! at its disks and its arbiter.
//!
//! Storage, networks and the arbiter may not answer. Other threads read them, with a time limit. A
//! primary that would have to wait longer is refused: the standby's own thread must stay free for
//! commands (P9).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ft_core::handshake::{ArbiterView, DiskStorage, Hello};
use ft_core::standby::Event;
use io_gate::host::CommitAuthority;
use kemari_machine::Machine;
use kemari_machine::boot::BootError;
use kemari_support::aside::Aside;
use kemari_support::identity::holder_name;
use kemari_support::random::random_number;

use super::hosted::Hosted;
use super::{MachineFactory, StandbyDriver};
use crate::descriptors::Reserve;
use crate::session::hello;
use crate::session::marks::answer_marks;

/// A resource that has not answered within this time counts as missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Builds machines and writes counter-marks in other threads. Only the one thread that builds a
/// machine locks the factory.
pub(super) struct Describing {
    factory: Arc<Mutex<Box<dyn MachineFactory>>>,
    machine: Aside,
    word: Aside,
}

impl Describing {
    pub(super) fn new(factory: Box<dyn MachineFactory>) -> Self {
        let (machine, word) = Default::default();
        Self { factory: Arc::new(factory.into()), machine, word }
    }
}

/// A machine that was built here, and what this side sees of its disks and networks.
struct Found {
    machine: Arc<Machine>,
    authority: CommitAuthority,
    disks: Vec<DiskStorage>,
    networks: Vec<(String, String)>,
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

impl StandbyDriver {
    pub(super) fn describe(&mut self, hello: &Hello) -> Event {
        match self.host(hello) {
            Ok(ours) => Event::Described { ours: Box::new(ours) },
            Err(reason) => Event::CannotHost { reason },
        }
    }

    fn host(&mut self, hello: &Hello) -> Result<Hello, String> {
        // All steps together end before a primary with the same options would drop this side.
        let until = Instant::now() + PATIENCE.min(self.config.options.setup_timeout / 2);
        self.let_go();
        self.former.is_gone_within(left(until))?;
        let Found { machine, authority, disks, networks } =
            self.find_machine(hello, left(until))?;
        let boot = hello.boot.clone();
        let primary = (hello.term, hello.holder.clone());
        let session = random_number();
        // From here on, a refusal drops the hosted machine.
        self.hosted = Some(Hosted {
            session,
            machine: machine.clone(),
            authority,
            primary,
            boot,
            tried: None,
            applied: None,
            trial: None,
        });
        let arbiter = self.leave_counter_mark(left(until))?;
        let holder = match &self.arbiter {
            Some(arbiter) => arbiter.holder().to_owned(),
            None => holder_name("standby"),
        };
        // The core fills in term, session and options: the primary sets them.
        let mut ours = Hello {
            holder,
            standby_session: session,
            ..hello::describe(&machine, &self.config.name, arbiter, disks, networks)
        };
        self.describe_boot(hello, &mut ours).map_err(|error| error.to_string())?;
        Ok(ours)
    }

    fn find_machine(&self, hello: &Hello, patience: Duration) -> Result<Found, String> {
        let (factory, layout) = (self.describing.factory.clone(), hello.layout.clone());
        let (has_arbiter, theirs) = (self.arbiter.is_some(), hello.disks.clone());
        let facts = hello.facts.clone();
        let task =
            ("describe", "the machine's device thread, disks and networks, or this host's KVM");
        self.describing.machine.run(task, patience, move || {
            let built = factory.lock().unwrap_or_else(PoisonError::into_inner).build(&layout);
            let (machine, authority) = built.map_err(|error| error.to_string())?;
            // Hold and release at once: this only checks that the first checkpoint will find enough
            // descriptors.
            Reserve::of_trial(layout.cpus).hold().map_err(|error| error.to_string())?;
            let disks = answer_marks(machine.config(), has_arbiter, &theirs);
            let disks = disks.map_err(|error| error.to_string())?;
            let networks = hello::answer_networks(machine.config(), &facts);
            Ok(Found { machine, authority, disks, networks })
        })
    }

    fn leave_counter_mark(&self, patience: Duration) -> Result<Option<ArbiterView>, String> {
        let Some(arbiter) = self.arbiter.clone() else { return Ok(None) };
        let task = ("counter-mark", "arbiter: expected to write a counter-mark for the primary");
        let leave = move || arbiter.counter_mark().map_err(|error| error.to_string());
        self.describing.word.run(task, patience, leave).map(Some)
    }

    /// Fills in the boot files that this side has, and prepares to receive the others.
    fn describe_boot(&mut self, hello: &Hello, ours: &mut Hello) -> Result<(), BootError> {
        match &self.config.boot {
            Some(own) => {
                let own = hello::boot_source(own)?;
                ours.images = own.images().collect();
                ours.boot = Some(own);
            }
            None => ours.images = self.images.keep(hello.boot.as_ref()),
        }
        self.images.expect(hello, ours);
        Ok(())
    }
}
