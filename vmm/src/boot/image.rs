//! Kernel images and the initrd: telling the formats apart and loading them with linux-loader.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::error::BootError;
use super::{Entry, Initrd};
use crate::layout;
use crate::memory::GuestMemory;

/// Offset of the 64-bit entry from the start of a loaded bzImage (Linux boot protocol, "64-bit BOOT PROTOCOL").
const ENTRY_64_OFFSET: u64 = 0x200;
/// `xloadflags`: the image has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// First boot protocol version with `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;
/// What old kernels accept as the highest address of an initrd (boot protocol, `initrd_addr_max`).
const INITRD_ADDR_MAX: u64 = 0x37ff_ffff;

enum Format {
    Elf,
    BzImage,
}

/// A kernel in guest memory.
pub(super) struct Kernel {
    entry: Entry,
    header: Option<setup_header>,
    /// First address after the memory that the kernel needs before it knows where its RAM is.
    end: u64,
}

impl Kernel {
    pub(super) fn entry(&self) -> Entry {
        self.entry
    }

    /// The header of a bzImage, to be handed back to the kernel in the zero page.
    pub(super) fn setup_header(&self) -> Option<setup_header> {
        self.header
    }

    /// Longest command line, without its NUL.
    pub(super) fn cmdline_max(&self) -> usize {
        let own = self.header.map_or(0, |h| h.cmdline_size as usize);
        match own {
            0 => layout::CMDLINE_MAX - 1,
            size => size.min(layout::CMDLINE_MAX - 1),
        }
    }

    /// First address that an initrd must not reach.
    fn initrd_limit(&self) -> u64 {
        match self.header {
            Some(h) if h.initrd_addr_max != 0 => u64::from(h.initrd_addr_max) + 1,
            Some(_) => INITRD_ADDR_MAX + 1,
            None => layout::LOW_RAM_END,
        }
    }
}

pub(super) fn load_kernel(
    memory: &GuestMemory,
    path: &Path,
    file: &mut File,
) -> Result<Kernel, BootError> {
    match detect(file, path)? {
        Format::Elf => load_elf(memory, file, path),
        Format::BzImage => load_bzimage(memory, file, path),
    }
}

pub(super) fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    let unreadable = |source| BootError::Unreadable { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(unreadable(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

/// Looks at the magic numbers: ELF's at 0, Linux's `HdrS` at 0x202.
fn detect(file: &mut File, path: &Path) -> Result<Format, BootError> {
    let mut head = Vec::new();
    // It may have been read before.
    let read = file.rewind().and_then(|()| file.take(0x206).read_to_end(&mut head));
    read.map_err(|source| BootError::Unreadable { what: "kernel", path: path.to_owned(), source })?;
    let refuse =
        |found: &str| Err(BootError::NotAKernel { path: path.to_owned(), found: found.to_owned() });
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(Format::BzImage);
    }
    match head.as_slice() {
        // Class 64 bit, little endian; machine x86-64 at offset 18.
        [0x7f, b'E', b'L', b'F', 2, 1, ..] if head.get(18..20) == Some(&[62, 0]) => Ok(Format::Elf),
        [0x7f, b'E', b'L', b'F', 1, ..] => refuse("a 32-bit ELF image"),
        [0x7f, b'E', b'L', b'F', ..] => refuse("an ELF image of another machine"),
        [0x1f, 0x8b, ..] => refuse("a gzip file (unpack it first)"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => refuse("a zstd file (unpack it first)"),
        [0xfd, b'7', b'z', ..] => refuse("an xz file (unpack it first)"),
        [] => refuse("an empty file"),
        other => refuse(&format!("a file that starts with {:02x?}", &other[..other.len().min(4)])),
    }
}

fn load_elf(memory: &GuestMemory, file: &mut File, path: &Path) -> Result<Kernel, BootError> {
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(layout::HIGH_MEMORY_START)))
        .map_err(|e| load_error(e, memory, path))?;
    check_end(memory, path, loaded.kernel_end)?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(addr) => Entry::Pvh { rip: addr.raw_value() },
        _ => Entry::Linux64 { rip: loaded.kernel_load.raw_value() },
    };
    let (Entry::Pvh { rip } | Entry::Linux64 { rip }) = entry;
    if rip < layout::HIGH_MEMORY_START || rip >= loaded.kernel_end {
        return Err(BootError::Damaged {
            path: path.to_owned(),
            reason: format!(
                "the entry point {rip:#x} is outside the image, which ends at {:#x}",
                loaded.kernel_end
            ),
        });
    }
    Ok(Kernel { entry, header: None, end: loaded.kernel_end })
}

