//! Saves typing.

conveniences::device!();
