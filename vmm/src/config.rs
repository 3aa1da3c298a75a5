//! What a machine is made of, as the command line says it; every value is checked here, before anything is opened.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use devices::{Block, Net};
use io_gate_host::own_files;

use crate::layout;
use crate::machine::catalog;
use crate::values::{self, Part, Unit};

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
    /// A machine without a kernel and without devices, whose serial line is connected to nothing. Memory is in bytes.
    #[must_use]
    pub fn bare(name: &str, memory: u64, cpus: u32) -> Self {
        Self {
            name: name.to_owned(),
            memory,
            memory_file: None,
            cpus,
            boot: None,
            disks: Vec::new(),
            nets: Vec::new(),
            rng: false,
            rtc: false,
            virtio_console: None,
            devices: Vec::new(),
            serial: ConsoleConfig::None,
        }
    }

    /// Checks what no single flag can tell.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.on_stdio() > 1 {
            return Err(ConfigError(
                "--serial, --virtio-console and --device: expected `stdio` once, as there is one standard input, found it \
                 twice (it is the default of --serial): give one of them `none` or `file=PATH`"
                    .into(),
            ));
        }
        // Before their addresses are looked at: of so many, those that are made would be alike.
        if self.nets.len() > layout::VIRTIO_MMIO_MAX + layout::PCI_MAX {
            return Err(ConfigError(format!(
                "{} devices: the machine has {} windows, and room for {} PCI devices: leave out some --net",
                self.nets.len(),
                layout::VIRTIO_MMIO_MAX,
                layout::PCI_MAX
            )));
        }
        let mut macs = BTreeSet::new();
        if let Some(twice) = (0..self.nets.len()).find(|net| !macs.insert(self.mac(*net))) {
            let mac = self.mac(twice).map(|byte| format!("{byte:02x}")).join(":");
            return Err(ConfigError(format!(
                "two --net have the same mac, {mac}: give each its own"
            )));
        }
        let mut taps = BTreeSet::new();
        for (backend, _) in self.networks() {
            if let NetBackend::Tap(name) = backend
                && !taps.insert(name)
            {
                return Err(ConfigError(format!(
                    "tap={name} is given twice: an interface can be in the machine once"
                )));
            }
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

    /// Every disk, those of `--device` too.
    pub fn every_disk(&self) -> impl Iterator<Item = &DiskConfig> {
        let named = self.devices.iter().filter_map(|device| match &device.backend {
            Some(DeviceBackend::Disk(disk)) => Some(disk),
            _ => None,
        });
        self.disks.iter().chain(named)
    }

    /// What is behind every network device, and whether it may be made.
    pub(crate) fn networks(&self) -> impl Iterator<Item = (&NetBackend, bool)> {
        let named = self.devices.iter().filter_map(|device| match &device.backend {
            Some(DeviceBackend::Net(net)) => Some((net, false)),
            _ => None,
        });
        self.nets.iter().map(|net| (&net.backend, net.create)).chain(named)
    }

    /// What is behind every console.
    pub(crate) fn consoles(&self) -> impl Iterator<Item = &ConsoleConfig> {
        let named = self.devices.iter().filter_map(|device| match &device.backend {
            Some(DeviceBackend::Console(console)) => Some(console),
            _ => None,
        });
        std::iter::once(&self.serial).chain(&self.virtio_console).chain(named)
    }

    /// Whether a console is on standard input and output.
    #[must_use]
    pub fn is_on_stdio(&self) -> bool {
        self.on_stdio() > 0
    }

    fn on_stdio(&self) -> usize {
        self.consoles().filter(|console| **console == ConsoleConfig::Stdio).count()
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

const MEMORY_FORM: &str = "MIB[,file=PATH,share=on]";
const MEMORY_MIB: RangeInclusive<u64> = 2..=1 << 24;

impl FromStr for MemoryConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut memory, mut shared) = (Self::default(), false);
        for (index, part) in values::list(text, MEMORY_FORM)?.into_iter().enumerate() {
            match (part.key.as_str(), &part.value) {
                (mib, None) if index == 0 => {
                    memory.size = values::number(mib, &MEMORY_MIB, Unit::Mebibytes)? << 20;
                }
                ("size", Some(_)) => {
                    memory.size = part.number(MEMORY_MIB, Unit::Mebibytes)? << 20;
                }
                ("file", Some(_)) => memory.file = Some(part.text()?.into()),
                ("share" | "shared", _) => shared = part.switch()?,
                _ => return Err(values::unknown(&part, MEMORY_FORM)),
            }
        }
        if shared != memory.file.is_some() {
            // A private mapping of a file would be neither the file's nor the guest's alone.
            return Err(format!(
                "expected file=PATH and share=on together, found one of them; {MEMORY_FORM}"
            ));
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

/// `path=FILE[,format=raw][,readonly=on][,serial=TEXT][,cache=writethrough|writeback][,direct=on][,queues=N][,fence=FILE|off]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// It is raw whatever it looks like.
    pub is_raw: bool,
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
            "format=raw, the only one there is; make a raw image of it: qemu-img convert -f {other} -O raw FILE FILE.raw"
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
    // What a guest prints of it goes to logs and into names below /dev/disk.
    match text.len() <= SERIAL_MAX && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        true => Ok(text.to_owned()),
        false => {
            Err(part.wrong(&format!("serial= and at most {SERIAL_MAX} printable ASCII characters")))
        }
    }
}

