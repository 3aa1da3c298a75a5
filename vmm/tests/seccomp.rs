//! P5 at run time: the kernel stops hostile code in a device thread, and a line says which thread
//! tried which call. The device's normal work continues.
//!
//! Each case is a process of its own, whose device thread is the product's.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use io_gate::host::{Term, new_gate};
use io_gate::{
    Chain, ConfigSpace, ConfigWrite, ConsoleTx, Device, DeviceError, Gate, Identity, Port, Verdict,
    Writable, config_space,
};
use io_gate_host::backend::console::Console;
use io_gate_host::{Backend, Permission, Unfenced, VirtioSlot};
use kemari_arbiter::{Arbiter, FileArbiter};
use kemari_confine::logging;
use kemari_confine::seccomp::{self, EXIT_CODE, Mode, Role};
use kemari_machine::config::{ConsoleConfig, MachineConfig};
use kemari_machine::{AttachOptions, Machine};
use kemari_vmm::cli::console_terminal;

/// The environment variable that gives the child its directory, role, mode and attack.
const CASE: &str = "KEMARI_SECCOMP_CASE";
const SLOT: u16 = 99;
const BEFORE: &str = "not for guests";

/// The attacks of device code, and the system call behind each.
const ATTACKS: [(&str, &str); 15] = [
    ("write", "write"),
    ("write as if to a counter", "write"),
    ("positioned write", "pwrite64"),
    ("gathering write", "writev"),
    ("write to standard error", "write"),
    ("map a file", "mmap"),
    ("open", "openat"),
    ("socket", "socket"),
    ("send", "sendto"),
    ("copy a descriptor", "dup"),
    ("close", "close"),
    ("a request that is not KVM's", "ioctl"),
    ("io_uring", "io_uring_setup"),
    ("end somebody else", "kill"),
    ("start a program", "execve"),
];
const THREAD: &str = "start a thread";

config_space! {
    struct Space {
        /// Any write makes the device attack.
        attack: Writable<u8>,
    }
}

/// A device that has left safe Rust.
struct Hostile {
    attack: &'static str,
    file: RawFd,
    socket: RawFd,
}

impl Hostile {
    fn attack(&self) -> libc::c_long {
        const BYTES: &[u8; 8] = b"smuggled";
        let bytes = BYTES.as_ptr();
        let piece = libc::iovec { iov_base: bytes.cast_mut().cast(), iov_len: BYTES.len() };
        // SAFETY: every pointer is to memory that outlives the call.
        unsafe {
            match self.attack {
                "write" => libc::syscall(libc::SYS_write, self.file, bytes, 7),
                "write as if to a counter" => libc::syscall(libc::SYS_write, self.file, bytes, 8),
                "positioned write" => libc::syscall(libc::SYS_pwrite64, self.file, bytes, 8, 0),
                "gathering write" => {
                    libc::syscall(libc::SYS_writev, self.file, &raw const piece, 1)
                }
                "write to standard error" => libc::syscall(libc::SYS_write, 2, bytes, 8),
                "map a file" => {
                    let prot = libc::PROT_READ | libc::PROT_WRITE;
                    libc::syscall(libc::SYS_mmap, 0, 4096, prot, libc::MAP_SHARED, self.file, 0)
                }
                "open" => libc::syscall(
                    libc::SYS_openat,
                    libc::AT_FDCWD,
                    c"/etc/hostname".as_ptr(),
                    libc::O_RDONLY,
                ),
                "socket" => libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0),
                "send" => libc::syscall(libc::SYS_sendto, self.socket, bytes, 8, 0, 0, 0),
                "copy a descriptor" => libc::syscall(libc::SYS_dup, self.file),
                "close" => libc::syscall(libc::SYS_close, self.file),
                "a request that is not KVM's" => {
                    libc::syscall(libc::SYS_ioctl, self.socket, libc::FIONBIO, &raw const piece)
                }
                "io_uring" => libc::syscall(libc::SYS_io_uring_setup, 1, &raw const piece),
                "end somebody else" => libc::syscall(libc::SYS_kill, 1, 0),
                THREAD => {
                    // This attack succeeds if a thread could be started.
                    std::thread::spawn(|| ()).join().map_or(-1, |()| 0)
                }
                "start a program" => libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0),
                other => panic!("no such attack: {other}"),
            }
        }
    }
}

impl Device for Hostile {
    fn identity(&self) -> Identity {
        Identity { kind: "hostile", virtio_id: 63, state_version: 1 }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &[]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::of(&Space { attack: Writable::new(0) })
    }

