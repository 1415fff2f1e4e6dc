//! Which entries belong to a push: gitignore patterns in the order given, the last match wins.
//!
//! The patterns mean what gitignore(5) says, as in one file at the top of the tree. Without a slash (but at the end) a
//! pattern matches a name at any depth, with one it is anchored at the top; a slash at the end matches directories
//! only; `*`, `?` and `[...]` never match a slash, and `**` in place of a whole component stands for any number of
//! them; `!` includes again; `\` takes the next character literally; blanks at the end count only if escaped; empty
//! patterns and those that begin with `#` match nothing. As in git, `?` and `[...]` match one byte, letters match in
//! their own case only, and braces mean themselves. Unlike git, a pattern that can never match because it is malformed
//! is an error: a rule that silently excludes nothing sends what should have stayed.
//!
//! Not here: no ignore file is ever read, and hidden names are nothing special. A path is judged on its own; that
//! nothing beneath an excluded directory is visited is the walker's doing.
//!
//! The matcher is our own because the one at hand (crate `ignore`) reads braces, classes and trailing blanks in other
//! ways than git does, and because rules come from a peer as well: this one never backtracks over more than one star.

use serde::{Deserialize, Serialize};

use crate::path::{RelPath, escape};

/// One `--exclude` or `--include`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// A gitignore pattern; a leading `!` includes again.
    pub pattern: String,
}

/// Most rules that one push may have.
pub const MAX_RULES: usize = 10_000;

/// Longest pattern in bytes: no shorter than `PATH_MAX`.
pub const MAX_PATTERN: usize = 4096;

/// Most bytes in all patterns together. It bounds what a peer's rules take when compiled, about 16 times as much.
pub const MAX_RULES_BYTES: usize = 512 << 10;

