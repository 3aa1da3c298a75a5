//! A host, and the process on it: one of the machines, with the driver around it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use ft_core::pages::SentPages;
use ft_core::primary::{self, Primary};
use ft_core::standby::{self, Standby};
use ft_core::wire::EpochDigest;
use ft_core::{Epoch, LinkId, Time};
use io_gate::Outcome;
use io_gate::host::{Ledger, Performable};

use crate::arbiter::Client;
use crate::guest::{Guest, PAGES, State, Tag};
use crate::random::Random;

/// One thing that the driver does next. A process can die, or be stopped, between any two.
pub(crate) enum Task {
    Primary(primary::Event),
    Standby(standby::Event),
    PrimaryDoes(primary::Action),
    StandbyDoes(standby::Action),
    Send(LinkId, Vec<u8>),
}

/// A checkpoint that was taken, and of which the core has not heard: the sealer is a thread of its own.
pub(crate) struct Taken {
    /// The session that it was taken for.
    pub(crate) link: LinkId,
    pub(crate) epoch: Epoch,
    /// The pages in it: in no other checkpoint if this one is not to be sent.
    pub(crate) dirty: [bool; PAGES],
    pub(crate) frames: Vec<Vec<u8>>,
    /// The sealer is held up until then.
    pub(crate) until: u64,
}

/// For how long a primary is on its way to be protected, with nobody to blame but itself.
#[derive(Default)]
pub(crate) struct Search {
    /// Runs alone, wants a standby, and looks for none.
    pub(crate) idle: u64,
    /// Waits for a standby's answer.
    pub(crate) joins: u64,
}

pub(crate) struct Active {
    pub(crate) core: Primary,
    pub(crate) ledger: Ledger,
    pub(crate) guest: Guest,
    pub(crate) digest: EpochDigest,
    /// The pages of this session's checkpoints.
    pub(crate) sent: SentPages,
    /// The session whose first checkpoint is to be taken.
    pub(crate) seals_first: Option<LinkId>,
    pub(crate) taken: Option<Taken>,
    /// What comes of the connection that is being made, and when.
    pub(crate) dials: Option<(u64, primary::Event)>,
    pub(crate) search: Search,
    /// Why it has asked the arbiter, or its operator, last.
    pub(crate) asked: Option<String>,
    /// The next page to be sent while the guest runs.
    pub(crate) precopy: Option<usize>,
    pub(crate) verify: bool,
    /// Released, to be performed in order: packets and console, and the disk's.
    pub(crate) net: VecDeque<Performable>,
    pub(crate) disk: VecDeque<Performable>,
    /// The disk's lane waits for the storage.
    pub(crate) disk_busy: bool,
    /// Performed, and the guest does not know yet.
    pub(crate) performed: VecDeque<(Performable, Outcome, Option<Tag>)>,
    /// The fence has said no: nothing is performed any more.
    pub(crate) fenced_off: bool,
    /// It has said that the operator has to decide.
    pub(crate) asks_operator: bool,
    /// How long it has waited for its standby to give its checkpoint up, once it has asked it to.
    pub(crate) detaches: Option<u64>,
    /// What it has said last of this session, and how long the standby has said something else.
    pub(crate) says_protected: Option<bool>,
    pub(crate) lies: u64,
    /// When something came over the link that memory is sent over, and the longest silence since a standby may hold a checkpoint.
    pub(crate) heard: Time,
    pub(crate) silence: Duration,
    /// The operator wants it to have a standby.
    pub(crate) searches: bool,
    /// A session has failed, and what it took from the dirty log is not in the next one's.
    pub(crate) sessions: u64,
    /// Only where a deliberate bug has the host keep writes in its own cache.
    pub(crate) host_cache: HashMap<usize, (Tag, u64)>,
    /// The slot of the console, another one after each packet: bytes of one slot that wait become one effect, in front of the
    /// packets between them, and the observer wants all outputs in one order.
    pub(crate) console: u16,
}

impl Active {
    /// A session begins: sometimes with no room for every page, or for any.
    pub(crate) fn none_sent(random: &mut Random) -> SentPages {
        SentPages::new(random.index(PAGES + 1))
    }
}

