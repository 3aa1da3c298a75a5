//! io_uring for a socket, against blocking calls: a request and its answer over a loopback
//! connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};

use crate::rounds::{head, in_turn, uninterrupted, way};

const LENGTHS: [usize; 3] = [64, 4096, 65536];

fn by_calls(mut stream: &TcpStream, request: &[u8], answer: &mut [u8]) {
    stream.write_all(request).unwrap();
    stream.read_exact(answer).unwrap();
}

/// Submits one entry after the other, or both at once, with the answer's linked to the request's.
fn by_ring(
    ring: &mut IoUring,
    stream: &TcpStream,
    request: &[u8],
    answer: &mut [u8],
    linked: bool,
) {
    let fd = types::Fd(stream.as_raw_fd());
    let flags = if linked { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
    let send =
        opcode::Send::new(fd, request.as_ptr(), request.len() as u32).flags(libc::MSG_WAITALL);
    let receive =
        opcode::Recv::new(fd, answer.as_mut_ptr(), answer.len() as u32).flags(libc::MSG_WAITALL);
    // SAFETY: both buffers outlive the requests, for whose ends this function waits.
    unsafe { ring.submission().push(&send.build().flags(flags)) }.unwrap();
    if !linked {
        end(ring, request.len());
    }
    // SAFETY: as above.
    unsafe { ring.submission().push(&receive.build()) }.unwrap();
    (0..=usize::from(linked)).for_each(|_| end(ring, request.len()));
}

fn end(ring: &mut IoUring, len: usize) {
    uninterrupted(|| ring.submit_and_wait(1));
    assert_eq!(ring.completion().next().unwrap().result(), len as i32);
}

/// Returns the received bytes to the sender, `len` bytes at a time.
fn echo(mut stream: &TcpStream, len: usize) {
    let mut buffer = vec![0; len];
    while stream.read_exact(&mut buffer).is_ok() {
        stream.write_all(&buffer).unwrap();
    }
}

#[test]
#[ignore = "a measurement"]
fn uring_socket() {
    head(&[
        "bytes each way",
        "send, recv us p50 / p99",
        "io_uring",
        "io_uring, linked",
        "linked to calls",
    ]);
    for len in LENGTHS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let there = listener.accept().unwrap().0;
        here.set_nodelay(true).unwrap();
        there.set_nodelay(true).unwrap();
        let other = std::thread::spawn(move || echo(&there, len));
        let mut request = vec![0; len];
        fastrand::Rng::with_seed(13).fill(&mut request);
        let mut answers = [vec![0; len], vec![0; len], vec![0; len]];
        let mut rings = [IoUring::new(8).unwrap(), IoUring::new(8).unwrap()];
        let ([calls, one, both], [ring, linked]) = (&mut answers, &mut rings);
        let times = in_turn(
            2001,
            &mut [
                way("calls", || by_calls(&here, &request, calls)),
                way("ring", || by_ring(ring, &here, &request, one, false)),
                way("linked", || by_ring(linked, &here, &request, both, true)),
            ],
        );
        assert!(answers.iter().all(|answer| *answer == request), "other bytes than were sent");
        let cells: Vec<String> = times.iter().map(ToString::to_string).collect();
        println!(
            "| {len} | {} | {:.2} |",
            cells.join(" | "),
            times[2].median() / times[0].median()
        );
        here.shutdown(Shutdown::Both).unwrap();
        other.join().unwrap();
    }
}
