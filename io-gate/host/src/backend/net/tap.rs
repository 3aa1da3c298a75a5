//! A tap interface with virtio-net headers, so that the host's kernel computes checksums and splits
//! segments for the guest.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::socket::append;
use super::{MAX_FRAME, NetError, VNET_HEADER};
use crate::backend::Handled;
use crate::backend::interest::{Interest, Retry};
use crate::descriptors;
use crate::inputs::{Inputs, Role, Token};
use crate::out::{self, Outgoing, Refused, with_permits};
use crate::permit::Permits;
use crate::poisoned::POISONED;

/// The guest's feature bits (virtio 1.2, 5.1.3), each with the tap offload that it allows.
const OFFLOADS: [(u32, libc::c_uint); 4] =
    [(1, libc::TUN_F_CSUM), (7, libc::TUN_F_TSO4), (8, libc::TUN_F_TSO6), (9, libc::TUN_F_TSO_ECN)];

/// Interval between retries for an interface that is gone: the first one, and the upper bound.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Frames older than this are dropped when a tap is attached. A takeover opens its taps before it
/// claims the term, which may be hours earlier if no arbiter answers. A network would not deliver
/// frames that old. Longer than a normal takeover takes.
const STALE: Duration = Duration::from_secs(1);
/// More frames than the kernel keeps for a tap (`txqueuelen`, 500 or 1000), because new ones arrive
/// while these are dropped.
const MOST_STALE: usize = 4096;

/// The backend, before it is attached.
pub(crate) struct Tap {
    file: File,
    name: String,
    opened: Instant,
}

/// The lane's half.
pub(crate) struct Output {
    shared: Arc<Shared>,
    place: (Inputs, Token),
}

/// The half that other threads use.
pub(crate) struct Input(Arc<Shared>);

struct Shared {
    /// Never held across a call that can block. Declared before the file, so that it is dropped
    /// first.
    state: Mutex<State>,
    file: File,
}

struct State {
    interest: Interest,
    retry: Retry,
    name: String,
    /// The interface is gone: no descriptor is watched, and the lane looks for the interface at
    /// intervals.
    gone: bool,
    /// The features that the driver has accepted.
    features: u64,
    taken_over: Option<u64>,
    input_wanted: bool,
}

impl State {
    /// Warns once, stops watching, and schedules the first retry.
    fn is_gone(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.gone, true) {
            log::warn!(
                "net tap={}: the interface is gone ({error}); frames are dropped until an interface with this name \
                 exists again",
                self.name
            );
            self.interest.unwatch();
            self.retry.later();
        }
    }

    /// Whether incoming frames have a form that the driver accepts.
    fn gives_input(&self) -> bool {
        !self.gone && self.taken_over == Some(self.features)
    }

    fn update(&mut self) {
        self.interest.want_input(self.input_wanted && self.gives_input());
    }
}

impl Tap {
    pub(crate) fn open(name: &str) -> Result<Self, NetError> {
        let failed = |what, error: io::Error| NetError::Tap {
            name: name.to_owned(),
            what,
            hint: hint(&error),
            error,
        };
        let file = descriptors::tun().map_err(|error| failed("cannot open /dev/net/tun", error))?;
        let tap = Self { file, name: name.to_owned(), opened: Instant::now() };
        join(&tap.file, name).map_err(|(what, error)| failed(what, error))?;
        set_offloads(&tap.file, name, 0);
        Ok(tap)
    }

    pub(crate) fn attach(self, inputs: &Inputs, token: Token) -> io::Result<(Output, Input)> {
        if self.opened.elapsed() > STALE {
            self.drop_stale();
        }
        let mut interest = Interest::new();
        interest.watch(inputs.watch(self.file.as_raw_fd(), token))?;
        let state = State {
            interest,
            retry: Retry::new(inputs, token, Role::Timer, RETRY, RETRY_LONGEST)?,
            name: self.name,
            gone: false,
            features: 0,
            taken_over: Some(0),
            input_wanted: true,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), file: self.file });
        let output = Output { shared: shared.clone(), place: (inputs.clone(), token) };
        Ok((output, Input(shared)))
    }

    fn drop_stale(&self) {
        let mut frame = Vec::new();
        let mut next = || {
            frame.clear();
            append(self.file.as_fd(), &mut frame, VNET_HEADER + MAX_FRAME, None)
        };
        let dropped = (0..MOST_STALE).take_while(|_| matches!(next(), Ok(Some(1..)))).count();
        if dropped > 0 {
            log::info!(
                "net tap={}: {dropped} frames that waited for a takeover are dropped",
                self.name
            );
        }
    }
}

impl Output {
    pub(crate) fn send(
        &mut self,
        permits: &mut Permits<'_>,
        frame: &Outgoing<'_>,
    ) -> Result<(), Refused> {
        let fd = self.shared.file.as_fd();
        let sent = with_permits(|| permits.next(), |permit| out::write_message(permit, fd, frame));
        if let Err(Refused::Io(error)) = &sent
            && is_gone(error)
        {
            self.shared.state().is_gone(error);
        }
        sent.map(drop)
    }

