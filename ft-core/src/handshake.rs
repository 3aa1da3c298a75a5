//! The handshake: the descriptions that both sides send, and whether they fit together.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use io_gate::host::Term;
use serde::{Deserialize, Serialize};

/// A side's description of itself and of its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the wire protocol.
    pub protocol: u16,
    /// The release of the program. For people; not compared.
    pub release: String,
    /// The virtual machine's name.
    pub name: String,
    /// The term in which the primary acts. A standby repeats the primary's.
    pub term: Term,
    /// The primary's number for this session, repeated by the standby: a message with this number
    /// is not from an earlier session.
    pub session: u64,
    /// The standby's number for this session, which is never reused; 0 from a primary. The primary
    /// repeats it in messages that must not be replayed into another session:
    /// [`End`](crate::wire::End) and [`Bye`](crate::wire::Message::Bye).
    pub standby_session: u64,
    /// The sending process, as named in the arbiter's records and in those beside the disks. The
    /// name is never reused, while a term's number may be granted twice (P2).
    pub holder: String,
    /// The arbiter that this side asks.
    pub arbiter: ArbiterView,
    /// The machine's parts.
    pub layout: MachineLayout,
    /// The storage of the disks that the guest can write, by slot.
    pub disks: Vec<DiskStorage>,
    /// What the guest boots when it is reset. From a standby: what its own command line says;
    /// `None` means that it takes the primary's.
    pub boot: Option<BootSource>,
    /// From a standby: the images that it already has, of its own or from an earlier session.
    pub images: Vec<ImageId>,
    /// Facts of the host that must be equal: CPU features, KVM capabilities.
    pub facts: Vec<(String, String)>,
    /// The options that the primary wants for the session.
    pub options: SessionOptions,
}

/// An arbiter, as one side sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterView {
    /// The kind of arbiter: `none`, `file`, `etcd`.
    pub kind: String,
    /// How this side reaches it. For people; not compared.
    pub place: String,
    /// The arbiter's identity, made together with its data.
    pub id: String,
    /// The mark that this side finds there. The primary wrote it for this session, so a copy does
    /// not have it.
    pub mark: String,
    /// The mark that the standby has left there for this session, which the primary must find. A
    /// replica gets everything that the primary writes, but the primary does not see what is
    /// written to the replica.
    pub counter_mark: String,
}

impl ArbiterView {
    /// The view without an arbiter.
    #[must_use]
    pub fn none() -> Self {
        Self { kind: "none".to_string(), ..Self::default() }
    }

    /// Whether there is an arbiter.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.kind != "none"
    }
}

impl core::fmt::Display for ArbiterView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { place, id, mark, .. } = self;
        write!(f, "{place} (id {id}, mark {mark})")
    }
}

/// The options of a session. The primary decides, and the standby follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOptions {
    /// Whether both sides hash their machine at every epoch and compare the hashes (P8).
    pub verify: bool,
}

/// The parts of a machine that must be equal on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineLayout {
    /// Guest memory, in ascending order.
    pub memory: Vec<MemoryRegion>,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Page size in bytes.
    pub page_size: u32,
    /// Devices, by slot.
    pub devices: Vec<DeviceLayout>,
}

impl MachineLayout {
    /// Bytes of guest memory.
    #[must_use]
    pub fn memory_size(&self) -> u64 {
        self.memory.iter().fold(0, |sum, region| sum.saturating_add(region.len))
    }
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Its first guest address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLayout {
    /// The slot in the machine.
    pub slot: u16,
    /// The kind of device: `virtio-net`.
    pub kind: String,
    /// The version of its saved state.
    pub state_version: u32,
    /// The features that it offers.
    pub features: u64,
    /// Other properties that must be equal: `mac=02:00:00:00:00:01`.
    pub detail: String,
}

/// Where a disk's data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStorage {
    /// The disk's slot.
    pub slot: u16,
    /// The storage.
    pub storage: Storage,
    /// The fence record; `None` if there is none, or if there are no terms for it.
    pub fence: Option<FenceView>,
    /// From a standby: the marks that it has left beside the data for the primary to find.
    pub counter_marks: Vec<CounterMark>,
}

/// A mark that a standby leaves for one session, as one side sees it. A replica gets everything
/// that the primary writes, but the primary does not see what is written to the replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterMark {
    /// How this side reaches it. For people; not compared.
    pub place: String,
    /// The mark that was left, or that is found.
    pub word: String,
}

