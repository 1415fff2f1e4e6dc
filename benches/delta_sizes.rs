//! What a changed tree costs on the wire, by every way of sending it that was considered.
//!
//! ```text
//! cargo bench --bench delta_sizes -- OLD NEW [--only SECTION,...] [--average BYTES] [--results DIR]
//! ```
//!
//! OLD and NEW are two versions of one tree: what the replica has, and what the master has. Nothing is sent; what would be
//! sent is made in memory and measured, so both trees must fit into memory twice. Bytes are exact and the same in every
//! run; CPU seconds are of one thread and drift.
//!
//! A file whose content the replica has under any name costs nothing here, nor does the second of two equal new files. What
//! is left is *sent*: changed files (the path has an older content) and new ones.
//!
//! | section | question |
//! |---|---|
//! | `pieces` | how fine to cut: literals, signatures, ops and their compressed sizes, by average, minimum and maximum |
//! | `blocks` | the same with fixed blocks found by a rolling sum, as rsync does |
//! | `hashes` | how many bytes of a piece's hash: what they cost, and what a wrong match costs |
//! | `aligned` | shorter hashes where a match must also stand near the last one |
//! | `compress` | files alone, batches alone, one stream, two streams: window, level, long distances, table sizes |
//! | `levels` | what each level costs and wins with the settings of the program: a stream, its halves, frames behind gaps |
//! | `order` | tree order, by extension, by base name |
//! | `threshold` | the size of an old file from which a signature pays |
//! | `names` | a new file cut against an old one of a similar name |
//! | `context` | literals compressed with what both sides know: the pieces copied in the same batch |
//! | `previous` | the master keeps the old content: as a zstd prefix, per file and per batch, with history |
//! | `dictionary` | a dictionary trained on OLD |
//!
//! `--average` is the average piece of the sections after `blocks` (512). Each row is printed and, with `--results`,
//! written to `DIR/DATE-delta-sizes.json`, and the table to `.txt` beside it. Without OLD and NEW nothing is measured.

#![allow(clippy::disallowed_methods, reason = "a measurement reads two trees and writes its results")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fastcdc::v2020::{FastCDC, Normalization};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective};
use zstd::zstd_safe::{compress_bound, zstd_sys::ZSTD_EndDirective as End};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Raw bytes of a frame on the wire; the stream is flushed after each.
const FRAME: usize = 512 * KIB;

// ---------------------------------------------------------------------------------------------------------------------
// Trees

/// Regular files by path, in tree order: a directory's files stand together.
type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

fn read_tree(root: &Path) -> Result<Tree> {
    fn walk(dir: &Path, prefix: &[u8], into: &mut Tree) -> Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let mut path = prefix.to_vec();
            path.extend_from_slice(entry.file_name().as_encoded_bytes());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                // NUL sorts before every other byte of a name, so that the order is that of components.
                path.push(0);
                walk(&entry.path(), &path, into)?;
            } else if kind.is_file() {
                into.insert(path, std::fs::read(entry.path())?);
            }
        }
        Ok(())
    }
    let mut tree = Tree::new();
    walk(root, b"", &mut tree)?;
    Ok(tree)
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == 0).next().unwrap_or(path)
}

fn extension(path: &[u8]) -> &[u8] {
    let name = base_name(path);
    name.iter().rposition(|b| *b == b'.').map_or(b"", |at| &name[at + 1..])
}

/// A file of which content is sent.
#[derive(Clone, Copy)]
struct Sent<'a> {
    path: &'a [u8],
    new: &'a [u8],
    old: Option<&'a [u8]>,
}

/// Files with content that the replica has under no name, each content once, in tree order.
fn sent<'a>(old: &'a Tree, new: &'a Tree) -> Vec<Sent<'a>> {
    let mut known: HashSet<blake3::Hash> = old.values().map(|bytes| blake3::hash(bytes)).collect();
    let mut list = Vec::new();
    for (path, bytes) in new {
        if known.insert(blake3::hash(bytes)) {
            list.push(Sent { path, new: bytes, old: old.get(path).map(Vec::as_slice) });
        }
    }
    list
}

// ---------------------------------------------------------------------------------------------------------------------
// Cutting and matching

/// Minimum, average and maximum length of a piece, and how narrowly lengths lie around the average (0 to 3).
#[derive(Clone, Copy)]
struct Cut(usize, usize, usize, u8);

impl Cut {
    fn around(average: usize) -> Self {
        Self(average / 4, average, average * 4, 1)
    }

    fn normalized(self, level: u8) -> Self {
        Self(self.0, self.1, self.2, level)
    }

    fn pieces(self, bytes: &[u8]) -> Vec<Range<usize>> {
        let level = match self.3 {
            0 => Normalization::Level0,
            1 => Normalization::Level1,
            2 => Normalization::Level2,
            _ => Normalization::Level3,
        };
        FastCDC::with_level(bytes, self.0, self.1, self.2, level)
            .map(|piece| piece.offset..piece.offset + piece.length)
            .collect()
    }
}

fn short_hash(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

fn varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// How one file is sent: what is copied and what is not, in the order of the new content.
#[derive(Default, Clone)]
struct Delta {
    literals: Vec<Range<usize>>,
    copies: Vec<Range<usize>>,
    /// Of the old content, what is copied nowhere.
    missed: Vec<Range<usize>>,
    ops: Vec<u8>,
    /// Pieces or blocks of the old content: as many hashes the replica sends.
    pieces: usize,
    /// Whether a hash of 2, 3 or 4 bytes would have matched wrongly.
    wrong: [bool; 3],
}

impl Delta {
    fn whole(new: &[u8]) -> Self {
        let mut delta = Self::default();
        if !new.is_empty() {
            delta.literals.push(0..new.len());
            varint(new.len() as u64, &mut delta.ops);
        }
        delta
    }

    fn literal_bytes(&self) -> usize {
        self.literals.iter().map(Range::len).sum()
    }
}

/// Collects ops: literal length, then the first piece of a copy relative to the one expected, then their number.
#[derive(Default)]
struct Ops {
    delta: Delta,
    literal: usize,
    run: Option<(usize, usize)>,
    expected: usize,
}

impl Ops {
    fn literal(&mut self, range: Range<usize>) {
        self.end_run();
        self.literal += range.len();
        match self.delta.literals.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.delta.literals.push(range),
        }
    }

    fn copy(&mut self, piece: usize, range: Range<usize>) {
        match self.delta.copies.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.delta.copies.push(range),
        }
        match &mut self.run {
            Some((first, count)) if *first + *count == piece => *count += 1,
            _ => {
                self.end_run();
                self.run = Some((piece, 1));
            }
        }
    }

    fn end_run(&mut self) {
        let Some((first, count)) = self.run.take() else { return };
        varint(self.literal as u64, &mut self.delta.ops);
        let step = first as i64 - self.expected as i64;
        varint(((step << 1) ^ (step >> 63)) as u64, &mut self.delta.ops);
        varint(count as u64, &mut self.delta.ops);
        self.literal = 0;
        self.expected = first + count;
    }

    fn finish(mut self) -> Delta {
        self.end_run();
        if self.literal > 0 {
            varint(self.literal as u64, &mut self.delta.ops);
        }
        self.delta
    }
}

