//! The mark area of a sidecar (R3, R11): marks as bits, in blocks of 4 KiB with a checksum each.
//!
//! ```text
//!   block 0           head: the peer, the point, the last entry whose marks were removed
//!   blocks 1 ..       one bit for each coarse extent
//!   the blocks after  one bit for each fine block
//! ```
//!
//! A write of the area writes the blocks that differ, the head durably before the others. A power
//! loss in the middle leaves some blocks as before:
//!
//! - a mark that is missing had not been durable, so its write had not begun;
//! - a mark that is still there is one too many;
//! - the head never says less than what the other blocks have lost: `cleared` is raised before
//!   marks go, and marks that go at a new point are of the new head.
//!
//! A block that was torn itself is damaged, and then every block of the image counts as marked.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{DiskId, Extent, Seq};

/// Bytes of a block.
pub const MARK_BLOCK: usize = 4096;

const MAGIC: [u8; 4] = *b"KMMA";
/// Version of the encoding.
const VERSION: u16 = 1;
/// Magic, version, two spare bytes, the block's number, the checksum.
const HEADER: usize = 24;
/// Where the checksum is.
const SUM: core::ops::Range<usize> = 16..24;
/// Marks in a block.
const BITS: u64 = 8 * (MARK_BLOCK - HEADER) as u64;

/// The sizes of marks, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Bytes under a coarse mark: 1 to 4 MiB.
    pub coarse: u64,
    /// Bytes under a fine mark, a divisor of `coarse`: 64 KiB or less.
    pub fine: u64,
}

impl Geometry {
    /// The sizes of the product.
    pub const PRODUCT: Self = Self { coarse: 4 << 20, fine: 64 << 10 };

    /// The coarse extents that a range touches.
    pub(super) fn extents(&self, extent: &Extent) -> core::ops::Range<u64> {
        extent.start / self.coarse..extent.end().div_ceil(self.coarse)
    }

    /// The fine blocks that a range touches.
    pub(super) fn blocks(&self, extent: &Extent) -> core::ops::Range<u64> {
        extent.start / self.fine..extent.end().div_ceil(self.fine)
    }

    pub(super) fn of_block(&self, block: u64) -> u64 {
        block * self.fine / self.coarse
    }
}

/// The marks, as they are on the medium.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// The image that this image was last equal to. The marks are valid for this pair of images
    /// only (R8).
    pub peer: Option<DiskId>,
    /// A random number for the moment when the two became equal. Both sides store the same.
    pub point: u128,
    /// Marks of entries up to this one were removed. A peer's image that is durable only to an
    /// earlier entry was set back to an older state.
    pub cleared: Seq,
    /// The coarse marks, by number of the extent.
    pub coarse: BTreeSet<u64>,
    /// The fine marks, by number of the block.
    pub fine: BTreeSet<u64>,
}

/// The mark area cannot be used: every block may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mark area is damaged: expected blocks with valid checksums, found others; the resync compares all blocks"
)]
pub struct AreaError;

/// What the head says beside the marks' bits.
#[derive(PartialEq, Serialize, Deserialize)]
struct Head {
    peer: Option<DiskId>,
    point: u128,
    cleared: Seq,
    layout: AreaLayout,
}

/// Where the marks of an image are in its area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaLayout {
    geometry: Geometry,
    size: u64,
}

impl AreaLayout {
    /// For an image of `size` bytes.
    #[must_use]
    pub fn new(geometry: Geometry, size: u64) -> Self {
        Self { geometry, size }
    }

