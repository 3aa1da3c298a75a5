//! The handshake: the descriptions that both sides send, and whether they fit together.

mod arbiter;
mod boot;
mod compare;
mod disks;
mod hello;
mod images;
mod layout;
mod refusal;
#[cfg(test)]
mod tests;

pub use arbiter::{ArbiterView, compare_counter_marks};
pub use boot::{BootSource, ImageId};
pub use compare::compare;
pub use disks::{CounterMark, DiskStorage, FenceView, Storage, compare_disk_counter_marks};
pub use hello::{Hello, SessionOptions};
pub use images::images_to_send;
pub(crate) use images::total_size;
pub use layout::{DeviceLayout, MachineLayout, MemoryRegion};
pub use refusal::Refusal;
