//! One checkpoint over several connections at once, against one connection. Over loopback, a link
//! is as fast as the processors copy.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use xxhash_rust::xxh3::xxh3_64;

use crate::peer::Peer;
use crate::rounds::{head, in_turn, on_one_side, way};

const SIZES: [(&str, usize); 3] = [("137 kB", 137_000), ("600 kB", 600_000), ("4.3 MB", 4_300_000)];

/// The range to send, and whether the acknowledgement must be a checksum.
type Order = (Range<usize>, bool);

/// Several connections. Each has a sending thread, except for the first, which the caller serves.
struct Bundle {
    bytes: Arc<Vec<u8>>,
    first: Peer,
    others: Vec<(Sender<Order>, JoinHandle<()>)>,
    sums: Receiver<u64>,
}

fn transfer(peer: &Peer, bytes: &[u8], sum: bool) -> u64 {
    peer.expect(bytes.len(), sum);
    peer.send(bytes);
    peer.acknowledged()
}

impl Bundle {
    fn new(bytes: &Arc<Vec<u8>>, connections: usize, cpu: Option<usize>) -> Self {
        let (done, sums) = channel();
        let others = (1..connections).map(|_| {
            let (order, orders) = channel::<Order>();
            let (done, bytes, peer) =
                (done.clone(), Arc::clone(bytes), Peer::new(bytes.len(), cpu));
            let run = move || {
                for (range, sum) in orders {
                    done.send(transfer(&peer, &bytes[range], sum)).unwrap();
                }
            };
            (order, std::thread::spawn(run))
        });
        let others = others.collect();
        Self { bytes: Arc::clone(bytes), first: Peer::new(bytes.len(), cpu), others, sums }
    }

    /// Sends an equal part over each connection; returns the XOR of the acknowledgements.
    fn transfer(&self, sum: bool) -> u64 {
        let mut parts = parts(self.bytes.len(), self.others.len() + 1);
        let first = parts.next().unwrap();
        for (part, (order, _)) in parts.zip(&self.others) {
            order.send((part, sum)).unwrap();
        }
        let first = transfer(&self.first, &self.bytes[first], sum);
        self.others.iter().fold(first, |all, _| all ^ self.sums.recv().unwrap())
    }

    fn check(&self) {
        let sums = parts(self.bytes.len(), self.others.len() + 1).map(|p| xxh3_64(&self.bytes[p]));
        assert_eq!(self.transfer(true), sums.fold(0, |all, sum| all ^ sum));
    }
}

fn parts(len: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).map(move |i| len * i / count..len * (i + 1) / count)
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for (order, thread) in self.others.drain(..) {
            drop(order);
            thread.join().unwrap();
        }
    }
}

/// One thread writes to the connections one after the other: the receivers still work in parallel.
fn one_thread(bytes: &[u8], peers: &[Peer], sum: bool) -> u64 {
    for (peer, part) in peers.iter().zip(parts(bytes.len(), peers.len())) {
        peer.expect(part.len(), sum);
        peer.send(&bytes[part]);
    }
    peers.iter().fold(0, |all, peer| all ^ peer.acknowledged())
}

#[test]
#[ignore = "a measurement"]
fn connections() {
    println!("a processor for each side:");
    on_one_side(|| table(Some(1)));
    println!("as the scheduler has it:");
    table(None);
}

fn table(cpu: Option<usize>) {
    head(&[
        "bytes",
        "1 connection us p50 / p99",
        "2",
        "2, one sending thread",
        "4",
        "2 to 1",
        "4 to 1",
    ]);
    for (name, len) in SIZES {
        let mut bytes = vec![0; len];
        fastrand::Rng::with_seed(3).fill(&mut bytes);
        let bytes = Arc::new(bytes);
        let bundles = [1, 2, 4].map(|count| Bundle::new(&bytes, count, cpu));
        let pair = [Peer::new(len, cpu), Peer::new(len, cpu)];
        bundles.iter().for_each(Bundle::check);
        let sums = parts(len, 2).fold(0, |all, part| all ^ xxh3_64(&bytes[part]));
        assert_eq!(one_thread(&bytes, &pair, true), sums);
        let times = in_turn(
            501,
            &mut [
                way("1", || bundles[0].transfer(false)),
                way("2", || bundles[1].transfer(false)),
                way("2, one thread", || one_thread(&bytes, &pair, false)),
                way("4", || bundles[2].transfer(false)),
            ],
        );
        let part = |of: usize| times[of].median() / times[0].median();
        let cells: Vec<String> = times.iter().map(ToString::to_string).collect();
        println!("| {name} | {} | {:.2} | {:.2} |", cells.join(" | "), part(1), part(3));
    }
}
