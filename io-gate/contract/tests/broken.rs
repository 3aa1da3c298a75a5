//! Tests that the suite can fail. It fails for each device that breaks a rule, and passes a device
//! that breaks none.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use io_gate::{
    Chain, ConfigSpace, ConfigWrite, ConsoleTx, Device, DeviceError, Gate, Identity, Intake,
    LineState, Outcome, Port, RegisterDevice, SavedState, StateError, Verdict, Writable,
    config_space, saved_state,
};
use io_gate_contract::{RegisterContract, VirtioContract};

const ECHO: Identity = Identity { kind: "echo", virtio_id: 63, state_version: 1 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    ForgetsAField,
    RemembersARequest,
    ResetsHalf,
    PanicsOnAShortChain,
    ForgetsAToken,
    ClaimsTooMuch,
    AcceptsAnything,
    ChangesBeforeItRefuses,
    Loops,
    TakesNoInput,
    CompletesTwice,
    RemembersAcrossReset,
    ForgetsWhatTheExampleLeavesOut,
    PanicsOnLongInput,
    PanicsOnAChangedChain,
    CannotGoOn,
    TakesAnEarlierVersion,
    TakesAPartOfWhatItMerges,
    ServesWhatWasNotAccepted,
    NeverServesWhatWasAccepted,
    CountsWhatItHasNotWritten,
    IndexesByALength,
    ForgetsASetting,
    ChangesASetting,
    KeepsASettingAcrossReset,
}

saved_state! {
    #[derive(Clone, Copy, Default, PartialEq)]
    struct Kept {
        features: u64,
        count: u64,
        pitch: u16,
    }
}

saved_state! {
    struct KeptByHalf {
        features: u64,
        pitch: u16,
    }
}

saved_state! {
    struct KeptUnset {
        features: u64,
        count: u64,
    }
}

config_space! {
    struct Space {
        count: u64,
        /// Every answer contains it.
        pitch: Writable<u16>,
    }
}

/// Prints the request's bytes after its number, and answers with that number.
struct Echo {
    fault: Fault,
    kept: Kept,
    /// State that a request in flight needs later. The fault is that the saved state lacks it.
    remembered: u8,
    /// Counts requests of one or two bytes. The saved state lacks it, too, and the example has no
    /// request that is so short.
    tiny: u64,
    resets: u64,
}

impl Echo {
    fn new(fault: Fault) -> Self {
        Self { fault, kept: Kept::default(), remembered: 0, tiny: 0, resets: 0 }
    }

    fn space(&self) -> Space {
        let count = self.kept.count.wrapping_add(self.tiny);
        Space { count, pitch: Writable::new(self.kept.pitch) }
    }
}

fn echo(fault: Fault) -> VirtioContract {
    VirtioContract::new(move || Box::new(Echo::new(fault)))
        .request(0, b"first", 8)
        .request(0, b"second, and longer than sixteen bytes", 8)
        .input(Port(0), b"from outside", 4)
        .request(0, b"third", 8)
        .request(0, b"!loud", 8)
        .needs(LOUD)
        .without_requests(0b001)
}

/// A feature. Requests that begin with `!` are only for drivers that have accepted it.
const LOUD: u64 = 0b100;

