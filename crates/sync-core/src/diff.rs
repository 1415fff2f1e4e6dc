//! (to be written)
use crate::hash::Digest;
use serde::{Deserialize, Serialize};
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child { pub name: Box<[u8]>, pub hash: Digest, pub own: Digest, pub is_dir: bool }
pub enum Difference<'a>{ OnlyLeft(&'a Child), OnlyRight(&'a Child), Changed{left: &'a Child,right: &'a Child}, Descend{left: &'a Child,right: &'a Child} }
pub fn compare_children<'a>(_l: &'a [Child], _r: &'a [Child]) -> Vec<Difference<'a>> { vec![] }
