//! Numbers: windows, timeouts, packet sizes and socket buffers, each with its reason.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Once};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use rustix::net::sockopt;

use super::congestion::{EndsInTime, Model};
use super::identity::Identity;

/// How long a side waits for the other.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For a handshake, from the first packet to the peer's word that it lets us in.
    pub handshake: Duration,
    /// Silence after which a peer has vanished. The smaller of both sides' counts.
    pub idle: Duration,
    /// How often an idle connection says that it is alive; well under `idle`. Two and a half of them missed, and a
    /// closed port, are taken for a peer that is gone before `idle` is over.
    pub keep_alive: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(10), idle: Duration::from_secs(30), keep_alive: Duration::from_secs(5) }
    }
}

/// Packets within one machine, where each costs about the same whatever its size. Quinn panics above 16,383 bytes, the
/// longest length that it writes into a packet of the handshake.
pub(super) const LOOPBACK_MTU: u16 = 16_000;
/// Packets that are found out to fit on a route whose first link takes no larger frames than usual: what quinn looks for by itself.
pub(super) const USUAL_MTU: u16 = 1452;
/// The most on a route that begins with jumbo frames: ten of them, which are sent in one call, fit into the 64 KiB that the kernel takes.
const JUMBO_MTU: u16 = 6500;
/// What may be in flight within one machine before the first answer: there is no link to be probed for.
const LOOPBACK_WINDOW: u64 = 1 << 20;
/// Streams that carry contents: enough to keep both sides' cores busy.
pub const CONTENT_STREAMS: usize = 2;
/// What one stream may have in flight and unread: a gigabit at 120 ms, and [`CONTENT_STREAMS`] of them one at 200 ms where nothing is lost.
/// quinn ends a connection with 1,024 gaps in a stream, which is every eleventh packet of this.
const STREAM_WINDOW: u32 = 16 << 20;
/// The same within one machine, where nothing is in flight, and what is unread is in memory.
const STREAM_WINDOW_WITHIN_MACHINE: u32 = 8 << 20;
/// What a connection may have in flight and unread; finite, or a slow reader with many streams fills the memory.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// What a sender may hold unacknowledged: a gigabit at 200 ms, and what is sent again.
const SEND_WINDOW: u64 = 64 << 20;
/// The least that a sender may hold: two of the largest blocks that are written at once, or the link would wait for the next one
/// while its speed is still being found out. And …
const LEAST_HELD: u64 = 2 << 20;
/// … what the link takes in this time: a writer may be away for so long to compress the next block.
const HELD_FOR: Duration = Duration::from_millis(50);
/// The same within one machine, where who waits to write waits for the other side's processor, and not for a link: twice the least.
pub(super) const HELD_WITHIN_MACHINE: u64 = 2 * LEAST_HELD;
/// A control stream and a few data streams are all we use.
const MAX_STREAMS: u32 = 16;
/// Asked for each socket; a burst of a gigabit per second outruns the usual 208 KiB in 2 ms.
const SOCKET_BUFFER: usize = 8 << 20;
/// Below this a warning is due.
const SOCKET_BUFFER_ENOUGH: usize = 2 << 20;

/// Whether packets to `ip` stay in this machine.
pub(super) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// The largest packets worth looking for on the way to `peer`, by the frames of the link that the route to it begins with. Where it has
/// larger ones, quinn probes for them, and goes back when they vanish farther on; elsewhere each probe would be lost.
pub(super) fn packets_to(peer: IpAddr) -> u16 {
    /// Headers of IPv6 and UDP, the larger ones.
    const HEADERS: u32 = 48;
    /// An Ethernet frame.
    const USUAL_FRAME: u32 = 1500;
    let peer = peer.to_canonical();
    if is_loopback(peer) {
        return LOOPBACK_MTU;
    }
    let local: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let frame = UdpSocket::bind((local, 0)).and_then(|socket| {
        // Sends nothing: the kernel looks up the route.
        socket.connect((peer, 9))?;
        Ok(if peer.is_ipv4() { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) }?)
    });
    match frame {
        Ok(frame) if frame > USUAL_FRAME => u16::try_from(frame - HEADERS).unwrap_or(JUMBO_MTU).min(JUMBO_MTU),
        // What is in the way of the answer will be in the way of the connection, and is told there.
        _ => USUAL_MTU,
    }
}

/// The transport parameters for a connection to `peer`; to a loopback address, from a socket `offload::WithinMachine`. Elsewhere with packets
/// of up to so many bytes: see [`packets_to`].
pub(super) fn dialing(peer: IpAddr, packets: u16, settings: &Settings) -> Arc<TransportConfig> {
    Arc::new(transport(peer, packets, settings))
}

