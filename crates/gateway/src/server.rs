//! HTTP/1.1 over TCP: a bounded number of connections, each bounded in memory and patience, and an orderly end.

use crate::body::Hasher;
use crate::config::{BindError, GatewayConfig, listen, runtime};
use crate::guard::Rules;
use crate::keys::{Keys, Unseal};
use crate::ops::{Ops, StepHook};
use crate::service::Service;
use crate::storage::Storage;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;

/// S3, ready to serve.
pub struct Gateway {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
    config: GatewayConfig,
}

impl Gateway {
    /// Binds the address and starts the HTTP threads; nothing is served before [`Gateway::run`].
    ///
    /// # Errors
    /// The address cannot be served: says why, and what to do.
    pub fn bind<S: Storage>(
        config: GatewayConfig,
        storage: S,
        unseal: Unseal,
        step: StepHook,
    ) -> Result<Gateway, BindError> {
        let listener = listen(config.listen)?;
        let other = |source| BindError::Other { address: config.listen, source };
        let address = listener.local_addr().map_err(other)?;
        let runtime = runtime(config.threads).map_err(BindError::Threads)?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| other(io::Error::other(error.to_string())))?;
        let limits = config.limits.clone();
        let keys = Keys::new(storage.clone(), unseal, limits.clone());
        let region = config.region.clone();
        let rules = Rules { region: region.clone(), domain: config.domain.clone(), limits: limits.clone() };
        let hasher = Hasher::start(runtime.handle(), config.threads);
        let ops = Ops { storage, keys: keys.clone(), region, limits, step, hasher };
        let service = Service::new(ops, keys, rules, config.allow_plaintext, u64::from_le_bytes(seed));
        Ok(Gateway { runtime, listener, address, service: Arc::new(service), config })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The HTTP threads, for the admin address and the control socket.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.runtime.handle()
    }

    /// Serves until `shutdown` resolves; then accepts nothing more and gives requests under way `drain` to finish. Blocks the
    /// calling thread. Returns how many connections were cut.
    pub fn run(self, shutdown: impl Future<Output = ()>, drain: Duration) -> usize {
        let Gateway { runtime, listener, service, config, .. } = self;
        let cut = runtime.block_on(serve(listener, service, config, shutdown, drain));
        runtime.shutdown_background();
        cut
    }
}

async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    config: GatewayConfig,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) -> usize {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the listening socket is of no use");
            return 0;
        }
    };
    let room = Arc::new(Semaphore::new(config.limits.connections));
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            // Beyond the limit clients wait in the kernel's backlog, where they cost nothing here.
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accepted => accepted,
        };
        let (Ok(permit), Ok((stream, peer))) = (permit, accepted) else {
            // Out of descriptors, or the client is gone already: neither ends the service.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let connection = connection(stream, peer, service.clone(), config.clone(), stopped.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop(listener);
    stop.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, drained).await.is_ok() {
        return 0;
    }
    let cut = connections.len();
    tracing::warn!(cut, "connections were cut: their requests did not finish in time");
    connections.shutdown().await;
    cut
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: Arc<Service>,
    config: GatewayConfig,
    mut stopped: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let limits = &config.limits;
    let io = TokioIo::new(Patient { stream, stall: limits.stall_time, deadline: None });
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.call(request, peer.ip()).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.connection_bytes);
    let mut serving = pin!(builder.serve_connection(io, answer));
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a connection ended early");
    }
}

/// A socket whose writes fail when the other side takes nothing for too long: a GET is cut, and its units come back.
struct Patient {
    stream: TcpStream,
    stall: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn judge<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.deadline = None;
            return poll;
        }
        let stall = self.stall;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, poll)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, poll)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
