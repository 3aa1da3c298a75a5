//! `kemari disk`: the sidecars of own disks (docs/own-disks.md).

use std::path::Path;

use ft_core::disks::{Generation, ImageIdentity, State};
use io_gate_host::own_disk::OwnDiskError as FileError;
use kemari_replication::own_disk::{Init, Look, Made, OwnDiskError, SlotLook, init};
use serde_json::{Value, json};

use super::args::{DiskArgs, DiskCommand, DiskFiles};
use super::{CliError, output};

/// The sidecar describes another image.
const EXIT_OTHER_IMAGE: u8 = 3;
/// A resync of the image has not ended.
const EXIT_INCONSISTENT: u8 = 4;
/// An operation on the image has failed (R5).
const EXIT_IMAGE_FAILED: u8 = 5;

impl From<OwnDiskError> for CliError {
    fn from(error: OwnDiskError) -> Self {
        match &error {
            OwnDiskError::File(FileError::Io { .. }) => Self::failed(error.to_string()),
            _ => Self::usage(error.to_string()),
        }
    }
}

/// Runs `kemari disk`.
pub(super) fn disk(args: &DiskArgs) -> Result<u8, CliError> {
    match &args.command {
        DiskCommand::Init { files, pair, size } => {
            let (image, meta) = named(files);
            let size = size.map(|mebibytes| mebibytes << 20);
            let made = init(Init { image, meta, pair: *pair, size })?;
            output::print(&made_text(image, &made)).map(|()| 0)
        }
        DiskCommand::Info { files, json } => {
            let look = look(files)?;
            let text = match json {
                true => as_json(&files.image, &look).to_string(),
                false => as_text(&files.image, &look),
            };
            output::print(&text).map(|()| 0)
        }
        DiskCommand::Check { files } => {
            let look = look(files)?;
            let (code, verdict) = judge(&files.image, &look);
            let lines: Vec<String> = std::iter::once(verdict).chain(remarks(&look)).collect();
            output::print(&lines.join("\n")).map(|()| code)
        }
    }
}

fn named(files: &DiskFiles) -> (&Path, Option<&Path>) {
    (&files.image, files.meta.as_deref())
}

fn look(files: &DiskFiles) -> Result<Look, CliError> {
    let (image, meta) = named(files);
    Ok(Look::at(image, meta)?)
}

fn made_text(image: &Path, made: &Made) -> String {
    let (image, sidecar) = (image.display(), &made.sidecar);
    let what = if made.image { "image and sidecar" } else { "sidecar" };
    format!(
        "{image}: made {what} {}: disk {} of pair {pair}\nOn the other host: kemari disk init IMAGE --pair {pair}",
        made.path.display(),
        sidecar.disk,
        pair = sidecar.pair,
    )
}

fn state(state: State) -> &'static str {
    match state {
        State::Whole => "whole",
        State::Inconsistent => "inconsistent",
        State::Failed => "failed",
    }
}

/// The verdict on an image, as an exit code and a line.
fn judge(image: &Path, look: &Look) -> (u8, String) {
    let (name, sidecar) = (image.display(), &look.sidecar);
    if !look.fits() {
        let (pair, path) = (sidecar.pair, look.path.clone());
        let (expected, found) = (sidecar.image, look.found);
        let other =
            OwnDiskError::OtherImage { image: image.to_owned(), path, pair, expected, found };
        return (EXIT_OTHER_IMAGE, other.to_string());
    }
    match sidecar.state {
        State::Whole => (0, format!("{name}: whole, as of its generation")),
        State::Inconsistent => (
            EXIT_INCONSISTENT,
            format!(
                "{name}: inconsistent: expected a whole image, found blocks of two times, as a resync has not ended. Start \
                 its host as a standby of the host with the whole image: the resync continues"
            ),
        ),
        State::Failed => (
            EXIT_IMAGE_FAILED,
            format!(
                "{name}: failed: expected that each write and sync of it succeeds, found that one has failed, so that its \
                 content is unknown. Check its storage, and make a new image (kemari disk init IMAGE --pair {})",
                sidecar.pair
            ),
        ),
    }
}