impl Device for Echo {
    fn identity(&self) -> Identity {
        ECHO
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queues(&self) -> &[u16] {
        &[16, 16]
    }
    fn config(&self) -> ConfigSpace {
        ConfigSpace::of(&self.space())
    }
    fn write_config(&mut self, write: ConfigWrite<'_>, _: &mut Gate<'_>) {
        if let Some(pitch) = write.apply(self.space()).pitch.change() {
            let odd = u16::from(self.fault == Fault::ChangesASetting);
            self.kept.pitch = pitch ^ odd;
        }
    }
    fn activate(&mut self, features: u64) {
        self.kept.features = features;
    }
    fn reset(&mut self) {
        let before = self.kept;
        self.kept = Kept::default();
        match self.fault {
            Fault::ResetsHalf => self.kept.count = before.count,
            Fault::KeepsASettingAcrossReset => self.kept.pitch = before.pitch,
            _ => {}
        }
        (self.remembered, self.tiny) = (0, 0);
        self.resets += 1;
    }
    fn process<'e>(
        &mut self,
        _: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let mut first = [0];
        match self.fault {
            Fault::PanicsOnAShortChain => chain.read(&mut first).unwrap(),
            _ => chain.read(&mut first)?,
        }
        let loud = match self.fault {
            Fault::ServesWhatWasNotAccepted => true,
            Fault::NeverServesWhatWasAccepted => false,
            _ => self.kept.features & LOUD != 0,
        };
        if first[0] == b'!' && !loud {
            return Err(DeviceError::Malformed("expected no loud request"));
        }
        let text = chain.take_payload(chain.readable())?;
        self.kept.count = match self.fault {
            Fault::CannotGoOn => self.kept.count + 1,
            _ => self.kept.count.wrapping_add(1),
        };
        if self.fault == Fault::ForgetsWhatTheExampleLeavesOut && text.len() <= 1 {
            self.tiny += 1;
        }
        self.remembered = first[0];
        if self.fault == Fault::IndexesByALength {
            self.kept.count += u64::from([0_u8; 2048][text.len().min(3000)]);
        }
        if self.fault == Fault::ForgetsAToken && self.kept.count == 2 {
            std::mem::forget(gate.token::<ConsoleTx>());
        }
        while self.fault == Fault::Loops && text.len() > 16 {
            std::hint::spin_loop();
        }
        let held = gate.token::<ConsoleTx>().stage(Port(0), text);
        if self.fault == Fault::CompletesTwice { Ok(Verdict::Done(0)) } else { Ok(held) }
    }
    fn complete(&mut self, _: u16, chain: &mut Chain<'_>, _: Outcome) -> u32 {
        let mut first = [0];
        match chain.read(&mut first) {
            Err(error) if self.fault == Fault::PanicsOnAChangedChain => panic!("{error}"),
            Err(_) => return 0,
            Ok(()) => {}
        }
        let answer = match self.fault {
            Fault::RemembersARequest => self.remembered,
            Fault::RemembersAcrossReset => first[0] ^ self.resets as u8,
            _ => first[0].wrapping_add(self.kept.pitch as u8),
        };
        let written = chain.write(&[answer]).map_or(0, |()| 1);
        match self.fault {
            Fault::ClaimsTooMuch => 4096,
            Fault::CountsWhatItHasNotWritten => written + 1,
            _ => written,
        }
    }
    fn intake_queue(&self, port: Port) -> Option<u16> {
        (port == Port(0)).then_some(1)
    }
    fn intake(
        &mut self,
        _: Port,
        data: &[u8],
        chain: &mut Chain<'_>,
    ) -> Result<Intake, DeviceError> {
        if self.fault == Fault::TakesNoInput {
            return Ok(Intake { used: 0, consumed: 0 });
        }
        if self.fault == Fault::PanicsOnLongInput {
            [0; 4096][..data.len()].copy_from_slice(data);
        }
        let mut len = data.len().min(chain.writable());
        if self.fault == Fault::TakesAPartOfWhatItMerges {
            len = len.min(4);
        }
        chain.write(&data[..len])?;
        Ok(Intake { used: len as u32, consumed: len })
    }
    fn merges_input(&self, _: Port) -> bool {
        self.fault == Fault::TakesAPartOfWhatItMerges
    }
    fn save(&self) -> SavedState {
        let Kept { features, count, pitch } = self.kept;
        match self.fault {
            Fault::ForgetsAField => SavedState::of(&ECHO, &KeptByHalf { features, pitch }),
            Fault::ForgetsASetting => SavedState::of(&ECHO, &KeptUnset { features, count }),
            _ => SavedState::of(&ECHO, &self.kept),
        }
    }
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.kept = match self.fault {
            Fault::ForgetsAField => {
                let KeptByHalf { features, pitch } = state.open(&ECHO)?;
                Kept { features, pitch, ..self.kept }
            }
            Fault::ForgetsASetting => {
                let KeptUnset { features, count } = state.open(&ECHO)?;
                Kept { features, count, ..self.kept }
            }
            Fault::AcceptsAnything => state.open(&ECHO).unwrap_or(self.kept),
            Fault::TakesAnEarlierVersion => {
                let state_version = state.version().min(ECHO.state_version);
                state.open(&Identity { state_version, ..ECHO })?
            }
            Fault::ChangesBeforeItRefuses => {
                self.kept.features = 77;
                state.open(&ECHO)?
            }
            _ => state.open(&ECHO)?,
        };
        Ok(())
    }
}

