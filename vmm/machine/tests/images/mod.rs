//! Builders of kernel images: ELF images with any segments and notes, bzImages with any header, and
//! ways to damage them.

#![allow(dead_code, unreachable_pub, reason = "a test's tool: each test file uses its part")]

const EHDR: u64 = 64;
const PHDR: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// One PT_LOAD segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Physical address.
    pub addr: u64,
    /// Bytes in the file.
    pub bytes: Vec<u8>,
    /// Bytes in memory; those that are not in the file are zero.
    pub memory: u64,
}

impl Segment {
    /// A segment of `len` bytes 0x90 at `addr`.
    pub fn code(addr: u64, len: u64) -> Self {
        Self { addr, bytes: vec![0x90; len as usize], memory: len }
    }

    /// A segment of `len` zero bytes at `addr` that are not in the file.
    pub fn zeros(addr: u64, len: u64) -> Self {
        Self { addr, bytes: Vec::new(), memory: len }
    }
}

/// A 64-bit x86 ELF image.
#[derive(Clone, Debug)]
pub struct Elf {
    /// The entry point of the 64-bit protocol.
    pub entry: u64,
    /// The loaded segments.
    pub segments: Vec<Segment>,
    /// The contents and alignment of each PT_NOTE segment.
    pub notes: Vec<(Vec<u8>, u64)>,
}

/// A note in its file format.
pub fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len() as u32, description.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    for part in [name, description] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The note with the PVH entry.
pub fn pvh_note(entry: u32) -> Vec<u8> {
    note(b"Xen\0", 18, &entry.to_le_bytes())
}

/// A linker's note about the image's properties. Some linkers put it into a segment of its own.
pub fn property_note() -> Vec<u8> {
    note(b"GNU\0", 5, &[2, 0, 0, 0xc0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

impl Elf {
    /// An image with one page of code at 2 MiB, whose start is the PVH entry.
    pub fn pvh() -> Self {
        Self { notes: vec![(pvh_note(0x20_0000), 4)], ..Self::linux64() }
    }

    /// As [`pvh`](Self::pvh), without the note.
    pub fn linux64() -> Self {
        Self { entry: 0x20_0000, segments: vec![Segment::code(0x20_0000, 4096)], notes: vec![] }
    }

    /// Adds a segment.
    pub fn with(mut self, segment: Segment) -> Self {
        self.segments.push(segment);
        self
    }

    /// The image's bytes: header, program headers, notes, contents.
    pub fn build(&self) -> Vec<u8> {
        let count = (self.segments.len() + self.notes.len()) as u64;
        let mut offset = EHDR + count * PHDR;
        let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        image.extend(self.entry.to_le_bytes());
        image.extend(EHDR.to_le_bytes());
        image.extend([0; 12]);
        image.extend([64, 0, PHDR as u8, 0, count as u8, 0, 0, 0, 0, 0, 0, 0]);
        let mut contents: Vec<u8> = Vec::new();
        let notes = self.notes.iter().map(|(n, align)| (PT_NOTE, 0, n, n.len() as u64, *align));
        let loads = self.segments.iter().map(|s| (PT_LOAD, s.addr, &s.bytes, s.memory, 4096));
        for (kind, addr, bytes, memory, align) in notes.chain(loads) {
            image.extend(kind.to_le_bytes());
            image.extend(7u32.to_le_bytes());
            for field in [offset, addr, addr, bytes.len() as u64, memory, align] {
                image.extend(field.to_le_bytes());
            }
            contents.extend(bytes);
            offset += bytes.len() as u64;
        }
        image.extend(contents);
        image
    }
}

/// A bzImage with one setup sector.
#[derive(Clone, Debug)]
pub struct BzImage {
    /// The protected-mode part.
    pub payload: Vec<u8>,
    /// The length that the header gives, in units of 16 bytes.
    pub syssize: u32,
    /// The load address of the protected-mode part.
    pub code32_start: u32,
    /// The address to which the kernel unpacks itself.
    pub pref_address: u64,
    /// The memory that the kernel needs at that address, in bytes.
    pub init_size: u32,
    /// `xloadflags`.
    pub xloadflags: u16,
    /// `initrd_addr_max`.
    pub initrd_addr_max: u32,
    /// Boot protocol version.
    pub version: u16,
    /// Offset and length of the compressed kernel in the protected-mode part.
    pub compressed: (u32, u32),
}

impl BzImage {
    /// A valid image: 64 KiB that unpack to 16 MiB and need 1 MiB there.
    pub fn new() -> Self {
        Self {
            payload: vec![0x90; 64 << 10],
            syssize: 4096,
            code32_start: 0x10_0000,
            pref_address: 0x100_0000,
            init_size: 1 << 20,
            xloadflags: 1,
            initrd_addr_max: 0x7fff_ffff,
            version: 0x20f,
            compressed: (0x200, 0x1000),
        }
    }

    /// The image's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut image = vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]); // setup_sects
        put(0x1f4, &self.syssize.to_le_bytes());
        put(0x1fe, &[0x55, 0xaa]);
        put(0x200, &[0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[1]); // loaded high
        put(0x214, &self.code32_start.to_le_bytes());
        put(0x22c, &self.initrd_addr_max.to_le_bytes());
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes()); // cmdline_size
        put(0x248, &self.compressed.0.to_le_bytes());
        put(0x24c, &self.compressed.1.to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        image.extend_from_slice(&self.payload);
        image
    }
}
