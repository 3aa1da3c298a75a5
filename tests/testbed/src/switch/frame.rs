//! What all readers of frames share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Maximum length of a frame in bytes: an IPv4 datagram of 64 KiB (the receiver segments it) with
/// its Ethernet header.
pub(super) const MAX_FRAME: usize = 65536 + 14;

/// Whether a reader holds frames that it has not forwarded. It is set before the reader reads.
pub(super) type InHand = Arc<AtomicBool>;
