use proptest::prelude::*;

use super::*;
use crate::chunk::ChunkRef;
use crate::chunk::pieces::{Form, MAX_PIECES, Pieces, small};
use crate::compress::{Compressor, decompress};
use crate::delta::CopyRange;
use crate::delta::patch::{self, PieceHashes};
use crate::diff::Child;
use crate::filter::{MAX_PATTERN, MAX_RULES, MAX_RULES_BYTES, Rule};
use crate::hash::Digest;
use crate::manifest::{Entry, Kind, Lineage, MAX_XATTRS, Time, Version, VersionId};
use crate::monitor::{Arrow, How, Item, Problem};
use crate::options::Policy;
use crate::path::RelPath;
use crate::region::{MAX_MARKS, Mark, Region};

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

fn version() -> Version {
    let parent = Some(VersionId(digest(0x22)));
    let time = Time { sec: 1_700_000_000, nsec: 5 };
    Version { lineage: Lineage([0x11; 16]), number: 300, parent, root: digest(0x33), time }
}

fn file() -> Entry {
    Entry {
        kind: Kind::File { size: 300, digest: digest(0x44) },
        mode: 0o4755,
        uid: 1000,
        gid: 100,
        mtime: Time { sec: -1, nsec: 999_999_999 },
        xattrs: Box::new([(b"user.a"[..].into(), b"1"[..].into())]),
        link: None,
    }
}

fn of_kind(kind: Kind) -> Entry {
    let mtime = Time::default();
    Entry { kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Box::default(), link: None }
}

fn upsert(at: &str, entry: Entry) -> Change {
    Change { path: path(at), entry: Some(entry) }
}

fn touched(at: &str) -> Touched {
    Touched { path: path(at), metadata: file().metadata() }
}

fn moved(from: &str, to: &str) -> Moved {
    Moved { from: path(from), to: path(to), hash: digest(0x99) }
}

fn child(name: &str, is_dir: bool) -> Child {
    Child { name: name.as_bytes().into(), hash: digest(0x55), own: digest(0x66), is_dir }
}

fn hello() -> Hello {
    let policy = Policy {
        dry_run: true,
        max_delete: Some(300),
        rules: vec![Rule { pattern: "!*.o".to_owned() }],
        ..Policy::default()
    };
    Hello { features: 0, share: "www".to_owned(), policy }
}

fn draft(ranges: &[(u64, u64, u64)], size: u64) -> Draft {
    let ranges = ranges.iter().map(|&(at, from, len)| CopyRange { at, from, len }).collect();
    Draft { ranges, path: path("big"), size, old: digest(0x44) }
}

/// One of each message, in the order of their numbers.
fn to_replica() -> Vec<ToReplica> {
    let kinds = [
        Kind::Dir,
        Kind::Symlink { target: b"../x"[..].into() },
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDev { major: 1, minor: 3 },
        Kind::BlockDev { major: 8, minor: 300 },
    ];
    let mut changes = vec![upsert("a", file()), upsert("b", Entry { link: Some(path("a")), ..file() })];
    changes.extend(kinds.into_iter().map(|kind| upsert("c", of_kind(kind))));
    changes.push(Change { path: path("gone"), entry: None });
    vec![
        ToReplica::Hello(hello()),
        ToReplica::List(vec![RelPath::root(), path("a/b")]),
        ToReplica::Offer(vec![Offered {
            path: path("a/\u{e9}"),
            digest: digest(0x77),
            size: 1 << 40,
            likely: file().metadata(),
        }]),
        ToReplica::Changes(changes),
        ToReplica::Restart(()),
        ToReplica::Announce(Announce {
            holds: vec![path("held")],
            held: 301,
            version: version(),
            changes: 300,
            contents: 7,
            committed: true,
        }),
        ToReplica::Publish(version().id()),
        ToReplica::Unavailable(Unavailable { seq: 300, reason: "gone".to_owned() }),
        ToReplica::Holds(vec![path("held/1"), path("held/2")]),
        ToReplica::AsOffered(vec![Run { first: 0, count: 300 }, Run { first: 1000, count: 1 }]),
        ToReplica::Describe(Describe { seq: 300, pieces: Some(small()), ranges: vec![(7, 1 << 33)] }),
        ToReplica::Touched(vec![touched("a"), touched("b")]),
        ToReplica::Moved(vec![moved("a/b", "c")]),
        ToReplica::Draft(draft(&[(0, 7, 300), (1 << 33, 0, 1)], 1 << 40)),
        ToReplica::Place(Region {
            above: vec![Mark([0xaa; 16]), Mark([0xbb; 16])],
            mounts: vec![Mark([0xcc; 16])],
            above_mounts: Vec::new(),
        }),
        ToReplica::Given(vec![
            Given { seq: 300, content: b"all of it".to_vec() },
            Given { seq: 302, content: vec![0xff] },
        ]),
        ToReplica::Stretch(Announce {
            holds: Vec::new(),
            held: 0,
            version: version(),
            changes: 300,
            contents: 7,
            committed: true,
        }),
    ]
}

