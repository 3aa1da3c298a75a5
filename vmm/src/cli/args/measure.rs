//! `kemari probe`.

use clap::Args;
use kemari_support::values::{Unit, numbers};

const EXAMPLES: &str = "\
Examples:
  kemari probe
  kemari probe --limits --pages 16,1024";

/// `kemari probe`
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ProbeArgs {
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Measure the shortest possible times to take and send a checkpoint on this host, in
    /// microseconds. Takes some seconds.
    #[arg(long)]
    pub limits: bool,
    /// Numbers of dirty pages to measure for.
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_values_t = [16, 128, 1024], requires = "limits", allow_negative_numbers = true, value_parser = numbers::<u64>(1..=1 << 20, Unit::Count("a number of pages")))]
    pub pages: Vec<u64>,
}
