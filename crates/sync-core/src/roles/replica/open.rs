//! An open replica: locked, looked at, its index true to its disk.

mod rest;

use std::any::Any;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::HashSet;

pub use rest::Rest;

use super::drift::Drift;
use super::error::OpenError;
use super::owner::Admission;
use super::reached::{Before, Reached};
use super::share::Share;
use crate::chunk::ChunkRef;
use crate::filter::Filter;
use crate::fs::{FsError, Reserved, Root, RootLock, STAGING_NAME, Staging, StateDir};
use crate::hash::{Digest, Prefixes};
use crate::index::{Index, IndexError, Rows as _};
use crate::manifest::{Holds, Row, TreeHash};
use crate::monitor::Problem;
use crate::options::Policy;
use crate::path::{RelPath, escape};
use crate::plan::{Action, MovedDir, Step};
use crate::roles::guarding;
use crate::roles::identify::{Early, IdentifyOptions, identify};
use crate::roles::survey::{LastLook, Names, Pending, Survey, SurveyError, SurveyOptions, survey, survey_names};
use crate::roles::tree::{self, Remembered};
use crate::wire::{ADOPT, FOLLOW, Hello, Offered, STRETCHES, Stand, ToReplica};

/// How long to wait for another process that has the index open: longer than it takes to close one.
const BUSY: Duration = Duration::from_secs(10);

/// Under this key an index keeps with which rights its entries were applied.
pub const PRIVILEGE: &str = "replica.privilege";

/// Under this key an index remembers that it believes in content which nobody flushed yet.
pub const UNFLUSHED: &str = "replica.unflushed";

/// Under this key an index keeps the policy of the last push that came to its end, in a hello: what that left out is no drift.
pub const POLICY: &str = "replica.policy";

/// What is not taken for what it seems, because nobody is there to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// What the top directory may be, if it is empty.
    pub empty: Empty,
    /// Whether directories on which other file systems were mounted, and are not now, are not looked at.
    pub unmounted: bool,
}

/// What a top directory may be that is empty, or on another file system with next to nothing of what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Empty {
    /// The right one.
    Right,
    /// The place where another file system is mounted at other times.
    Unmounted,
    /// Any other than it was.
    Replaced,
}

impl Suspicion {
    /// Where a master follows its tree, and no person has decided anything.
    pub const MOST: Self = Self { empty: Empty::Replaced, unmounted: true };
}

/// What a look without a session found.
#[derive(Default)]
pub struct Inspected {
    /// What somebody else did.
    pub drift: Drift,
    /// Whether anything that is not what its row says, to the last time stamp, is at one of the names that were asked about, and all of
    /// the tree could be looked at.
    pub only_there: bool,
}

/// Whatever is told by its drop that a session does not have the share open any more.
pub type Presence = Box<dyn Any + Send + Sync>;

/// An open replica.
pub struct Opened {
    /// The top directory; `None` if a dry run found none.
    pub root: Option<Arc<Root>>,
    /// Its rows are what is on disk.
    pub index: Index,
    /// Where contents wait; `None` in a dry run.
    pub staging: Option<Arc<Staging>>,
    /// What was asked for.
    pub policy: Policy,
    /// The hash of the tree and its directories.
    pub tree: TreeHash,
    /// Of its directories.
    remembered: Mutex<Remembered>,
    /// What could not be looked at here.
    pub holds: Holds,
    /// What belongs to the share's directory and not to the push, such as mounts with `--one-file-system`.
    pub apart: Holds,
    /// Names of inodes that have several, by file system and inode.
    pub names: HashMap<(u64, u64), Vec<RelPath>>,
    entries: u64,
    /// By the beginnings of their digests. One that only seems to be here is found missing by the plan.
    contents: Prefixes,
    /// How many of them may not be here any more, since the last look at everything.
    went: u64,
    asked: HashSet<u64>,
    /// Whole contents that an interrupted push left.
    pub left: std::collections::HashSet<Digest>,
    /// What somebody else added since the replica was at a version. Its rows tell of it.
    pub additions: std::collections::HashSet<RelPath>,
    /// Entries that the kernel refused to make in an earlier push.
    pub unmade: Vec<RelPath>,
    /// Whether a file system was mounted in the tree at the last push and is not now, so that nobody looks there.
    pub is_unmounted: bool,
    problems: Vec<Problem>,
    complete: bool,
    /// Whether what is there is only a stretch of what will be.
    is_partial: bool,
    /// How far it had come when that was so.
    reached: Option<Reached>,
    before: Before,
    fresh: bool,
    /// Whether all that is said here of the tree is what the last session on it has left.
    is_current: bool,
    /// Whether single names can be looked at: nothing is mounted in the tree, and nothing unreadable.
    is_plain: bool,
    /// Where the first look was, if not everywhere, and what it found.
    first: (Option<Names>, Drift),
    /// What whoever watches the tree wants dropped when it is not open any more.
    _presence: Option<Presence>,
    /// Of a share of a daemon, that the master was let in.
    admission: Option<Admission>,
    made: Made,
    _lock: Option<RootLock>,
}

