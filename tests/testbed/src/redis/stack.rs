//! TCP over the switch: a `smoltcp` interface on a cable.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant as Clock};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use crate::packet::Host;
use crate::switch::Cable;

const BUFFER: usize = 16 * 1024;
const MTU: usize = 1514;
const PREFIX: u8 = 24;

/// A host that speaks TCP.
pub(super) struct Stack {
    device: CableDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    begin: Clock,
    next_port: u16,
}

impl Stack {
    pub(super) fn new(cable: Cable, own: Host, seed: u64) -> Self {
        let mut device = CableDevice { cable, received: VecDeque::new() };
        let mut config = Config::new(EthernetAddress(own.mac).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::Ipv4(own.ip), PREFIX);
            addresses.push(address).expect("there is room for one address");
        });
        // Start at a port that depends on the seed, because the guest may remember ports of an
        // earlier run.
        let next_port = 49152 + (seed % 8192) as u16;
        Self {
            device,
            interface,
            sockets: SocketSet::new(Vec::new()),
            begin: Clock::now(),
            next_port,
        }
    }

    pub(super) fn add_socket(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    pub(super) fn connect(&mut self, handle: SocketHandle, to: Ipv4Addr, port: u16) {
        self.next_port += 1;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        let from = self.next_port;
        let connecting =
            socket.connect(self.interface.context(), (IpAddress::Ipv4(to), port), from);
        if let Err(error) = connecting {
            log::warn!("cannot connect: {error}");
        }
    }

    pub(super) fn is_closed(&self, handle: SocketHandle) -> bool {
        let state = self.sockets.get::<Socket<'_>>(handle).state();
        !matches!(state, State::SynSent | State::SynReceived | State::Established)
    }

    pub(super) fn may_send(&self, handle: SocketHandle) -> bool {
        self.sockets.get::<Socket<'_>>(handle).state() == State::Established
    }

    /// Queues `bytes`. They always fit: only one command is outstanding, and it is far smaller than
    /// the buffer.
    pub(super) fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let sent = self.sockets.get_mut::<Socket<'_>>(handle).send_slice(bytes);
        debug_assert_eq!(sent, Ok(bytes.len()), "the buffer holds any one command");
    }

    /// Appends received bytes to `buffer`.
    pub(super) fn receive(&mut self, handle: SocketHandle, buffer: &mut Vec<u8>) {
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                buffer.extend_from_slice(bytes);
                (bytes.len(), ())
            });
            if taken.is_err() {
                break;
            }
        }
    }

    /// Aborts a connection.
    pub(super) fn abort(&mut self, handle: SocketHandle) {
        self.sockets.get_mut::<Socket<'_>>(handle).abort();
    }

    /// Sends queued data, then waits for a frame until `limit` has passed or a TCP timer is due.
    pub(super) fn work(&mut self, limit: Duration) {
        self.poll();
        let due = self.interface.poll_delay(self.now(), &self.sockets).map(Duration::from);
        let frame = self.device.cable.receive(due.unwrap_or(limit).min(limit));
        self.device.received.extend(frame);
        self.poll();
    }

    fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.device, &mut self.sockets);
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.begin.elapsed().as_micros() as i64)
    }
}

struct CableDevice {
    cable: Cable,
    received: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);

struct Transmitter<'a>(&'a Cable);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Transmitter<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for CableDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmitter<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Transmitter<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Transmitter(&self.cable)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Transmitter<'_>> {
        Some(Transmitter(&self.cable))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}