/// Whose the image is, what is marked, and what else an operator has to know.
fn remarks(look: &Look) -> Vec<String> {
    let sidecar = &look.sidecar;
    let mut lines = vec![
        format!("disk {} of pair {}", sidecar.disk, sidecar.pair),
        format!(
            "generation {}, durable up to entry {}",
            sidecar.lineage.current(),
            sidecar.durable.0
        ),
        marked(look),
    ];
    if let Some(pending) = sidecar.pending {
        lines.push(format!(
            "a claim of generation {pending} has no known result: the arbiter knows it"
        ));
    }
    if look.in_use {
        lines.push("another process uses it".to_owned());
    }
    for (number, slot) in look.slots.iter().enumerate() {
        if !matches!(slot, SlotLook::Valid(_)) {
            lines.push(format!("slot {number} is damaged; the other one counts, and the next version replaces this one"));
        }
    }
    lines
}

fn marked(look: &Look) -> String {
    let Some(area) = &look.area else {
        return "the mark area is damaged: the next resync compares all of the image".to_owned();
    };
    let bytes = look.layout.marked_bytes(area);
    format!(
        "{bytes} bytes are marked: {} coarse and {} fine marks",
        area.coarse.len(),
        area.fine.len()
    )
}

fn slot_text(slot: SlotLook) -> String {
    match slot {
        SlotLook::Valid(version) => format!("version {version}"),
        SlotLook::OtherRelease => "of another release".to_owned(),
        SlotLook::Damaged => "damaged".to_owned(),
    }
}

fn as_text(image: &Path, look: &Look) -> String {
    let sidecar = &look.sidecar;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    let parents: Vec<String> =
        sidecar.lineage.parents().iter().map(Generation::to_string).collect();
    let parents = Some(parents.join(", ")).filter(|parents| !parents.is_empty());
    let in_use = if look.in_use { " (another process uses it)" } else { "" };
    let fits =
        if look.fits() { "the one of the sidecar" } else { "another one than the sidecar's" };
    let lines = [
        ("image", format!("{} ({fits})", image.display())),
        ("sidecar", format!("{}{in_use}", look.path.display())),
        ("pair", sidecar.pair.to_string()),
        ("disk", sidecar.disk.to_string()),
        ("peer", or_none(sidecar.peer.map(|peer| peer.to_string()))),
        ("generation", sidecar.lineage.current().to_string()),
        ("parents", or_none(parents)),
        ("pending", or_none(sidecar.pending.map(|pending| pending.to_string()))),
        ("state", state(sidecar.state).to_owned()),
        ("durable", format!("up to entry {}", sidecar.durable.0)),
        ("marks", marked(look)),
        ("slots", look.slots.map(slot_text).join(", ")),
    ];
    lines.map(|(name, value)| format!("{name:<11} {value}")).join("\n")
}

fn generation(of: &Generation) -> Value {
    json!({ "term": of.term, "id": format!("{:032x}", of.id) })
}

fn identity(of: &ImageIdentity) -> Value {
    json!({ "inode": of.inode, "filesystem": of.filesystem, "size": of.size })
}

fn as_json(image: &Path, look: &Look) -> Value {
    let sidecar = &look.sidecar;
    let id = |id: Option<ft_core::disks::DiskId>| id.map(|id| id.to_string());
    let slots = look.slots.map(|slot| match slot {
        SlotLook::Valid(version) => json!({ "valid": true, "version": version }),
        other => json!({ "valid": false, "reason": slot_text(other) }),
    });
    let marks = match &look.area {
        Some(area) => json!({
            "valid": true,
            "bytes": look.layout.marked_bytes(area),
            "coarse": area.coarse.len(),
            "fine": area.fine.len(),
            "peer": id(area.peer),
            "cleared": area.cleared.0,
        }),
        None => json!({ "valid": false, "bytes": sidecar.image.size }),
    };
    json!({
        "image": image,
        "sidecar": look.path,
        "in_use": look.in_use,
        "pair": sidecar.pair.to_string(),
        "disk": sidecar.disk.to_string(),
        "peer": id(sidecar.peer),
        "generation": generation(&sidecar.lineage.current()),
        "parents": sidecar.lineage.parents().iter().map(generation).collect::<Vec<_>>(),
        "pending": sidecar.pending.as_ref().map(generation),
        "state": state(sidecar.state),
        "durable": sidecar.durable.0,
        "fits": look.fits(),
        "expected": identity(&sidecar.image),
        "found": identity(&look.found),
        "slots": slots,
        "marks": marks,
    })
}