/// Why rules are no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// More than [`MAX_RULES`].
    #[error("{0} filter rules: at most {MAX_RULES} are allowed")]
    TooMany(usize),
    /// More than [`MAX_PATTERN`] bytes in the rule of this number, counted from 1.
    #[error("filter rule {0} is longer than {MAX_PATTERN} bytes")]
    TooLong(usize),
    /// More than [`MAX_RULES_BYTES`].
    #[error("the filter rules have more than {MAX_RULES_BYTES} bytes together")]
    TooMuch,
    /// A pattern that cannot match anything.
    #[error("filter rule {number} `{pattern}`: {reason}")]
    Pattern {
        /// Counted from 1.
        number: usize,
        /// The pattern, escaped for a terminal.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Rules ready to match. Matching costs a look at each rule, last one first, until one matches.
#[derive(Clone, Debug)]
pub struct Filter {
    patterns: Vec<Pattern>,
}

impl Filter {
    /// Compiles `rules`.
    ///
    /// # Errors
    /// [`FilterError`] names the first rule that is wrong, or the bound that is exceeded.
    pub fn new(rules: &[Rule]) -> Result<Self, FilterError> {
        check_length(rules)?;
        let mut patterns = Vec::new();
        for (i, Rule { pattern }) in rules.iter().enumerate() {
            let text = without_trailing_blanks(pattern.as_bytes());
            let parsed = Pattern::parse(text).map_err(|reason| FilterError::Pattern {
                number: i + 1,
                pattern: escape(pattern.as_bytes()),
                reason,
            })?;
            patterns.extend(parsed);
        }
        Ok(Self { patterns })
    }

    /// Whether the rules leave this entry out. The top directory always belongs to a push. Whether a directory above
    /// it is left out is not looked at.
    pub fn excludes(&self, path: &RelPath, is_dir: bool) -> bool {
        if self.patterns.is_empty() || path.is_root() {
            return false;
        }
        let name = path.name();
        let last_match = self.patterns.iter().rev().find(|p| (is_dir || !p.dirs_only) && p.matches(path, name));
        last_match.is_some_and(|p| !p.includes)
    }

    /// Whether no rule can match anything.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

/// Whether rules keep to the bounds in number and length.
pub(crate) fn check_length(rules: &[Rule]) -> Result<(), FilterError> {
    if rules.len() > MAX_RULES {
        return Err(FilterError::TooMany(rules.len()));
    }
    if let Some(long) = rules.iter().position(|rule| rule.pattern.len() > MAX_PATTERN) {
        return Err(FilterError::TooLong(long + 1));
    }
    if rules.iter().map(|rule| rule.pattern.len()).sum::<usize>() > MAX_RULES_BYTES {
        return Err(FilterError::TooMuch);
    }
    Ok(())
}

/// Cuts the blanks at the end, but for one that a backslash takes literally.
fn without_trailing_blanks(text: &[u8]) -> &[u8] {
    let mut end = 0;
    let mut bytes = text.iter().enumerate();
    while let Some((i, &byte)) = bytes.next() {
        match byte {
            b' ' => {}
            b'\\' => end = bytes.next().map_or(i, |(next, _)| next) + 1,
            _ => end = i + 1,
        }
    }
    &text[..end]
}

/// One rule, understood.
#[derive(Clone, Debug)]
struct Pattern {
    includes: bool,
    dirs_only: bool,
    shape: Shape,
}

#[derive(Clone, Debug)]
enum Shape {
    /// Matches the last component, at any depth.
    Name(Box<[Token]>),
    /// Matches the whole path.
    Path(Box<[Segment]>),
}

/// One component of an anchored pattern.
#[derive(Clone, Debug)]
enum Segment {
    /// `**`: any number of components, but at least one at the end of a pattern.
    Any,
    Glob(Box<[Token]>),
}

#[derive(Clone, Debug)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Star,
    /// `[...]`, negation included.
    Class(Box<Class>),
}

impl Pattern {
    /// Reads one pattern; `None` for one that has nothing to match.
    fn parse(text: &[u8]) -> Result<Option<Self>, &'static str> {
        if text.starts_with(b"#") {
            return Ok(None);
        }
        let (includes, text) = match text.strip_prefix(b"!") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (dirs_only, text) = match text.strip_suffix(b"/") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if text.is_empty() {
            return Ok(None);
        }
        let shape = if text.contains(&b'/') {
            Shape::Path(segments(text.strip_prefix(b"/").unwrap_or(text))?)
        } else {
            Shape::Name(glob(&mut text.iter().copied().peekable())?)
        };
        Ok(Some(Self { includes, dirs_only, shape }))
    }

    fn matches(&self, path: &RelPath, name: &[u8]) -> bool {
        match &self.shape {
            Shape::Name(tokens) => matches_name(tokens, name),
            Shape::Path(segments) => matches_path(segments, path.as_bytes()),
        }
    }
}

type Bytes<'a> = std::iter::Peekable<std::iter::Copied<std::slice::Iter<'a, u8>>>;

fn segments(text: &[u8]) -> Result<Box<[Segment]>, &'static str> {
    let mut bytes = text.iter().copied().peekable();
    let mut list = Vec::new();
    loop {
        let tokens = glob(&mut bytes)?;
        // Two or more stars are special only as a whole component; escaped ones are bytes, not stars.
        let any = tokens.len() > 1 && tokens.iter().all(|token| matches!(token, Token::Star));
        list.push(if any { Segment::Any } else { Segment::Glob(tokens) });
        if bytes.next().is_none() {
            return Ok(list.into());
        }
    }
}