/// How many queues a device has: both sides of a pair have to say the same.
fn parse_queues(part: &Part, most: u16) -> Result<u16, String> {
    let count = part.number(1..=most.into(), Unit::Count("a number of queues"))?;
    u16::try_from(count).map_err(|_| part.wrong(&format!("at most {most} queues")))
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

/// `tap=IFNAME[,create=on]|stream=PATH|dgram=LOCAL:PEER[,mac=XX:XX:XX:XX:XX:XX][,model=virtio|e1000][,queues=N]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// What is behind it.
    pub backend: NetBackend,
    /// Whether a tap that is not there is made.
    pub create: bool,
    /// The guest's address; made from the machine's name if not given.
    pub mac: Option<[u8; 6]>,
    /// The card.
    pub model: NetModel,
    /// Pairs of queues.
    pub queues: u16,
}

const NET_FORM: &str = "tap=IFNAME (perhaps ,create=on), stream=SOCKETPATH or dgram=LOCALPATH:PEERPATH, then perhaps ,mac=XX:XX:XX:XX:XX:XX and ,queues=N or ,model=e1000";
/// The kernel's limit for the name of an interface (IFNAMSIZ without the NUL).
const IFNAME_MAX: usize = 15;

impl FromStr for NetConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut backend, mut mac, mut model) = (None, None, NetModel::default());
        let (mut queues, mut create) = (1, false);
        for part in values::list(text, NET_FORM)? {
            let found = match part.key.as_str() {
                "tap" => NetBackend::Tap(parse_interface(&part)?),
                "stream" => NetBackend::Stream(parse_socket(&part, part.text()?)?),
                "dgram" => parse_dgram(&part)?,
                "create" => {
                    create = match part.text()? {
                        "on" => true,
                        "off" => false,
                        _ => return Err(part.wrong("create=on or create=off")),
                    };
                    continue;
                }
                "mac" => {
                    mac = Some(parse_mac(&part)?);
                    continue;
                }
                "queues" => {
                    queues = parse_queues(&part, Net::MAX_PAIRS)?;
                    continue;
                }
                "model" => {
                    model = parse_model(&part)?;
                    continue;
                }
                _ => return Err(values::unknown(&part, NET_FORM)),
            };
            if backend.replace(found).is_some() {
                return Err(part.wrong("one of tap=, stream= and dgram=, found two"));
            }
        }
        if model == NetModel::E1000 && queues > 1 {
            return Err(format!("model=e1000 has one queue each way: leave queues={queues} out"));
        }
        let backend = backend.ok_or_else(|| format!("expected {NET_FORM}"))?;
        if create && !matches!(backend, NetBackend::Tap(_)) {
            return Err(format!("create=on is for tap=IFNAME, found `{text}`"));
        }
        Ok(Self { backend, create, mac, model, queues })
    }
}

