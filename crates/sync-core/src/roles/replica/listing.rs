//! The replica's directories as the master asks for them.

use super::open::Opened;
use crate::index::IndexError;
use crate::manifest::Holds;
use crate::path::RelPath;
use crate::roles::tree;
use crate::wire::Listing;

/// Children in one message: some 80 bytes each, and names.
const CHILDREN_PER_MESSAGE: usize = 20_000;

/// The listing of one directory, in as many messages as it takes.
pub fn list(opened: &Opened, dir: &RelPath) -> Result<Vec<Listing>, IndexError> {
    let (tree, none, ignore_extras) = (&opened.tree.dirs, Holds::default(), opened.policy.no_delete);
    let Some((own, children)) = tree::children(&opened.index, tree, dir, &none, ignore_extras)? else {
        return Ok(vec![Listing { dir: dir.clone(), own: None, children: Vec::new(), last: true }]);
    };
    let mut listings: Vec<Listing> = children
        .chunks(CHILDREN_PER_MESSAGE)
        .map(|part| Listing { dir: dir.clone(), own: Some(own), children: part.to_vec(), last: false })
        .collect();
    if listings.is_empty() {
        listings.push(Listing { dir: dir.clone(), own: Some(own), children: Vec::new(), last: false });
    }
    if let Some(last) = listings.last_mut() {
        last.last = true;
    }
    Ok(listings)
}
