//! Moves a checkpoint's pages over loopback with each encoding: encode, send, acknowledge, decode.

use ft_core::pages::Page;

use crate::PAGE;
use crate::encoding::{base, change};
use crate::encodings::{ENCODINGS, Encoding, Sent};
use crate::peer::Peer;
use crate::rounds::{head, in_turn, on_one_side, way};

const COUNTS: [usize; 3] = [16, 128, 1024];

/// The pages of both sides.
struct Sides<'a> {
    encoding: &'a Encoding,
    now: &'a [Page],
    old: &'a [Page],
    kept: Vec<Page>,
    there: Vec<Page>,
    sent: Sent,
    peer: Peer,
}

impl<'a> Sides<'a> {
    fn new(encoding: &'a Encoding, now: &'a [Page], old: &'a [Page]) -> Self {
        let peer = Peer::new(now.len() * (PAGE + 9), Some(1));
        Self {
            encoding,
            now,
            old,
            kept: old.to_vec(),
            there: old.to_vec(),
            sent: Sent::default(),
            peer,
        }
    }

    fn checkpoint(&mut self) {
        self.encoding.encode_all(self.now, self.old, &mut self.kept, &mut self.sent);
        self.peer.expect(self.sent.bytes.len(), false);
        self.peer.send(&self.sent.bytes);
        self.peer.acknowledged();
        // Decode here what the peer would decode before its acknowledgement: the total time is the
        // same.
        self.encoding.decode_all(&self.sent, &mut self.there);
    }
}

#[test]
#[ignore = "a measurement"]
fn encoded_link() {
    on_one_side(table);
}

fn table() {
    let base = base();
    let [_, today, _, xor, lines] = &ENCODINGS;
    head(&[
        "pages",
        "changed",
        "raw, zero (today) us p50 / p99",
        xor.name,
        lines.name,
        "xor to today's",
        "lines to today's",
    ]);
    for count in COUNTS {
        for how in ["8 bytes", "10 %", "all, random"] {
            let (old, mut random) = (&base[..count], fastrand::Rng::with_seed(7));
            let mut now = old.to_vec();
            now.iter_mut().for_each(|page| change(page, how, &mut random));
            let mut sides = [today, xor, lines].map(|encoding| Sides::new(encoding, &now, old));
            for side in &mut sides {
                side.checkpoint();
                assert!(side.there == now, "{}: other pages than were sent", side.encoding.name);
            }
            let mut ways: Vec<_> = sides
                .iter_mut()
                .map(|side| way(side.encoding.name, || side.checkpoint()))
                .collect();
            let times = in_turn(301, &mut ways);
            let cells: Vec<String> = times.iter().map(ToString::to_string).collect();
            let part = |of: usize| times[of].median() / times[0].median();
            println!(
                "| {count} | {how} | {} | {:.2} | {:.2} |",
                cells.join(" | "),
                part(1),
                part(2)
            );
        }
    }
}
