//! What a machine is made of, as the command line says it; every value is checked here, before anything is opened.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use devices::{Block, Net};

use crate::machine::catalog;

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Its name: in log lines, and what an arbiter knows it by.
    pub name: String,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The file that guest memory is in, shared with whoever maps it; none: nobody else can. Not with fault tolerance.
    pub memory_file: Option<PathBuf>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// What to boot; a standby needs it for a reset after takeover only.
    pub boot: Option<BootSource>,
    /// Disks, in the order of their virtio-mmio windows.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, after the disks.
    pub nets: Vec<NetConfig>,
    /// Whether there is a source of random bytes.
    pub rng: bool,
    /// Whether there is a real-time clock (PL031).
    pub rtc: bool,
    /// The virtio console, if there is one.
    pub virtio_console: Option<ConsoleConfig>,
    /// Devices asked for by name, after all others.
    pub devices: Vec<DeviceConfig>,
    /// What is behind the serial line.
    pub serial: ConsoleConfig,
}

/// Where the guest's kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootSource {
    /// A bzImage or an ELF image.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Why a configuration makes no sense; says which flag to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl MachineConfig {
    /// Checks what no single flag can tell.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self) -> Result<(), ConfigError> {
        let stdio = ConsoleConfig::Stdio;
        if self.serial == stdio && self.virtio_console == Some(stdio) {
            return Err(ConfigError(
                "--serial stdio and --virtio-console stdio: there is one standard input: give one of them `none` or `file=PATH`".into(),
            ));
        }
        let macs: BTreeSet<[u8; 6]> = (0..self.nets.len()).map(|i| self.mac(i)).collect();
        if macs.len() < self.nets.len() {
            return Err(ConfigError("two --net have the same mac: give each its own".into()));
        }
        let mut disks = BTreeSet::new();
        if let Some(twice) = self.disks.iter().find(|disk| !disks.insert(&disk.path)) {
            return Err(ConfigError(format!(
                "--disk {}: given twice: a disk can be in the machine once",
                twice.path.display()
            )));
        }
        Ok(())
    }

    /// The address of a network interface: the one given, or one made from the machine's name, so that both hosts of a
    /// pair have the same without being told.
    #[must_use]
    pub fn mac(&self, net: usize) -> [u8; 6] {
        if let Some(mac) = self.nets.get(net).and_then(|net| net.mac) {
            return mac;
        }
        let hash = xxhash_rust::xxh3::xxh3_64(self.name.as_bytes()).to_le_bytes();
        // 0x52 has the bit of a locally administered address, and is no group.
        [0x52, 0x54, 0x00, hash[0], hash[1], hash[2].wrapping_add(net as u8)]
    }
}

/// `MIB[,file=PATH,share=on]`, or `size=MIB` for the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// The file that it is in.
    pub file: Option<PathBuf>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { size: 512 << 20, file: None }
    }
}

const MEMORY_FORM: &str = "MIB (2 to 16777216), then perhaps ,file=PATH,share=on";

impl FromStr for MemoryConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut memory, mut shared) = (Self::default(), false);
        for (key, value) in pairs(text) {
            match (key, value) {
                (mib, None) | ("size", Some(mib)) => {
                    let mib = mib.parse().ok().filter(|mib| (2..=1 << 24).contains(mib));
                    memory.size =
                        mib.map(|mib: u64| mib << 20).ok_or_else(|| unknown(MEMORY_FORM, text))?;
                }
                ("file", Some(path)) if !path.is_empty() => memory.file = Some(path.into()),
                ("share" | "shared", Some("on")) => shared = true,
                _ => return Err(unknown(MEMORY_FORM, text)),
            }
        }
        if shared != memory.file.is_some() {
            // A private mapping of a file would be neither the file's nor the guest's alone.
            return Err(unknown(MEMORY_FORM, text));
        }
        Ok(memory)
    }
}

/// Where the record is of the term that may write to a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FenceRecord {
    /// Beside an image; a block device has none.
    #[default]
    Beside,
    /// In this file.
    At(PathBuf),
    /// Nowhere.
    Off,
}

