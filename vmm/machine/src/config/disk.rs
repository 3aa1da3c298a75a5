//! `--disk`: an image or a block device, and how to open it.

use std::path::PathBuf;
use std::str::FromStr;

use devices::Block;
use kemari_support::values::{self, Part};

use super::queues::parse_queues;

/// The place of a disk's fence record, which names the term that may write to the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FenceRecord {
    /// Beside the image; a block device has none.
    #[default]
    Beside,
    /// In this file.
    At(PathBuf),
    /// No record.
    Off,
}

/// `path=FILE`, then any of `,format=raw`, `,readonly=on`, `,serial=TEXT`,
/// `,cache=writethrough|writeback`, `,direct=on`, `,queues=N` and `,fence=FILE|off`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// Whether to use the file as raw even if it looks like another format.
    pub is_raw: bool,
    /// Whether to refuse writes.
    pub read_only: bool,
    /// The serial number that the guest sees.
    pub serial: String,
    /// When a write counts as complete.
    pub cache: DiskCache,
    /// Whether to bypass the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Number of request queues.
    pub queues: u16,
    /// The place of the fence record, if there is an arbiter.
    pub fence: FenceRecord,
}

/// When a write to a disk counts as complete without a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskCache {
    /// `writethrough` with fault tolerance, `writeback` without it.
    #[default]
    Auto,
    /// When the storage has the data (`O_DSYNC`).
    WriteThrough,
    /// When the host's page cache has the data. With fault tolerance, use it only for storage whose
    /// cache survives the host: the guest continues elsewhere and does not write the data again
    /// (P3).
    WriteBack,
}

impl DiskCache {
    /// Whether to write through. `shared`: another machine may continue from the disk.
    #[must_use]
    pub const fn write_through(self, shared: bool) -> bool {
        matches!((self, shared), (Self::WriteThrough, _) | (Self::Auto, true))
    }
}

/// Virtio's limit for a disk's serial number, in bytes.
const SERIAL_MAX: usize = 20;

const DISK_FORM: &str = "path=FILE[,format=raw][,readonly=on][,serial=TEXT][,cache=writethrough|writeback][,direct=on][,queues=N][,fence=FILE|off]";

impl FromStr for DiskConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut disk = Self {
            path: PathBuf::new(),
            is_raw: false,
            read_only: false,
            serial: String::new(),
            cache: DiskCache::default(),
            direct: false,
            queues: 1,
            fence: FenceRecord::default(),
        };
        for part in values::list(text, DISK_FORM)? {
            match part.key.as_str() {
                "path" => disk.path = part.text()?.into(),
                "format" => disk.is_raw = parse_format(&part)?,
                "readonly" => disk.read_only = part.switch()?,
                "serial" => disk.serial = parse_serial(&part)?,
                "cache" => disk.cache = parse_cache(&part)?,
                "direct" => disk.direct = part.switch()?,
                "queues" => disk.queues = parse_queues(&part, Block::MAX_QUEUES)?,
                "fence" => {
                    disk.fence = match part.text()? {
                        "off" => FenceRecord::Off,
                        path => FenceRecord::At(path.into()),
                    }
                }
                _ => return Err(values::unknown(&part, DISK_FORM)),
            }
        }
        if disk.path.as_os_str().is_empty() {
            return Err(format!("expected {DISK_FORM}, found no path="));
        }
        Ok(disk)
    }
}

fn parse_format(part: &Part) -> Result<bool, String> {
    match part.text()? {
        "raw" => Ok(true),
        other => Err(part.wrong(&format!(
            "format=raw, the only format; convert the image to it: qemu-img convert -f {other} -O raw FILE FILE.raw"
        ))),
    }
}

fn parse_cache(part: &Part) -> Result<DiskCache, String> {
    match part.text()? {
        "writethrough" => Ok(DiskCache::WriteThrough),
        "writeback" => Ok(DiskCache::WriteBack),
        _ => Err(part.wrong("cache=writethrough or cache=writeback")),
    }
}

fn parse_serial(part: &Part) -> Result<String, String> {
    let text = part.text()?;
    // Printable ASCII only: the guest writes the serial number to logs and uses it in names below
    // /dev/disk.
    match text.len() <= SERIAL_MAX && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        true => Ok(text.to_owned()),
        false => {
            Err(part.wrong(&format!("serial= and at most {SERIAL_MAX} printable ASCII characters")))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn disk(text: &str) -> Result<DiskConfig, String> {
        text.parse()
    }

    #[test]
    fn disks_are_read() {
        let found = disk("path=/a/b.img,readonly=on,serial=abc").unwrap();
        assert_eq!(
            found,
            DiskConfig {
                path: "/a/b.img".into(),
                is_raw: false,
                read_only: true,
                serial: "abc".into(),
                cache: DiskCache::Auto,
                direct: false,
                queues: 1,
                fence: FenceRecord::Beside
            }
        );
        assert_eq!(disk("path=x,cache=writethrough").unwrap().cache, DiskCache::WriteThrough);
        assert_eq!(disk("path=x,cache=writeback").unwrap().cache, DiskCache::WriteBack);
        assert_eq!(disk("path=x,fence=off").unwrap().fence, FenceRecord::Off);
        assert_eq!(disk("path=x,fence=/y").unwrap().fence, FenceRecord::At("/y".into()));
        let several = disk("path=x,direct=on,queues=4").unwrap();
        assert_eq!((several.direct, several.queues), (true, 4));
        for bad in [
            "",
            "path=x,queues=0",
            "path=x,queues=17",
            "path=x,direct=maybe",
            "path=x,fence=",
            "path=x,cache=none",
            "/a/b.img",
            "path=",
            "path=x,readonly=yes",
            "path=x,size=3",
            "path=x,serial=123456789012345678901",
        ] {
            assert!(disk(bad).unwrap_err().contains("expected"), "{bad}");
        }
    }

    /// P3: the guest survives its host, and the host's page cache does not.
    #[test]
    fn p3_a_disk_that_another_machine_goes_on_from_is_written_through() {
        let writes_through = |text: &str| disk(text).unwrap().cache.write_through(true);
        assert!(writes_through("path=x"));
        assert!(!writes_through("path=x,cache=writeback"));
        assert!(!disk("path=x").unwrap().cache.write_through(false));
        assert!(disk("path=x,cache=writethrough").unwrap().cache.write_through(false));
    }
}