/// Reads up to the next slash or the end, and leaves the slash.
fn glob(bytes: &mut Bytes<'_>) -> Result<Box<[Token]>, &'static str> {
    let mut tokens = Vec::new();
    while let Some(byte) = bytes.next_if(|&b| b != b'/') {
        tokens.push(match byte {
            b'*' => Token::Star,
            b'?' => Token::One,
            b'[' => Token::Class(Box::new(Class::parse(bytes)?)),
            // An escaped slash is still one.
            b'\\' if bytes.peek() == Some(&b'/') => continue,
            b'\\' => Token::Byte(bytes.next().ok_or("a backslash at the end takes nothing literally")?),
            byte => Token::Byte(byte),
        });
    }
    Ok(tokens.into())
}

/// A set of bytes.
#[derive(Clone, Debug, Default)]
struct Class([u64; 4]);

impl Class {
    /// Reads what follows `[`, up to and with `]`.
    fn parse(bytes: &mut Bytes<'_>) -> Result<Self, &'static str> {
        const OPEN: &str = "`[` has no `]`";
        let negated = bytes.next_if(|&b| b == b'!' || b == b'^').is_some();
        let mut class = Self::default();
        // The byte that `-` would continue; none right after a range or a named class.
        let mut from = None;
        let mut first = true;
        loop {
            let byte = bytes.next().ok_or(OPEN)?;
            match byte {
                b']' if !first => break,
                b'-' if from.is_some() && bytes.peek().is_some_and(|&b| b != b']') => {
                    let to = literal(bytes).ok_or(OPEN)?;
                    class.add(from.take().unwrap_or(to)..=to);
                }
                b'[' if bytes.peek() == Some(&b':') => match named(bytes)? {
                    Some(members) => {
                        (0..=u8::MAX).filter(members).for_each(|b| class.add(b..=b));
                        from = None;
                    }
                    None => from = Some(class.add_one(b'[')),
                },
                b'\\' => from = Some(class.add_one(bytes.next().ok_or(OPEN)?)),
                byte => from = Some(class.add_one(byte)),
            }
            first = false;
        }
        if negated {
            class.0.iter_mut().for_each(|word| *word = !*word);
        }
        Ok(class)
    }

    fn add(&mut self, range: std::ops::RangeInclusive<u8>) {
        for byte in range {
            self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
        }
    }

    fn add_one(&mut self, byte: u8) -> u8 {
        self.add(byte..=byte);
        byte
    }

    fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }
}

/// The next byte of a class, of which a backslash takes any literally.
fn literal(bytes: &mut Bytes<'_>) -> Option<u8> {
    match bytes.next()? {
        b'\\' => bytes.next(),
        byte => Some(byte),
    }
}

/// Reads `:name:]` after `[` as POSIX has it; if no `:]` closes it, nothing is taken and `[` means itself.
fn named(bytes: &mut Bytes<'_>) -> Result<Option<fn(&u8) -> bool>, &'static str> {
    let ahead: Vec<u8> = bytes.clone().skip(1).take_while(|&b| b != b']').collect();
    let Some(name) = ahead.strip_suffix(b":") else {
        return Ok(None);
    };
    let members: fn(&u8) -> bool = match name {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |b| matches!(b, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |b| matches!(b, b' '..=b'~'),
        b"punct" => u8::is_ascii_punctuation,
        b"space" => |b| matches!(b, b' ' | b'\t'..=b'\r'),
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return Err("unknown class between `[:` and `:]`"),
    };
    // The colon in front, the name with its colon, the bracket.
    bytes.nth(ahead.len() + 1);
    Ok(Some(members))
}

/// Whether a glob without slashes matches a whole name. After a mismatch only the latest star needs to take more:
/// what an earlier one would give up, the later could have taken. So the time is at most length times length.
fn matches_name(tokens: &[Token], name: &[u8]) -> bool {
    let (mut t, mut n) = (0, 0);
    let mut retry = None;
    loop {
        let step = match (tokens.get(t), name.get(n)) {
            (None, None) => return true,
            (Some(Token::Star), _) => {
                retry = Some((t, n));
                t += 1;
                continue;
            }
            (Some(Token::Byte(byte)), Some(b)) => byte == b,
            (Some(Token::One), Some(_)) => true,
            (Some(Token::Class(class)), Some(&b)) => class.has(b),
            _ => false,
        };
        if step {
            (t, n) = (t + 1, n + 1);
        } else if let Some((star, start)) = retry
            && start < name.len()
        {
            retry = Some((star, start + 1));
            (t, n) = (star + 1, start + 1);
        } else {
            return false;
        }
    }
}

/// The same one level up: components for bytes, `**` for the star.
fn matches_path(segments: &[Segment], path: &[u8]) -> bool {
    // What is left of the path; `None` once its last component was taken.
    let mut rest = Some(path);
    let mut s = 0;
    let mut retry = None;
    loop {
        let step = match (segments.get(s), rest) {
            (None, None) => return true,
            // At the end it takes all that is left, and something must be.
            (Some(Segment::Any), Some(_)) if s + 1 == segments.len() => return true,
            (Some(Segment::Any), Some(_)) => {
                retry = Some((s, rest));
                s += 1;
                continue;
            }
            (Some(Segment::Glob(tokens)), Some(left)) => matches_name(tokens, split(left).0),
            _ => false,
        };
        if step {
            (s, rest) = (s + 1, rest.and_then(|left| split(left).1));
        } else if let Some((any, Some(start))) = retry {
            rest = split(start).1;
            retry = Some((any, rest));
            s = any + 1;
        } else {
            return false;
        }
    }
}

/// The first component and what follows its slash.
fn split(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match path.iter().position(|&b| b == b'/') {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(patterns: &[&str]) -> Filter {
        let rules: Vec<_> = patterns.iter().map(|p| Rule { pattern: (*p).to_owned() }).collect();
        Filter::new(&rules).unwrap()
    }

    fn excludes(patterns: &[&str], path: &[u8]) -> bool {
        let (path, is_dir) = match path.strip_suffix(b"/") {
            Some(dir) => (dir, true),
            None => (path, false),
        };
        filter(patterns).excludes(&RelPath::new(path).unwrap(), is_dir)
    }

    /// Each pattern with paths it matches and paths it does not; a slash at the end of a path says directory. It was
    /// checked against `git check-ignore --no-index` 2.47, as were 10,000 random lists of patterns. Git differs only in
    /// `a**/b`, where it sees a whole component although the manual says that these are regular asterisks.
    #[test]
    fn patterns_mean_what_gitignore_says() {
        let table: &[(&str, &[&[u8]], &[&[u8]])] = &[
            ("foo", &[b"foo", b"foo/", b"a/foo", b"a/b/foo/"], &[b"foo.c", b"xfoo", b"foo/x", b"FOO"]),
            ("/foo", &[b"foo", b"foo/"], &[b"a/foo"]),
            ("foo/", &[b"foo/", b"a/foo/"], &[b"foo", b"a/foo"]),
            ("/foo/", &[b"foo/"], &[b"foo", b"a/foo/"]),
            ("a/foo", &[b"a/foo"], &[b"b/a/foo", b"a/b/foo"]),
            ("a/foo/", &[b"a/foo/"], &[b"a/foo"]),
            ("a\\/foo", &[b"a/foo"], &[b"b/a/foo"]),
            ("//foo", &[], &[b"foo"]),
            ("foo//", &[], &[b"foo/"]),
            ("*.o", &[b"x.o", b".o", b"a/b/x.o"], &[b"x.oo", b"xo"]),
            ("*", &[b"a", b".a", b"\xff", b"a/b"], &[]),
            ("a*c", &[b"ac", b"abc", b"abcbc"], &[b"abcb", b"xac"]),
            ("a*b*c*d", &[b"abcd", b"aabbccdd"], &[b"acbd"]),
            ("/*.c", &[b"x.c"], &[b"a/x.c"]),
            ("a/*", &[b"a/b"], &[b"a", b"a/b/c"]),
            ("?", &[b"a", b"d/b"], &[b"", b"ab", "\u{e9}".as_bytes()]),
            ("/a?b", &[b"axb"], &[b"a/b", b"ab"]),
            ("**", &[b"a", b"a/b"], &[]),
            ("**/foo", &[b"foo", b"a/foo", b"a/b/foo"], &[b"foo/x", b"xfoo"]),
            ("a/**", &[b"a/b", b"a/b/c"], &[b"a", b"a/", b"b/a"]),
            ("/**", &[b"a", b"a/b"], &[]),
            ("a/**/b", &[b"a/b", b"a/x/b", b"a/x/y/b"], &[b"ab", b"a/b/c", b"a/xb"]),
            ("a/**/**/b", &[b"a/b", b"a/x/b"], &[b"a"]),
            ("a/**/b/**/c", &[b"a/b/c", b"a/1/b/2/c", b"a/b/b/c"], &[b"a/c", b"a/c/b"]),
            ("a/**/b/*.c", &[b"a/b/x.c", b"a/b/b/x.c", b"a/q/b/x.c"], &[b"a/b/c/x.c"]),
            ("a**/b", &[b"a/b", b"ax/b"], &[b"a/x/b"]),
            ("**a/b", &[b"a/b", b"xa/b"], &[b"x/a/b"]),
            ("a**b", &[b"ab", b"axb", b"d/axxb"], &[b"a/b"]),
            ("***", &[b"a", b"b/a"], &[]),
            ("***/a", &[b"a", b"b/a", b"b/c/a"], &[b"b"]),
            ("\\**/a", &[b"*/a", b"*x/a"], &[b"a", b"x/a"]),
            ("[ab]c", &[b"ac", b"bc"], &[b"cc", b"c", b"abc"]),
            ("[!ab]c", &[b"cc", b"\xffc"], &[b"ac", b"bc", b"c"]),
            ("[^a]", &[b"b"], &[b"a"]),
            ("[a-c]", &[b"a", b"b", b"c"], &[b"d", b"-"]),
            ("[a-c-e]", &[b"b", b"-", b"e"], &[b"d"]),
            ("[]a]", &[b"]", b"a"], &[b"[]a]"]),
            ("[!]a]", &[b"b"], &[b"]", b"a"]),
            ("[a-]", &[b"a", b"-"], &[b"b"]),
            ("[-a]", &[b"a", b"-"], &[b"b"]),
            ("[\\]x]", &[b"]", b"x"], &[b"\\"]),
            ("[a\\-c]", &[b"a", b"-", b"c"], &[b"b", b"\\"]),
            ("[\\a-\\c]", &[b"b"], &[b"\\"]),
            ("[c-a]", &[b"c"], &[b"a", b"b"]),
            ("x/[a/b]", &[b"x/a", b"x/b"], &[b"x/[a/b]", b"a"]),
            ("[[:digit:]x]", &[b"0", b"9", b"x"], &[b"a", b":", b"d"]),
            ("[[:digit:]-x]", &[b"0", b"-", b"x"], &[b"a"]),
            ("[![:space:]]", &[b"a"], &[b" ", b"\t"]),
            ("[[:d]", &[b"[", b":", b"d"], &[b"a"]),
            ("[[]", &[b"["], &[b"]"]),
            ("/x[!a]y", &[b"xby"], &[b"x/y", b"xay"]),
            ("{a,b}", &[b"{a,b}"], &[b"a", b"b"]),
            ("\\*", &[b"*"], &[b"a"]),
            ("\\!a", &[b"!a"], &[b"a"]),
            ("\\#a", &[b"#a"], &[b"a"]),
            ("a b", &[b"a b"], &[b"a"]),
            ("a  ", &[b"a"], &[b"a  "]),
            ("a\\ ", &[b"a "], &[b"a"]),
            ("a\\  ", &[b"a "], &[b"a  ", b"a"]),
            ("a\\\\ ", &[b"a\\"], &[b"a\\ "]),
            (" a", &[b" a"], &[b"a"]),
            ("a\t", &[b"a\t"], &[b"a"]),
            ("caf\u{e9}", &["caf\u{e9}".as_bytes()], &[b"cafe"]),
            ("x*", &[b"x\xff\xfe"], &[]),
            (".git", &[b".git/", b"a/.git"], &[b".gitignore"]),
            ("#a", &[], &[b"#a", b"a"]),
            ("", &[], &[b"a"]),
            ("   ", &[], &[b"a", b"   "]),
            ("!", &[], &[b"!"]),
            ("/", &[], &[b"a/"]),
            ("a\nb", &[b"a\nb"], &[b"a", b"b"]),
        ];
        for (pattern, yes, no) in table {
            for path in *yes {
                assert!(excludes(&[pattern], path), "{pattern:?} should match {}", escape(path));
            }
            for path in *no {
                assert!(!excludes(&[pattern], path), "{pattern:?} should not match {}", escape(path));
            }
        }
    }

    #[test]
    fn the_last_match_wins() {
        let rules = ["*.log", "!keep.log", "/old/keep.log", "tmp/", "!/a/tmp/"];
        let table: [(&[u8], bool); 8] = [
            (b"x.log", true),
            (b"keep.log", false),
            (b"a/keep.log", false),
            (b"old/keep.log", true),
            (b"tmp/", true),
            (b"tmp", false),
            (b"a/tmp/", false),
            (b"b/tmp/", true),
        ];
        for (path, excluded) in table {
            assert_eq!(excludes(&rules, path), excluded, "{}", escape(path));
        }
        assert!(!excludes(&["*"], b""), "the top always belongs to the push");
    }

    #[test]
    fn malformed_patterns_are_errors_with_their_place() {
        for bad in ["[a", "[", "a[]", "[!]", "[a\\", "[a-", "a\\", "[[:nope:]]", "[[:digit:]"] {
            let rules = [Rule { pattern: "fine".into() }, Rule { pattern: bad.into() }];
            let error = Filter::new(&rules).err();
            assert!(matches!(error, Some(FilterError::Pattern { number: 2, .. })), "{bad:?}: {error:?}");
        }
        let rules = [Rule { pattern: "\u{1b}[31m".into() }];
        assert_eq!(Filter::new(&rules).unwrap_err().to_string(), "filter rule 1 `\\x1b[31m`: `[` has no `]`");
    }

    #[test]
    fn bounds_hold() {
        let rule = |len| Rule { pattern: "a".repeat(len) };
        assert!(Filter::new(&vec![rule(1); MAX_RULES]).is_ok());
        assert_eq!(Filter::new(&vec![rule(1); MAX_RULES + 1]).err(), Some(FilterError::TooMany(MAX_RULES + 1)));
        assert!(Filter::new(&[rule(MAX_PATTERN)]).is_ok());
        assert_eq!(Filter::new(&[rule(1), rule(MAX_PATTERN + 1)]).err(), Some(FilterError::TooLong(2)));
        let many = MAX_RULES_BYTES / MAX_PATTERN;
        assert!(Filter::new(&vec![rule(MAX_PATTERN); many]).is_ok());
        assert_eq!(Filter::new(&vec![rule(MAX_PATTERN); many + 1]).err(), Some(FilterError::TooMuch));
    }

    /// A matcher that backtracks over every star would need longer than the universe is old.
    #[test]
    fn many_stars_cost_no_explosion() {
        let name = format!("{}b", "a".repeat(200));
        assert!(!excludes(&[&"*a".repeat(100)], name.as_bytes()));
        let deep = format!("{}b", "a/".repeat(400));
        assert!(!excludes(&[&format!("{}c", "**/a/".repeat(50))], deep.as_bytes()));
        assert!(excludes(&[&format!("{}b", "**/a/".repeat(50))], deep.as_bytes()));
    }

    #[test]
    fn comments_and_blanks_are_no_rules() {
        assert!(filter(&[]).is_empty() && filter(&["# note", "", "  "]).is_empty());
        assert!(!filter(&["# note", "a "]).is_empty());
    }
}
