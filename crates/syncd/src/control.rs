//! The control socket: answers what programs on this machine ask.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;
use sync_core::control::{MAX_REQUEST, Order, PROTOCOL, ReplicaStatus, Reply, Request, SOCKET, Status};
use sync_core::roles::Shutdown;
use sync_core::roles::master::{MirrorHandle, OrderError};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::shown;
use crate::service::Service;

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most connections at a time; others wait.
const CONNECTIONS: usize = 64;

/// The least time between two replies of a status that follows changes.
const REDRAW: Duration = Duration::from_millis(200);

/// How often such a status is told although nothing was heard to change: seconds go by, and bytes.
const REFRESH: Duration = Duration::from_secs(1);

/// The socket of one daemon. Gone from the directory when it is dropped.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever finds it finds nobody behind it, and says so.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Listens in the state directory, which is there.
    ///
    /// # Errors
    /// Another daemon does, or the file system has no sockets.
    pub async fn bind(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(SOCKET);
        let failed = || format!("cannot make the control socket {}", shown(&path));
        // The path of a socket is at most 107 bytes: this is one, whatever the directory's is.
        let dir = rustix::fs::open(state_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let dir = dir.with_context(failed)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir))).join(SOCKET);
        if UnixStream::connect(&short).await.is_ok() {
            bail!(
                "another syncd runs with the state directory {}: stop it, or use another --state-dir",
                shown(state_dir)
            );
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(failed),
            _ => {}
        }
        let listener = UnixListener::bind(&short).with_context(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
        Ok(Self { listener, path })
    }

    /// Answers until shutdown.
    pub async fn serve(self, service: Arc<Service>, mut shutdown: Shutdown) {
        let mut answering = JoinSet::new();
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let arrival = async {
                let place = Arc::clone(&free).acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, arrived) = tokio::select! {
                arrived = arrival => arrived,
                Some(_) = answering.join_next() => continue,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            match arrived {
                Ok((stream, _)) => {
                    let service = Arc::clone(&service);
                    answering.spawn(async move {
                        answer(stream, &service).await;
                        drop(place);
                    });
                }
                // Too many open files: not for ever.
                Err(error) => {
                    tracing::warn!("the control socket: {error}");
                    tokio::time::sleep(REFRESH).await;
                }
            }
        }
    }
}

/// One connection.
async fn answer(stream: UnixStream, service: &Service) {
    // The file's mode says it too; root may always ask.
    let is_owner = stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw() || peer.uid() == 0);
    let (reader, writer) = stream.into_split();
    let mut asker = Asker { reader, writer };
    if !is_owner {
        let reason = "only the daemon's user and root may ask".to_owned();
        return drop(asker.tell(&Reply::Failed { reason }).await);
    }
    let ended = match asker.request().await {
        Ok(order) => carry_out(order, service, &mut asker).await,
        Err(error) => Err(error),
    };
    let _ = match ended {
        Ok(text) => asker.tell(&Reply::Done { text }).await,
        Err(OrderError(reason)) => asker.tell(&Reply::Failed { reason }).await,
    };
}

/// Who asks.
struct Asker {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
}

impl Asker {
    async fn request(&mut self) -> Result<Order, OrderError> {
        let mut line = String::new();
        let mut bounded = BufReader::new((&mut self.reader).take(MAX_REQUEST as u64));
        let read = tokio::time::timeout(PATIENCE, bounded.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(_))) || !line.ends_with('\n') {
            return Err(OrderError(format!("no request came: one line of JSON, at most {MAX_REQUEST} bytes")));
        }
        /// What any version has.
        #[derive(serde::Deserialize)]
        struct Any {
            protocol: u32,
        }
        let bad = |error: serde_json::Error| OrderError(format!("the request makes no sense: {error}"));
        let Any { protocol } = serde_json::from_str(&line).map_err(bad)?;
        if protocol != PROTOCOL {
            let text = format!("it speaks version {protocol} of the control protocol, this daemon {PROTOCOL}");
            return Err(OrderError(format!("{text}: use the synccli and syncd of one release")));
        }
        let Request { order, .. } = serde_json::from_str(&line).map_err(bad)?;
        Ok(order)
    }

    async fn tell(&mut self, reply: &Reply) -> Result<(), OrderError> {
        let mut line = serde_json::to_vec(reply).map_err(|error| OrderError(error.to_string()))?;
        line.push(b'\n');
        self.writer.write_all(&line).await.map_err(|_| hung_up())
    }

    /// Waits until it wants to hear no more.
    async fn hangs_up(&mut self) {
        let mut rest = [0; 64];
        while self.reader.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }
}

