//! Writes a text to the log.

pub(crate) fn say(text: &str) {
    log::warn!("{text}");
}