    /// The sizes of its marks.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.first_fine() + self.fine().div_ceil(BITS)
    }

    /// Bytes of the image that are under a mark.
    #[must_use]
    pub fn marked_bytes(&self, area: &Area) -> u64 {
        let Geometry { coarse, fine } = self.geometry;
        let within = |unit: u64| {
            move |mark: &u64| unit.min(self.size.saturating_sub(mark.saturating_mul(unit)))
        };
        let alone = area
            .fine
            .iter()
            .filter(|block| !area.coarse.contains(&(block.saturating_mul(fine) / coarse)));
        let by_coarse = area.coarse.iter().map(within(coarse));
        by_coarse.chain(alone.map(within(fine))).sum()
    }

    fn coarse(&self) -> u64 {
        self.size.div_ceil(self.geometry.coarse)
    }

    fn fine(&self) -> u64 {
        self.size.div_ceil(self.geometry.fine)
    }

    fn first_fine(&self) -> u64 {
        1 + self.coarse().div_ceil(BITS)
    }

    fn head(&self, area: &Area) -> Head {
        Head { peer: area.peer, point: area.point, cleared: area.cleared, layout: *self }
    }

    /// The bytes of a block.
    #[must_use]
    pub fn encode(&self, area: &Area, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; MARK_BLOCK];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&block.to_le_bytes());
        let body = &mut bytes[HEADER..];
        match block {
            0 => {
                let head = postcard::to_allocvec(&self.head(area)).unwrap_or_default();
                body[..head.len()].copy_from_slice(&head);
            }
            _ if block < self.first_fine() => set_bits(body, &area.coarse, block - 1),
            _ => set_bits(body, &area.fine, block - self.first_fine()),
        }
        let sum = xxh3_64(&bytes).to_le_bytes();
        bytes[SUM].copy_from_slice(&sum);
        bytes
    }

    /// The bytes of all blocks.
    #[must_use]
    pub fn encode_all(&self, area: &Area) -> Vec<u8> {
        (0..self.blocks()).flat_map(|block| self.encode(area, block)).collect()
    }

    /// The blocks to write, in this order, for `to` to stand where `from` stands. The head is
    /// durable before the next one is written.
    #[must_use]
    pub fn changed(&self, from: &Area, to: &Area) -> BTreeSet<u64> {
        let head = (self.head(from) != self.head(to)).then_some(0);
        let coarse = from.coarse.symmetric_difference(&to.coarse).map(|mark| 1 + mark / BITS);
        let first = self.first_fine();
        let fine = from.fine.symmetric_difference(&to.fine).map(|mark| first + mark / BITS);
        head.into_iter().chain(coarse).chain(fine).filter(|block| *block < self.blocks()).collect()
    }

    /// Reads all blocks.
    ///
    /// # Errors
    /// When one was torn by a power loss or is damaged, or they are for another image's size.
    pub fn decode(&self, bytes: &[u8]) -> Result<Area, AreaError> {
        let mut area = Area::default();
        for block in 0..self.blocks() {
            let at = usize::try_from(block).map_err(|_| AreaError)? * MARK_BLOCK;
            let bytes = bytes.get(at..at + MARK_BLOCK).ok_or(AreaError)?;
            let body = body(bytes, block)?;
            match block {
                0 => {
                    let (head, _) =
                        postcard::take_from_bytes::<Head>(body).map_err(|_| AreaError)?;
                    if head.layout != *self {
                        return Err(AreaError);
                    }
                    (area.peer, area.point, area.cleared) = (head.peer, head.point, head.cleared);
                }
                _ if block < self.first_fine() => area.coarse.extend(bits(body, block - 1)),
                _ => area.fine.extend(bits(body, block - self.first_fine())),
            }
        }
        Ok(area)
    }
}

/// Sets the bits of the marks that are in the `nth` block of their kind.
fn set_bits(body: &mut [u8], marks: &BTreeSet<u64>, nth: u64) {
    let first = nth * BITS;
    for mark in marks.range(first..first + BITS) {
        let bit = (mark - first) as usize;
        body[bit / 8] |= 1 << (bit % 8);
    }
}

fn bits(body: &[u8], nth: u64) -> impl Iterator<Item = u64> + '_ {
    let bytes = body.iter().zip(0_u64..).filter(|(byte, _)| **byte != 0);
    bytes.flat_map(move |(byte, at)| {
        let set = (0..8).filter(move |bit| byte & (1 << bit) != 0);
        set.map(move |bit| nth * BITS + at * 8 + bit)
    })
}

/// What is behind the header of a block that is whole and in its place.
fn body(bytes: &[u8], block: u64) -> Result<&[u8], AreaError> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(AreaError)?;
    let mut checked = Vec::from(bytes);
    checked[SUM].fill(0);
    let is_whole = header[..4] == MAGIC
        && header[4..6] == VERSION.to_le_bytes()
        && header[8..16] == block.to_le_bytes()
        && header[SUM] == xxh3_64(&checked).to_le_bytes();
    if is_whole { Ok(body) } else { Err(AreaError) }
}
