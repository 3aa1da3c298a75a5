//! The other side of a loopback connection. It receives the announced number of bytes and
//! acknowledges them, with their checksum on demand.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use xxhash_rust::xxh3::xxh3_64;

use crate::rounds::stay_on;

/// A connection whose other side is a thread.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// The next task of the other side.
#[derive(Default)]
struct Orders {
    expected: AtomicUsize,
    sum: AtomicBool,
}

impl Peer {
    /// A peer that receives at most `most` bytes before it acknowledges, on processor `cpu` if one
    /// is given.
    pub(crate) fn new(most: usize, cpu: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let there = listener.accept().unwrap().0;
        stream.set_nodelay(true).unwrap();
        there.set_nodelay(true).unwrap();
        let orders: Arc<Orders> = Arc::default();
        let theirs = Arc::clone(&orders);
        let run = move || {
            cpu.into_iter().for_each(stay_on);
            take(&there, &theirs, &mut vec![0; most]);
        };
        let thread = std::thread::spawn(run);
        Self { stream, orders, thread: Some(thread) }
    }

    /// Announces the number of the next bytes, and whether the acknowledgement must be their
    /// checksum.
    pub(crate) fn expect(&self, len: usize, sum: bool) {
        self.orders.sum.store(sum, Ordering::Release);
        self.orders.expected.store(len, Ordering::Release);
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        (&self.stream).write_all(bytes).unwrap();
    }

    /// Waits for the acknowledgement of all announced bytes; returns it.
    pub(crate) fn acknowledged(&self) -> u64 {
        let mut sum = [0; 8];
        (&self.stream).read_exact(&mut sum).unwrap();
        u64::from_le_bytes(sum)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn take(mut from: &TcpStream, orders: &Orders, buffer: &mut [u8]) {
    let mut got = 0;
    while let Ok(len) = from.read(&mut buffer[got..])
        && len > 0
    {
        got += len;
        if got == orders.expected.load(Ordering::Acquire) {
            let sum = orders.sum.load(Ordering::Acquire).then(|| xxh3_64(&buffer[..got]));
            from.write_all(&sum.unwrap_or(0).to_le_bytes()).unwrap();
            got = 0;
        }
    }
}
