//! A connection: two streams of bytes in order, which may stall, tear, or flip a bit.

use std::collections::VecDeque;

use ft_core::LinkId;
use ft_core::wire::Decoder;

/// One end. End 0 is the primary's.
pub(crate) struct End {
    pub(crate) node: usize,
    pub(crate) id: LinkId,
    pub(crate) open: bool,
    pub(crate) decoder: Decoder,
    /// Bytes on their way to this end.
    pub(crate) incoming: VecDeque<u8>,
    pub(crate) stalled_until: u64,
}

pub(crate) struct Link {
    pub(crate) ends: [End; 2],
    /// No byte gets through any more; the ends find out one by one.
    pub(crate) broken: bool,
}

impl Link {
    pub(crate) fn new(nodes: [usize; 2], ids: [LinkId; 2]) -> Self {
        let end = |at: usize| End {
            node: nodes[at],
            id: ids[at],
            open: true,
            decoder: Decoder::new(),
            incoming: VecDeque::new(),
            stalled_until: 0,
        };
        Self { ends: [end(0), end(1)], broken: false }
    }

    pub(crate) fn send(&mut self, from: usize, bytes: &[u8]) {
        if !self.broken {
            self.ends[1 - from].incoming.extend(bytes);
        }
    }

    pub(crate) fn close(&mut self, end: usize) {
        self.ends[end].open = false;
        self.ends[end].incoming.clear();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ends.iter().all(|end| !end.open)
    }
}
