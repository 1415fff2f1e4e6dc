//! `--bwlimit`: bytes per second.

use sync_core::size;

/// Below this a handshake alone takes minutes and runs into its own deadline.
const LEAST: u64 = 1 << 10;

/// Parses `4m`, `500k`, `1.5g` or plain bytes. 0 means no limit, as it does for rsync.
pub fn parse(text: &str) -> Result<u64, String> {
    match size::parse(text) {
        None => Err("no rate: write bytes per second, such as 500k, 4m or 1.5g".to_owned()),
        Some(1..LEAST) => Err("too slow for a handshake: the least is 1k (0 is no limit)".to_owned()),
        Some(rate) => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        let table = [
            ("0", 0),
            ("1024", 1024),
            ("500k", 500 << 10),
            ("4m", 4 << 20),
            ("4M", 4 << 20),
            ("1.5g", 3 << 29),
            ("2t", 2 << 40),
            ("0.5m", 1 << 19),
            ("16777215t", 16_777_215 << 40),
        ];
        for (text, bytes) in table {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let bad = [
            "",
            "k",
            "fast",
            "-1",
            "+1",
            "1kk",
            "1 k",
            "1e3",
            "1.5",
            ".5m",
            "1.m",
            "1023",
            "16777216t",
            "1.0000000001k",
        ];
        for text in bad {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"9".repeat(60)).is_err());
    }
}
