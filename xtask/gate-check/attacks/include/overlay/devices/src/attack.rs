//! Takes code from a file outside of the review.

pub(crate) mod table {
    include!("../../shared/table.txt");
}