/// Both sides cut alike; a piece of the new content with the hash of an old one is copied.
fn by_pieces(old: &[u8], new: &[u8], cut: Cut) -> Delta {
    let olds = cut.pieces(old);
    let mut places: HashMap<u64, usize> = HashMap::with_capacity(olds.len());
    let mut hashes = Vec::with_capacity(olds.len());
    for (at, piece) in olds.iter().enumerate() {
        let hash = short_hash(&old[piece.clone()]);
        places.entry(hash).or_insert(at);
        hashes.push(hash);
    }
    let mut short: [HashSet<u64>; 3] = Default::default();
    for (bytes, set) in (2..).zip(&mut short) {
        set.extend(hashes.iter().map(|hash| hash & ((1 << (8 * bytes)) - 1)));
    }
    let mut ops = Ops::default();
    ops.delta.pieces = olds.len();
    let mut used = vec![false; olds.len()];
    for piece in cut.pieces(new) {
        let hash = short_hash(&new[piece.clone()]);
        let next = ops.run.map_or(ops.expected, |(first, count)| first + count);
        if hashes.get(next) == Some(&hash) {
            used[next] = true;
            ops.copy(next, piece);
        } else if let Some(at) = places.get(&hash) {
            used[*at] = true;
            ops.copy(*at, piece);
        } else {
            for (bytes, set) in (2..).zip(&short) {
                ops.delta.wrong[bytes - 2] |= set.contains(&(hash & ((1 << (8 * bytes)) - 1)));
            }
            ops.literal(piece);
        }
    }
    let mut delta = ops.finish();
    delta.missed = olds.into_iter().zip(used).filter(|(_, used)| !used).map(|(piece, _)| piece).collect();
    delta
}

/// A rule for the bits of a hash, by the number of pieces of the old content.
type Bits = dyn Fn(u64) -> u32;

/// As [`by_pieces`], with hashes as short as `bits` says. A match counts only if it is within `reach` pieces of where the
/// last copy ended, or if the next piece matches as well: then little is left to chance, and hashes may be short.
fn by_aligned(old: &[u8], new: &[u8], cut: Cut, reach: usize, bits: &Bits) -> (Delta, usize, bool) {
    let full = |bytes: &[u8]| -> Vec<u64> { cut.pieces(bytes).into_iter().map(|p| short_hash(&bytes[p])).collect() };
    let (olds, news) = (full(old), full(new));
    let bits = bits(olds.len() as u64).clamp(8, 64);
    let short = |hash: u64| hash & (u64::MAX >> (64 - bits));
    let mut places: HashMap<u64, Vec<usize>> = HashMap::new();
    for (at, hash) in olds.iter().enumerate() {
        places.entry(short(*hash)).or_default().push(at);
    }
    let mut wrong = false;
    let mut ops = Ops::default();
    ops.delta.pieces = olds.len();
    for (at, piece) in cut.pieces(new).into_iter().enumerate() {
        let next = ops.run.map_or(ops.expected, |(first, count)| first + count);
        let candidates = places.get(&short(news[at])).map(Vec::as_slice).unwrap_or_default();
        let near = candidates.partition_point(|place| *place < next);
        let nearest = candidates[near..].first().into_iter().chain(candidates[..near].last());
        let close = nearest.min_by_key(|place| place.abs_diff(next)).filter(|place| place.abs_diff(next) <= reach);
        let pair = || {
            let after = short(*news.get(at + 1)?);
            candidates.iter().take(64).find(|place| olds.get(*place + 1).is_some_and(|hash| short(*hash) == after))
        };
        if let Some(place) = close.or_else(pair) {
            wrong |= olds[*place] != news[at];
            ops.copy(*place, piece);
        } else {
            ops.literal(piece);
        }
    }
    (ops.finish(), (olds.len() * bits as usize).div_ceil(8), wrong)
}

/// Fixed blocks of the old content found anywhere in the new one, byte by byte, as rsync does. The comparison is of bytes:
/// what a perfect hash would find.
fn by_blocks(old: &[u8], new: &[u8], block: usize) -> Delta {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    fn roll(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |sum: u64, b| sum.wrapping_mul(FACTOR).wrapping_add(u64::from(*b) + 1))
    }
    let slot = |sum: u64| (sum.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 48) as usize;
    let mut places: HashMap<u64, usize> = HashMap::new();
    let mut maybe = vec![false; 1 << 16];
    for (at, bytes) in old.chunks_exact(block).enumerate() {
        let sum = roll(bytes);
        places.entry(sum).or_insert(at);
        maybe[slot(sum)] = true;
    }
    let full = old.len() / block;
    let tail = &old[full * block..];
    let mut ops = Ops::default();
    ops.delta.pieces = full + usize::from(!tail.is_empty());
    let leaving = (0..block).fold(1u64, |power, _| power.wrapping_mul(FACTOR));
    let (mut from, mut at) = (0, 0);
    let mut sum = new.get(..block).map(roll);
    while let Some(value) = sum {
        let window = &new[at..at + block];
        let mut hit = None;
        if maybe[slot(value)] {
            let next = ops.run.map_or(ops.expected, |(first, count)| first + count);
            if next < full && &old[next * block..][..block] == window {
                hit = Some(next);
            } else if let Some(place) = places.get(&value) {
                hit = (&old[place * block..][..block] == window).then_some(*place);
            }
        }
        if let Some(place) = hit {
            if from < at {
                ops.literal(from..at);
            }
            ops.copy(place, at..at + block);
            at += block;
            from = at;
            sum = new.get(at..at + block).map(roll);
        } else {
            sum = new.get(at + block).map(|entering| {
                value
                    .wrapping_mul(FACTOR)
                    .wrapping_add(u64::from(*entering) + 1)
                    .wrapping_sub((u64::from(new[at]) + 1).wrapping_mul(leaving))
            });
            at += 1;
        }
    }
    let rest = &new[from..];
    if !tail.is_empty() && rest.ends_with(tail) {
        let start = new.len() - tail.len();
        if from < start {
            ops.literal(from..start);
        }
        ops.copy(full, start..new.len());
    } else if !rest.is_empty() {
        ops.literal(from..new.len());
    }
    ops.finish()
}

/// What a whole set of files costs before compression.
#[derive(Default)]
struct Sums {
    literals: usize,
    pieces: usize,
    ops: Vec<u8>,
    wrong_files: [usize; 3],
    wrong_bytes: [usize; 3],
}

