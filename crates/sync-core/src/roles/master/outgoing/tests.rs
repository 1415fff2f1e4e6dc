//! What streams take when it changes whether they compress, or when others have taken it before.

#![allow(clippy::disallowed_methods, reason = "the tests make trees of their own")]

use std::pin::pin;

use super::*;
use crate::manifest::{Metadata, Time};
use crate::monitor::Silent;
use crate::options::{Destination, Policy, PushRequest};
use crate::path::RelPath;
use crate::roles::master::packing::is_meeting;
use crate::roles::master::queue::SMALL;
use crate::wire::{Basis, Offered};

/// Longer than anything here takes.
const PROMPT: Duration = Duration::from_secs(20);

/// What a block is for those who learn from it.
const BLOCK: u64 = 256 << 10;

/// A source.
struct Bed {
    temp: tempfile::TempDir,
    source: Arc<Source>,
}

impl Bed {
    /// With so many destinations.
    fn new(destinations: usize) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("src");
        std::fs::create_dir(&top).unwrap();
        let request = PushRequest {
            source: top,
            destinations: (0..destinations).map(|i| Destination::Path(temp.path().join(i.to_string()))).collect(),
            state_dir: temp.path().join("state"),
            policy: Policy::default(),
            adopt: false,
            bandwidth: None,
            compress: Compress::Auto,
            history: None,
        };
        let source = Arc::new(Source::open(&request, &Silent).unwrap());
        Self { temp, source }
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

fn wanted(size: u64) -> ContentRequest {
    let likely = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Time { sec: 0, nsec: 0 } };
    let file = Offered { path: RelPath::new(b"f").unwrap(), digest: Digest::of(b""), size, likely };
    ContentRequest { seq: 0, file, basis: Basis::None, part: Vec::new() }
}

/// While content is compressed a stream leaves to the other what it takes otherwise: it must not sleep over that.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_is_woken_when_compression_ends() {
    let bed = Bed::new(1);
    for (stream, size) in [(0, 2 << 20), (1, 1000)] {
        let outgoing = bed.outgoing(Compress::Auto);
        outgoing.queue().push(wanted(size), BATCH);
        let mut next = pin!(outgoing.next(BATCH, stream, None));
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

/// What goes on in a batch as it did for somebody else is waited for, but not for long: it may never come.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_waits_for_the_rest_of_a_batch_and_then_takes_what_there_is() {
    let bed = Bed::new(2);
    let small = |n: u8| {
        let request = wanted(1000);
        ContentRequest { seq: n.into(), file: Offered { digest: Digest::of(&[n]), ..request.file }, ..request }
    };
    let taken = |job| match job {
        Some(Job::Small(requests)) => requests.iter().map(|request| request.seq).collect(),
        _ => Vec::new(),
    };
    bed.source.packing.batched(None, &[small(1), small(2), small(3)]);
    let outgoing = bed.outgoing(Compress::Zstd(3));
    for (comes, expected) in [(&[2, 3][..], vec![1, 2, 3]), (&[2], vec![1, 2])] {
        outgoing.queue().push(small(1), SMALL);
        let mut next = pin!(outgoing.next(SMALL, 0, None));
        tokio::select! {
            biased;
            _ = &mut next => panic!("it does not wait"),
            () = std::future::ready(()) => {}
        }
        for n in comes {
            outgoing.queue().push(small(*n), SMALL);
        }
        outgoing.more.notify_waiters();
        let job = tokio::time::timeout(PROMPT, next).await.expect("it waits for ever");
        assert_eq!(taken(job), expected);
    }
    // What goes as it is needs no other's batches.
    let plain = bed.outgoing(Compress::Never);
    plain.queue().push(small(1), SMALL);
    tokio::select! {
        biased;
        job = plain.next(SMALL, 0, None) => assert_eq!(taken(job), [1]),
        () = std::future::ready(()) => panic!("it waits"),
    }
}

/// Whatever comes first at whom: what three replicas want is compressed in two chains, of small files and of large ones.
#[tokio::test(flavor = "multi_thread")]
async fn what_several_replicas_want_is_compressed_once() {
    use crate::roles::master::stream::Stream;
    use crate::transport::{Loopback, Settings};
    let bed = Bed::new(3);
    let requests: Vec<_> = (0..60u64)
        .map(|seq| {
            let content = format!("{seq} and the like\n").repeat(if seq % 10 == 7 { 20_000 } else { 300 });
            std::fs::write(bed.temp.path().join(format!("src/{seq}")), &content).unwrap();
            let (path, size) = (RelPath::new(seq.to_string().as_bytes()).unwrap(), content.len() as u64);
            let file = Offered { path, digest: Digest::of(content.as_bytes()), size, likely: wanted(0).file.likely };
            ContentRequest { seq, file, ..wanted(0) }
        })
        .collect();
    assert!(!requests.iter().any(|request| is_meeting(&request.file.digest, request.file.size, 64 << 20)));
    let ends = Loopback::open(Settings::default()).await.unwrap();
    let mut tasks = Vec::new();
    for dest in 0..3u64 {
        let outgoing = bed.outgoing(Compress::Zstd(3));
        for number in 0..2 {
            let (outgoing, connection) = (Arc::clone(&outgoing), ends.dialed.clone());
            tasks.push(tokio::spawn(async move { Stream::run(outgoing, connection, number).await.unwrap() }));
        }
        let requests = requests.clone();
        tasks.push(tokio::spawn(async move {
            for request in requests {
                let pauses = request.seq % 13 == 4 * dest;
                outgoing.queue().push(request, BATCH);
                outgoing.more.notify_waiters();
                if pauses {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            outgoing.queue().is_over = true;
            outgoing.more.notify_waiters();
        }));
    }
    for task in tasks {
        tokio::time::timeout(PROMPT, task).await.expect("it does not end").unwrap();
    }
    // Four, if batches were not alike, and six, if nothing was. Who takes a batch in the same moment as another may go alone.
    let chains = bed.source.packing.chains();
    assert!((2..4).contains(&chains), "{chains}");
}
