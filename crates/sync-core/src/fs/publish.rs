//! From staged entries to visible names.
