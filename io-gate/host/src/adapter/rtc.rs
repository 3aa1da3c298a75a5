//! vm-superio's real-time clock (an ARM PL031), whose time does not step back.
//!
//! The clock shows the host's wall clock plus an offset that the guest can set. The wall clock is
//! an input, and the wall clocks of two hosts differ. So the latest time shown is part of the saved
//! state. A host that is behind it continues from that time. A host that is ahead shows its own
//! time, which to the guest looks like a longer pause. The same applies when one host's wall clock
//! is set back. Only the guest can set its clock back, with the load and control registers.

use io_gate::{Identity, StateError, note, saved_state};
use vm_superio::rtc_pl031::{NoEvents, RtcState};

use super::{Adapter, Foreign, Wires};

/// A clock in a window of 4 KiB, with 32-bit registers (ARM DDI 0224, 3.2). It has no alarm, and so
/// no interrupt.
pub type Rtc = Adapter<Clock>;

const DATA: u16 = 0x00;
const LOAD: u16 = 0x08;
const CONTROL: u16 = 0x0c;
/// The length of its window in bytes.
const WINDOW: u64 = 0x1000;
const REGISTER: usize = 4;

saved_state! {
    /// The chip's registers, and the latest time that the guest has read or set.
    pub struct ClockState {
        load: u32,
        /// What the chip adds to the wall clock: a signed number of seconds, as bits.
        offset: u64,
        r#match: u32,
        interrupt_mask: u32,
        raw_interrupt: u32,
        shown: u32,
    }
}

/// The real-time clock of `vm-superio`, behind the gate.
pub struct Clock {
    chip: vm_superio::Rtc<NoEvents>,
    /// The latest time that the guest has read or set, in seconds. The guest reads no earlier time.
    shown: u32,
}

impl Clock {
    fn register(&mut self, offset: u16) -> u32 {
        let mut word = [0; REGISTER];
        self.chip.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// The current time. If this host is behind the latest time shown, adds an offset so that the
    /// clock continues from there.
    fn time(&mut self) -> u32 {
        let now = self.register(DATA);
        let behind = self.shown.saturating_sub(now);
        if behind > 0 {
            let seconds = [("seconds", u64::from(behind))];
            note::info(
                "rtc: this host's clock is behind the time that the guest has read",
                &seconds,
            );
            let mut state = self.chip.state();
            state.offset = state.offset.saturating_add(behind.into());
            self.chip = vm_superio::Rtc::from_state(&state, NoEvents);
        }
        self.shown = self.shown.max(now);
        self.shown
    }
}

/// The register of a byte in the window, and the byte's position in the register.
fn place(offset: u64) -> Option<(u16, usize)> {
    let offset = u16::try_from(offset).ok().filter(|offset| u64::from(*offset) < WINDOW)?;
    Some((offset & !3, usize::from(offset & 3)))
}

impl Foreign for Clock {
    const IDENTITY: Identity = Identity { kind: "rtc-pl031", virtio_id: 0, state_version: 1 };

    type State = ClockState;

    fn power_on(_wires: &Wires) -> Self {
        Self { chip: vm_superio::Rtc::new(), shown: 0 }
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        let Some((register, skip)) = place(offset) else { return };
        let word = if register == DATA { self.time() } else { self.register(register) };
        for (to, from) in into.iter_mut().zip(&word.to_le_bytes()[skip..]) {
            *to = *from;
        }
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        let (Some((register, 0)), Ok(word)) = (place(offset), <&[u8; REGISTER]>::try_from(from))
        else {
            note::debug(
                "rtc: expected a write of 4 bytes to a register, found another width or offset: ignored",
                &[],
            );
            return;
        };
        self.chip.write(register, word);
        let value = u32::from_le_bytes(*word);
        match (register, value) {
            (LOAD, time) => self.shown = time,
            // The clock restarts with the host's time.
            (CONTROL, 1) => self.shown = 0,
            _ => {}
        }
    }

    fn intake(&mut self, data: &[u8]) -> usize {
        data.len()
    }

