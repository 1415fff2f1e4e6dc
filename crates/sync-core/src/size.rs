//! Sizes as people write them: with suffixes that are powers of 1024.

/// Below this a history has hardly room for a file.
const LEAST_HISTORY: u64 = 1 << 20;

/// Below this a handshake alone takes minutes and runs into its own deadline.
const LEAST_RATE: u64 = 1 << 10;

/// Reads `4m`, `500k`, `1.5g`, `2t` or plain bytes; `None` for anything else.
pub fn parse(text: &str) -> Option<u64> {
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

/// Reads how much is kept of previous contents: bytes, or `None` for 0.
///
/// # Errors
/// Why it is no such size, for a person.
pub fn history(text: &str) -> Result<Option<u64>, String> {
    match parse(text) {
        None => Err("no size: write bytes, such as 500m or 2g".to_owned()),
        Some(1..LEAST_HISTORY) => Err("too small to be of use: the least is 1m (0 is none)".to_owned()),
        Some(size) => Ok(Some(size).filter(|size| *size > 0)),
    }
}

/// Reads bytes per second; 0 means no limit, as it does for rsync.
///
/// # Errors
/// Why it is no such rate, for a person.
pub fn rate(text: &str) -> Result<u64, String> {
    match parse(text) {
        None => Err("no rate: write bytes per second, such as 500k, 4m or 1.5g".to_owned()),
        Some(1..LEAST_RATE) => Err("too slow for a handshake: the least is 1k (0 is no limit)".to_owned()),
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
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
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
            assert!(rate(text).is_err(), "{text}");
        }
        assert!(rate(&"9".repeat(60)).is_err());
    }

    #[test]
    fn a_history_is_none_or_large_enough() {
        let table = [("0", Ok(None)), ("0g", Ok(None)), ("1m", Ok(Some(1 << 20))), ("2g", Ok(Some(2 << 30)))];
        for (text, size) in table {
            assert_eq!(history(text), size, "{text}");
        }
        for text in ["", "much", "1k", "1023k", "-1"] {
            assert!(history(text).is_err(), "{text}");
        }
    }
}
