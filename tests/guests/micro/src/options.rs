//! The guest's command line.
//!
//! Options: `virtio_mmio.device=SIZE@BASE:IRQ` (Linux's syntax, once for each device),
//! `ip=A.B.C.D`, `smp=N`, `dirty=PAGES_PER_SECOND`, `region=PAGES`, `log=quiet`, `poll=hot`,
//! `exercise=on`, `tick=MICROSECONDS`, `flood=sleep-types|serial`, `button=power-off`. Other words
//! are ignored.

use crate::flood::Flood;
use crate::say;

/// The value of one option `virtio_mmio.device`.
#[derive(Clone, Copy)]
pub struct MmioDevice {
    /// The address of the device's registers.
    pub base: u64,
    /// The device's interrupt line.
    pub irq: u32,
}

/// The options that the kernel command line sets.
pub struct Options<'a> {
    command_line: &'a str,
    /// The guest's IPv4 address; 10.0.2.15 by default.
    pub ip: [u8; 4],
    /// The number of CPUs to use; `None` means all.
    pub cpus: Option<usize>,
    /// Number of pages to dirty per second from the start.
    pub dirty: u32,
    /// Number of pages in the region to dirty; 0 means that the guest chooses.
    pub region: u32,
    /// Whether to print only the last boot message.
    pub quiet: bool,
    /// Whether the CPUs poll instead of halting.
    pub hot: bool,
    /// Whether to drive a device of unknown kind.
    pub exercise: bool,
    /// The period in microseconds of the timer that wakes a halted CPU, if given.
    pub tick: Option<u32>,
    /// Whether to power off when the power button is pressed.
    pub button: bool,
    /// The target of a hostile guest's writes.
    pub flood: Flood,
}

impl<'a> Options<'a> {
    /// Parses the options. Reports and ignores a wrong value: a guest that runs without it is more
    /// useful than none.
    pub fn parse(command_line: &'a str) -> Self {
        let mut options = Self {
            command_line,
            ip: [10, 0, 2, 15],
            cpus: None,
            dirty: 0,
            region: 0,
            quiet: false,
            hot: false,
            exercise: false,
            tick: None,
            button: false,
            flood: Flood::Nothing,
        };
        for (name, value) in pairs(command_line) {
            if !options.set(name, value) {
                say!("micro-guest: cannot use {name}={value}");
            }
        }
        options
    }

    fn set(&mut self, name: &str, value: &str) -> bool {
        match name {
            "ip" => parse_ip(value).map(|ip| self.ip = ip).is_some(),
            "smp" => value.parse().map(|count| self.cpus = Some(count)).is_ok(),
            "dirty" => value.parse().map(|rate| self.dirty = rate).is_ok(),
            "region" => value.parse().map(|pages| self.region = pages).is_ok(),
            "log" => {
                self.quiet = value == "quiet";
                self.quiet
            }
            "poll" => {
                self.hot = value == "hot";
                self.hot
            }
            "exercise" => {
                self.exercise = value == "on";
                self.exercise
            }
            "button" => {
                self.button = value == "power-off";
                self.button
            }
            "tick" => value.parse().map(|micros| self.tick = Some(micros)).is_ok(),
            "flood" => Flood::named(value).map(|flood| self.flood = flood).is_some(),
            "virtio_mmio.device" => parse_device(value).is_some(),
            _ => true,
        }
    }

    /// The virtio-mmio devices, in the order of the command line.
    pub fn devices(&self) -> impl Iterator<Item = MmioDevice> + 'a {
        pairs(self.command_line)
            .filter(|(name, _)| *name == "virtio_mmio.device")
            .filter_map(|(_, value)| parse_device(value))
    }
}

fn pairs(command_line: &str) -> impl Iterator<Item = (&str, &str)> {
    command_line.split_ascii_whitespace().filter_map(|word| word.split_once('='))
}

fn parse_ip(text: &str) -> Option<[u8; 4]> {
    let mut ip = [0; 4];
    let mut parts = text.split('.');
    for byte in &mut ip {
        *byte = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(ip)
}

/// Parses `SIZE@BASE:IRQ` or `SIZE@BASE:IRQ:ID`.
fn parse_device(text: &str) -> Option<MmioDevice> {
    let (size, rest) = text.split_once('@')?;
    parse_number(size)?;
    let mut parts = rest.split(':');
    let device = MmioDevice {
        base: parse_number(parts.next()?)?,
        irq: u32::try_from(parse_number(parts.next()?)?).ok()?,
    };
    Some(device)
}

/// Parses a number as Linux's memparse does: decimal or with 0x, optionally followed by K, M or G.
fn parse_number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.checked_shl(shift)
}
