//! Where a tree goes, as text: a path if and only if it looks like one, else `HOST[:PORT]/SHARE`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::str::FromStr;

use crate::options::{DEFAULT_PORT, Destination, HostPort, MAX_SHARE_NAME, is_share_name};
use crate::path::escape;

/// Why text is no destination. The message says what to write instead; names in it are escaped.
pub type Refusal = String;

/// Parses one DEST.
pub fn parse(text: OsString) -> Result<Destination, Refusal> {
    if is_path(text.as_bytes()) {
        return Ok(Destination::Path(PathBuf::from(text)));
    }
    let hint = match text.to_str() {
        Some(text) if is_rsyncs(text) => {
            "a user and a path there are for ssh; here it is HOST[:PORT]/SHARE, which a `syncd` there serves"
        }
        _ => "a path starts with `/`, `./` or `../`: put ./ before it if a directory here is meant",
    };
    // Bytes that are no UTF-8 cannot be a host: only the hint helps.
    let text = String::from_utf8(text.into_vec()).map_err(|_| format!("not HOST[:PORT]/SHARE; {hint}"))?;
    let (peer, share) = text.split_once('/').ok_or_else(|| format!("not HOST[:PORT]/SHARE; {hint}"))?;
    let HostPort { host, port } = peer.parse().map_err(|reason: Refusal| format!("{reason}; {hint}"))?;
    if !is_share_name(share) {
        let rule = format!("a share is 1 to {MAX_SHARE_NAME} of A-Z a-z 0-9 . _ -");
        return Err(format!("`{}` is no share name ({rule}); {hint}", escape(share.as_bytes())));
    }
    Ok(Destination::Remote { host, port, share: share.to_owned(), also: Vec::new() })
}

/// Most addresses of one replica.
pub const MAX_ADDRESSES: usize = 8;

/// A replica in the configuration of a share: `HOST[:PORT][/SHARE]`, where the share is called as here unless it is said,
/// and further addresses `HOST[:PORT]` of the same machine.
pub fn replica(addresses: &[impl AsRef<str>], share: &str) -> Result<Destination, Refusal> {
    let (first, others) = addresses.split_first().ok_or("a replica without an address")?;
    let first = first.as_ref();
    let usage = "write HOST[:PORT] or HOST[:PORT]/SHARE";
    let (peer, share) = first.split_once('/').unwrap_or((first, share));
    if is_path(first.as_bytes()) || !is_share_name(share) {
        return Err(format!("{} is no replica: {usage}", escape(first.as_bytes())));
    }
    let HostPort { host, port } = peer.parse().map_err(|why: Refusal| format!("{why}; {usage}"))?;
    if addresses.len() > MAX_ADDRESSES {
        return Err(format!("{} has more than {MAX_ADDRESSES} addresses", escape(first.as_bytes())));
    }
    let also = others.iter().map(|other| other.as_ref().parse()).collect::<Result<_, _>>()?;
    Ok(Destination::Remote { host, port, share: share.to_owned(), also })
}

/// A destination under each of its addresses alone.
pub fn addresses(destination: &Destination) -> Vec<Destination> {
    match destination {
        Destination::Path(_) => vec![destination.clone()],
        Destination::Remote { host, port, share, also } => {
            let first = HostPort { host: host.clone(), port: *port };
            let alone =
                |HostPort { host, port }| Destination::Remote { host, port, share: share.clone(), also: Vec::new() };
            std::iter::once(first).chain(also.iter().cloned()).map(alone).collect()
        }
    }
}

/// Whether this is how rsync and scp name a place on a host: `[USER@]HOST:PATH`.
fn is_rsyncs(text: &str) -> bool {
    let peer = text.split('/').next().unwrap_or_default();
    peer.contains('@') || peer.ends_with(':')
}

fn is_path(text: &[u8]) -> bool {
    matches!(text, b"." | b"..") || [&b"/"[..], b"./", b"../"].iter().any(|start| text.starts_with(start))
}

/// A destination as people wrote it, safe on a terminal.
pub fn label(destination: &Destination) -> String {
    match destination {
        Destination::Path(path) => escape(path.as_os_str().as_bytes()),
        Destination::Remote { host, port, share, .. } => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            if *port == DEFAULT_PORT { format!("{host}/{share}") } else { format!("{host}:{port}/{share}") }
        }
    }
}

