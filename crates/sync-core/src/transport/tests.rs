mod simulation;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::pairing::{PairError, Secret, Token, TokenError};
use super::*;

const HERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn identity() -> Identity {
    Identity::generate().unwrap().0
}

fn quick() -> Settings {
    Settings {
        handshake: Duration::from_secs(2),
        idle: Duration::from_millis(1500),
        keep_alive: Duration::from_millis(200),
    }
}

/// A trust that a test can change while a listener uses it.
#[derive(Default)]
struct Book {
    known: Mutex<Vec<PeerId>>,
    open: AtomicBool,
}

impl Trust for Book {
    fn accepts(&self, id: &PeerId) -> bool {
        self.known.lock().unwrap().contains(id)
    }

    fn invitation_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }
}

/// A listener that hands over what it accepts, good or bad.
struct Host {
    id: PeerId,
    address: SocketAddr,
    arrived: tokio::sync::mpsc::UnboundedReceiver<Result<Connection, AcceptError>>,
    task: tokio::task::JoinHandle<()>,
}

impl Host {
    fn start(identity: &Identity, trust: Arc<dyn Trust>, settings: Settings) -> Self {
        Self::start_at(HERE.into(), identity, trust, settings)
    }

    fn start_at(at: SocketAddr, identity: &Identity, trust: Arc<dyn Trust>, settings: Settings) -> Self {
        let listener = Listener::bind(at, identity, trust, settings).unwrap();
        let address = listener.address();
        let (send, arrived) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(arrival) = listener.accept().await {
                let send = send.clone();
                tokio::spawn(async move { send.send(arrival.establish().await) });
            }
        });
        Self { id: identity.id(), address, arrived, task }
    }

    async fn next(&mut self) -> Result<Connection, AcceptError> {
        self.arrived.recv().await.unwrap()
    }

    fn to(&self) -> Address {
        self.address.into()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn dial(host: &Host, as_whom: &Identity, purpose: Purpose) -> Result<Connection, ConnectError> {
    connect(&host.to(), as_whom, host.id, purpose, Settings::default()).await
}

#[tokio::test]
async fn both_sides_know_each_other_and_end_in_order() {
    let (master, replica) = (identity(), identity());
    let mut host = Host::start(&replica, Arc::new(Only(master.id())), Settings::default());
    let dialed = dial(&host, &master, Purpose::Session).await.unwrap();
    let accepted = host.next().await.unwrap();
    assert_eq!((dialed.peer(), accepted.peer()), (replica.id(), master.id()));
    assert_eq!(accepted.purpose(), Purpose::Session);

    let served = tokio::spawn(async move {
        let (mut writer, mut reader) = accepted.accept_bi().await.unwrap();
        let question = reader.next(100).await.unwrap().unwrap();
        assert_eq!(reader.next(100).await.unwrap(), None);
        writer.send(question.kind + 1, 2, question.body).await.unwrap();
        writer.finish().unwrap();
        accepted.finish(Duration::from_secs(5)).await
    });
    let (mut writer, mut reader) = dialed.open_bi().await.unwrap();
    writer.send_with(7, 1, b"how ", Bytes::from_static(b"much")).await.unwrap();
    writer.finish().unwrap();
    let answer = reader.next(100).await.unwrap().unwrap();
    assert_eq!(answer, Frame { kind: 8, version: 2, body: Bytes::from_static(b"how much") });
    dialed.close(Code::Done, "").await;
    assert_eq!(served.await.unwrap(), Ok(()));
    assert!(dialed.traffic().sent > 1200 && dialed.traffic().received > 1200);
}

#[tokio::test]
async fn an_unknown_key_is_refused_and_told_what_to_do() {
    let replica = identity();
    let mut host = Host::start(&replica, Arc::new(Book::default()), Settings::default());
    let error = dial(&host, &identity(), Purpose::Session).await.unwrap_err();
    assert!(matches!(error, ConnectError::UnknownKey { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("syncd invite") && text.contains(&format!("synccli pair {} TOKEN", host.address)), "{text}");
    // Within TLS, before a connection exists.
    assert!(matches!(host.next().await, Err(AcceptError::Handshake { why: Closed::Tls { .. }, .. })));
}

#[tokio::test]
async fn a_key_that_was_taken_off_the_list_does_not_come_in_again() {
    let (master, replica, book) = (identity(), identity(), Arc::new(Book::default()));
    book.known.lock().unwrap().push(master.id());
    let host = Host::start(&replica, Arc::clone(&book) as Arc<dyn Trust>, Settings::default());
    dial(&host, &master, Purpose::Session).await.unwrap().close(Code::Done, "").await;
    book.known.lock().unwrap().clear();
    let error = dial(&host, &master, Purpose::Session).await.unwrap_err();
    assert!(matches!(error, ConnectError::UnknownKey { .. }), "{error:?}");
}

#[tokio::test]
async fn another_machine_at_the_address_is_not_taken_for_the_pinned_one() {
    let (master, replica) = (identity(), identity());
    let host = Host::start(&replica, Arc::new(Only(master.id())), Settings::default());
    let pinned = identity().id();
    let error = connect(&host.to(), &master, pinned, Purpose::Session, Settings::default()).await.unwrap_err();
    let ConnectError::WrongKey { expected, found, .. } = error else { panic!("{error:?}") };
    assert_eq!((expected, found), (pinned, replica.id()));
}

#[tokio::test]
async fn another_protocol_version_is_named_as_such() {
    let (master, replica) = (identity(), identity());
    let crypto = tls::server(&replica, Arc::new(Only(master.id())), &[b"synccli/2"]).unwrap();
    let endpoint = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(crypto), HERE.into()).unwrap();
    let to = Address::from(endpoint.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    let error = connect(&to, &master, replica.id(), Purpose::Session, Settings::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Version { .. }), "{error:?}");
    serving.abort();
}

#[tokio::test]
async fn a_closed_port_is_noticed_at_once() {
    let free = std::net::UdpSocket::bind(HERE).unwrap().local_addr().unwrap();
    let start = Instant::now();
    let error = connect(&free.into(), &identity(), identity().id(), Purpose::Session, Settings::default()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ConnectError::NotListening { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

/// The first address is silent, the second belongs to nobody, and the third is another machine's.
#[tokio::test]
async fn a_machine_is_found_at_whichever_of_its_addresses_answers() {
    let (master, replica, stranger) = (identity(), identity(), identity());
    let silent = std::net::UdpSocket::bind(HERE).unwrap();
    let other = Host::start(&stranger, Arc::new(Only(master.id())), Settings::default());
    let host = Host::start(&replica, Arc::new(Only(master.id())), Settings::default());
    let silent = Address::from(silent.local_addr().unwrap());
    let nowhere = Address::new("no-such-host.invalid", 7373);
    let dial = async |also: &[Address]| {
        Dialer::default()
            .connect(&silent, also, &master, replica.id(), Purpose::Session, quick())
            .await
            .map(|found| found.remote())
    };
    assert_eq!(dial(&[nowhere.clone(), other.to(), host.to()]).await.unwrap(), host.address);
    let error = dial(&[nowhere, other.to()]).await.unwrap_err();
    assert!(matches!(&error, ConnectError::WrongKey { to, .. } if *to == other.to()), "{error:?}");
}

/// What is on the way may remember a socket, and wrongly: who cannot be reached is dialed from another one the next time.
#[tokio::test]
async fn all_are_dialed_from_one_socket_until_somebody_cannot_be_reached() {
    let (master, replica, dialer) = (identity(), identity(), Dialer::default());
    let mut host = Host::start(&replica, Arc::new(Only(master.id())), quick());
    let free = std::net::UdpSocket::bind(HERE).unwrap().local_addr().unwrap();
    let dial = |to: Address| {
        let (dialer, master, expected) = (dialer.clone(), &master, replica.id());
        async move { dialer.connect(&to, &[], master, expected, Purpose::Session, quick()).await }
    };
    let mut ends = Vec::new();
    let mut from = Vec::new();
    for to in [host.to(), host.to(), free.into(), host.to(), host.to()] {
        let Ok(dialed) = dial(to).await else { continue };
        let accepted = host.next().await.unwrap();
        from.push(accepted.remote());
        ends.push((dialed, accepted));
    }
    assert!(from.len() == 4 && from[0] == from[1] && from[1] != from[2] && from[2] == from[3], "{from:?}");
    // And nobody who was connected is any the worse for it.
    for (dialed, accepted) in &ends {
        let (mut writer, _) = dialed.open_bi().await.unwrap();
        writer.send(1, 1, Bytes::from_static(b"still here")).await.unwrap();
        let (_, mut reader) = accepted.accept_bi().await.unwrap();
        assert_eq!(reader.next(100).await.unwrap().unwrap().body, b"still here"[..]);
    }
}

#[tokio::test]
async fn a_silent_port_is_given_up_at_the_deadline() {
    let silent = std::net::UdpSocket::bind(HERE).unwrap();
    let to = silent.local_addr().unwrap().into();
    let start = Instant::now();
    let error = connect(&to, &identity(), identity().id(), Purpose::Session, quick()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_name_without_address_is_a_name_without_address() {
    let to = Address::new("no-such-host.invalid", 7373);
    let error = connect(&to, &identity(), identity().id(), Purpose::Session, quick()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error:?}");
}

#[tokio::test]
async fn an_open_invitation_lets_an_unknown_key_pair_and_nothing_else() {
    let (replica, book) = (identity(), Arc::new(Book::default()));
    let mut host = Host::start(&replica, Arc::clone(&book) as Arc<dyn Trust>, Settings::default());
    let error = dial(&host, &identity(), Purpose::Pairing).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoInvitation { .. }), "{error:?}");
    assert!(host.next().await.is_err());

    book.open.store(true, Ordering::SeqCst);
    let error = dial(&host, &identity(), Purpose::Session).await.unwrap_err();
    assert!(matches!(error, ConnectError::UnknownKey { .. }), "{error:?}");
    assert!(matches!(host.next().await, Err(AcceptError::UnknownKey { .. })));

    book.open.store(false, Ordering::SeqCst);
    let known = identity();
    book.known.lock().unwrap().push(known.id());
    let error = dial(&host, &known, Purpose::Pairing).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoInvitation { .. }), "{error:?}");
    assert!(matches!(host.next().await, Err(AcceptError::NoInvitation { .. })));
}

#[tokio::test]
async fn a_token_pairs_once() {
    let (master, replica, book) = (identity(), identity(), Arc::new(Book::default()));
    book.open.store(true, Ordering::SeqCst);
    let token = Token::generate(replica.id()).unwrap();
    let mut host = Host::start(&replica, Arc::clone(&book) as Arc<dyn Trust>, Settings::default());
    let to = host.to();
    let (open, keeper) = (Mutex::new(Some(token.secret.digest())), Arc::clone(&book));
    let serving = tokio::spawn(async move {
        let mut served = Vec::new();
        for _ in 0..3 {
            let connection = host.next().await.unwrap();
            let redeem = |secret: &Secret, peer: &PeerId| {
                let mut open = open.lock().unwrap();
                let valid = *open == Some(secret.digest());
                if valid {
                    *open = None;
                    keeper.known.lock().unwrap().push(*peer);
                }
                valid
            };
            served.push(pairing::serve(&connection, redeem).await.unwrap());
        }
        (served, host)
    });
    let guessed = Token::generate(replica.id()).unwrap();
    let wrong = pairing::pair(&to, &master, &guessed, Settings::default()).await;
    assert!(matches!(wrong, Err(PairError::Refused { .. })), "{wrong:?}");
    let read_back: Token = token.to_string().parse().unwrap();
    pairing::pair(&to, &master, &read_back, Settings::default()).await.unwrap();
    let again = pairing::pair(&to, &identity(), &token, Settings::default()).await;
    assert!(matches!(again, Err(PairError::Refused { .. })), "{again:?}");
    let (served, host) = serving.await.unwrap();
    assert_eq!(served, [None, Some(master.id()), None]);
    book.open.store(false, Ordering::SeqCst);
    dial(&host, &master, Purpose::Session).await.unwrap();
}

#[tokio::test]
async fn the_secret_is_not_sent_to_another_machine() {
    let (replica, book) = (identity(), Arc::new(Book::default()));
    book.open.store(true, Ordering::SeqCst);
    let host = Host::start(&replica, book, Settings::default());
    let elsewhere = Token::generate(identity().id()).unwrap();
    let error = pairing::pair(&host.to(), &identity(), &elsewhere, Settings::default()).await.unwrap_err();
    assert!(matches!(error, PairError::Connect(ConnectError::WrongKey { .. })), "{error:?}");
}

#[tokio::test]
async fn a_peer_that_says_nothing_to_pair_is_not_waited_for_with_a_wrong_message() {
    let (replica, book) = (identity(), Arc::new(Book::default()));
    book.open.store(true, Ordering::SeqCst);
    let mut host = Host::start(&replica, book, Settings::default());
    let dialed = dial(&host, &identity(), Purpose::Pairing).await.unwrap();
    let accepted = host.next().await.unwrap();
    let (mut writer, _reader) = dialed.open_bi().await.unwrap();
    writer.send(1, 1, Bytes::from(vec![0; 65])).await.unwrap();
    let served = pairing::serve(&accepted, |_, _| true).await;
    assert_eq!(served, Err(StreamError::TooLarge { kind: 1, len: 65, max: 64 }));
    assert!(matches!(dialed.closed().await, Closed::ByPeer { code: Code::Protocol, .. }));
}

#[tokio::test]
async fn the_reason_of_a_close_arrives_and_is_harmless() {
    let Loopback { dialed, accepted } = Loopback::open(Settings::default()).await.unwrap();
    accepted.close(Code::Internal, "broken\x1b[2J down").await;
    let closed = dialed.closed().await;
    assert_eq!(closed, Closed::ByPeer { code: Code::Internal, reason: "broken\\x1b[2J down".to_owned() });
    assert!(closed.to_string().ends_with("it failed: broken\\x1b[2J down"), "{closed}");

    let Loopback { dialed, accepted } = Loopback::open(Settings::default()).await.unwrap();
    accepted.close(Code::Other(77), &"x".repeat(5000)).await;
    let Closed::ByPeer { code, reason } = dialed.closed().await else { panic!() };
    assert_eq!((code, reason.len()), (Code::Other(77), 400));
}

#[tokio::test]
async fn a_dropped_connection_does_not_look_done() {
    let Loopback { dialed, accepted } = Loopback::open(Settings::default()).await.unwrap();
    drop(accepted);
    let closed = dialed.finish(Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(closed, Closed::ByPeer { code: Code::Abandoned, .. }), "{closed:?}");
}

#[tokio::test]
async fn patience_with_a_peer_that_never_closes_is_bounded() {
    let Loopback { dialed, accepted } = Loopback::open(Settings::default()).await.unwrap();
    assert_eq!(dialed.finish(Duration::from_millis(50)).await, Err(Closed::Here));
    assert!(accepted.closed().await.is_done());
}

#[tokio::test]
async fn frames_in_one_piece_are_the_same_frames() {
    let Loopback { dialed, accepted } = Loopback::open(Settings::default()).await.unwrap();
    let frames: Vec<(u16, u8, Vec<u8>)> = [0, 3, 5000, 1, 4096, 4097, 100_000, 7]
        .into_iter()
        .zip(1..)
        .map(|(len, kind)| (kind, 1, vec![7; len]))
        .collect();
    let mut writer = dialed.open_uni().await.unwrap();
    writer.send_all(frames.clone()).await.unwrap();
    writer.send_all([]).await.unwrap();
    writer.finish().unwrap();
    let mut reader = accepted.accept_uni().await.unwrap();
    for (kind, version, body) in frames {
        let body = Bytes::from(body);
        assert_eq!(reader.next(1 << 20).await.unwrap(), Some(Frame { kind, version, body }));
    }
    assert_eq!(reader.next(1 << 20).await.unwrap(), None);
}

#[tokio::test]
async fn a_writer_that_gives_up_is_not_taken_for_one_that_ended() {
    let Loopback { dialed, accepted } = Loopback::open(Settings::default()).await.unwrap();
    let mut writer = dialed.open_uni().await.unwrap();
    writer.send(1, 1, Bytes::from_static(b"first")).await.unwrap();
    let mut reader = accepted.accept_uni().await.unwrap();
    assert_eq!(reader.next(10).await.unwrap().unwrap().body, "first");
    drop(writer);
    assert_eq!(reader.next(10).await, Err(StreamError::Reset(0)));
}

#[tokio::test]
async fn a_frame_above_the_bound_is_refused_before_its_body() {
    let Loopback { dialed, accepted } = Loopback::open(Settings::default()).await.unwrap();
    let mut writer = dialed.open_uni().await.unwrap();
    writer.send(9, 1, Bytes::from(vec![1; 1001])).await.unwrap();
    let mut reader = accepted.accept_uni().await.unwrap();
    assert_eq!(reader.next(1000).await, Err(StreamError::TooLarge { kind: 9, len: 1001, max: 1000 }));
    reader.stop(Code::Protocol);
    let error = loop {
        if let Err(error) = writer.send(9, 1, Bytes::from(vec![1; 1000])).await {
            break error;
        }
    };
    assert_eq!(error, StreamError::Stopped(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_frames_arrive_whole() {
    const FRAMES: usize = 256;
    let Loopback { dialed, accepted } = Loopback::open(Settings::default()).await.unwrap();
    let body = Bytes::from((0..1 << 20).map(|i: u32| i.to_le_bytes()[1]).collect::<Vec<u8>>());
    let (sent, start) = (body.clone(), Instant::now());
    let sending = tokio::spawn(async move {
        let mut writer = dialed.open_uni().await.unwrap();
        for _ in 0..FRAMES {
            writer.send(3, 1, sent.clone()).await.unwrap();
        }
        writer.finish_and_wait().await.unwrap();
        dialed.traffic()
    });
    let mut reader = accepted.accept_uni().await.unwrap();
    for _ in 0..FRAMES {
        assert!(reader.next(1 << 20).await.unwrap().unwrap().body == body);
    }
    assert_eq!(reader.next(1 << 20).await, Ok(None));
    let traffic = sending.await.unwrap();
    eprintln!("256 MiB over loopback: {:?}, {traffic:?}", start.elapsed());
    assert!(traffic.sent < (FRAMES << 20) as u64 * 102 / 100, "{traffic:?}");
}

/// Carries datagrams between a client and a server until it is told to swallow them.
async fn relay(server: SocketAddr, cut: Arc<AtomicBool>) -> SocketAddr {
    let outer = tokio::net::UdpSocket::bind(HERE).await.unwrap();
    let inner = tokio::net::UdpSocket::bind(HERE).await.unwrap();
    let address = outer.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut out, mut back) = (vec![0; 65536], vec![0; 65536]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((n, from)) = outer.recv_from(&mut out) => {
                    // The dialer's one-byte knock comes from another socket.
                    if n > 1 {
                        client = Some(from);
                        if !cut.load(Ordering::SeqCst) {
                            inner.send_to(&out[..n], server).await.unwrap();
                        }
                    }
                }
                Ok((n, _)) = inner.recv_from(&mut back) => {
                    if let (Some(client), false) = (client, cut.load(Ordering::SeqCst)) {
                        outer.send_to(&back[..n], client).await.unwrap();
                    }
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn a_peer_that_vanishes_is_noticed_on_both_sides() {
    let (master, replica) = (identity(), identity());
    let mut host = Host::start(&replica, Arc::new(Only(master.id())), quick());
    let cut = Arc::new(AtomicBool::new(false));
    let to = relay(host.address, Arc::clone(&cut)).await.into();
    let dialed = connect(&to, &master, replica.id(), Purpose::Session, quick()).await.unwrap();
    let accepted = host.next().await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!((dialed.close_reason(), accepted.close_reason()), (None, None), "kept alive while idle");
    cut.store(true, Ordering::SeqCst);
    let start = Instant::now();
    assert_eq!((dialed.closed().await, accepted.closed().await), (Closed::Vanished, Closed::Vanished));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_close_is_heard_also_when_more_waits_than_the_link_takes() {
    let (master, replica) = (identity(), identity());
    let mut host = Host::start(&replica, Arc::new(Only(master.id())), Settings::default());
    let cut = Arc::new(AtomicBool::new(false));
    let to = relay(host.address, Arc::clone(&cut)).await.into();
    let dialed = connect(&to, &master, replica.id(), Purpose::Session, Settings::default()).await.unwrap();
    let accepted = host.next().await.unwrap();
    cut.store(true, Ordering::SeqCst);
    // Four times the window of a connection that has just begun.
    let mut writer = dialed.open_uni().await.unwrap();
    writer.send(3, 1, Bytes::from(vec![0; 4 << 20])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    cut.store(false, Ordering::SeqCst);
    dialed.close(Code::Cancelled, "interrupted").await;
    let heard = Closed::ByPeer { code: Code::Cancelled, reason: "interrupted".to_owned() };
    assert_eq!(accepted.closed().await, heard);
}

#[tokio::test]
async fn a_handshake_that_stalls_frees_its_place() {
    let (master, replica) = (identity(), identity());
    let mut host = Host::start(&replica, Arc::new(Only(master.id())), quick());
    let crypto = tls::client(&master, Purpose::Session, replica.id(), Arc::default()).unwrap();
    let sender = quinn::Endpoint::client(HERE.into()).unwrap();
    // A relay that passes the first flight only: the server answers into the void.
    let (outer, inner) =
        (tokio::net::UdpSocket::bind(HERE).await.unwrap(), tokio::net::UdpSocket::bind(HERE).await.unwrap());
    let _dialing = sender.connect_with(quinn::ClientConfig::new(crypto), outer.local_addr().unwrap(), "x").unwrap();
    let mut first = vec![0; 65536];
    let (n, _) = outer.recv_from(&mut first).await.unwrap();
    inner.send_to(&first[..n], host.address).await.unwrap();
    let start = Instant::now();
    let error = host.next().await.unwrap_err();
    assert!(
        matches!(error, AcceptError::Deadline { .. } | AcceptError::Handshake { why: Closed::Vanished, .. }),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[test]
fn a_peer_that_was_killed_and_restarted_is_noticed_before_the_idle_timeout() {
    let (master, replica) = (identity(), identity());
    let server = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let before = server();
    let trust: Arc<dyn Trust> = Arc::new(Only(master.id()));
    let mut host = before.block_on(async { Host::start(&replica, Arc::clone(&trust), Settings::default()) });
    let dialed = client.block_on(dial(&host, &master, Purpose::Session)).unwrap();
    let accepted = before.block_on(host.next()).unwrap();
    // Ending the runtime drops its tasks and sockets without another packet, as SIGKILL does.
    let address = host.address;
    before.shutdown_timeout(Duration::from_secs(5));
    drop((accepted, host));
    let after = server();
    let _host = after.block_on(async { Host::start_at(address, &replica, trust, Settings::default()) });
    client.block_on(async {
        let mut writer = dialed.open_uni().await.unwrap();
        writer.send(1, 1, Bytes::from(vec![0; 2000])).await.unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(5), dialed.closed()).await.unwrap();
        assert_eq!(closed, Closed::Restarted);
    });
}

#[test]
fn a_peer_that_was_killed_on_this_machine_is_noticed_within_seconds() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (master, replica) = (identity(), identity());
    let lively = Settings { keep_alive: Duration::from_secs(1), ..Settings::default() };
    for dialer_survives in [true, false] {
        let (survivor, victim) = (runtime(), runtime());
        let (listens, dials) = if dialer_survives { (&victim, &survivor) } else { (&survivor, &victim) };
        let trust: Arc<dyn Trust> = Arc::new(Only(master.id()));
        let mut host = listens.block_on(async { Host::start(&replica, trust, lively) });
        let dialed = dials.block_on(dial(&host, &master, Purpose::Session)).unwrap();
        let accepted = listens.block_on(host.next()).unwrap();
        let (left, lost) = if dialer_survives { (dialed, accepted) } else { (accepted, dialed) };
        let waiting = {
            let left = left.clone();
            survivor.spawn(async move { left.accept_uni().await.err() })
        };
        // An idle but living peer is left alone.
        std::thread::sleep(Duration::from_millis(4500));
        assert_eq!(left.close_reason(), None);
        victim.shutdown_timeout(Duration::from_secs(5));
        drop(lost);
        if dialer_survives {
            drop(host);
        }
        survivor.block_on(async {
            let closed = tokio::time::timeout(Duration::from_secs(10), left.closed()).await.unwrap();
            assert_eq!(closed, Closed::Vanished);
            assert_eq!(waiting.await.unwrap(), Some(StreamError::Lost(Closed::Vanished)));
        });
    }
}

#[tokio::test]
async fn a_listener_that_closes_tells_its_peers() {
    let (master, replica) = (identity(), identity());
    let listener = Listener::bind(HERE.into(), &replica, Arc::new(Only(master.id())), Settings::default()).unwrap();
    let to = Address::from(listener.address());
    let (dialed, accepted) =
        tokio::join!(connect(&to, &master, replica.id(), Purpose::Session, Settings::default()), async {
            listener.accept().await.unwrap().establish().await
        });
    let (dialed, _accepted) = (dialed.unwrap(), accepted.unwrap());
    listener.close().await;
    assert!(listener.accept().await.is_none());
    assert!(matches!(dialed.closed().await, Closed::ByPeer { code: Code::ShuttingDown, .. }));
}

#[test]
fn an_identity_is_read_back_and_nothing_else_is() {
    let (made, bytes) = Identity::generate().unwrap();
    assert_eq!(Identity::from_bytes(&bytes).unwrap().id(), made.id());
    assert_ne!(identity().id(), made.id());
    for bad in [&b""[..], b"noise", &bytes[..60], b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        assert!(Identity::from_bytes(bad).is_err());
    }
}

#[test]
fn an_id_is_read_back_and_nothing_else_is() {
    let id = identity().id();
    let text = id.to_string();
    assert_eq!(text.len(), 64);
    assert_eq!(text.parse(), Ok(id));
    assert_eq!(text.replace('-', "").to_uppercase().parse(), Ok(id));
    for bad in ["", "a", &text[1..], &format!("{text}a"), &text.replace('-', "_"), &"a".repeat(10_000)] {
        assert_eq!(bad.parse::<PeerId>(), Err(PeerIdError), "{bad}");
    }
}

#[test]
fn every_single_change_of_a_token_is_noticed() {
    let text = Token::generate(identity().id()).unwrap().to_string();
    assert_eq!(text.len(), 6 + 84);
    assert_eq!(format!(" {text}\n").parse::<Token>().unwrap().to_string(), text);
    assert_eq!("hello".parse::<Token>(), Err(TokenError::NoToken));
    for at in 6..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
        let changed = String::from_utf8(bytes).unwrap();
        assert_eq!(changed.parse::<Token>(), Err(TokenError::Damaged), "{changed}");
        assert_eq!(text[..at].parse::<Token>(), Err(TokenError::Damaged));
    }
}

#[test]
fn the_header_has_its_bytes() {
    let header = Header { kind: 0x0102, version: 3, len: 0x0405_0607 };
    assert_eq!(header.encode(), [0x02, 0x01, 0x03, 0x07, 0x06, 0x05, 0x04]);
    assert_eq!(Header::decode(header.encode()), header);
}

proptest! {
    #[test]
    fn frames_do_not_depend_on_how_the_bytes_come(
        frames in prop::collection::vec((any::<u16>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
        cuts in prop::collection::vec(1_usize..200, 1..50),
        cut_off in 0_usize..3,
    ) {
        let mut wire = Vec::new();
        for (kind, version, body) in &frames {
            let len = u32::try_from(body.len()).unwrap();
            wire.extend_from_slice(&Header { kind: *kind, version: *version, len }.encode());
            wire.extend_from_slice(body);
        }
        let whole = wire.len();
        wire.truncate(whole.saturating_sub(cut_off));
        let (mut assembler, mut got, mut rest) = (Assembler::default(), Vec::new(), &wire[..]);
        for cut in cuts.iter().cycle() {
            while let Some(frame) = assembler.next(300).unwrap() {
                got.push((frame.kind, frame.version, frame.body.to_vec()));
            }
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            assembler.push(Bytes::copy_from_slice(piece));
            rest = after;
        }
        if wire.len() == whole {
            prop_assert!(assembler.at_boundary());
            prop_assert_eq!(got, frames);
        } else {
            prop_assert!(!assembler.at_boundary());
            prop_assert_eq!(&got[..], &frames[..frames.len() - 1]);
        }
    }
}

#[test]
fn a_sender_holds_what_the_link_takes_and_no_more() {
    let ms = std::time::Duration::from_millis;
    // Twice the window, and what goes in 50 ms.
    assert_eq!(tuning::held(1_000_000, ms(20)), 4_500_000);
    assert_eq!(tuning::held(14_000, ms(20)), 2 << 20, "at the start");
    assert_eq!(tuning::held(7_500_000, ms(60)), 31_250_000 - 10_000_000);
    assert_eq!(tuning::held(u64::MAX, ms(0)), 64 << 20);
}

#[test]
fn the_codes_of_the_ends_are_pinned() {
    use Code::{Abandoned, Cancelled, Done, Internal, NoInvitation, NotOwner, Protocol, ShuttingDown, UnknownKey};
    let codes = [
        Abandoned,
        Done,
        UnknownKey,
        NoInvitation,
        ShuttingDown,
        Protocol,
        Cancelled,
        Internal,
        NotOwner,
        Code::Other(77),
    ];
    let numbers = codes.map(|code| code.to_wire().into_inner());
    assert_eq!(numbers, [0, 1, 2, 3, 4, 7, 8, 9, 10, 77]);
}