/// A top directory that was made for this session: it goes again, if it is empty, unless something is published.
struct Made(Option<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            crate::fs::place::remove_empty(path);
        }
    }
}

impl Opened {
    /// Locks the share, looks at its tree and brings its index up to date with it, unless its top directory is empty and what
    /// it is suspected to be. Once it is locked, `left` says what the last session has left, and at which names alone the tree may
    /// have changed since.
    pub fn open(
        share: &Share,
        policy: Policy,
        suspicion: Suspicion,
        stop: &Arc<AtomicBool>,
        notices: &mut Vec<String>,
        admission: Option<Admission>,
        left: impl FnOnce() -> Option<(Rest, Names)>,
    ) -> Result<Self, OpenError> {
        let is_dry = policy.dry_run;
        let index = || open_index(share, is_dry, notices);
        let mut opened = Self::begin(share, policy, stop, index, admission)?;
        opened.adopt(&RelPath::root())?;
        match opened.look_first(share, suspicion, stop, left()) {
            Err(
                OpenError::Index(IndexError::Damaged(reason))
                | OpenError::Survey(SurveyError::Index(IndexError::Damaged(reason))),
            ) => {
                notices.push(rebuilt(&reason));
                opened.index.rebuild()?;
                opened.first = (None, opened.look(share, suspicion, stop)?);
            }
            other => opened.first = other?,
        }
        opened.is_partial = opened.reached().is_some();
        opened.left = opened.staging.as_ref().map(|staging| staging.whole()).unwrap_or_default();
        if opened.fresh && opened.entries > 0 {
            let text = "there was no index of the replica, or it was deleted: it is rebuilt, and every file there is read once";
            notices.push(text.to_owned());
        }
        Ok(opened)
    }

    /// What somebody else has changed since the last push, at these names or everywhere. Nothing is written down.
    pub fn inspect(share: &Share, names: Option<&Names>, stop: &Arc<AtomicBool>) -> Result<Inspected, OpenError> {
        let policy = Policy { dry_run: true, ..Policy::default() };
        let index = || Ok((Index::open_to_read(&index_dir(share).map_err(OpenError::Refused)?, BUSY)?, false));
        let mut opened = Self::begin(share, policy, stop, index, None)?;
        let Some(policy) = opened.last_policy()? else { return Ok(Inspected::default()) };
        opened.policy = Policy { dry_run: true, checksum: false, ..policy };
        let Some((found, _)) = opened.found(share, Suspicion::MOST, stop)? else { return Ok(Inspected::default()) };
        let is_told = |path| names.is_some_and(|names| names.covers(path));
        let is_plain = found.failures.is_empty() && found.mounts.is_empty() && found.apart.is_empty();
        let mut other =
            found.pending.iter().map(|pending| &pending.row.path).chain(found.gone.iter().map(|row| &row.path));
        let only_there = is_plain && other.all(is_told);
        Ok(Inspected { drift: opened.drift_in(&found, names)?, only_there })
    }

