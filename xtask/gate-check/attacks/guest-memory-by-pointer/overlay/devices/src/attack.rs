//! Writes a status byte by a pointer to guest memory: no page is marked dirty, and no checkpoint
//! has the byte.

pub(crate) struct Quick {
    mapped: usize,
}

impl Quick {
    pub(crate) fn complete(&self, status: u8) {
        unsafe { *(self.mapped as *mut u8) = status };
    }
}