impl FromStr for HostPort {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => bracketed(rest)?,
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err("an IPv6 address needs brackets: [::1]".to_owned());
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if !text.starts_with('[') && !is_host_name(host) {
            return Err(format!("`{}` is no host", escape(host.as_bytes())));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(digits) => port_number(digits)?,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

/// What follows `[`: an IPv6 address, `]`, and perhaps a port.
fn bracketed(rest: &str) -> Result<(&str, Option<&str>), Refusal> {
    let (address, after) = rest.split_once(']').ok_or("`[` without `]`")?;
    // A scope such as `%eth0` follows the address; only the resolver knows whether it exists.
    let number = address.split('%').next().unwrap_or_default();
    if number.parse::<std::net::Ipv6Addr>().is_err() || !address.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("`{}` is no IPv6 address", escape(address.as_bytes())));
    }
    match after.strip_prefix(':') {
        Some(port) => Ok((address, Some(port))),
        None if after.is_empty() => Ok((address, None)),
        None => Err("`[ADDRESS]` is followed by neither `:PORT` nor the end".to_owned()),
    }
}

/// Longest name the DNS holds (RFC 1035, in its text form).
const MAX_HOST: usize = 253;

fn is_host_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_HOST).contains(&host.len()) && !host.starts_with(['.', '-']) && host.bytes().all(allowed)
}

fn port_number(digits: &str) -> Result<u16, Refusal> {
    if digits.is_empty() {
        return Err("there is no port behind the colon".to_owned());
    }
    let number = if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None };
    number.filter(|&port| port != 0).ok_or_else(|| format!("`{}` is no port (1 to 65535)", escape(digits.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(host: &str, port: u16, share: &str) -> Destination {
        Destination::Remote { host: host.into(), port, share: share.into(), also: Vec::new() }
    }

    #[test]
    fn paths_are_what_starts_like_one() {
        for text in ["/", "/a", "./a", "../a", ".", "..", "./", "/host:1/share", "./a b\n"] {
            assert_eq!(parse(text.into()), Ok(Destination::Path(text.into())), "{text}");
        }
        let bytes = OsString::from_vec(b"./\xff".to_vec());
        assert_eq!(parse(bytes.clone()), Ok(Destination::Path(bytes.into())));
    }

    #[test]
    fn a_replica_may_have_several_addresses() {
        let also = |found: Destination| addresses(&found).iter().map(label).collect::<Vec<_>>();
        assert_eq!(
            also(replica(&["web1", "10.0.0.7:99", "[::1]"], "www").unwrap()),
            ["web1/www", "10.0.0.7:99/www", "[::1]/www"]
        );
        assert_eq!(also(replica(&["web1:5/site"], "www").unwrap()), ["web1:5/site"]);
        let many = vec!["a"; MAX_ADDRESSES + 1];
        for (bad, why) in [
            (&[][..], "without an address"),
            (&["web1", "web2/www"], "no host"),
            (&["web1", ""], "no host"),
            (&["./web1"], "no replica"),
            (&many, "more than 8 addresses"),
        ] {
            let refusal = replica(bad, "www").unwrap_err();
            assert!(refusal.contains(why), "{bad:?}: {refusal}");
        }
    }

    #[test]
    fn anything_else_is_a_share() {
        let table = [
            ("host/www", remote("host", 7373, "www")),
            ("host:1/www", remote("host", 1, "www")),
            ("127.0.0.1:65535/a.b_c-D", remote("127.0.0.1", 65535, "a.b_c-D")),
            ("[::1]/www", remote("::1", 7373, "www")),
            ("[fe80::1%eth0]:80/www", remote("fe80::1%eth0", 80, "www")),
            ("a-b.example.org/w", remote("a-b.example.org", 7373, "w")),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text.into()).as_ref(), Ok(&expected), "{text}");
            assert_eq!(parse(label(&expected).into()), Ok(expected), "the label of {text} parses back");
        }
    }

    #[test]
    fn a_refusal_hints_at_the_path() {
        let bad = [
            "",
            "dir",
            "dir/",
            "dir/sub/sub",
            ".hidden",
            "...",
            ".hidden/x",
            "~/x",
            "host:0/www",
            "host:65536/www",
            "host:+1/www",
            "host:x/www",
            "::1/www",
            "[::1/www",
            "[::1]x/www",
            "[nope]/www",
            "host/",
            "host/..",
            "host/a b",
            "/host".trim_start_matches('/'),
            "-x/y",
            "ho st/www",
        ];
        for text in bad {
            let refusal = parse(text.into()).unwrap_err();
            assert!(refusal.contains("./"), "{text}: {refusal}");
        }
        assert!(parse(OsString::from_vec(b"\xff/x".to_vec())).unwrap_err().contains("./"));
        for text in ["host:/www", "user@host/www", "user@host:/srv/www", "user@host:www", "host:"] {
            let refusal = parse(text.into()).unwrap_err();
            assert!(refusal.contains("`syncd` there serves") && !refusal.contains("./"), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_peer_to_pair_with_has_no_share() {
        assert_eq!("h:1".parse(), Ok(HostPort { host: "h".into(), port: 1 }));
        assert_eq!("h".parse(), Ok(HostPort { host: "h".into(), port: 7373 }));
        assert!("h/www".parse::<HostPort>().is_err());
    }
}