/// The fence record of a disk, as one side sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceView {
    /// How this side reaches it. For people; not compared.
    pub place: String,
    /// Its content. The primary has rewritten it for this session, so a copy has other content.
    pub says: String,
}

impl core::fmt::Display for FenceView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}", self.place, self.says)
    }
}

/// How a pair stores a disk. The primary chooses one way for each disk, and both sides must use the
/// same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    /// Both hosts see the same bytes.
    Shared {
        /// The mark that this side finds beside or in the disk, which no other disk has: the
        /// primary wrote it for this session.
        mark: String,
    },
}

impl core::fmt::Display for Storage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Shared { mark } => write!(f, "shared, {mark}"),
        }
    }
}

/// What a guest boots. Its images are sent in the session, so that the guest can be reset on either
/// host (P7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// The kernel.
    pub kernel: ImageId,
    /// The initial RAM disk.
    pub initrd: Option<ImageId>,
    /// The kernel's command line.
    pub cmdline: String,
}

impl BootSource {
    /// Its images, without duplicates.
    pub fn images(&self) -> impl Iterator<Item = ImageId> {
        let initrd = self.initrd.filter(|initrd| *initrd != self.kernel);
        core::iter::once(self.kernel).chain(initrd)
    }
}

/// A file, identified by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageId {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

impl core::fmt::Display for ImageId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes, sha256 ", self.size)?;
        self.sha256.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The images that a primary sends to a standby, in this order: those that the standby lacks.
#[must_use]
pub fn images_to_send(primary: &Hello, standby: &Hello) -> Vec<ImageId> {
    let all = primary.boot.iter().flat_map(BootSource::images);
    all.filter(|image| !standby.images.contains(image)).collect()
}

/// The total size of the images in bytes.
pub(crate) fn total_size(images: &[ImageId]) -> u64 {
    images.iter().fold(0, |sum, image| sum.saturating_add(image.size))
}

/// The two sides do not fit. Each reason has the values of both sides and advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub Vec<String>);

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl core::error::Error for Refusal {}

/// Checks that a standby can take over the primary's machine.
///
/// # Errors
/// All reasons why it cannot.
pub fn compare(primary: &Hello, standby: &Hello) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    if primary.protocol != standby.protocol {
        // No other field is certain to have the same meaning on both sides.
        return Err(Refusal(Vec::from([format!(
            "protocol: primary {}, standby {}: run the same release on both hosts",
            primary.protocol, standby.protocol
        )])));
    }
    if primary.name != standby.name {
        reasons.push(format!(
            "name: primary `{}`, standby `{}`: give both the same --name, or connect to the standby \
             of this virtual machine",
            primary.name, standby.name
        ));
    }
    compare_arbiters(&primary.arbiter, &standby.arbiter, &mut reasons);
    compare_layouts(&primary.layout, &standby.layout, &mut reasons);
    compare_disks(&primary.disks, &standby.disks, &mut reasons);
    compare_boot(primary, standby, &mut reasons);
    compare_facts(&primary.facts, &standby.facts, &mut reasons);
    if reasons.is_empty() { Ok(()) } else { Err(Refusal(reasons)) }
}

/// P2: two different arbiters could both grant.
fn compare_arbiters(primary: &ArbiterView, standby: &ArbiterView, reasons: &mut Vec<String>) {
    if primary.kind != standby.kind {
        return reasons.push(format!(
            "arbiter: primary `{}`, standby `{}`: give both the same --arbiter",
            primary.kind, standby.kind
        ));
    }
    if (&primary.id, &primary.mark) != (&standby.id, &standby.mark) {
        reasons.push(format!(
            "arbiter: primary {primary}, standby {standby}: they differ: --arbiter must name one place that both \
             hosts see, not a copy"
        ));
    }
}

/// P2: checks that the primary, which now sees `primary`, finds the mark that the standby says it
/// has left. If it does not, it would not see a term that the standby wins either.
///
/// # Errors
/// What each side has, where, and what to change.
pub fn compare_counter_marks(primary: &ArbiterView, standby: &ArbiterView) -> Result<(), Refusal> {
    let (expected, found) = (&standby.counter_mark, &primary.counter_mark);
    if expected == found && !expected.is_empty() {
        return Ok(());
    }
    Err(Refusal(Vec::from([format!(
        "arbiter: the standby wrote the counter-mark `{expected}` to {}, the primary found `{found}` in {}: they use \
         different arbiters: --arbiter must name one place that both hosts read and write, not a replica that is \
         updated in one direction",
        standby.place, primary.place
    )])))
}

