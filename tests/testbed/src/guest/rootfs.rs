//! The Linux guest's root file system: a minimal Debian with Redis, as an ext4 image.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Preparation;
use super::cache::sha256_text;
use super::command::run;
use super::debian::SUITE;
use super::packages::is_root;

const INIT: &str = include_str!("../../../guests/linux/init");
const POWEROFF: &str = include_str!("../../../guests/linux/poweroff");
const REDIS: &str = include_str!("../../../guests/linux/redis.conf");

/// Debian packages of the guest besides the minimal base.
const PACKAGES: &str =
    "redis-server,iproute2,iputils-ping,busybox-static,e2fsprogs,login,util-linux,procps";
/// Paths that are not installed: a guest that runs for a minute needs no documentation.
const LEFT_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"];
/// Size of the file system. The image file is sparse: only used blocks take disk space.
const SIZE: &str = "400M";

/// Makes the root file system, or takes it from the cache. Returns the path of the image.
pub(crate) fn prepare(p: &Preparation<'_>) -> Result<PathBuf> {
    let mut inputs = p.archive.inputs(&["redis-server", "libc6", "iproute2", "util-linux"])?;
    inputs.insert("packages".into(), format!("{SUITE}: {PACKAGES}"));
    inputs.insert("size".into(), SIZE.into());
    let scripts = [INIT, POWEROFF, REDIS, include_str!("rootfs.rs")].concat();
    inputs.insert("scripts".into(), sha256_text(&scripts));
    let dir = p.cache.artefact("guest-rootfs", &inputs, p.say, |dir| build(p, dir))?;
    Ok(dir.join("root.ext4"))
}

fn build(p: &Preparation<'_>, dir: &Path) -> Result<()> {
    if !is_root()? {
        bail!(
            "making a Debian root file system needs root (its files belong to several users); run \
             the same command once by `sudo --preserve-env`, with KEMARI_CACHE={dir}, and then \
             `sudo chown -R \"$USER\" {dir}`",
            dir = p.cache.dir().display()
        );
    }
    super::ensure_packages(&["mmdebstrap", "e2fsprogs"], p.say)?;
    let tree = dir.join("tree");
    (p.say)("guest-rootfs: installing a minimal Debian (downloads about 70 MB)");
    bootstrap(p, &tree)?;
    configure(&tree)?;
    make_image(&tree, &dir.join("root.ext4"))?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

fn bootstrap(p: &Preparation<'_>, tree: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--quiet"]);
    command.arg(format!("--include={PACKAGES}"));
    command.args(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg("--aptopt=Acquire::Languages \"none\"");
    command.arg(SUITE).arg(tree).args(p.archive.sources());
    run(&mut command)
}

/// Makes a guest of the minimal Debian in `tree`: installs our init and the configuration of Redis,
/// and removes root's password.
fn configure(tree: &Path) -> Result<()> {
    let put = |path: &str, mode: u32, text: &str| -> Result<()> {
        let path = tree.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
    };
    put("usr/sbin/kemari-init", 0o755, INIT)?;
    put("usr/sbin/poweroff", 0o755, POWEROFF)?;
    for name in ["reboot", "halt", "shutdown"] {
        let _ = fs::remove_file(tree.join("usr/sbin").join(name));
        symlink("poweroff", tree.join("usr/sbin").join(name))?;
    }
    let _ = fs::remove_file(tree.join("usr/sbin/init"));
    symlink("kemari-init", tree.join("usr/sbin/init"))?;
    put("etc/kemari/redis.conf", 0o644, REDIS)?;
    put("etc/hostname", 0o644, "kemari-guest\n")?;
    put("etc/hosts", 0o644, "127.0.0.1 localhost kemari-guest\n")?;
    put("etc/fstab", 0o644, "/dev/vda / ext4 defaults 0 1\n")?;
    put("etc/motd", 0o644, "")?;
    put(
        "etc/issue",
        0o644,
        "Debian \\r (\\l): the guest of a Kemari test; log in as root, no password\n",
    )?;
    // No password is needed: only the console offers a login, and the image has no remote shell.
    run(Command::new("chroot").arg(tree).args(["passwd", "--quiet", "-d", "root"]))?;
    for leftover in ["var/lib/apt/lists", "var/cache/apt"] {
        let path = tree.join(leftover);
        if path.exists() {
            fs::remove_dir_all(&path)?;
            fs::create_dir_all(&path)?;
        }
    }
    Ok(())
}

/// Makes an ext4 image of the directory `tree`, without a loop device. Its identifiers are fixed,
/// so that equal trees give images with equal identifiers.
fn make_image(tree: &Path, image: &Path) -> Result<()> {
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-L", "kemari-root", "-m", "0"])
        .args(["-U", "6b656d61-7269-4000-8000-000000000001"])
        .args(["-J", "size=16", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"])
        .arg("-d")
        .args([tree, image])
        .arg(SIZE))?;
    run(Command::new("e2fsck").args(["-f", "-n"]).arg(image))
        .context("the new file system is not clean")
}
