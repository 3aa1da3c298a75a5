//! A 64-bit ELF image: its segments, and the note with the PVH entry.
//!
//! Uses only the types of linux-loader, not its loader: that one reads only the last note segment,
//! does not count segments of zeros, and writes memory before all checks are done.

use kemari_hypervisor::memory::GuestMemory;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

use super::entry::Entry;
use super::error::BootError;
use super::map::{BootMap, Part};
use super::source::Source;

const HEADER_LEN: u64 = size_of::<Elf64_Ehdr>() as u64;
const PROGRAM_HEADER_LEN: u64 = size_of::<Elf64_Phdr>() as u64;
/// Upper bound of a note segment in bytes; a kernel's notes are a few hundred bytes.
const NOTES_MAX: u64 = 1 << 20;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry, a 32-bit physical address.
const PVH_ENTRY: u32 = 18;
const PVH_OWNER: &[u8] = b"Xen\0";

/// An image with checked headers.
pub(super) struct ElfImage {
    entry: Entry,
    /// PT_LOAD segments with their index among the program headers.
    segments: Vec<(usize, Elf64_Phdr)>,
}

impl ElfImage {
    pub(super) fn read(source: &mut Source<'_>) -> Result<Self, BootError> {
        source.must_have("the ELF header", 0, HEADER_LEN)?;
        let header: Elf64_Ehdr = read_as(&source.bytes(0, HEADER_LEN)?);
        let headers = program_headers(source, &header)?;
        for (index, phdr) in headers.iter().enumerate() {
            if matches!(phdr.p_type, PT_LOAD | PT_NOTE) {
                let whose = format!("the bytes of segment {index}");
                source.must_have(&whose, phdr.p_offset, phdr.p_filesz)?;
            }
        }
        let notes = headers.iter().filter(|phdr| phdr.p_type == PT_NOTE);
        let mut pvh = None;
        for phdr in notes {
            pvh = pvh.or(pvh_entry(source, phdr)?);
        }
        let entry = match pvh {
            Some(rip) => Entry::Pvh { rip },
            None => Entry::Linux64 { rip: header.e_entry },
        };
        let loaded =
            |phdr: &Elf64_Phdr| phdr.p_type == PT_LOAD && phdr.p_memsz.max(phdr.p_filesz) > 0;
        let segments = headers.into_iter().enumerate().filter(|(_, phdr)| loaded(phdr)).collect();
        let image = Self { entry, segments };
        image.check(source)?;
        Ok(image)
    }

    fn check(&self, source: &Source<'_>) -> Result<(), BootError> {
        if self.segments.is_empty() {
            return Err(source.damaged("it has no segment to load"));
        }
        for (index, phdr) in &self.segments {
            if phdr.p_filesz > phdr.p_memsz {
                return Err(source.damaged(format!(
                    "segment {index} has {} bytes in the file and {} in memory, expected at most as many in the file \
                    as in memory",
                    phdr.p_filesz, phdr.p_memsz
                )));
            }
        }
        let (Entry::Pvh { rip } | Entry::Linux64 { rip }) = self.entry;
        let has =
            |phdr: &Elf64_Phdr| rip.checked_sub(phdr.p_paddr).is_some_and(|at| at < phdr.p_filesz);
        if !self.segments.iter().any(|(_, phdr)| has(phdr)) {
            let reason = format!("the entry point {rip:#x} is in none of its segments");
            return Err(source.damaged(reason));
        }
        Ok(())
    }

    pub(super) fn entry(&self) -> Entry {
        self.entry
    }

    pub(super) fn claim(&self, source: &Source<'_>, map: &mut BootMap) -> Result<(), BootError> {
        for (index, phdr) in &self.segments {
            map.claim(Part::Segment(*index), phdr.p_paddr, phdr.p_memsz)
                .map_err(|conflict| BootError::conflict(source.path, conflict))?;
        }
        Ok(())
    }

    /// Loads the segments into memory, which must be all zero.
    pub(super) fn load(
        &self,
        source: &mut Source<'_>,
        memory: &GuestMemory,
    ) -> Result<(), BootError> {
        for (_, phdr) in &self.segments {
            source.load(memory, phdr.p_offset, phdr.p_paddr, phdr.p_filesz)?;
        }
        Ok(())
    }
}

/// Reads a `T` from the start of `bytes`; missing bytes are zero.
fn read_as<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    let into = value.as_mut_slice();
    let len = into.len().min(bytes.len());
    into[..len].copy_from_slice(&bytes[..len]);
    value
}

fn program_headers(
    source: &mut Source<'_>,
    header: &Elf64_Ehdr,
) -> Result<Vec<Elf64_Phdr>, BootError> {
    if u64::from(header.e_phentsize) != PROGRAM_HEADER_LEN {
        return Err(source.damaged(format!(
            "program headers of {} bytes, expected {PROGRAM_HEADER_LEN}",
            header.e_phentsize
        )));
    }
    let len = u64::from(header.e_phnum) * PROGRAM_HEADER_LEN;
    if len > 0 && header.e_phoff < HEADER_LEN {
        return Err(source.damaged(format!(
            "the program headers lie at {:#x}, inside the ELF header, expected them after it",
            header.e_phoff
        )));
    }
    source.must_have("the program headers", header.e_phoff, len)?;
    let bytes = source.bytes(header.e_phoff, len)?;
    Ok(bytes.chunks_exact(PROGRAM_HEADER_LEN as usize).map(read_as).collect())
}

/// The PVH entry; `None` if the notes of this segment have none.
fn pvh_entry(source: &mut Source<'_>, phdr: &Elf64_Phdr) -> Result<Option<u64>, BootError> {
    if phdr.p_filesz > NOTES_MAX {
        return Err(source.damaged(format!(
            "a note segment of {} bytes, expected at most {NOTES_MAX}",
            phdr.p_filesz
        )));
    }
    let bytes = source.bytes(phdr.p_offset, phdr.p_filesz)?;
    // Linux aligns its notes to 4 bytes, whatever the segment's alignment. Other producers align
    // theirs to 8 if the segment says so.
    let found = find_pvh_note(&bytes, 4);
    let found = if phdr.p_align == 8 { found.or_else(|_| find_pvh_note(&bytes, 8)) } else { found };
    let Some(description) = found.map_err(|reason| source.damaged(reason))? else {
        return Ok(None);
    };
    match description.first_chunk::<4>() {
        Some(address) => Ok(Some(u64::from(u32::from_le_bytes(*address)))),
        None => Err(source.damaged(format!(
            "the note of the PVH entry has {} bytes, expected an address of 4",
            description.len()
        ))),
    }
}

/// The description of the first PVH note; an error if a note reaches beyond the segment.
fn find_pvh_note(bytes: &[u8], align: usize) -> Result<Option<&[u8]>, String> {
    let mut rest = bytes;
    while rest.len() >= size_of::<Elf64_Nhdr>() {
        let header: Elf64_Nhdr = read_as(rest);
        let name_at = size_of::<Elf64_Nhdr>();
        let name_end = name_at + header.n_namesz as usize;
        let description_at = name_end.next_multiple_of(align);
        let end = description_at + header.n_descsz as usize;
        let (Some(name), Some(description)) =
            (rest.get(name_at..name_end), rest.get(description_at..end))
        else {
            return Err(format!("a note of {end} bytes where its segment has {}", rest.len()));
        };
        if header.n_type == PVH_ENTRY && name == PVH_OWNER {
            return Ok(Some(description));
        }
        rest = rest.get(end.next_multiple_of(align)..).unwrap_or_default();
    }
    Ok(None)
}