/// P2, P3: the same check for the disks and their fence records: the primary must see what a
/// standby writes there after a takeover.
///
/// # Errors
/// As [`compare_counter_marks`], for each disk.
pub fn compare_disk_counter_marks(
    primary: &[DiskStorage],
    standby: &[DiskStorage],
) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    for ours in primary {
        // `compare_disks` has already reported a missing disk.
        let Some(theirs) = standby.iter().find(|theirs| theirs.slot == ours.slot) else { continue };
        for (at, found) in ours.counter_marks.iter().enumerate() {
            let left = theirs.counter_marks.get(at);
            if left.is_some_and(|left| left.word == found.word && !left.word.is_empty()) {
                continue;
            }
            let left = left.map_or("nothing".to_string(), |left| {
                format!("the counter-mark `{}` to {}", left.word, left.place)
            });
            reasons.push(format!(
                "disk in slot {}: the standby wrote {left}, the primary found `{}` in {}: they use different disks: \
                 give both hosts the same image (and the same file in fence=) on storage that both read and write, \
                 not a replica that is updated in one direction",
                ours.slot, found.word, found.place
            ));
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refusal(reasons)) }
}

fn compare_layouts(primary: &MachineLayout, standby: &MachineLayout, reasons: &mut Vec<String>) {
    if primary.memory != standby.memory {
        reasons.push(format!(
            "memory: primary {}, standby {}: give both the same --memory",
            describe_memory(&primary.memory),
            describe_memory(&standby.memory)
        ));
    }
    if primary.cpus != standby.cpus {
        reasons.push(format!(
            "cpus: primary {}, standby {}: give both the same --cpus",
            primary.cpus, standby.cpus
        ));
    }
    if primary.page_size != standby.page_size {
        reasons.push(format!(
            "page size: primary {}, standby {}: run both on hosts of the same architecture",
            primary.page_size, standby.page_size
        ));
    }
    let mut slots: Vec<u16> =
        primary.devices.iter().chain(&standby.devices).map(|device| device.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    for slot in slots {
        let of = |layout: &MachineLayout| -> Vec<DeviceLayout> {
            layout.devices.iter().filter(|device| device.slot == slot).cloned().collect()
        };
        let (ours, theirs) = (of(primary), of(standby));
        if ours != theirs {
            reasons.push(format!(
                "device slot {slot}: primary {}, standby {}: {}",
                describe_devices(&ours),
                describe_devices(&theirs),
                advise(&ours, &theirs)
            ));
        }
    }
}

/// Advice if the two sides have different devices in a slot.
fn advise(primary: &[DeviceLayout], standby: &[DeviceLayout]) -> String {
    match (primary, standby) {
        ([ours], []) => {
            let flag = flag_of(&ours.kind);
            format!(
                "the standby lacks it: give the standby the primary's {flag}, or remove it from the primary"
            )
        }
        ([], [theirs]) => {
            let flag = flag_of(&theirs.kind);
            format!(
                "the primary lacks it: give the primary the standby's {flag}, or remove it from the standby"
            )
        }
        _ => "give both the same devices, in the same order, from the same release".to_string(),
    }
}

/// The command-line flag of a device.
fn flag_of(kind: &str) -> &'static str {
    match kind {
        "virtio-blk" => "--disk",
        "virtio-net" => "--net",
        "e1000" => "--net with model=e1000",
        "virtio-rng" => "--rng",
        "virtio-console" => "--virtio-console",
        "rtc-pl031" => "--rtc",
        _ => "--device",
    }
}