fn to_master() -> Vec<ToMaster> {
    let chunk = ChunkRef { digest: [0x88; 16], len: 4096 };
    let file = Basis::File { digest: digest(0x44), size: 300, chunks: vec![chunk], guess: true };
    let stats = ReplicaStats {
        created: 1,
        updated: 2,
        metadata_only: 3,
        moved: 4,
        deleted: 5,
        old_file_bytes: 300,
        copied_bytes: 6,
        moved_bytes: 7,
    };
    let item = |code: &str, target, how| Item { code: code.to_owned(), path: path("i"), target, how, literal: None };
    let children = vec![child("a", false), child("b", true)];
    let form = Form::of_ranges(1);
    vec![
        ToMaster::Stand(Stand { features: 0, version: Some(version().id()), root: digest(0x33), entries: 300 }),
        ToMaster::Listing(Listing { dir: path("d"), own: Some(digest(0x66)), children, last: true }),
        ToMaster::Want(vec![
            Wanted { seq: 300, basis: file, part: vec![chunk] },
            Wanted { seq: 301, basis: Basis::Pieces(PieceHashes::of(&[7; 5000]).0), part: Vec::new() },
            Wanted { seq: 302, basis: Basis::Named([1, 2, 3, 4, 5, 6, 7, 0xff]), part: Vec::new() },
            Wanted::whole(1),
        ]),
        ToMaster::Prepared(digest(0x33)),
        ToMaster::Ack(Ack { version: version().id(), root: digest(0x33), stats, refused: [0, 1, 2, 3, 4, 300] }),
        ToMaster::Problems(vec![
            Problem { path: None, reason: "all".to_owned() },
            Problem { path: Some(path("p")), reason: "one".to_owned() },
        ]),
        ToMaster::Items(vec![
            item("cL+++++++++", Some((Arrow::Symlink, b"\xff".to_vec())), How::Made),
            item("hf+++++++++", Some((Arrow::HardLink, b"h".to_vec())), How::Linked),
            item("*deleting  ", None, How::Deleted { dir: true, moved_to: Some(path("m")) }),
            item(".f...p.....", None, How::Metadata),
            item(">f.s.......", None, How::Content { size: 300, old: Some(7) }),
            item("cf+++++++++", None, How::Moved { from: path("f"), size: 300 }),
            item("cf+++++++++", None, How::Copied { from: path("f"), size: 300 }),
        ]),
        ToMaster::Notice("n".to_owned()),
        ToMaster::Refuse(Refusal { for_a_person: true, reason: "no".to_owned() }),
        ToMaster::Described(Described { seq: 300, parts: Parts::Chunks(vec![chunk]), done: false }),
        ToMaster::Described(Described {
            seq: 300,
            parts: Parts::Pieces(Pieces { form, list: vec![form.piece(b"piece"), form.piece(b"other")] }),
            done: true,
        }),
        ToMaster::Described(Described { seq: 300, parts: Parts::Gone, done: true }),
        ToMaster::Resumed(300),
        ToMaster::Drifted(Stand { features: 1, version: None, root: digest(0x33), entries: 300 }),
        ToMaster::Unhealed(Unhealed { entries: 300, first: Some(path("a/b")) }),
        ToMaster::Reached(path("a/b")),
    ]
}

fn whole(seq: u64, literal: u32) -> BatchFile {
    BatchFile { seq, literal, runs: Vec::new() }
}

fn contents() -> Vec<ContentFrame<'static>> {
    let runs = vec![patch::Run { after: 7, skip: -1, count: 300 }, patch::Run { after: 0, skip: 300, count: 1 }];
    let patched = BatchFile { runs, ..whole(1, 300) };
    let splices = vec![
        Splice { literal: 3, zeros: 4096, skip: 300, copy: 1 << 33 },
        Splice { literal: 0, zeros: 0, skip: -7, copy: 1 },
    ];
    let short = vec![Splice { literal: 300, zeros: 0, skip: -7, copy: 1 }];
    vec![
        ContentFrame::Batch(Batch { files: vec![whole(1, 3), whole(300, 2)], encoding: Encoding::Plain }, b"abcde"),
        ContentFrame::Batch(Batch { files: vec![patched], encoding: Encoding::Zstd }, b"zstd"),
        ContentFrame::Piece(Piece::Literal { seq: 1, offset: 300, len: 3, encoding: Encoding::Plain }, b"abc"),
        ContentFrame::Piece(Piece::Literal { seq: 1, offset: 300, len: 300, encoding: Encoding::Zstd }, b"zstd"),
        ContentFrame::Piece(Piece::Zeros { seq: 1, offset: 300, len: 1 << 33 }, b""),
        ContentFrame::Piece(Piece::Spliced { seq: 1, offset: 300, splices, encoding: Encoding::Plain }, b"abc"),
        ContentFrame::Piece(Piece::End { seq: 300 }, b""),
        ContentFrame::Batch(Batch { files: vec![whole(1, 300)], encoding: Encoding::AfterGaps }, b"zstd"),
        ContentFrame::Piece(
            Piece::Patched { seq: 1, offset: 300, from: 5, tail: 7, splices: short, encoding: Encoding::AfterGaps },
            b"zstd",
        ),
    ]
}

/// What a frame lies behind is part of the protocol: both sides must come to the same.
#[test]
fn gaps_are_what_was_in_place_of_literals_within_bounds() {
    let splice = |literal, skip, copy| Splice { literal, zeros: 0, skip, copy };
    let most = |literal: u64| 8 * literal + (64 << 10);
    type Case<'a> = (u64, u64, &'a [Splice], &'a [(u64, u64)]);
    let table: &[Case<'_>] = &[
        (0, 0, &[], &[]),
        // Only where there is a literal; not backwards.
        (5, 0, &[splice(9, 10, 3), splice(0, 10, 3), splice(9, -7, 3)], &[(5, 10)]),
        (5, 7, &[splice(9, 10, 3), splice(9, 0, 0)], &[(5, 10), (18, 7)]),
        (5, 7, &[splice(9, 10, 3)], &[(5, 10)]),
        // Much was cut out.
        (0, 0, &[splice(9, 1 << 40, 3)], &[(0, most(9))]),
        (0, 1 << 40, &[splice(9, 0, 0)], &[(0, most(9))]),
        // From a peer.
        (u64::MAX, u64::MAX, &[splice(9, i64::MAX, u64::MAX)], &[(u64::MAX, most(9))]),
        (0, 1, &[splice(u32::MAX, 1 << 40, 1), splice(9, 1 << 40, 3)], &[(0, MAX_PREFIX as u64)]),
    ];
    for (from, tail, splices, expected) in table {
        assert_eq!(gaps(*from, *tail, splices), *expected, "{splices:?}");
    }
}

