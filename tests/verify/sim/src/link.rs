//! A connection: two ordered streams of bytes, which may stall, break off, or flip a bit.

use std::collections::VecDeque;

use ft_core::LinkId;
use ft_core::wire::Decoder;

/// Bytes in transit.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) arrives: u64,
    pub(crate) bytes: Vec<u8>,
}

/// One end. End 0 is the primary's.
pub(crate) struct End {
    pub(crate) node: usize,
    pub(crate) process: u64,
    pub(crate) id: LinkId,
    /// Whether the process uses it.
    pub(crate) open: bool,
    /// The process has closed it, but frames that had arrived are still delivered.
    pub(crate) lingers: bool,
    pub(crate) decoder: Decoder,
    /// Frames in transit to this end, one per chunk.
    pub(crate) incoming: VecDeque<Chunk>,
    pub(crate) stalled_until: u64,
    /// The process at the other end disappeared without closing: this end only sees silence.
    pub(crate) silent: bool,
}

pub(crate) struct Link {
    pub(crate) ends: [End; 2],
    /// No byte passes any more; each end finds out by itself.
    pub(crate) broken: bool,
    /// Something was removed or inserted that no side can distinguish from the real data.
    pub(crate) tampered: bool,
    /// The session number that the standby chose, and the number that the primary chose.
    pub(crate) session: Option<u64>,
    pub(crate) of_primary: u64,
    /// The primary has said in this session that the machine ends.
    pub(crate) ends_machine: bool,
    /// The standby's process knows of the connection.
    pub(crate) accepted: bool,
}

impl Link {
    pub(crate) fn new(nodes: [usize; 2], processes: [u64; 2], ids: [LinkId; 2]) -> Self {
        let end = |at: usize| End {
            node: nodes[at],
            process: processes[at],
            id: ids[at],
            open: true,
            lingers: false,
            decoder: Decoder::new(),
            incoming: VecDeque::new(),
            stalled_until: 0,
            silent: false,
        };
        Self {
            ends: [end(0), end(1)],
            broken: false,
            tampered: false,
            session: None,
            of_primary: 0,
            ends_machine: false,
            accepted: false,
        }
    }

    pub(crate) fn send(&mut self, from: usize, bytes: Vec<u8>, arrives: u64) {
        let end = &mut self.ends[1 - from];
        if self.broken || !end.open {
            return;
        }
        let arrives = end.incoming.back().map_or(arrives, |last| last.arrives.max(arrives));
        end.incoming.push_back(Chunk { arrives, bytes });
    }

    /// The process at `end` closes it; with `lingers`, frames that have arrived are still
    /// delivered.
    pub(crate) fn close(&mut self, end: usize, lingers: bool) {
        let end = &mut self.ends[end];
        end.open = false;
        end.lingers = lingers && !end.incoming.is_empty();
        if !end.lingers {
            end.incoming.clear();
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ends.iter().all(|end| !end.open && !end.lingers)
    }
}