    fn begin(
        share: &Share,
        policy: Policy,
        stop: &Arc<AtomicBool>,
        index: impl FnOnce() -> Result<(Index, bool), OpenError>,
        admission: Option<Admission>,
    ) -> Result<Self, OpenError> {
        let (root, made) = open_root(share, policy.dry_run)?;
        let root = root.map(Arc::new);
        let lock = match &root {
            Some(root) => Some(lock(share, root, stop, admission.as_ref())?),
            None => None,
        };
        let (index, fresh) = index()?;
        let before = Before::read(share).map_err(|error| {
            tracing::error!(share = share.name, "{error}");
            OpenError::Refused(
                "what its state directory says cannot be read there; the log of the replica says why".to_owned(),
            )
        })?;
        let staging = |root: &Arc<Root>| Arc::new(Staging::new(Arc::clone(root)).stop_on(Arc::clone(stop)));
        let staging = root.as_ref().filter(|_| !policy.dry_run).map(staging);
        Ok(Self {
            root,
            index,
            staging,
            policy,
            tree: TreeHash::default(),
            remembered: Mutex::default(),
            holds: Holds::default(),
            apart: Holds::default(),
            names: HashMap::new(),
            entries: 0,
            contents: Prefixes::default(),
            went: 0,
            asked: HashSet::default(),
            left: std::collections::HashSet::new(),
            additions: std::collections::HashSet::new(),
            unmade: Vec::new(),
            problems: Vec::new(),
            complete: false,
            is_partial: false,
            reached: None,
            before,
            is_unmounted: false,
            fresh,
            is_current: true,
            is_plain: false,
            first: Default::default(),
            _presence: None,
            admission,
            made,
            _lock: lock,
        })
    }

    /// What the replica says it is at.
    pub fn stand(&self) -> Stand {
        let version = self.index.stand().ok().flatten().map(|stand| stand.version);
        Stand { features: FOLLOW | ADOPT | STRETCHES, version, root: self.tree.root, entries: self.entries }
    }

    /// As long as it is open, who watches the tree leaves the looking to it.
    pub fn watched_by(self, presence: Presence) -> Self {
        Self { _presence: Some(presence), ..self }
    }

    /// The same master was let in for another session.
    pub fn admitted(self, admission: Option<Admission>) -> Self {
        Self { admission, ..self }
    }

    /// The master publishes: the share is its own from now on. To be called before anything changes.
    ///
    /// # Errors
    /// It is another one's after all, or that cannot be written down.
    pub fn own(&self) -> Result<(), String> {
        self.admission.as_ref().map_or(Ok(()), |admission| admission.own().map_err(|error| error.to_string()))
    }

    /// What somebody else had changed before this was opened, at these names or anywhere; once.
    pub fn take_drift(&mut self) -> (Option<Names>, Drift) {
        std::mem::take(&mut self.first)
    }

    /// Looks again at what may have changed since, these names or everything. With `keep` what was found is written down,
    /// and is the tree from here on; else it is told as far as it is beneath the names. For between two pushes.
    pub fn look_again(
        &mut self,
        share: &Share,
        names: Option<&Names>,
        keep: bool,
        stop: &Arc<AtomicBool>,
    ) -> Result<Drift, OpenError> {
        let few = match names {
            Some(names) => self.found_at(share, names, stop)?,
            None => None,
        };
        if let Some(found) = few {
            let drift = self.drift_in(&found, None)?;
            if keep {
                self.take_over(found)?;
            }
            return Ok(drift);
        }
        if keep {
            return self.look(share, Suspicion::MOST, stop);
        }
        match self.found(share, Suspicion::MOST, stop)? {
            Some((found, _)) => self.drift_in(&found, names),
            None => Ok(Drift::default()),
        }
    }

    /// The policy as it is kept for whoever looks at the tree while there is no push.
    pub fn encoded_policy(&self) -> Vec<u8> {
        let hello = Hello { features: 0, share: String::new(), policy: self.policy.clone() };
        ToReplica::Hello(hello).encode().body
    }

    fn last_policy(&self) -> Result<Option<Policy>, IndexError> {
        let Some(body) = self.index.meta(POLICY)? else { return Ok(None) };
        let empty = ToReplica::Hello(Hello { features: 0, share: String::new(), policy: Policy::default() }).encode();
        Ok(match ToReplica::decode(empty.kind, empty.version, &body) {
            Ok(Some(ToReplica::Hello(hello))) => Some(hello.policy),
            _ => None,
        })
    }

    /// Whether rows are believed whose content was written by somebody else and may be only in memory.
    pub fn is_unflushed(&self) -> Result<bool, IndexError> {
        Ok(self.index.meta(UNFLUSHED)?.is_some())
    }

    /// Whether a row, which is an extra or not, stays out of the tree that the master is told of.
    pub fn ignores(&self, extra: bool) -> bool {
        extra && self.policy.no_delete
    }

    /// What is remembered of the directories of [`Opened::tree`].
    pub fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was nothing here when the session began.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many entries there are, without the top.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Problems since this was last called.
    pub fn take_problems(&mut self) -> Vec<Problem> {
        let staging = self.staging.as_ref().map(|staging| staging.take_problems()).unwrap_or_default();
        self.problems.extend(staging.into_iter().map(FsError::into_problem));
        std::mem::take(&mut self.problems)
    }

