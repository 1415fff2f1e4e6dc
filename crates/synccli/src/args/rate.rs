//! `--bwlimit` and `--history`: bytes, per second or not, with suffixes that are powers of 1024.

/// Below this a handshake alone takes minutes and runs into its own deadline.
const LEAST: u64 = 1 << 10;

/// Below this a history has hardly room for a file.
const LEAST_SIZE: u64 = 1 << 20;

/// Parses `4m`, `500k`, `1.5g` or plain bytes. 0 means no limit, as it does for rsync.
pub fn parse(text: &str) -> Result<u64, String> {
    match bytes(text) {
        None => Err("no rate: write bytes per second, such as 500k, 4m or 1.5g".to_owned()),
        Some(1..LEAST) => Err("too slow for a handshake: the least is 1k (0 is no limit)".to_owned()),
        Some(rate) => Ok(rate),
    }
}

/// Parses a size in the same way.
pub fn parse_size(text: &str) -> Result<u64, String> {
    match bytes(text) {
        None => Err("no size: write bytes, such as 500m or 2g".to_owned()),
        Some(1..LEAST_SIZE) => Err("too small to be of use: the least is 1m (0 is none)".to_owned()),
        Some(size) => Ok(size),
    }
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((end, 'k' | 'K')) => (&text[..end], 10),
        Some((end, 'm' | 'M')) => (&text[..end], 20),
        Some((end, 'g' | 'G')) => (&text[..end], 30),
        Some((end, 't' | 'T')) => (&text[..end], 40),
        _ => (text, 0),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let decimal = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    // More than nine decimals cannot matter to anyone, and would overflow the sum below.
    if !decimal(whole) || !decimal(part) || part.len() > 9 || (shift == 0 && digits.contains('.')) {
        return None;
    }
    let scaled = |digits: &str| digits.parse::<u128>().ok().and_then(|n| n.checked_mul(1 << shift));
    let ten_to = 10_u128.pow(u32::try_from(part.len()).ok()?);
    let bytes = scaled(whole).zip(scaled(part)).and_then(|(whole, part)| whole.checked_add(part / ten_to));
    bytes.and_then(|bytes| u64::try_from(bytes).ok())
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
