//! `--compress`: when content is compressed on the wire.

use sync_core::options::Compress;

/// Whoever asks for compression has a slow link: a tenth of a gigabyte a second, and a fifth less than at zstd's own 3.
const DEFAULT_LEVEL: i32 = 7;

/// Parses `auto`, `never`, `zstd` or `zstd:LEVEL`.
pub fn parse(text: &str) -> Result<Compress, String> {
    match text {
        "auto" => return Ok(Compress::Auto),
        "never" => return Ok(Compress::Never),
        "zstd" => return Ok(Compress::Zstd(DEFAULT_LEVEL)),
        _ => {}
    }
    let level = text.strip_prefix("zstd:").and_then(|level| level.parse::<i32>().ok());
    match level {
        Some(level @ 1..=19) => Ok(Compress::Zstd(level)),
        Some(_) => Err("a zstd level is 1 to 19".to_owned()),
        None => Err("write auto, never, zstd or zstd:LEVEL".to_owned()),
    }
}

/// The same without `auto`: what is compressed then depends on the link.
pub fn parse_always(text: &str) -> Result<Compress, String> {
    match parse(text) {
        Ok(Compress::Auto) | Err(_) if !text.starts_with("zstd:") => Err("write never, zstd or zstd:LEVEL".to_owned()),
        parsed => parsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_way_is_any_but_auto() {
        assert_eq!(parse_always("never"), Ok(Compress::Never));
        assert_eq!(parse_always("zstd:3"), Ok(Compress::Zstd(3)));
        assert!(parse_always("auto").unwrap_err().starts_with("write never"));
        assert!(parse_always("zstd:20").unwrap_err().starts_with("a zstd level"));
    }

    #[test]
    fn the_four_forms() {
        assert_eq!(parse("auto"), Ok(Compress::Auto));
        assert_eq!(parse("never"), Ok(Compress::Never));
        assert_eq!(parse("zstd"), Ok(Compress::Zstd(7)));
        assert_eq!(parse("zstd:1"), Ok(Compress::Zstd(1)));
        assert_eq!(parse("zstd:19"), Ok(Compress::Zstd(19)));
        for bad in ["", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:x", "gzip", "Auto"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
