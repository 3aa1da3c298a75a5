//! `--net`: the backend of a network interface, and the model of its card.

use std::path::PathBuf;
use std::str::FromStr;

use devices::Net;
use io_gate_host::own_files;
use kemari_support::values::{self, Part};

use super::queues::parse_queues;

/// The backend of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    /// A tap interface.
    Tap(String),
    /// A listening Unix stream socket.
    Stream(PathBuf),
    /// Two Unix datagram sockets: this side's path, then the peer's.
    Dgram(PathBuf, PathBuf),
}

/// The model of network card that the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel's 82540EM on a PCI bus, for guests without a virtio driver.
    E1000,
}

/// `tap=IFNAME[,create=on]`, `stream=PATH` or `dgram=LOCAL:PEER`, then any of
/// `,mac=XX:XX:XX:XX:XX:XX`, `,model=virtio|e1000` and `,queues=N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The backend.
    pub backend: NetBackend,
    /// Whether to create a tap that does not exist.
    pub create: bool,
    /// The guest's MAC address; `None`: derive it from the machine's name.
    pub mac: Option<[u8; 6]>,
    /// The card.
    pub model: NetModel,
    /// Number of queue pairs.
    pub queues: u16,
}

const NET_FORM: &str = "tap=IFNAME[,create=on], stream=SOCKETPATH or dgram=LOCALPATH:PEERPATH, then \
[,mac=XX:XX:XX:XX:XX:XX][,queues=N | ,model=e1000]";
/// The kernel's limit for an interface name in bytes (IFNAMSIZ without the NUL).
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
            return Err(format!(
                "model=e1000 has one queue in each direction: remove queues={queues}"
            ));
        }
        let backend = backend.ok_or_else(|| format!("expected {NET_FORM}"))?;
        if create && !matches!(backend, NetBackend::Tap(_)) {
            return Err(format!("create=on is for tap=IFNAME, found `{text}`"));
        }
        Ok(Self { backend, create, mac, model, queues })
    }
}

impl NetConfig {
    /// The backend for a device of the catalogue, which accepts no other option of `--net`.
    pub(super) fn backend_alone(self) -> Result<NetBackend, String> {
        if self.mac.is_some() || self.create || self.queues > 1 || self.model != NetModel::default()
        {
            return Err("expected only tap=, stream= or dgram= after the name of a device: remove create=, mac=, \
            queues= and model=".to_owned());
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

/// Parses an interface's name by the kernel's rules (`dev_valid_name`). Also refuses `%`, with
/// which the kernel would choose a name.
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

/// The path of a Unix socket, which has a lower length limit than a file's.
///
/// # Errors
/// When the path is too long.
pub fn socket_path(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    own_files::check_length(&path).map_err(|error| error.to_string())?;
    Ok(path)
}

fn parse_mac(part: &Part) -> Result<[u8; 6], String> {
    let bad = || {
        part.wrong(
            "a MAC address, for instance 52:54:00:12:34:56 (not all zeros, not a group address)",
        )
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn net(text: &str) -> Result<NetConfig, String> {
        text.parse()
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
}