/// The report about a device with `fault`.
#[track_caller]
fn said(fault: Fault) -> String {
    echo(fault).try_check().unwrap_err().to_string()
}

#[test]
fn a_good_device_passes() {
    echo(Fault::None).check();
}

#[test]
fn each_fault_is_found_and_named() {
    let expected = [
        (Fault::ForgetsAField, "continues as if nothing had happened"),
        (Fault::RemembersARequest, "continues as if nothing had happened"),
        (Fault::ResetsHalf, "state after power-on"),
        (Fault::PanicsOnAShortChain, "a panic"),
        (Fault::ForgetsAToken, "P5: "),
        (Fault::ClaimsTooMuch, "4096 bytes written, room for 8"),
        (Fault::AcceptsAnything, "`restore` refuses a saved state"),
        (Fault::ChangesBeforeItRefuses, "does not change the device"),
        (Fault::TakesNoInput, "with room for input accepts it"),
        (Fault::CompletesTwice, "P5: a chain was reported as done with 1 in flight"),
        (Fault::RemembersAcrossReset, "reset after 0 of"),
        (Fault::ForgetsWhatTheExampleLeavesOut, "random requests"),
        (Fault::PanicsOnLongInput, "bytes of input at port 0"),
        (Fault::PanicsOnAChangedChain, "completion of chain"),
        (Fault::CannotGoOn, "`count` = 0xffffffffffffffff: accepted, and then"),
        (Fault::TakesAnEarlierVersion, "an earlier version: accepted"),
        (Fault::TakesAPartOfWhatItMerges, "in each of 3 chains"),
        (Fault::ServesWhatWasNotAccepted, "with 0x1: it was served"),
        (Fault::NeverServesWhatWasAccepted, "with 0x1: the same as with all"),
        (Fault::ForgetsASetting, "`pitch`, after [ff, ff] written at 0x8: expected"),
        (
            Fault::ChangesASetting,
            "written at 0x8: expected its former value [0, 0] or the written [0, 0], found [1, 0]",
        ),
        (Fault::KeepsASettingAcrossReset, "the reset did not undo it"),
        (Fault::CountsWhatItHasNotWritten, "2 bytes are said to be written, found 1"),
    ];
    for (fault, words) in expected {
        let said = said(fault);
        assert!(said.contains(words), "{fault:?}: expected `{words}` in:\n{said}");
    }
}

/// Fails if random guests do too little to find a panic, or if a seed does not repeat the same run.
#[test]
fn guests_find_a_panic_and_the_seed_finds_it_again() {
    for fault in [
        Fault::PanicsOnAShortChain,
        Fault::PanicsOnLongInput,
        Fault::PanicsOnAChangedChain,
        Fault::IndexesByALength,
        Fault::ForgetsAToken,
    ] {
        let said = echo(fault).try_fuzz().unwrap_err().to_string();
        let seed = said.split("KEMARI_FUZZ_SEED=").nth(1).and_then(|rest| rest.split(' ').next());
        let again = echo(fault).try_guest(seed.unwrap().parse().unwrap()).unwrap_err().to_string();
        let seen = again.lines().nth(1).unwrap();
        assert!(seen.contains("panic") && said.contains(seen), "{fault:?}:\n{said}\n{again}");
    }
    let long = || dial(|| Dial { panics_on_input: true, ..Dial::default() });
    let said = long().try_fuzz().unwrap_err().to_string();
    assert!(said.contains("input at port 0") && said.contains("KEMARI_FUZZ_SEED="), "{said}");
}

#[test]
fn a_good_device_bears_any_guest() {
    echo(Fault::None).fuzz();
    dial(Dial::default).fuzz();
}

