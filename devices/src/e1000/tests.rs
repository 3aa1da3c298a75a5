//! The card as its driver sees it.
