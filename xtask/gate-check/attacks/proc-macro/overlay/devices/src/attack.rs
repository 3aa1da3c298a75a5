//! Uses a macro that writes code.

conveniences::device!();
