//! Debian's stock kernels, downloaded and unpacked. Nothing is installed on this machine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::Preparation;
use super::cache::Inputs;
use super::command::run;

/// Modules that a guest or the nested lab loads. Modules that a kernel contains are skipped.
const MODULES: &[&str] = &[
    // The guest's devices.
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "ext4",
    "crc32c-intel",
    // The nested lab.
    "kvm-amd",
    "kvm-intel",
    "tun",
    "bridge",
    "veth",
    "dummy",
    "sch_netem",
    "sch_plug",
];

/// Modules that a guest with the generic kernel loads: the guest's modules above, and drivers of
/// real cards.
const GENERIC_MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "ext4",
    "crc32c-intel",
    "e1000",
];

/// One of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelChoice {
    /// The cloud kernel: small, boots fast, has virtio drivers.
    Cloud,
    /// The generic kernel: has drivers for real cards.
    Generic,
}

impl KernelChoice {
    /// The package that depends on the newest kernel image.
    const fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }

    const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Cloud => MODULES,
            Self::Generic => GENERIC_MODULES,
        }
    }

    /// Suffix of the names of artefacts made from this kernel.
    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            Self::Cloud => "",
            Self::Generic => "-generic",
        }
    }
}

/// A prepared kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    dir: PathBuf,
    choice: KernelChoice,
}

impl Kernel {
    /// The choice of this kernel.
    pub(crate) fn choice(&self) -> KernelChoice {
        self.choice
    }

    /// The kernel as Debian ships it.
    pub(crate) fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The ELF file inside `vmlinuz`.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The directory with `lib/modules/RELEASE`: the modules and their dependencies.
    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// The static busybox.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.dir.join("busybox")
    }

    /// The key of this kernel, as an input of artefacts made from it.
    pub(crate) fn inputs(&self) -> Inputs {
        let key = self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Inputs::from([("kernel".to_owned(), key)])
    }
}

/// Downloads and unpacks the kernel, or takes it from the cache.
pub(crate) fn prepare(p: &Preparation<'_>, choice: KernelChoice) -> Result<Kernel> {
    let mut inputs = p.archive.inputs(&[choice.package(), "busybox-static"])?;
    inputs.insert("modules".into(), choice.modules().join(" "));
    let name = format!("kernel{}", choice.suffix());
    let dir = p.cache.artefact(&name, &inputs, p.say, |dir| build(p, choice, dir))?;
    Ok(Kernel { dir, choice })
}

fn build(p: &Preparation<'_>, choice: KernelChoice, dir: &Path) -> Result<()> {
    let meta = choice.package();
    let depends = p.archive.depends(meta)?;
    let package = depends
        .iter()
        .find(|d| d.starts_with("linux-image-"))
        .with_context(|| format!("{meta} depends on no kernel image, only on {depends:?}"))?;
    let unpacked = dir.join("unpacked");
    p.archive.unpack(&[package, "busybox-static"], &unpacked)?;

    let release = package.trim_start_matches("linux-image-").to_owned();
    let vmlinuz = dir.join("vmlinuz");
    fs::copy(unpacked.join(format!("boot/vmlinuz-{release}")), &vmlinuz)?;
    fs::write(dir.join("vmlinux"), extract_vmlinux(&fs::read(&vmlinuz)?, p.say)?)?;
    fs::copy(unpacked.join("bin/busybox"), dir.join("busybox"))?;
    select_modules(&unpacked, dir, (&release, choice.modules()), p.say)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(())
}

/// Copies the wanted modules and their dependencies, uncompressed.
fn select_modules(
    unpacked: &Path,
    dir: &Path,
    (release, modules): (&str, &[&str]),
    say: &dyn Fn(&str),
) -> Result<()> {
    let tree = unpacked.join("lib/modules").join(release);
    decompress_modules(&tree, say)?;
    depmod(dir, unpacked, release)?;
    let table = fs::read_to_string(tree.join("modules.dep"))?;
    let selected = dir.join("modules/lib/modules").join(release);
    for module in modules {
        for file in with_dependencies(&table, module) {
            let to = selected.join(file);
            fs::create_dir_all(to.parent().context("the path of a module names no directory")?)?;
            fs::copy(tree.join(file), &to).with_context(|| format!("module {file}"))?;
        }
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(tree.join(list), selected.join(list))?;
    }
    depmod(dir, &dir.join("modules"), release)
}

