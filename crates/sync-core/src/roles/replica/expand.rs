//! Makes ordinary changes of what was told relative to the version that the replica stands at.

use super::inputs::rows_at;
use super::open::Opened;
use crate::index::IndexError;
use crate::relative;
use crate::wire::{Change, Moved, Touched};

/// The changes, from the replica's own rows. What these cannot give is left out: then the plan leads to another root, and
/// the trees are compared.
pub fn expand(opened: &Opened, moved: &[Moved], touched: &[Touched]) -> Result<Vec<Change>, IndexError> {
    let mut changes = Vec::new();
    for moved in moved {
        changes.extend(beneath(opened, moved)?.into_iter().flatten());
    }
    let mut rows = rows_at(&opened.index, touched.iter().map(|touched| &touched.path))?.into_iter().peekable();
    for Touched { path, metadata } in touched {
        let row = rows.next_if(|row| row.path == *path).filter(|row| !opened.ignores(row.extra));
        changes.extend(row.and_then(|row| relative::touched(row, *metadata)));
    }
    Ok(changes)
}

/// All entries of a directory that has moved, at their new places.
fn beneath(opened: &Opened, moved: &Moved) -> Result<Option<Vec<Change>>, IndexError> {
    if opened.tree.dirs.get(&moved.from) != Some(&moved.hash) {
        return Ok(None);
    }
    let mut changes = Vec::new();
    let mut rows = opened.index.cursor_beneath(&moved.from)?;
    while let Some(row) = rows.next()? {
        if opened.ignores(row.extra) {
            continue;
        }
        let Some(change) = relative::moved(row, moved) else { return Ok(None) };
        changes.push(change);
    }
    Ok(Some(changes))
}
