//! A few names of a tree against its index: what a watch has told of, in place of a walk over everything.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, accessat};
use rustix::io::Errno;

use super::found::recognise_moved_inodes;
use super::{Survey, SurveyError, SurveyOptions, Walk};
use crate::fs::{self, FsError, Root, STAGING_NAME, Seen, Stat};
use crate::index::{Index, IndexError, RowCursor, Rows as _, Stored};
use crate::manifest::{Row, TreeHash};
use crate::path::{KeyBuf, RelPath};

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// These, and what the index has in them: their inode may have come by a name under which nobody looked.
    pub whole: BTreeSet<RelPath>,
    /// Directories that have had their name all the time. What changes in them is told by itself.
    pub alone: BTreeSet<RelPath>,
}

impl Names {
    /// Adds others.
    pub fn extend(&mut self, more: Self) {
        self.whole.extend(more.whole);
        self.alone.extend(more.alone);
    }

    /// Whether a path is looked at: it is among the names, or beneath one that is looked at as a whole and is not the top.
    pub fn covers(&self, path: &RelPath) -> bool {
        let mut at = Some(path.clone());
        while let Some(above) = at {
            if self.whole.contains(&above) && (!above.is_root() || path.is_root()) {
                return true;
            }
            at = above.parent();
        }
        self.alone.contains(path)
    }
}

/// What the last look at a tree left behind, for looks at some of its names.
#[derive(Clone, Debug, Default)]
pub struct LastLook {
    /// The hash of the tree as the index has it now.
    pub tree: TreeHash,
    /// Entries of the tree.
    pub entries: u64,
    /// Names of inodes that have several: what becomes of one may change the others.
    pub linked: HashSet<RelPath>,
    /// What was left out.
    pub apart: Vec<RelPath>,
}

impl LastLook {
    /// After a look that found the tree with this hash; `None` if there is something in it that no look at single names
    /// can judge.
    pub fn of(survey: &Survey) -> Option<Self> {
        let linked = survey.names.values().flatten().cloned().collect();
        let (tree, entries, apart) = (TreeHash::default(), survey.entries, survey.apart.clone());
        (survey.failures.is_empty() && survey.mounts.is_empty()).then_some(Self { tree, entries, linked, apart })
    }
}

/// Looks at these names and their directories, and at nothing else. What a new directory holds must be among the names,
/// now or next time. `None` if only a look at the whole tree can tell: hard links, mounts, a directory in place of another,
/// whatever cannot be read.
///
/// An entry that changed just now is not waited for as in a walk: its row proves nothing, and it is read again by the next
/// look at it.
///
/// # Errors
/// [`SurveyError`].
pub fn survey_names(
    root: &Root,
    index: &Index,
    options: &SurveyOptions<'_>,
    last: &LastLook,
    names: &Names,
) -> Result<Option<Survey>, SurveyError> {
    // A name that comes or goes changes the time of its directory.
    let all = || names.whole.union(&names.alone);
    let mut paths: BTreeSet<RelPath> = all().cloned().chain(all().filter_map(RelPath::parent)).collect();
    for dir in names.whole.iter().filter(|dir| !dir.is_root()) {
        index.leaves_in(dir, &mut |leaf| paths.extend(leaf.key.to_path()))?;
    }
    let (paths, rows) = with_new_above(index, paths)?;
    let mut found = |_, _: &super::Pending| {};
    let mut walk = Walk {
        root,
        options,
        started: fs::clock::now(),
        has_waited: true,
        rows: RowCursor::empty(),
        groups: HashMap::new(),
        kept: None,
        merkle: None,
        dirs: Dirs::new(root),
        found: &mut found,
        portions: None,
        survey: Survey { entries: last.entries, apart: last.apart.clone(), ..Survey::default() },
    };
    let mut dirs = Dirs::new(root);
    let mut over: Option<&RelPath> = None;
    for (path, row) in paths.iter().zip(rows) {
        if last.linked.contains(path) {
            return Ok(None);
        }
        if over.is_some_and(|top| path.is_beneath(top)) || last.apart.iter().any(|top| is_within(path, top)) {
            continue;
        }
        if path.name() == STAGING_NAME.as_bytes() {
            return Ok(None);
        }
        let Some((dir, around, stat)) = dirs.stat(path)? else {
            over = Some(path);
            if let Some(row) = row {
                let beneath = rows_beneath(index, &row)?;
                if beneath.iter().any(|row| last.linked.contains(&row.path)) {
                    return Ok(None);
                }
                walk.survey.entries = walk.survey.entries.saturating_sub(1 + beneath.len() as u64);
                walk.survey.gone.push(row);
                walk.survey.gone.extend(beneath);
            }
            continue;
        };
        if is_excluded(options, path, stat.is_dir()) {
            match row {
                // It was another kind of thing, which was not excluded.
                Some(_) => return Ok(None),
                None => continue,
            }
        }
        if stat.mount != around || (stat.nlink > 1 && !stat.is_dir()) || options.leave_out.contains(&stat.identity()) {
            return Ok(None);
        }
        if row.as_ref().is_some_and(|row| row.entry.is_dir() && stat.is_dir() && is_another(row, &stat)) {
            // What the one before held went with it, and nobody needs to have told.
            return Ok(None);
        }
        let is_known = row.as_ref().is_some_and(|row| row.tuple == Some(stat.tuple));
        if stat.is_dir() && !is_known && is_closed(&dir, path) {
            // Nobody needs to have told of what is in it.
            return Ok(None);
        }
        if !stat.is_dir() {
            // What is in it by now came after it was looked at, as did whatever tells of that.
            over = Some(path);
        }
        if let Some(row) = row.as_ref().filter(|row| row.entry.is_dir() && !stat.is_dir()) {
            let beneath = rows_beneath(index, row)?;
            if beneath.iter().any(|row| last.linked.contains(&row.path)) {
                return Ok(None);
            }
            walk.survey.entries = walk.survey.entries.saturating_sub(beneath.len() as u64);
            walk.survey.gone.extend(beneath);
        }
        walk.survey.entries += u64::from(row.is_none());
        let old = row.map(|row| Stored { hash: row.entry.hash(), row, changed_in: 0 });
        let key = KeyBuf::of(path);
        let name = std::ffi::CString::new(if path.is_root() { b"." } else { path.name() });
        let Ok(name) = name else { return Ok(None) };
        walk.entry(Seen::alone(&key, dir.as_fd(), &name, stat), old)?;
        if !walk.survey.failures.is_empty() || !walk.survey.vanished.is_empty() {
            return Ok(None);
        }
    }
    let mut survey = walk.survey;
    survey.before = Some(last.tree.clone());
    recognise_moved_inodes(&mut survey);
    Ok(Some(survey))
}