fn hung_up() -> OrderError {
    OrderError("nobody listens".to_owned())
}

/// Does what was ordered, and says it in words.
async fn carry_out(order: Order, service: &Service, asker: &mut Asker) -> Result<String, OrderError> {
    match order {
        Order::Status { share, follow } => status(share.as_deref(), follow, service, asker).await,
        Order::Push { share } => push(&share, service, asker).await,
        Order::Release { share } => {
            let (name, mirror) = service.mirror(&share)?;
            release(name, &mirror).await
        }
        Order::Adopt { share } => {
            let (name, mirror) = service.mirror(&share)?;
            let (replicas, version) = mirror.adopt().await?;
            let (replicas, number) = (replicas.join(", "), version.number);
            Ok(format!("share {name}: this machine takes over {replicas}; its newest version is {number}"))
        }
        Order::Pause { share, replica } => {
            let name = service.mirror(&share)?.1.pause(&replica, true)?;
            Ok(format!("{name} is left alone until `synccli replica resume`, or until the daemon ends"))
        }
        Order::Resume { share, replica } => {
            let name = service.mirror(&share)?.1.pause(&replica, false)?;
            Ok(format!("{name} follows again"))
        }
        Order::Verify { share, replica, deep } => {
            let (share, mirror) = service.mirror(&share)?;
            unread(share, &mirror, asker).await?;
            verify(&mirror, replica.as_deref(), deep, asker).await
        }
        Order::Reload => service.reload().await,
        Order::TryAgain { host, port } => {
            service.masters.try_again_at(&host, port);
            Ok(String::new())
        }
    }
}

async fn status(share: Option<&str>, follow: bool, service: &Service, asker: &mut Asker) -> Result<String, OrderError> {
    let mut changes = service.changes();
    loop {
        changes.borrow_and_update();
        let mut now: Status = tokio::task::block_in_place(|| service.status());
        if let Some(share) = share {
            let name = service.named(share)?;
            now.shares.retain(|status| status.name == name);
        }
        asker.tell(&Reply::Status(now)).await?;
        if !follow {
            return Ok(String::new());
        }
        let next = async {
            tokio::time::sleep(REDRAW).await;
            let _ = tokio::time::timeout(REFRESH - REDRAW, changes.changed()).await;
        };
        tokio::select! {
            () = next => {}
            () = asker.hangs_up() => return Err(hung_up()),
        }
    }
}

/// Lets out what is held, or would be.
async fn release(name: String, mirror: &MirrorHandle) -> Result<String, OrderError> {
    let (held, before, away) = (mirror.is_held(), mirror.status().version, mirror.away());
    let version = mirror.look(true).await?;
    let number = version.number;
    let changed = before.is_none_or(|before| before.id != version.id);
    let away = match &away[..] {
        [] => String::new(),
        [one] => format!("; {one} is away: if it is held when it is back, say it again"),
        more => format!("; {} are away: if one is held when it is back, say it again", more.join(", ")),
    };
    let deleted = tokio::task::block_in_place(|| mirror.deleted_in(&version)).filter(|deleted| changed && *deleted > 0);
    let deleted = deleted.map(|deleted| format!(", with which {deleted} entries went")).unwrap_or_default();
    match held {
        Some(true) => Ok(format!("share {name} is released; its newest version is {number}{deleted}{away}")),
        Some(false) if changed => Ok(format!(
            "share {name}: nothing was held, and what changed is published as version {number}{deleted}{away}"
        )),
        Some(false) => Ok(format!("share {name}: nothing was held; its newest version is {number}{away}")),
        None => Err(OrderError(format!(
            "share {name}: all that is held is owned by another master; `synccli release {name} --adopt` makes it this \
             machine's"
        ))),
    }
}