fn sums(files: &[Sent<'_>], deltas: &[Delta]) -> Sums {
    let mut all = Sums::default();
    for (file, delta) in files.iter().zip(deltas) {
        all.literals += delta.literal_bytes();
        all.pieces += delta.pieces;
        all.ops.extend_from_slice(&delta.ops);
        for (at, wrong) in delta.wrong.iter().enumerate() {
            if *wrong {
                all.wrong_files[at] += 1;
                all.wrong_bytes[at] += file.new.len();
            }
        }
    }
    all
}

/// Deltas of all files; one whose old content is shorter than `threshold` is sent whole.
fn deltas(files: &[Sent<'_>], threshold: usize, how: impl Fn(&[u8], &[u8]) -> Delta) -> Vec<Delta> {
    files
        .iter()
        .map(|file| match file.old {
            Some(old) if old.len() >= threshold => how(old, file.new),
            _ => Delta::whole(file.new),
        })
        .collect()
}

fn literals_of(file: &Sent<'_>, delta: &Delta) -> Vec<u8> {
    delta.literals.iter().flat_map(|range| &file.new[range.clone()]).copied().collect()
}

fn literals(files: &[Sent<'_>], deltas: &[Delta]) -> Vec<u8> {
    files.iter().zip(deltas).flat_map(|(file, delta)| literals_of(file, delta)).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Compression

#[derive(Clone, Copy, Default)]
struct Setting {
    level: i32,
    window: u32,
    long: bool,
    /// Shortest long match and log of how rarely positions are noted for it, beyond the library's own.
    finer: Option<(u32, u32)>,
    /// Log of the entries of the hash and chain tables, beyond the level's own.
    tables: Option<u32>,
}

impl Setting {
    fn new(level: i32, window: u32) -> Self {
        Self { level, window, ..Self::default() }
    }

    fn long(self) -> Self {
        Self { long: true, ..self }
    }

    fn finer(self, shortest: u32, rate: u32) -> Self {
        Self { long: true, finer: Some((shortest, rate)), ..self }
    }

    fn tables(self, log: u32) -> Self {
        Self { tables: Some(log), ..self }
    }

    fn apply(self, context: &mut CCtx<'_>) -> Result<()> {
        z(context.reset(ResetDirective::SessionAndParameters))?;
        z(context.set_parameter(CParameter::CompressionLevel(self.level)))?;
        z(context.set_parameter(CParameter::ContentSizeFlag(false)))?;
        if self.window > 0 {
            z(context.set_parameter(CParameter::WindowLog(self.window)))?;
        }
        if self.long {
            z(context.set_parameter(CParameter::EnableLongDistanceMatching(true)))?;
        }
        if let Some((shortest, rate)) = self.finer {
            z(context.set_parameter(CParameter::LdmMinMatch(shortest)))?;
            z(context.set_parameter(CParameter::LdmHashRateLog(rate)))?;
        }
        if let Some(log) = self.tables {
            z(context.set_parameter(CParameter::HashLog(log)))?;
            z(context.set_parameter(CParameter::ChainLog(log)))?;
        }
        Ok(())
    }

    fn name(self) -> String {
        let mut name = format!("level {}", self.level);
        if self.window > 0 {
            let _ = write!(name, " window {}", self.window);
        }
        if self.long {
            name.push_str(" long");
        }
        if let Some((shortest, rate)) = self.finer {
            let _ = write!(name, " {shortest}/{rate}");
        }
        if let Some(log) = self.tables {
            let _ = write!(name, " tables {log}");
        }
        name
    }
}

fn z(result: std::result::Result<usize, usize>) -> Result<usize> {
    result.map_err(|code| zstd::zstd_safe::get_error_name(code).into())
}

/// Bytes and CPU seconds.
type Cost = (usize, f64);

fn cpu() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn timed(work: impl FnOnce() -> Result<usize>) -> Result<Cost> {
    let start = cpu();
    let bytes = work()?;
    Ok((bytes, cpu() - start))
}

/// One stream over all frames, flushed after each.
fn stream<'a>(frames: impl Iterator<Item = &'a [u8]>, setting: Setting) -> Result<Cost> {
    stream_after(&[], frames, setting)
}

fn stream_after<'a>(prefix: &[u8], frames: impl Iterator<Item = &'a [u8]>, setting: Setting) -> Result<Cost> {
    timed(|| {
        let mut context = CCtx::create();
        setting.apply(&mut context)?;
        if !prefix.is_empty() {
            z(context.ref_prefix(prefix))?;
        }
        let mut room = Vec::with_capacity(compress_bound(FRAME) + KIB);
        let mut total = 0;
        for frame in frames {
            let mut input = InBuffer::around(frame);
            loop {
                room.clear();
                let mut output = OutBuffer::around(&mut room);
                let left = z(context.compress_stream2(&mut output, &mut input, End::ZSTD_e_flush))?;
                total += output.pos();
                if left == 0 && input.pos() == frame.len() {
                    break;
                }
            }
        }
        Ok(total)
    })
}

/// Each part a frame of its own, with what it may refer to before it.
fn alone<'a>(parts: impl Iterator<Item = (&'a [u8], &'a [u8])>, setting: Setting) -> Result<Cost> {
    timed(|| {
        let mut total = 0;
        let mut context = CCtx::create();
        for (prefix, part) in parts {
            total += frame_after(&mut context, prefix, part, setting)?;
        }
        Ok(total)
    })
}

fn frame_after<'a>(context: &mut CCtx<'a>, prefix: &'a [u8], part: &[u8], mut setting: Setting) -> Result<usize> {
    if part.is_empty() {
        return Ok(0);
    }
    // A window that reaches from the end of the part to the start of the prefix, and no more.
    let reach = usize::BITS - (prefix.len() + part.len()).leading_zeros();
    setting.window = reach.clamp(10, 27);
    setting.apply(context)?;
    z(context.set_pledged_src_size(Some(part.len() as u64)))?;
    if !prefix.is_empty() {
        z(context.ref_prefix(prefix))?;
    }
    let mut room = Vec::with_capacity(compress_bound(part.len()));
    z(context.compress2(&mut room, part))
}

/// What both sides have before a batch and what is sent in it.
#[derive(Default)]
struct Batch {
    known: Vec<u8>,
    payload: Vec<u8>,
}

/// Fills batches with `(known, payload)` of files until the payload is `size`.
fn batches(parts: impl Iterator<Item = (Vec<u8>, Vec<u8>)>, size: usize) -> Vec<Batch> {
    let mut list = Vec::new();
    let mut batch = Batch::default();
    for (known, payload) in parts {
        batch.known.extend_from_slice(&known);
        batch.payload.extend_from_slice(&payload);
        if batch.payload.len() >= size {
            list.push(std::mem::take(&mut batch));
        }
    }
    if !batch.payload.is_empty() {
        list.push(batch);
    }
    list
}

