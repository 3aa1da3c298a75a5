//! Holds the machine up for as long as it takes.

pub(crate) fn process(mut turns: u64) {
    while turns > 0 {
        core::hint::spin_loop();
        turns -= 1;
    }
}