/// A frame that does not tell of gaps cannot lie behind them.
#[test]
fn single_literals_lie_behind_nothing() {
    let encoding = Encoding::AfterGaps;
    for piece in [
        Piece::Literal { seq: 1, offset: 0, len: 3, encoding },
        Piece::Spliced { seq: 1, offset: 0, splices: Vec::new(), encoding },
    ] {
        let Envelope { kind, version, body } = frame(&ContentFrame::Piece(piece, b"zstd"));
        assert!(ContentFrame::decode(kind, version, &body).is_err());
    }
}

fn frame(content: &ContentFrame<'_>) -> Envelope {
    let (ContentFrame::Batch(_, bytes) | ContentFrame::Piece(_, bytes)) = content;
    let mut envelope = content.head();
    envelope.body.extend_from_slice(bytes);
    envelope
}

fn envelopes() -> Vec<Envelope> {
    let control = to_replica().iter().map(ToReplica::encode).chain(to_master().iter().map(ToMaster::encode)).collect();
    [control, contents().iter().map(frame).collect::<Vec<_>>()].concat()
}

/// Runs of a byte as `[byte*count]`, so that digests do not fill the page.
fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        match run {
            [byte, ..] if run.len() >= 8 => out.push_str(&format!("[{byte:02x}*{}]", run.len())),
            _ => run.iter().for_each(|byte| out.push_str(&format!("{byte:02x}"))),
        }
    }
    out
}

/// Golden bytes: masters and replicas of different builds talk to each other. Never edit them once released; a layout
/// that changes gets a new version, and this one stays readable.
#[test]
fn the_bytes_are_pinned() {
    let golden = [
        "1 v1 00037777770100000000000001ac020104212a2e6f",
        "2 v1 020003612f62",
        "3 v1 0104612fc3a9[77*32]808080808020ed13e8076401ff93ebdc03",
        "4 v1 0901610101ac02[44*32]ed13e8076401ff93ebdc030106757365722e6101310001620101ac02[44*32]ed13e8076401ff93ebdc030106757365722e61013101016101630100a40300000000000001630102042e2e2f78a40300000000000001630103a40300000000000001630104a403000000000000016301050103a4030000000000000163010608ac02a40300000000000004676f6e6500",
        "5 v1 ",
        "6 v1 010468656c64ad02[11*16]ac0201[22*32][33*32]80c49fd50c05ac020701",
        "7 v1 7bd16b22cec595a83be1686c8a435ebfef3ad5e9671faf80f913750dd22e64cd",
        "8 v1 ac0204676f6e65",
        "9 v1 020668656c642f310668656c642f32",
        "10 v1 0200ac02e80701",
        "13 v1 ac02010901078080808020",
        "11 v1 020161ed13e8076401ff93ebdc030162ed13e8076401ff93ebdc03",
        "12 v1 0103612f620163[99*32]",
        "14 v1 020007ac028080808020000103626967808080808020[44*32]",
        "15 v1 02[aa*16][bb*16]01[cc*16]00",
        "16 v1 02ac0209616c6c206f66206974ae0201ff",
        "17 v1 0000[11*16]ac0201[22*32][33*32]80c49fd50c05ac020701",
        "101 v1 00017bd16b22cec595a83be1686c8a435ebfef3ad5e9671faf80f913750dd22e64cd[33*32]ac02",
        "102 v1 016401[66*32]020161[55*32][66*32]000162[55*32][66*32]0101",
        "103 v1 04ac0202[44*32]ac0201[88*16]80200101[88*16]8020ad02010009889beb889beb2e966b00ae020301020304050607ff00010000",
        "104 v1 [33*32]",
        "105 v1 7bd16b22cec595a83be1686c8a435ebfef3ad5e9671faf80f913750dd22e64cd[33*32]0102030405ac0206070001020304ac02",
        "106 v1 020003616c6c010170036f6e65",
        "107 v1 070b634c[2b*9]0169010001ff050b6866[2b*9]016901010168040b2a64656c6574696e672020016900060101016d0b2e662e2e2e702e2e2e2e2e016900000b3e662e732e2e2e2e2e2e2e01690001ac0201070b6366[2b*9]016900020166ac020b6366[2b*9]016900030166ac02",
        "108 v1 016e",
        "109 v1 01026e6f",
        "110 v1 ac020001[88*16]802000",
        "110 v1 ac02010904080490facd04e0817601",
        "110 v1 ac020201",
        "111 v1 ac02",
        "112 v1 0100[33*32]ac02",
        "113 v1 ac020103612f62",
        "114 v1 03612f62",
        "201 v1 02010300ac020200006162636465",
        "201 v1 0101ac02020701ac0200d80401017a737464",
        "202 v1 0001ac020300616263",
        "202 v1 0001ac02ac02017a737464",
        "202 v1 0101ac028080808020",
        "202 v1 0201ac0202038020d804808080802000000d0100616263",
        "202 v1 03ac02",
        "201 v1 0101ac0200027a737464",
        "202 v1 0401ac02050701ac02000d01027a737464",
    ];
    let found: Vec<String> =
        envelopes().iter().map(|e| format!("{} v{} {}", e.kind, e.version, hex(&e.body))).collect();
    for (found, golden) in found.iter().zip(golden) {
        assert_eq!(found, golden);
    }
    assert_eq!(found.len(), golden.len());
}

/// A master that wrote there would meddle with what waits in staging.
#[test]
fn the_staging_directory_is_no_part_of_a_tree() {
    let refused = |message: ToReplica| {
        let Envelope { kind, version, body } = message.encode();
        ToReplica::decode(kind, version, &body).is_err()
    };
    let likely = file().metadata();
    for (at, reserved) in
        [(".synccli-staging", true), ("a/.synccli-staging/tree/b", true), ("a/.synccli-staging2", false)]
    {
        let offered = Offered { path: path(at), digest: digest(1), size: 1, likely };
        assert_eq!(refused(ToReplica::Offer(vec![offered])), reserved, "{at}");
        assert_eq!(refused(ToReplica::Changes(vec![upsert(at, file())])), reserved, "{at}");
        assert_eq!(refused(ToReplica::Changes(vec![Change { path: path(at), entry: None }])), reserved, "{at}");
        assert_eq!(refused(ToReplica::Moved(vec![moved("x", at)])), reserved, "{at}");
        assert_eq!(refused(ToReplica::Draft(Draft { path: path(at), ..draft(&[], 1) })), reserved, "{at}");
    }
}

