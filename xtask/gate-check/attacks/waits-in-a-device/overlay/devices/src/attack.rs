//! Holds the machine up until somebody changes a flag.

pub(crate) struct Patient {
    done: bool,
}

impl Patient {
    pub(crate) fn process(&self) {
        while !self.done {}
    }
}
