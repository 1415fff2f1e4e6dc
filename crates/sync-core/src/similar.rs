//! Names that resemble each other, as those of two versions of a file often do: `app.log` and `app.log.1`, dumps with a
//! date, a script with another hash in its name.

/// What parts of a name are kept apart by.
const SEPARATORS: &[u8] = b".-_";

/// How much of the longer name both have in common at their beginnings and ends, in thousandths; 0 unless they are alike:
/// that is at least half of it (an ending like `.jpg` is not counted), or all but one of three or more parts.
pub fn likeness(a: &[u8], b: &[u8]) -> usize {
    let front = common(a.iter(), b.iter());
    let back = common(a[front..].iter().rev(), b[front..].iter().rev());
    let kind = a[a.len() - back..].iter().rposition(|&byte| byte == b'.').map_or(0, |dot| back - dot);
    let longer = a.len().max(b.len());
    match 2 * (front + back - kind) >= longer - kind || differ_in_one_part(a, b) {
        true => 1000 * (front + back) / longer.max(1),
        false => 0,
    }
}

fn common<'a>(a: impl Iterator<Item = &'a u8>, b: impl Iterator<Item = &'a u8>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}

fn differ_in_one_part(a: &[u8], b: &[u8]) -> bool {
    let parts = |name| <[u8]>::split(name, |byte| SEPARATORS.contains(byte));
    let count = parts(a).count();
    count >= 3 && count == parts(b).count() && parts(a).zip(parts(b)).filter(|(a, b)| a != b).count() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_file_have_names_that_are_alike() {
        let pairs = [
            ("app.log", "app.log.1"),
            ("dump-2026-11-20.sql", "dump-2026-12-01.sql"),
            ("app.3f2a1b9c7d.js", "app.07c8d7e2aa.js"),
            ("disk.img", "disk.img.new"),
            ("chapter1.txt", "chapter2.txt"),
            ("site-1.9.tar", "site-1.10.tar"),
            ("same", "same"),
        ];
        for (a, b) in pairs {
            assert!(likeness(a.as_bytes(), b.as_bytes()) > 0, "{a} and {b}");
            assert_eq!(likeness(a.as_bytes(), b.as_bytes()), likeness(b.as_bytes(), a.as_bytes()));
        }
    }

    #[test]
    fn other_names_are_not() {
        let pairs = [
            ("1.txt", "2.txt"),
            ("cat.jpeg", "dog.jpeg"),
            ("index.html", "about.html"),
            ("a", "b"),
            ("", "a"),
            ("README", "Makefile"),
            ("one.two.js", "six.ten.js"),
        ];
        for (a, b) in pairs {
            assert_eq!(likeness(a.as_bytes(), b.as_bytes()), 0, "{a} and {b}");
        }
    }

    #[test]
    fn more_in_common_is_more_alike() {
        let to = |other: &str| likeness(b"dump-2026-11-21.sql", other.as_bytes());
        assert!(to("dump-2026-11-20.sql") > to("dump-2026-10-20.sql"));
        assert!(to("dump-2026-10-20.sql") > to("dump-2025-10-20.gz"));
    }
}