impl NetConfig {
    /// For a device that is asked for by name, which has its own idea of the rest.
    fn backend_alone(self) -> Result<NetBackend, String> {
        if self.mac.is_some() || self.create || self.queues > 1 || self.model != NetModel::default()
        {
            return Err("expected tap=, stream= or dgram= alone after the name of a device: leave create=, mac=, queues= and model= out".to_owned());
        }
        Ok(self.backend)
    }
}

fn parse_model(part: &Part) -> Result<NetModel, String> {
    match part.text()? {
        "virtio" => Ok(NetModel::Virtio),
        "e1000" => Ok(NetModel::E1000),
        _ => Err(part.wrong("model=virtio or model=e1000")),
    }
}

/// As the kernel wants the names of interfaces (`dev_valid_name`). A `%` would have it choose a name.
fn parse_interface(part: &Part) -> Result<String, String> {
    let name = part.text()?;
    let fits = name.len() <= IFNAME_MAX && name != "." && name != "..";
    let odd = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    if !fits || name.contains(odd) {
        return Err(part.wrong(&format!(
            "the name of an interface: at most {IFNAME_MAX} bytes, without `/`, `:`, `%` or spaces"
        )));
    }
    Ok(name.to_owned())
}

fn parse_dgram(part: &Part) -> Result<NetBackend, String> {
    match part.text()?.split_once(':') {
        Some((local, peer)) if !local.is_empty() && !peer.is_empty() && !peer.contains(':') => {
            Ok(NetBackend::Dgram(parse_socket(part, local)?, parse_socket(part, peer)?))
        }
        _ => Err(part.wrong("dgram=LOCALPATH:PEERPATH, with one `:`")),
    }
}

fn parse_socket(part: &Part, path: &str) -> Result<PathBuf, String> {
    socket_path(path).map_err(|error| format!("{}=: {error}", part.key))
}

/// The path of a Unix socket, which is shorter than that of a file.
///
/// # Errors
/// When it is too long.
pub fn socket_path(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    own_files::check_length(&path).map_err(|error| error.to_string())?;
    Ok(path)
}

fn parse_mac(part: &Part) -> Result<[u8; 6], String> {
    let bad = || {
        part.wrong("a MAC address such as 52:54:00:12:34:56 (not all zeros, not a group address)")
    };
    let mut mac = [0; 6];
    let mut bytes = part.text()?.split(':');
    for byte in &mut mac {
        let digits = |text: &&str| text.len() == 2 && text.bytes().all(|c| c.is_ascii_hexdigit());
        let text = bytes.next().filter(digits).ok_or_else(bad)?;
        *byte = u8::from_str_radix(text, 16).map_err(|_| bad())?;
    }
    if bytes.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
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
                rest.parse().and_then(|net: NetConfig| net.backend_alone()).map(DeviceBackend::Net)
            }
            _ => Err(format!(
                "`{rest}`: expected NAME, NAME,console=SPEC, NAME,disk=path=FILE or NAME,stream=SOCKETPATH"
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
            Some(("file", _)) => Err("expected file=PATH, found no path".to_owned()),
            _ => Err(format!("expected `stdio`, `file=PATH` or `none`, found `{text}`")),
        }
    }
}

/// Checks the name of a machine: it becomes part of file names.
///
/// # Errors
/// What names may look like.
pub fn parse_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(fits) {
        return Err(
            "expected 1 to 64 ASCII letters, digits, `-`, `_` or `.`, not beginning with `.`"
                .to_owned(),
        );
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
            nets: vec![net("stream=/a").unwrap(), net("stream=/b").unwrap()],
            rng: true,
            serial: ConsoleConfig::Stdio,
            ..MachineConfig::bare("vm", 1 << 28, 1)
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
