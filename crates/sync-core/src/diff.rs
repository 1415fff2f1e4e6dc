//! What differs: between two versions of one entry, in rsync's letters, and between two listings of one directory.

use std::cmp::Ordering;

use crate::hash::Digest;
use crate::manifest::{Entry, Kind};
use crate::monitor::{Arrow, How, Item};
use crate::path::RelPath;
use crate::plan::Action;

/// The code of a deleted entry, as wide as the others.
pub const DELETING: &str = "*deleting  ";

/// The code that `rsync -aHAXS --numeric-ids -i --delete` 3.5 prints for a change: eleven letters `YXcstpoguax`, of
/// which rsync(1) tells the meaning under `--itemize-changes`. `None` if nothing would be printed: an entry that is as
/// it was, or a further name of a file whose change its first name tells. The tests hold what rsync was seen to print.
///
/// Differences, each where rsync has nothing to say or knows less:
/// - Content that was made from another file of the replica (moved or copied, not sent) has the update type `c`: `cf`.
/// - A file whose content differs although size and time are equal has the letter `c`, which rsync shows, and notices,
///   only with `--checksum`. Otherwise size or time tell, as in rsync.
/// - A file of which only the time differs was not sent: `.f..t......`, as rsync prints with `--checksum`.
/// - Times differ by the nanosecond.
/// - A device that becomes the other kind with the same numbers is made anew: `cDc........`.
pub fn itemize(old: Option<&Entry>, new: Option<&Entry>, action: &Action) -> Option<String> {
    let Some(new) = new else {
        return old.map(|_| DELETING.to_owned());
    };
    let update = match action {
        Action::Delete => return Some(DELETING.to_owned()),
        Action::Content => '>',
        Action::Move { .. } | Action::MoveDir { .. } => 'c',
        // An empty file: rsync takes it for one that is sent.
        Action::Make if new.content().is_some() => '>',
        Action::Copy { .. } | Action::Make | Action::MakeDir => 'c',
        Action::Link { .. } => 'h',
        Action::Metadata => '.',
    };
    let letter = letter(&new.kind);
    // rsync compares with whatever had the name before it is linked over, unless that was a directory.
    let comparable = |old: &&Entry| letter == self::letter(&old.kind) || (update == 'h' && !old.is_dir());
    let Some(old) = old.filter(comparable) else {
        return Some(format!("{update}{letter}+++++++++"));
    };
    if update == '.' && new.link.is_some() && new.link == old.link {
        return None;
    }
    let letters = letters(old, new, update);
    let nothing = letters == ['.'; 9];
    match (update, nothing) {
        ('.', true) => None,
        // Blanks say that the inode is another, and nothing about it is.
        ('h', true) => Some(format!("h{letter}         ")),
        ('c', true) if letter == 'f' => Some("cf         ".to_owned()),
        _ => Some([update, letter].into_iter().chain(letters).collect()),
    }
}

/// The line of one step for `--itemize-changes`, with the arrow that rsync prints after a link's name; `None` as in
/// [`itemize`]. A directory's name gets its slash from whoever prints it.
pub fn item(path: &RelPath, old: Option<&Entry>, new: Option<&Entry>, action: &Action) -> Option<Item> {
    let code = itemize(old, new, action)?;
    let target = match (action, new.map(|entry| &entry.kind)) {
        (Action::Link { first }, _) => Some((Arrow::HardLink, first.as_bytes().to_vec())),
        (_, Some(Kind::Symlink { target })) => Some((Arrow::Symlink, target.to_vec())),
        _ => None,
    };
    Some(Item { code, path: path.clone(), target, how: how(old, new, action), literal: None })
}

fn how(old: Option<&Entry>, new: Option<&Entry>, action: &Action) -> How {
    let size = |entry: Option<&Entry>| entry.and_then(Entry::content).map(|(size, _)| size);
    let all = size(new).unwrap_or(0);
    match action {
        Action::Metadata => How::Metadata,
        Action::Content => How::Content { size: all, old: size(old) },
        Action::Move { from } | Action::MoveDir { from } => How::Moved { from: from.clone(), size: all },
        Action::Copy { from } => How::Copied { from: from.clone(), size: all },
        Action::Make | Action::MakeDir => How::Made,
        Action::Link { .. } => How::Linked,
        Action::Delete => How::Deleted { dir: old.is_some_and(Entry::is_dir), moved_to: None },
    }
}

