//! The decoder of the link's frames, and the batches of pages in frames.

use ft_core::handshake::{ArbiterView, Hello, MachineLayout, MemoryRegion, SessionOptions};
use ft_core::pages::{Compression, PAGE_SIZE, PageBatch, PageFrame, SentPages};
use ft_core::wire::{
    ByeReason, Data, Decoder, End, EpochDigest, Frame, HEADER_LEN, Hashes, Header, Heartbeat, Kind,
    Message, Outgoing, PROTOCOL,
};
use ft_core::{Epoch, Term};

use crate::Target;

pub(crate) const DECODER: Target = Target {
    name: "wire",
    what: "frames of the link: whole and in pieces they decode alike, and hold no more than was sent",
    run: run_decoder,
    seeds: decoder_seeds,
};

pub(crate) const BODIES: Target = Target {
    name: "bodies",
    what: "the body of each kind of frame, with a header that fits it",
    run: run_bodies,
    seeds: body_seeds,
};

pub(crate) const PAGES: Target = Target {
    name: "pages",
    what: "a batch of pages: what is accepted lies in guest memory, in order, and decompresses",
    run: run_pages,
    seeds: page_seeds,
};

fn frames(pieces: impl Iterator<Item = Vec<u8>>) -> Vec<Frame> {
    let (mut decoder, mut frames, mut fed) = (Decoder::new(), Vec::new(), 0);
    for piece in pieces {
        fed += piece.len();
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let decoded = decoder.decode(&mut rest);
            // Buffers grow by doubling.
            assert!(decoder.held() <= 2 * fed + 64, "more is held than was ever sent");
            match decoded {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => {}
                Err(_) => return frames,
            }
        }
    }
    frames
}

fn run_decoder(bytes: &[u8]) {
    let whole = frames(std::iter::once(bytes.to_vec()));
    let size = bytes.first().map_or(1, |byte| usize::from(byte % 61) + 1);
    let torn = frames(bytes.chunks(size).map(<[u8]>::to_vec));
    assert_eq!(whole, torn);
}

/// A frame with any body, and with the checksum of that body.
pub(crate) fn framed(kind: Kind, epoch: Epoch, term: Term, body: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let start = Header::reserve(&mut bytes);
    bytes.extend_from_slice(body);
    Header::finish(&mut bytes, start, kind, epoch, term).ok()?;
    Some(bytes)
}

fn run_bodies(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    let Some(bytes) = framed(kind, Epoch(3), Term(2), body) else { return };
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
    let header = Header::parse(head).expect("it was just written");
    let Ok(frame) = Frame::verify(header, body.to_vec()) else { return };
    // A decoded message that can be encoded again decodes to the same message.
    let outgoing = Outgoing { epoch: Epoch(3), term: Term(2), message: frame.message.clone() };
    let mut again = Vec::new();
    if outgoing.encode(&mut again).is_ok() {
        let back = frames(std::iter::once(again));
        assert_eq!(back.first().map(|back| &back.message), Some(&frame.message));
    }
}

pub(crate) fn hello(term: u64, session: u64, standby_session: u64) -> Hello {
    Hello {
        protocol: PROTOCOL,
        release: String::new(),
        name: "vm".into(),
        term: Term(term),
        session,
        standby_session,
        holder: "primary".into(),
        arbiter: ArbiterView { kind: "file".into(), ..ArbiterView::default() },
        layout: MachineLayout { memory: memory(), cpus: 1, page_size: 4096, devices: Vec::new() },
        disks: Vec::new(),
        boot: None,
        images: Vec::new(),
        facts: Vec::new(),
        options: SessionOptions { verify: true },
    }
}

pub(crate) fn memory() -> Vec<MemoryRegion> {
    vec![MemoryRegion { start: 0, len: 64 << 10 }, MemoryRegion { start: 1 << 20, len: 16 << 10 }]
}