/// `path=FILE[,readonly=on][,serial=TEXT][,cache=writethrough|writeback][,direct=on][,queues=N][,fence=FILE|off]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// Refuse writes.
    pub read_only: bool,
    /// The serial number that the guest sees.
    pub serial: String,
    /// When a write counts as complete.
    pub cache: DiskCache,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Request queues.
    pub queues: u16,
    /// Where there is an arbiter: the second line of fencing.
    pub fence: FenceRecord,
}

/// When a write to a disk counts as complete, without a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskCache {
    /// With fault tolerance as `writethrough`, without it as `writeback`.
    #[default]
    Auto,
    /// When it is in the storage (`O_DSYNC`).
    WriteThrough,
    /// When it is in the host's page cache. With fault tolerance only for storage whose cache does
    /// not die with the host: the guest goes on elsewhere and will not write again (P3).
    WriteBack,
}

impl DiskCache {
    /// Whether to write through, where another machine may go on from the disk or not.
    #[must_use]
    pub const fn write_through(self, shared: bool) -> bool {
        matches!((self, shared), (Self::WriteThrough, _) | (Self::Auto, true))
    }
}

/// Virtio's limit for a disk's serial number.
const SERIAL_MAX: usize = 20;

impl FromStr for DiskConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "path=FILE[,readonly=on][,serial=TEXT][,cache=writethrough|writeback][,direct=on][,queues=N][,fence=FILE|off]";
        let (mut path, mut read_only, mut serial) = (None, false, String::new());
        let (mut direct, mut queues) = (false, 1);
        let (mut cache, mut fence) = (DiskCache::default(), FenceRecord::default());
        for (key, value) in pairs(text) {
            match (key, value) {
                ("path", Some(value)) if !value.is_empty() => path = Some(PathBuf::from(value)),
                ("readonly", Some("on")) => read_only = true,
                ("readonly", Some("off")) => read_only = false,
                ("cache", Some("writethrough")) => cache = DiskCache::WriteThrough,
                ("cache", Some("writeback")) => cache = DiskCache::WriteBack,
                ("direct", Some("on")) => direct = true,
                ("direct", Some("off")) => direct = false,
                ("queues", Some(value)) => queues = parse_queues(value, Block::MAX_QUEUES)?,
                ("fence", Some("off")) => fence = FenceRecord::Off,
                ("fence", Some(value)) if !value.is_empty() => {
                    fence = FenceRecord::At(PathBuf::from(value));
                }
                ("serial", Some(value)) if value.len() <= SERIAL_MAX && value.is_ascii() => {
                    value.clone_into(&mut serial)
                }
                ("serial", Some(value)) => {
                    return Err(format!(
                        "expected a serial of at most {SERIAL_MAX} ASCII characters, found `{value}`"
                    ));
                }
                _ => return Err(unknown(FORM, text)),
            }
        }
        let path = path.ok_or_else(|| unknown(FORM, text))?;
        Ok(Self { path, read_only, serial, cache, direct, queues, fence })
    }
}

/// How many queues a device has: both sides of a pair have to say the same.
fn parse_queues(text: &str, most: u16) -> Result<u16, String> {
    let count = text.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("expected queues=1 to queues={most}, found `{text}`"))
}

/// What is behind a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    /// A tap interface.
    Tap(String),
    /// A listening Unix stream socket.
    Stream(PathBuf),
    /// Two Unix datagram sockets: ours, theirs.
    Dgram(PathBuf, PathBuf),
}

/// Which network card the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel's 82540EM on a PCI bus, for guests that know no virtio.
    E1000,
}

/// `tap=IFNAME|stream=PATH|dgram=LOCAL:PEER[,mac=XX:XX:XX:XX:XX:XX][,model=virtio|e1000][,queues=N]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// What is behind it.
    pub backend: NetBackend,
    /// The guest's address; made from the machine's name if not given.
    pub mac: Option<[u8; 6]>,
    /// The card.
    pub model: NetModel,
    /// Pairs of queues.
    pub queues: u16,
}