#[test]
fn every_message_comes_back() {
    for message in to_replica() {
        let Envelope { kind, version, body } = message.encode();
        assert_eq!(ToReplica::decode(kind, version, &body), Ok(Some(message)));
        assert_eq!(ToMaster::decode(kind, version, &body), Ok(None), "the other side's numbers are its own");
    }
    for message in to_master() {
        let Envelope { kind, version, body } = message.encode();
        assert_eq!(ToMaster::decode(kind, version, &body), Ok(Some(message)));
        assert_eq!(ToReplica::decode(kind, version, &body), Ok(None));
    }
    for content in contents() {
        let Envelope { kind, version, body } = frame(&content);
        assert_eq!(ContentFrame::decode(kind, version, &body), Ok(Some(content)));
        assert_eq!(ToReplica::decode(kind, version, &body), Ok(None));
    }
}

#[test]
fn an_unknown_type_is_skipped_and_an_unknown_version_is_not() {
    for kind in [0, 18, 100, 115, 200, 203, u16::MAX] {
        assert_eq!(ToReplica::decode(kind, 9, b"anything"), Ok(None));
        assert_eq!(ToMaster::decode(kind, 9, b"anything"), Ok(None));
        assert_eq!(ContentFrame::decode(kind, 9, b"anything"), Ok(None));
    }
    for Envelope { kind, body, .. } in envelopes() {
        for version in [0, 2, 0x80, 0x82, u8::MAX] {
            let error = Err(WireError::Version { kind, version });
            match kind {
                0..100 => assert_eq!(ToReplica::decode(kind, version, &body).map(drop), error),
                100..200 => assert_eq!(ToMaster::decode(kind, version, &body).map(drop), error),
                _ => assert_eq!(ContentFrame::decode(kind, version, &body).map(drop), error),
            }
        }
    }
}

#[test]
fn a_message_ends_where_its_envelope_ends() {
    for Envelope { kind, version, mut body } in envelopes().into_iter().filter(|e| e.kind < 200) {
        let refused = |body: &[u8]| match kind {
            0..100 => ToReplica::decode(kind, version, body).is_err(),
            _ => ToMaster::decode(kind, version, body).is_err(),
        };
        for len in 0..body.len() {
            assert!(refused(&body[..len]), "message {kind} cut to {len} bytes");
        }
        body.push(0);
        assert!(refused(&body), "message {kind} with a byte too many");
    }
}

fn refused(message: &ToReplica) -> bool {
    let Envelope { kind, version, body } = message.encode();
    ToReplica::decode(kind, version, &body).is_err()
}

fn refused_by_master(message: &ToMaster) -> bool {
    let Envelope { kind, version, body } = message.encode();
    ToMaster::decode(kind, version, &body).is_err()
}

/// What no type of ours would encode: paths as a peer may send them.
#[test]
fn paths_that_leave_the_tree_are_refused() {
    let long = [b'a'; 256];
    let deep = b"abc/".repeat(20_000);
    let bad: [&[u8]; 11] =
        [b"..", b"a/../b", b"a/..", b"/etc/passwd", b"/", b".", b"a//b", b"a/", b"a\0b", &long, &deep[..79_999]];
    for path in bad {
        let bytes = postcard::to_allocvec(&vec![path.to_vec()]).unwrap();
        assert!(ToReplica::decode(2, 1, &bytes).is_err(), "list {:?}", &path[..path.len().min(12)]);
        let bytes = postcard::to_allocvec(&vec![(path.to_vec(), None::<Entry>)]).unwrap();
        assert!(ToReplica::decode(4, 1, &bytes).is_err(), "change {:?}", &path[..path.len().min(12)]);
        let bytes = postcard::to_allocvec(&vec![(path.to_vec(), digest(1), 1u64)]).unwrap();
        assert!(ToReplica::decode(3, 1, &bytes).is_err(), "offer {:?}", &path[..path.len().min(12)]);
    }
    let good = postcard::to_allocvec(&vec![b"..a/b..".to_vec()]).unwrap();
    assert_eq!(ToReplica::decode(2, 1, &good), Ok(Some(ToReplica::List(vec![path("..a/b..")]))));
}

#[test]
fn entries_that_cannot_be_are_refused() {
    type Edit = fn(&mut Change);
    let edits: &[(&str, Edit)] = &[
        ("mode bits", |c| c.entry.as_mut().unwrap().mode = 0o10_000),
        ("nanoseconds", |c| c.entry.as_mut().unwrap().mtime.nsec = 1_000_000_000),
        ("an attribute without a name", |c| c.entry.as_mut().unwrap().xattrs[0].0 = Box::default()),
        ("an attribute twice", |c| {
            let one = c.entry.as_ref().unwrap().xattrs[0].clone();
            c.entry.as_mut().unwrap().xattrs = Box::new([one.clone(), one]);
        }),
        ("too long attributes", |c| {
            c.entry.as_mut().unwrap().xattrs[0].1 = vec![0; crate::manifest::MAX_XATTRS_BYTES].into();
        }),
        ("an empty target", |c| c.entry.as_mut().unwrap().kind = Kind::Symlink { target: Box::default() }),
        ("a NUL in a target", |c| c.entry.as_mut().unwrap().kind = Kind::Symlink { target: b"a\0"[..].into() }),
        ("a target too long", |c| c.entry.as_mut().unwrap().kind = Kind::Symlink { target: vec![b'a'; 4096].into() }),
        ("a directory as a link", |c| {
            c.entry.as_mut().unwrap().kind = Kind::Dir;
            c.entry.as_mut().unwrap().link = Some(path("a"));
        }),
        ("a link to itself", |c| c.entry.as_mut().unwrap().link = Some(path("m"))),
        ("a link to a later name", |c| c.entry.as_mut().unwrap().link = Some(path("n"))),
        ("a file at the top", |c| c.path = RelPath::root()),
    ];
    assert!(!refused(&ToReplica::Changes(vec![upsert("m", file())])));
    for (what, edit) in edits {
        let mut change = upsert("m", file());
        edit(&mut change);
        assert!(refused(&ToReplica::Changes(vec![upsert("a", file()), change])), "{what}");
    }
}

