//! Takes code from where nobody looks.

pub(crate) mod table {
    include!("../../shared/table.txt");
}
