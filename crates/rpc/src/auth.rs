//! Who a process is, and how two of them prove it to each other: HMAC-SHA256 over both hellos with the
//! cluster secret. Each side's nonce is in both proofs, so neither can be replayed; the labels differ, so
//! neither can be reflected.
//!
//! client → hello; server → hello and proof; client → proof; server → verdict. The four messages have fixed sizes, and
//! nothing else is read before they are through.

use crate::ClusterSecret;
use crate::frame::VERSION;
use cobalt_fabric::{Conn, FabricError};
use cobalt_reactor::Ctx;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use std::cell::Cell;
use std::rc::Rc;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "CoBH", little-endian.
const MAGIC: u32 = 0x4842_6f43;
/// Longest name of a process, in bytes.
pub(crate) const NAME_MAX: usize = 64;
const SERVER_LABEL: &[u8] = b"cobalt rpc handshake: server\0";
const CLIENT_LABEL: &[u8] = b"cobalt rpc handshake: client\0";

/// A process as its peers know it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// Its name in the configuration, 1 to 64 bytes.
    pub name: String,
    /// Rises with every start of the process: peers refuse an older one than they have seen.
    pub incarnation: u64,
}

/// What a process proves itself with. One per process; clones share it.
#[derive(Clone)]
pub struct Auth(Rc<Inner>);

struct Inner {
    identity: Identity,
    secret: ClusterSecret,
    epoch: Cell<u64>,
}

impl Auth {
    /// The process `identity` of the cluster that shares `secret`.
    ///
    /// # Panics
    /// With a name that is empty or above 64 bytes: the configuration's reader refuses those.
    pub fn new(identity: Identity, secret: ClusterSecret) -> Auth {
        let len = identity.name.len();
        assert!((1..=NAME_MAX).contains(&len), "a process name has 1 to {NAME_MAX} bytes, not {len}");
        Auth(Rc::new(Inner { identity, secret, epoch: Cell::new(0) }))
    }

    /// Who this process is.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The epoch that requests carry from now on; it never falls.
    pub fn set_epoch(&self, epoch: u64) {
        self.0.epoch.set(self.0.epoch.get().max(epoch));
    }

    /// The epoch that requests carry.
    pub fn epoch(&self) -> u64 {
        self.0.epoch.get()
    }