#[test]
fn what_is_told_relative_to_a_version_must_make_sense_without_it() {
    let touches = |paths: &[&str]| ToReplica::Touched(paths.iter().map(|at| touched(at)).collect());
    assert!(!refused(&touches(&["", "a", "a/b", "a!"])));
    for bad in [&["a", "a"][..], &["b", "a"], &["a!", "a/b"]] {
        assert!(refused(&touches(bad)), "{bad:?}");
    }
    let edits: [fn(&mut Touched); 2] = [|t| t.metadata.mode = 0o10_000, |t| t.metadata.mtime.nsec = 1_000_000_000];
    for (i, edit) in edits.iter().enumerate() {
        let mut bad = touched("b");
        edit(&mut bad);
        assert!(refused(&ToReplica::Touched(vec![touched("a"), bad])), "edit {i}");
    }
    assert!(!refused(&ToReplica::Moved(vec![moved("a", "b"), moved("c/d", "c/e")])));
    for (from, to) in [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("", "a"), ("a", ""), ("", "")] {
        assert!(refused(&ToReplica::Moved(vec![moved("x", "y"), moved(from, to)])), "{from:?} to {to:?}");
    }
}

#[test]
fn what_is_given_without_being_asked_for_is_bounded() {
    let given = |sizes: [usize; 2]| ToReplica::Given(sizes.map(|size| Given { seq: 7, content: vec![0; size] }).into());
    assert!(!refused(&given([1, MAX_GIVEN - 1])));
    assert!(refused(&given([1, MAX_GIVEN])));
    // Any number of them would be within the bound.
    assert!(refused(&given([1, 0])));
}

#[test]
fn a_draft_has_ranges_of_the_content_in_its_order() {
    let refused = |ranges: &[(u64, u64, u64)]| refused(&ToReplica::Draft(draft(ranges, 100)));
    assert!(!refused(&[]) && !refused(&[(0, 7, 50), (50, 0, 50)]) && !refused(&[(99, u64::MAX - 1, 1)]));
    for bad in [
        &[(0, 0, 0)][..],
        &[(0, 0, 101)],
        &[(100, 0, 1)],
        &[(u64::MAX, 0, 2)],
        &[(0, u64::MAX, 1)],
        &[(0, 0, 50), (49, 50, 1)],
        &[(50, 0, 50), (0, 0, 50)],
        &[(0, 0, 101), (0, 0, 1)],
    ] {
        assert!(refused(bad), "{bad:?}");
    }
}

/// A list of paths and times, as a touched tree makes it.
fn long_list() -> ToReplica {
    let many = (0..1000).map(|i| touched(&format!("directory/{:02}/file-{i:04}", i / 100)));
    ToReplica::Touched(many.collect())
}

#[test]
fn long_lists_are_packed_and_come_back() {
    let mut packer = Packer::default();
    for message in to_replica() {
        assert_eq!(packer.pack(message.encode()), message.encode(), "a short one goes as it is");
    }
    let noise = crate::chunk::noise(32 << 10, 1);
    let digests = noise.chunks(32).map(|bytes| Digest(bytes.try_into().unwrap()));
    let children = digests.enumerate().map(|(i, hash)| Child { hash, own: hash, ..child(&format!("{i:04}"), false) });
    let listing = ToMaster::Listing(Listing { dir: path("d"), own: None, children: children.collect(), last: true });
    let plain = ToMaster::Notice("\u{1}\u{2}x".to_owned() + &hex(&noise[..600]));
    for message in [listing, plain] {
        let Envelope { kind, version, body } = packer.pack(message.encode());
        assert_eq!(ToMaster::decode(kind, version, &body), Ok(Some(message)));
    }
    let plain = long_list().encode();
    let packed = packer.pack(plain.clone());
    assert_eq!((packed.kind, packed.version), (plain.kind, plain.version | 0x80));
    assert!(packed.body.len() * 8 < plain.body.len(), "{} of {} bytes", packed.body.len(), plain.body.len());
    assert_eq!(ToReplica::decode(packed.kind, packed.version, &packed.body), Ok(Some(long_list())));
    // Content has its own encoding.
    let content = frame(&contents()[0]);
    assert!(ContentFrame::decode(content.kind, content.version | 0x80, &content.body).is_err());
}

/// What a packed body holds is bounded like any other, before anything is allocated for it.
#[test]
fn a_packed_body_is_bounded_by_its_kind() {
    let Envelope { kind, version, body } = Packer::default().pack(long_list().encode());
    let refused = |body: &[u8]| ToReplica::decode(kind, version, body).map(drop).unwrap_err().to_string();
    for len in 0..body.len() {
        assert!(refused(&body[..len]).contains("message 11"), "cut to {len} bytes");
    }
    let claim = |len: u32| [&len.to_le_bytes()[..], &body[4..]].concat();
    let real = u32::from_le_bytes(body[..4].try_into().unwrap());
    for other in [0, real - 1, real + 1, MAX_LIST as u32, MAX_LIST as u32 + 1, u32::MAX] {
        let error = refused(&claim(other));
        assert_eq!(error.contains(&format!("at most {MAX_LIST} are allowed")), other > MAX_LIST as u32, "{error}");
    }
    assert!(ToReplica::decode(kind, version, &claim(real)).is_ok());
    // A bomb, in a message that may have a megabyte.
    let zeros = vec![0; MAX_MESSAGE];
    let bomb =
        [&(MAX_MESSAGE as u32).to_le_bytes()[..], &Compressor::new(1).unwrap().compress(&zeros).unwrap()].concat();
    assert!(bomb.len() < 4096);
    assert!(ToMaster::decode(108, 0x81, &bomb).unwrap_err().to_string().contains("at most 1048576 are allowed"));
    // Packed twice.
    let twice = Packer::default().pack(Envelope { kind, version, body: vec![0; 4096] });
    assert!(ToReplica::decode(kind, twice.version, &twice.body).is_err());
}

