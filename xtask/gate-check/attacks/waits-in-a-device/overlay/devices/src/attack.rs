//! Blocks the machine until other code changes a flag.

pub(crate) struct Patient {
    done: bool,
}

impl Patient {
    pub(crate) fn process(&self) {
        while !self.done {}
    }
}
