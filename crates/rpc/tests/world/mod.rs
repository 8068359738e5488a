//! What the tests of rpc share: a small service, and a cluster of one server on either transport.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test binary uses its part; a test that cannot go on fails"
)]

use cobalt_base::Nanos;
use cobalt_dma::{Arena, ArenaConfig, Slice};
use cobalt_fabric::{LocalNet, PeerAddr, TcpTransport, Transport};
use cobalt_reactor::{Ctx, Reactor, ReactorConfig};
use cobalt_rpc::{
    Auth, Call, ClusterSecret, Identity, Peer, PeerLimits, Refusal, Request, Server, ServerLimits, Service,
    serve,
};
use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("no: {0}")]
pub struct No(pub String);

macro_rules! requests {
    ($($op:literal $name:ident($body:ty) => $reply:ty;)*) => { $(
        #[derive(Debug, Serialize, Deserialize)]
        pub struct $name(pub $body);
        impl Request for $name {
            const OPCODE: u16 = $op;
            type Reply = $reply;
            type Error = No;
        }
    )* };
}

requests! {
    1 Echo(Vec<u8>) => Vec<u8>;
    2 Store(u64) => u64;      // pulls so many bytes, answers with their sum
    3 Fetch(u64) => u64;      // pushes so many bytes
    4 Slow(u64) => u64;       // answers after so many milliseconds
    5 Silent(()) => ();       // never answers
    6 Refuse(String) => ();
    7 Big(u32) => Vec<u8>;    // an answer of so many bytes
    8 SlowStore(u64) => u64;  // waits 100 ms, then pulls
    99 Unknown(()) => ();
}

pub struct Tester {
    pub ctx: Ctx,
    pub arena: Arena,
    pub handled: Cell<u64>,
    pub bulk_errors: RefCell<Vec<String>>,
}

pub fn sum(data: &[Slice]) -> u64 {
    data.iter().flat_map(|s| s.iter()).map(|b| u64::from(*b)).sum()
}

pub fn bytes(arena: &Arena, len: usize, seed: u8) -> Vec<Slice> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < len {
        let mut buf = arena.try_alloc((len - at).min(1 << 20)).unwrap();
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = ((at + i) % 251) as u8 ^ seed;
        }
        at += buf.len();
        out.push(buf.freeze());
    }
    out
}

impl Tester {
    async fn store(&self, call: Call, len: u64) {
        match call.pull(0, len).await {
            Ok(data) => call.reply::<Store>(Ok(sum(&data))),
            Err(e) => {
                self.bulk_errors.borrow_mut().push(e.to_string());
                call.reply::<Store>(Err(No(e.to_string())));
            }
        }
    }
}

impl Service for Tester {
    fn call(self: Rc<Self>, call: Call) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            self.handled.set(self.handled.get() + 1);
            match call.opcode() {
                1 => {
                    let echo: Echo = call.parse().unwrap();
                    call.reply::<Echo>(Ok(echo.0));
                }
                2 => {
                    let len = call.parse::<Store>().unwrap().0;
                    self.store(call, len).await;
                }
                3 => {
                    let len = call.parse::<Fetch>().unwrap().0;
                    let data = bytes(&self.arena, len as usize, 7);
                    let sum = sum(&data);
                    match call.push(0, data).await {
                        Ok(()) => call.reply::<Fetch>(Ok(sum)),
                        Err(e) => call.reply::<Fetch>(Err(No(e.to_string()))),
                    }
                }
                4 => {
                    let ms = call.parse::<Slow>().unwrap().0;
                    self.ctx.sleep(Duration::from_millis(ms)).await;
                    call.reply::<Slow>(Ok(ms));
                }
                5 => drop(call),
                6 => {
                    let why = call.parse::<Refuse>().unwrap().0;
                    call.reply::<Refuse>(Err(No(why)));
                }
                7 => {
                    let len = call.parse::<Big>().unwrap().0;
                    call.reply::<Big>(Ok(vec![1; len as usize]));
                }
                8 => {
                    let len = call.parse::<SlowStore>().unwrap().0;
                    self.ctx.sleep(Duration::from_millis(100)).await;
                    self.store(call, len).await;
                }
                other => call.refuse(Refusal::UnknownOpcode(other)),
            }
        })
    }
}

#[derive(Clone)]
pub struct World {
    pub ctx: Ctx,
    pub arena: Arena,
    pub transport: Rc<dyn Transport>,
    pub local: bool,
    pub service: Rc<Tester>,
}

pub fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_bytes([seed; 32])
}

pub fn auth(name: &str, incarnation: u64) -> Auth {
    Auth::new(Identity { name: name.into(), incarnation }, secret(1))
}

impl World {
    pub fn new(ctx: &Ctx, local: bool) -> World {
        let arena = Arena::new(ArenaConfig { limit: 64 << 20 }).unwrap();
        let transport: Rc<dyn Transport> = if local {
            Rc::new(LocalNet::new(ctx, &arena).transport("tester"))
        } else {
            Rc::new(TcpTransport::new(ctx, &arena).unwrap())
        };
        let service = Rc::new(Tester {
            ctx: ctx.clone(),
            arena: arena.clone(),
            handled: Cell::new(0),
            bulk_errors: RefCell::default(),
        });
        World { ctx: ctx.clone(), arena, transport, local, service }
    }

    pub fn addr(&self) -> PeerAddr {
        if self.local { PeerAddr::Local("s".into()) } else { PeerAddr::Tcp("127.0.0.1:0".parse().unwrap()) }
    }

    /// A server called "s", and where it listens.
    pub async fn serve(&self, at: PeerAddr, incarnation: u64, limits: ServerLimits) -> (Server, PeerAddr) {
        let listener = self.transport.listen(at).await.unwrap();
        let addr = listener.addr();
        (serve(&self.ctx, listener, auth("s", incarnation), self.service.clone(), limits), addr)
    }

    pub async fn server(&self) -> (Server, PeerAddr) {
        self.serve(self.addr(), 1, ServerLimits::default()).await
    }

    pub fn peer_as(&self, addr: &PeerAddr, auth: Auth, limits: PeerLimits) -> Peer {
        Peer::new(&self.ctx, self.transport.clone(), auth, "s", addr.clone(), limits)
    }

    pub fn peer(&self, addr: &PeerAddr) -> Peer {
        self.peer_as(addr, auth("c", 1), PeerLimits::default())
    }

    pub fn after(&self, ms: u64) -> Nanos {
        self.ctx.now() + Duration::from_millis(ms)
    }

    /// Waits until `done`, or fails after five seconds.
    pub async fn until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..1000 {
            if done() {
                return;
            }
            self.ctx.sleep(Duration::from_millis(5)).await;
        }
        panic!("never: {what}");
    }
}

/// On virtual time over the local transport.
pub fn locally<F: Future<Output = ()> + 'static>(test: impl Fn(World) -> F) {
    for seed in 0..5 {
        let reactor = Reactor::new_virtual(seed).unwrap();
        reactor.block_on(test(World::new(&reactor.ctx(), true)));
    }
}

/// On the system's clock over TCP.
pub fn over_tcp<F: Future<Output = ()> + 'static>(test: impl Fn(World) -> F) {
    let reactor = Reactor::new(ReactorConfig::default()).unwrap();
    let (ctx, future) = (reactor.ctx(), test(World::new(&reactor.ctx(), false)));
    reactor.block_on(async move {
        ctx.timeout(Duration::from_secs(30), future).await.expect("the test hangs");
    });
}

pub fn everywhere<F: Future<Output = ()> + 'static>(test: impl Fn(World) -> F) {
    locally(&test);
    over_tcp(test);
}
