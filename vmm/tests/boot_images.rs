//! P7: the boot files are sent with the session. The side that takes over can reset the guest, and
//! pass the files on.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../hypervisor/tests/common/mod.rs"]
mod common;
mod pair;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ft_core::Term;
use ft_core::primary::Phase;
use ft_core::standby::Event as StandbyEvent;
use io_gate::host::new_gate;
use io_gate_host::Unfenced;
use kemari_machine::boot::Boot;
use kemari_machine::config::{BootSource, MachineConfig};
use kemari_machine::{AttachOptions, Machine};
use kemari_replication::primary::{Engine, EngineResources};
use kemari_replication::standby::{End, Inheritance, Input};
use vm_memory::{Bytes, GuestAddress};

use pair::{
    Cable, PATIENCE, Standby, config, engine_options, start_engine, start_sealing, wait_for,
    wait_phase,
};

const MEMORY: u64 = 16 << 20;
/// The load address of the kernel, which only runs `jmp $`.
const LOAD: u32 = 0x10_0000;
const CODE: [u8; 2] = [0xeb, 0xfe];
/// Longer than one frame, and not a multiple of a frame; unlike any page of the guest.
const INITRD: usize = (3 << 20) + 77;

/// An ELF image with a PVH note whose entry is [`CODE`].
fn kernel() -> Vec<u8> {
    let words =
        |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let longs =
        |longs: &[u64]| longs.iter().flat_map(|long| long.to_le_bytes()).collect::<Vec<_>>();
    let note = words(&[4, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD]);
    let note_at = 64 + 2 * 56_u64;
    let code_at = note_at + note.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    // Executable for x86-64; entry; two program headers.
    image.extend(words(&[62 << 16 | 2, 1]));
    image.extend(longs(&[u64::from(LOAD), 64, 0]));
    image.extend(words(&[0, 56 << 16 | 64, 64 << 16 | 2, 0]));
    for (kind, at, address, len) in
        [(1, code_at, u64::from(LOAD), CODE.len() as u64), (4, note_at, 0, note.len() as u64)]
    {
        image.extend(words(&[kind, 7]));
        image.extend(longs(&[at, address, address, len, len, 4]));
    }
    [image, note, CODE.to_vec()].concat()
}

fn initrd() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(13);
    std::iter::repeat_with(|| random.u8(..)).take(INITRD).collect()
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kernel"), kernel()).unwrap();
        std::fs::write(dir.path().join("initrd"), initrd()).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self) -> BootSource {
        let (kernel, initrd) = (self.path("kernel"), Some(self.path("initrd")));
        BootSource { kernel, initrd, cmdline: "from the primary".into() }
    }

    fn own(&self) -> Arc<Boot> {
        let BootSource { kernel, initrd, cmdline } = self.source();
        Arc::new(Boot::open(&kernel, initrd.as_deref(), &cmdline).unwrap())
    }

    /// Runs the guest as `kemari run` does, with a standby at `standby`.
    fn run(&self, standby: &std::path::Path) -> (Arc<Machine>, Arc<Engine>) {
        let (ledger, authority) = new_gate();
        let config = MachineConfig { boot: Some(self.source()), ..config(MEMORY, 1) };
        let machine = Machine::build(config, ledger, Arc::new(Unfenced)).unwrap();
        machine.boot().unwrap();
        let options = engine_options(standby);
        let engine = start_engine(&machine, authority, None, Term(0), options);
        (machine, engine)
    }
}

/// Cuts the link; the operator then lets the standby take over.
fn take_over(standby: Standby, cable: &Cable) -> Inheritance {
    cable.cut();
    wait_for("the loss of the link", || standby.status()["state"] == "waiting-for-operator");
    standby.inputs.send(Input::Event(StandbyEvent::OperatorTakeOver)).unwrap();
    let End::TakeOver(inherited) = standby.end() else { panic!("it was told to take over") };
    *inherited
}

