//! Content on its way into staging.
