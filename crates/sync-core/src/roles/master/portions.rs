//! A first look at a large tree: what it finds goes into the index in portions, ahead of the version, so that neither the look nor
//! what is told of it holds all of the tree in memory. Whoever is interrupted has not read those files in vain.
//!
//! Only before the first version: until that is committed nobody is told from rows, so that they may be ahead of it, and what goes from among
//! them was never published.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::error::PushError;
use super::meter::Meter;
use super::source::{LOOKS, Source};
use crate::index::{Index, IndexError};
use crate::monitor::Monitor;
use crate::roles::identify::{Early, Identified, IdentifyOptions, identify, read_ahead};
use crate::roles::survey::{Pending, Portions, Survey, SurveyError, write_pending};

/// Entries of a portion: some 20 MB at the master until they are in the index, and at a replica until they are published. What a smaller tree
/// has is offered and told from memory; of a larger one its contents are the last that are offered, and what they belong to is the first stretch.
pub const PORTION: usize = 3 << 14;

impl Source {
    /// Looks at a tree that has no version. A small one is read ahead of the look's end, and left pending in what is returned;
    /// of a large one nothing is. Returns as well how long reading it took that did not go beside the look.
    pub(super) fn look_first(
        &self,
        stop: &AtomicBool,
        meter: &Meter,
        monitor: &dyn Monitor,
        options: &IdentifyOptions<'_>,
        found: &mut (dyn FnMut(&Pending, Identified) + Send),
    ) -> Result<(Survey, Early, Duration), PushError> {
        // Who believes no row would read twice what the first portion has.
        if self.index.has_rows()? || self.believes_nothing() {
            let (survey, read) = self.look_in_portions(stop, meter, monitor, options)?;
            return Ok((survey, Early::default(), read));
        }
        let (survey, early) = read_ahead(&self.root, options, found, |found| {
            let take = &mut |_: &mut Survey| Ok(ControlFlow::Break(()));
            self.survey(1, stop, meter, found, Some(Portions { most: PORTION, take }))
        });
        let mut survey = survey?;
        if !survey.is_cut {
            return Ok((survey, early, Duration::ZERO));
        }
        let began = Instant::now();
        meter.to_hash(survey.bytes_to_hash());
        identify(&self.root, &mut survey, options, early, found);
        self.write_ahead(&survey.pending, stop, monitor)?;
        drop(survey);
        let first = began.elapsed();
        let (survey, read) = self.look_in_portions(stop, meter, monitor, options)?;
        Ok((survey, Early::default(), first + read))
    }

    /// Looks at all of the tree, and leaves nothing pending and nothing gone; returns also how long reading and writing took.
    fn look_in_portions(
        &self,
        stop: &AtomicBool,
        meter: &Meter,
        monitor: &dyn Monitor,
        options: &IdentifyOptions<'_>,
    ) -> Result<(Survey, Duration), PushError> {
        // So much waits for nobody: it is not offered.
        let found = &mut |_: &Pending, identified: Identified| self.remember(&identified);
        let mut read = Duration::ZERO;
        let mut take = |survey: &mut Survey| -> Result<ControlFlow<()>, SurveyError> {
            let began = Instant::now();
            meter.to_hash(survey.bytes_to_hash());
            identify(&self.root, survey, options, Early::default(), found);
            self.write_ahead(&survey.pending, stop, monitor)?;
            read += began.elapsed();
            Ok(ControlFlow::Continue(()))
        };
        let portions = Portions { most: PORTION, take: &mut take };
        let mut survey = self.survey(LOOKS, stop, meter, &mut |_, _| {}, Some(portions))?;
        let _ = take(&mut survey)?;
        // What an earlier look has written and is gone is nobody's loss.
        let number = next_number(&self.index)?;
        self.index.write(number, |writer| writer.delete_all(&survey.gone))?;
        survey.passed_on();
        Ok((survey, read))
    }

    fn write_ahead(&self, pending: &[Pending], stop: &AtomicBool, monitor: &dyn Monitor) -> Result<(), SurveyError> {
        if stop.load(Ordering::Relaxed) {
            return Err(SurveyError::Stopped);
        }
        let number = next_number(&self.index)?;
        let chunks = self.take_chunks();
        let write = || {
            self.index.write(number, |writer| {
                write_pending(writer, pending)?;
                chunks.iter().try_for_each(|(digest, chunks)| writer.put_chunks(digest, chunks))
            })
        };
        match &self.previous {
            Some(previous) => previous.giving_room(self.history.as_ref(), monitor, write),
            None => write(),
        }?;
        Ok(())
    }
}

/// The number of the next version.
///
/// # Errors
/// [`IndexError`] if the index cannot be read.
fn next_number(index: &Index) -> Result<u64, IndexError> {
    Ok(index.next_version()?.map_or(1, |next| next.number))
}