    /// Adds failures of single entries.
    pub fn report(&mut self, failures: impl IntoIterator<Item = FsError>) {
        self.problems.extend(failures.into_iter().map(FsError::into_problem));
    }

    /// Whether the content is here, staged or in the tree, as far as can be told without looking for it.
    pub fn has(&self, digest: &Digest) -> bool {
        self.contents.has(digest) || self.staging.as_ref().is_some_and(|staging| staging.has(digest))
    }

    /// Whether the content is missing, and this is the first time that it comes up.
    pub fn wants_once(&mut self, digest: &Digest) -> bool {
        let asks = self.staging.is_some() || self.policy.estimate;
        let is_new = asks && !self.asked.contains(&digest.prefix());
        is_new && !self.has(digest) && self.asked.insert(digest.prefix())
    }

    /// The plan is accepted: no content comes up any more.
    pub fn wants_no_more(&mut self) {
        self.asked = HashSet::default();
    }

    /// The chunks of what an interrupted push left of a content.
    pub fn part_of(&mut self, file: &Offered) -> Vec<ChunkRef> {
        let Some(staging) = &self.staging else { return Vec::new() };
        match staging.part(&file.digest, file.size) {
            Ok(part) => part.map(|part| part.chunks).unwrap_or_default(),
            Err(error) => {
                self.report([error]);
                Vec::new()
            }
        }
    }

    /// Everything is published: nothing staged is of use any more.
    pub fn completed(&mut self) {
        self.complete = true;
    }

    /// What is about to be published is only a stretch of a tree, or it is not: of use to the next one may be what an
    /// earlier session left.
    pub fn is_to_be_partial(&mut self, is_partial: bool) {
        self.is_partial = is_partial;
        if is_partial {
            self.before.note(self.entries);
        }
        if let (Some(staging), true) = (&self.staging, is_partial) {
            staging.goes_on_later();
        }
    }

    /// Whether what is there is only a stretch of what will be.
    pub fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// How far a tree has come that is told in stretches, if nobody has changed what is there since.
    pub fn reached(&self) -> Option<&Reached> {
        let reached = self.reached.as_ref()?;
        let is_partial = self.index.stand().is_ok_and(|stand| stand.is_none());
        (is_partial && reached.root == self.tree.root && !self.policy.dry_run).then_some(reached)
    }

    /// Stretches have come up to there, or there are none any more; which the index knows already if it `is_written`.
    ///
    /// # Errors
    /// [`IndexError`] if that cannot be written down.
    pub fn has_reached(&mut self, reached: Option<Reached>, is_written: bool) -> Result<(), IndexError> {
        if !is_written && self.reached != reached {
            Reached::write(reached.as_ref(), &self.index)?;
        }
        self.reached = reached;
        if is_written || !self.is_partial {
            self.forget_before();
        }
        Ok(())
    }

    fn forget_before(&mut self) {
        if let Err(error) = self.before.forget() {
            tracing::warn!("{error}");
        }
    }

    /// How many entries were there before the first stretch.
    pub fn before(&self) -> &Before {
        &self.before
    }

    /// Whether the index keeps how far stretches have come.
    pub fn keeps_reached(&self) -> bool {
        self.reached.is_some()
    }

    /// The disk is about to change: until [`Opened::came_to`], what is said here of the tree is what it was.
    pub fn changes(&mut self) {
        self.is_current = false;
    }

    /// Everything came as planned: this is the tree now, with these steps carried out.
    pub fn came_to(&mut self, tree: TreeHash, steps: &[Step], moved: &[MovedDir]) {
        let has_links = |step: &Step| {
            let linked = step.new.as_deref().is_some_and(|new| new.link.is_some());
            linked || step.old.as_ref().is_some_and(|old| old.entry.link.is_some())
        };
        // What other names an inode has is only found by looking at all.
        let touches = |name: &RelPath| !moved.is_empty() || step_of(steps, name).is_some();
        if steps.iter().any(has_links) || self.names.values().flatten().any(touches) {
            return;
        }
        for step in steps {
            match (&step.old, &step.new) {
                // It was there under another name.
                _ if matches!(step.action, Action::MoveDir { .. }) => {}
                (None, Some(_)) => self.entries += 1,
                (Some(_), None) => self.entries = self.entries.saturating_sub(1),
                _ => {}
            }
            let content = step.new.as_ref().and_then(|new| new.content());
            let before = step.old.as_ref().and_then(|old| old.entry.content());
            self.went += u64::from(before.is_some() && before != content);
            self.contents.extend(content.map(|(_, digest)| digest));
        }
        self.tree = tree;
        // Contents that went are not taken out: a look at all finds which are left.
        self.is_current = self.entries > 0 && self.contents.len() as u64 <= 2 * self.entries + 1024;
    }

