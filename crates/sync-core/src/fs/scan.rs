//! A walk over a tree that proves what it says: every entry with its `stat`, in tree order, and nothing outside.
//!
//! One `statx` for each entry, and nothing but directories is ever opened, by single names that are never followed as
//! links. A listing is believed to be whole only if the directory's ctime was the same before and after it and everything in
//! it was looked at; otherwise the directory is listed again, and one that never rests is said to be [`Scanned::Restless`].
//! What cannot be known is said to be [`Scanned::Held`]: its absence from the walk proves nothing. The walk takes no
//! recursion and a bounded number of descriptors, however deep or wide the tree; its memory is what the directories on the way
//! to the current entry hold, and what other threads have listed [ahead] of it.
//!
//! Each listing is true for the moment it was made. A file renamed during the walk from a directory that is still to
//! come into one that was already listed is in neither: only a watch, or the next walk, finds it.

mod ahead;

use std::cell::OnceCell;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, openat, seek};
use rustix::io::Errno;

use super::error::{FsError, is_gone};
use super::root::Root;
use super::stat::{FileType, Stat};
use super::{STAGING_NAME, clock};
use crate::filter::Filter;
use crate::path::{Key, KeyBuf, MAX_NAME, MAX_PATH, RelPath, escape};
use ahead::Ahead;

/// How often a directory that keeps changing is listed before what was seen of it is taken for what can be.
const TRIES: u32 = 8;

/// Most directories that a walk holds open, whatever the depth.
const OPEN: usize = 64;

/// What is listed in one system call: some two thousand names.
const LISTING_BYTES: usize = 64 << 10;

/// What a walk leaves out.
#[derive(Clone, Debug)]
pub struct ScanOptions<'a> {
    /// Excluded entries are neither visited nor descended into.
    pub filter: &'a Filter,
    /// Leave out what is mounted below the top.
    pub one_file_system: bool,
    /// Directories to leave out by device and inode number, such as the state directory.
    pub leave_out: Vec<(u64, u64)>,
    /// What to do about entries called [`STAGING_NAME`].
    pub reserved: Reserved,
}

/// What to do about entries called [`STAGING_NAME`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// Pass over in silence: on a replica they are our own.
    Skip,
    /// Hold them: in a source nobody may have them.
    Hold,
}

/// What a walk meets.
#[derive(Debug)]
pub enum Scanned<'a> {
    /// An entry.
    Entry(Seen<'a>),
    /// The error's path, and whatever is or should be beneath it, could not be looked at or not wholly: nothing there
    /// may be taken for absent. If it is a directory, its own entry may have come right before.
    Held(FsError),
    /// The directory, whose entry came right before, changed whenever it was listed: what the walk meets in it is there, and
    /// nothing may be taken for absent that was directly in it.
    Restless(RelPath),
    /// Something the options leave out; nothing beneath it is visited.
    LeftOut {
        /// Where it is.
        path: RelPath,
        /// Why it is left out.
        why: LeftOut,
    },
}

/// Why something is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// It is one of [`ScanOptions::leave_out`].
    Asked,
    /// It is mounted, and [`ScanOptions::one_file_system`] is set.
    Mount,
}

/// An entry at the moment it was looked at.
#[derive(Debug)]
pub struct Seen<'a> {
    at: &'a KeyBuf,
    path: OnceCell<RelPath>,
    /// The directory that holds it; for the top, the top itself.
    pub dir: BorrowedFd<'a>,
    /// Its name in `dir`; `.` for the top.
    pub name: &'a CStr,
    /// What it is.
    pub stat: Stat,
    /// Whether something is mounted here.
    pub mount: bool,
}

impl<'a> Seen<'a> {
    /// An entry that no walk has met: on the mount of its directory.
    pub(crate) fn alone(at: &'a KeyBuf, dir: BorrowedFd<'a>, name: &'a CStr, stat: Stat) -> Self {
        Self { at, path: OnceCell::new(), dir, name, stat, mount: false }
    }
}

impl Seen<'_> {
    /// Where it is, as an index has it.
    pub fn key(&self) -> Key<'_> {
        self.at.key()
    }

    /// Where it is. Made when it is first asked for: of most entries nobody does.
    pub fn path(&self) -> &RelPath {
        self.path.get_or_init(|| self.at.path())
    }
}

