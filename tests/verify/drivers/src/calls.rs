//! Replacements for the functions of the C library through which the product makes system calls and
//! waits. The linker prefers this program's symbols to the library's. A call by a thread outside of
//! the world, or inside the scheduler, goes straight to the kernel.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::sync::OnceLock;

use crate::faults::Call;
use crate::raw;
use crate::scheduler::{self, Nanos, On, ThreadId, Woken, point};
use crate::{faults, hosts, kvm, watch};

const SECOND: Nanos = 1_000_000_000;

fn set_errno(number: i32) {
    // SAFETY: the place is this thread's.
    unsafe { *libc::__errno_location() = number };
}

/// Converts the kernel's result to the C library's convention (`errno` and -1).
fn answer(result: i64) -> i64 {
    if (-4095..0).contains(&result) {
        set_errno((-result) as i32);
        return -1;
    }
    result
}

fn fail(number: i32) -> i64 {
    answer(-i64::from(number))
}

/// Makes the system call as the C library does.
fn make(number: c_long, a: [usize; 6]) -> i64 {
    // SAFETY: the arguments are those of the caller of the C library's function, who is responsible
    // for them.
    answer(unsafe { raw::syscall(number, a) })
}

fn in_world() -> bool {
    scheduler::me().is_some()
}

/// A call on a file: other threads may run first, and the storage may be slow.
fn file_call(number: c_long, a: [usize; 6]) -> i64 {
    if !in_world() {
        return make(number, a);
    }
    point();
    faults::pass_storage_time();
    // SAFETY: as in `make`.
    let result = unsafe { raw::syscall(number, a) };
    faults::pass_storage_time();
    faults::called(Call::File);
    answer(result)
}

macro_rules! file_calls {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $number:expr;)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $ty),*) -> $ret {
            let mut a = [0; 6];
            let given = [$($arg as usize),*];
            a[..given.len()].copy_from_slice(&given);
            file_call($number, a) as $ret
        }
    )*};
}