/// The same paths with their rows, and with the directories that some of them are in and no row tells of: what tells of those may
/// wait longer.
fn with_new_above(index: &Index, mut paths: BTreeSet<RelPath>) -> Result<(Vec<RelPath>, Vec<Option<Row>>), IndexError> {
    loop {
        let all: Vec<RelPath> = paths.iter().cloned().collect();
        let rows = index.rows_for(&all)?;
        let new = all.iter().zip(&rows).filter(|(_, row)| row.is_none()).filter_map(|(path, _)| path.parent());
        let more: Vec<RelPath> = new.filter(|dir| !paths.contains(dir)).collect();
        if more.is_empty() {
            return Ok((all, rows));
        }
        paths.extend(more);
    }
}

fn is_within(path: &RelPath, top: &RelPath) -> bool {
    path == top || path.is_beneath(top)
}

/// Whether a directory cannot be listed, or what is in it not be looked at, for lack of a permission.
fn is_closed(dir: &OwnedFd, path: &RelPath) -> bool {
    let name = if path.is_root() { b"." } else { path.name() };
    let needed = Access::READ_OK | Access::EXEC_OK;
    matches!(accessat(dir, name, needed, AtFlags::EACCESS), Err(Errno::ACCESS))
}

/// Whether what is there now is not the inode of the row.
fn is_another(row: &Row, stat: &Stat) -> bool {
    row.tuple.is_none_or(|tuple| (tuple.fs, tuple.ino) != (stat.tuple.fs, stat.tuple.ino))
}

/// Whether the filter leaves out the path or a directory that it is in.
pub(super) fn is_excluded(options: &SurveyOptions<'_>, path: &RelPath, is_dir: bool) -> bool {
    if options.filter.is_empty() {
        return false;
    }
    let mut above = path.parent();
    while let Some(dir) = above {
        if !dir.is_root() && options.filter.excludes(&dir, true) {
            return true;
        }
        above = dir.parent();
    }
    !path.is_root() && options.filter.excludes(path, is_dir)
}

fn rows_beneath(index: &Index, row: &Row) -> Result<Vec<Row>, IndexError> {
    let mut rows = Vec::new();
    if row.entry.is_dir() {
        let mut cursor = index.cursor_beneath(&row.path)?;
        while let Some(beneath) = cursor.next()? {
            if beneath.path != row.path {
                rows.push(beneath);
            }
        }
    }
    Ok(rows)
}

/// The directories of names that come in tree order: each is opened anew, because its name may lead elsewhere by now.
pub(super) struct Dirs<'a> {
    root: &'a Root,
    last: Option<(RelPath, Arc<OwnedFd>, u64)>,
}

impl<'a> Dirs<'a> {
    pub(super) fn new(root: &'a Root) -> Self {
        Self { root, last: None }
    }

    /// The directory of a path, the mount that it is on, and what is at the path; `None` if there is nothing.
    pub(super) fn stat(&mut self, path: &RelPath) -> Result<Option<(Arc<OwnedFd>, u64, Stat)>, FsError> {
        let parent = path.parent().unwrap_or_else(RelPath::root);
        let (dir, mount) = match &self.last {
            Some((known, dir, mount)) if *known == parent => (Arc::clone(dir), *mount),
            _ => {
                let dir = match self.root.dir_now(&parent) {
                    Ok(dir) => dir,
                    Err(error) if error.is_gone() => return Ok(None),
                    Err(error) => return Err(error),
                };
                let mount = self.root.stat_fd(&*dir).map_err(|errno| FsError::new("look at", &parent, errno))?.mount;
                self.last = Some((parent, Arc::clone(&dir), mount));
                (dir, mount)
            }
        };
        let found = match path.is_root() {
            true => self.root.stat_fd(&*dir),
            false => self.root.stat_at(dir.as_fd(), path.name()),
        };
        match found {
            Ok(stat) => Ok(Some((dir, mount, stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(FsError::new("look at", path, errno)),
        }
    }
}
