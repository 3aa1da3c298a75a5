//! Two network namespaces joined by a cable, and a third for the arbiter. Creating them needs root.

use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use super::Host;

const PREFIX: &str = "kemari";
const PORT: u16 = 7001;
const IP: [&str; 2] = ["198.18.0.1", "198.18.0.2"];
const MAC: [&str; 2] = ["02:6b:00:00:00:01", "02:6b:00:00:00:02"];
/// An unused Ethernet address: packets to it are lost.
const NOBODY: &str = "02:6b:00:00:00:ff";
const DEVICE: &str = "peer";
/// The networks between each host and the arbiter: the host's address, and the arbiter's.
const ARBITER_NETS: [[&str; 2]; 2] = [["198.18.1.1", "198.18.1.9"], ["198.18.2.1", "198.18.2.9"]];
const ARBITER_DEVICE: &str = "arbiter";

/// The namespaces. Dropping it removes them.
#[derive(Debug)]
pub struct Namespaces {
    names: [String; 2],
    arbiter: String,
}

impl Namespaces {
    pub(super) fn new() -> Result<Self> {
        remove_orphans();
        let names = [Host::A, Host::B]
            .map(|host| format!("{PREFIX}-{}-{}", std::process::id(), host.name()));
        let arbiter = format!("{PREFIX}-{}-arbiter", std::process::id());
        // Create the value first: its drop removes the namespaces if a later step fails.
        let namespaces = Self { names, arbiter };
        for name in namespaces.all() {
            ip(&["netns", "add", name])?;
        }
        namespaces.join()?;
        namespaces.join_arbiter()?;
        namespaces.heal()?;
        Ok(namespaces)
    }

    fn join(&self) -> Result<()> {
        let [a, b] = &self.names;
        let [near, far] = [["netns", a, "address", MAC[0]], ["netns", b, "address", MAC[1]]];
        let mut link = vec!["link", "add", DEVICE];
        link.extend(near);
        link.extend(["type", "veth", "peer", "name", DEVICE]);
        link.extend(far);
        ip(&link)?;
        for host in [Host::A, Host::B] {
            let name = self.name(host);
            let address = format!("{}/24", IP[host.index()]);
            ip(&["-n", name, "address", "add", &address, "dev", DEVICE])?;
            ip(&["-n", name, "link", "set", DEVICE, "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.names.iter().chain([&self.arbiter])
    }

    /// Connects each host to the arbiter's namespace by a cable, which a cut between the hosts does
    /// not affect.
    fn join_arbiter(&self) -> Result<()> {
        ip(&["-n", &self.arbiter, "link", "set", "lo", "up"])?;
        for host in [Host::A, Host::B] {
            let [near, far] = ARBITER_NETS[host.index()];
            // The device's name must not be the prefix of a keyword of `ip`.
            let (name, end) = (self.name(host), &format!("host-{}", host.name()));
            let mut link = vec!["link", "add", ARBITER_DEVICE, "netns", name];
            link.extend(["type", "veth", "peer", "name", end, "netns", &self.arbiter]);
            ip(&link)?;
            for (namespace, address, device) in
                [(name, near, ARBITER_DEVICE), (&self.arbiter, far, end)]
            {
                let address = format!("{address}/24");
                ip(&["-n", namespace, "address", "add", &address, "dev", device])?;
                ip(&["-n", namespace, "link", "set", "dev", device, "up"])?;
            }
        }
        Ok(())
    }

    pub(super) fn arbiter(&self) -> &str {
        &self.arbiter
    }

    /// The address at which `host` reaches the arbiter.
    pub(super) fn arbiter_address(&self, host: Host) -> &'static str {
        ARBITER_NETS[host.index()][1]
    }

    /// Drops all packets from `host` to the arbiter, as [`cut`](Self::cut) does between the hosts.
    pub(super) fn cut_arbiter(&self, host: Host) -> Result<()> {
        let entry = ["lladdr", NOBODY, "nud", "permanent"];
        self.arbiters_neighbour(host, "replace", &entry)
    }

    /// Deletes the wrong neighbour entry: the kernel then resolves the right one.
    pub(super) fn heal_arbiter(&self, host: Host) -> Result<()> {
        self.arbiters_neighbour(host, "delete", &[])
    }

    fn arbiters_neighbour(&self, host: Host, what: &str, entry: &[&str]) -> Result<()> {
        let arbiter = self.arbiter_address(host);
        let head = ["-n", self.name(host), "neighbour", what, arbiter, "dev", ARBITER_DEVICE];
        ip(&[&head[..], entry].concat())
    }

    pub(super) fn name(&self, host: Host) -> &str {
        &self.names[host.index()]
    }

    pub(super) fn address(&self, host: Host) -> String {
        format!("{}:{PORT}", IP[host.index()])
    }

    /// Drops all packets between the hosts that come from `senders`.
    pub(super) fn cut(&self, senders: &[Host]) -> Result<()> {
        let address = |host: Host| {
            if senders.contains(&host) { NOBODY } else { MAC[host.other().index()] }
        };
        self.set_neighbours([address(Host::A), address(Host::B)])
    }

    pub(super) fn heal(&self) -> Result<()> {
        self.cut(&[])
    }

    /// Sets each host's neighbour entry for the other host. A wrong Ethernet address loses each
    /// packet without notice. Setting the device down instead would notify both ends.
    fn set_neighbours(&self, addresses: [&str; 2]) -> Result<()> {
        for (host, address) in [Host::A, Host::B].into_iter().zip(addresses) {
            let peer = IP[host.other().index()];
            let name = self.name(host);
            let entry = [
                "neighbour",
                "replace",
                peer,
                "lladdr",
                address,
                "dev",
                DEVICE,
                "nud",
                "permanent",
            ];
            ip(&[&["-n", name][..], &entry[..]].concat())?;
        }
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in self.all() {
            let _ = run_ip(&["netns", "delete", name]);
        }
    }
}

/// Removes the namespaces of killed processes.
fn remove_orphans() {
    let Ok(listed) = run_ip(&["netns", "list"]) else { return };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let maker = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_prefix('-')?.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = run_ip(&["netns", "delete", name]);
        }
    }
}

pub(super) fn run_ip(arguments: &[&str]) -> Result<Output> {
    Command::new("ip").args(arguments).output().context("cannot run `ip` (Debian package iproute2)")
}

pub(super) fn ip(arguments: &[&str]) -> Result<()> {
    let output = run_ip(arguments)?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("`ip {}` failed: {}", arguments.join(" "), reason.trim());
    }
    Ok(())
}
