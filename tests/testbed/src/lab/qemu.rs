//! A QEMU whose emulator supports nested virtualisation correctly.
//!
//! Version 7.2 (Debian bookworm) does not intercept XSETBV in a guest, so a stock kernel cannot be
//! saved and restored under it. The version of bookworm-backports is unpacked into the cache and
//! not installed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::guest::Preparation;
use crate::guest::cache::Inputs;
use crate::guest::debian::{BACKPORTS, SUITE};
use crate::guest::{ensure_packages, output};

/// The oldest version that is known to work.
const OLDEST: u32 = 10;
const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// Prepares QEMU, and returns its program and first options.
pub(super) fn prepare(p: &Preparation<'_>) -> Result<Vec<String>> {
    // Install the distribution's package: it also brings the libraries that the newer version
    // needs.
    ensure_packages(&["qemu-system-x86"], p.say)?;
    let installed = vec!["qemu-system-x86_64".to_owned()];
    if version(&installed)? >= OLDEST {
        return Ok(installed);
    }
    let inputs =
        Inputs::from([("suite".into(), BACKPORTS.into()), ("packages".into(), PACKAGES.join(" "))]);
    let dir = p.cache.artefact("qemu", &inputs, p.say, |dir| {
        let packages: Vec<String> = PACKAGES.iter().map(|p| format!("{p}/{BACKPORTS}")).collect();
        let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        p.archive.unpack(&packages, dir)?;
        let found = version(&unpacked(dir)).with_context(|| {
            format!("QEMU from {BACKPORTS} needs the libraries of Debian {SUITE}; on another release, install QEMU {OLDEST} or newer")
        })?;
        ensure!(found >= OLDEST, "expected QEMU {OLDEST} or newer in {BACKPORTS}, found {found}");
        Ok(())
    })?;
    Ok(unpacked(&dir))
}

fn unpacked(dir: &Path) -> Vec<String> {
    let path = |p: &str| dir.join(p).to_string_lossy().into_owned();
    let data = |p: &str| ["-L".to_owned(), path(p)];
    let mut command = vec![path("usr/bin/qemu-system-x86_64")];
    command.extend(data("usr/share/qemu").into_iter().chain(data("usr/share/seabios")));
    command
}

fn version(qemu: &[String]) -> Result<u32> {
    let text = output(Command::new(&qemu[0]).arg("--version"))?;
    parse_version(&text).with_context(|| format!("{} --version said {text:?}", qemu[0]))
}

fn parse_version(text: &str) -> Option<u32> {
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version() {
        let debian = "QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7+deb12u16)\nCopyright";
        assert_eq!(parse_version(debian), Some(7));
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some(10));
        assert_eq!(parse_version("nonsense"), None);
    }
}