    /// A session in which nothing was told leaves all as it was.
    pub fn was_told_nothing(&mut self) {
        self.complete = true;
    }

    /// What a session that came to its end leaves for the next, and what is over.
    pub fn kept(opened: Option<Self>) -> (Option<Self>, Option<Self>) {
        match opened {
            Some(opened) if opened.is_current && opened.complete && opened.holds.is_empty() => {
                opened.rests();
                (Some(opened), None)
            }
            other => (None, other),
        }
    }

    /// Nothing is to be done until something is told, or changes: a directory that is held open keeps a file system in the tree
    /// from being unmounted.
    pub fn rests(&self) {
        if let Some(root) = &self.root {
            root.forget(&RelPath::root());
        }
    }

    /// Goes on with a share that was left open: nothing is looked at, since every step compares what it meets with the
    /// rows. `None` if it must be opened anew.
    pub fn resume(mut self, share: &Share, stop: &Arc<AtomicBool>) -> Option<Self> {
        let root = Root::open(&share.path).ok().map(Arc::new);
        let same = root.as_ref().map(|root| root.identity()) == self.root.as_ref().map(|root| root.identity());
        let staging = root.as_ref().map(|root| Arc::new(Staging::new(Arc::clone(root)).stop_on(Arc::clone(stop))));
        let old = std::mem::replace(&mut self.staging, staging);
        match old {
            Some(old) if self.is_partial => old.keep_what_came(),
            Some(old) => old.remove(),
            None => {}
        }
        self.root = root;
        self.asked.clear();
        self.problems.clear();
        self.complete = false;
        (same && self.root.is_some() && self.adopt(&RelPath::root()).is_ok()).then_some(self)
    }

    /// From here on the top directory is wanted.
    pub fn keep(&mut self) {
        self.made.0 = None;
    }

    /// Ends the session and lets others in: what a later one can resume stays, if this one did not complete, and more of it
    /// if it will probably be taken up again. Just before others are let in, `leave` gets what may spare the next one a look at
    /// everything. Returns what takes a while to be dropped.
    pub fn close(self, is_taken_up: bool, leave: impl FnOnce(Rest)) -> impl Sized {
        if let Some(staging) = &self.staging {
            match (self.complete && !self.is_partial, is_taken_up) {
                (true, _) => staging.remove(),
                (false, true) => staging.keep_what_came(),
                (false, false) => staging.keep_parts(),
            }
        }
        let (open, (rest, remains)) = self.come_to_rest();
        if let Some(rest) = rest {
            leave(rest);
        }
        drop(open);
        remains
    }

    fn adopt(&self, top: &RelPath) -> Result<(), OpenError> {
        match &self.staging {
            Some(staging) => staging.adopt(top).map_err(|error| OpenError::Refused(error.to_string())),
            None => Ok(()),
        }
    }

    /// The first look: at everything, unless it is known what is there but for these names.
    fn look_first(
        &mut self,
        share: &Share,
        suspicion: Suspicion,
        stop: &AtomicBool,
        left: Option<(Rest, Names)>,
    ) -> Result<(Option<Names>, Drift), OpenError> {
        if let Some((rest, mut names)) = left
            && let Some(drift) = self.go_on_from(rest, share, &mut names, stop)?
        {
            return Ok((Some(names), drift));
        }
        Ok((None, self.look(share, suspicion, stop)?))
    }

    /// Looks at the tree, hashes what is not proven, and writes down what was found.
    fn look(&mut self, share: &Share, suspicion: Suspicion, stop: &AtomicBool) -> Result<Drift, OpenError> {
        let Some((found, privilege)) = self.found(share, suspicion, stop)? else { return Ok(Drift::default()) };
        let drift = self.drift_in(&found, None)?;
        self.write_down(found, privilege)?;
        Ok(drift)
    }

