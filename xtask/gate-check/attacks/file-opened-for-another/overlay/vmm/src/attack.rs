//! Opens a file that the guest names, by another module.

use std::path::Path;

pub(crate) fn touch(name: &str) -> bool {
    kemari_support::given_file::open(Path::new(name)).is_ok()
}
