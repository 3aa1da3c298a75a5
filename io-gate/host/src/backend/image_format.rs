//! Detects the kind of a file from its first bytes: disk images that are not raw, archives,
//! programs.
//!
//! Used only when a machine starts, and for files that no guest has written yet. A guest may write
//! any bytes at the beginning of its disk, and must not be able to keep a standby from taking over.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Number of bytes to read: all signatures of `SIGNS` are within them.
const HEAD: usize = 1024;

/// The format that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFormat {
    /// The name with its article, for instance `a qcow2 image`.
    pub name: &'static str,
    /// How to make a raw image of the file.
    pub to_raw: ToRaw,
}

/// How to make a raw image of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToRaw {
    /// `qemu-img convert -f FORMAT -O raw`.
    Convert(&'static str),
    /// A command that unpacks its input.
    Unpack(&'static str),
    /// The file is not a disk image.
    NoDisk,
}

impl ToRaw {
    /// The advice for `path`.
    #[must_use]
    pub fn command(self, path: &std::path::Path) -> String {
        let path = path.display();
        match self {
            Self::Convert(format) => {
                format!(
                    "convert it to a raw image: qemu-img convert -f {format} -O raw {path} {path}.raw"
                )
            }
            Self::Unpack(command) => format!("unpack it first: {command} {path} > {path}.raw"),
            Self::NoDisk => "check the path".to_owned(),
        }
    }
}

/// A signature: its offset, its bytes, the format's name, and how to convert it.
type Sign = (usize, &'static [u8], &'static str, ToRaw);

const SIGNS: &[Sign] = &[
    (0, b"QFI\xfb\0\0\0\x01", "a qcow image", ToRaw::Convert("qcow")),
    (0, b"QFI\xfb", "a qcow2 image", ToRaw::Convert("qcow2")),
    (0, b"QED\0", "a QED image", ToRaw::Convert("qed")),
    (0, b"KDMV", "a VMDK image", ToRaw::Convert("vmdk")),
    (0, b"COWD", "a VMDK image", ToRaw::Convert("vmdk")),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor", ToRaw::Convert("vmdk")),
    (0, b"vhdxfile", "a VHDX image", ToRaw::Convert("vhdx")),
    (0, b"conectix", "a VHD image", ToRaw::Convert("vpc")),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image", ToRaw::Convert("vdi")),
    (0, b"WithoutFreeSpace", "a Parallels image", ToRaw::Convert("parallels")),
    (0, b"WithouFreSpacExt", "a Parallels image", ToRaw::Convert("parallels")),
    (0, b"Bochs Virtual HD Image", "a Bochs image", ToRaw::Convert("bochs")),
    (0, b"\x1f\x8b", "a gzip file", ToRaw::Unpack("gzip -dc")),
    (0, b"\xfd7zXZ\0", "an xz file", ToRaw::Unpack("xz -dc")),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", ToRaw::Unpack("zstd -dc")),
    (0, b"BZh", "a bzip2 file", ToRaw::Unpack("bzip2 -dc")),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", ToRaw::Unpack("lz4 -dc")),
    (0, b"PK\x03\x04", "a zip file", ToRaw::Unpack("unzip -p")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip file", ToRaw::Unpack("7z x -so")),
    (0x101, b"ustar", "a tar file", ToRaw::Unpack("tar -xOf")),
    (0, b"\x7fELF", "an ELF image", ToRaw::NoDisk),
    (0, b"%PDF-", "a PDF document", ToRaw::NoDisk),
    (0, b"kemari-fence ", "the fence record of another disk", ToRaw::NoDisk),
    (0, b"KMSC", "the sidecar of another disk", ToRaw::NoDisk),
];
/// The signature in the last sector of a fixed-size VHD. The disk before that sector is raw.
const VHD_FOOTER: Sign = (0, b"conectix", "a VHD image", ToRaw::Convert("vpc"));

/// Detects the format of an open file. Returns `None` if it is raw. A device has no format.
///
/// # Errors
/// When the file cannot be read.
pub fn of_file(file: &File) -> io::Result<Option<ImageFormat>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let head = read(file, 0, HEAD)?;
    let tail = read(file, metadata.len().saturating_sub(512), 512)?;
    Ok(of_bytes(&head).or_else(|| matches(&VHD_FOOTER, &tail)))
}

/// Detects the format of a file that begins with these bytes.
#[must_use]
pub fn of_bytes(head: &[u8]) -> Option<ImageFormat> {
    SIGNS.iter().find_map(|sign| matches(sign, head))
}

fn matches(&(at, sign, name, to_raw): &Sign, bytes: &[u8]) -> Option<ImageFormat> {
    bytes.get(at..)?.starts_with(sign).then_some(ImageFormat { name, to_raw })
}

/// Reads at most `len` bytes from `at`.
fn read(file: &File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::Write;

    use super::*;

    fn of(bytes: &[u8]) -> Option<&'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        of_file(&file).unwrap().map(|format| format.name)
    }

    #[test]
    fn formats_are_told_from_raw_bytes() {
        for (at, sign, name, _) in SIGNS {
            let mut bytes = vec![0; at + sign.len() + 100];
            bytes[*at..at + sign.len()].copy_from_slice(sign);
            assert_eq!(of(&bytes), Some(*name));
        }
        let mut fixed = vec![0; 4096];
        fixed[3584..3592].copy_from_slice(b"conectix");
        assert_eq!(of(&fixed), Some("a VHD image"));
        // These are raw: a boot sector, an ext4 file system, an encrypted disk, an empty file.
        let mut raw = vec![0; 4096];
        assert_eq!(of(&raw), None);
        raw[510..512].copy_from_slice(&[0x55, 0xaa]);
        raw[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(of(&raw), None);
        assert_eq!(of(b"LUKS\xba\xbe\0\x02"), None);
        assert_eq!(of(b""), None);
    }
}