fn run_pages(bytes: &[u8]) {
    let memory = memory();
    let Ok(batch) = PageBatch::parse(bytes, &memory) else { return };
    let (mut pages, mut last, mut end) = (0, None, 0);
    let done = batch.for_each_piece(|address, piece| -> Result<(), ()> {
        assert!(address >= end && !piece.is_empty(), "{address:#x} after {end:#x}");
        end = address + piece.len() as u64;
        let inside =
            |region: &MemoryRegion| address >= region.start && end <= region.start + region.len;
        assert!(memory.iter().any(inside), "{address:#x} is outside of guest memory");
        let page = Some(address / PAGE_SIZE as u64);
        pages += u64::from(last != page);
        last = page;
        Ok(())
    });
    assert_eq!(done, Ok(()));
    // A page without a changed line has no entry.
    assert!(pages <= batch.pages() && pages + batch.changes() >= batch.pages());
}

/// A frame of two pages.
pub(crate) fn pages(kind: Kind, epoch: Epoch, term: Term, compression: Compression) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut frame = PageFrame::begin(&mut bytes, kind, epoch, term, compression);
    for (page, fill) in [(1, 7), (2, 0)] {
        let done: Result<(), ()> = frame.push(page * PAGE_SIZE as u64, |into| {
            into.fill(fill);
            Ok(())
        });
        done.expect("filling cannot fail");
    }
    frame.finish().expect("two pages fit");
    bytes
}

/// A frame with a whole page, then a frame with the changed lines of that page.
fn changes() -> Vec<u8> {
    let mut sent = SentPages::new(2);
    let mut page = [5; PAGE_SIZE];
    let mut bytes = Vec::new();
    for _ in 0..2 {
        bytes.clear();
        let mut frame =
            PageFrame::begin(&mut bytes, Kind::Pages, Epoch(1), Term(1), Compression::None);
        frame.push_changes(PAGE_SIZE as u64, &page, &mut sent);
        frame.finish().expect("a page fits");
        page[70] = 1;
        page[4095] = 1;
    }
    bytes
}

fn page_seeds() -> Vec<Vec<u8>> {
    let whole = [Compression::None, Compression::Lz4]
        .map(|compression| pages(Kind::Pages, Epoch(1), Term(1), compression));
    let all = whole.into_iter().chain([changes()]);
    all.map(|frame| frame[HEADER_LEN..].to_vec()).collect()
}

fn messages() -> Vec<Message> {
    let hashes = Hashes { memory: 1, state: 2 };
    let mut digest = EpochDigest::new(9);
    let end: End = digest.end(Epoch(1), Some(hashes));
    vec![
        Message::Hello(Box::new(hello(1, 5, 0))),
        Message::Welcome(Box::new(hello(1, 5, 9))),
        Message::Refuse { reason: "no".into() },
        Message::State(Data(vec![1, 2, 3])),
        Message::End(end),
        Message::Ack,
        Message::Heartbeat(Heartbeat { sequence: 1, sent: 2 }),
        Message::Bye { reason: ByeReason::Detach, session: 9, from: 5, why: String::new() },
        Message::Readiness { lack: Some("no".into()), session: 9, from: 5 },
    ]
}

fn encoded(message: Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    let outgoing = Outgoing { epoch: Epoch(1), term: Term(1), message };
    outgoing.encode(&mut bytes).expect("it is short");
    bytes
}

fn decoder_seeds() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = messages().into_iter().map(encoded).collect();
    all.push(pages(Kind::Bulk, Epoch(1), Term(1), Compression::Lz4));
    all.push(all.concat());
    all
}

fn body_seeds() -> Vec<Vec<u8>> {
    let with_kind = |message: Message| {
        let at = Kind::ALL.iter().position(|kind| *kind == message.kind());
        let at = u8::try_from(at.expect("all kinds are there")).expect("there are twelve");
        [vec![at], encoded(message)[HEADER_LEN..].to_vec()].concat()
    };
    messages().into_iter().map(with_kind).collect()
}
