//! Debian packages that must be installed on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use super::command::{output, run};

/// Ensures that Debian packages are installed. As root, installs the missing ones; otherwise the
/// error contains the command.
///
/// # Errors
/// A package is missing and cannot be installed.
pub fn ensure_packages(wanted: &[&str], say: &dyn Fn(&str)) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root()? {
        bail!(
            "these Debian packages are needed and not installed: {list}\n\
             install them with: sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
        );
    }
    update_lists(say)?;
    say(&format!("installing packages: {list}"));
    let _quiet = NoServices::begin()?;
    run(apt_get().args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("cannot install the Debian packages {list}"))
}

/// Ensures that programs exist, each given by its path and its Debian package. An existing program
/// may have any origin.
///
/// # Errors
/// As [`ensure_packages`].
pub fn ensure_programs(wanted: &[(&str, &str)], say: &dyn Fn(&str)) -> Result<()> {
    let absent = wanted.iter().filter(|(program, _)| !Path::new(program).exists());
    let packages: Vec<&str> = absent.map(|(_, package)| *package).collect();
    if packages.is_empty() { Ok(()) } else { ensure_packages(&packages, say) }
}

/// While this value lives, newly installed packages start no service: tests start their own
/// servers, and the owner of the machine wants none. An existing policy stays unchanged.
struct NoServices {
    ours: bool,
}

/// The script that Debian's packages run before they start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_MARK: &str = "made by kemari's xtask";

impl NoServices {
    fn begin() -> Result<Self> {
        let context =
            || format!("cannot make {POLICY}, which keeps packages from starting services");
        // Remove the policy of a killed process: it refuses nothing any more.
        if fs::read_to_string(POLICY).is_ok_and(|text| text.contains(POLICY_MARK)) {
            fs::remove_file(POLICY).with_context(context)?;
        }
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        let mut file = match made {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Ok(Self { ours: false });
            }
            Err(error) => return Err(error).with_context(context),
        };
        let process = std::process::id();
        let policy = format!(
            "#!/bin/sh\n# {POLICY_MARK}; says no (101) only while that runs\nkill -0 {process} 2>/dev/null && exit 101\nexit 0\n"
        );
        file.write_all(policy.as_bytes()).with_context(context)?;
        // Set the mode explicitly: this process's umask may have cleared bits.
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).with_context(context)?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// Whether this process runs as root, and so may install packages.
pub(crate) fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    if !Path::new("/usr/bin/dpkg-query").exists() {
        bail!(
            "the Linux guest is made from Debian packages, and this machine has no dpkg; \
             use a Debian machine or container, or the micro-guest (`--guest micro`)"
        );
    }
    // dpkg-query fails if one name is unknown, and still prints the others.
    let known = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Package}\n"])
        .args(wanted)
        .output()
        .context("cannot start `dpkg-query`")?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    let installed: BTreeSet<&str> =
        known.lines().filter_map(|l| l.strip_prefix("installed ")).collect();
    Ok(wanted.iter().copied().filter(|p| !installed.contains(p)).collect())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Runs `apt-get update` as root, at most once per process.
pub(super) fn update_lists(say: &dyn Fn(&str)) -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() && is_root()? {
        say("cannot read this machine's package lists (apt-get update)");
        run(apt_get().args(["update", "-qq"]))
            .context("cannot read this machine's package lists")?;
        let _ = DONE.set(());
    }
    Ok(())
}
