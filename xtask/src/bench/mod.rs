//! `cargo xtask bench`: how fast a pair is, side by side with the limits of the machine it runs on.
