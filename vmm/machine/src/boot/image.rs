//! Kernel images and the initrd: detects the format, claims the ranges that each part needs, and
//! loads the parts.

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::GuestMemory;
use linux_loader::loader::bootparam::setup_header;

use super::bzimage::BzImage;
use super::elf::ElfImage;
use super::entry::{Entry, Initrd};
use super::error::{BootError, mebibytes};
use super::map::{BootMap, Part};
use super::source::Source;

/// A kernel with checked headers.
pub(super) enum Kernel {
    Elf(ElfImage),
    BzImage(BzImage),
}

impl Kernel {
    /// Detects the format by its magic number (ELF's at 0, Linux's `HdrS` at 0x202), then reads the
    /// headers.
    pub(super) fn read(source: &mut Source<'_>) -> Result<Self, BootError> {
        let head = source.head(0x206)?;
        if head.get(0x202..0x206) == Some(b"HdrS") {
            return Ok(Self::BzImage(BzImage::read(source)?));
        }
        let found = match head.as_slice() {
            // Class 64 bit, little endian; machine x86-64 at offset 18.
            [0x7f, b'E', b'L', b'F', 2, 1, ..] if head.get(18..20) == Some(&[62, 0]) => {
                return Ok(Self::Elf(ElfImage::read(source)?));
            }
            [0x7f, b'E', b'L', b'F', 1, ..] => "a 32-bit ELF image".to_owned(),
            [0x7f, b'E', b'L', b'F', ..] => "an ELF image of another machine".to_owned(),
            [0x1f, 0x8b, ..] => "a gzip file (unpack it first)".to_owned(),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file (unpack it first)".to_owned(),
            [0xfd, b'7', b'z', ..] => "an xz file (unpack it first)".to_owned(),
            [] => "an empty file".to_owned(),
            other => format!("a file that starts with {:02x?}", &other[..other.len().min(4)]),
        };
        Err(BootError::NotAKernel { path: source.path.to_owned(), found })
    }

    pub(super) fn entry(&self) -> Entry {
        match self {
            Self::Elf(image) => image.entry(),
            Self::BzImage(image) => image.entry(),
        }
    }

    /// The header of a bzImage, which the zero page passes back to the kernel.
    pub(super) fn setup_header(&self) -> Option<setup_header> {
        match self {
            Self::Elf(_) => None,
            Self::BzImage(image) => Some(image.header()),
        }
    }

    /// Maximum length of the command line without its NUL, in bytes.
    pub(super) fn cmdline_max(&self) -> usize {
        let own = self.setup_header().map_or(0, |h| h.cmdline_size as usize);
        match own {
            0 => layout::CMDLINE_MAX - 1,
            size => size.min(layout::CMDLINE_MAX - 1),
        }
    }

    /// End of the range that an initrd may use.
    fn initrd_limit(&self) -> u64 {
        match self {
            Self::Elf(_) => layout::LOW_RAM_END,
            Self::BzImage(image) => image.initrd_limit(),
        }
    }

    /// Claims the ranges of the kernel and of the structures of its entry protocol.
    pub(super) fn claim(&self, source: &Source<'_>, map: &mut BootMap) -> Result<(), BootError> {
        let conflict = |conflict| BootError::conflict(source.path, conflict);
        map.claim_structures(self.entry()).map_err(conflict)?;
        match self {
            Self::Elf(image) => image.claim(source, map)?,
            Self::BzImage(image) => image.claim(source, map)?,
        }
        map.fits().map_err(conflict)
    }

    pub(super) fn load(
        &self,
        source: &mut Source<'_>,
        memory: &GuestMemory,
    ) -> Result<(), BootError> {
        match self {
            Self::Elf(image) => image.load(source, memory),
            Self::BzImage(image) => image.load(source, memory),
        }
    }
}

/// Claims room for the initrd, as high as the kernel accepts it: the kernel's own memory grows
/// upwards.
pub(super) fn claim_initrd(
    source: &Source<'_>,
    kernel: &Kernel,
    map: &mut BootMap,
) -> Result<Initrd, BootError> {
    let path = || source.path.to_owned();
    let size = source.len();
    if size == 0 {
        return Err(BootError::InitrdEmpty { path: path() });
    }
    let limit = kernel.initrd_limit();
    let Some(addr) = map.highest_room(size, limit, map.end()) else {
        let kernel_end = map.highest();
        return Err(match map.end_for(size, limit) {
            Some(end) => BootError::InitrdTooLarge {
                path: path(),
                size,
                kernel_end,
                end: limit.min(map.end()),
                enough: mebibytes(end),
            },
            None => BootError::InitrdHopeless {
                path: path(),
                size,
                kernel_end,
                end: limit.min(layout::LOW_RAM_END),
            },
        });
    };
    map.claim(Part::Initrd, addr, size)
        .map_err(|conflict| BootError::conflict(source.path, conflict))?;
    Ok(Initrd { addr, size })
}