pub(crate) struct Passive {
    pub(crate) core: Standby,
    pub(crate) guest: Guest,
    /// Of the last checkpoint applied: its term, its epoch.
    pub(crate) applied: Option<(u64, u64, State)>,
    /// The checkpoint that the core holds was made in this term.
    pub(crate) held_term: u64,
    /// A check that is under way: no more data is given until it is answered.
    pub(crate) check: Option<(Epoch, bool)>,
    pub(crate) heard_term: u64,
    /// It has said that the operator has to decide.
    pub(crate) asks_operator: bool,
    /// Its primary has said that the machine ends, in their session, or the operator wants it to stop.
    pub(crate) may_stop: bool,
    /// Why it has asked the arbiter, or its operator, last.
    pub(crate) asked: Option<String>,
    /// It makes ready for a takeover, and asks for this term then.
    pub(crate) opens: Option<u64>,
    /// Whether the kernel is to come in this session, and what has.
    pub(crate) lacks_kernel: bool,
    pub(crate) kernel: Vec<u8>,
}

pub(crate) enum Role {
    Active(Box<Active>),
    Passive(Box<Passive>),
    Gone,
}

/// What becomes of a process in the middle of what it does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Dies,
    /// It is stopped for so many nanoseconds; its host is suspended meanwhile, or not.
    Sleeps {
        time: u64,
        suspended: bool,
    },
}

pub(crate) struct Node {
    pub(crate) role: Role,
    /// Unlike that of any other process, ever.
    pub(crate) process: u64,
    pub(crate) client: Client,
    pub(crate) tasks: VecDeque<Task>,
    pub(crate) asleep_until: u64,
    /// Its host is suspended.
    pub(crate) suspended_until: u64,
    /// It lives, but checks no checkpoint before.
    pub(crate) hangs_until: u64,
    /// As a standby it can have no machine before.
    pub(crate) refuses_until: u64,
    /// It lives, but its guest's devices make no progress before.
    pub(crate) stuck_until: u64,
    /// How long nothing has come of what is to be done here, without excuse.
    pub(crate) waits: u64,
    /// What becomes of it once it has sealed an epoch.
    pub(crate) nap: Option<Fate>,
    /// After so many tasks the process dies, or sleeps for a time.
    pub(crate) fuse: Option<(u64, Fate)>,
    /// This host's clocks: their rate in parts per million, and what was added to the one that the
    /// protocol core is given (which stands still while the host is suspended).
    pub(crate) rate: u64,
    pub(crate) added: i64,
}

impl Node {
    /// Nothing stops it any more: its monotonic clock goes on from where it stood.
    pub(crate) fn wake(&mut self, now: u64) {
        let rest = self.suspended_until.saturating_sub(now);
        self.added += (rest.div_ceil(1_000_000) * self.rate) as i64;
        (self.asleep_until, self.suspended_until) = (0, 0);
    }

    /// The clock that leases are counted by: it only drifts.
    pub(crate) fn boot_time(&self, now: u64) -> Time {
        Time(1_000_000_000 + now / 1_000_000 * self.rate + now % 1_000_000 * self.rate / 1_000_000)
    }

    /// The clock that the protocol core is given.
    pub(crate) fn core_time(&self, now: u64) -> Time {
        Time(self.boot_time(now).0.saturating_add_signed(self.added))
    }
}

impl Active {
    /// Keeps count of how long the standby has been silent, by the clock that the core is given.
    pub(crate) fn listen(&mut self, now: Time, event: &primary::Event) {
        use primary::{Event, Phase};
        match event {
            Event::Frame { link, .. } | Event::Progress { link }
                if self.core.link() == Some(*link) =>
            {
                self.silence = self.silence.max(now.since(self.heard));
                self.heard = now;
            }
            Event::StandbyConnected { .. } => self.heard = now,
            // Silence means more from here on, and is counted from here.
            Event::Sealed { .. } if self.core.phase() == Phase::Sealing => {
                self.heard = self.heard.max(now);
                self.silence = Duration::ZERO;
            }
            _ => {}
        }
    }
}
