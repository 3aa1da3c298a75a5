//! A guest that prints and then dies of a triple fault, again and again. Its output ends an epoch
//! while its vCPU cannot run, and a takeover must continue it nevertheless.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
#[path = "../machine/tests/images/mod.rs"]
mod images;
mod micro;
mod pair;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ft_core::Term;
use ft_core::primary::Phase;
use io_gate::host::new_gate;
use io_gate_host::Unfenced;
use kemari_machine::Machine;
use kemari_machine::config::{BootSource, MachineConfig};
use kemari_replication::primary::{Step, StepHooks};
use kemari_testbed::pair::status::Status;
use kemari_testbed::process::Process;

use images::{Elf, Segment};
use micro::{KEMARI, PATIENCE};

/// `mov dx, 0x3f8; mov al, 'B'; out dx, al; ud2`, without interrupt descriptors to handle the
/// exception.
const CODE: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'B', 0xee, 0x0f, 0x0b];

/// Waits for a condition for at most [`PATIENCE`].
fn until(what: &str, processes: &[&Process], mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        let logs =
            || processes.iter().map(|process| process.lines().join("\n")).collect::<Vec<_>>();
        assert!(Instant::now() < deadline, "{what}: not in time; {}", logs().join("\n---\n"));
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kernel() -> Vec<u8> {
    let segment = Segment { addr: 0x20_0000, bytes: CODE.to_vec(), memory: CODE.len() as u64 };
    Elf { segments: vec![segment], ..Elf::pvh() }.build()
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// P4, P7: no checkpoint has a vCPU that cannot run, and after a takeover the machine resets as
/// often as before.
#[test]
fn p4_a_takeover_between_a_triple_fault_and_its_reset_goes_on() {
    for round in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("kernel"), kernel()).unwrap();
        let link = format!("unix:{}", path("link").display());
        let arbiter = format!("file:{}", path("arbiter").display());
        let start = |name: &str, arguments: &[&str]| {
            let mut command = Command::new(KEMARI);
            command
                .args(arguments)
                .arg("--kernel")
                .arg(path("kernel"))
                .args(["--arbiter", &arbiter]);
            command.arg(format!("--serial=file={}", path(&format!("{name}.serial")).display()));
            command.arg("--control").arg(path(&format!("{name}.ctl"))).stdin(Stdio::null());
            Process::start(name, command, &path(&format!("{name}.log"))).unwrap()
        };
        let standby = start("standby", &["standby", "--listen", &link]);
        standby.wait_line("listening on", PATIENCE).unwrap();
        let mut primary = start("primary", &["run", "--memory", "16", "--standby", &link]);
        until("protected", &[&primary, &standby], || {
            Status::ask(Path::new(KEMARI), &path("primary.ctl"))
                .is_ok_and(|status| status.is_protected())
        });
        let begun = len(&path("primary.serial"));
        until("resets", &[&primary], || len(&path("primary.serial")) > begun + 10 + round);
        primary.kill();
        until("a takeover that goes on", &[&standby], || len(&path("standby.serial")) > 10);
        assert!(std::fs::read(path("standby.serial")).unwrap().iter().all(|byte| *byte == b'B'));
    }
}

/// P4: no checkpoint is taken of a vCPU that cannot run: the standby would refuse its state, and
/// the session would end. The guest is still protected while it resets itself.
#[test]
fn p4_no_checkpoint_is_taken_of_a_vcpu_that_cannot_go_on() {
    const CHECKPOINTS: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("kernel"), kernel()).unwrap();
    let boot = BootSource { kernel: path("kernel"), initrd: None, cmdline: String::new() };
    let config = MachineConfig { boot: Some(boot), ..pair::config(16 << 20, 1) };
    let (ledger, authority) = new_gate();
    let machine = Machine::build(config, ledger, Arc::new(Unfenced)).unwrap();
    machine.boot().unwrap();
    let standby = pair::Standby::start(&path("link"), PATIENCE, None);
    let (sessions, checkpoints) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begun, taken) = (sessions.clone(), checkpoints.clone());
    let count = |of: &AtomicUsize| {
        of.fetch_add(1, Ordering::SeqCst);
    };
    let mut options = pair::engine_options(&path("link"));
    options.steps = StepHooks {
        at: Some(Arc::new(move |_, step| {
            if step == Step::LogStarted {
                count(&begun);
            }
        })),
        state: Some(Arc::new(move |_| count(&taken))),
    };
    let engine = pair::start_engine(&machine, authority, None, Term(1), options);
    pair::wait_phase(&engine, Phase::Protected);
    pair::wait_for("checkpoints", || checkpoints.load(Ordering::SeqCst) > CHECKPOINTS);
    assert_eq!((sessions.load(Ordering::SeqCst), engine.phase()), (1, Phase::Protected));
    assert_eq!(machine.events().ended(), None);
    drop(standby);
    machine.stop();
}