#[test]
fn listings_must_be_sorted_and_of_plain_names() {
    let listing = |names: &[&str]| {
        let children = names.iter().map(|name| child(name, false)).collect();
        ToMaster::Listing(Listing { dir: path("d"), own: None, children, last: true })
    };
    assert!(!refused_by_master(&listing(&["a", "a!", "b"])));
    let long = "x".repeat(256);
    for names in [&["b", "a"][..], &["a", "a"], &["a", "c", "b"], &["a/b"], &[".."], &["."], &[""], &["a\0"], &[&long]]
    {
        assert!(refused_by_master(&listing(names)), "{names:?}");
    }
}

#[test]
fn what_a_peer_may_cost_is_bounded() {
    let rule = Rule { pattern: String::new() };
    let mut greeting = hello();
    greeting.policy.rules = vec![rule.clone(); MAX_RULES];
    greeting.share = "s".repeat(64);
    assert!(!refused(&ToReplica::Hello(greeting.clone())));
    greeting.policy.rules.push(rule);
    assert!(refused(&ToReplica::Hello(greeting)), "too many rules");
    assert!(refused(&ToReplica::Hello(Hello { share: "s".repeat(65), ..hello() })), "too long a share");
    let rules = |pattern: usize, rules: usize| {
        let mut greeting = hello();
        greeting.policy.rules = vec![Rule { pattern: "r".repeat(pattern) }; rules];
        ToReplica::Hello(greeting)
    };
    let fits = MAX_RULES_BYTES / MAX_PATTERN;
    assert!(!refused(&rules(MAX_PATTERN, fits)));
    assert!(refused(&rules(MAX_PATTERN, fits + 1)), "too long rules");
    assert!(refused(&rules(MAX_PATTERN + 1, 1)), "too long a rule");

    let chunks = |n| vec![ChunkRef { digest: [0; 16], len: 1 }; n];
    let file = |size, chunks| Basis::File { digest: digest(1), size, chunks, guess: false };
    let (most, huge) = (MAX_CHUNKS, 1 << 50);
    // Of a mebibyte, chunks of at least 8 KiB.
    let (mebibyte, few) = (1 << 20, 128);
    for (size, basis, part, bad) in [
        (huge, most, 0, false),
        (huge, most + 1, 0, true),
        (huge, 0, most + 1, true),
        (mebibyte, few, 0, false),
        (mebibyte, few + 1, 0, true),
    ] {
        let want = ToMaster::Want(vec![Wanted { seq: 0, basis: file(size, chunks(basis)), part: chunks(part) }]);
        assert_eq!(refused_by_master(&want), bad, "{basis} chunks of {size} bytes and {part} of a part");
    }
    let none = || vec![chunks(1)[0], ChunkRef { digest: [0; 16], len: 0 }];
    let want = |basis, part| refused_by_master(&ToMaster::Want(vec![Wanted { seq: 0, basis, part }]));
    assert!(want(file(huge, none()), Vec::new()) && want(Basis::None, none()), "chunks of no bytes");
    let told =
        |list| refused_by_master(&ToMaster::Described(Described { seq: 0, parts: Parts::Chunks(list), done: true }));
    assert!(told(none()) && !told(chunks(2)), "chunks of no bytes");
    let pieces = |content: &[u8]| {
        let basis = Basis::Pieces(PieceHashes::of(content).0);
        refused_by_master(&ToMaster::Want(vec![Wanted { seq: 0, basis, part: Vec::new() }]))
    };
    assert!(!pieces(&crate::chunk::noise(MAX_PIECES as usize, 1)));
    assert!(pieces(&crate::chunk::noise(16 * MAX_PIECES as usize, 1)), "of no small file");
}

/// The directories of a list are each answered with a whole listing: few of them, and none twice.
#[test]
fn a_list_asks_for_few_directories_and_for_none_twice() {
    let dirs = |n: usize| ToReplica::List((0..n).map(|i| path(&format!("{i:04}"))).collect());
    assert!(!refused(&dirs(MAX_DIRS)));
    assert!(refused(&dirs(MAX_DIRS + 1)), "too many");
    assert!(!refused(&ToReplica::List(["", "a", "a/b", "a!"].map(path).to_vec())));
    for bad in [["a", "a"], ["b", "a"], ["a!", "a/b"]] {
        assert!(refused(&ToReplica::List(bad.map(path).to_vec())), "{bad:?}");
    }
    let empty = ToMaster::Notice("\0".repeat(1 << 20)).encode().body;
    let error = ToReplica::decode(2, 1, &empty).unwrap_err().to_string();
    assert!(error.contains("1048576 items"), "{error}");
}

/// An item of two bytes takes hundreds in memory: the count is refused, not the items.
#[test]
fn a_message_holds_few_items() {
    for count in [MAX_ITEMS, MAX_ITEMS + 1, 1 << 15] {
        let mut body = postcard::to_allocvec(&count).unwrap();
        body.extend_from_slice(&[0xff; 1 << 16]);
        let counted = |error: WireError| error.to_string().contains(&format!("{count} items"));
        for kind in [3, 4, 6, 9, 10, 11, 12] {
            assert_eq!(counted(ToReplica::decode(kind, 1, &body).unwrap_err()), count > MAX_ITEMS, "{kind}");
        }
        for kind in [103, 106, 107] {
            assert_eq!(counted(ToMaster::decode(kind, 1, &body).unwrap_err()), count > MAX_ITEMS, "{kind}");
        }
    }
    let deletes = |n: usize| ToReplica::Changes(vec![Change { path: path("m"), entry: None }; n]);
    assert!(!refused(&deletes(MAX_ITEMS)) && refused(&deletes(MAX_ITEMS + 1)));
}

