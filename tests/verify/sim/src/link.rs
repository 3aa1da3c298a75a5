//! A connection: two streams of bytes in order, which may stall, tear, or flip a bit.

use std::collections::VecDeque;

use ft_core::LinkId;
use ft_core::wire::Decoder;

/// Bytes on their way.
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
    /// The process uses it.
    pub(crate) open: bool,
    /// The process has closed it, and what had come already is still handed on.
    pub(crate) lingers: bool,
    pub(crate) decoder: Decoder,
    /// On their way to this end; one frame each.
    pub(crate) incoming: VecDeque<Chunk>,
    pub(crate) stalled_until: u64,
    /// The process at the other end went without a word: only silence tells.
    pub(crate) silent: bool,
}

pub(crate) struct Link {
    pub(crate) ends: [End; 2],
    /// No byte gets through any more; the ends find out one by one.
    pub(crate) broken: bool,
    /// Something was taken out of it, or put in, that no side can tell from the real thing.
    pub(crate) tampered: bool,
    /// The number by which the standby has named this session, and the one by which the primary has.
    pub(crate) session: Option<u64>,
    pub(crate) of_primary: u64,
    /// The primary has said in it that the machine ends.
    pub(crate) ends_machine: bool,
    /// The standby's process knows of it.
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

    /// The process at `end` closes it; `lingers`: frames that have come are handed on all the same.
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
