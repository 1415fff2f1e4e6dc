//! `--compress`: when content is compressed on the wire.

use sync_core::options::Compress;

/// zstd's own default, a good trade on the links where compression pays.
const DEFAULT_LEVEL: i32 = 3;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_forms() {
        assert_eq!(parse("auto"), Ok(Compress::Auto));
        assert_eq!(parse("never"), Ok(Compress::Never));
        assert_eq!(parse("zstd"), Ok(Compress::Zstd(3)));
        assert_eq!(parse("zstd:1"), Ok(Compress::Zstd(1)));
        assert_eq!(parse("zstd:19"), Ok(Compress::Zstd(19)));
        for bad in ["", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:x", "gzip", "Auto"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
