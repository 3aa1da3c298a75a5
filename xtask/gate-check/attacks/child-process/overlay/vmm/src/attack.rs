//! Tells a program what the guest does.

pub(crate) fn tell(frame: usize) {
    let _ = std::process::Command::new("logger").arg(frame.to_string()).spawn();
}
