//! The one choice of cryptography.

use std::sync::{Arc, OnceLock};

use quinn::rustls;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};

/// aws-lc-rs with AES-128-GCM first: it is the fastest where AES is in hardware, and QUIC needs it for its first
/// packets anyway.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        Arc::new(provider)
    };
    Arc::clone(PROVIDER.get_or_init(make))
}

/// Fills `bytes` from the system's generator.
pub(super) fn random(bytes: &mut [u8]) -> Result<(), ()> {
    provider().secure_random.fill(bytes).map_err(|_| ())
}
