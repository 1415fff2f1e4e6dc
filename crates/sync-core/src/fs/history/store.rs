//! What a store holds, and how it takes in, makes room and gives way.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use foldhash::{HashMap, HashSet};

use super::super::read::SourceFile;
use super::handles::Handles;
use super::pack::{Content, ENTRY, FILLED, PIECE, WRITING, Writing, path_of};
use super::plan::{Weight, to_carry};
use super::room::{Room, is_full};
use super::{Bounds, Kept, Unkept};
use crate::hash::Digest;

/// The packs of a store and what is in them.
pub(super) struct Store {
    dir: PathBuf,
    bounds: Bounds,
    room: Room,
    /// By number, the oldest first.
    packs: BTreeMap<u64, Pack>,
    /// Bytes of all packs.
    total: u64,
    /// By the first bytes of the digest.
    places: HashMap<u64, Place>,
    handles: Handles,
    writing: Option<Writing>,
    /// Bytes put in since it was opened or finished.
    put: u64,
    /// Bytes that may be written before the file system is looked at again.
    allowance: u64,
    /// Nothing more is put in until it is finished.
    closed: bool,
    /// Nothing is put in any more.
    given_up: bool,
    /// Whether all that the source has was put in since it was opened, and not told to the next who opens it.
    is_complete: bool,
    /// Why, unless somebody asked for it.
    trouble: Option<Unkept>,
}

#[derive(Clone, Copy)]
struct Pack {
    bytes: u64,
    /// Whether its table could be read.
    is_known: bool,
}

#[derive(Clone, Copy)]
struct Place {
    digest: Digest,
    pack: u64,
    offset: u64,
    len: u64,
}

impl Store {
    pub(super) fn new(dir: PathBuf, bounds: Bounds, room: Room) -> Self {
        Self {
            dir,
            bounds,
            room,
            packs: BTreeMap::new(),
            total: 0,
            places: HashMap::default(),
            handles: Handles::default(),
            writing: None,
            put: 0,
            allowance: 0,
            closed: false,
            given_up: false,
            is_complete: false,
            trouble: None,
        }
    }

    /// Takes a pack in that is in the directory; without its contents if these are not known.
    pub(super) fn add(&mut self, number: u64, bytes: u64, contents: Option<Vec<Content>>) {
        let is_known = contents.is_some();
        let mut offset = 0;
        for (digest, len) in contents.unwrap_or_default() {
            self.places.insert(digest.prefix(), Place { digest, pack: number, offset, len });
            offset += len;
        }
        self.packs.insert(number, Pack { bytes, is_known });
        self.total = self.total.saturating_add(bytes);
    }

    /// Chooses the size of new packs. One that were half of what there is room for could not go without most of it.
    pub(super) fn fit(&mut self) {
        self.bounds = self.bounds.clone().fit(self.total.saturating_add(self.room.spare()));
    }