    /// Everything the session will believe is read here, where damage is still repaired.
    fn recall(&mut self) -> Result<(), IndexError> {
        self.index.intent()?;
        self.index.meta(UNFLUSHED)?;
        self.reached = Reached::read(&self.index)?;
        if self.index.stand()?.is_some() {
            // Cut off between the index and this.
            self.forget_before();
        }
        self.index.meta(guarding::KEPT)?;
        self.additions = self.index.additions()?.into_iter().collect();
        Ok(())
    }

    /// What the tree is beside its rows, with our privileges if they are not what they were; `None` if there is no tree.
    fn found(
        &mut self,
        share: &Share,
        suspicion: Suspicion,
        stop: &AtomicBool,
    ) -> Result<Option<(Survey, Option<[u8; 1]>)>, OpenError> {
        let Some(root) = self.root.clone() else { return Ok(None) };
        self.recall()?;
        let privilege = [u8::from(rustix::process::geteuid().is_root())];
        let reconsider_refused = self.index.meta(PRIVILEGE)?.is_some_and(|known| known != privilege);
        let filter = self.filter()?;
        let takes_unmounted = !suspicion.unmounted;
        let options = SurveyOptions { reconsider_refused, takes_unmounted, ..self.survey_options(share, &filter) };
        let go_on = |_| if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let survey_now = || survey(&root, &self.index, &options, &go_on, &mut |_, _| {});
        let mut found = survey_now()?;
        let (suspects, wary) = (suspicion.empty != Empty::Right, suspicion.empty == Empty::Replaced);
        if suspects && !self.policy.checksum && found.is_unmounted(&root, &self.index, wary)? {
            return Err(OpenError::Unmounted(share.describe()));
        }
        let thawed = self.staging.as_ref().is_some_and(|staging| staging.make_passable(&found.failures));
        if self.adopt_on_mounts(&root, &found)? || thawed {
            found = survey_now()?;
        }
        identify_all(&root, &mut found, stop)?;
        Ok(Some((found, reconsider_refused.then_some(privilege))))
    }

    /// The same of a few names; `None` if only a look at everything can tell.
    fn found_at(&self, share: &Share, names: &Names, stop: &AtomicBool) -> Result<Option<Survey>, OpenError> {
        let Some(root) = self.root.as_deref().filter(|_| self.is_plain && !self.policy.no_delete) else {
            return Ok(None);
        };
        let last = LastLook {
            tree: self.tree.clone(),
            entries: self.entries + 1,
            linked: self.names.values().flatten().cloned().collect(),
            apart: self.apart.iter().cloned().collect(),
        };
        let filter = self.filter()?;
        let Some(mut found) = survey_names(root, &self.index, &self.survey_options(share, &filter), &last, names)?
        else {
            return Ok(None);
        };
        identify_all(root, &mut found, stop)?;
        // What the kernel refused to make is not there, and not gone.
        let is_told = found.failures.is_empty() && found.gone.iter().all(|row| row.tuple.is_some());
        Ok(is_told.then_some(found))
    }

    fn filter(&self) -> Result<Filter, OpenError> {
        let rules: &[_] = if self.policy.delete_excluded { &[] } else { &self.policy.rules };
        Filter::new(rules).map_err(|e| OpenError::Refused(e.to_string()))
    }