/// For each offered feature the example must name the requests that need it, or say that no request
/// does.
#[test]
fn an_offered_feature_is_accounted_for() {
    let silent = VirtioContract::new(|| Box::new(Echo::new(Fault::None)));
    let said = silent.request(0, b"first", 8).try_check().unwrap_err().to_string();
    assert!(
        said.contains("the offered features 0x5") && said.contains("without_requests"),
        "{said}"
    );
}

#[test]
#[ignore = "takes the two minutes after which a device counts as lost"]
fn a_device_that_never_returns_is_found() {
    assert!(said(Fault::Loops).contains("every call returns"));
}

const DIAL: Identity = Identity { kind: "dial", virtio_id: 0, state_version: 1 };

saved_state! {
    #[derive(Clone, Copy, Default)]
    struct Shown {
        value: u8,
        interrupt: bool,
    }
}

saved_state! {
    struct ShownByHalf {
        value: u8,
    }
}

/// A register that adds up the written values, prints the sum, and requests an interrupt.
#[derive(Default)]
struct Dial {
    shown: Shown,
    loses_interrupts: bool,
    counts_forever: bool,
    panics_on_input: bool,
    /// Counts writes beyond the first register. Reads show the count, and the saved state lacks it.
    odd: Option<u8>,
}

impl RegisterDevice for Dial {
    fn identity(&self) -> Identity {
        DIAL
    }
    fn read(&mut self, _: u64, into: &mut [u8], _: &mut Gate<'_>) {
        into.fill(self.shown.value.wrapping_add(self.odd.unwrap_or(0)));
    }
    fn write(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>) {
        let Some(value) = from.first() else { return };
        if let (1.., Some(odd)) = (offset, &mut self.odd) {
            *odd = odd.wrapping_add(1);
        }
        self.shown.value = self.shown.value.wrapping_add(*value);
        self.shown.interrupt = true;
        gate.token::<ConsoleTx>().emit(Port(0), vec![self.shown.value]);
    }
    fn intake(&mut self, _: Port, data: &[u8], _: &mut Gate<'_>) -> usize {
        if self.panics_on_input {
            [0; 16][..data.len()].copy_from_slice(data);
        }
        data.len()
    }
    fn proceed(&mut self, _: &mut Gate<'_>) -> bool {
        self.counts_forever
    }
    fn line(&mut self) -> LineState {
        LineState::Level(self.shown.value >= 4 || self.shown.interrupt)
    }
    fn reset(&mut self) {
        self.shown = Shown::default();
        self.odd = self.odd.map(|_| 0);
    }
    fn save(&self) -> SavedState {
        match self.loses_interrupts {
            true => SavedState::of(&DIAL, &ShownByHalf { value: self.shown.value }),
            false => SavedState::of(&DIAL, &self.shown),
        }
    }
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.shown = match self.loses_interrupts {
            true => {
                let ShownByHalf { value } = state.open(&DIAL)?;
                Shown { value, interrupt: false }
            }
            false => state.open(&DIAL)?,
        };
        Ok(())
    }
}

fn dial(make: impl Fn() -> Dial + Send + Sync + 'static) -> RegisterContract {
    RegisterContract::new(move || Box::new(make()))
        .write(0, &[1])
        .read(0, 1)
        .input(Port(0), b"x")
        .write(0, &[2])
        .read(0, 4)
}

#[test]
fn a_good_register_device_passes() {
    dial(Dial::default).check();
}

#[test]
fn faults_of_register_devices_are_found() {
    let lost = dial(|| Dial { loses_interrupts: true, ..Dial::default() });
    let said = lost.try_check().unwrap_err().to_string();
    assert!(said.contains("line: Level"), "{said}");
    let long = dial(|| Dial { panics_on_input: true, ..Dial::default() });
    let said = long.try_check().unwrap_err().to_string();
    assert!(said.contains("input at port 0"), "{said}");
    let odd = dial(|| Dial { odd: Some(0), ..Dial::default() });
    let said = odd.try_check().unwrap_err().to_string();
    assert!(said.contains("random accesses"), "{said}");
    let busy = dial(|| Dial { counts_forever: true, ..Dial::default() });
    let said = busy.try_check().unwrap_err().to_string();
    assert!(said.contains("every call returns"), "{said}");
}
