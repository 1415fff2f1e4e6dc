//! Zero runs become holes.