/// P3: a write that the primary has completed must be in the disk that the standby would use.
fn compare_disks(primary: &[DiskStorage], standby: &[DiskStorage], reasons: &mut Vec<String>) {
    let mut slots: Vec<u16> = primary.iter().chain(standby).map(|disk| disk.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    for slot in slots {
        let of = |disks: &[DiskStorage]| {
            let found = disks.iter().find(|disk| disk.slot == slot);
            found.map_or_else(|| "none".to_string(), |disk| disk.storage.to_string())
        };
        let (ours, theirs) = (of(primary), of(standby));
        if ours != theirs {
            reasons.push(format!(
                "disk in slot {slot}: primary {ours}; standby {theirs}: they use different disks: give both hosts the \
                 same image on storage that they share, not a copy"
            ));
        }
        compare_fences(slot, primary, standby, reasons);
    }
}

/// P2: a fence record does not stop a side that does not read it.
fn compare_fences(
    slot: u16,
    primary: &[DiskStorage],
    standby: &[DiskStorage],
    reasons: &mut Vec<String>,
) {
    let of = |disks: &[DiskStorage]| disks.iter().find(|disk| disk.slot == slot).cloned();
    // `compare_disks` has already reported a missing disk.
    let (Some(ours), Some(theirs)) = (of(primary), of(standby)) else { return };
    let (ours, theirs) = (ours.fence, theirs.fence);
    let says = |view: &Option<FenceView>| view.as_ref().map(|view| view.says.clone());
    if says(&ours) != says(&theirs) {
        let shown = |view: Option<FenceView>| {
            view.map_or_else(|| "none".to_string(), |view| view.to_string())
        };
        reasons.push(format!(
            "fence record of the disk in slot {slot}: primary {}; standby {}: they are different files: name in \
             fence= of --disk one file that both hosts see, or leave fence= out on both sides",
            shown(ours),
            shown(theirs)
        ));
    }
}

/// A standby with its own kernel must have the primary's, since otherwise the guest would change at
/// its next reset. The images to send are kept in the standby's memory and may not exceed guest
/// memory (P9), for which it needs room anyway.
fn compare_boot(primary: &Hello, standby: &Hello, reasons: &mut Vec<String>) {
    if let Some(theirs) = &standby.boot {
        let ours = primary.boot.as_ref();
        let shown = |image: Option<ImageId>| {
            image.map_or_else(|| "none".to_string(), |image| image.to_string())
        };
        let mut compare = |what: &str, ours: String, theirs: String| {
            if ours != theirs {
                reasons.push(format!(
                    "{what}: primary {ours}, standby {theirs}: give the standby the same --{what}, or none of \
                     --kernel, --initrd and --cmdline: it then uses the primary's"
                ));
            }
        };
        let kernel = ours.map(|boot| boot.kernel);
        compare("kernel", shown(kernel), shown(Some(theirs.kernel)));
        compare("initrd", shown(ours.and_then(|boot| boot.initrd)), shown(theirs.initrd));
        let cmdline = ours.map_or("none".to_string(), |boot| format!("`{}`", boot.cmdline));
        compare("cmdline", cmdline, format!("`{}`", theirs.cmdline));
    }
    let (size, memory) =
        (total_size(&images_to_send(primary, standby)), primary.layout.memory_size());
    if size > memory {
        reasons.push(format!(
            "kernel and initrd: the primary has to send {size} bytes, expected at most the {memory} bytes of \
             guest memory: \
             give the standby the same files by --kernel and --initrd"
        ));
    }
}

fn compare_facts(
    primary: &[(String, String)],
    standby: &[(String, String)],
    reasons: &mut Vec<String>,
) {
    let mut names: Vec<&String> = primary.iter().chain(standby).map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let of = |facts: &[(String, String)]| {
            let values: Vec<&str> = facts
                .iter()
                .filter(|(found, _)| found == name)
                .map(|(_, value)| value.as_str())
                .collect();
            if values.is_empty() { "nothing".to_string() } else { values.join(", ") }
        };
        let (ours, theirs) = (of(primary), of(standby));
        if ours != theirs {
            reasons.push(format!(
                "{name}: primary has {ours}, standby has {theirs}: use hosts with the same value"
            ));
        }
    }
}

fn describe_memory(regions: &[MemoryRegion]) -> String {
    const MIB: u64 = 1 << 20;
    if regions.is_empty() {
        return "none".to_string();
    }
    let parts: Vec<String> = regions
        .iter()
        .map(|region| match region.len % MIB {
            0 => format!("{} MiB at {:#x}", region.len / MIB, region.start),
            _ => format!("{} bytes at {:#x}", region.len, region.start),
        })
        .collect();
    parts.join(" + ")
}

