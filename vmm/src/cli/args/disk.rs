//! `kemari disk`.

use std::path::PathBuf;

use clap::Args;
use ft_core::disks::PairId;
use kemari_support::values::{Unit, numbers};

const EXAMPLES: &str = "\
Examples:
  kemari disk init web.raw --size 10240
  kemari disk init web.raw --pair 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0
  kemari disk info web.raw
  kemari disk check web.raw";

/// `kemari disk`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DiskArgs {
    /// The command.
    #[command(subcommand)]
    pub command: DiskCommand,
}

/// The files of an own disk.
#[derive(Debug, Args)]
pub struct DiskFiles {
    /// Raw image or block device.
    pub image: PathBuf,
    /// The image's sidecar, if it is not IMAGE.kemari. Required for a block device.
    #[arg(long, value_name = "FILE")]
    pub meta: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub enum DiskCommand {
    /// Make the sidecar of an image, and the image if it does not exist.
    ///
    /// The sidecar IMAGE.kemari says to which pair of hosts the image belongs, and where it may
    /// differ from the image of the other host. Each host has an image and a sidecar of its own.
    /// No file is overwritten.
    Init {
        /// The image and its sidecar.
        #[command(flatten)]
        files: DiskFiles,
        /// Pair of the other host's image, as `kemari disk init` printed it there [default: a new
        /// pair].
        #[arg(long, value_name = "UUID")]
        pair: Option<PairId>,
        /// Make an empty image of this size if there is none.
        #[arg(long, value_name = "MIB", allow_negative_numbers = true, value_parser = numbers::<u64>(1..=1 << 30, Unit::Mebibytes))]
        size: Option<u64>,
    },
    /// Print what the sidecar of an image says.
    Info {
        /// The image and its sidecar.
        #[command(flatten)]
        files: DiskFiles,
        /// Print one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Judge whether an image can be used, and print whose it is and how much of it is marked.
    ///
    /// The arbiter alone knows whether an image is the newest of its pair.
    ///
    /// Exit codes: 0 it can be used, 1 the check failed, 2 no usable sidecar, 3 the sidecar is of
    /// another image, 4 inconsistent (a resync has not ended), 5 failed (a write or a sync of it
    /// has failed).
    Check {
        /// The image and its sidecar.
        #[command(flatten)]
        files: DiskFiles,
    },
}