    fn mac(&self, label: &[u8], client: &Hello, server: &Hello) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.secret.expose()).expect("HMAC takes keys of any length");
        mac.update(label);
        mac.update(client.as_bytes());
        mac.update(server.as_bytes());
        mac
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Hello {
    magic: U32,
    version: U16,
    name_len: U16,
    name: [u8; NAME_MAX],
    incarnation: U64,
    channel: U64,
    nonce: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ServerHello {
    hello: Hello,
    proof: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ClientProof {
    magic: U32,
    proof: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VerdictFrame {
    magic: U32,
    code: U32,
}

const _: () = assert!(size_of::<Hello>() == 120);
const _: () = assert!(size_of::<ServerHello>() == 152);
const _: () = assert!(size_of::<ClientProof>() == 36);
const _: () = assert!(size_of::<VerdictFrame>() == 8);

/// How a server ends a handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Verdict {
    Welcome = 1,
    BadProof = 2,
    Stale = 3,
    Full = 4,
    Version = 5,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("{0}")]
    Fabric(#[from] FabricError),
    #[error("the peer proved no knowledge of our cluster secret: compare the secret files of both hosts")]
    NoProof,
    #[error("the peer rejected our secret: compare the secret files of both hosts")]
    Rejected,
    #[error("the peer is `{found}`, not `{wanted}`: check the addresses in the configuration")]
    WrongPeer { wanted: String, found: String },
    #[error("the peer has seen a newer incarnation of this process")]
    Stale,
    #[error("this is an old incarnation of the peer: {found}, after {newest}")]
    StalePeer { found: u64, newest: u64 },
    #[error("the peer has too many connections")]
    Full,
    #[error("the peer speaks another version of the protocol than {VERSION}")]
    Version,
    #[error("the peer does not speak this protocol")]
    Malformed,
}

impl Hello {
    fn new(ctx: &Ctx, auth: &Auth, channel: u64) -> Hello {
        let identity = auth.identity();
        let mut name = [0; NAME_MAX];
        for (place, byte) in name.iter_mut().zip(identity.name.bytes()) {
            *place = byte;
        }
        let mut nonce = [0; 32];
        ctx.random_bytes(&mut nonce);
        Hello {
            magic: MAGIC.into(),
            version: VERSION.into(),
            name_len: u16::try_from(identity.name.len()).expect("at most NAME_MAX").into(),
            name,
            incarnation: identity.incarnation.into(),
            channel: channel.into(),
            nonce,
        }
    }

    fn identity(&self) -> Result<Identity, HandshakeError> {
        if self.magic.get() != MAGIC {
            return Err(HandshakeError::Malformed);
        }
        if self.version.get() != VERSION {
            return Err(HandshakeError::Version);
        }
        let name = self.name.get(..usize::from(self.name_len.get())).ok_or(HandshakeError::Malformed)?;
        let name = std::str::from_utf8(name).map_err(|_| HandshakeError::Malformed)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(HandshakeError::Malformed);
        }
        Ok(Identity { name: name.to_owned(), incarnation: self.incarnation.get() })
    }
}

/// The connecting side. `wanted` is the name that the peer must prove.
pub(crate) async fn connect(
    ctx: &Ctx,
    conn: &dyn Conn,
    auth: &Auth,
    channel: u64,
    wanted: &str,
) -> Result<Identity, HandshakeError> {
    let ours = Hello::new(ctx, auth, channel);
    conn.send(ours.as_bytes().to_vec()).await?;
    let answer = conn.recv().await?;
    if let Some(error) = verdict_of(&answer) {
        return Err(error);
    }
    let theirs = ServerHello::read_from_bytes(&answer).map_err(|_| HandshakeError::Malformed)?;
    let identity = theirs.hello.identity()?;
    let mac = auth.mac(SERVER_LABEL, &ours, &theirs.hello);
    mac.verify_slice(&theirs.proof).map_err(|_| HandshakeError::NoProof)?;
    if identity.name != wanted {
        return Err(HandshakeError::WrongPeer { wanted: wanted.to_owned(), found: identity.name });
    }
    let proof = auth.mac(CLIENT_LABEL, &ours, &theirs.hello).finalize().into_bytes().into();
    conn.send(ClientProof { magic: MAGIC.into(), proof }.as_bytes().to_vec()).await?;
    let answer = conn.recv().await?;
    match VerdictFrame::read_from_bytes(&answer) {
        Ok(v) if v.magic.get() == MAGIC && v.code.get() == Verdict::Welcome as u32 => Ok(identity),
        _ => Err(verdict_of(&answer).unwrap_or(HandshakeError::Malformed)),
    }
}

fn verdict_of(message: &[u8]) -> Option<HandshakeError> {
    let verdict = VerdictFrame::read_from_bytes(message).ok()?;
    let code = verdict.code.get();
    Some(match code {
        _ if verdict.magic.get() != MAGIC => HandshakeError::Malformed,
        _ if code == Verdict::BadProof as u32 => HandshakeError::Rejected,
        _ if code == Verdict::Stale as u32 => HandshakeError::Stale,
        _ if code == Verdict::Full as u32 => HandshakeError::Full,
        _ if code == Verdict::Version as u32 => HandshakeError::Version,
        _ => HandshakeError::Malformed,
    })
}

/// The accepting side: the peer and its channel, proved. The caller gives the verdict.
pub(crate) async fn accept(
    ctx: &Ctx,
    conn: &dyn Conn,
    auth: &Auth,
) -> Result<(Identity, u64), HandshakeError> {
    let hello = conn.recv().await?;
    let theirs = Hello::read_from_bytes(&hello).map_err(|_| HandshakeError::Malformed)?;
    let identity = theirs.identity()?;
    let ours = Hello::new(ctx, auth, theirs.channel.get());
    let proof = auth.mac(SERVER_LABEL, &theirs, &ours).finalize().into_bytes().into();
    conn.send(ServerHello { hello: ours, proof }.as_bytes().to_vec()).await?;
    let answer = conn.recv().await?;
    let answer = ClientProof::read_from_bytes(&answer).map_err(|_| HandshakeError::Malformed)?;
    if answer.magic.get() != MAGIC {
        return Err(HandshakeError::Malformed);
    }
    let mac = auth.mac(CLIENT_LABEL, &theirs, &ours);
    mac.verify_slice(&answer.proof).map_err(|_| HandshakeError::Rejected)?;
    Ok((identity, theirs.channel.get()))
}

/// Tells the connecting side how it ended.
pub(crate) async fn judge(conn: &dyn Conn, verdict: Verdict) -> Result<(), FabricError> {
    let frame = VerdictFrame { magic: MAGIC.into(), code: (verdict as u32).into() };
    conn.send(frame.as_bytes().to_vec()).await
}