    /// Looks for an interface that is gone, and sets the offloads that the guest's driver has
    /// accepted.
    pub(crate) fn attend(&mut self) {
        let (gone, features, name) = {
            let state = self.shared.state();
            (state.gone, state.features, state.name.clone())
        };
        let file = &self.shared.file;
        if gone {
            // Join only an existing interface: joining a missing one would create it.
            if !descriptors::interface_exists(&name) || join(file, &name).is_err() {
                return self.shared.state().retry.later();
            }
            log::warn!("net tap={name}: the interface exists again");
        }
        set_offloads(file, &name, features);
        let mut state = self.shared.state();
        state.taken_over = Some(features);
        if gone {
            state.gone = false;
            state.retry.worked();
            let (inputs, token) = &self.place;
            if let Err(error) = state.interest.watch(inputs.watch(file.as_raw_fd(), *token)) {
                log::error!("net tap={name}: epoll_ctl: {error}");
            }
        }
        state.update();
    }
}

impl Input {
    /// Takes a frame. Returns whether there was one, and whether the lane must look for the
    /// interface.
    pub(crate) fn receive(&self, into: &mut Vec<u8>) -> (bool, bool) {
        into.clear();
        let mut state = self.0.state();
        if !state.gives_input() {
            return (false, false);
        }
        match append(self.0.file.as_fd(), into, VNET_HEADER + MAX_FRAME, None) {
            Ok(Some(len)) if len > VNET_HEADER => return (true, false),
            Err(error) if is_gone(&error) => state.is_gone(&error),
            // There is no frame, or the interface is down.
            _ => {}
        }
        into.clear();
        (false, false)
    }

    pub(crate) fn handle(&self, role: Role, events: EventSet) -> Handled {
        let mut state = self.0.state();
        if role == Role::Timer {
            state.retry.expired();
            return Handled { attend: true, input: false };
        }
        // tun(4) reports this for a file without an interface, and would report it repeatedly.
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            state.is_gone(&io::Error::from_raw_os_error(libc::EBADFD));
            return Handled::default();
        }
        Handled { attend: false, input: true }
    }

    pub(crate) fn want_input(&self, wanted: bool) {
        let mut state = self.0.state();
        state.input_wanted = wanted;
        state.update();
    }

    /// Sets the features that the driver has accepted. No input is taken until the lane has set
    /// them in the kernel. Returns whether the lane has to.
    pub(crate) fn negotiated(&self, features: u64) -> bool {
        let mut state = self.0.state();
        state.features = features;
        state.update();
        !state.gives_input()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(POISONED)
    }
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether the error means that the file has lost its interface.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::ENXIO))
}

/// Attaches the file to the interface. The error names the failed step.
fn join(file: &File, name: &str) -> Result<(), (&'static str, io::Error)> {
    let mut request = interface(name)
        .ok_or_else(|| ("bad interface name", io::ErrorKind::InvalidInput.into()))?;
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: `request` is a valid `ifreq` for the duration of the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) })
        .map_err(|error| ("cannot attach to it", error))?;
    let header = VNET_HEADER as libc::c_int;
    // SAFETY: the argument points to an `int` that lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })
        .map_err(|error| ("cannot set the length of its headers", error))
}

fn set_offloads(file: &File, name: &str, features: u64) {
    let offloads = OFFLOADS
        .into_iter()
        .filter(|(bit, _)| features & (1 << bit) != 0)
        .fold(0, |all, (_, offload)| all | offload);
    // SAFETY: a system call whose argument is a number.
    let result = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
    };
    if let Err(error) = check(result) {
        log::warn!("net tap={name}: offloads {offloads:#x}: {error}");
    }
}

fn interface(name: &str) -> Option<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0']) {
        return None;
    }
    // SAFETY: all-zero bytes are a valid `ifreq`: it is plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "create it for this user (`ip tuntap add NAME mode tap user $USER vnet_hdr`), or use stream= in --net"
        }
        Some(libc::EBUSY) => "another process uses it: stop that one, or choose another interface",
        Some(libc::ENOENT | libc::ENODEV) => {
            "load the kernel module `tun`, or use stream= in --net"
        }
        _ => "check the interface in --net",
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use io_gate::Port;

    use super::*;

    /// How many of three frames that arrived after the tap was opened reach the guest.
    fn received(opened: Instant) -> usize {
        // As with a tap, a read returns one frame or fails at once.
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        for _ in 0..3 {
            kernel.send(&[7; VNET_HEADER + 60]).unwrap();
        }
        let tap = Tap { file: OwnedFd::from(ours).into(), name: "tap".to_owned(), opened };
        let token = Token { slot: 0, port: Port(0), role: Role::Data };
        let (_output, input) = tap.attach(&Inputs::new().unwrap(), token).unwrap();
        let mut frame = Vec::new();
        std::iter::from_fn(|| input.receive(&mut frame).0.then_some(())).count()
    }

    /// Fails if a guest that continues hours later gets all frames that the kernel kept for it.
    #[test]
    fn frames_that_waited_long_for_a_takeover_are_dropped() {
        assert_eq!(received(Instant::now()), 3);
        assert_eq!(received(Instant::now() - 2 * STALE), 0);
    }
}