    fn survey_options<'a>(&self, share: &Share, filter: &'a Filter) -> SurveyOptions<'a> {
        SurveyOptions {
            filter,
            one_file_system: self.policy.one_file_system,
            leave_out: crate::fs::place::identity(&share.state_dir).into_iter().collect(),
            checksum: self.policy.checksum,
            takes_unmounted: false,
            reserved: Reserved::Skip,
            is_watched: false,
            reconsider_refused: false,
            ignore_extras: self.policy.no_delete,
        }
    }

    /// What of it somebody else did. Before the first push has come to its end, and after one that was cut off while it was
    /// publishing, nobody knows.
    fn drift_in(&self, found: &Survey, names: Option<&Names>) -> Result<Drift, OpenError> {
        if !self.was_reached()? {
            return Ok(Drift::default());
        }
        // One that was killed could not give the time back to the directory that it had staged in.
        let is_left = |top: &&RelPath| {
            let left = top.join(STAGING_NAME.as_bytes()).ok();
            left.zip(self.root.as_ref()).is_some_and(|(left, root)| matches!(root.stat(&left), Ok(Some(_))))
        };
        let top = RelPath::root();
        let ours: Vec<RelPath> = std::iter::once(&top).chain(&found.mounts).filter(is_left).cloned().collect();
        Ok(Drift::of(found, names, self.policy.no_delete, &ours))
    }

    /// Whether what is there and has no row came after a push had come to its end.
    fn was_reached(&self) -> Result<bool, IndexError> {
        Ok(self.index.intent()?.is_none() && self.index.meta(POLICY)?.is_some())
    }

    /// What of it was not there before, in the tree that the rows are of. What came with another top directory or lies on
    /// a mount may be anything: to take that away is what the guard against deletions is to stop.
    fn additions_in(&self, found: &Survey) -> Result<Vec<RelPath>, OpenError> {
        let known = self.index.row(&RelPath::root())?.and_then(|row| row.tuple);
        let now = self.root.as_ref().and_then(|root| root.stat(&RelPath::root()).ok().flatten());
        let is_same = known.zip(now).is_some_and(|(known, now)| (known.fs, known.ino) == (now.tuple.fs, now.tuple.ino));
        // Nor is it known of what was there before a tree came in stretches, and has another name now.
        let is_new = is_same && self.before.entries().is_none() && self.was_reached()?;
        if self.policy.no_delete || !is_new {
            return Ok(Vec::new());
        }
        let new = found.pending.iter().filter(|pending| pending.before.is_none()).map(|pending| &pending.row.path);
        let on_mount = |path: &RelPath| found.mounts.iter().any(|mount| path == mount || path.is_beneath(mount));
        Ok(new.filter(|path| !on_mount(path)).cloned().collect())
    }

    /// Takes over what an earlier push left on mounts below the top; says whether there was anything.
    fn adopt_on_mounts(&self, root: &Root, found: &Survey) -> Result<bool, OpenError> {
        let mut any = false;
        for mount in found.mounts.iter().filter(|_| self.staging.is_some()) {
            let left = mount.join(STAGING_NAME.as_bytes()).ok().and_then(|path| root.stat(&path).ok().flatten());
            if left.is_some() {
                self.adopt(mount)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn write_down(&mut self, mut found: Survey, privilege: Option<[u8; 1]>) -> Result<(), OpenError> {
        self.is_plain = found.failures.is_empty() && found.mounts.is_empty();
        self.is_unmounted = found.has_lost_mounts;
        self.holds = found.holds();
        self.apart = Holds::new(found.apart.iter().cloned());
        found.pending.retain(|p| !self.holds.covers(&p.row.path));
        found.gone.retain(|row| !self.holds.covers(&row.path));
        let no_delete = self.policy.no_delete;
        // What is held here is as the index has it: the tree is told with it.
        let tree = match found.holds().is_empty() {
            true => Some(found.tree(&self.index, &mut self.remembered(), no_delete)?),
            false => None,
        };
        let added = self.additions_in(&found)?;
        let Survey { pending, gone, entries, contents, names, failures, mounts, unmade, .. } = found;
        self.unmade = unmade;
        self.report(failures);
        self.write_rows(&pending, &gone, added, &mounts, privilege)?;
        (self.contents, self.went) = (contents, 0);
        self.contents.extend(pending.iter().filter_map(|p| p.row.entry.content()).map(|(_, digest)| digest));
        self.names = names;
        // The top alone is no content worth a comparison.
        self.entries = entries.saturating_sub(1);
        self.tree = match tree {
            Some(tree) => tree,
            None => tree::hash_with(&self.index, std::iter::empty(), &Holds::default(), no_delete)?,
        };
        Ok(())
    }

    /// The same for a look at a few names, with what is known of the others.
    fn take_over(&mut self, mut found: Survey) -> Result<(), OpenError> {
        let tree = found.tree(&self.index, &mut self.remembered(), self.policy.no_delete)?;
        let added = self.additions_in(&found)?;
        let Survey { pending, gone, entries, .. } = found;
        self.went += (pending.len() + gone.len()) as u64;
        self.write_rows(&pending, &gone, added, &[], None)?;
        // Contents that went are not taken out: a look at all finds which are left.
        self.contents.extend(pending.iter().filter_map(|p| p.row.entry.content()).map(|(_, digest)| digest));
        self.entries = entries.saturating_sub(1);
        self.tree = tree;
        Ok(())
    }

    fn write_rows(
        &mut self,
        pending: &[Pending],
        gone: &[Row],
        added: Vec<RelPath>,
        mounts: &[RelPath],
        privilege: Option<[u8; 1]>,
    ) -> Result<(), OpenError> {
        if !pending.is_empty() || !gone.is_empty() || privilege.is_some() {
            self.index.write(0, |writer| -> Result<(), IndexError> {
                gone.iter().try_for_each(|row| writer.delete(&row.path).map(drop))?;
                pending.iter().try_for_each(|p| writer.upsert(&p.row))?;
                added.iter().try_for_each(|path| writer.note_addition(path))?;
                writer.set_meta(UNFLUSHED, Some(&[1]))?;
                privilege.map_or(Ok(()), |euid| writer.set_meta(PRIVILEGE, Some(&euid)))
            })?;
        }
        self.additions.extend(added);
        if let (Some(staging), true) = (&self.staging, self.is_unflushed()?) {
            let root = RelPath::root();
            let included = std::iter::once(&root).chain(mounts).map(|top| staging.include(top).err());
            let failures: Vec<FsError> = included.flatten().collect();
            self.report(failures);
        }
        Ok(())
    }
}

/// Reads what no row proves.
fn identify_all(root: &Root, found: &mut Survey, stop: &AtomicBool) -> Result<(), OpenError> {
    let options = IdentifyOptions {
        keep: 0,
        chunked: &|_, _| false,
        follow: &|_, _| None,
        draft: &|_, _, _| {},
        stop,
        read: &|_| {},
    };
    identify(root, found, &options, Early::default(), &mut |_, _| {});
    if stop.load(Ordering::Relaxed) { Err(SurveyError::Stopped.into()) } else { Ok(()) }
}

fn step_of<'a>(steps: &'a [Step], path: &RelPath) -> Option<&'a Step> {
    steps.binary_search_by(|step| step.path.cmp(path)).ok().map(|i| &steps[i])
}