file_calls! {
    fsync(fd: c_int) -> c_int = libc::SYS_fsync;
    fdatasync(fd: c_int) -> c_int = libc::SYS_fdatasync;
    linkat(from: c_int, path: *const c_char, to: c_int, new: *const c_char, flags: c_int) -> c_int = libc::SYS_linkat;
    renameat2(from: c_int, path: *const c_char, to: c_int, new: *const c_char, flags: u32) -> c_int = libc::SYS_renameat2;
    unlink(path: *const c_char) -> c_int = libc::SYS_unlink;
    mkdir(path: *const c_char, mode: u32) -> c_int = libc::SYS_mkdir;
    statx(dir: c_int, path: *const c_char, flags: c_int, mask: u32, into: *mut c_void) -> c_int = libc::SYS_statx;
    ftruncate64(fd: c_int, len: i64) -> c_int = libc::SYS_ftruncate;
    fallocate64(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int = libc::SYS_fallocate;
    pread64(fd: c_int, into: *mut c_void, len: usize, offset: i64) -> isize = libc::SYS_pread64;
    pwrite64(fd: c_int, from: *const c_void, len: usize, offset: i64) -> isize = libc::SYS_pwrite64;
}

fn open_at(path: *const c_char, flags: c_int, mode: u32) -> c_int {
    let at = libc::AT_FDCWD as isize as usize;
    let fd = file_call(libc::SYS_openat, [at, path as usize, flags as usize, mode as usize, 0, 0]);
    if fd >= 0 && in_world() {
        hosts::opened(fd as c_int);
        // SAFETY: the caller has passed a zero-terminated path.
        watch::opened(fd as c_int, unsafe { std::ffi::CStr::from_ptr(path) });
    }
    fd as c_int
}

#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: u32) -> c_int {
    open_at(path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn open(path: *const c_char, flags: c_int, mode: u32) -> c_int {
    open_at(path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn close(fd: c_int) -> c_int {
    if in_world() {
        hosts::closed(fd);
        point();
    }
    make(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) as c_int
}

/// Ends the process: no thread of its host runs any more, and the kernel closes its descriptors.
#[unsafe(no_mangle)]
extern "C" fn exit(code: c_int) -> ! {
    if !in_world() {
        make(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0, 0]);
    }
    let host = scheduler::host();
    crate::trace(&format!("{host:?} exits with {code}"));
    hosts::end(host);
    loop {
        scheduler::sleep(0);
    }
}

// --- Waiting on words: locks, condition variables, channels.

#[unsafe(no_mangle)]
extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if number == libc::SYS_futex && in_world() {
        return futex(a, b as c_int, c as u32, d, [a, b, c, d, e, f]);
    }
    if number == libc::SYS_getrandom && in_world() {
        return getrandom(a as *mut c_void, b, c as u32) as c_long;
    }
    make(number, [a, b, c, d, e, f])
}

fn futex(word: usize, operation: c_int, value: u32, timeout: usize, all: [usize; 6]) -> i64 {
    match operation & libc::FUTEX_CMD_MASK {
        libc::FUTEX_WAIT => {
            let deadline = (timeout != 0).then(|| after(read_time(timeout)));
            futex_wait(word, value, deadline)
        }
        libc::FUTEX_WAIT_BITSET => {
            let deadline = (timeout != 0).then(|| hosts::moment_of(read_time(timeout)));
            futex_wait(word, value, deadline)
        }
        libc::FUTEX_WAKE => {
            let woken = scheduler::with(|world| world.wake(word, value as usize));
            point();
            woken as i64
        }
        _ => make(libc::SYS_futex, all),
    }
}

fn futex_wait(word: usize, value: u32, deadline: Option<Nanos>) -> i64 {
    // SAFETY: the caller passes the address of a word of its own.
    let found = unsafe {
        (*(word as *const std::sync::atomic::AtomicU32)).load(std::sync::atomic::Ordering::SeqCst)
    };
    if found != value {
        return fail(libc::EAGAIN);
    }
    match scheduler::wait(On::Futex(word), deadline) {
        Woken::Event => 0,
        Woken::Time => fail(libc::ETIMEDOUT),
    }
}

/// Reads a `timespec` of the product.
fn read_time(at: usize) -> Nanos {
    // SAFETY: the caller passes the address of a time of its own.
    let time = unsafe { *(at as *const libc::timespec) };
    time.tv_sec as Nanos * SECOND + time.tv_nsec as Nanos
}

/// The moment that is `nanos` later by the host's own clock.
fn after(nanos: Nanos) -> Nanos {
    hosts::moment_of(hosts::clock() + nanos)
}

// --- Time.

#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: c_int, into: *mut libc::timespec) -> c_int {
    if !in_world() {
        return make(libc::SYS_clock_gettime, [clock as usize, into as usize, 0, 0, 0, 0]) as c_int;
    }
    let nanos = match clock {
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_BOOTTIME => {
            point();
            hosts::clock()
        }
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => hosts::wall_clock(),
        _ => {
            return make(libc::SYS_clock_gettime, [clock as usize, into as usize, 0, 0, 0, 0])
                as c_int;
        }
    };
    // SAFETY: the caller passes room for a time.
    unsafe {
        *into =
            libc::timespec { tv_sec: (nanos / SECOND) as i64, tv_nsec: (nanos % SECOND) as i64 };
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn nanosleep(time: *const libc::timespec, _rest: *mut libc::timespec) -> c_int {
    if !in_world() {
        return make(libc::SYS_nanosleep, [time as usize, 0, 0, 0, 0, 0]) as c_int;
    }
    scheduler::wait(On::Time, Some(after(read_time(time as usize))));
    0
}

#[unsafe(no_mangle)]
extern "C" fn clock_nanosleep(
    clock: c_int,
    flags: c_int,
    time: *const libc::timespec,
    rest: *mut libc::timespec,
) -> c_int {
    if !in_world() {
        let a = [clock as usize, flags as usize, time as usize, rest as usize, 0, 0];
        // SAFETY: the caller's arguments.
        return -unsafe { raw::syscall(libc::SYS_clock_nanosleep, a) } as c_int;
    }
    let given = read_time(time as usize);
    let deadline =
        if flags & libc::TIMER_ABSTIME == 0 { after(given) } else { hosts::moment_of(given) };
    scheduler::wait(On::Time, Some(deadline));
    0
}

#[unsafe(no_mangle)]
extern "C" fn sched_yield() -> c_int {
    point();
    0
}

#[unsafe(no_mangle)]
extern "C" fn timerfd_create(clock: c_int, flags: c_int) -> c_int {
    if !in_world() {
        return make(libc::SYS_timerfd_create, [clock as usize, flags as usize, 0, 0, 0, 0])
            as c_int;
    }
    // The flags of both calls have the same values.
    let fd = make(libc::SYS_eventfd2, [0, flags as usize, 0, 0, 0, 0]) as c_int;
    scheduler::with(|world| {
        world.timers.insert(fd, scheduler::Timer { deadline: None, interval: 0 })
    });
    fd
}

#[unsafe(no_mangle)]
extern "C" fn timerfd_settime(
    fd: c_int,
    flags: c_int,
    new: *const libc::itimerspec,
    old: *mut libc::itimerspec,
) -> c_int {
    if !in_world() {
        let a = [fd as usize, flags as usize, new as usize, old as usize, 0, 0];
        return make(libc::SYS_timerfd_settime, a) as c_int;
    }
    assert_eq!(flags, 0, "the product's timers are relative");
    // SAFETY: the caller passes the address of a time of its own.
    let (value, interval) = unsafe { ((*new).it_value, (*new).it_interval) };
    let nanos = |time: libc::timespec| time.tv_sec as Nanos * SECOND + time.tv_nsec as Nanos;
    if raw::is_ready(fd, libc::POLLIN) {
        let mut count = 0_u64;
        make(libc::SYS_read, [fd as usize, (&raw mut count) as usize, 8, 0, 0, 0]);
    }
    let deadline = (nanos(value) > 0).then(|| after(nanos(value)));
    scheduler::with(|world| {
        world.timers.insert(fd, scheduler::Timer { deadline, interval: nanos(interval) });
    });
    point();
    0
}

#[unsafe(no_mangle)]
extern "C" fn getrandom(into: *mut c_void, len: usize, flags: u32) -> isize {
    if !in_world() {
        return make(libc::SYS_getrandom, [into as usize, len, flags as usize, 0, 0, 0]) as isize;
    }
    // SAFETY: the caller passes room for this many bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(into.cast::<u8>(), len) };
    scheduler::with(|world| world.random.fill(bytes));
    len as isize
}

/// Reports one processor: with several, code would spin until another processor makes progress.
#[unsafe(no_mangle)]
extern "C" fn sched_getaffinity(_pid: c_int, size: usize, into: *mut u8) -> c_int {
    // SAFETY: the caller passes room for this many bytes.
    unsafe {
        std::slice::from_raw_parts_mut(into, size).fill(0);
        *into = 1;
    }
    0
}

// --- Reading and writing.

fn waits(fd: c_int) -> bool {
    // SAFETY: no memory is involved.
    let flags =
        unsafe { raw::syscall(libc::SYS_fcntl, [fd as usize, libc::F_GETFL as usize, 0, 0, 0, 0]) };
    flags >= 0 && flags as c_int & libc::O_NONBLOCK == 0
}

/// Blocks, as the kernel would, until `fd` is ready; `false` if the socket's own time-out comes
/// first.
fn wait_ready(fd: c_int, events: i16, option: c_int) -> bool {
    if !waits(fd) {
        return true;
    }
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut len = size_of::<libc::timeval>() as libc::socklen_t;
    let a = [
        fd as usize,
        libc::SOL_SOCKET as usize,
        option as usize,
        (&raw mut time) as usize,
        (&raw mut len) as usize,
        0,
    ];
    // SAFETY: room for a time, and its length. A descriptor that is no socket has no time-out.
    let known = unsafe { raw::syscall(libc::SYS_getsockopt, a) } == 0;
    let nanos = time.tv_sec as Nanos * SECOND + time.tv_usec as Nanos * 1000;
    let deadline = (known && nanos > 0).then(|| after(nanos));
    if raw::is_ready(fd, events) {
        return true;
    }
    scheduler::wait(On::Fds(vec![(fd, events)]), deadline) == Woken::Event
}

fn is_socket(fd: c_int) -> bool {
    let (mut kind, mut len) = (0_i32, 4_u32);
    let a = [
        fd as usize,
        libc::SOL_SOCKET as usize,
        libc::SO_TYPE as usize,
        (&raw mut kind) as usize,
        (&raw mut len) as usize,
        0,
    ];
    // SAFETY: room for a number, and its length.
    unsafe { raw::syscall(libc::SYS_getsockopt, a) == 0 }
}

#[unsafe(no_mangle)]
extern "C" fn read(fd: c_int, into: *mut c_void, len: usize) -> isize {
    if in_world() {
        point();
        if !wait_ready(fd, libc::POLLIN, libc::SO_RCVTIMEO) {
            return fail(libc::EAGAIN) as isize;
        }
        if is_socket(fd) {
            let len = faults::short(len);
            return make(libc::SYS_read, [fd as usize, into as usize, len, 0, 0, 0]) as isize;
        }
    }
    make(libc::SYS_read, [fd as usize, into as usize, len, 0, 0, 0]) as isize
}

#[unsafe(no_mangle)]
extern "C" fn recv(fd: c_int, into: *mut c_void, len: usize, flags: c_int) -> isize {
    let mut len = len;
    if in_world() {
        point();
        if flags & libc::MSG_DONTWAIT == 0 && !wait_ready(fd, libc::POLLIN, libc::SO_RCVTIMEO) {
            return fail(libc::EAGAIN) as isize;
        }
        len = faults::short(len);
    }
    make(libc::SYS_recvfrom, [fd as usize, into as usize, len, flags as usize, 0, 0]) as isize
}

/// Writes as much as fits. A blocking writer first waits for room.
fn write_some(fd: c_int, from: *const c_void, len: usize, flags: c_int) -> isize {
    let quiet = flags & libc::MSG_DONTWAIT != 0;
    if !quiet && !wait_ready(fd, libc::POLLOUT, libc::SO_SNDTIMEO) {
        return fail(libc::EAGAIN) as isize;
    }
    if is_socket(fd) {
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let len = faults::short(len);
        return make(libc::SYS_sendto, [fd as usize, from as usize, len, flags as usize, 0, 0])
            as isize;
    }
    // A blocking pipe that polls writable has room for a page.
    let len = if waits(fd) { len.min(4096) } else { len };
    make(libc::SYS_write, [fd as usize, from as usize, len, 0, 0, 0]) as isize
}

#[unsafe(no_mangle)]
extern "C" fn write(fd: c_int, from: *const c_void, len: usize) -> isize {
    if !in_world() {
        return make(libc::SYS_write, [fd as usize, from as usize, len, 0, 0, 0]) as isize;
    }
    point();
    let written = write_some(fd, from, len, 0);
    if written > 0 {
        // SAFETY: the caller has passed at least this many bytes.
        watch::written(fd, unsafe { std::slice::from_raw_parts(from.cast(), written as usize) });
    }
    if is_socket(fd) {
        faults::called(Call::Send);
    }
    written
}

#[unsafe(no_mangle)]
extern "C" fn send(fd: c_int, from: *const c_void, len: usize, flags: c_int) -> isize {
    if !in_world() {
        return make(libc::SYS_sendto, [fd as usize, from as usize, len, flags as usize, 0, 0])
            as isize;
    }
    point();
    let sent = write_some(fd, from, len, flags);
    faults::called(Call::Send);
    sent
}

#[unsafe(no_mangle)]
extern "C" fn writev(fd: c_int, pieces: *const libc::iovec, count: c_int) -> isize {
    if !in_world() {
        return make(libc::SYS_writev, [fd as usize, pieces as usize, count as usize, 0, 0, 0])
            as isize;
    }
    // SAFETY: the caller has passed this many pieces. Only the first piece that is not empty is
    // written: a short count is permitted.
    let pieces = unsafe { std::slice::from_raw_parts(pieces, count as usize) };
    match pieces.iter().find(|piece| piece.iov_len > 0) {
        Some(piece) => write(fd, piece.iov_base, piece.iov_len),
        None => 0,
    }
}

#[unsafe(no_mangle)]
extern "C" fn accept4(fd: c_int, from: *mut c_void, len: *mut u32, flags: c_int) -> c_int {
    if in_world() {
        point();
        wait_ready(fd, libc::POLLIN, libc::SO_RCVTIMEO);
    }
    let a = [fd as usize, from as usize, len as usize, flags as usize, 0, 0];
    let made = make(libc::SYS_accept4, a) as c_int;
    if made >= 0 && in_world() {
        hosts::opened(made);
    }
    made
}

#[unsafe(no_mangle)]
extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    let made = make(libc::SYS_socket, [domain as usize, kind as usize, protocol as usize, 0, 0, 0])
        as c_int;
    if made >= 0 && in_world() {
        hosts::opened(made);
    }
    made
}

#[unsafe(no_mangle)]
extern "C" fn connect(fd: c_int, to: *const c_void, len: u32) -> c_int {
    point();
    make(libc::SYS_connect, [fd as usize, to as usize, len as usize, 0, 0, 0]) as c_int
}

// --- Waiting for descriptors.

fn wait_any(fds: *mut libc::pollfd, count: usize, deadline: Option<Nanos>) -> i64 {
    point();
    let now = || make(libc::SYS_poll, [fds as usize, count, 0, 0, 0, 0]);
    let found = now();
    if found != 0 {
        return found;
    }
    // SAFETY: the caller has passed this many.
    let given = unsafe { std::slice::from_raw_parts(fds, count) };
    let fds = given.iter().filter(|fd| fd.fd >= 0).map(|fd| (fd.fd, fd.events)).collect();
    match scheduler::wait(On::Fds(fds), deadline) {
        Woken::Event => now(),
        Woken::Time => 0,
    }
}

#[unsafe(no_mangle)]
extern "C" fn poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int) -> c_int {
    if !in_world() || timeout == 0 {
        point();
        return make(libc::SYS_poll, [fds as usize, count as usize, timeout as usize, 0, 0, 0])
            as c_int;
    }
    let deadline = (timeout > 0).then(|| after(timeout as Nanos * 1_000_000));
    wait_any(fds, count as usize, deadline) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn ppoll(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout: *const libc::timespec,
    mask: *const c_void,
) -> c_int {
    if !in_world() {
        let a = [fds as usize, count as usize, timeout as usize, mask as usize, 8, 0];
        return make(libc::SYS_ppoll, a) as c_int;
    }
    let deadline = (!timeout.is_null()).then(|| after(read_time(timeout as usize)));
    wait_any(fds, count as usize, deadline) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn epoll_wait(
    fd: c_int,
    into: *mut libc::epoll_event,
    count: c_int,
    timeout: c_int,
) -> c_int {
    let now = || {
        make(libc::SYS_epoll_wait, [fd as usize, into as usize, count as usize, 0, 0, 0]) as c_int
    };
    if !in_world() {
        let a = [fd as usize, into as usize, count as usize, timeout as usize, 0, 0];
        return make(libc::SYS_epoll_wait, a) as c_int;
    }
    point();
    if timeout != 0 && !raw::is_ready(fd, libc::POLLIN) {
        let deadline = (timeout > 0).then(|| after(timeout as Nanos * 1_000_000));
        if scheduler::wait(On::Fds(vec![(fd, libc::POLLIN)]), deadline) == Woken::Time {
            return 0;
        }
    }
    now()
}

// --- KVM.

#[unsafe(no_mangle)]
extern "C" fn ioctl(fd: c_int, request: std::ffi::c_ulong, argument: usize) -> c_int {
    let plain = || {
        // SAFETY: as in `make`.
        unsafe { raw::syscall(libc::SYS_ioctl, [fd as usize, request as usize, argument, 0, 0, 0]) }
    };
    if !in_world() {
        return answer(plain()) as c_int;
    }
    point();
    let result = answer(kvm::ioctl(fd, request, argument, plain)) as c_int;
    point();
    faults::called(Call::Kvm);
    result
}

#[unsafe(no_mangle)]
extern "C" fn mmap(
    at: usize,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let a = [at, len, protection as usize, flags as usize, fd as usize, offset as usize];
    let made = make(libc::SYS_mmap, a);
    if made > 0 && fd >= 0 && in_world() {
        kvm::mapped(fd, made as usize);
    }
    made as *mut c_void
}

#[unsafe(no_mangle)]
extern "C" fn mmap64(
    at: usize,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    mmap(at, len, protection, flags, fd, offset)
}

// --- Threads.

type Start = extern "C" fn(*mut c_void) -> *mut c_void;
type Create = extern "C" fn(*mut libc::pthread_t, *const c_void, Start, *mut c_void) -> c_int;
type Join = extern "C" fn(libc::pthread_t, *mut *mut c_void) -> c_int;

/// The address of a function in the C library itself.
fn library(name: &std::ffi::CStr) -> usize {
    // SAFETY: the name ends in a zero.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!found.is_null(), "the C library has {name:?}");
    found as usize
}

struct Begin {
    id: ThreadId,
    turn: *const std::sync::atomic::AtomicU32,
    start: Start,
    argument: *mut c_void,
}

/// The thread-local key whose destructor ends a thread for the scheduler. It runs after the
/// destructors of Rust's thread-local values, which take locks.
fn end_key() -> libc::pthread_key_t {
    static KEY: OnceLock<libc::pthread_key_t> = OnceLock::new();
    *KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: room for a key, and a function that lives forever.
        unsafe { libc::pthread_key_create(&raw mut key, Some(ended)) };
        key
    })
}

/// The C library calls this in rounds, as long as values are set again. The thread leaves in a
/// later round, after the destructors of the first round.
extern "C" fn ended(value: *mut c_void) {
    let value = value as usize;
    let (id, rounds) = (value >> 3, value & 7);
    if rounds > 1 {
        // SAFETY: the key was made.
        unsafe { libc::pthread_setspecific(end_key(), (value - 1) as *const c_void) };
        return;
    }
    scheduler::leave(id);
}

extern "C" fn run(begin: *mut c_void) -> *mut c_void {
    // SAFETY: made by `pthread_create` below, for this thread alone.
    let begin = unsafe { Box::from_raw(begin.cast::<Begin>()) };
    // SAFETY: the word is never freed.
    scheduler::enter(begin.id, unsafe { &*begin.turn });
    // SAFETY: the key was made.
    unsafe { libc::pthread_setspecific(end_key(), (begin.id << 3 | 2) as *const c_void) };
    let (start, argument) = (begin.start, begin.argument);
    drop(begin);
    start(argument)
}

#[unsafe(no_mangle)]
extern "C" fn pthread_create(
    into: *mut libc::pthread_t,
    attributes: *const c_void,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the library's function of that name has this type.
    let create: Create = unsafe { std::mem::transmute(library(c"pthread_create")) };
    if !in_world() {
        return create(into, attributes, start, argument);
    }
    end_key();
    // Allocate nothing between the announcement and the start: an allocation could give the turn to
    // the announced thread before it exists.
    let mut begin = Box::new(Begin { id: 0, turn: std::ptr::null(), start, argument });
    let (id, turn) = scheduler::with(|world| world.add(String::new(), hosts::current(world)));
    (begin.id, begin.turn) = (id, turn);
    let done = create(into, attributes, run, Box::into_raw(begin).cast());
    if done == 0 {
        // SAFETY: the library has written it.
        let thread = unsafe { *into };
        hosts::started(id, thread);
    }
    point();
    faults::called(Call::Start);
    done
}

#[unsafe(no_mangle)]
extern "C" fn pthread_join(thread: libc::pthread_t, into: *mut *mut c_void) -> c_int {
    if in_world()
        && let Some(id) = hosts::thread(thread)
    {
        point();
        if !scheduler::with(|world| world.has_ended(id)) {
            scheduler::wait(On::End(id), None);
        }
    }
    // SAFETY: the library's function of that name has this type.
    let join: Join = unsafe { std::mem::transmute(library(c"pthread_join")) };
    join(thread, into)
}

#[unsafe(no_mangle)]
extern "C" fn pthread_kill(thread: libc::pthread_t, _signal: c_int) -> c_int {
    match hosts::thread(thread) {
        Some(id) => {
            scheduler::with(|world| world.kick(id));
            point();
            0
        }
        None => libc::ESRCH,
    }
}

#[unsafe(no_mangle)]
extern "C" fn pthread_setname_np(_thread: libc::pthread_t, name: *const c_char) -> c_int {
    if let Some(id) = scheduler::me() {
        // SAFETY: the caller has given a name that ends in a zero.
        let name = unsafe { std::ffi::CStr::from_ptr(name) };
        scheduler::with(|world| world.threads[id].name = name.to_string_lossy().into_owned());
    }
    0
}

/// The system's allocator with a scheduling point at each allocation: threads that share data
/// usually allocate.
#[derive(Debug)]
pub(crate) struct Allocator;

// SAFETY: the system's allocator does the work.
unsafe impl std::alloc::GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        scheduler::small_point();
        // SAFETY: the caller's layout.
        unsafe { std::alloc::System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: std::alloc::Layout) {
        // SAFETY: the caller's memory and layout.
        unsafe { std::alloc::System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: std::alloc::Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's memory, layout and size.
        unsafe { std::alloc::System.realloc(at, layout, size) }
    }
}
