//! Says a text.

pub(crate) fn say(text: &str) {
    log::warn!("{text}");
}
