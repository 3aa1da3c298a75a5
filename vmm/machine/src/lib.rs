//! One virtual machine: its configuration, guest memory, vCPUs, devices and gate; how it is built,
//! booted, started, paused, saved, restored, reset and ended.
//!
//! Code that knows of a pair does not belong here: no terms, handshake, link or standby. Of this
//! project's crates, this one may depend on the gate and its far side, the devices,
//! `kemari-hypervisor`, `kemari-confine` and `kemari-support`.
//!
//! To add a device, add a line to [`catalog`]. Threads and locks: `docs/threads.md`.

pub mod boot;
mod bus;
pub mod catalog;
pub mod config;
mod description;
mod device_error;
mod device_set;
mod device_thread;
pub mod disks;
mod events;
pub mod gated;
pub mod interface;
mod interrupt;
mod machine;
mod pci;
mod register_port;
pub mod serving;
pub mod ungated;
mod virtio_mmio;

pub use description::{DeviceDescription, MachineDescription};
pub use device_error::{DeviceSetupError, ShareDiskError};
pub use device_set::{AttachOptions, DeviceRecord, DeviceSet, DeviceState, DevicesRestoreError};
pub use device_thread::{LoopContext, LoopError, LoopHandle, PendingCommand, Subscriber};
pub use events::{Ended, Events, MachineEvent};
pub use machine::{Machine, MachineError};
pub use pci::{Description, FunctionState, PciBus, PciError, PciState};
pub use register_port::RegisterPort;
pub use virtio_mmio::{Registers, TransportError, TransportState, VirtioMmio};
