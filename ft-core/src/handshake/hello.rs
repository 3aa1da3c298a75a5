//! A side's description of itself and of its machine.

use alloc::string::String;
use alloc::vec::Vec;

use io_gate::host::Term;
use serde::{Deserialize, Serialize};

use super::arbiter::ArbiterView;
use super::boot::{BootSource, ImageId};
use super::disks::DiskStorage;
use super::layout::MachineLayout;

/// A side's description of itself and of its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the wire protocol.
    pub protocol: u16,
    /// The release of the program. For people; not compared.
    pub release: String,
    /// The virtual machine's name.
    pub name: String,
    /// The term in which the primary acts. A standby repeats the primary's.
    pub term: Term,
    /// The primary's number for this session, repeated by the standby: a message with this number
    /// is not from an earlier session.
    pub session: u64,
    /// The standby's number for this session, which is never reused; 0 from a primary. The primary
    /// repeats it in messages that must not be replayed into another session:
    /// [`End`](crate::wire::End) and [`Bye`](crate::wire::Message::Bye).
    pub standby_session: u64,
    /// The sending process, as named in the arbiter's records and in those beside the disks. The
    /// name is never reused, while a term's number may be granted twice (P2).
    pub holder: String,
    /// The arbiter that this side asks.
    pub arbiter: ArbiterView,
    /// The machine's parts.
    pub layout: MachineLayout,
    /// The storage of the disks that the guest can write, by slot.
    pub disks: Vec<DiskStorage>,
    /// What the guest boots when it is reset. From a standby: what its own command line says;
    /// `None` means that it takes the primary's.
    pub boot: Option<BootSource>,
    /// From a standby: the images that it already has, of its own or from an earlier session.
    pub images: Vec<ImageId>,
    /// Facts of the host that must be equal: CPU features, KVM capabilities.
    pub facts: Vec<(String, String)>,
    /// The options that the primary wants for the session.
    pub options: SessionOptions,
}

/// The options of a session. The primary decides, and the standby follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOptions {
    /// Whether both sides hash their machine at every epoch and compare the hashes (P8).
    pub verify: bool,
}