fn describe_devices(devices: &[DeviceLayout]) -> String {
    if devices.is_empty() {
        return "none".to_string();
    }
    let parts: Vec<String> = devices
        .iter()
        .map(|device| {
            format!(
                "{} v{} ({}{}features {:#x})",
                device.kind,
                device.state_version,
                device.detail,
                if device.detail.is_empty() { "" } else { ", " },
                device.features
            )
        })
        .collect();
    parts.join(" and ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::wire::PROTOCOL;

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL,
            release: "0.1.0".into(),
            name: "vm".into(),
            term: Term(1),
            session: 7,
            standby_session: 8,
            holder: "primary@a (pid 1, 11)".into(),
            arbiter: ArbiterView {
                kind: "file".into(),
                place: "file:/a".into(),
                id: "id 1".into(),
                mark: "mark 1".into(),
                counter_mark: String::new(),
            },
            layout: MachineLayout {
                memory: Vec::from([MemoryRegion { start: 0, len: 512 << 20 }]),
                cpus: 2,
                page_size: 4096,
                devices: Vec::from([DeviceLayout {
                    slot: 2,
                    kind: "virtio-net".into(),
                    state_version: 1,
                    features: 0x20,
                    detail: "mac=02:00:00:00:00:01".into(),
                }]),
            },
            disks: Vec::from([DiskStorage {
                slot: 3,
                storage: Storage::Shared { mark: "mark 1".into() },
                fence: Some(FenceView { place: "/a/fence".into(), says: "term 3".into() }),
                counter_marks: Vec::new(),
            }]),
            boot: Some(BootSource {
                kernel: ImageId { size: 1000, sha256: [1; 32] },
                initrd: Some(ImageId { size: 2000, sha256: [2; 32] }),
                cmdline: "quiet".into(),
            }),
            images: Vec::new(),
            facts: Vec::from([("cpu".into(), "avx2".into())]),
            options: SessionOptions::default(),
        }
    }

    fn standby() -> Hello {
        let mut other = hello();
        other.holder = "standby@b (pid 2, 22)".into();
        other.arbiter.place = "file:/b".into();
        other
    }

    fn refused(change: impl FnOnce(&mut Hello)) -> String {
        let mut other = standby();
        change(&mut other);
        compare(&hello(), &other).unwrap_err().to_string()
    }

    #[test]
    fn equal_machines_fit_whatever_the_release_is_called() {
        let mut other = standby();
        other.release = "0.1.1".into();
        other.term = Term(9);
        assert_eq!(compare(&hello(), &other), Ok(()));
    }

    #[test]
    fn each_difference_names_both_values_and_what_to_change() {
        let text = refused(|other| other.protocol = 10);
        assert!(text.contains("primary 9, standby 10: run the same release"), "{text}");
        let text = refused(|other| other.name = "web".into());
        assert!(text.contains("primary `vm`, standby `web`") && text.contains("--name"), "{text}");
        let text = refused(|other| other.arbiter = ArbiterView::none());
        assert!(
            text.contains("primary `file`, standby `none`: give both the same --arbiter"),
            "{text}"
        );
        let text = refused(|other| other.arbiter.id = "id 2".into());
        assert!(text.contains("primary file:/a (id id 1,"), "{text}");
        assert!(text.contains("standby file:/b (id id 2,"), "{text}");
        let text = refused(|other| other.arbiter.mark = "mark 2".into());
        assert!(text.contains("mark mark 2): they differ"), "{text}");
        let text = refused(|other| other.layout.memory[0].len = 256 << 20);
        assert!(text.contains("512 MiB at 0x0, standby 256 MiB at 0x0"), "{text}");
        let text = refused(|other| other.layout.cpus = 1);
        assert!(text.contains("cpus: primary 2, standby 1") && text.contains("--cpus"), "{text}");
        let text = refused(|other| other.layout.page_size = 16384);
        assert!(text.contains("page size: primary 4096, standby 16384"), "{text}");
        let text = refused(|other| other.layout.devices[0].kind = "virtio-blk".into());
        assert!(
            text.contains(
                "device slot 2: primary virtio-net v1 (mac=02:00:00:00:00:01, features 0x20)"
            ) && text.contains("standby virtio-blk v1"),
            "{text}"
        );
        let text = refused(|other| other.layout.devices.clear());
        assert!(text.contains("standby none"), "{text}");
        let text = refused(|other| other.layout.devices[0].state_version = 2);
        assert!(text.contains("virtio-net v2"), "{text}");
        let text = refused(|other| other.layout.devices[0].features = 0);
        assert!(text.contains("features 0x0"), "{text}");
        let text = refused(|other| {
            let Storage::Shared { mark } = &mut other.disks[0].storage;
            *mark = "mark 2".into();
        });
        assert!(
            text.contains("disk in slot 3: primary shared, mark 1; standby shared, mark 2")
                && text.contains("not a copy"),
            "{text}"
        );
        let text = refused(|other| other.disks.clear());
        assert!(text.contains("mark 1; standby none"), "{text}");
        let text = refused(|other| other.facts[0].1 = "sse2".into());
        assert!(text.contains("cpu: primary has avx2, standby has sse2"), "{text}");
        let text = refused(|other| other.facts.clear());
        assert!(text.contains("standby has nothing"), "{text}");
    }

    /// Each part is compared with its counterpart and reported once, in whatever order the sides
    /// list them.
    #[test]
    fn parts_are_compared_slot_by_slot_and_told_in_order() {
        let device = |slot, features| {
            let like = hello().layout.devices.remove(0);
            DeviceLayout { slot, features, ..like }
        };
        let disk = |slot, mark: &str, says: &str| DiskStorage {
            slot,
            storage: Storage::Shared { mark: mark.into() },
            fence: Some(FenceView { place: "/a".into(), says: says.into() }),
            counter_marks: Vec::new(),
        };
        let fact = |name: &str, value: &str| (name.to_string(), value.to_string());
        let (mut ours, mut theirs) = (hello(), standby());
        ours.layout.devices = Vec::from([device(9, 1), device(2, 1), device(5, 1)]);
        theirs.layout.devices = Vec::from([device(5, 1), device(9, 2), device(2, 3)]);
        ours.disks = Vec::from([disk(8, "a", "1"), disk(3, "b", "2"), disk(6, "c", "3")]);
        theirs.disks = Vec::from([disk(3, "x", "2"), disk(8, "y", "1"), disk(6, "c", "4")]);
        ours.facts = Vec::from([fact("b", "1"), fact("a", "2"), fact("c", "3")]);
        theirs.facts = Vec::from([fact("a", "0"), fact("c", "3"), fact("b", "0")]);
        let Refusal(reasons) = compare(&ours, &theirs).unwrap_err();
        let of: Vec<&str> =
            reasons.iter().filter_map(|reason| reason.split(": primary").next()).collect();
        let expected = [
            "device slot 2",
            "device slot 9",
            "disk in slot 3",
            "fence record of the disk in slot 6",
            "disk in slot 8",
            "a",
            "b",
        ];
        assert_eq!(of, expected);
        let marked = |slot, word: &str| DiskStorage {
            counter_marks: Vec::from([CounterMark { place: "/b".into(), word: word.into() }]),
            ..disk(slot, "a", "1")
        };
        let (ours, theirs) = ([marked(3, "x"), marked(8, "y")], [marked(8, "y"), marked(3, "x")]);
        assert_eq!(compare_disk_counter_marks(&ours, &theirs), Ok(()));
        let text = refused(|other| other.layout.memory.clear());
        assert!(text.contains("512 MiB at 0x0, standby none"), "{text}");
    }

    /// P9: the images to send may be exactly as large as guest memory. A file that is both kernel
    /// and initrd is sent once.
    #[test]
    fn images_are_sent_once_and_never_more_than_memory() {
        let boot = |size, initrd| BootSource {
            kernel: ImageId { size, sha256: [1; 32] },
            initrd,
            cmdline: String::new(),
        };
        let mut ours = hello();
        for (beyond, fits) in [(0, true), (1, false)] {
            ours.boot = Some(boot((512 << 20) + beyond, None));
            assert_eq!(compare(&ours, &Hello { boot: None, ..standby() }).is_ok(), fits);
        }
        ours.boot = Some(boot(5, Some(ImageId { size: 5, sha256: [1; 32] })));
        assert_eq!(images_to_send(&ours, &Hello { boot: None, ..standby() }).len(), 1);
    }

    /// P2: a standby that has left no mark has proved nothing.
    #[test]
    fn the_primary_finds_what_the_standby_has_left() {
        let left = |place: &str, word: &str| ArbiterView {
            place: place.into(),
            counter_mark: word.into(),
            ..hello().arbiter
        };
        let compared = |found: &str, said: &str| {
            compare_counter_marks(&left("file:/a", found), &left("file:/b", said))
        };
        assert_eq!(compared("word 1", "word 1"), Ok(()));
        assert!(compared("", "").is_err());
        let text = compared("none", "word 1").unwrap_err().to_string();
        assert!(text.contains("wrote the counter-mark `word 1` to file:/b"), "{text}");
        assert!(text.contains("the primary found `none` in file:/a"), "{text}");
    }

    /// P3: the same for each place beside each disk.
    #[test]
    fn the_primary_finds_what_the_standby_has_left_beside_each_disk() {
        let beside = |words: &[&str]| {
            let mark = |word: &&str| CounterMark { place: "/b".into(), word: (*word).into() };
            let counter_marks = words.iter().map(mark).collect();
            Vec::from([DiskStorage { counter_marks, ..hello().disks.remove(0) }])
        };
        let compared = |found: &[&str], said: &[&str]| {
            compare_disk_counter_marks(&beside(found), &beside(said))
        };
        assert_eq!(compared(&[], &[]), Ok(()));
        assert_eq!(compared(&["1", "1"], &["1", "1"]), Ok(()));
        for (found, said) in [(&["1", "2"][..], &["1", "1"][..]), (&[""], &[""]), (&["1"], &[])] {
            assert!(compared(found, said).is_err(), "{found:?}, {said:?}");
        }
        let text = compared(&["none"], &["word 1"]).unwrap_err().to_string();
        assert!(
            text.contains("wrote the counter-mark `word 1` to /b, the primary found `none`"),
            "{text}"
        );
    }

    /// P2: the places may differ, since each host may have its own name for the file.
    #[test]
    fn the_records_of_who_may_write_say_the_same_on_both_sides() {
        let mut other = hello();
        other.disks[0].fence.as_mut().unwrap().place = "/b/fence".into();
        assert_eq!(compare(&hello(), &other), Ok(()));
        let text = refused(|other| {
            let says = "term 2".into();
            other.disks[0].fence = Some(FenceView { place: "/b/fence".into(), says });
        });
        assert!(text.contains("primary /a/fence: term 3; standby /b/fence: term 2"), "{text}");
        let text = refused(|other| other.disks[0].fence = None);
        assert!(text.contains("standby none: they are different files"), "{text}");
    }

    #[test]
    fn a_standby_takes_the_primarys_kernel_or_has_the_same() {
        let mut other = hello();
        other.boot = None;
        assert_eq!(compare(&hello(), &other), Ok(()));
        assert_eq!(images_to_send(&hello(), &other).len(), 2);
        other.images = hello().boot.unwrap().images().skip(1).collect();
        let missing = images_to_send(&hello(), &other);
        assert_eq!(missing, [ImageId { size: 1000, sha256: [1; 32] }]);

        let boot =
            |change: fn(&mut BootSource)| refused(|other| change(other.boot.as_mut().unwrap()));
        let text = boot(|boot| boot.kernel.sha256 = [0xab; 32]);
        assert!(
            text.contains("kernel: primary 1000 bytes, sha256 0101") && text.contains("--kernel"),
            "{text}"
        );
        assert!(text.contains("standby 1000 bytes, sha256 abab"), "{text}");
        let text = boot(|boot| boot.initrd = None);
        assert!(text.contains("initrd: primary 2000 bytes, sha256 0202"), "{text}");
        assert!(text.contains("standby none: give the standby the same --initrd"), "{text}");
        let text = boot(|boot| boot.cmdline.clear());
        assert!(text.contains("cmdline: primary `quiet`, standby ``"), "{text}");
    }

    #[test]
    fn p9_images_that_are_larger_than_the_guest_are_not_sent() {
        let (mut ours, mut theirs) = (hello(), hello());
        theirs.boot = None;
        ours.boot.as_mut().unwrap().kernel.size = u64::MAX;
        let text = compare(&ours, &theirs).unwrap_err().to_string();
        assert!(text.contains("expected at most the 536870912 bytes of guest memory"), "{text}");
        theirs.images = ours.boot.as_ref().unwrap().images().collect();
        assert_eq!(
            compare(&ours, &theirs),
            Ok(()),
            "what need not be sent may be as large as it likes"
        );
    }

    #[test]
    fn all_differences_are_told_at_once() {
        let text = refused(|other| {
            other.layout.cpus = 1;
            other.name = "web".into();
        });
        assert!(text.contains("cpus") && text.contains("name"), "{text}");
    }
}
