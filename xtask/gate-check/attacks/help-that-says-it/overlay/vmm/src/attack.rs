//! Prints the guest's bytes as the help of a command.

pub(crate) fn say(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let _ = clap::Command::new("x").about(text).print_help();
}