/// rsync's letter for a kind.
fn letter(kind: &Kind) -> char {
    match kind {
        Kind::Dir => 'd',
        Kind::File { .. } => 'f',
        Kind::Symlink { .. } => 'L',
        Kind::Fifo | Kind::Socket => 'S',
        Kind::CharDev { .. } | Kind::BlockDev { .. } => 'D',
    }
}

/// `cstpoguax`, each its letter or a dot.
fn letters(old: &Entry, new: &Entry, update: char) -> [char; 9] {
    let (size, time) = (length(&old.kind) != length(&new.kind), old.mtime != new.mtime);
    let is_file = new.content().is_some();
    let value = match update {
        'h' => false,
        _ if is_file => !size && !time && old.content() != new.content(),
        _ => old.kind != new.kind,
    };
    // Linking a name gives it the ACL before rsync compares.
    let acl = update != 'h' && !matches!(new.kind, Kind::Symlink { .. }) && acl_differs(old, new);
    // As rsync tells in a dry run; in a real one it has set an ACL before it compares, and finds the mode equal.
    let mode = old.mode != new.mode;
    let xattrs = !plain_xattrs(old).eq(plain_xattrs(new));
    let shown = |letter, differs| if differs { letter } else { '.' };
    [
        shown('c', value),
        shown('s', is_file && size),
        shown('t', time),
        shown('p', mode),
        shown('o', old.uid != new.uid),
        shown('g', old.gid != new.gid),
        '.',
        shown('a', acl),
        shown('x', xattrs),
    ]
}

/// What `stat` gives as the size of what rsync compares a file with; nothing with a size of its own counts as empty.
fn length(kind: &Kind) -> u64 {
    match kind {
        Kind::File { size, .. } => *size,
        Kind::Symlink { target } => target.len() as u64,
        _ => 0,
    }
}

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Extended attributes other than ACLs.
fn plain_xattrs(entry: &Entry) -> impl Iterator<Item = &(Box<[u8]>, Box<[u8]>)> {
    entry.xattrs.iter().filter(|(name, _)| ![ACCESS_ACL, DEFAULT_ACL].contains(&&**name))
}

fn xattr<'a>(entry: &'a Entry, name: &[u8]) -> Option<&'a [u8]> {
    entry.xattrs.iter().find(|(found, _)| **found == *name).map(|(_, value)| &**value)
}

/// Whether anything differs in the ACLs that the mode does not show already.
fn acl_differs(old: &Entry, new: &Entry) -> bool {
    xattr(old, DEFAULT_ACL) != xattr(new, DEFAULT_ACL)
        || beyond_mode(xattr(old, ACCESS_ACL)) != beyond_mode(xattr(new, ACCESS_ACL))
}

/// The entries of an access ACL (`struct posix_acl_xattr_entry` in the kernel's `posix_acl_xattr.h`: tag, permissions
/// and id, little endian, after a version of four bytes) that the mode does not hold: those of named users and groups,
/// and the owning group's if there is a mask. Of anything else that calls itself an ACL, all its bytes.
fn beyond_mode(acl: Option<&[u8]>) -> Vec<&[u8]> {
    const USER_OBJ: u8 = 0x01;
    const GROUP_OBJ: u8 = 0x04;
    const MASK: u8 = 0x10;
    const OTHER: u8 = 0x20;
    let Some(acl) = acl else {
        return Vec::new();
    };
    let entries = match acl.split_at_checked(4) {
        Some(([2, 0, 0, 0], rest)) if rest.len() % 8 == 0 => rest,
        _ => return vec![acl],
    };
    let tag = |entry: &[u8]| entry.first().copied().unwrap_or(0);
    let masked = entries.chunks_exact(8).any(|entry| tag(entry) == MASK);
    entries
        .chunks_exact(8)
        .filter(|entry| match tag(entry) {
            // Beside a mask, it is the mask that the mode's group bits show.
            GROUP_OBJ => masked,
            USER_OBJ | MASK | OTHER => false,
            _ => true,
        })
        .collect()
}

