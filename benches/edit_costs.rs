//! What an edit of one large file costs, by the sizes of chunks and of pieces.
//!
//! ```text
//! cargo bench --bench edit_costs -- [--mib SIZE,...] [--results DIR]
//! ```
//!
//! Files of random bytes are made in memory and edited; chunks, questions and literals are computed as a master and a
//! replica do. Bytes are exact and the same in every run: `list` for the chunks of the old file (which cross the wire only
//! if the master does not know it), `pieces` for what is told of the ranges around edits, `literals` for what is sent. CPU
//! seconds are of one thread, for cutting and hashing the new file, and drift. Without `--mib`: 1, 16 and 128.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a bench may stop and write"
)]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Instant;

use sync_core::chunk::pieces::Form;
use sync_core::chunk::{ChunkRef, Chunking, chunks_of, covered, cut};
use sync_core::delta::{Basis, Matcher, Op, delta, gaps, refine};

/// Bytes of a chunk's digest and length in a list.
const PER_CHUNK: usize = 20;

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The edits, each with its name.
fn edits(old: &[u8]) -> [(&'static str, Vec<u8>); 4] {
    let middle = old.len() / 2;
    let inserted = [&old[..middle], b"x", &old[middle..]].concat();
    let mut scattered = old.to_vec();
    for i in 0..100 {
        let at = old.len() / 100 * i + 1000;
        scattered[at..at + 22].copy_from_slice(b"some other bytes here.");
    }
    let mut block = old.to_vec();
    block[middle..middle + 10_000].copy_from_slice(&random(2, 10_000));
    let lines = old.chunks(100 << 10).flat_map(|part| [part, b"a line of text.\n"]).collect::<Vec<_>>().concat();
    [
        ("a byte inserted", inserted),
        ("100 edits of 22 bytes", scattered),
        ("10 kB replaced", block),
        ("a line each 100 KiB", lines),
    ]
}

struct Cost {
    list: usize,
    pieces: usize,
    literals: u64,
    seconds: f64,
}

fn cost(old: &[u8], known: &[ChunkRef], new: &[u8], chunking: Chunking, piece: u8) -> Cost {
    let started = Instant::now();
    let chunks = chunks_of(new, chunking);
    let seconds = started.elapsed().as_secs_f64();
    let ops = delta(&chunks, known);
    let gaps = gaps(&ops, covered(known));
    let total = gaps.iter().flat_map(|gap| &gap.old).map(|(_, len)| len).sum();
    let form = Form::new(Chunking::try_from(piece).unwrap(), total);
    let (mut described, mut firsts) = (Vec::new(), Vec::new());
    for gap in &gaps {
        firsts.push(described.len());
        for (begin, len) in &gap.old {
            let mut at = *begin;
            cut(&old[at as usize..(at + len) as usize], form.sizes(), &mut |bytes| {
                let piece = form.piece(bytes);
                described.push((piece.hash, at, piece.len));
                at += u64::from(piece.len);
            });
        }
    }
    let basis = Basis::new(described.iter().copied());
    let mut finer = HashMap::new();
    for (gap, first) in gaps.iter().zip(firsts).filter(|(gap, _)| !gap.old.is_empty()) {
        let mut matcher = Matcher::cautious(&basis, gap.at, first);
        cut(&new[gap.at as usize..(gap.at + gap.len) as usize], form.sizes(), &mut |bytes| {
            let piece = form.piece(bytes);
            matcher.push(piece.hash, piece.len);
        });
        finer.insert(gap.at, matcher.finish());
    }
    let literal = |op: &Op| if let Op::Literal { len, .. } = op { *len } else { 0 };
    let literals = refine(ops, |at| finer.remove(&at)).iter().map(literal).sum();
    // As many bytes as travel for each: more where there are many.
    let width = if total >> piece > 1 << 15 { 5 } else { 4 };
    Cost { list: known.len() * PER_CHUNK, pieces: described.len() * width, literals, seconds }
}

fn main() {
    let (mut sizes, mut results) = (vec![1, 16, 128], None);
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        match (&*arg, args.next()) {
            ("--mib", Some(list)) => sizes = list.split(',').map(|size| size.parse().unwrap()).collect(),
            ("--results", Some(dir)) => results = Some(dir),
            // Another bench's options, or none: then only that it runs.
            _ => sizes = vec![1],
        }
    }
    let mut text =
        String::from("MiB  edit                   chunk  piece      list    pieces  literals  known sum  cpu s\n");
    for mib in sizes {
        let old = random(1, mib << 20);
        let own: u8 = Chunking::for_size(old.len() as u64).into();
        for (name, new) in edits(&old) {
            let mut settings: Vec<(u8, u8)> = (own - 2..=own + 2).map(|bits| (bits, 9)).collect();
            settings.extend([8, 10, 11].map(|piece| (own, piece)));
            for (bits, piece) in settings {
                let chunking = Chunking::try_from(bits).unwrap();
                let known = chunks_of(&old, chunking);
                let Cost { list, pieces, literals, seconds } = cost(&old, &known, &new, chunking, piece);
                let (chunk, piece, sum) = (chunking.avg(), 1 << piece, pieces as u64 + literals);
                let mark = if bits == own && piece == 512 { "*" } else { " " };
                let _ = writeln!(
                    text,
                    "{mib:<5}{name:<22}{mark}{chunk:>6}{piece:>7}{list:>10}{pieces:>10}{literals:>10}{sum:>11}{seconds:>7.3}"
                );
            }
        }
    }
    print!("{text}");
    if let Some(dir) = results {
        std::fs::write(format!("{dir}/edit-costs.txt"), text).unwrap();
    }
}