fn load_bzimage(memory: &GuestMemory, file: &mut File, path: &Path) -> Result<Kernel, BootError> {
    let loaded = BzImage::load(memory, None, file, Some(GuestAddress(layout::HIGH_MEMORY_START)))
        .map_err(|e| load_error(e, memory, path))?;
    let Some(header) = loaded.setup_header else {
        return Err(BootError::Damaged { path: path.to_owned(), reason: "no setup header".into() });
    };
    if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry { path: path.to_owned() });
    }
    let end = bzimage_end(&loaded, &header);
    check_end(memory, path, end)?;
    let rip = loaded.kernel_load.raw_value() + ENTRY_64_OFFSET;
    Ok(Kernel { entry: Entry::Linux64 { rip }, header: Some(header), end })
}

/// The kernel unpacks itself to its preferred address and needs `init_size` bytes there (boot protocol, `init_size`).
fn bzimage_end(loaded: &KernelLoaderResult, header: &setup_header) -> u64 {
    let start = loaded.kernel_load.raw_value().max(header.pref_address);
    loaded.kernel_end.max(start.saturating_add(u64::from(header.init_size)))
}

fn check_end(memory: &GuestMemory, path: &Path, needed: u64) -> Result<(), BootError> {
    let end = low_ram_end(memory);
    if needed > end {
        return Err(BootError::KernelTooLarge { path: path.to_owned(), needed, end });
    }
    Ok(())
}

/// linux-loader says "cannot read the image" both for a short file and for an image that does not fit into memory.
fn load_error(error: linux_loader::loader::Error, memory: &GuestMemory, path: &Path) -> BootError {
    let size = std::fs::metadata(path).map_or(0, |m| m.len());
    let end = low_ram_end(memory);
    if layout::HIGH_MEMORY_START + size > end {
        return BootError::KernelTooLarge {
            path: path.to_owned(),
            needed: layout::HIGH_MEMORY_START + size,
            end,
        };
    }
    BootError::Damaged { path: path.to_owned(), reason: error.to_string() }
}

fn low_ram_end(memory: &GuestMemory) -> u64 {
    memory.last_addr().raw_value().saturating_add(1).min(layout::LOW_RAM_END)
}

/// Puts the initrd as high as the kernel accepts it, out of the way of everything that grows upwards.
pub(super) fn load_initrd(
    memory: &GuestMemory,
    path: &Path,
    file: &mut File,
    kernel: &Kernel,
) -> Result<Initrd, BootError> {
    let unreadable =
        |source| BootError::Unreadable { what: "initrd", path: path.to_owned(), source };
    let size = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    let end = low_ram_end(memory).min(kernel.initrd_limit());
    let addr = end.saturating_sub(size) & !(layout::PAGE_SIZE - 1);
    if addr < kernel.end {
        return Err(BootError::InitrdTooLarge {
            path: path.to_owned(),
            size,
            kernel_end: kernel.end,
            end,
        });
    }
    memory
        .read_exact_volatile_from(GuestAddress(addr), file, size as usize)
        .map_err(|e| unreadable(std::io::Error::other(e)))?;
    Ok(Initrd { addr, size })
}