/// Publishes what is there now, and tells of each replica as it comes to that.
async fn push(share: &str, service: &Service, asker: &mut Asker) -> Result<String, OrderError> {
    let (share, mirror) = service.mirror(share)?;
    // What somebody changed there a moment ago is found as well. Before they are tried again, so that they look once.
    let looked = mirror.look_there();
    let version = mirror.look(false).await?;
    let replicas = mirror.names(None)?.len() as u64;
    unread(share.clone(), &mirror, asker).await?;
    asker.tell(&Reply::Published { share, version: version.clone(), replicas }).await?;
    let mut changes = service.masters.changes();
    let mut acknowledged: Vec<String> = Vec::new();
    let mut told: Vec<ReplicaStatus> = Vec::new();
    loop {
        changes.borrow_and_update();
        let (reached, behind) = mirror.reached(&version, looked);
        let follows = |name: &String| reached.iter().chain(&behind).any(|replica| replica.name == *name);
        let known = acknowledged.iter().chain(told.iter().map(|replica| &replica.name));
        let left: Vec<String> = known.filter(|name| !follows(name)).cloned().collect();
        for replica in left {
            acknowledged.retain(|name| *name != replica);
            asker.tell(&Reply::Left { replica }).await?;
        }
        for replica in reached {
            if !acknowledged.contains(&replica.name) {
                let delivery = replica.delivery.filter(|delivery| delivery.version >= version.number);
                asker.tell(&Reply::Acknowledged { replica: replica.name.clone(), delivery }).await?;
                acknowledged.push(replica.name);
            }
        }
        for replica in &behind {
            let known = |told: &&ReplicaStatus| told.name == replica.name;
            let of =
                |replica: &ReplicaStatus| (replica.state, replica.problem.clone(), replica.retry_seconds.is_some());
            let same = |told: &ReplicaStatus| of(told) == of(replica);
            if !told.iter().find(known).is_some_and(same) {
                asker.tell(&Reply::Behind { replica: replica.clone() }).await?;
            }
        }
        if behind.is_empty() {
            tokio::task::block_in_place(|| mirror.record_acks());
            return Ok(String::new());
        }
        told = behind;
        tokio::select! {
            _ = changes.changed() => {}
            () = asker.hangs_up() => return Err(hung_up()),
        }
    }
}

/// Tells what no replica can be given, nor be compared with.
async fn unread(share: String, mirror: &MirrorHandle, asker: &mut Asker) -> Result<(), OrderError> {
    match mirror.unread() {
        Some(unread) => asker.tell(&Reply::Unread { share, unread }).await,
        None => Ok(()),
    }
}

/// Compares replicas one after the other.
async fn verify(
    mirror: &MirrorHandle,
    replica: Option<&str>,
    deep: bool,
    asker: &mut Asker,
) -> Result<String, OrderError> {
    let names = mirror.names(replica)?;
    if names.is_empty() {
        return Err(OrderError(
            "nobody follows it, so there is nothing to compare: see `synccli replica add`".to_owned(),
        ));
    }
    for name in names {
        let mut differences = mirror.verify(&name, deep)?;
        loop {
            tokio::select! {
                found = differences.recv() => match found {
                    Some(reply) => asker.tell(&reply).await?,
                    None => break,
                },
                () = asker.hangs_up() => return Err(hung_up()),
            }
        }
    }
    match mirror.obstacle() {
        Some(why) => Err(OrderError(format!("{why} (what was compared is the version before)"))),
        None => Ok(String::new()),
    }
}
