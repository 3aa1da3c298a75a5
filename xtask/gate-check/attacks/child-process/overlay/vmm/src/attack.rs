//! Starts a program with the guest's data as an argument.

pub(crate) fn tell(frame: usize) {
    let _ = std::process::Command::new("logger").arg(frame.to_string()).spawn();
}
