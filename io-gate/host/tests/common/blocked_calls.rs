//! Blocks system calls of lanes, as a dead file server or a stopped reader does
//! (seccomp_unotify(2)). The kernel reports the calls that the test names from a lane's thread to
//! the test. The lane's thread sleeps until the test lets the call continue.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};

use io_gate_host::LaneStart;

/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`
/// (linux/seccomp.h).
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;

/// The calls that are blocked, and the state of the blocking.
#[derive(Clone)]
pub struct BlockedCalls(Arc<Shared>);

struct Shared {
    calls: Vec<libc::c_long>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    listeners: Vec<Arc<OwnedFd>>,
    held: VecDeque<(Arc<OwnedFd>, u64)>,
    seen: usize,
    open: bool,
}

impl BlockedCalls {
    /// Blocks these calls from the start, in all lanes that get the
    /// [`lane_start`](Self::lane_start).
    pub fn of(calls: &[libc::c_long]) -> Self {
        let state = Mutex::new(State::default());
        Self(Arc::new(Shared { calls: calls.to_vec(), state, changed: Condvar::new() }))
    }

    pub fn lane_start(&self) -> LaneStart {
        let blocked = self.clone();
        Arc::new(move || {
            if std::thread::current().name() == Some("power") {
                return;
            }
            let listener = Arc::new(install(&blocked.0.calls));
            blocked.0.state.lock().unwrap().listeners.push(listener.clone());
            let shared = blocked.0.clone();
            std::thread::spawn(move || serve(&shared, &listener));
        })
    }

    /// Waits until this many calls have been blocked in total.
    pub fn wait_for(&self, count: usize) {
        let state = self.0.state.lock().unwrap();
        let waited =
            self.0.changed.wait_timeout_while(state, std::time::Duration::from_secs(20), |state| {
                state.seen < count
            });
        assert!(!waited.unwrap().1.timed_out(), "no {count} calls were made");
    }

    pub fn seen(&self) -> usize {
        self.0.state.lock().unwrap().seen
    }

    /// Lets the blocked calls and all later ones continue.
    pub fn release(&self) {
        let mut state = self.0.state.lock().unwrap();
        state.open = true;
        let held = std::mem::take(&mut state.held);
        held.iter().for_each(|(listener, id)| go_on(listener, *id));
    }
}

fn serve(shared: &Shared, listener: &Arc<OwnedFd>) {
    loop {
        // SAFETY: all-zero bytes are a valid `seccomp_notif`, and the call asks for them.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: `call` is valid for writes through the call.
        let result = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut call) };
        if result < 0 {
            match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => continue,
                // The lane's thread has ended.
                _ => return,
            }
        }
        let mut state = shared.state.lock().unwrap();
        state.seen += 1;
        if state.open {
            go_on(listener, call.id);
        } else {
            state.held.push_back((listener.clone(), call.id));
        }
        shared.changed.notify_all();
    }
}

fn go_on(listener: &OwnedFd, id: u64) {
    let answer = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: 0,
        flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    };
    // SAFETY: `answer` is valid for reads through the call. It fails when the thread is gone.
    unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw const answer) };
}

fn install(calls: &[libc::c_long]) -> OwnedFd {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    // The call's number is the first field of the filter's input.
    let mut filter = vec![op(load, 0, 0, 0)];
    for call in calls {
        filter.push(op(equal, 0, 1, *call as u32));
        filter.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    }
    filter.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live through the call; it concerns this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        assert!(listener >= 0, "seccomp: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(listener as i32)
    }
}
