//! The one place that makes written data durable.