fn depmod(dir: &Path, root: &Path, release: &str) -> Result<()> {
    run(Command::new(dir.join("busybox")).arg("depmod").arg("-b").arg(root).arg(release))
}

/// Decompresses modules: later Debian kernels ship `.ko.xz`, which busybox's depmod cannot read.
fn decompress_modules(tree: &Path, say: &dyn Fn(&str)) -> Result<()> {
    let mut compressed = Vec::new();
    find_compressed(tree, &mut compressed)?;
    if compressed.is_empty() {
        return Ok(());
    }
    super::ensure_packages(&["xz-utils"], say)?;
    run(Command::new("xz").arg("-d").args(&compressed))
}

fn find_compressed(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_compressed(&entry.path(), found)?;
        } else if entry.file_name().to_string_lossy().ends_with(".ko.xz") {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// The files of a module and of its dependencies, from `modules.dep`. Empty if the kernel contains
/// the module.
fn with_dependencies<'a>(table: &'a str, module: &str) -> Vec<&'a str> {
    let wanted = module.replace('-', "_");
    let line = table.lines().filter_map(|l| l.split_once(':')).find(|(file, _)| {
        let name = file.rsplit('/').next().unwrap_or(file);
        name.trim_end_matches(".ko").replace('-', "_") == wanted
    });
    line.map_or_else(Vec::new, |(file, others)| {
        std::iter::once(file).chain(others.split_whitespace()).collect()
    })
}

/// Extracts the ELF file of a bzImage, by the offsets in its boot header (the kernel's
/// `x86/boot.rst`).
fn extract_vmlinux(image: &[u8], say: &dyn Fn(&str)) -> Result<Vec<u8>> {
    let payload = payload(image).context("the kernel image has no readable boot header")?;
    let (tool, package, payload) = match payload {
        // Remove the size (4 bytes) after the payload: xz reports it as an error.
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", "xz-utils", &payload[..payload.len() - 4]),
        [0x1f, 0x8b, ..] => ("gzip", "gzip", payload),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "zstd", payload),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", "lz4", payload),
        _ => bail!(
            "the kernel's payload begins with {:02x?}: expected xz, gzip, zstd or lz4",
            &payload[..payload.len().min(6)]
        ),
    };
    super::ensure_packages(&[package], say)?;
    let elf = decompress(tool, payload)?;
    ensure!(elf.starts_with(b"\x7fELF"), "{tool} made {} bytes that are no ELF file", elf.len());
    Ok(elf)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?)
}

/// Runs a decompressor. Its exit status is ignored, because it fails on the bytes after the
/// payload.
fn decompress(tool: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start `{tool}`"))?;
    let mut stdin = child.stdin.take().context("the decompressor has no standard input")?;
    let input = input.to_vec();
    // The write fails with EPIPE when the program stops at the end of the payload. The caller
    // checks the output.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "kernel/a/virtio_blk.ko: kernel/b/virtio_ring.ko kernel/b/virtio.ko\n\
                         kernel/c/virtio-rng.ko: kernel/b/virtio.ko\n";

    #[test]
    fn modules_come_with_their_dependencies_and_either_spelling() {
        assert_eq!(
            with_dependencies(TABLE, "virtio-blk"),
            ["kernel/a/virtio_blk.ko", "kernel/b/virtio_ring.ko", "kernel/b/virtio.ko"]
        );
        assert_eq!(with_dependencies(TABLE, "virtio_rng").len(), 2);
        assert!(with_dependencies(TABLE, "ext4").is_empty(), "built in: nothing to load");
    }

    #[test]
    fn a_file_that_is_no_kernel_has_no_payload() {
        assert!(payload(b"too short").is_none());
        assert!(payload(&[0; 4096]).is_none());
    }
}