    fn save(&self) -> ClockState {
        let state = self.chip.state();
        ClockState {
            load: state.lr,
            offset: state.offset.cast_unsigned(),
            r#match: state.mr,
            interrupt_mask: state.imsc,
            raw_interrupt: state.ris,
            shown: self.shown,
        }
    }

    fn restore(state: ClockState, _wires: &Wires) -> Result<Self, StateError> {
        let chip = RtcState {
            lr: state.load,
            offset: state.offset.cast_signed(),
            mr: state.r#match,
            imsc: state.interrupt_mask,
            ris: state.raw_interrupt,
        };
        Ok(Self { chip: vm_superio::Rtc::from_state(&chip, NoEvents), shown: state.shown })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn read(clock: &mut Clock, offset: u16) -> u32 {
        let mut word = [0xaa; REGISTER];
        clock.read(offset.into(), &mut word);
        u32::from_le_bytes(word)
    }

    fn set(clock: &mut Clock, offset: u16, value: u32) {
        clock.write(offset.into(), &value.to_le_bytes());
    }

    /// The clock on another host, whose wall clock differs by `seconds`. The chip shows the sum of
    /// wall clock and offset, so a different offset is equivalent to a different wall clock.
    fn taken_over(clock: &Clock, seconds: i64) -> Clock {
        let mut heir = Clock::restore(clock.save(), &Wires::default()).unwrap();
        let mut state = heir.chip.state();
        state.offset += seconds;
        heir.chip = vm_superio::Rtc::from_state(&state, NoEvents);
        heir
    }

    #[test]
    fn a_host_that_is_behind_goes_on_from_what_was_shown() {
        let mut clock = Clock::power_on(&Wires::default());
        let shown = read(&mut clock, DATA);
        let mut heir = taken_over(&clock, -3600);
        let later = read(&mut heir, DATA);
        assert!((shown..shown + 60).contains(&later), "{shown}, then {later}");
        // It continues from there, and is not stopped for an hour.
        assert!(heir.chip.state().offset >= -60);
        // The same holds on a third host.
        let mut third = taken_over(&heir, -7200);
        assert!((later..later + 60).contains(&read(&mut third, DATA)));
    }

    #[test]
    fn a_host_that_is_ahead_shows_its_time() {
        let mut clock = Clock::power_on(&Wires::default());
        let shown = read(&mut clock, DATA);
        let later = read(&mut taken_over(&clock, 3600), DATA);
        assert!((shown + 3600..shown + 3660).contains(&later), "{shown}, then {later}");
    }

    #[test]
    fn the_guest_may_set_its_clock_back() {
        let mut clock = Clock::power_on(&Wires::default());
        let today = read(&mut clock, DATA);
        set(&mut clock, LOAD, 1000);
        let set_to = read(&mut clock, DATA);
        assert!((1000..1060).contains(&set_to), "{set_to}");
        let heir = read(&mut taken_over(&clock, -30), DATA);
        assert!((1000..1060).contains(&heir), "{heir}");
        set(&mut clock, CONTROL, 1);
        assert!((today..today + 60).contains(&read(&mut clock, DATA)));
    }

    #[test]
    fn accesses_of_any_width_are_borne() {
        let mut clock = Clock::power_on(&Wires::default());
        set(&mut clock, 4, 0x1234_5678);
        let mut half = [0; 2];
        clock.read(6, &mut half);
        assert_eq!(half, [0x34, 0x12]);
        let mut wide = [0xff; 8];
        clock.read(4, &mut wide);
        assert_eq!(wide, [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
        clock.write(5, &[1, 2, 3, 4]);
        clock.write(4, &[1]);
        clock.write(1 << 40, &[1, 2, 3, 4]);
        assert_eq!(read(&mut clock, 4), 0x1234_5678);
        // The PL031's identification (DDI 0224, 3.3.9).
        assert_eq!((read(&mut clock, 0xfe0), read(&mut clock, 0xfe4)), (0x31, 0x10));
    }
}
