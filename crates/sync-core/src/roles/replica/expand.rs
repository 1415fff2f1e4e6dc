//! Makes ordinary changes of what was told relative to the version that the replica stands at.

use super::inputs::rows_at;
use super::open::Opened;
use crate::index::IndexError;
use crate::relative;
use crate::wire::{Change, Moved, Touched};

/// By how many bytes all paths of moved directories may grow: a master could give a million files a path of 64 KiB each in
/// a few bytes.
const MOST_GROWTH: usize = 256 << 20;

/// The changes, from the replica's own rows. What these cannot give is left out: then the plan leads to another root, and
/// the trees are compared.
pub fn expand(opened: &Opened, moved: &[Moved], touched: &[Touched]) -> Result<Vec<Change>, IndexError> {
    let mut changes = Vec::new();
    let mut room = MOST_GROWTH;
    for moved in moved {
        changes.extend(beneath(opened, moved, &mut room)?.into_iter().flatten());
    }
    let mut rows = rows_at(&opened.index, touched.iter().map(|touched| &touched.path))?.into_iter().peekable();
    for Touched { path, metadata } in touched {
        let row = rows.next_if(|row| row.path == *path).filter(|row| !opened.ignores(row.extra));
        changes.extend(row.and_then(|row| relative::touched(row, *metadata)));
    }
    Ok(changes)
}

/// All entries of a directory that has moved, at their new places; `None` if they are not what was meant, or their paths
/// grow by more than there is room for.
fn beneath(opened: &Opened, moved: &Moved, room: &mut usize) -> Result<Option<Vec<Change>>, IndexError> {
    if opened.tree.dirs.get(&moved.from) != Some(&moved.hash) {
        return Ok(None);
    }
    let growth = moved.to.as_bytes().len().saturating_sub(moved.from.as_bytes().len());
    let mut changes = Vec::new();
    let mut rows = opened.index.cursor_beneath(&moved.from)?;
    while let Some(row) = rows.next()? {
        if opened.ignores(row.extra) {
            continue;
        }
        let (Some(left), Some(change)) = (room.checked_sub(growth), relative::moved(row, moved)) else {
            return Ok(None);
        };
        *room = left;
        changes.push(change);
    }
    Ok(Some(changes))
}
