//! Makes ordinary changes of what was told relative to the version that the replica stands at.

use super::inputs::rows_at;
use super::open::Opened;
use crate::index::IndexError;
use crate::manifest::Row;
use crate::relative;
use crate::wire::{Change, Moved, Touched};

/// By how many bytes all paths of moved directories may grow: a master could give a million files a path of 64 KiB each in
/// a few bytes.
const MOST_GROWTH: usize = 256 << 20;

/// The changes, from the replica's own rows. What these cannot give is left out: then the plan leads to another root, and
/// the trees are compared.
///
/// The rows come with them, in tree order: the plan is decided from the same.
pub fn expand(opened: &Opened, moved: &[Moved], touched: &[Touched]) -> Result<(Vec<Change>, Vec<Row>), IndexError> {
    let (mut changes, mut read, mut room) = (Vec::new(), Vec::new(), MOST_GROWTH);
    for moved in moved {
        let Some((new, rows)) = beneath(opened, moved, &mut room)? else { continue };
        changes.extend(new);
        read.extend(rows);
    }
    let mut rows = rows_at(&opened.index, touched.iter().map(|touched| &touched.path))?.into_iter().peekable();
    for Touched { path, metadata } in touched {
        let row = rows.next_if(|row| row.path == *path).filter(|row| !opened.ignores(row.extra));
        let Some(row) = row else { continue };
        read.push(row.clone());
        changes.extend(relative::touched(row, *metadata));
    }
    read.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((changes, read))
}

/// All entries of a directory that has moved, at their new places, and the rows that they were made of; `None` if they
/// are not what was meant, or their paths grow by more than there is room for.
fn beneath(opened: &Opened, moved: &Moved, room: &mut usize) -> Result<Option<(Vec<Change>, Vec<Row>)>, IndexError> {
    if opened.tree.dirs.get(&moved.from) != Some(&moved.hash) {
        return Ok(None);
    }
    let growth = moved.to.as_bytes().len().saturating_sub(moved.from.as_bytes().len());
    let (mut changes, mut read) = (Vec::new(), Vec::new());
    let mut rows = opened.index.cursor_beneath(&moved.from)?;
    while let Some(row) = rows.next()? {
        if opened.ignores(row.extra) {
            continue;
        }
        let (Some(left), Some(change)) = (room.checked_sub(growth), relative::moved(row.clone(), moved)) else {
            return Ok(None);
        };
        *room = left;
        changes.push(change);
        read.push(row);
    }
    Ok(Some((changes, read)))
}
