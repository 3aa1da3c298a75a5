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

/// A step of the driver. A process can die, or be stopped, between any two steps.
pub(crate) enum Task {
    Primary(primary::Event),
    Standby(standby::Event),
    PrimaryDoes(primary::Action),
    StandbyDoes(standby::Action),
    Send(LinkId, Vec<u8>),
}

/// A checkpoint that was taken and that the core does not know of yet: the sealer is a thread of
/// its own.
pub(crate) struct Taken {
    /// The session that it was taken for.
    pub(crate) link: LinkId,
    pub(crate) epoch: Epoch,
    /// The pages in it. If this checkpoint is not sent, no other one contains them.
    pub(crate) dirty: [bool; PAGES],
    pub(crate) frames: Vec<Vec<u8>>,
    /// The sealer is delayed until then.
    pub(crate) until: u64,
}

/// How long a primary has been without protection, without an external reason.
#[derive(Default)]
pub(crate) struct Search {
    /// Time for which it runs alone, wants a standby, and looks for none.
    pub(crate) idle: u64,
    /// Time for which it waits for a standby's answer.
    pub(crate) joins: u64,
}

pub(crate) struct Active {
    pub(crate) core: Primary,
    pub(crate) ledger: Ledger,
    pub(crate) guest: Guest,
    pub(crate) digest: EpochDigest,
    /// The pages that this session has sent.
    pub(crate) sent: SentPages,
    /// The session whose first checkpoint is to be taken.
    pub(crate) seals_first: Option<LinkId>,
    pub(crate) taken: Option<Taken>,
    /// The result of the connection attempt in progress, and when it comes.
    pub(crate) dials: Option<(u64, primary::Event)>,
    pub(crate) search: Search,
    /// The reason with which it last asked the arbiter or its operator.
    pub(crate) asked: Option<String>,
    /// The next page to be sent while the guest runs.
    pub(crate) precopy: Option<usize>,
    pub(crate) verify: bool,
    /// Released effects in the order in which they are performed: packets and console, and the
    /// disk's.
    pub(crate) net: VecDeque<Performable>,
    pub(crate) disk: VecDeque<Performable>,
    /// The disk's lane waits for the storage.
    pub(crate) disk_busy: bool,
    /// Performed effects that the guest does not know of yet.
    pub(crate) performed: VecDeque<(Performable, Outcome, Option<Tag>)>,
    /// The fence has said no: nothing is performed any more.
    pub(crate) fenced_off: bool,
    /// It has reported that the operator has to decide.
    pub(crate) asks_operator: bool,
    /// How long it has waited since it asked its standby to give its checkpoint up.
    pub(crate) detaches: Option<u64>,
    /// What it last reported of its protection in this session, and for how long the standby has
    /// contradicted it.
    pub(crate) says_protected: Option<bool>,
    pub(crate) lies: u64,
    /// When data last came over the link to the standby, and the longest silence since a standby
    /// may hold a checkpoint.
    pub(crate) heard: Time,
    pub(crate) silence: Duration,
    /// The operator wants it to have a standby.
    pub(crate) searches: bool,
    /// Number of sessions so far. A deliberate bug uses it: from the second session on, the full
    /// copy is left out, so pages that a failed session took from the dirty log are lost.
    pub(crate) sessions: u64,
    /// Used only if a deliberate bug makes the host keep writes in its own cache.
    pub(crate) host_cache: HashMap<usize, (Tag, u64)>,
    /// The slot of the console; it changes after each packet. Waiting bytes of one slot become one
    /// effect before the packets between them, but the observer needs all outputs in one order.
    pub(crate) console: u16,
}

impl Active {
    /// A session begins: sometimes with too little room for every page, or with none.
    pub(crate) fn none_sent(random: &mut Random) -> SentPages {
        SentPages::new(random.index(PAGES + 1))
    }
}

pub(crate) struct Passive {
    pub(crate) core: Standby,
    pub(crate) guest: Guest,
    /// Term, epoch and state of the last applied checkpoint.
    pub(crate) applied: Option<(u64, u64, State)>,
    /// The term in which the held checkpoint was made.
    pub(crate) held_term: u64,
    /// A check in progress: no more data is delivered until it is answered.
    pub(crate) check: Option<(Epoch, bool)>,
    pub(crate) heard_term: u64,
    /// It has reported that the operator has to decide.
    pub(crate) asks_operator: bool,
    /// Its primary has said in their session that the machine ends, or the operator wants it to
    /// stop.
    pub(crate) may_stop: bool,
    /// The reason with which it last asked the arbiter or its operator.
    pub(crate) asked: Option<String>,
    /// It prepares a takeover, and will then ask for this term.
    pub(crate) opens: Option<u64>,
    /// Whether the kernel has to be sent in this session, and its bytes so far.
    pub(crate) lacks_kernel: bool,
    pub(crate) kernel: Vec<u8>,
}

pub(crate) enum Role {
    Active(Box<Active>),
    Passive(Box<Passive>),
    Gone,
}

/// What happens to a process in the middle of its steps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Dies,
    /// It is stopped for `time` nanoseconds; `suspended` says whether its host is suspended.
    Sleeps {
        time: u64,
        suspended: bool,
    },
}

pub(crate) struct Node {
    pub(crate) role: Role,
    /// Unique among all processes that ever ran.
    pub(crate) process: u64,
    pub(crate) client: Client,
    pub(crate) tasks: VecDeque<Task>,
    pub(crate) asleep_until: u64,
    /// Its host is suspended until then.
    pub(crate) suspended_until: u64,
    /// It lives, but checks no checkpoint until then.
    pub(crate) hangs_until: u64,
    /// As a standby it cannot have a machine until then.
    pub(crate) refuses_until: u64,
    /// It lives, but its guest's devices make no progress until then.
    pub(crate) stuck_until: u64,
    /// How long its pending work has made no progress without an excuse.
    pub(crate) waits: u64,
    /// What happens to it once it has sealed an epoch.
    pub(crate) nap: Option<Fate>,
    /// What happens to it after this many tasks.
    pub(crate) fuse: Option<(u64, Fate)>,
    /// This host's clocks: their rate (parts per million), and the amount that was added to the
    /// clock that the protocol core reads (which stands still while the host is suspended).
    pub(crate) rate: u64,
    pub(crate) added: i64,
}

impl Node {
    /// Ends every stop: its monotonic clock continues from where it stood.
    pub(crate) fn wake(&mut self, now: u64) {
        let rest = self.suspended_until.saturating_sub(now);
        self.added += (rest.div_ceil(1_000_000) * self.rate) as i64;
        (self.asleep_until, self.suspended_until) = (0, 0);
    }

    /// The clock that leases use: it only drifts.
    pub(crate) fn boot_time(&self, now: u64) -> Time {
        Time(1_000_000_000 + now / 1_000_000 * self.rate + now % 1_000_000 * self.rate / 1_000_000)
    }

    /// The clock that the protocol core reads.
    pub(crate) fn core_time(&self, now: u64) -> Time {
        Time(self.boot_time(now).0.saturating_add_signed(self.added))
    }
}

impl Active {
    /// Measures how long the standby has been silent, by the clock that the core reads.
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
            // From here on a silence lets the core suspect the standby, so it is measured from
            // here.
            Event::Sealed { .. } if self.core.phase() == Phase::Sealing => {
                self.heard = self.heard.max(now);
                self.silence = Duration::ZERO;
            }
            _ => {}
        }
    }
}
