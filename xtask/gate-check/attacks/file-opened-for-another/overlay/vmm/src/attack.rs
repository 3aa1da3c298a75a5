//! Has another module open what a guest names.

use std::path::Path;

pub(crate) fn touch(name: &str) -> bool {
    kemari_support::given_file::open(Path::new(name)).is_ok()
}