    fn write_config(&mut self, _write: ConfigWrite<'_>, gate: &mut Gate<'_>) {
        match self.attack {
            "nothing" => {}
            "log" => log::info!("a line of a device"),
            "much memory" => {
                // These blocks are too small for a system call for each, and are freed all at once.
                let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 100 << 10]).collect();
                drop(std::hint::black_box(blocks));
            }
            "the gate" => gate.token::<ConsoleTx>().emit(Port(0), b"by the gate".to_vec()),
            _ => drop(self.attack()),
        }
    }

    fn process<'e>(
        &mut self,
        _queue: u16,
        _chain: &mut Chain<'_>,
        _gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        Err(DeviceError::Malformed("it has no queue"))
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        if DROPS_HOSTILE.with(std::cell::Cell::get) {
            let _ = self.attack();
        }
    }
}

thread_local! {
    /// Whether the drop of a device runs its attack.
    static DROPS_HOSTILE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// A machine before its start.
fn built(dir: &Path) -> Arc<Machine> {
    let config = MachineConfig {
        serial: ConsoleConfig::File(dir.join("serial")),
        ..MachineConfig::bare("test", 16 << 20, 1)
    };
    let (ledger, mut authority) = new_gate();
    let machine = Machine::build(config, ledger, Arc::new(Unfenced)).unwrap();
    machine.gate().run_alone(authority.alone(Term(0)));
    machine
}

fn machine(dir: &Path) -> Arc<Machine> {
    let machine = built(dir);
    machine.attach_backends(AttachOptions { shared_disks: true, append: false }).unwrap();
    let console = Console::file(&dir.join("console"), false).unwrap();
    machine.gate().attach(SLOT, Port(0), Backend::Console(console)).unwrap();
    machine.start().unwrap();
    machine
}

/// Not a test: the process of one case.
#[test]
#[ignore = "the other process of the tests in this file"]
fn child() {
    let case = std::env::var(CASE).unwrap();
    let [dir, role, mode, attack]: [&str; 4] =
        case.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let dir = Path::new(dir);
    logging::start(console_terminal());
    let mode = match mode {
        "off" => Mode::Off,
        "log" => Mode::Log,
        _ => Mode::On,
    };
    seccomp::start(mode, console_terminal()).unwrap();
    logging::start_writer().unwrap();
    let file = File::options().read(true).write(true).open(dir.join("file")).unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let known = ["nothing", "log", "much memory", "the gate", THREAD]
        .into_iter()
        .chain(ATTACKS.map(|(attack, _)| attack));
    let attack = known.into_iter().find(|known| *known == attack).unwrap();
    let machine = if role == "new device" { built(dir) } else { machine(dir) };
    let hostile = Hostile { attack, file: file.as_raw_fd(), socket: socket.as_raw_fd() };
    if role == "new device" {
        // The attack runs while the machine makes its devices.
        machine.device_loop().call(move |_| hostile.attack()).unwrap();
        machine.stop();
        eprintln!("it survived");
        std::process::exit(0);
    }
    let mut slot = VirtioSlot::new(SLOT, Box::new(hostile), machine.gate().clone());
    match role {
        "end of a device" => {
            DROPS_HOSTILE.with(|drops| drops.set(true));
            drop(slot);
        }
        "lane" => ask_all_fences(dir),
        "device" => {
            machine.device_loop().call(move |_| slot.write_config(0, &[0]).any()).unwrap();
        }
        _ => {
            let wakes = machine.wakes();
            let run = move || {
                seccomp::enter(Role::Vcpu, &wakes);
                let _ = slot.write_config(0, &[0]);
            };
            let thread = std::thread::Builder::new().name("vcpu9".to_owned()).spawn(run).unwrap();
            thread.join().unwrap();
        }
    }
    machine.stop();
    logging::flush();
    eprintln!("it survived");
    // Exit without libtest's threads and summaries.
    std::process::exit(0);
}

/// What a thread that performs effects may find in an arbiter's directory.
const FOUND: [(&str, Permission); 5] = [
    ("its own term is the last", Permission::Granted),
    ("a claim of its own is under way", Permission::Granted),
    ("another machine has won a later term", Permission::Lost),
    ("its record is gone", Permission::Unknown),
    ("the directory is gone", Permission::Unknown),
];

/// Asks for the permission to perform, in each of the cases of [`FOUND`].
fn ask_all_fences(dir: &Path) {
    let fences = FOUND.map(|(case, expected)| {
        let base = dir.join(case);
        std::fs::create_dir(&base).unwrap();
        let arbiter = FileArbiter::open(&base, "vm", "ours".to_owned()).unwrap();
        arbiter.begin(false).unwrap();
        find(&base.join("vm"), case);
        (case, expected, arbiter)
    });
    let ask = move || {
        seccomp::enter(Role::Lane, &[]);
        for (case, expected, arbiter) in &fences {
            assert_eq!(arbiter.fence().ask(), *expected, "{case}");
        }
    };
    std::thread::Builder::new().name("lane9".to_owned()).spawn(ask).unwrap().join().unwrap();
}

fn find(records: &Path, case: &str) {
    let of = |term: u64| records.join(format!("term-{term:020}.json"));
    let tell = |term| {
        let mut file = File::options().append(true).open(of(term)).unwrap();
        file.write_all(b"succeeded\n").unwrap();
    };
    match case {
        // The claim's own record exists, and the earlier record is marked; whether the claim was
        // won is not known yet.
        "a claim of its own is under way" => {
            let record = std::fs::read_to_string(of(1)).unwrap();
            std::fs::write(of(2), record.replace("\"term\": 1", "\"term\": 2")).unwrap();
            tell(1);
        }
        "another machine has won a later term" => {
            let record = std::fs::read_to_string(of(1)).unwrap();
            let record = record.replace("\"term\": 1", "\"term\": 2").replace("ours", "theirs");
            std::fs::write(of(2), record).unwrap();
            tell(1);
        }
        "its record is gone" => std::fs::remove_file(of(1)).unwrap(),
        "the directory is gone" => std::fs::remove_dir_all(records).unwrap(),
        _ => {}
    }
}

struct Case {
    dir: tempfile::TempDir,
    output: Output,
    stderr: String,
}

fn run(role: &str, mode: &str, attack: &str) -> Case {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), BEFORE).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(CASE, [dir.path().to_str().unwrap(), role, mode, attack].join("\n"))
        .env("RUST_LOG", "info")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Case { dir, output, stderr }
}

