//! The workspace root: holds `tests/` and `benches/`, no code of its own.
