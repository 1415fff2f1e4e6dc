//! How strongly streams compress beside each other, and what they take when that changes.

#![allow(clippy::disallowed_methods, reason = "the tests make trees of their own")]

use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use tokio::sync::{Notify, mpsc};

use super::*;
use crate::compress::AutoCompress;
use crate::manifest::{Metadata, Time};
use crate::monitor::Silent;
use crate::options::{Destination, Policy, PushRequest};
use crate::path::RelPath;
use crate::roles::master::meter::Meter;
use crate::roles::master::source::Source;
use crate::transport::{Loopback, Settings};
use crate::wire::Offered;

/// Longer than anything here takes.
const PROMPT: Duration = Duration::from_secs(20);

/// What a block is for those who learn from it.
const BLOCK: u64 = 256 << 10;

/// A source, and a connection for its streams.
struct Bed {
    _temp: tempfile::TempDir,
    source: Arc<Source>,
    ends: Loopback,
}

impl Bed {
    async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("src");
        std::fs::create_dir(&top).unwrap();
        let request = PushRequest {
            source: top,
            destinations: vec![Destination::Path(temp.path().join("dst"))],
            state_dir: temp.path().join("state"),
            policy: Policy::default(),
            adopt: false,
            bandwidth: None,
            compress: Compress::Auto,
            history: None,
        };
        let source = Arc::new(Source::open(&request, &Silent).unwrap());
        Self { _temp: temp, source, ends: Loopback::open(Settings::default()).await.unwrap() }
    }

    /// What goes to another replica.
    fn outgoing(&self, compress: Compress) -> Arc<Outgoing> {
        Arc::new(Outgoing {
            dest: 0,
            source: Arc::clone(&self.source),
            meter: Arc::new(Meter::new(Arc::new(Silent), 1)),
            queue: Mutex::default(),
            more: Notify::new(),
            events: mpsc::unbounded_channel().0,
            compress,
            auto: Mutex::new(AutoCompress::new()),
            pace: None,
            started: Instant::now(),
            estimates: false,
            literal: AtomicU64::new(0),
            compressed: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
        })
    }

    fn stream(&self, compress: Compress) -> Stream {
        let (outgoing, connection) = (self.outgoing(compress), self.ends.dialed.clone());
        Stream { outgoing, connection, writer: None, compressor: None, strong: None, literal: 0 }
    }

    /// A stream to a replica with a slow link.
    fn slow(&self) -> Stream {
        let stream = self.stream(Compress::Auto);
        stream.outgoing.learns(|auto| auto.level() == Some(STRONG_LEVEL), BLOCK / 3, true);
        stream
    }
}

impl Outgoing {
    /// Learns of blocks that became so small, waiting for the link or not, until it is as wanted.
    fn learns(&self, wanted: impl Fn(&AutoCompress) -> bool, sent: u64, waits: bool) {
        let took = Duration::from_millis(20);
        for block in 0..1000 {
            if wanted(&self.auto()) {
                return;
            }
            let blocked = if waits { took } else { Duration::ZERO };
            self.learn(Observation { content: BLOCK, sent, begun: took * block, ended: took * (block + 1), blocked });
        }
        panic!("it does not learn that");
    }
}

impl Stream {
    /// Sends a block that shrinks; the level that it was compressed at.
    fn level_of_a_block(&mut self) -> i32 {
        let text = b"line after line, each like the others\n".repeat(4000);
        assert!(self.compress(&text, &[]).is_some());
        self.compressor.as_ref().unwrap().as_ref().unwrap().level()
    }
}

/// Bytes that resemble nothing but themselves.
fn noise() -> Vec<u8> {
    let mut bytes = vec![0; 64 << 10];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Each takes some 50 MB at the strong level: many slow links at the same time shall not take all the memory.
#[tokio::test(flavor = "multi_thread")]
async fn four_streams_of_a_source_compress_strongly_and_the_others_lightly() {
    let bed = Bed::new().await;
    let mut streams: Vec<_> = (0..6).map(|_| bed.slow()).collect();
    let levels = |streams: &mut [Stream]| streams.iter_mut().map(Stream::level_of_a_block).collect::<Vec<_>>();
    for _ in 0..3 {
        assert_eq!(levels(&mut streams), [9, 9, 9, 9, 3, 3]);
    }
    // A person who asks for it gets it, and takes nobody's place.
    assert_eq!(bed.stream(Compress::Zstd(STRONG_LEVEL)).level_of_a_block(), 9);
    assert_eq!(levels(&mut streams), [9, 9, 9, 9, 3, 3]);

    // One that ends gives its place to the next that sends a block, and to one alone.
    drop(streams.remove(1));
    assert_eq!(levels(&mut streams), [9, 9, 9, 9, 3]);
    // So does one whose link is not waited for any more, once its compressor is a small one.
    streams[0].outgoing.learns(|auto| auto.level() == Some(LIGHT_LEVEL), BLOCK / 3, false);
    assert_eq!(levels(&mut streams[4..]), [3], "the first has not sent anything yet");
    assert_eq!(levels(&mut streams), [3, 9, 9, 9, 9]);
    // One that only pauses stays as large as it is.
    streams[1].outgoing.learns(|auto| auto.level().is_none(), BLOCK, false);
    assert!(streams[1].compress(&[b'x'; 1000], &[]).is_none());
    assert_eq!(bed.slow().level_of_a_block(), 3);
    // One that sent nothing but what differs from old contents has no compressor, and is a small one at once.
    drop(streams.remove(1));
    let mut patches = bed.slow();
    let (old, new) = (noise(), [noise(), b"and more".to_vec()].concat());
    assert!(matches!(patches.compress(&new, &old), Some((Encoding::AfterGaps, _))));
    assert_eq!(bed.slow().level_of_a_block(), 3, "it has the place");
    patches.outgoing.learns(|auto| auto.level() == Some(LIGHT_LEVEL), BLOCK / 3, false);
    assert!(matches!(patches.compress(&new, &old), Some((Encoding::AfterGaps, _))));
    assert_eq!(bed.slow().level_of_a_block(), 9, "it has given it back");
    // When all have ended, nothing is held.
    drop(streams);
    assert_eq!(levels(&mut (0..5).map(|_| bed.slow()).collect::<Vec<_>>()), [9, 9, 9, 9, 3]);
}

fn wanted(size: u64) -> ContentRequest {
    let likely = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Time { sec: 0, nsec: 0 } };
    let file = Offered { path: RelPath::new(b"f").unwrap(), digest: Digest::of(b""), size, likely };
    ContentRequest { seq: 0, file, basis: Basis::None, part: Vec::new() }
}

/// While content is compressed a stream leaves to the other what it takes otherwise: it must not sleep over that.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_is_woken_when_compression_ends() {
    let bed = Bed::new().await;
    for (stream, size) in [(0, 2 << 20), (1, 1000)] {
        let outgoing = bed.outgoing(Compress::Auto);
        outgoing.queue().push(wanted(size), BATCH);
        let mut next = pin!(outgoing.next(BATCH, stream));
        tokio::select! {
            biased;
            _ = &mut next => panic!("stream {stream} took what is the other's"),
            () = std::future::ready(()) => {}
        }
        outgoing.learns(|auto| !auto.is_on(), BLOCK, false);
        let job = tokio::time::timeout(PROMPT, next).await.expect("nobody woke it");
        match job {
            Some(Job::Small(requests)) => assert_eq!((stream, requests.len()), (1, 1)),
            Some(Job::Big(_)) => assert_eq!(stream, 0),
            Some(Job::GoOn(_)) | None => panic!("stream {stream} has nothing to do"),
        }
    }
}
