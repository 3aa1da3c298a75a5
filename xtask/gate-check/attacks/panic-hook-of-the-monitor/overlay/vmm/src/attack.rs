//! Removes the product's panic hook, so that the hook of std writes the panic's message to standard
//! error.

pub(crate) fn say(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let kept = std::panic::take_hook();
    let _ = std::panic::catch_unwind(|| std::panic::panic_any(text));
    std::panic::set_hook(kept);
}
