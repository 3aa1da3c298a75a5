//! Writes a status byte where guest memory is mapped: no page is marked, no checkpoint has it.

pub(crate) struct Quick {
    mapped: usize,
}

impl Quick {
    pub(crate) fn complete(&self, status: u8) {
        unsafe { *(self.mapped as *mut u8) = status };
    }
}