/// The same for one from `peer`.
pub(super) fn listening(peer: IpAddr, packets: u16, settings: &Settings) -> Arc<TransportConfig> {
    let mut config = transport(peer, packets, settings);
    // Who listens says little: that a version is reached, and then nothing for a while. The other side has nothing to say that an
    // acknowledgement could go with, and would set a timer for it, and wake again.
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(0));
    config.ack_frequency_config(Some(acks));
    // The socket that all peers share would be given ten packets at once, which are more than a datagram if they are large.
    config.enable_segmentation_offload(!is_loopback(peer));
    Arc::new(config)
}

fn transport(peer: IpAddr, packets: u16, settings: &Settings) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .send_fairness(false)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle_timeout(settings.idle)))
        .keep_alive_interval(Some(settings.keep_alive));
    if is_loopback(peer) {
        // From the start, and again soon after losses that looked like a link that is too narrow: here they mean a full
        // socket buffer. The least size is left alone, because the packets of the handshake are padded to it.
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(LOOPBACK_MTU).black_hole_cooldown(Duration::from_secs(1));
        config.initial_mtu(LOOPBACK_MTU).mtu_discovery_config(Some(discovery));
        // The first round trip is not worth a guess of a third of a second either.
        config.initial_rtt(Duration::from_millis(20));
        config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW_WITHIN_MACHINE));
        let mut congestion = CubicConfig::default();
        congestion.initial_window(LOOPBACK_WINDOW);
        config.congestion_controller_factory(Arc::new(EndsInTime(Arc::new(congestion))));
    } else {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(packets);
        config.mtu_discovery_config(Some(discovery));
        config.congestion_controller_factory(Arc::new(EndsInTime(Arc::new(Model))));
    }
    config
}

fn idle_timeout(idle: Duration) -> IdleTimeout {
    let millis = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
    IdleTimeout::from(VarInt::from_u32(millis))
}

/// What a sender may hold unacknowledged on a link with this round trip and this congestion window, which doubles within one
/// while it is looked for.
pub(super) fn held(window: u64, rtt: Duration) -> u64 {
    let ahead = u128::from(window) * HELD_FOR.as_nanos() / rtt.as_nanos().max(1);
    let ahead = u64::try_from(ahead).unwrap_or(u64::MAX);
    window.saturating_mul(2).saturating_add(ahead).clamp(LEAST_HELD, SEND_WINDOW)
}

/// The endpoint's parameters. With an identity, the keys that mark and reset connections follow from it, so that they
/// outlive the process: a daemon that was killed and started again answers packets of its old connections with a
/// reset, and their peers need not wait for the idle timeout.
pub(super) fn endpoint(identity: Option<&Identity>) -> EndpointConfig {
    let mut config = match identity {
        None => EndpointConfig::default(),
        Some(identity) => {
            let key = identity.reset_key();
            let mut config = EndpointConfig::new(Arc::new(ResetKey(key)));
            let [a, b, c, d, e, f, g, h, ..] = blake3::derive_key("synccli 1 connection ids", &key);
            let cid_key = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
            config
        }
    };
    // The bound is 1200..=65527, so this cannot fail; a failure would leave the default, which works too.
    let _ = config.max_udp_payload_size(LOOPBACK_MTU);
    config
}

/// Makes the tokens of stateless resets (RFC 9000, section 10.3).
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let tag = blake3::keyed_hash(&self.0, data);
        for (out, byte) in signature_out.iter_mut().zip(tag.as_bytes()) {
            *out = *byte;
        }
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let tag: [u8; 32] = signature.try_into().map_err(|_| CryptoError)?;
        // `blake3::Hash` compares in constant time.
        if blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(tag) { Ok(()) } else { Err(CryptoError) }
    }
}

/// A bound UDP socket with large buffers, as far as the system lets us.
pub(super) fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // The forced form passes the sysctl's limit but needs CAP_NET_ADMIN; neither failing is worth a failure.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    }
    warn_if_small("net.core.rmem_max", sockopt::socket_recv_buffer_size(&socket));
    warn_if_small("net.core.wmem_max", sockopt::socket_send_buffer_size(&socket));
    Ok(socket)
}

/// Says once per process that packets will be lost in bursts, and what to do. Linux reports twice the usable size
/// (socket(7)).
fn warn_if_small(sysctl: &str, reported: rustix::io::Result<usize>) {
    static ONCE: Once = Once::new();
    let Ok(reported) = reported else { return };
    let usable = reported / 2;
    if usable < SOCKET_BUFFER_ENOUGH {
        ONCE.call_once(|| {
            tracing::warn!(
                usable,
                wanted = SOCKET_BUFFER,
                "small UDP socket buffers slow fast links down; raise them with `sysctl -w {sysctl}={SOCKET_BUFFER}`"
            );
        });
    }
}
