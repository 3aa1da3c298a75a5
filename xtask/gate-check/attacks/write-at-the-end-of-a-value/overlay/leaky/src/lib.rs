//! Writes when it ends.

/// What is to be written.
pub struct Note {
    /// Its text.
    pub text: Vec<u8>,
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = std::fs::write("/tmp/note", &self.text);
    }
}