/// The largest want there can be still fits.
#[test]
fn no_message_of_ours_is_too_long() {
    let chunks = vec![ChunkRef { digest: [0xff; 16], len: u32::MAX }; MAX_CHUNKS];
    let basis = Basis::File { digest: digest(1), size: u64::MAX, chunks: chunks.clone(), guess: false };
    let want = Wanted { seq: u64::MAX, basis, part: chunks };
    assert!(ToMaster::Want(vec![want]).encode().body.len() <= MAX_MESSAGE);
    let value = vec![0; crate::manifest::MAX_XATTRS_BYTES - 4].into_boxed_slice();
    let large = Entry { xattrs: Box::new([(b"user"[..].into(), value)]), ..file() };
    let large = Change { path: path(&"abc/".repeat(16_383)[..65_531]), entry: Some(large) };
    for change in [large.clone(), upsert("m", file()), Change { path: path("m"), entry: None }] {
        let size = change.size();
        let bytes = ToReplica::Changes(vec![change]).encode().body.len();
        assert!(bytes <= size && bytes < MAX_LIST, "{bytes} bytes, said to be {size}");
    }
    let parts = in_messages(vec![large; 40], 1000, Change::size);
    assert_eq!(parts.len(), 40);
    let parts = in_messages((0..10).collect(), 4, |_| 1);
    assert_eq!(parts, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    assert!(in_messages(Vec::<u8>::new(), 4, |_| 1).is_empty());
}

/// Attributes of three bytes take many times as much in memory: as many as an entry or a message of ours may have.
#[test]
fn attributes_are_counted() {
    let attributes = |n: usize| {
        let names = (0..n).map(|i| format!("{i:05}").into_bytes().into_boxed_slice());
        Entry { xattrs: names.map(|name| (name, Box::default())).collect(), ..file() }
    };
    assert!(!refused(&ToReplica::Changes(vec![upsert("m", attributes(MAX_XATTRS))])));
    assert!(refused(&ToReplica::Changes(vec![upsert("m", attributes(MAX_XATTRS + 1))])));
    let most = MAX_MESSAGE_XATTRS / 128;
    let entries = |n| ToReplica::Changes(vec![upsert("m", attributes(128)); n]);
    assert!(!refused(&entries(most)));
    let Envelope { kind, body, .. } = entries(most + 1).encode();
    let error = ToReplica::decode(kind, 1, &body).unwrap_err().to_string();
    assert!(error.contains("131072 extended attributes"), "{error}");
    // None of ours comes near it.
    let tiny = Entry { xattrs: Box::new([(b"a"[..].into(), Box::default())]), ..file() };
    let messages = in_messages(vec![upsert("m", tiny); 200_000], usize::MAX, Change::size);
    assert!(messages[0].len() < MAX_MESSAGE_XATTRS / 8, "{}", messages[0].len());
}

#[test]
fn every_kind_of_message_has_its_length() {
    for (kind, most) in [
        (1, MAX_PLAIN),
        (2, MAX_LIST),
        (3, MAX_LIST),
        (4, MAX_LIST),
        (5, MAX_PLAIN),
        (6, MAX_LIST),
        (7, MAX_PLAIN),
        (8, MAX_PLAIN),
        (9, MAX_LIST),
        (10, MAX_PLAIN),
        (11, MAX_LIST),
        (12, MAX_LIST),
        (13, MAX_LIST),
        (101, MAX_PLAIN),
        (102, MAX_MESSAGE),
        (103, MAX_MESSAGE),
        (104, MAX_PLAIN),
        (105, MAX_PLAIN),
        (106, MAX_LIST),
        (107, MAX_LIST),
        (108, MAX_PLAIN),
        (109, MAX_PLAIN),
        (110, MAX_MESSAGE),
    ] {
        for len in [most, most + 1] {
            let body = vec![0; len];
            let error = match kind {
                0..100 => ToReplica::decode(kind, 1, &body).err(),
                _ => ToMaster::decode(kind, 1, &body).err(),
            };
            let too_long = error.is_some_and(|e| e.to_string().contains(&format!("more than the {most} allowed")));
            assert_eq!(too_long, len > most, "message {kind} of {len} bytes");
        }
    }
}

/// A length is believed only as far as there are bytes: a message that claims gigabytes costs what it is long.
#[test]
fn a_count_without_its_items_is_refused() {
    // 2^63 paths, changes, children, files.
    let many = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for kind in [2, 3, 4, 6, 9, 10, 11, 12] {
        assert!(ToReplica::decode(kind, 1, &many).is_err(), "{kind}");
    }
    for kind in [103, 106, 107, 108] {
        assert!(ToMaster::decode(kind, 1, &many).is_err(), "{kind}");
    }
    assert!(ContentFrame::decode(201, 1, &many).is_err());
}

#[test]
fn content_is_as_long_as_it_says_and_within_the_bound() {
    let most = u32::try_from(MAX_RAW).unwrap();
    let batch = |files: &[(u64, u32)], encoding, bytes: &'static [u8]| {
        let envelope = frame(&ContentFrame::Batch(
            Batch { files: files.iter().map(|(seq, literal)| whole(*seq, *literal)).collect(), encoding },
            bytes,
        ));
        ContentFrame::decode(envelope.kind, 1, &envelope.body).map(drop).is_ok()
    };
    assert!(batch(&[(0, 2), (1, 0), (2, 1)], Encoding::Plain, b"abc"));
    assert!(!batch(&[(0, 2)], Encoding::Plain, b"abc"));
    assert!(!batch(&[(0, 4)], Encoding::Plain, b"abc"));
    assert!(batch(&[(0, most)], Encoding::Zstd, b"z"));
    assert!(!batch(&[(0, most), (1, 1)], Encoding::Zstd, b"z"));
    // As many as fit; the count comes first, and is refused before any file is decoded.
    let many: Vec<(u64, u32)> = (0..=MAX_BATCH as u64).map(|seq| (seq, 1)).collect();
    assert!(batch(&many[1..], Encoding::Zstd, b"z"));
    assert!(!batch(&many, Encoding::Zstd, b"z"), "more than {MAX_BATCH} files");
    // The sum must not wrap around.
    assert!(!batch(&[(0, u32::MAX); 5], Encoding::Zstd, b"z"));

    let piece = |piece, bytes: &'static [u8]| {
        let envelope = frame(&ContentFrame::Piece(piece, bytes));
        ContentFrame::decode(envelope.kind, 1, &envelope.body).map(drop).is_ok()
    };
    let literal = |len, encoding| Piece::Literal { seq: 0, offset: 0, len, encoding };
    assert!(piece(literal(3, Encoding::Plain), b"abc"));
    assert!(!piece(literal(2, Encoding::Plain), b"abc"));
    assert!(piece(literal(most, Encoding::Zstd), b"z"));
    assert!(!piece(literal(most + 1, Encoding::Zstd), b"z"));
    for empty in [
        Piece::Zeros { seq: 0, offset: 0, len: 1 },
        Piece::Spliced {
            seq: 0,
            offset: 0,
            splices: vec![Splice { literal: 0, zeros: 0, skip: 0, copy: 1 }],
            encoding: Encoding::Plain,
        },
        Piece::End { seq: 0 },
    ] {
        assert!(piece(empty.clone(), b""));
        assert!(!piece(empty, b"x"));
    }
}

