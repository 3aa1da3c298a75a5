//! `--device`: a device of the catalogue by name, with its backend.

use std::str::FromStr;

use super::{ConsoleConfig, DiskConfig, NetBackend, NetConfig};
use crate::catalog;

/// `NAME[,console=SPEC|,disk=path=FILE..|,tap=..|,stream=..|,dgram=..]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// The name in the catalogue.
    pub name: String,
    /// The backend of port 0.
    pub backend: Option<DeviceBackend>,
}

/// The backend of a device of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceBackend {
    /// A console.
    Console(ConsoleConfig),
    /// A disk.
    Disk(DiskConfig),
    /// A network.
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
