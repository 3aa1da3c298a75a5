//! Each rule by itself; the simulation tests them together.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod area;
mod marks;
mod order;
mod records;
mod resync;

use alloc::vec::Vec;

use super::*;

const A: DiskId = DiskId(0xa);
const B: DiskId = DiskId(0xb);
const C: DiskId = DiskId(0xc);
const GEOMETRY: Geometry = Geometry { coarse: 64, fine: 16 };

fn extent(start: u64, len: u64) -> Extent {
    Extent { disk: 0, start, len }
}

fn generation(term: u64) -> Generation {
    Generation { term, id: u128::from(term) + 100 }
}

fn sidecar(disk: DiskId, lineage: Lineage) -> Sidecar {
    Sidecar {
        pair: PairId(1),
        disk,
        lineage,
        pending: None,
        durable: Seq(10),
        state: State::Whole,
        peer: None,
        image: ImageIdentity { inode: 7, filesystem: 1, size: 256 },
    }
}

fn write(start: u64, bytes: &[u8]) -> Operation {
    let extent = extent(start, bytes.len() as u64);
    Operation::Write { extent, payload: Payload::Inline(Vec::from(bytes)) }
}