fn open_root(share: &Share, dry_run: bool) -> Result<(Option<Root>, Made), OpenError> {
    let refused = |error: std::io::Error| OpenError::Refused(format!("cannot open {}: {error}", share.describe()));
    match Root::open(&share.path) {
        Ok(root) => Ok((Some(root), Made(None))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && dry_run => Ok((None, Made(None))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && share.name.is_empty() => {
            crate::fs::place::create(&share.path).map_err(refused)?;
            let made = Made(Some(share.path.clone()));
            Ok((Some(Root::open(&share.path).map_err(refused)?), made))
        }
        Err(error) => Err(refused(error)),
    }
}

/// Waits for another push to end, but not for long: long enough for a killed one to be noticed. Who pushes may own the share
/// by then.
fn lock(share: &Share, root: &Root, stop: &AtomicBool, admission: Option<&Admission>) -> Result<RootLock, OpenError> {
    const PATIENCE: Duration = Duration::from_secs(20);
    const NAP: Duration = Duration::from_millis(50);
    let started = Instant::now();
    loop {
        let locked = root.lock().map_err(|e| OpenError::Refused(format!("cannot lock {}: {e}", share.describe())))?;
        admission.map_or(Ok(()), Admission::check)?;
        match locked {
            Some(lock) => return Ok(lock),
            None if stop.load(Ordering::Relaxed) => return Err(SurveyError::Stopped.into()),
            None if started.elapsed() > PATIENCE => {
                let busy = format!(
                    "{} is in use: another push to it is under way, or a mirror follows it, as `synccli status` there tells; \
                     push again when it is done; what a mirror has is compared with `synccli verify` on its master",
                    share.describe()
                );
                return Err(OpenError::Refused(busy));
            }
            None => std::thread::sleep(NAP),
        }
    }
}

fn open_index(share: &Share, is_dry: bool, notices: &mut Vec<String>) -> Result<(Index, bool), OpenError> {
    let dir = index_dir(share).map_err(OpenError::Refused)?;
    let opened = if is_dry { Index::scratch_copy(&dir)? } else { Index::open(&dir, BUSY)? };
    notices.extend(opened.rebuilt.as_deref().map(rebuilt));
    Ok((opened.index, opened.fresh && opened.rebuilt.is_none()))
}

fn index_dir(share: &Share) -> Result<PathBuf, String> {
    let state = StateDir::at(&share.state_dir);
    if !share.name.is_empty() {
        return Ok(state.share_index_dir(&share.name));
    }
    let show = |path: &Path| escape(path.as_os_str().as_encoded_bytes());
    let place =
        crate::fs::place::resolve(&share.path).map_err(|e| format!("cannot find {}: {e}", show(&share.path)))?;
    Ok(state.replica_index_dir(&place))
}

fn rebuilt(reason: &str) -> String {
    format!("the index of the replica was rebuilt: {reason}; every file there is read once")
}