/// One entry of a directory's listing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Child {
    /// One name, without slashes.
    pub name: Box<[u8]>,
    /// Of a directory the hash with everything beneath it, else the same as `own`.
    pub hash: Digest,
    /// The hash of the entry alone.
    pub own: Digest,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// What two listings of one directory disagree in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference<'a> {
    /// Only the left side has the name; if it is a directory, with everything beneath.
    OnlyLeft(&'a Child),
    /// Only the right side has the name; if it is a directory, with everything beneath.
    OnlyRight(&'a Child),
    /// The entries themselves differ. If just one is a directory, what is beneath it is on that side only.
    Changed {
        /// The one.
        left: &'a Child,
        /// The other.
        right: &'a Child,
    },
    /// Both are directories and something is different in them, or beneath: compare their listings. If the entries
    /// differ themselves, a [`Difference::Changed`] comes before, and then the listings may prove equal.
    Descend {
        /// The one.
        left: &'a Child,
        /// The other.
        right: &'a Child,
    },
}

/// Compares two listings, both sorted bytewise by name without duplicates, in the order of names.
///
/// Time is linear and nothing is kept. An unsorted listing gives wrong differences, and no panic.
pub fn compare_children<'a>(left: &'a [Child], right: &'a [Child]) -> impl Iterator<Item = Difference<'a>> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    let mut descend = None;
    std::iter::from_fn(move || {
        if let Some(pair) = descend.take() {
            return Some(pair);
        }
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(l), Some(r)) => l.name.cmp(&r.name),
            };
            match order {
                Ordering::Less => return left.next().map(Difference::OnlyLeft),
                Ordering::Greater => return right.next().map(Difference::OnlyRight),
                Ordering::Equal => {}
            }
            let (left, right) = (left.next()?, right.next()?);
            if left.is_dir && right.is_dir && left.hash != right.hash {
                descend = Some(Difference::Descend { left, right });
            }
            if left.own != right.own || left.is_dir != right.is_dir {
                return Some(Difference::Changed { left, right });
            }
            if descend.is_some() {
                return descend.take();
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Time;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(kind: Kind, mode: u32) -> Entry {
        let mtime = Time { sec: 1_000_000_000, nsec: 0 };
        Entry { kind, mode, uid: 0, gid: 0, mtime, xattrs: Box::default(), link: None }
    }

    fn file(content: &str) -> Entry {
        let kind = Kind::File { size: content.len() as u64, digest: Digest::of(content.as_bytes()) };
        entry(kind, 0o644)
    }

    fn dir() -> Entry {
        entry(Kind::Dir, 0o755)
    }

    fn link(target: &str) -> Entry {
        entry(Kind::Symlink { target: target.as_bytes().into() }, 0o777)
    }

    fn fifo() -> Entry {
        entry(Kind::Fifo, 0o644)
    }

    fn char_dev(minor: u32) -> Entry {
        entry(Kind::CharDev { major: 1, minor }, 0o644)
    }

    fn block_dev(minor: u32) -> Entry {
        entry(Kind::BlockDev { major: 1, minor }, 0o644)
    }

    fn mode(mut entry: Entry, mode: u32) -> Entry {
        entry.mode = mode;
        entry
    }

    fn own(mut entry: Entry, uid: u32, gid: u32) -> Entry {
        (entry.uid, entry.gid) = (uid, gid);
        entry
    }

    fn later(mut entry: Entry) -> Entry {
        entry.mtime.sec += 1;
        entry
    }

    fn with(mut entry: Entry, name: &[u8], value: &[u8]) -> Entry {
        let mut xattrs = entry.xattrs.into_vec();
        xattrs.push((name.into(), value.into()));
        xattrs.sort();
        entry.xattrs = xattrs.into();
        entry
    }

    fn user(entry: Entry) -> Entry {
        with(entry, b"user.a", b"1")
    }

    fn linked(mut entry: Entry) -> Entry {
        entry.link = Some(RelPath::new("f").unwrap());
        entry
    }

    /// The bytes of an ACL: the owner, user `id`, the group, the mask, others.
    fn acl(user: u8, (id, named): (u8, u8), group: u8, mask: u8, other: u8) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, perm, id) in
            [(1, user, None), (2, named, Some(id)), (4, group, None), (0x10, mask, None), (0x20, other, None)]
        {
            bytes.extend_from_slice(&[tag, 0, perm, 0]);
            bytes.extend_from_slice(&id.map_or([255; 4], |id| [id, 0, 0, 0]));
        }
        bytes
    }

    fn access(entry: Entry, value: &[u8]) -> Entry {
        with(entry, ACCESS_ACL, value)
    }

    /// Checks (what it is, old, new, action, code).
    fn check(table: &[(&str, Option<Entry>, Option<Entry>, Action, Option<&str>)]) {
        for (name, old, new, action, code) in table {
            let found = itemize(old.as_ref(), new.as_ref(), action);
            assert_eq!(found.as_deref(), *code, "{name}");
            assert!(code.is_none_or(|code| code.len() == 11), "{name}");
        }
    }

    fn to_f() -> Action {
        Action::Link { first: RelPath::new("f").unwrap() }
    }

    fn from_o() -> Action {
        Action::Copy { from: RelPath::new("o").unwrap() }
    }

    use Action::{Content, Delete, Make, MakeDir, Metadata};

    /// What rsync 3.5.0 printed as root on Linux for `rsync -aHAXS --numeric-ids -i --delete s/ d/`.
    #[test]
    fn new_names_and_changes_of_kind() {
        check(&[
            ("file", None, Some(file("a")), Content, Some(">f+++++++++")),
            ("directory", None, Some(dir()), MakeDir, Some("cd+++++++++")),
            ("symlink", None, Some(link("a")), Make, Some("cL+++++++++")),
            ("fifo", None, Some(fifo()), Make, Some("cS+++++++++")),
            ("socket", None, Some(entry(Kind::Socket, 0o755)), Make, Some("cS+++++++++")),
            ("character device", None, Some(char_dev(3)), Make, Some("cD+++++++++")),
            ("block device", None, Some(block_dev(0)), Make, Some("cD+++++++++")),
            ("further name of a file", None, Some(linked(file("a"))), to_f(), Some("hf+++++++++")),
            ("further name of a symlink", None, Some(linked(link("a"))), to_f(), Some("hL+++++++++")),
            ("further name of a fifo", None, Some(linked(fifo())), to_f(), Some("hS+++++++++")),
            ("further name of a device", None, Some(linked(char_dev(3))), to_f(), Some("hD+++++++++")),
            ("with ACL and xattr", None, Some(user(file("a"))), Content, Some(">f+++++++++")),
            ("deleted file", Some(file("a")), None, Delete, Some("*deleting  ")),
            ("deleted directory", Some(dir()), None, Delete, Some("*deleting  ")),
            ("fifo to device", Some(fifo()), Some(char_dev(3)), Make, Some("cD+++++++++")),
            ("file to symlink", Some(file("a")), Some(link("a")), Make, Some("cL+++++++++")),
            ("symlink to file", Some(link("a")), Some(file("a")), Content, Some(">f+++++++++")),
            ("file to directory", Some(file("a")), Some(dir()), MakeDir, Some("cd+++++++++")),
            ("directory to file", Some(dir()), Some(file("a")), Content, Some(">f+++++++++")),
            ("directory to symlink", Some(dir()), Some(link("a")), Make, Some("cL+++++++++")),
            ("file to fifo", Some(file("a")), Some(fifo()), Make, Some("cS+++++++++")),
            ("symlink to directory", Some(link("a")), Some(dir()), MakeDir, Some("cd+++++++++")),
            ("device to file", Some(char_dev(3)), Some(file("a")), Content, Some(">f+++++++++")),
        ]);
    }

    #[test]
    fn files_and_directories() {
        let f = || Some(file("a"));
        let d = || Some(dir());
        check(&[
            ("content, same size", Some(later(file("b"))), f(), Content, Some(">f..t......")),
            ("content and size", Some(later(file("b"))), Some(file("aa")), Content, Some(">f.st......")),
            ("content and size, same time", Some(file("b")), Some(file("aa")), Content, Some(">f.s.......")),
            ("content, same size and time (-c)", Some(file("b")), f(), Content, Some(">fc........")),
            ("time (-c)", Some(later(file("a"))), f(), Metadata, Some(".f..t......")),
            ("mode", f(), Some(mode(file("a"), 0o600)), Metadata, Some(".f...p.....")),
            ("setuid", Some(mode(file("a"), 0o755)), Some(mode(file("a"), 0o4755)), Metadata, Some(".f...p.....")),
            ("owner", f(), Some(own(file("a"), 5, 0)), Metadata, Some(".f....o....")),
            ("group", f(), Some(own(file("a"), 0, 5)), Metadata, Some(".f.....g...")),
            ("xattr", f(), Some(user(file("a"))), Metadata, Some(".f........x")),
            ("xattr removed", Some(user(file("a"))), f(), Metadata, Some(".f........x")),
            ("capability", f(), Some(with(file("a"), b"security.capability", b"1")), Metadata, Some(".f........x")),
            ("directory's time", Some(later(dir())), d(), Metadata, Some(".d..t......")),
            ("directory's mode, owner", d(), Some(own(mode(dir(), 0o700), 5, 6)), Metadata, Some(".d...pog...")),
            ("directory's xattr", d(), Some(user(dir())), Metadata, Some(".d........x")),
            ("nothing", f(), f(), Metadata, None),
            ("nothing", d(), d(), Metadata, None),
        ]);
    }

    #[test]
    fn links_and_special_files() {
        let l = || Some(link("a"));
        check(&[
            ("target", Some(link("b")), l(), Make, Some("cLc........")),
            ("target and time", Some(later(link("b"))), l(), Make, Some("cLc.t......")),
            ("target's length", Some(later(link("b"))), Some(link("aa")), Make, Some("cLc.t......")),
            ("symlink's time", Some(later(link("a"))), l(), Metadata, Some(".L..t......")),
            ("symlink's owner", l(), Some(own(link("a"), 5, 6)), Metadata, Some(".L....og...")),
            ("symlink's xattr", l(), Some(user(link("a"))), Metadata, Some(".L........x")),
            ("fifo's time and mode", Some(later(fifo())), Some(mode(fifo(), 0o600)), Metadata, Some(".S..tp.....")),
            ("fifo's time", Some(later(fifo())), Some(fifo()), Metadata, Some(".S..t......")),
            ("fifo's xattr", Some(fifo()), Some(user(fifo())), Metadata, Some(".S........x")),
            ("fifo to socket", Some(fifo()), Some(entry(Kind::Socket, 0o755)), Make, Some("cSc..p.....")),
            ("socket to fifo", Some(entry(Kind::Socket, 0o644)), Some(fifo()), Make, Some("cSc........")),
            ("device's numbers", Some(char_dev(5)), Some(char_dev(3)), Make, Some("cDc........")),
            ("block to character", Some(block_dev(5)), Some(char_dev(3)), Make, Some("cDc........")),
            ("all of it", Some(later(block_dev(1))), Some(mode(block_dev(0), 0o600)), Make, Some("cDc.tp.....")),
            ("owner, xattr", Some(char_dev(3)), Some(own(user(char_dev(3)), 5, 0)), Metadata, Some(".D....o...x")),
        ]);
    }

    #[test]
    fn hard_links() {
        let g = || Some(linked(file("a")));
        let before = || Some(linked(file("b")));
        check(&[
            ("equal file becomes a link", Some(file("a")), g(), to_f(), Some("hf         ")),
            ("other file becomes a link", Some(later(file("bb"))), g(), to_f(), Some("hf.st......")),
            ("other mode", Some(mode(file("b"), 0o600)), g(), to_f(), Some("hf...p.....")),
            ("content of the group", Some(linked(file("bb"))), g(), to_f(), Some("hf.s.......")),
            ("time of the group", Some(later(linked(file("a")))), g(), to_f(), Some("hf..t......")),
            ("mode of the group", Some(mode(linked(file("a")), 0o600)), g(), Metadata, None),
            ("content, same size and time", before(), g(), to_f(), Some("hf         ")),
            ("target of the group", Some(linked(link("b"))), Some(linked(link("a"))), to_f(), Some("hL         ")),
            ("numbers of the group", Some(linked(char_dev(5))), Some(linked(char_dev(3))), to_f(), Some("hD         ")),
            ("fifo becomes a link", Some(fifo()), g(), to_f(), Some("hf.s.......")),
            ("device becomes a link", Some(char_dev(3)), g(), to_f(), Some("hf.s.......")),
            ("symlink becomes a link", Some(later(link("qq"))), g(), to_f(), Some("hf.stp.....")),
            ("file becomes a link", Some(file("a")), Some(linked(link("a"))), to_f(), Some("hL...p.....")),
        ]);
        let new = own(mode(user(linked(file("a"))), 0o664), 5, 5);
        let new = access(new, &acl(6, (5, 6), 4, 6, 4));
        check(&[("attributes", Some(file("a")), Some(new), to_f(), Some("hf...pog..x"))]);
    }

    #[test]
    fn access_control_lists() {
        let a = acl(6, (5, 6), 4, 6, 4);
        let f = |bits, acl: &[u8]| Some(access(mode(file("a"), bits), acl));
        let plain = |bits| Some(mode(file("a"), bits));
        let d = |bits, acl: &[u8]| Some(access(mode(dir(), bits), acl));
        let default = |acl: &[u8]| Some(with(dir(), DEFAULT_ACL, acl));
        let wide = acl(6, (5, 7), 4, 7, 4);
        let masked = [&a[..12], &acl(6, (5, 6), 4, 4, 4)[20..]].concat();
        check(&[
            ("added", plain(0o664), f(0o664, &a), Metadata, Some(".f.......a.")),
            ("removed", f(0o664, &a), plain(0o664), Metadata, Some(".f.......a.")),
            ("added, other mode", plain(0o600), f(0o674, &wide), Metadata, Some(".f...p...a.")),
            ("added, setuid gone", plain(0o4664), f(0o664, &a), Metadata, Some(".f...p...a.")),
            ("removed, other mode", f(0o664, &a), plain(0o600), Metadata, Some(".f...p...a.")),
            ("mask only", f(0o664, &a), f(0o644, &acl(6, (5, 6), 4, 4, 4)), Metadata, Some(".f...p.....")),
            ("others only", f(0o664, &a), f(0o660, &acl(6, (5, 6), 4, 6, 0)), Metadata, Some(".f...p.....")),
            ("owner only", f(0o664, &a), f(0o764, &acl(7, (5, 6), 4, 6, 4)), Metadata, Some(".f...p.....")),
            ("group only", f(0o664, &a), f(0o664, &acl(6, (5, 6), 0, 6, 4)), Metadata, Some(".f.......a.")),
            ("user and others", f(0o664, &a), f(0o660, &acl(6, (6, 6), 4, 6, 0)), Metadata, Some(".f...p...a.")),
            ("a mask without names", plain(0o644), f(0o644, &masked), Metadata, Some(".f.......a.")),
            ("sent, other mode", Some(mode(file("bb"), 0o600)), f(0o674, &wide), Content, Some(">f.s.p...a.")),
            ("fifo", Some(fifo()), Some(access(mode(fifo(), 0o674), &wide)), Metadata, Some(".S...p...a.")),
            ("directory", Some(mode(dir(), 0o700)), d(0o775, &wide), Metadata, Some(".d...p...a.")),
            ("default added", Some(dir()), default(&a), Metadata, Some(".d.......a.")),
            ("default changed", default(&a), default(&acl(6, (5, 6), 4, 4, 4)), Metadata, Some(".d.......a.")),
            ("default removed", default(&a), Some(dir()), Metadata, Some(".d.......a.")),
            ("unreadable", f(0o644, b"\x03\0\0\0"), f(0o644, b"\x02\0\0\0?"), Metadata, Some(".f.......a.")),
        ]);
        let all = access(own(mode(user(file("aaa")), 0o664), 5, 6), &a);
        check(&[("everything", Some(later(mode(file("b"), 0o600))), Some(all), Content, Some(">f.stpog.ax"))]);
    }

    /// What rsync cannot say, because it does not do it.
    #[test]
    fn moves_and_copies_are_local_changes_of_files() {
        check(&[
            ("copied", None, Some(file("a")), from_o(), Some("cf+++++++++")),
            ("moved", None, Some(file("a")), Action::Move { from: RelPath::new("o").unwrap() }, Some("cf+++++++++")),
            ("over another", Some(later(file("bb"))), Some(file("a")), from_o(), Some("cf.st......")),
            ("over one of equal size and time", Some(file("b")), Some(file("a")), from_o(), Some("cfc........")),
            (
                "a link that is a file of its own now",
                Some(linked(file("a"))),
                Some(file("a")),
                from_o(),
                Some("cf         "),
            ),
            ("over a directory", Some(dir()), Some(file("a")), from_o(), Some("cf+++++++++")),
        ]);
        let mut moment = file("a");
        moment.mtime.nsec = 1;
        check(&[("a nanosecond", Some(file("a")), Some(moment), Metadata, Some(".f..t......"))]);
    }

    #[test]
    fn names_are_followed_by_what_they_lead_to() {
        let path = RelPath::new("x").unwrap();
        let arrow = |new: Option<&Entry>, action: &Action| item(&path, None, new, action).unwrap().target;
        assert_eq!(arrow(Some(&link("a")), &Make), Some((Arrow::Symlink, b"a".to_vec())));
        assert_eq!(arrow(Some(&linked(link("a"))), &to_f()), Some((Arrow::HardLink, b"f".to_vec())));
        assert_eq!(arrow(Some(&linked(file("a"))), &to_f()), Some((Arrow::HardLink, b"f".to_vec())));
        assert_eq!(arrow(Some(&file("a")), &Content), None);
        assert_eq!(item(&path, Some(&link("a")), None, &Delete).unwrap().target, None);
    }

    fn child(name: &str, own: u8, beneath: Option<u8>) -> Child {
        let own = Digest::of(&[own]);
        let hash = beneath.map_or(own, |b| Digest::of(&[own.0[0], b]));
        Child { name: name.as_bytes().into(), hash, own, is_dir: beneath.is_some() }
    }

    #[test]
    fn listings_are_merged_by_name() {
        let left = [
            child("a", 1, None),
            child("c", 1, None),
            child("d", 1, Some(1)),
            child("e", 1, Some(1)),
            child("f", 1, Some(1)),
            child("g", 1, Some(1)),
            child("h", 1, Some(1)),
        ];
        let right = [
            child("b", 1, None),
            child("c", 2, None),
            child("d", 1, Some(1)),
            child("e", 1, Some(2)),
            child("f", 2, Some(2)),
            child("g", 1, None),
            child("i", 1, Some(1)),
        ];
        use Difference::*;
        let both = |i: usize| (&left[i], &right[i]);
        let changed = |(left, right)| Changed { left, right };
        let descend = |(left, right)| Descend { left, right };
        let found: Vec<_> = compare_children(&left, &right).collect();
        assert_eq!(
            found,
            [
                OnlyLeft(&left[0]),
                OnlyRight(&right[0]),
                changed(both(1)),
                descend(both(3)),
                changed(both(4)),
                descend(both(4)),
                changed(both(5)),
                OnlyLeft(&left[6]),
                OnlyRight(&right[6]),
            ]
        );
    }

    proptest! {
        /// Each name is told about exactly as a look-up in both listings would.
        #[test]
        fn every_difference_is_found(
            left in proptest::collection::btree_map(0u8..12, (0u8..2, proptest::option::of(0u8..2)), 0..12),
            right in proptest::collection::btree_map(0u8..12, (0u8..2, proptest::option::of(0u8..2)), 0..12),
        ) {
            type Side = BTreeMap<u8, (u8, Option<u8>)>;
            let listing = |side: &Side| -> Vec<Child> {
                side.iter().map(|(name, &(own, beneath))| child(&char::from(b'a' + name).to_string(), own, beneath)).collect()
            };
            let mut expected = Vec::new();
            for name in left.keys().chain(right.keys()).collect::<std::collections::BTreeSet<_>>() {
                match (left.get(name), right.get(name)) {
                    (Some(_), None) => expected.push((*name, '<')),
                    (None, Some(_)) => expected.push((*name, '>')),
                    (Some(l), Some(r)) => {
                        if l.0 != r.0 || l.1.is_some() != r.1.is_some() {
                            expected.push((*name, '!'));
                        }
                        if l.1.is_some() && r.1.is_some() && l != r {
                            expected.push((*name, 'v'));
                        }
                    }
                    (None, None) => {}
                }
            }
            let (l, r) = (listing(&left), listing(&right));
            let found: Vec<_> = compare_children(&l, &r).map(|difference| {
                let (child, mark) = match difference {
                    Difference::OnlyLeft(child) => (child, '<'),
                    Difference::OnlyRight(child) => (child, '>'),
                    Difference::Changed { left, .. } => (left, '!'),
                    Difference::Descend { left, .. } => (left, 'v'),
                };
                (child.name[0] - b'a', mark)
            }).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
