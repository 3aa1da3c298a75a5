//! The card's saved state: everything that affects what its driver sees.

use alloc::vec::Vec;

use io_gate::{Fields, SavedState, StateError};

use super::eeprom::Eeprom;
use super::offload::{Context, MAX_PACKET};
use super::phy::Phy;
use super::registers::Registers;
use super::statistics::Statistics;
use super::transmit::Transmit;
use super::{E1000, IDENTITY, cause};

impl E1000 {
    pub(super) fn save_state(&self) -> SavedState {
        let phy = self.phy.registers.iter().map(|value| u32::from(*value));
        let contexts = self.transmit.plain.words().into_iter();
        let contexts = contexts.chain(self.transmit.segments.words());
        SavedState::new(&IDENTITY)
            .bytes("mac", &self.mac)
            .bytes("registers", &bytes(self.registers.words()))
            .bytes("statistics", &bytes(self.statistics.0.into_iter()))
            .bytes("phy", &bytes(phy))
            .number("mdic", self.phy.mdic.into())
            .number("eecd", self.eeprom.wires.into())
            .number("eerd", self.eeprom.eerd.into())
            .number("eeprom_command", self.eeprom.command.into())
            .number("eeprom_received", self.eeprom.received.into())
            .number("eeprom_sent", self.eeprom.sent.into())
            .bytes("tx_packet", &self.transmit.packet)
            .number("tx_begun", self.transmit.begun.into())
            .number("tx_spoiled", self.transmit.spoiled.into())
            .number("tx_insert", self.transmit.insert.into())
            .number("tx_segmented", self.transmit.segmented.into())
            .bytes("tx_contexts", &bytes(contexts))
            .number("causes", self.causes.into())
            .number("mask", self.mask.into())
            .number("io_address", self.io_address.into())
    }

    pub(super) fn restored(state: &SavedState) -> Result<Self, StateError> {
        let mut fields = state.open(&IDENTITY)?;
        let mac = fields.bytes("mac")?;
        let mac = <[u8; 6]>::try_from(mac.as_slice())
            .map_err(|_| fields.invalid("mac", "6 bytes", "another number"))?;
        let mut registers = Registers::new(mac);
        let saved = words(&mut fields, "registers")?;
        if !registers.set_words(&saved) {
            return Err(fields.invalid("registers", "what drivers can write", "something else"));
        }
        let statistics = Statistics(array(&mut fields, "statistics")?);
        let phy = restored_phy(&mut fields)?;
        let eeprom = restored_eeprom(&mut fields)?;
        let transmit = restored_transmit(&mut fields)?;
        let restored = Self {
            mac,
            registers,
            eeprom,
            phy,
            statistics,
            transmit,
            causes: interrupts(&mut fields, "causes")?,
            mask: interrupts(&mut fields, "mask")?,
            io_address: fields.small("io_address")?,
        };
        fields.close()?;
        Ok(restored)
    }
}

fn restored_phy(fields: &mut Fields) -> Result<Phy, StateError> {
    let saved: [u32; 32] = array(fields, "phy")?;
    if saved.iter().any(|value| *value > 0xffff) {
        return Err(fields.invalid("phy", "registers of 16 bits", "a larger number"));
    }
    Ok(Phy { registers: saved.map(|value| value as u16), mdic: fields.small("mdic")? })
}

fn restored_eeprom(fields: &mut Fields) -> Result<Eeprom, StateError> {
    let eeprom = Eeprom {
        wires: fields.small("eecd")?,
        command: fields.small("eeprom_command")?,
        received: fields.small("eeprom_received")?,
        sent: fields.small("eeprom_sent")?,
        eerd: fields.small("eerd")?,
    };
    if !eeprom.is_possible() {
        return Err(fields.invalid("eecd", "what its wires can carry", "something else"));
    }
    Ok(eeprom)
}

fn restored_transmit(fields: &mut Fields) -> Result<Transmit, StateError> {
    let [p0, p1, p2, p3, s0, s1, s2, s3] = array(fields, "tx_contexts")?;
    let transmit = Transmit {
        packet: fields.bytes("tx_packet")?,
        begun: flag(fields, "tx_begun")?,
        spoiled: flag(fields, "tx_spoiled")?,
        insert: fields.small("tx_insert")?,
        segmented: flag(fields, "tx_segmented")?,
        plain: Context::read([p0, p1, p2, p3]),
        segments: Context::read([s0, s1, s2, s3]),
    };
    if transmit.packet.len() > MAX_PACKET {
        return Err(fields.invalid("tx_packet", "a packet that can be sent", "a longer one"));
    }
    Ok(transmit)
}

fn interrupts(fields: &mut Fields, name: &'static str) -> Result<u32, StateError> {
    let value: u32 = fields.small(name)?;
    if value & !cause::ALL != 0 {
        return Err(fields.invalid(name, "causes that there are", "others"));
    }
    Ok(value)
}

fn flag(fields: &mut Fields, name: &'static str) -> Result<bool, StateError> {
    match fields.number(name)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(fields.invalid(name, "0 or 1", "another number")),
    }
}

fn bytes(words: impl Iterator<Item = u32>) -> Vec<u8> {
    words.flat_map(u32::to_le_bytes).collect()
}

fn words(fields: &mut Fields, name: &'static str) -> Result<Vec<u32>, StateError> {
    let bytes = fields.bytes(name)?;
    if !bytes.len().is_multiple_of(4) {
        return Err(fields.invalid(name, "whole words", "a broken one"));
    }
    let word = |chunk: &[u8]| u32::from_le_bytes(core::array::from_fn(|index| chunk[index]));
    Ok(bytes.chunks_exact(4).map(word).collect())
}

fn array<const N: usize>(fields: &mut Fields, name: &'static str) -> Result<[u32; N], StateError> {
    let words = words(fields, name)?;
    <[u32; N]>::try_from(words.as_slice())
        .map_err(|_| fields.invalid(name, "another number of words", "this many"))
}