/// Walks the tree beneath `root` and calls `visit` for everything in it: the top first, then in tree order, until it
/// breaks.
///
/// # Errors
/// [`FsError`] if the top directory itself cannot be listed. Everything beneath is reported through `visit`.
pub fn scan<B>(
    root: &Root,
    options: &ScanOptions<'_>,
    visit: &mut dyn FnMut(Scanned<'_>) -> ControlFlow<B>,
) -> Result<ControlFlow<B>, FsError> {
    let lister = Lister { root, options };
    let mut buffer = vec![MaybeUninit::uninit(); LISTING_BYTES];
    let top = RelPath::root();
    let fd = Arc::new(root.open_dir(&top)?);
    let listing = lister.list(&top, fd.as_fd(), None, &mut buffer)?;
    let ahead = Ahead::new(&lister);
    Ok(std::thread::scope(|scope| {
        let _walking = ahead.begin(scope);
        let mut walk = Walk { lister: &lister, ahead: &ahead, visit, buffer, stack: Vec::new(), at: KeyBuf::new() };
        let frame = walk.announce(root.fd(), c".", false, listing, fd)?;
        walk.stack.push(frame);
        walk.run()
    }))
}

/// Names with what was found under each, in the order of the names once they are sorted. What is found is large, and the
/// names are short: neither is moved to sort them, and none has an allocation of its own.
#[derive(Default)]
struct Children {
    /// One after the other, each with a NUL at its end.
    names: Vec<u8>,
    found: Vec<Found>,
    order: Vec<Child>,
    /// How many of them were taken.
    taken: usize,
}

/// A name in [`Children::names`], and the place in [`Children::found`].
#[derive(Clone, Copy)]
struct Child {
    start: usize,
    len: usize,
    found: usize,
}

impl Child {
    fn name(self, names: &[u8]) -> Option<&CStr> {
        CStr::from_bytes_with_nul(&names[self.start..][..self.len]).ok()
    }
}

impl Children {
    fn push(&mut self, name: &CStr, found: Found) {
        let (start, bytes) = (self.names.len(), name.to_bytes_with_nul());
        self.order.push(Child { start, len: bytes.len(), found: self.found.len() });
        self.names.extend_from_slice(bytes);
        self.found.push(found);
    }

    fn sort(&mut self) {
        let Self { names, order, .. } = self;
        // A NUL is less than whatever a longer name has in its place.
        let name = |child: &Child| &names[child.start..][..child.len];
        order.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    }

    /// The same for a directory that changed while it was listed, where one name may have come twice: it is what was found under it
    /// the second time.
    fn sort_changed(&mut self) {
        let Self { names, order, .. } = self;
        let name = |child: &Child| &names[child.start..][..child.len];
        order.sort_unstable_by(|a, b| name(a).cmp(name(b)).then(b.found.cmp(&a.found)));
        order.dedup_by(|a, b| name(a) == name(b));
    }

    fn is_over(&self) -> bool {
        self.taken >= self.order.len()
    }

    /// The next one, once.
    fn take(&mut self) -> Option<(&CStr, Found)> {
        let child = *self.order.get(self.taken)?;
        self.taken += 1;
        Some((child.name(&self.names)?, self.found[child.found]))
    }
}

/// What looking at a name gave.
#[derive(Clone, Copy)]
enum Found {
    Stat(Stat),
    Failed(Errno),
    Reserved,
}

/// A directory that was listed while it did not change, or that never rests.
struct Listing {
    stat: Stat,
    children: Children,
    held: Vec<FsError>,
    is_restless: bool,
    /// Whether those who list ahead know of what is in it.
    is_ahead: bool,
}

/// A directory on the way to where the walk is.
struct Frame {
    stat: Stat,
    /// Given up while the walk is deep beneath it, and when nothing is left to do in it.
    fd: Option<Arc<OwnedFd>>,
    children: Children,
}

/// Lists single directories.
struct Lister<'a> {
    root: &'a Root,
    options: &'a ScanOptions<'a>,
}