impl Case {
    fn file(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("file")).unwrap()
    }

    #[track_caller]
    fn assert_stopped(&self, thread: &str, role: &str, call: &str) {
        let expected = format!("thread `{thread}` (role {role}) tried the system call {call} (");
        assert!(self.stderr.contains(&expected), "expected `{expected}`, found: {}", self.stderr);
        assert!(!self.stderr.contains("it survived"), "{}", self.stderr);
        assert!(!self.stderr.contains("smuggled"), "{}", self.stderr);
        assert_eq!(self.output.status.code(), Some(EXIT_CODE.into()), "{}", self.stderr);
        assert_eq!(self.file(), BEFORE);
    }

    #[track_caller]
    fn assert_survived(&self) {
        assert!(self.output.status.success(), "{}: {}", self.output.status, self.stderr);
        assert!(self.stderr.contains("it survived"), "{}", self.stderr);
    }
}

#[test]
fn p5_a_device_thread_is_stopped_when_it_reaches_out() {
    for (attack, call) in ATTACKS {
        run("device", "on", attack).assert_stopped("devices", "device", call);
    }
}

/// The attack runs where devices are made, long before the guest runs.
#[test]
fn p5_a_device_is_stopped_when_it_reaches_out_as_it_is_made() {
    for (attack, call) in ATTACKS {
        run("new device", "on", attack).assert_stopped("devices", "device", call);
    }
}

/// There is no line about the call: the C library starts threads with all signals blocked.
#[test]
fn p5_a_device_that_starts_a_thread_ends_the_process() {
    for role in ["new device", "device", "vcpu"] {
        let case = run(role, "on", THREAD);
        assert_eq!(case.output.status.signal(), Some(libc::SIGSYS), "{role}: {}", case.stderr);
        assert!(!case.stderr.contains("it survived"), "{role}: {}", case.stderr);
    }
    run("new device", "off", THREAD).assert_survived();
}

/// P5. Fails if the end of a machine, which runs on a thread with more rights, runs a device's
/// code.
#[test]
fn p5_the_end_of_a_device_runs_none_of_its_code() {
    let case = run("end of a device", "on", "write");
    case.assert_survived();
    assert_eq!(case.file(), BEFORE);
}

#[test]
fn p5_a_vcpu_thread_is_stopped_when_it_reaches_out() {
    for (attack, call) in ATTACKS {
        run("vcpu", "on", attack).assert_stopped("vcpu9", "vcpu", call);
    }
}

/// Fails if the role lacks a call that only one of the answers needs: a machine that continues
/// alone would then be killed during its own claim.
#[test]
fn p2_a_performing_thread_may_read_every_answer_of_the_arbiters_files() {
    run("lane", "on", "nothing").assert_survived();
}

/// The attacks are real: they succeed without the filters.
#[test]
fn without_the_filters_the_attacks_succeed() {
    for mode in ["off", "log"] {
        for attack in ["write", "positioned write", "gathering write"] {
            let case = run("device", mode, attack);
            case.assert_survived();
            assert!(case.file().starts_with("smuggle"), "{mode}, {attack}: {}", case.file());
        }
    }
}

/// A device's normal work succeeds, and another thread writes its log lines.
#[test]
fn the_gate_and_the_log_are_open() {
    for role in ["device", "vcpu"] {
        run(role, "on", "nothing").assert_survived();
        run(role, "on", "much memory").assert_survived();
        let case = run(role, "on", "the gate");
        case.assert_survived();
        let console = std::fs::read_to_string(case.dir.path().join("console")).unwrap();
        assert_eq!(console, "by the gate");
        let case = run(role, "on", "log");
        case.assert_survived();
        assert!(case.stderr.contains("a line of a device"), "{}", case.stderr);
    }
}
