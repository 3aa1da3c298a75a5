//! The stock Debian guest of a pair: its command line, its addresses and its observer.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::packet::Host;
use crate::pair::config::GuestConfig;
use crate::redis::{RedisConfig, RedisObserver};
use crate::switch::Cable;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const CLIENT: Host = Host { mac: [2, 0, 0, 0, 0, 0xc1], ip: Ipv4Addr::new(10, 0, 2, 2) };

/// The configuration of a run's guest.
pub fn guest(kernel: PathBuf, initrd: PathBuf, memory: u64, cpus: u32) -> GuestConfig {
    let command_line = format!("console=ttyS0 quiet panic=-1 kemari.ip={GUEST}/24");
    GuestConfig { kernel, initrd: Some(initrd), command_line, memory, cpus, boots_protected: false }
}

/// Starts the observer over `cable`.
pub fn observer(cable: Cable, connections: u32, seed: u64, image: &Path) -> RedisObserver {
    let image = image.to_owned();
    RedisObserver::start(cable, RedisConfig { own: CLIENT, guest: GUEST, connections, seed, image })
}