impl Lister<'_> {
    /// Opens and lists what was a directory when its parent was listed.
    fn enter(
        &self,
        path: &RelPath,
        dir: BorrowedFd<'_>,
        name: &CStr,
        mut stat: Stat,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Entered {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..TRIES {
            match openat(dir, name, flags, Mode::empty()) {
                Ok(fd) => {
                    return match self.list(path, fd.as_fd(), Some(stat), buffer) {
                        Ok(listing) => Entered::Dir(Arc::new(fd), listing),
                        Err(error) => Entered::Closed(stat, error),
                    };
                }
                Err(Errno::INTR) => continue,
                Err(errno) if !is_gone(errno) => {
                    return Entered::Closed(stat, FsError::new("open the directory", path, errno));
                }
                Err(_) => {}
            }
            stat = match self.root.stat_at(dir, name) {
                Ok(now) if now.is_dir() => now,
                Ok(_) if self.options.filter.excludes(path, false) => return Entered::Excluded,
                Ok(now) => return Entered::Other(now),
                Err(Errno::NOENT) => {
                    return Entered::Unknown(FsError::because("scan", path, "it vanished while its tree was scanned"));
                }
                Err(errno) => return Entered::Unknown(FsError::new("look at", path, errno)),
            };
        }
        Entered::Unknown(FsError::because("scan", path, "it keeps changing"))
    }

    /// Lists `fd` and looks at everything in it, as often as it takes to see it unchanged. `seen` is an earlier look
    /// at the directory, which saves one.
    fn list(
        &self,
        path: &RelPath,
        fd: BorrowedFd<'_>,
        seen: Option<Stat>,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<Listing, FsError> {
        let fail = |errno| FsError::new("list the directory", path, errno);
        let mut before = match seen {
            Some(stat) => stat,
            None => self.root.stat_fd(fd).map_err(fail)?,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let is_last = tries == TRIES;
            if tries > 1 {
                seek(fd, SeekFrom::Start(0)).map_err(fail)?;
            }
            let start = clock::now();
            let (children, held) = Default::default();
            let mut listing = Listing { stat: before, children, held, is_restless: false, is_ahead: false };
            let whole = self.read(path, fd, buffer, is_last, &mut listing).map_err(fail)?;
            listing.stat = self.root.stat_fd(fd).map_err(fail)?;
            let (was, is) = (before, listing.stat);
            let unchanged = whole && (was.identity(), was.tuple.ctime) == (is.identity(), is.tuple.ctime);
            before = is;
            let ctime = is.tuple.ctime;
            // A stamp from the future would keep us waiting for nothing.
            let is_settled = clock::settled(ctime, start, false) || ctime.sec > start.sec + 3;
            if is_last || (unchanged && is_settled) {
                listing.is_restless = !unchanged;
                match unchanged {
                    true => listing.children.sort(),
                    false => listing.children.sort_changed(),
                }
                return Ok(listing);
            }
            // Within one tick of the clock a change need not show: look again when it has moved on.
            std::thread::sleep(Duration::from_millis(if ctime.nsec == 0 { 300 } else { 5 }));
        }
    }

    /// Reads all names and looks at each; `false` if one of them was gone by then. The others are read nonetheless if `all` are
    /// wanted.
    fn read(
        &self,
        path: &RelPath,
        fd: BorrowedFd<'_>,
        buffer: &mut [MaybeUninit<u8>],
        all: bool,
        listing: &mut Listing,
    ) -> Result<bool, Errno> {
        let mut whole = true;
        let mut names = RawDir::new(fd, buffer);
        while let Some(item) = names.next() {
            let item = match item {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let name = item.file_name();
            let bytes = name.to_bytes();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            if bytes.len() > MAX_NAME || path.as_bytes().len() + 1 + bytes.len() > MAX_PATH {
                let reason = format!("the path of {:?} in it is longer than {MAX_PATH} bytes", escape(bytes));
                listing.held.push(FsError::because("look into", path, reason));
                continue;
            }
            let kind = item.file_type();
            let hint = (kind != FileType::Unknown).then_some(kind == FileType::Directory);
            if hint.is_some_and(|is_dir| self.excludes(path, bytes, is_dir)) {
                continue;
            }
            let found = if bytes == STAGING_NAME.as_bytes() {
                match self.options.reserved {
                    Reserved::Skip => continue,
                    Reserved::Hold => Found::Reserved,
                }
            } else {
                match self.root.stat_at(fd, name) {
                    Ok(stat) if hint != Some(stat.is_dir()) && self.excludes(path, bytes, stat.is_dir()) => continue,
                    Ok(stat) => Found::Stat(stat),
                    Err(Errno::NOENT) if all => {
                        whole = false;
                        continue;
                    }
                    Err(Errno::NOENT) => return Ok(false),
                    Err(errno) => Found::Failed(errno),
                }
            };
            listing.children.push(name, found);
        }
        Ok(whole)
    }

    fn excludes(&self, dir: &RelPath, name: &[u8], is_dir: bool) -> bool {
        !self.options.filter.is_empty() && dir.join(name).is_ok_and(|path| self.options.filter.excludes(&path, is_dir))
    }

    fn left_out(&self, stat: &Stat, mount: bool) -> Option<LeftOut> {
        if stat.is_dir() && self.options.leave_out.contains(&stat.identity()) {
            Some(LeftOut::Asked)
        } else if mount && self.options.one_file_system {
            Some(LeftOut::Mount)
        } else {
            None
        }
    }
}

/// The walk: where it is, and whom it tells.
struct Walk<'a, 'v, B> {
    lister: &'a Lister<'a>,
    ahead: &'a Ahead<'a>,
    visit: &'v mut dyn FnMut(Scanned<'_>) -> ControlFlow<B>,
    buffer: Vec<MaybeUninit<u8>>,
    /// The directories from the top to the one that is being visited, and the path of that one. The frames hold no
    /// paths of their own: in a very deep tree those would add up to the square of its depth.
    stack: Vec<Frame>,
    at: KeyBuf,
}

fn seen<'a>(at: &'a KeyBuf, dir: BorrowedFd<'a>, name: &'a CStr, stat: Stat, mount: bool) -> Scanned<'a> {
    Scanned::Entry(Seen { at, path: OnceCell::new(), dir, name, stat, mount })
}

