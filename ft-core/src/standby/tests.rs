//! Transitions, legal and not.
