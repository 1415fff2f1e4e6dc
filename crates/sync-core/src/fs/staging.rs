//! The private staging directory of a replica.