const NET_FORM: &str = "tap=IFNAME, stream=SOCKETPATH or dgram=LOCALPATH:PEERPATH, then perhaps ,mac=XX:XX:XX:XX:XX:XX and ,queues=N or ,model=e1000";
/// The kernel's limit for the name of an interface (IFNAMSIZ without the NUL).
const IFNAME_MAX: usize = 15;

impl FromStr for NetConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut backend, mut mac, mut model) = (None, None, NetModel::default());
        let mut queues = 1;
        for (key, value) in pairs(text) {
            let value =
                value.filter(|value| !value.is_empty()).ok_or_else(|| unknown(NET_FORM, text))?;
            let found = match key {
                "tap" if value.len() <= IFNAME_MAX => NetBackend::Tap(value.to_owned()),
                "tap" => {
                    return Err(format!(
                        "expected an interface name of at most {IFNAME_MAX} bytes, found `{value}`"
                    ));
                }
                "stream" => NetBackend::Stream(PathBuf::from(value)),
                "dgram" => {
                    let (local, peer) =
                        value.split_once(':').ok_or_else(|| unknown(NET_FORM, text))?;
                    NetBackend::Dgram(PathBuf::from(local), PathBuf::from(peer))
                }
                "mac" => {
                    mac = Some(parse_mac(value)?);
                    continue;
                }
                "queues" => {
                    queues = parse_queues(value, Net::MAX_PAIRS)?;
                    continue;
                }
                "model" => {
                    model = match value {
                        "virtio" => NetModel::Virtio,
                        "e1000" => NetModel::E1000,
                        _ => {
                            return Err(format!(
                                "expected model=virtio or model=e1000, found `{value}`"
                            ));
                        }
                    };
                    continue;
                }
                _ => return Err(unknown(NET_FORM, text)),
            };
            if backend.replace(found).is_some() {
                return Err(unknown(NET_FORM, text));
            }
        }
        if model == NetModel::E1000 && queues > 1 {
            return Err(format!("model=e1000 has one queue each way: leave queues={queues} out"));
        }
        let backend = backend.ok_or_else(|| unknown(NET_FORM, text))?;
        Ok(Self { backend, mac, model, queues })
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bad = || {
        format!(
            "expected a MAC address such as 52:54:00:12:34:56 (not a group address), found `{text}`"
        )
    };
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    if parts.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(bad());
    }
    Ok(mac)
}

/// `NAME[,console=SPEC|,disk=path=FILE..|,tap=..|,stream=..|,dgram=..]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Its name in the catalogue.
    pub name: String,
    /// What is behind its port 0.
    pub backend: Option<DeviceBackend>,
}

/// What can be behind a device that is asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceBackend {
    /// What its console output and input are.
    Console(ConsoleConfig),
    /// Its disk.
    Disk(DiskConfig),
    /// Its network.
    Net(NetBackend),
}

impl FromStr for DeviceConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.split_once(',') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        if catalog::find(name).is_none() {
            return Err(format!("expected one of {}, found `{name}`", catalog::names()));
        }
        let backend = rest.map(|rest| match rest.split_once('=') {
            Some(("console", spec)) => spec.parse().map(DeviceBackend::Console),
            Some(("disk", spec)) => spec.parse().map(DeviceBackend::Disk),
            Some(("tap" | "stream" | "dgram", _)) => {
                rest.parse().map(|net: NetConfig| DeviceBackend::Net(net.backend))
            }
            _ => Err(unknown(
                "NAME, NAME,console=SPEC, NAME,disk=path=FILE or NAME,stream=SOCKETPATH",
                text,
            )),
        });
        Ok(Self { name: name.to_owned(), backend: backend.transpose()? })
    }
}

/// What is behind a console: `stdio`, `file=PATH` or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// This process's standard input and output.
    Stdio,
    /// A file that takes the output; there is no input.
    File(PathBuf),
    /// Nothing: the device is there, what it says is thrown away.
    None,
}

impl FromStr for ConsoleConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "none" => Ok(Self::None),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            _ => Err(format!("expected `stdio`, `file=PATH` or `none`, found `{text}`")),
        }
    }
}