/// A frame within all bounds whose bytes hold more than it says gives an error, and no more than it says.
#[test]
fn a_frame_decompresses_to_what_it_says_or_not_at_all() {
    let zeros = vec![0; 2 * MAX_RAW];
    let bomb = Compressor::new(1).unwrap().compress(&zeros).unwrap();
    for len in [1000, MAX_RAW] {
        let batch = Batch { files: vec![whole(0, u32::try_from(len).unwrap())], encoding: Encoding::Zstd };
        let mut body = ContentFrame::Batch(batch, &[]).head().body;
        body.extend_from_slice(&bomb);
        let Ok(Some(ContentFrame::Batch(batch, bytes))) = ContentFrame::decode(201, 1, &body) else { panic!("{len}") };
        assert!(decompress(bytes, batch.files[0].literal as usize, MAX_RAW).is_err(), "{len}");
    }
    assert!(decompress(&bomb, zeros.len(), MAX_RAW).is_err());
}

/// Whatever decodes, encodes to something that decodes to the same.
fn decode_any(kind: u16, version: u8, body: &[u8]) {
    if let Ok(Some(message)) = ToReplica::decode(kind, version, body) {
        let again = message.encode();
        assert_eq!(ToReplica::decode(again.kind, again.version, &again.body), Ok(Some(message)));
    }
    if let Ok(Some(message)) = ToMaster::decode(kind, version, body) {
        let again = message.encode();
        assert_eq!(ToMaster::decode(again.kind, again.version, &again.body), Ok(Some(message)));
    }
    if let Ok(Some(content)) = ContentFrame::decode(kind, version, body) {
        let again = frame(&content);
        assert_eq!(ContentFrame::decode(again.kind, again.version, &again.body), Ok(Some(content)));
    }
}

fn any_kind() -> impl Strategy<Value = u16> {
    prop_oneof![1u16..16, 101u16..113, 201u16..204, any::<u16>()]
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index),
    Kind(u16),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = any::<prop::sample::Index>;
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(at, mask)| Mutation::Flip(at, mask)),
        1 => place().prop_map(Mutation::Cut),
        2 => (place(), proptest::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        2 => place().prop_map(Mutation::Remove),
        1 => any_kind().prop_map(Mutation::Kind),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn noise_is_refused_or_means_something(
        kind in any_kind(),
        version in prop_oneof![8 => Just(1u8), 1 => Just(0x81u8), 1 => any::<u8>()],
        body in proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..200),
    ) {
        decode_any(kind, version, &body);
    }

    #[test]
    fn damaged_messages_are_refused_or_mean_something(
        which in any::<prop::sample::Index>(),
        mutations in proptest::collection::vec(mutation(), 1..5),
    ) {
        let packed = Packer::default().pack(long_list().encode());
        let mut envelope = which.get(&[envelopes(), vec![packed]].concat()).clone();
        for mutation in mutations {
            let body = &mut envelope.body;
            match mutation {
                Mutation::Kind(kind) => envelope.kind = kind,
                Mutation::Insert(at, bytes) => {
                    let at = at.index(body.len() + 1);
                    body.splice(at..at, bytes);
                }
                _ if body.is_empty() => {}
                Mutation::Flip(at, mask) => *at.get_mut(body) ^= mask,
                Mutation::Cut(at) => body.truncate(at.index(body.len())),
                Mutation::Remove(at) => drop(body.remove(at.index(body.len()))),
            }
        }
        decode_any(envelope.kind, envelope.version, &envelope.body);
    }
}

#[test]
fn the_place_of_a_source_has_a_bound() {
    let marks = |count| Region { mounts: vec![Mark([1; 16]); count], ..Region::default() };
    let decoded = |region| {
        let Envelope { kind, version, body } = ToReplica::Place(region).encode();
        ToReplica::decode(kind, version, &body)
    };
    assert!(decoded(marks(MAX_MARKS)).is_ok());
    assert!(decoded(marks(MAX_MARKS + 1)).is_err());
    let above = Region { above: vec![Mark([1; 16]); MAX_MARKS + 1], ..Region::default() };
    assert!(decoded(above).is_err());
}

#[test]
fn the_bits_of_features_are_pinned() {
    assert_eq!([HISTORY, FOLLOW, RELEASED, ADOPT, STRETCHES, LOOK, WHOLE], [1, 2, 4, 8, 16, 32, 64]);
}
