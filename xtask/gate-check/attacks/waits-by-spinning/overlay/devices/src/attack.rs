//! Blocks the machine without a limit.

pub(crate) fn process(mut turns: u64) {
    while turns > 0 {
        core::hint::spin_loop();
        turns -= 1;
    }
}
