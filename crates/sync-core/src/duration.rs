//! Times as people write them: a whole number with a unit.

use std::time::Duration;

use crate::path::escape;

/// Units, the largest first, in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// The longest: a year.
const LONGEST: u64 = 365 * 24 * 3_600_000;

/// Parses `500ms`, `10s`, `5m`, `1h`; from a millisecond to a year.
///
/// # Errors
/// What to write instead.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit).map_or(0, |(_, millis)| *millis);
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    millis
        .filter(|millis| (1..=LONGEST).contains(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{}` is no time: write 500ms, 10s, 5m or 1h", escape(text.as_bytes())))
}

/// In the largest unit that leaves nothing over, to the millisecond; parses back.
pub fn text(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let fits = |(_, unit): &&(&str, u64)| millis > 0 && millis.is_multiple_of(*unit);
    let (name, unit) = UNITS.iter().find(fits).unwrap_or(&("ms", 1));
    format!("{}{name}", millis / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_numbers_with_a_unit() {
        for (words, millis) in [("1ms", 1), ("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("8760h", LONGEST)] {
            assert_eq!(parse(words), Ok(Duration::from_millis(millis)));
            assert_eq!(parse(&text(Duration::from_millis(millis))), parse(words));
        }
        for words in ["", "5", "s", "0s", "-1s", "1.5s", "1 s", "1d", "8761h", "99999999999999999999s", "10s\u{1b}"] {
            assert!(parse(words).unwrap_err().contains("write 500ms"), "{words}");
        }
        assert_eq!(text(Duration::from_millis(90_500)), "90500ms");
        assert_eq!((text(Duration::ZERO), text(Duration::from_secs(7200))), ("0ms".to_owned(), "2h".to_owned()));
    }
}
