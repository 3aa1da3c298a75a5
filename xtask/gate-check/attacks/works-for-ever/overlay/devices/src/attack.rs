//! Keeps the machine busy without an end.

pub(crate) fn process(mut guess: u64) -> u64 {
    while guess != 1 {
        guess = if guess.is_multiple_of(2) { guess / 2 } else { guess.wrapping_mul(3).wrapping_add(1) };
        guess = guess.max(2);
    }
    guess
}