    /// Whether there is nothing that could be found.
    pub(super) fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.writing.as_ref().is_none_or(Writing::is_empty)
    }

    /// Whether what the source had was put in, also for who opens it again.
    pub(super) fn is_filled(&self) -> bool {
        self.dir.join(FILLED).exists()
    }

    /// What the source had was put in; it is there once that is sealed.
    pub(super) fn filled(&mut self) {
        self.is_complete = true;
    }

    pub(super) fn find(&mut self, prefix: u64) -> Option<Kept> {
        let Some(Place { digest, pack, offset, len }) = self.places.get(&prefix).copied() else {
            let found = self.writing.as_mut()?.find(prefix);
            let is_written = found.as_ref().map(drop).map_err(|error| io::Error::from(error.kind()));
            self.check(is_written);
            let (file, offset, (digest, len)) = found.ok().flatten()?;
            return Some(Kept { file, offset, len, digest });
        };
        match self.handles.open(&self.dir, pack) {
            Ok(file) => Some(Kept { file, offset, len, digest }),
            Err(error) => {
                // As if it were not there: it may be, another time.
                tracing::debug!(%error, pack, "previous contents cannot be opened");
                None
            }
        }
    }

    pub(super) fn wants(&self, digest: &Digest, size: u64) -> bool {
        let Bounds { contents, most, .. } = &self.bounds;
        let fits = contents.contains(&size) && self.put.saturating_add(size) <= *most;
        let is_kept = self.places.get(&digest.prefix()).is_some_and(|place| place.digest == *digest)
            || self.writing.as_ref().is_some_and(|writing| writing.has(digest.prefix()));
        fits && !self.closed && !is_kept
    }

    pub(super) fn put(&mut self, digest: Digest, content: &[u8]) {
        let size = content.len() as u64;
        if self.wants(&digest, size) && self.has_room(size) {
            let appended = self.writing_for(size).and_then(|writing| writing.append(digest, content));
            self.check(appended);
            self.put += size;
        }
    }

    pub(super) fn put_file(&mut self, digest: Digest, source: &SourceFile, size: u64) {
        if self.wants(&digest, size) && self.has_room(size) {
            let copied = self.writing_for(size).and_then(|writing| writing.copy_source(digest, source, size));
            self.check(copied);
            self.put += size;
        }
    }

    /// Ends what was put in, and makes room for it.
    pub(super) fn finish(&mut self, current: impl FnOnce() -> HashSet<u64>) -> Option<Unkept> {
        let sealed = self.seal();
        let is_lost = sealed.is_err() || matches!(self.trouble, Some(Unkept::Io(_)));
        if std::mem::take(&mut self.is_complete)
            && !is_lost
            && let Err(error) = fs::File::create(self.dir.join(FILLED))
        {
            tracing::debug!(%error, "the history will be filled again");
        }
        self.check(sealed);
        let lack = self.room.lack();
        if lack > 0 && !self.packs.is_empty() {
            self.trouble.get_or_insert(Unkept::NoRoom);
        }
        let mut limit = self.bounds.most.min(self.total.saturating_sub(lack));
        if matches!(self.trouble, Some(Unkept::NoRoom)) {
            // Or the next push would find no room for what is new.
            limit = limit.min(self.total / 4 * 3);
        }
        if self.total > limit {
            let carried = self.carry(limit, &current());
            self.check(carried);
            self.drop_oldest(limit);
        }
        self.abandon();
        (self.put, self.closed) = (0, self.given_up);
        self.trouble.take()
    }

    /// Removes all that there is, and takes no more. Returns how many bytes that were.
    pub(super) fn give_up(&mut self) -> u64 {
        let bytes = self.total + self.writing.as_ref().map_or(0, Writing::bytes);
        (self.closed, self.given_up) = (true, true);
        let _ = fs::remove_file(self.dir.join(FILLED));
        self.abandon();
        self.drop_oldest(0);
        bytes
    }

    /// Whether so many bytes more may be written. If not, nothing more is put in: what needs the room is worth more.
    fn has_room(&mut self, bytes: u64) -> bool {
        if !self.may_write(bytes) {
            self.closed = true;
            self.trouble.get_or_insert(Unkept::NoRoom);
        }
        !self.closed
    }

    fn may_write(&mut self, bytes: u64) -> bool {
        let bytes = bytes.saturating_add(ENTRY);
        if self.allowance < bytes {
            // Once for each piece, not for each small content.
            let promised = self.writing.as_ref().map_or(0, Writing::unwritten);
            self.allowance = self.room.spare().saturating_sub(promised).min(bytes.max(PIECE as u64));
        }
        let left = self.allowance.checked_sub(bytes);
        self.allowance = left.unwrap_or(0);
        left.is_some()
    }

    /// A store that cannot be written is of less use, and no reason to fail. On a full disk it gives back what it was
    /// writing and a quarter of what it has.
    fn check(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.closed = true;
            self.abandon();
            if is_full(&error) {
                self.drop_oldest(self.total / 4 * 3);
            }
            self.trouble.get_or_insert(Unkept::Io(error));
        }
    }

    /// Gives up the pack that is being written.
    fn abandon(&mut self) {
        self.writing = None;
        let _ = fs::remove_file(self.dir.join(WRITING));
    }

    /// The pack to which so many bytes are to be appended.
    fn writing_for(&mut self, len: u64) -> io::Result<&mut Writing> {
        let Bounds { pack, alone, .. } = self.bounds;
        // A large content goes without others, and begins at a block, which some file systems can share.
        let ends = |writing: &Writing| len > alone || writing.is_alone(alone) || writing.bytes() + len > pack;
        if self.writing.as_ref().is_some_and(|writing| !writing.is_empty() && ends(writing)) {
            self.seal()?;
        }
        match &mut self.writing {
            Some(writing) => Ok(writing),
            none => Ok(none.insert(Writing::create(&self.dir)?)),
        }
    }

    /// Ends the pack that is being written, if there is one.
    fn seal(&mut self) -> io::Result<()> {
        let Some(writing) = self.writing.take_if(|writing| !writing.is_empty()) else { return Ok(()) };
        let last = self.packs.last_key_value().map_or(0, |(last, _)| *last);
        let number = last.checked_add(1).ok_or(io::ErrorKind::InvalidData)?;
        let (bytes, contents) = writing.seal(&self.dir, number)?;
        self.add(number, bytes, Some(contents));
        Ok(())
    }

    /// Makes room by writing anew what files have now of packs that hold other things as well, the oldest first.
    ///
    /// # Errors
    /// New packs cannot be written. What was not carried over is where it was.
    fn carry(&mut self, limit: u64, current: &HashSet<u64>) -> io::Result<()> {
        let packs = self.packs.iter();
        let packs: Vec<Weight> =
            packs.map(|(&number, &Pack { bytes, is_known })| Weight { number, bytes, is_known }).collect();
        let needed = || self.places.iter().filter(|(prefix, _)| current.contains(prefix)).map(|(_, place)| *place);
        let going = to_carry(&packs, needed().map(|place| (place.pack, place.len + ENTRY)), limit);
        let mut contents: HashMap<u64, Vec<Place>> = going.iter().map(|pack| (*pack, Vec::new())).collect();
        for place in needed() {
            contents.entry(place.pack).and_modify(|places| places.push(place));
        }
        // Removed when what they had is in packs with a table, some at a time.
        let (mut emptied, mut bytes) = (Vec::new(), 0u64);
        for number in going {
            let mut places = contents.remove(&number).unwrap_or_default();
            places.sort_unstable_by_key(|place| place.offset);
            match self.carry_pack(number, &places)? {
                Carried::All => emptied.push(number),
                Carried::Unreadable => continue,
                Carried::NoRoom => break,
            }
            bytes = bytes.saturating_add(self.packs.get(&number).map_or(0, |pack| pack.bytes));
            if bytes >= self.bounds.pack {
                self.seal()?;
                emptied.drain(..).for_each(|number| self.remove(number));
                bytes = 0;
            }
        }
        self.seal()?;
        emptied.into_iter().for_each(|number| self.remove(number));
        Ok(())
    }

    fn carry_pack(&mut self, number: u64, places: &[Place]) -> io::Result<Carried> {
        if places.is_empty() {
            return Ok(Carried::All);
        }
        let Ok(from) = self.handles.open(&self.dir, number) else { return Ok(Carried::Unreadable) };
        for &Place { digest, offset, len, .. } in places {
            if !self.may_write(len) {
                return Ok(Carried::NoRoom);
            }
            if !self.writing_for(len)?.copy_pack(digest, &from, offset, len)? {
                return Ok(Carried::Unreadable);
            }
        }
        Ok(Carried::All)
    }

    /// Removes whole packs until there are at most `limit` bytes.
    fn drop_oldest(&mut self, limit: u64) {
        while self.total > limit
            && let Some((&oldest, _)) = self.packs.first_key_value()
        {
            self.remove(oldest);
        }
        self.places.retain(|_, place| self.packs.contains_key(&place.pack));
    }

    /// Removes a pack. Its contents are not looked for.
    fn remove(&mut self, number: u64) {
        let Some(pack) = self.packs.remove(&number) else { return };
        self.total = self.total.saturating_sub(pack.bytes);
        self.handles.close(number);
        match fs::remove_file(path_of(&self.dir, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.trouble.get_or_insert(Unkept::Io(error));
            }
            _ => {}
        }
    }
}

/// How far a pack was carried over.
enum Carried {
    /// It may go.
    All,
    /// It cannot be read now: it stays.
    Unreadable,
    /// The file system has no room for a new pack.
    NoRoom,
}
