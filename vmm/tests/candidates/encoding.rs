//! Encodings that send less than a whole page: their cost at both ends, the bytes left to send, and
//! the link speed below which they pay off.

use ft_core::pages::{Page, is_zero};

use crate::PAGE;
use crate::encodings::{ENCODINGS, Encoding, LINE, Sent};
use crate::rounds::{head, in_turn, way};

const PAGES: usize = 1024;

/// Pages of this test's own executable: real code and data.
pub(crate) fn base() -> Vec<Page> {
    let file = std::fs::read("/proc/self/exe").unwrap();
    let full = file.as_chunks::<PAGE>().0.iter().filter(|page| !is_zero(page));
    full.copied().take(PAGES).collect()
}

/// Changes a page as a guest may do.
pub(crate) fn change(page: &mut Page, how: &str, random: &mut fastrand::Rng) {
    match how {
        "8 bytes" => random.fill(&mut page[random.clone().usize(..PAGE / 8) * 8..][..8]),
        "10 %" => random.choose_multiple(0..64, 6).into_iter().for_each(|line| {
            random.fill(&mut page[line * LINE..][..LINE]);
        }),
        "new code" => page.rotate_left(1234),
        "all, random" => random.fill(page),
        "all, zero" => page.fill(0),
        _ => unreachable!("{how}"),
    }
}

/// The cost of one page: nanoseconds at the sender and at the receiver, and bytes on the link.
struct Cost {
    encode: f64,
    decode: f64,
    bytes: f64,
}

impl Cost {
    /// Nanoseconds until the other side has the page, over a link of `mbits` Mbit/s.
    fn over(&self, mbits: f64) -> f64 {
        self.encode + self.decode + self.bytes * 8000.0 / mbits
    }

    /// The link speed in Mbit/s below which this encoding is faster than `other`.
    fn better_below(&self, other: &Cost) -> String {
        let more_work = self.encode + self.decode - other.encode - other.decode;
        let fewer_bytes = other.bytes - self.bytes;
        if fewer_bytes.abs() < 1.0 {
            return "as many bytes".into();
        }
        match (fewer_bytes > 0.0, more_work > 0.0) {
            (true, true) => format!("{:.0}", fewer_bytes * 8000.0 / more_work),
            (true, false) => "any".into(),
            (false, true) => "none".into(),
            (false, false) => format!("above {:.0}", fewer_bytes * 8000.0 / more_work),
        }
    }
}

fn costs(old: &[Page], now: &[Page]) -> Vec<Cost> {
    let mut kept = old.to_vec();
    let mut encoded: Vec<Sent> = Vec::new();
    for encoding in &ENCODINGS {
        let mut sent = Sent::default();
        encoding.encode_all(now, old, &mut kept, &mut sent);
        let mut there = old.to_vec();
        encoding.decode_all(&sent, &mut there);
        assert!(there == now, "{}: other pages than were sent", encoding.name);
        encoded.push(sent);
    }
    let encoders = ENCODINGS.iter().map(|e| {
        let (mut kept, mut sent) = (old.to_vec(), Sent::default());
        way(e.name, move || e.encode_all(now, old, &mut kept, &mut sent))
    });
    let decoders = ENCODINGS.iter().zip(&encoded).map(|(e, sent)| {
        let mut there = old.to_vec();
        way(e.name, move || e.decode_all(sent, &mut there))
    });
    let times = in_turn(101, &mut encoders.chain(decoders).collect::<Vec<_>>());
    let per_page = |value: f64| value / now.len() as f64;
    let (encode, decode) = times.split_at(ENCODINGS.len());
    let all = encode.iter().zip(decode).zip(&encoded);
    all.map(|((encode, decode), sent)| Cost {
        encode: per_page(encode.median()),
        decode: per_page(decode.median()),
        bytes: per_page(sent.bytes.len() as f64),
    })
    .collect()
}

/// The encoding that delivers a page first, and its time relative to today's encoding. Today's
/// encoding is named if the gain is less than 5 %.
fn fastest_at(speed: f64, costs: &[Cost]) -> String {
    let today = costs[1].over(speed);
    let parts = ENCODINGS.iter().zip(costs).map(|(e, cost)| (e.name, cost.over(speed) / today));
    let (name, part) = parts.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    if part > 0.95 { ENCODINGS[1].name.into() } else { format!("{part:.2} {name}") }
}

const SPEEDS: [f64; 5] = [100.0, 1000.0, 10_000.0, 25_000.0, 100_000.0];

#[test]
#[ignore = "a measurement"]
fn encoding() {
    let old = base();
    let mut fastest = Vec::new();
    let columns = ["changed", "encoding", "bytes sent", "encode ns", "decode ns"];
    head(&[&columns[..], &["better than today's below Mbit/s"]].concat());
    for how in ["8 bytes", "10 %", "new code", "all, random", "all, zero"] {
        let (mut now, mut random) = (old.clone(), fastrand::Rng::with_seed(7));
        now.iter_mut().for_each(|page| change(page, how, &mut random));
        let costs = costs(&old, &now);
        for (Encoding { name, .. }, cost) in ENCODINGS.iter().zip(&costs) {
            let Cost { encode, decode, bytes } = cost;
            let below =
                if *name == ENCODINGS[1].name { "-".into() } else { cost.better_below(&costs[1]) };
            println!("| {how} | {name} | {bytes:.0} | {encode:.0} | {decode:.0} | {below} |");
        }
        let best = SPEEDS.map(|speed| fastest_at(speed, &costs));
        fastest.push(format!("| {how} | {} |", best.join(" | ")));
    }
    println!("\nThe fastest from page to page, and its time to today's:");
    head(&["changed", "100 Mbit/s", "1 Gbit/s", "10 Gbit/s", "25 Gbit/s", "100 Gbit/s"]);
    println!("{}", fastest.join("\n"));
}