/// What opening a directory for the walk gave.
enum Entered {
    Dir(Arc<OwnedFd>, Listing),
    /// Listed in vain: it is there, what it holds is unknown.
    Closed(Stat, FsError),
    /// Something else than a directory has taken the name.
    Other(Stat),
    Unknown(FsError),
    /// Taken by something that the filter excludes.
    Excluded,
}

impl<B> Walk<'_, '_, B> {
    fn run(&mut self) -> ControlFlow<B> {
        while let Some(mut frame) = self.stack.pop() {
            let inner = if frame.children.is_over() { None } else { self.go_on(&mut frame)? };
            match inner {
                Some(inner) => {
                    self.stack.push(frame);
                    self.stack.push(inner);
                    self.close_distant();
                }
                None => self.at.pop(),
            }
        }
        ControlFlow::Continue(())
    }

    /// Visits the children that are left, up to the next directory, which comes back to be gone into: the walk is there
    /// then.
    fn go_on(&mut self, frame: &mut Frame) -> ControlFlow<B, Option<Frame>> {
        let fd = match self.reopen(frame) {
            Ok(fd) => fd,
            Err(error) => {
                (self.visit)(Scanned::Held(error))?;
                return ControlFlow::Continue(None);
            }
        };
        while let Some((name, found)) = frame.children.take() {
            let inner = self.child(frame.stat.mount, fd.as_fd(), name, found)?;
            if inner.is_some() {
                frame.fd = (!frame.children.is_over()).then_some(fd);
                return ControlFlow::Continue(inner);
            }
        }
        ControlFlow::Continue(None)
    }

    /// Gives up the descriptor of the directory that is now [`OPEN`] levels above.
    fn close_distant(&mut self) {
        if let Some(distant) = self.stack.len().checked_sub(OPEN + 1) {
            self.stack[distant].fd = None;
        }
    }

    /// The frame's descriptor; opened again by its path if it was given up, and then only if it is still the same.
    fn reopen(&self, frame: &mut Frame) -> Result<Arc<OwnedFd>, FsError> {
        if let Some(fd) = frame.fd.take() {
            return Ok(fd);
        }
        let at = self.at.path();
        let moved = || FsError::because("scan", &at, "it was moved or replaced while its tree was scanned");
        let fd = self.lister.root.open_dir(&at).map_err(|e| if e.is_gone() { moved() } else { e })?;
        match self.lister.root.stat_fd(&fd) {
            Ok(stat) if stat.identity() == frame.stat.identity() => Ok(Arc::new(fd)),
            _ => Err(moved()),
        }
    }