/// Splits `a=b,c=d`.
fn pairs(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    text.split(',').map(|part| match part.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (part, None),
    })
}

fn unknown(form: &str, found: &str) -> String {
    format!("expected {form}; found `{found}`")
}

/// Checks the name of a machine: it becomes part of file names.
///
/// # Errors
/// What names may look like.
pub fn parse_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(fits) {
        return Err(format!("expected 1 to 64 letters, digits, `-`, `_` or `.`, found `{text}`"));
    }
    Ok(text.to_owned())
}

/// The path of a file as a user would look for it, for messages.
#[must_use]
pub fn show(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn disk(text: &str) -> Result<DiskConfig, String> {
        text.parse()
    }

    fn net(text: &str) -> Result<NetConfig, String> {
        text.parse()
    }

    #[test]
    fn disks_are_read() {
        let found = disk("path=/a/b.img,readonly=on,serial=abc").unwrap();
        assert_eq!(
            found,
            DiskConfig {
                path: "/a/b.img".into(),
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

    /// P3: the page cache dies with the host, and the guest does not.
    #[test]
    fn p3_a_disk_that_another_machine_goes_on_from_is_written_through() {
        let writes_through = |text: &str| disk(text).unwrap().cache.write_through(true);
        assert!(writes_through("path=x"));
        assert!(!writes_through("path=x,cache=writeback"));
        assert!(!disk("path=x").unwrap().cache.write_through(false));
        assert!(disk("path=x,cache=writethrough").unwrap().cache.write_through(false));
    }

    #[test]
    fn networks_are_read() {
        assert_eq!(net("tap=tap0").unwrap().backend, NetBackend::Tap("tap0".into()));
        let found = net("stream=/s,mac=52:54:00:12:34:56").unwrap();
        assert_eq!(found.backend, NetBackend::Stream("/s".into()));
        assert_eq!(found.mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert_eq!(
            net("dgram=/a:/b").unwrap().backend,
            NetBackend::Dgram("/a".into(), "/b".into())
        );
        assert_eq!(found.model, NetModel::Virtio);
        assert_eq!(net("tap=t,model=e1000").unwrap().model, NetModel::E1000);
        assert_eq!(net("tap=t,queues=4").unwrap().queues, 4);
        assert!(net("tap=t,queues=2,model=e1000").unwrap_err().contains("one queue"));
        for bad in [
            "",
            "tap=t,queues=0",
            "tap=t,queues=9",
            "tap=t,model=rtl8139",
            "tap=",
            "stream",
            "dgram=/a",
            "tap=a,stream=/b",
            "tap=t,mac=53:54:00:12:34:56",
            "tap=t,mac=1:2",
            "tap=interface-that-is-too-long",
        ] {
            assert!(net(bad).unwrap_err().contains("expected"), "{bad}");
        }
    }

    #[test]
    fn consoles_and_names_are_read() {
        assert_eq!("file=/x".parse(), Ok(ConsoleConfig::File("/x".into())));
        assert!("pty".parse::<ConsoleConfig>().unwrap_err().contains("pty"));
        assert!(parse_name("vm-1").is_ok());
        assert!(parse_name("../x").is_err());
    }

    #[test]
    fn what_no_single_flag_can_tell_is_checked() {
        let good = MachineConfig {
            name: "vm".into(),
            memory: 1 << 28,
            memory_file: None,
            cpus: 1,
            boot: None,
            disks: vec![],
            nets: vec![net("stream=/a").unwrap(), net("stream=/b").unwrap()],
            rng: true,
            rtc: false,
            devices: Vec::new(),
            virtio_console: None,
            serial: ConsoleConfig::Stdio,
        };
        good.check().unwrap();
        assert_ne!(good.mac(0), good.mac(1));
        let both = MachineConfig { virtio_console: Some(ConsoleConfig::Stdio), ..good.clone() };
        assert!(both.check().unwrap_err().0.contains("--virtio-console"));
        let mut twice = good;
        twice.disks = vec![disk("path=a").unwrap(), disk("path=a").unwrap()];
        assert!(twice.check().unwrap_err().0.contains("given twice"));
    }
}
