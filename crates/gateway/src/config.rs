//! What the gateway is told, and what can go wrong before it serves.

use crate::limits::Limits;
use std::io;
use std::net::{SocketAddr, TcpListener};

/// The gateway's part of a process's configuration.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where S3 is served.
    pub listen: SocketAddr,
    /// The region that credentials must be scoped to.
    pub region: String,
    /// Domain of virtual-host style requests; path style works always.
    pub domain: Option<String>,
    /// HTTP threads.
    pub threads: usize,
    /// Whether clients that are not on this host may speak plain HTTP.
    pub allow_plaintext: bool,
    /// Bounds.
    pub limits: Limits,
}

/// Why an address cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "{address} is in use by another process: stop it, or configure another port (`ss -ltnp` shows who)"
    )]
    InUse { address: SocketAddr },
    #[error("{address} is not an address of this host: use one of `ip addr`, 127.0.0.1, or 0.0.0.0")]
    NotOurs { address: SocketAddr },
    #[error("{address} needs privileges: use a port from 1024 on")]
    Denied { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Other { address: SocketAddr, source: io::Error },
    #[error("cannot start the HTTP threads")]
    Threads(#[source] io::Error),
}

/// Binds, and says what to do when it cannot.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bound = || {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        // A restart must not wait for the connections of the process before.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        Ok(TcpListener::from(socket))
    };
    bound().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        io::ErrorKind::AddrNotAvailable => BindError::NotOurs { address },
        io::ErrorKind::PermissionDenied => BindError::Denied { address },
        _ => BindError::Other { address, source },
    })
}

/// The threads that HTTP runs on.
///
/// # Errors
/// The host gives no threads.
pub fn runtime(threads: usize) -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .max_blocking_threads(4)
        .thread_name("cobalt-http")
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use super::{BindError, listen};

    #[test]
    fn a_taken_port_is_named_with_what_to_do() {
        let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&address.to_string()));
    }
}
