//! Sizes as people write them: with suffixes that are powers of 1024.

/// Below this a history has hardly room for a file.
const LEAST_HISTORY: u64 = 1 << 20;

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

#[cfg(test)]
mod tests {
    use super::*;

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
