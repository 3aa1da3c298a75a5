//! Ways to send pages that are not adjacent: copied into one buffer first, gathered by the kernel,
//! or sent without a copy.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use xxhash_rust::xxh3::xxh3_64;

use crate::PAGE;
use crate::peer::Peer;
use crate::rounds::{head, in_turn, on_one_side, uninterrupted, way};

const MEMORY: usize = 64 << 20;
// Constants of linux/errqueue.h.
const ORIGIN_ZEROCOPY: u8 = 5;
const ZEROCOPY_COPIED: u8 = 1;

const COUNTS: [usize; 3] = [32, 144, 1024];

/// Pages of a paused guest. They must not change while they are sent, or the checkpoint would be
/// torn.
struct Pages<'a>(Vec<&'a [u8]>);

impl Pages<'_> {
    fn bytes(&self) -> usize {
        self.0.len() * PAGE
    }

    /// As the sender does today: copies the pages into a buffer, and writes a frame at a time.
    fn assembled(&self, peer: &Peer, buffer: &mut Vec<u8>, at_a_time: usize) {
        for pages in self.0.chunks(at_a_time) {
            buffer.clear();
            pages.iter().for_each(|page| buffer.extend_from_slice(page));
            peer.send(buffer);
        }
    }

    fn gathered(&self, peer: &Peer, at_a_time: usize) {
        for pages in self.0.chunks(at_a_time) {
            let mut slices: Vec<_> = pages.iter().map(|page| IoSlice::new(page)).collect();
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                let sent = (&peer.stream).write_vectored(rest).unwrap();
                IoSlice::advance_slices(&mut rest, sent);
            }
        }
    }

    /// Gathers the pages and asks the kernel to send them without a copy (MSG_ZEROCOPY). Returns,
    /// for each call, whether the kernel has copied nevertheless.
    fn uncopied(&self, peer: &Peer, at_a_time: usize) -> Vec<bool> {
        let mut calls = 0;
        for pages in self.0.chunks(at_a_time) {
            let mut slices: Vec<_> = pages.iter().map(|page| IoSlice::new(page)).collect();
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                let sent = send_uncopied(peer, rest);
                IoSlice::advance_slices(&mut rest, sent);
                calls += 1;
            }
        }
        let mut copied = Vec::new();
        while copied.len() < calls {
            notices(peer, &mut copied);
        }
        copied
    }
}

fn send_uncopied(peer: &Peer, slices: &[IoSlice<'_>]) -> usize {
    // SAFETY: all zero is an empty message.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len();
    // SAFETY: an `IoSlice` has the layout of an `iovec`. The pages outlive the call, and stay
    // unchanged until the kernel has given notice, for which the caller waits.
    let sent = unsafe { libc::sendmsg(peer.stream.as_raw_fd(), &message, libc::MSG_ZEROCOPY) };
    usize::try_from(sent).unwrap_or_else(|_| panic!("{}", io::Error::last_os_error()))
}

/// Waits for the kernel's notices that it no longer needs the pages; adds an entry for each call in
/// them.
fn notices(peer: &Peer, copied: &mut Vec<bool>) {
    let mut poll = libc::pollfd { fd: peer.stream.as_raw_fd(), events: 0, revents: 0 };
    uninterrupted(|| {
        // SAFETY: one entry, which outlives the call.
        let ready = unsafe { libc::poll(&mut poll, 1, -1) };
        if ready == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    });
    let mut control = [0u64; 16];
    // SAFETY: all zero is an empty message.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the length is that of the control buffer, which is aligned.
    let got = unsafe { libc::recvmsg(peer.stream.as_raw_fd(), &mut message, libc::MSG_ERRQUEUE) };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has filled the message in; a notice is a `sock_extended_err`.
    let notice = unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        assert!(!header.is_null());
        libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned()
    };
    assert_eq!((notice.ee_errno, notice.ee_origin), (0, ORIGIN_ZEROCOPY));
    let was_copied = notice.ee_code == ZEROCOPY_COPIED;
    (notice.ee_info..=notice.ee_data).for_each(|_| copied.push(was_copied));
}

fn peer(pages: &Pages<'_>) -> Peer {
    let peer = Peer::new(pages.bytes(), Some(1));
    peer.expect(pages.bytes(), true);
    peer
}

#[test]
#[ignore = "a measurement"]
fn sending() {
    on_one_side(table);
}

fn table() {
    let mut memory = vec![0; MEMORY];
    let mut random = fastrand::Rng::with_seed(5);
    random.fill(&mut memory);
    let columns = [
        "pages",
        "64 in a buffer (today) us p50 / p99",
        "256 in a buffer",
        "writev of 16",
        "of 64",
        "of 256",
        "MSG_ZEROCOPY of 64",
    ];
    head(&[&columns[..], &["writev of 64 to today's", "copied in spite of MSG_ZEROCOPY"]].concat());
    for count in COUNTS {
        let mut at = random.choose_multiple(0..MEMORY / PAGE, count);
        at.sort_unstable();
        let pages = Pages(at.iter().map(|page| &memory[page * PAGE..][..PAGE]).collect());
        let peers: Vec<Peer> = (0..6).map(|_| peer(&pages)).collect();
        let on: libc::c_int = 1;
        // SAFETY: the option is an int.
        let set = unsafe {
            libc::setsockopt(
                peers[5].stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ZEROCOPY,
                (&raw const on).cast(),
                4,
            )
        };
        assert_eq!(set, 0, "SO_ZEROCOPY: {}", io::Error::last_os_error());
        let mut buffers = [Vec::with_capacity(64 * PAGE), Vec::with_capacity(256 * PAGE)];
        let [small, large] = &mut buffers;
        let mut copied = Vec::new();
        let all = xxh3_64(&pages.0.concat());
        let mut first = [true; 6];
        let mut done = |i: usize| {
            let sum = peers[i].acknowledged();
            assert!(!std::mem::take(&mut first[i]) || sum == all, "other bytes than were sent");
            peers[i].expect(pages.bytes(), false);
        };
        let done = std::cell::RefCell::new(&mut done);
        let then = |i: usize| (done.borrow_mut())(i);
        let times = in_turn(
            301,
            &mut [
                way("64 in a buffer", || (pages.assembled(&peers[0], small, 64), then(0))),
                way("256 in a buffer", || (pages.assembled(&peers[1], large, 256), then(1))),
                way("writev 16", || (pages.gathered(&peers[2], 16), then(2))),
                way("writev 64", || (pages.gathered(&peers[3], 64), then(3))),
                way("writev 256", || (pages.gathered(&peers[4], 256), then(4))),
                way("zerocopy", || (copied = pages.uncopied(&peers[5], 64), then(5))),
            ],
        );
        let cells: Vec<String> = times.iter().map(ToString::to_string).collect();
        let part = times[3].median() / times[0].median();
        let was = copied.iter().filter(|copied| **copied).count();
        println!(
            "| {count} | {} | {part:.2} | {was} of {} calls |",
            cells.join(" | "),
            copied.len()
        );
    }
}