/// Continues the guest as `kemari standby` does after a takeover.
fn go_on(inherited: Inheritance, standby: &std::path::Path) -> (Arc<Machine>, Arc<Engine>) {
    let Inheritance { machine, authority, state, taken, .. } = inherited;
    state.restore(&machine).unwrap();
    machine.attach_backends(AttachOptions { shared_disks: true, append: true }).unwrap();
    let options = engine_options(standby);
    let resources = EngineResources::new(None).unwrap();
    let engine =
        Engine::after_takeover(resources, machine.clone(), authority, None, taken, options);
    start_sealing(&machine, &engine);
    (machine, engine)
}

/// Resets the guest and checks that it boots again.
fn reset(machine: &Arc<Machine>) {
    let memory = machine.memory();
    memory.write_slice(&[0x55; CODE.len()], GuestAddress(u64::from(LOAD))).unwrap();
    let inner = machine.clone();
    machine.device_loop().call(move |_| inner.reset()).unwrap().unwrap();
    let mut code = [0; CODE.len()];
    memory.read_slice(&mut code, GuestAddress(u64::from(LOAD))).unwrap();
    assert_eq!(code, CODE, "the kernel is there again");
    let mut all = vec![0; MEMORY as usize];
    memory.read_slice(&mut all, GuestAddress(0)).unwrap();
    let has = |what: &[u8]| all.windows(what.len()).any(|window| window == what);
    assert!(has(&initrd()[..64]) && has(&initrd()[INITRD - 64..]), "so is the initrd");
    assert!(has(b"from the primary\0"), "so is the command line");
}

/// P7. Fails if a standby without `--kernel` has nothing to boot, or does not pass the files on.
#[test]
fn p7_a_guest_boots_again_after_each_of_two_takeovers() {
    let files = Files::new();
    let (near, far) = (files.path("near"), files.path("far"));
    let cable = Cable::new(near.clone(), far.clone());
    let first = Standby::start(&far, PATIENCE, None);
    let (machine, engine) = files.run(&near);
    wait_phase(&engine, Phase::Protected);
    // The boot files of the primary's host are lost with the host.
    for name in ["kernel", "initrd"] {
        std::fs::write(files.path(name), "another").unwrap();
        std::fs::remove_file(files.path(name)).unwrap();
    }
    let inherited = take_over(first, &cable);
    machine.stop();

    let (near, far) = (files.path("near-2"), files.path("far-2"));
    let cable = Cable::new(near.clone(), far.clone());
    let second = Standby::start(&far, PATIENCE, None);
    let (machine, engine) = go_on(inherited, &near);
    reset(&machine);
    wait_phase(&engine, Phase::Protected);
    let inherited = take_over(second, &cable);
    machine.stop();

    let (machine, _engine) = go_on(inherited, &files.path("nobody"));
    reset(&machine);
    machine.stop();
}

/// Fails if a file is sent to a standby that already has it, from its own command line or from the
/// session before.
#[test]
fn a_file_is_sent_once_and_not_to_whom_has_it() {
    let files = Files::new();
    let (near, far) = (files.path("near"), files.path("far"));
    let cable = Cable::new(near.clone(), far.clone());
    let standby = Standby::start(&far, PATIENCE, None);
    let (machine, engine) = files.run(&near);
    wait_phase(&engine, Phase::Protected);
    let initrd = INITRD as u64;
    // The initrd is sent twice: as guest memory, and as a file.
    let first = cable.bytes.swap(0, Ordering::SeqCst);
    assert!(first >= 2 * initrd, "{first}");
    cable.cut();
    wait_for("the loss of the link", || standby.status()["state"] == "waiting-for-operator");
    wait_phase(&engine, Phase::WaitingForOperator);
    engine.run_alone().unwrap();
    wait_phase(&engine, Phase::Protected);
    let again = cable.bytes.load(Ordering::SeqCst);
    assert!(
        (initrd..2 * initrd).contains(&again),
        "{again} bytes for a session with the same standby"
    );
    machine.stop();

    let (near, far) = (files.path("near-2"), files.path("far-2"));
    let cable = Cable::new(near.clone(), far.clone());
    let _standby = Standby::start_with(&far, PATIENCE, None, Some(files.own()));
    let (machine, engine) = files.run(&near);
    wait_phase(&engine, Phase::Protected);
    let own = cable.bytes.load(Ordering::SeqCst);
    assert!((initrd..2 * initrd).contains(&own), "{own} bytes for a standby with the same files");
    machine.stop();
}
