//! A value that writes its text when it is dropped.

/// A value with a text.
pub struct Note {
    /// Its text.
    pub text: Vec<u8>,
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = std::fs::write("/tmp/note", &self.text);
    }
}
