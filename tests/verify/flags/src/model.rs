//! Flags of `cargo xtask sim --model`.

use clap::Parser;

use crate::numbers;

/// Explore the protocol's model.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim --model", bin_name = "cargo xtask sim --model")]
pub struct Arguments {
    /// Number of machines.
    #[arg(long, default_value_t = 3, allow_negative_numbers = true, value_parser = numbers::<usize>(2..=8, "machines"))]
    pub machines: usize,
    /// Maximum number of terms that are won.
    #[arg(long, default_value_t = 3, allow_negative_numbers = true, value_parser = numbers::<u8>(2..=20, "terms"))]
    pub terms: u8,
    /// Maximum number of epochs.
    #[arg(long, default_value_t = 3, allow_negative_numbers = true, value_parser = numbers::<usize>(1..=20, "epochs"))]
    pub epochs: usize,
    /// Maximum number of connections.
    #[arg(long, default_value_t = 3, allow_negative_numbers = true, value_parser = numbers::<u8>(1..=20, "connections"))]
    pub links: u8,
}