    /// Visits one child of a directory on the mount `around`; a directory comes back as the frame to go on with.
    fn child(&mut self, around: u64, dir: BorrowedFd<'_>, name: &CStr, found: Found) -> ControlFlow<B, Option<Frame>> {
        if let Err(error) = self.at.push(name.to_bytes()) {
            (self.visit)(Scanned::Held(FsError::because("scan", &self.at.path(), error.to_string())))?;
            return ControlFlow::Continue(None);
        }
        let inner = self.child_here(around, dir, name, found)?;
        if inner.is_none() {
            self.at.pop();
        }
        ControlFlow::Continue(inner)
    }

    /// The same for the child that the walk is at.
    fn child_here(
        &mut self,
        around: u64,
        dir: BorrowedFd<'_>,
        name: &CStr,
        found: Found,
    ) -> ControlFlow<B, Option<Frame>> {
        let told = match found {
            Found::Failed(errno) => Scanned::Held(FsError::new("look at", &self.at.path(), errno)),
            Found::Reserved => {
                let why = "the name is reserved for staging on replicas: rename it";
                Scanned::Held(FsError::because("scan", &self.at.path(), why))
            }
            Found::Stat(stat) => {
                let mount = stat.mount != around;
                match self.lister.left_out(&stat, mount) {
                    Some(why) => Scanned::LeftOut { path: self.at.path(), why },
                    None if stat.is_dir() => return self.descend(around, dir, name, stat),
                    None => seen(&self.at, dir, name, stat, mount),
                }
            }
        };
        (self.visit)(told)?;
        ControlFlow::Continue(None)
    }

    /// Visits a directory and makes it the next frame.
    fn descend(&mut self, around: u64, dir: BorrowedFd<'_>, name: &CStr, stat: Stat) -> ControlFlow<B, Option<Frame>> {
        let path = self.at.path();
        let Self { lister, ahead, buffer, .. } = self;
        let entered = ahead.take(&path, buffer, |buffer| lister.enter(&path, dir, name, stat, buffer));
        let stat = match &entered {
            Entered::Dir(_, Listing { stat, .. }) | Entered::Closed(stat, _) | Entered::Other(stat) => *stat,
            Entered::Unknown(_) | Entered::Excluded => stat,
        };
        let mount = stat.mount != around;
        if let Some(why) = self.lister.left_out(&stat, mount) {
            (self.visit)(Scanned::LeftOut { path, why })?;
            return ControlFlow::Continue(None);
        }
        match entered {
            Entered::Dir(fd, listing) => return self.announce(dir, name, mount, listing, fd).map_continue(Some),
            Entered::Closed(_, error) => {
                (self.visit)(seen(&self.at, dir, name, stat, mount))?;
                (self.visit)(Scanned::Held(error))?;
            }
            Entered::Other(_) => (self.visit)(seen(&self.at, dir, name, stat, mount))?,
            Entered::Unknown(error) => (self.visit)(Scanned::Held(error))?,
            Entered::Excluded => {}
        }
        ControlFlow::Continue(None)
    }

    /// Tells of the directory that the walk is at, and of what is wrong in it.
    fn announce(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        mount: bool,
        listing: Listing,
        fd: Arc<OwnedFd>,
    ) -> ControlFlow<B, Frame> {
        let Listing { stat, children, held, is_restless, is_ahead } = listing;
        if !is_ahead {
            self.ahead.coming(&self.at.path(), &fd, &children, stat.mount);
        }
        (self.visit)(seen(&self.at, dir, name, stat, mount))?;
        if is_restless {
            (self.visit)(Scanned::Restless(self.at.path()))?;
        }
        for error in held {
            (self.visit)(Scanned::Held(error))?;
        }
        let fd = (!children.is_over()).then_some(fd);
        ControlFlow::Continue(Frame { stat, fd, children })
    }
}

#[cfg(test)]
mod tests;