/// Each batch a frame with `history` bytes of what was known or sent before, and what is known in it, as its prefix.
fn with_history(batches: &[Batch], history: usize, keep_known: bool, setting: Setting) -> Result<Cost> {
    timed(|| {
        let mut total = 0;
        let mut past: Vec<u8> = Vec::new();
        for batch in batches {
            let mut prefix = past.clone();
            prefix.extend_from_slice(&batch.known);
            let mut context = CCtx::create();
            total += frame_after(&mut context, &prefix, &batch.payload, setting)?;
            if keep_known {
                past.extend_from_slice(&batch.known);
            }
            past.extend_from_slice(&batch.payload);
            past.drain(..past.len().saturating_sub(history));
        }
        Ok(total)
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// Results

#[derive(Default)]
struct Results {
    rows: Vec<Value>,
    text: String,
}

impl Results {
    fn section(&mut self, name: &str, what: &str) {
        self.line(&format!("\n{name}: {what}"));
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// A row: numbers of bytes (in MB if large), counts and seconds under their names.
    fn row(&mut self, section: &str, name: &str, fields: &[(&str, f64)]) {
        let mut line = format!("  {name:<44}");
        let mut object = Map::new();
        object.insert("section".into(), json!(section));
        object.insert("name".into(), json!(name));
        for (field, value) in fields {
            if *field == "cpu" {
                let _ = write!(line, "  {field} {value:.2}");
                object.insert((*field).into(), json!((value * 1000.0).round() / 1000.0));
            } else {
                if *value >= 1e5 {
                    let _ = write!(line, "  {field} {:.2}M", value / 1e6);
                } else {
                    let _ = write!(line, "  {field} {value}");
                }
                object.insert((*field).into(), json!(*value as u64));
            }
        }
        self.rows.push(Value::Object(object));
        self.line(&line);
    }

    fn cost(&mut self, section: &str, name: &str, (bytes, seconds): Cost) {
        self.row(section, name, &[("bytes", bytes as f64), ("cpu", seconds)]);
    }
}

/// `YYYY-MM-DD-HHMMSS` of now, in UTC.
fn date() -> String {
    let seconds = clock_gettime(ClockId::Realtime).tv_sec;
    let (days, rest) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}-{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

// ---------------------------------------------------------------------------------------------------------------------
// Sections

/// A cheap and a dear setting by which whole ways are compared.
const CHEAP: (i32, u32) = (3, 23);
const DEAR: (i32, u32) = (9, 25);

fn way(
    results: &mut Results,
    section: &str,
    name: &str,
    files: &[Sent<'_>],
    deltas: &[Delta],
    hash: usize,
) -> Result<()> {
    let sums = sums(files, deltas);
    let raw = literals(files, deltas);
    let ops = stream(sums.ops.chunks(FRAME), Setting::new(3, 0))?.0;
    let cheap = stream(raw.chunks(FRAME), Setting::new(CHEAP.0, CHEAP.1))?;
    let dear = stream(raw.chunks(FRAME), Setting::new(DEAR.0, DEAR.1))?;
    let besides = ops + sums.pieces * hash;
    results.row(
        section,
        name,
        &[
            ("literals", sums.literals as f64),
            ("pieces", sums.pieces as f64),
            ("signatures", (sums.pieces * hash) as f64),
            ("ops", sums.ops.len() as f64),
            ("ops_zstd", ops as f64),
            ("wrong2", sums.wrong_files[0] as f64),
            ("wrong3", sums.wrong_files[1] as f64),
            ("wrong3_bytes", sums.wrong_bytes[1] as f64),
            ("wrong4", sums.wrong_files[2] as f64),
            ("cheap", cheap.0 as f64),
            ("cheap_total", (cheap.0 + besides) as f64),
            ("dear", dear.0 as f64),
            ("dear_total", (dear.0 + besides) as f64),
        ],
    );
    Ok(())
}

fn pieces(results: &mut Results, files: &[Sent<'_>], old: &Tree) -> Result<()> {
    results.section(
        "pieces",
        "3 bytes a piece; cheap: level 3 window 23, dear: level 9 window 25, totals with ops and signatures",
    );
    way(results, "pieces", "whole", files, &deltas(files, usize::MAX, |_, _| Delta::default()), 3)?;
    for average in [256, 512, 1024, 2048, 4096] {
        let mut cuts = vec![Cut::around(average), Cut(average / 2, average, (average * 4).max(1024), 1)];
        if average > 256 {
            cuts.push(Cut(average / 4, average, average * 2, 1));
            cuts.push(Cut(64, average, average * 8, 1));
        }
        if average <= 1024 {
            cuts.extend([0, 2, 3].map(|level| Cut::around(average).normalized(level)));
        }
        for cut in cuts {
            let name = format!("min {} average {} max {} narrow {}", cut.0, cut.1, cut.2, cut.3);
            let deltas = deltas(files, 0, |old, new| by_pieces(old, new, cut));
            way(results, "pieces", &name, files, &deltas, 3)?;
        }
    }
    // The bound of what a chunk index over the whole share could find.
    let cut = Cut::around(1024);
    let mut anywhere: HashSet<u64> = HashSet::new();
    for bytes in old.values() {
        anywhere.extend(cut.pieces(bytes).into_iter().map(|piece| short_hash(&bytes[piece])));
    }
    let found: Vec<Delta> = files
        .iter()
        .map(|file| {
            let mut ops = Ops::default();
            for piece in cut.pieces(file.new) {
                if anywhere.contains(&short_hash(&file.new[piece.clone()])) {
                    ops.copy(ops.expected, piece);
                } else {
                    ops.literal(piece);
                }
            }
            ops.finish()
        })
        .collect();
    way(results, "pieces", "average 1024, found anywhere in OLD (bound)", files, &found, 0)
}

/// How many bytes of each hash: fixed, or by the number of pieces of the file, and what goes wrong then.
fn hashes(results: &mut Results, files: &[Sent<'_>], cut: Cut) -> Result<()> {
    results.section(
        "hashes",
        "bytes of hashes, files and their bytes of which a piece is matched wrongly, what they cost again",
    );
    let sides: Vec<(Vec<u64>, Vec<u64>, &[u8])> = files
        .iter()
        .filter_map(|file| {
            let of = |bytes: &[u8]| cut.pieces(bytes).into_iter().map(|piece| short_hash(&bytes[piece])).collect();
            file.old.map(|old| (of(old), of(file.new), file.new))
        })
        .collect();
    type Rule = (String, Box<dyn Fn(u64) -> u32>);
    let mut rules: Vec<Rule> =
        (2..=5u32).map(|bytes| (format!("{bytes} bytes"), Box::new(move |_: u64| -> u32 { 8 * bytes }) as _)).collect();
    for spare in [0, 3, 6, 8, 10, 12] {
        let bits = move |pieces: u64| -> u32 { 2 * (64 - pieces.leading_zeros()) + spare };
        rules.push((
            format!("pieces^2 x 2^{spare}, in bytes"),
            Box::new(move |pieces| bits(pieces).next_multiple_of(8)),
        ));
        rules.push((format!("pieces^2 x 2^{spare}, in bits"), Box::new(bits)));
    }
    for (name, rule) in &rules {
        let (mut signatures, mut wrong, mut wrong_bytes, mut longer) = (0, 0, 0, 0);
        let mut again = Vec::new();
        let fixed = !name.starts_with("pieces");
        for (old, new, bytes) in &sides {
            let distinct: HashSet<u64> = old.iter().copied().collect();
            let cut_to = |bits: u32| move |hash: u64| hash & (u64::MAX >> (64 - bits.min(64)));
            let mut bits = rule(old.len() as u64).clamp(8, 64);
            // The replica sees its own pieces collide and says so by taking more.
            while !fixed
                && distinct.iter().map(|hash| cut_to(bits)(*hash)).collect::<HashSet<_>>().len() < distinct.len()
            {
                bits += 8;
                longer += 1;
            }
            signatures += (old.len() * bits as usize).div_ceil(8);
            let mut first: HashMap<u64, u64> = HashMap::new();
            for hash in old {
                first.entry(cut_to(bits)(*hash)).or_insert(*hash);
            }
            if new.iter().any(|hash| first.get(&cut_to(bits)(*hash)).is_some_and(|match_| match_ != hash)) {
                wrong += 1;
                wrong_bytes += bytes.len();
                again.extend_from_slice(bytes);
            }
        }
        let again = stream(again.chunks(FRAME), Setting::new(CHEAP.0, CHEAP.1))?.0;
        results.row(
            "hashes",
            name,
            &[
                ("signatures", signatures as f64),
                ("wrong", f64::from(wrong)),
                ("wrong_bytes", wrong_bytes as f64),
                ("again", again as f64),
                ("longer", f64::from(longer)),
                ("total", (signatures + again) as f64),
            ],
        );
    }
    Ok(())
}

fn aligned(results: &mut Results, files: &[Sent<'_>]) -> Result<()> {
    let section = "aligned";
    results.section(
        section,
        "short hashes, a match only near the last one or in a pair; dear, files matched wrongly again",
    );
    let log = |pieces: u64| 64 - pieces.leading_zeros();
    let mut rules: Vec<(String, usize, Box<Bits>)> = Vec::new();
    for bits in [16, 20, 24] {
        rules.push((format!("{bits} bits"), 32, Box::new(move |_| bits)));
    }
    for (reach, spare) in [(16, 6), (64, 6), (64, 8)] {
        let rule = move |pieces| log(pieces) + log(pieces.min(2 * reach)) + spare;
        rules.push((format!("log pieces + log reach + {spare}"), reach as usize, Box::new(rule)));
    }
    let cuts = [
        ("256", Cut::around(256), Cut::around(256)),
        ("512", Cut::around(512), Cut::around(512)),
        ("512 narrow", Cut::around(512).normalized(3), Cut::around(512).normalized(3)),
        ("256 below 64 KiB, else 512", Cut::around(256), Cut::around(512)),
        ("512 below 256 KiB, else 1024", Cut::around(512), Cut::around(1024)),
    ];
    for (name, small, large) in cuts {
        let limit = if name.starts_with("512 below") { 256 * KIB } else { 64 * KIB };
        for (rule_name, reach, rule) in &rules {
            let (mut signatures, mut wrong, mut raw, mut again, mut ops) = (0, 0, Vec::new(), Vec::new(), Vec::new());
            for file in files {
                let Some(old) = file.old.filter(|old| old.len() >= KIB) else {
                    raw.extend_from_slice(file.new);
                    continue;
                };
                let cut = if old.len() < limit { small } else { large };
                let (delta, bytes, missed) = by_aligned(old, file.new, cut, *reach, rule.as_ref());
                signatures += bytes;
                raw.extend_from_slice(&literals_of(file, &delta));
                ops.extend_from_slice(&delta.ops);
                if missed {
                    wrong += 1;
                    again.extend_from_slice(file.new);
                }
            }
            let (dear, cheap) = (Setting::new(DEAR.0, DEAR.1), Setting::new(CHEAP.0, CHEAP.1));
            let ops = stream(ops.chunks(FRAME), Setting::new(3, 0))?.0;
            let literals = raw.len();
            let cheap = stream(raw.chunks(FRAME), cheap)?.0;
            let once = stream(raw.chunks(FRAME), dear)?.0;
            raw.extend_from_slice(&again);
            let again_bytes = stream(raw.chunks(FRAME), dear)?.0 - once;
            results.row(
                section,
                &format!("{name}: {rule_name}, reach {reach}"),
                &[
                    ("literals", literals as f64),
                    ("signatures", signatures as f64),
                    ("ops_zstd", ops as f64),
                    ("wrong", f64::from(wrong)),
                    ("wrong_bytes", again.len() as f64),
                    ("cheap_total", (cheap + again_bytes + ops + signatures) as f64),
                    ("dear", once as f64),
                    ("again", again_bytes as f64),
                    ("dear_total", (once + again_bytes + ops + signatures) as f64),
                ],
            );
        }
    }
    Ok(())
}

fn blocks(results: &mut Results, files: &[Sent<'_>]) -> Result<()> {
    results.section("blocks", "fixed blocks by a rolling sum; 4 bytes a block in the totals");
    for block in [256, 512, 700, 1024] {
        let deltas = deltas(files, 0, |old, new| by_blocks(old, new, block));
        way(results, "blocks", &format!("block {block}"), files, &deltas, 4)?;
    }
    Ok(())
}

fn compress(results: &mut Results, files: &[Sent<'_>], deltas: &[Delta], settings: &[Setting]) -> Result<()> {
    let section = "compress";
    let each: Vec<Vec<u8>> = files.iter().zip(deltas).map(|(file, delta)| literals_of(file, delta)).collect();
    let raw = each.concat();
    results.section(section, &format!("literals, {} bytes", raw.len()));
    for level in [1, 3, 6, 9, 12] {
        let cost = alone(each.iter().map(|part| (&[][..], part.as_slice())), Setting::new(level, 0))?;
        results.cost(section, &format!("each file alone, level {level}"), cost);
    }
    for level in [1, 3, 6, 9, 12] {
        let cost = alone(raw.chunks(FRAME).map(|part| (&[][..], part)), Setting::new(level, 0))?;
        results.cost(section, &format!("each 512 KiB alone, level {level}"), cost);
    }
    for setting in settings {
        let cost = stream(raw.chunks(FRAME), *setting)?;
        results.cost(section, &format!("one stream, {}", setting.name()), cost);
    }
    for setting in [Setting::new(3, 23), Setting::new(9, 25)] {
        let mut dealt: [Vec<&[u8]>; 2] = Default::default();
        for (at, frame) in raw.chunks(FRAME).enumerate() {
            dealt[at % 2].push(frame);
        }
        let first = stream(dealt[0].iter().copied(), setting)?;
        let second = stream(dealt[1].iter().copied(), setting)?;
        results.cost(
            section,
            &format!("two streams dealt in turn, {}", setting.name()),
            (first.0 + second.0, first.1 + second.1),
        );
        let (left, right) = raw.split_at(raw.len() / 2);
        let (first, second) = (stream(left.chunks(FRAME), setting)?, stream(right.chunks(FRAME), setting)?);
        results.cost(
            section,
            &format!("two streams, halves, {}", setting.name()),
            (first.0 + second.0, first.1 + second.1),
        );
        let mut by_name: [Vec<u8>; 2] = Default::default();
        for (file, part) in files.iter().zip(&each) {
            by_name[(short_hash(base_name(file.path)) % 2) as usize].extend_from_slice(part);
        }
        let (first, second) = (stream(by_name[0].chunks(FRAME), setting)?, stream(by_name[1].chunks(FRAME), setting)?);
        results.cost(
            section,
            &format!("two streams by base name, {}", setting.name()),
            (first.0 + second.0, first.1 + second.1),
        );
    }
    Ok(())
}

fn levels(results: &mut Results, files: &[Sent<'_>], deltas: &[Delta]) -> Result<()> {
    let section = "levels";
    let raw: Vec<u8> = files.iter().zip(deltas).flat_map(|(file, delta)| literals_of(file, delta)).collect();
    results.section(section, &format!("literals, {} bytes", raw.len()));
    let long = |level| Setting::new(level, 25).long();
    let finer = |level, least, every| Setting::new(level, 25).finer(least, every);
    for setting in [
        finer(3, 32, 5),
        finer(3, 32, 4),
        finer(5, 32, 5),
        long(6),
        finer(6, 32, 5),
        long(7),
        finer(7, 32, 5),
        long(8),
        Setting::new(9, 25),
        long(9),
    ] {
        results.cost(section, &format!("one stream, {}", setting.name()), stream(raw.chunks(FRAME), setting)?);
        let (left, right) = raw.split_at(raw.len() / 2);
        let (first, second) = (stream(left.chunks(FRAME), setting)?, stream(right.chunks(FRAME), setting)?);
        let sum = (first.0 + second.0, first.1 + second.1);
        results.cost(section, &format!("two streams, halves, {}", setting.name()), sum);
    }
    let missed = |file: &Sent<'_>, delta: &Delta| -> Vec<u8> {
        let old = file.old.unwrap_or_default();
        delta.missed.iter().flat_map(|range| &old[range.clone()]).copied().collect()
    };
    let gaps = batches(files.iter().zip(deltas).map(|(f, d)| (missed(f, d), literals_of(f, d))), FRAME);
    let finer = |level, every| Setting::new(level, 0).finer(32, every);
    for setting in [finer(3, 5), finer(3, 4), finer(5, 5), finer(6, 5), Setting::new(7, 0), Setting::new(9, 0)] {
        let cost = with_history(&gaps, 0, false, setting)?;
        results.cost(section, &format!("literals after gaps, {}", setting.name()), cost);
    }
    Ok(())
}

/// The orders in which files might be sent; the deltas follow their files.
fn ordered<'a>(files: &[Sent<'a>], deltas: &[Delta], order: &str) -> (Vec<Sent<'a>>, Vec<Delta>) {
    let mut list: Vec<(Sent<'a>, Delta)> = files.iter().copied().zip(deltas.iter().cloned()).collect();
    match order {
        "extension" => list.sort_by_key(|(file, _)| (extension(file.path), file.path)),
        "extension, name" => list.sort_by_key(|(file, _)| (extension(file.path), base_name(file.path), file.path)),
        "name" => list.sort_by_key(|(file, _)| (base_name(file.path), file.path)),
        _ => {}
    }
    list.into_iter().unzip()
}

fn order(results: &mut Results, files: &[Sent<'_>], deltas: &[Delta]) -> Result<()> {
    let settings = [
        Setting::new(3, 21),
        Setting::new(3, 23),
        Setting::new(3, 25).tables(20),
        Setting::new(6, 23),
        Setting::new(9, 21),
        Setting::new(9, 23),
        Setting::new(9, 25),
        Setting::new(9, 27),
        Setting::new(12, 23),
        Setting::new(12, 25),
    ];
    results.section("order", "one stream of the literals, files in another order");
    for name in ["tree", "extension", "extension, name", "name"] {
        let (files, deltas) = ordered(files, deltas, name);
        let raw = literals(&files, &deltas);
        for setting in settings {
            let cost = stream(raw.chunks(FRAME), setting)?;
            results.cost("order", &format!("{name}: {}", setting.name()), cost);
        }
    }
    Ok(())
}

fn threshold(results: &mut Results, files: &[Sent<'_>]) -> Result<()> {
    results.section("threshold", "old files from this size on send signatures of 3 bytes a piece");
    for order in ["tree", "name"] {
        for average in [256, 512, 1024] {
            for least in [0, 512, 1024, 2048, 4096, 8192, 16384] {
                let deltas = deltas(files, least, |old, new| by_pieces(old, new, Cut::around(average)));
                let (files, deltas) = ordered(files, &deltas, order);
                way(results, "threshold", &format!("{order}, average {average}, from {least}"), &files, &deltas, 3)?;
            }
        }
    }
    // Finer pieces in smaller files.
    for order in ["tree", "name"] {
        for (at, fine, coarse) in
            [(16 * KIB, 256, 512), (64 * KIB, 256, 1024), (32 * KIB, 512, 1024), (128 * KIB, 512, 2048)]
        {
            let deltas = deltas(files, 1024, |old, new| {
                by_pieces(old, new, Cut::around(if old.len() < at { fine } else { coarse }))
            });
            let (files, deltas) = ordered(files, &deltas, order);
            way(
                results,
                "threshold",
                &format!("{order}, average {fine} below {at}, else {coarse}, from 1024"),
                &files,
                &deltas,
                3,
            )?;
        }
    }
    Ok(())
}

/// A name without what a build puts into it: parts between separators that hold a digit.
fn stem(name: &[u8]) -> Vec<u8> {
    name.split(|b| matches!(b, b'.' | b'-' | b'_'))
        .map(|part| if part.iter().any(u8::is_ascii_digit) { &b"#"[..] } else { part })
        .collect::<Vec<_>>()
        .join(&b'.')
}

fn common_parts(a: &[u8], b: &[u8]) -> usize {
    let a: Vec<&[u8]> = a.split(|b| *b == 0).collect();
    let b: Vec<&[u8]> = b.split(|b| *b == 0).collect();
    let front = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let back = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    (front + back).min(a.len().min(b.len()))
}

fn names(results: &mut Results, files: &[Sent<'_>], old: &Tree, new: &Tree, cut: Cut) -> Result<()> {
    let section = "names";
    let (fresh, changed): (Vec<Sent<'_>>, Vec<Sent<'_>>) = files.iter().partition(|file| file.old.is_none());
    let size = |list: &[Sent<'_>]| list.iter().map(|file| file.new.len()).sum::<usize>();
    results.section(
        section,
        &format!(
            "{} changed files of {} bytes, {} new ones of {}",
            changed.len(),
            size(&changed),
            fresh.len(),
            size(&fresh)
        ),
    );
    for (what, gone_only, stems) in [
        ("no basis", true, false),
        ("same name, of files that vanish", true, false),
        ("similar name, of files that vanish", true, true),
        ("same name, of all", false, false),
        ("similar name, of all", false, true),
    ] {
        let mut by_name: HashMap<Vec<u8>, Vec<&Vec<u8>>> = HashMap::new();
        for path in old.keys().filter(|path| what != "no basis" && !(gone_only && new.contains_key(*path))) {
            by_name.entry(base_name(path).to_vec()).or_default().push(path);
            if stems {
                by_name.entry(stem(base_name(path))).or_default().push(path);
            }
        }
        let mut based = 0;
        let with_basis: Vec<Sent<'_>> = files
            .iter()
            .map(|file| {
                if file.old.is_some() {
                    return *file;
                }
                let name = base_name(file.path);
                let found = by_name.get(name).or_else(|| by_name.get(&stem(name)).filter(|_| stems));
                let basis = found.and_then(|list| {
                    list.iter().max_by_key(|path| {
                        let length = old.get(**path).map_or(0, Vec::len);
                        (
                            common_parts(path, file.path),
                            !new.contains_key(**path),
                            std::cmp::Reverse(length.abs_diff(file.new.len())),
                        )
                    })
                });
                based += usize::from(basis.is_some());
                Sent { old: basis.and_then(|path| old.get(*path)).map(Vec::as_slice), ..*file }
            })
            .collect();
        let deltas = deltas(&with_basis, 0, |old, new| by_pieces(old, new, cut));
        way(results, section, &format!("{what} ({based} files)"), &with_basis, &deltas, 3)?;
    }
    Ok(())
}

fn context(results: &mut Results, files: &[Sent<'_>], deltas: &[Delta], old: &Tree, new: &Tree) -> Result<()> {
    let section = "context";
    results.section(section, "literals in batches, with the pieces copied in the batch and what came before as prefix");
    let unchanged: Vec<u8> = old
        .iter()
        .filter(|(path, bytes)| new.get(*path) == Some(bytes))
        .flat_map(|(_, bytes)| bytes)
        .copied()
        .collect();
    let raw = literals(files, deltas);
    for (level, window) in [(3, 27), (9, 27)] {
        for length in [0, 8 * MIB, 32 * MIB] {
            let prefix = &unchanged[..length.min(unchanged.len())];
            let setting = Setting::new(level, window).tables(22);
            let cost = stream_after(prefix, raw.chunks(FRAME), setting)?;
            results.cost(
                section,
                &format!("one stream after {} MiB unchanged, {}", length / MIB, setting.name()),
                cost,
            );
        }
    }
    for order in ["tree", "name"] {
        let (files, deltas) = ordered(files, deltas, order);
        let part = |(file, delta): (&Sent<'_>, &Delta)| {
            let copied = delta.copies.iter().flat_map(|range| &file.new[range.clone()]).copied().collect::<Vec<u8>>();
            (copied, literals_of(file, delta))
        };
        for size in [FRAME, 2 * MIB] {
            let full = batches(files.iter().zip(&deltas).map(part), size);
            let bare: Vec<Batch> =
                full.iter().map(|batch| Batch { known: Vec::new(), payload: batch.payload.clone() }).collect();
            for history in [0, 2 * MIB, 8 * MIB] {
                for setting in [Setting::new(3, 0).tables(20), Setting::new(9, 0)] {
                    let level = setting.level;
                    let name = format!("{order}, {} KiB, history {} MiB, level {level}", size / KIB, history / MIB);
                    results.cost(
                        section,
                        &format!("literals only: {name}"),
                        with_history(&bare, history, false, setting)?,
                    );
                    results.cost(
                        section,
                        &format!("with copied: {name}"),
                        with_history(&full, history, false, setting)?,
                    );
                    if history > 0 {
                        results.cost(
                            section,
                            &format!("copied kept: {name}"),
                            with_history(&full, history, true, setting)?,
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

fn previous(results: &mut Results, files: &[Sent<'_>], deltas: &[Delta]) -> Result<()> {
    let section = "previous";
    results.section(section, "the master has the old content; literals are without the pieces that are copied");
    let each: Vec<Vec<u8>> = files.iter().zip(deltas).map(|(file, delta)| literals_of(file, delta)).collect();
    for setting in [
        Setting::new(3, 0),
        Setting::new(3, 0).long(),
        Setting::new(3, 0).tables(18),
        Setting::new(6, 0),
        Setting::new(6, 0).tables(20),
        Setting::new(9, 0),
        Setting::new(12, 0),
    ] {
        let whole = alone(files.iter().map(|file| (file.old.unwrap_or_default(), file.new)), setting)?;
        results.cost(section, &format!("per file, whole, {}", setting.name()), whole);
        let only = alone(files.iter().zip(&each).map(|(f, e)| (f.old.unwrap_or_default(), e.as_slice())), setting)?;
        results.cost(section, &format!("per file, literals, {}", setting.name()), only);
    }
    let missed = |file: &Sent<'_>, delta: &Delta| -> Vec<u8> {
        let old = file.old.unwrap_or_default();
        delta.missed.iter().flat_map(|range| &old[range.clone()]).copied().collect()
    };
    for (order, size, history) in [
        ("tree", 128 * KIB, 0),
        ("tree", FRAME, 0),
        ("tree", FRAME, MIB),
        ("tree", FRAME, 4 * MIB),
        ("tree", 2 * MIB, 0),
        ("tree", 2 * MIB, 8 * MIB),
        ("tree", 8 * MIB, 0),
        ("tree", 8 * MIB, 16 * MIB),
        ("name", FRAME, 0),
        ("name", FRAME, MIB),
        ("name", 2 * MIB, 8 * MIB),
    ] {
        let (files, deltas) = ordered(files, deltas, order);
        let both = || files.iter().zip(&deltas);
        let whole = batches(both().map(|(f, _)| (f.old.unwrap_or_default().to_vec(), f.new.to_vec())), size);
        let only = batches(both().map(|(f, d)| (f.old.unwrap_or_default().to_vec(), literals_of(f, d))), size);
        let gaps = batches(both().map(|(f, d)| (missed(f, d), literals_of(f, d))), size);
        let mut settings = vec![Setting::new(3, 0).tables(20), Setting::new(6, 0).tables(20), Setting::new(9, 0)];
        if size == FRAME && order == "tree" && history < 4 * MIB {
            settings.extend([
                Setting::new(3, 0),
                Setting::new(3, 0).tables(22),
                Setting::new(3, 0).long(),
                Setting::new(3, 0).finer(32, 4).tables(20),
                Setting::new(6, 0),
                Setting::new(6, 0).tables(22),
                Setting::new(6, 0).finer(32, 4),
                Setting::new(7, 0),
                Setting::new(8, 0),
                Setting::new(12, 0),
            ]);
        }
        for setting in settings {
            let name = format!("{order}, {} KiB, history {} MiB, {}", size / KIB, history / MIB, setting.name());
            if size == FRAME {
                let cost = with_history(&whole, history, false, setting)?;
                results.cost(section, &format!("whole after old: {name}"), cost);
            }
            results.cost(
                section,
                &format!("literals after old: {name}"),
                with_history(&only, history, false, setting)?,
            );
            results.cost(
                section,
                &format!("literals after gaps: {name}"),
                with_history(&gaps, history, false, setting)?,
            );
        }
    }
    Ok(())
}

fn dictionary(results: &mut Results, files: &[Sent<'_>], deltas: &[Delta], old: &Tree) -> Result<()> {
    let section = "dictionary";
    results.section(section, "a dictionary of 112 KiB trained on every eighth file of OLD up to 128 KiB");
    let samples: Vec<&[u8]> =
        old.values().step_by(8).filter(|bytes| (64..128 * KIB).contains(&bytes.len())).map(Vec::as_slice).collect();
    let start = cpu();
    let trained = zstd::dict::from_samples(&samples, 112 * KIB)?;
    let packed = alone(std::iter::once((&[][..], trained.as_slice())), Setting::new(19, 0))?.0;
    results.cost(section, "training; bytes: the dictionary, compressed", (packed, cpu() - start));
    let each: Vec<Vec<u8>> = files.iter().zip(deltas).map(|(file, delta)| literals_of(file, delta)).collect();
    for level in [3, 9] {
        let cost = timed(|| {
            let mut total = 0;
            let mut context = CCtx::create();
            let prepared = zstd::zstd_safe::CDict::create(&trained, level);
            for part in each.iter().filter(|part| !part.is_empty()) {
                let mut room = Vec::with_capacity(compress_bound(part.len()));
                total += z(context.compress_using_cdict(&mut room, part, &prepared))?;
            }
            Ok(total)
        })?;
        results.cost(section, &format!("each file's literals alone, level {level}"), cost);
    }
    let raw = each.concat();
    for (level, window) in [CHEAP, DEAR] {
        let cost = timed(|| {
            let mut context = CCtx::create();
            Setting::new(level, window).apply(&mut context)?;
            z(context.load_dictionary(&trained))?;
            let mut room = Vec::with_capacity(compress_bound(raw.len()));
            z(context.compress2(&mut room, &raw))
        })?;
        results.cost(section, &format!("one stream after it, level {level} window {window}"), cost);
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------------

struct Arguments {
    old: PathBuf,
    new: PathBuf,
    only: Vec<String>,
    average: usize,
    results: Option<PathBuf>,
}

fn arguments() -> Result<Option<Arguments>> {
    let mut trees = Vec::new();
    let (mut only, mut average, mut results) = (Vec::new(), 512, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // Given by cargo.
            "--bench" => {}
            "--only" => only = words.next().ok_or("--only SECTION,...")?.split(',').map(String::from).collect(),
            "--average" => average = words.next().ok_or("--average BYTES")?.parse()?,
            "--results" => results = Some(PathBuf::from(words.next().ok_or("--results DIR")?)),
            _ => trees.push(PathBuf::from(word)),
        }
    }
    let [old, new] = trees.as_slice() else { return Ok(None) };
    Ok(Some(Arguments { old: old.clone(), new: new.clone(), only, average, results }))
}

fn main() -> Result<()> {
    let Some(arguments) = arguments()? else {
        println!(
            "delta_sizes OLD NEW [--only SECTION,...] [--average BYTES] [--results DIR]: see benches/delta_sizes.rs"
        );
        return Ok(());
    };
    let (old, new) = (read_tree(&arguments.old)?, read_tree(&arguments.new)?);
    let files = sent(&old, &new);
    let size = |tree: &Tree| tree.values().map(Vec::len).sum::<usize>();
    let mut results = Results::default();
    results.row("trees", "OLD", &[("files", old.len() as f64), ("bytes", size(&old) as f64)]);
    results.row("trees", "NEW", &[("files", new.len() as f64), ("bytes", size(&new) as f64)]);
    let (changed, fresh): (Vec<&Sent<'_>>, Vec<&Sent<'_>>) = files.iter().partition(|file| file.old.is_some());
    for (name, list) in [("sent, changed", &changed), ("sent, new", &fresh)] {
        let bytes: usize = list.iter().map(|file| file.new.len()).sum();
        results.row("trees", name, &[("files", list.len() as f64), ("bytes", bytes as f64)]);
    }
    let wanted = |section: &str| arguments.only.is_empty() || arguments.only.iter().any(|name| name == section);
    if wanted("pieces") {
        pieces(&mut results, &files, &old)?;
    }
    if wanted("blocks") {
        blocks(&mut results, &files)?;
    }
    let cut = Cut::around(arguments.average);
    let start = cpu();
    let deltas = deltas(&files, 0, |old, new| by_pieces(old, new, cut));
    results.line(&format!(
        "\nafter this: average piece {}, cutting and hashing both sides {:.2} s",
        cut.1,
        cpu() - start
    ));
    if wanted("hashes") {
        hashes(&mut results, &files, cut)?;
    }
    if wanted("aligned") {
        aligned(&mut results, &files)?;
    }
    if wanted("compress") {
        let mut settings = Vec::new();
        for level in [1, 3, 6, 9, 12] {
            for window in [21, 23, 25, 27] {
                settings.push(Setting::new(level, window));
                if window >= 25 {
                    settings.push(Setting::new(level, window).long());
                }
            }
        }
        for (level, window) in [(3, 23), (3, 25), (3, 27), (6, 25), (9, 25), (9, 27)] {
            settings.extend([18, 20, 22, 24].map(|log| Setting::new(level, window).tables(log)));
        }
        for (level, window) in [(1, 25), (3, 23), (3, 25), (3, 27), (6, 25), (6, 27), (9, 25)] {
            let setting = Setting::new(level, window);
            let log = if level == 6 { 22 } else { 20 };
            settings.extend([
                setting.long().tables(log),
                setting.finer(64, 4),
                setting.finer(32, 5),
                setting.finer(32, 4),
                setting.finer(32, 4).tables(log),
            ]);
        }
        compress(&mut results, &files, &deltas, &settings)?;
    }
    if wanted("levels") {
        levels(&mut results, &files, &deltas)?;
    }
    if wanted("order") {
        order(&mut results, &files, &deltas)?;
    }
    if wanted("threshold") {
        threshold(&mut results, &files)?;
    }
    if wanted("names") {
        names(&mut results, &files, &old, &new, cut)?;
    }
    if wanted("context") {
        context(&mut results, &files, &deltas, &old, &new)?;
    }
    if wanted("previous") {
        previous(&mut results, &files, &deltas)?;
    }
    if wanted("dictionary") {
        dictionary(&mut results, &files, &deltas, &old)?;
    }
    if let Some(directory) = &arguments.results {
        let date = date();
        let all = json!({
            "date": date,
            "only": arguments.only,
            "average": arguments.average,
            "zstd": zstd::zstd_safe::version_string(),
            "rows": results.rows,
        });
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join(format!("{date}-delta-sizes.json")), format!("{all:#}\n"))?;
        std::fs::write(directory.join(format!("{date}-delta-sizes.txt")), &results.text)?;
    }
    Ok(())
}
