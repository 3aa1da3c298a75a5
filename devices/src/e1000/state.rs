//! The card's saved state: everything that affects what its driver sees.

use io_gate::{Bytes, SavedState, StateError, saved_state};

use super::eeprom::Eeprom;
use super::offload::{Context, MAX_PACKET};
use super::phy::Phy;
use super::registers::{self, Registers};
use super::statistics::{self, Statistics};
use super::transmit::Transmit;
use super::{E1000, IDENTITY, cause};

saved_state! {
    /// The state of a card.
    struct State {
        mac: [u8; 6],
        /// The plain registers and the filter tables.
        registers: [u32; registers::WORDS],
        statistics: [u32; statistics::COUNT],
        /// The PHY's registers, of 16 bits each.
        phy: [u32; 32],
        mdic: u32,
        eecd: u32,
        eerd: u32,
        eeprom_command: u16,
        eeprom_received: u8,
        eeprom_sent: u8,
        /// The packet that is being assembled.
        tx_packet: Bytes<MAX_PACKET>,
        tx_begun: bool,
        tx_spoiled: bool,
        tx_insert: u8,
        tx_segmented: bool,
        /// The context for packets without segmentation, and the context for packets with it.
        tx_contexts: [u32; 8],
        /// The pending interrupt causes, and those that may interrupt.
        causes: u32,
        mask: u32,
        io_address: u32,
    }
}

impl E1000 {
    pub(super) fn save_state(&self) -> SavedState {
        let ([p0, p1, p2, p3], [s0, s1, s2, s3]) =
            (self.transmit.plain.words(), self.transmit.segments.words());
        let state = State {
            mac: self.mac,
            registers: self.registers.words(),
            statistics: self.statistics.0,
            phy: self.phy.registers.map(u32::from),
            mdic: self.phy.mdic,
            eecd: self.eeprom.wires,
            eerd: self.eeprom.eerd,
            eeprom_command: self.eeprom.command,
            eeprom_received: self.eeprom.received,
            eeprom_sent: self.eeprom.sent,
            tx_packet: Bytes(self.transmit.packet.clone()),
            tx_begun: self.transmit.begun,
            tx_spoiled: self.transmit.spoiled,
            tx_insert: self.transmit.insert,
            tx_segmented: self.transmit.segmented,
            tx_contexts: [p0, p1, p2, p3, s0, s1, s2, s3],
            causes: self.causes,
            mask: self.mask,
            io_address: self.io_address,
        };
        SavedState::of(&IDENTITY, &state)
    }

    pub(super) fn restored(state: &SavedState) -> Result<Self, StateError> {
        let state: State = state.open(&IDENTITY)?;
        for (field, causes) in [("causes", state.causes), ("mask", state.mask)] {
            if causes & !cause::ALL != 0 {
                let expected = "causes that there are";
                return Err(StateError::number(&IDENTITY, field, expected, causes.into()));
            }
        }
        Ok(Self {
            mac: state.mac,
            registers: registers(&state)?,
            eeprom: eeprom(&state)?,
            phy: phy(&state)?,
            statistics: Statistics(state.statistics),
            causes: state.causes,
            mask: state.mask,
            io_address: state.io_address,
            transmit: transmit(state),
        })
    }
}

fn registers(state: &State) -> Result<Registers, StateError> {
    let mut registers = Registers::new(state.mac);
    if !registers.set_words(&state.registers) {
        let expected = "what drivers can write";
        return Err(StateError::invalid(&IDENTITY, "registers", expected, "something else"));
    }
    Ok(registers)
}

fn phy(state: &State) -> Result<Phy, StateError> {
    let mut registers = [0; 32];
    for (to, from) in registers.iter_mut().zip(state.phy) {
        *to = u16::try_from(from).map_err(|_| {
            StateError::number(&IDENTITY, "phy", "registers of 16 bits", from.into())
        })?;
    }
    Ok(Phy { registers, mdic: state.mdic })
}

fn eeprom(state: &State) -> Result<Eeprom, StateError> {
    let eeprom = Eeprom {
        wires: state.eecd,
        command: state.eeprom_command,
        received: state.eeprom_received,
        sent: state.eeprom_sent,
        eerd: state.eerd,
    };
    if !eeprom.is_possible() {
        let expected = "what its wires can carry";
        return Err(StateError::invalid(&IDENTITY, "eecd", expected, "something else"));
    }
    Ok(eeprom)
}

fn transmit(state: State) -> Transmit {
    let [p0, p1, p2, p3, s0, s1, s2, s3] = state.tx_contexts;
    Transmit {
        packet: state.tx_packet.0,
        begun: state.tx_begun,
        spoiled: state.tx_spoiled,
        insert: state.tx_insert,
        segmented: state.tx_segmented,
        plain: Context::read([p0, p1, p2, p3]),
        segments: Context::read([s0, s1, s2, s3]),
    }
}
