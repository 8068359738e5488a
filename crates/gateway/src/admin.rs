//! The admin address: whether the process lives, whether it can serve, and its numbers. Nothing else.

use crate::config::{BindError, listen};
use crate::reply::{Reply, full};
use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Connections at a time, and how long a header may take.
const CONNECTIONS_MAX: usize = 32;
const HEADER_TIME: Duration = Duration::from_secs(10);

/// What the admin address shows.
#[derive(Clone)]
pub struct AdminView {
    /// Whether the process can serve; if not, why.
    pub ready: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
    /// Numbers of this moment.
    pub metrics: Arc<dyn Fn() -> Registry + Send + Sync>,
}

/// The admin address, bound.
pub struct Admin {
    listener: TcpListener,
    view: AdminView,
}

impl Admin {
    /// Binds.
    ///
    /// # Errors
    /// The address cannot be served.
    pub fn bind(address: SocketAddr, view: AdminView) -> Result<Admin, BindError> {
        Ok(Admin { listener: listen(address)?, view })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The host does not say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped. Spawn it on the HTTP threads.
    ///
    /// # Errors
    /// The listening socket is of no use.
    pub async fn run(self) -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = room.clone().acquire_owned().await.map_err(std::io::Error::other)?;
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let view = self.view.clone();
            tokio::spawn(async move {
                let answer = service_fn(|request| {
                    let view = view.clone();
                    async move { Ok::<_, Infallible>(answer(&view, request).await) }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(16 << 10);
                if let Err(error) = builder.serve_connection(TokioIo::new(stream), answer).await {
                    tracing::debug!(%error, "an admin connection ended early");
                }
                drop(permit);
            });
        }
    }
}

async fn answer(view: &AdminView, request: Request<Incoming>) -> Response<Reply> {
    let path = request.uri().path();
    if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
        return text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".to_owned());
    }
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
    }
    match path {
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match (view.ready)().await {
            Ok(()) => text(StatusCode::OK, "ready\n".to_owned()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        _ => {
            let mut out = String::new();
            if prometheus_client::encoding::text::encode(&mut out, &(view.metrics)()).is_err() {
                return text(StatusCode::INTERNAL_SERVER_ERROR, "the numbers cannot be written\n".to_owned());
            }
            let mut response = text(StatusCode::OK, out);
            let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Reply> {
    let mut response = Response::new(full(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
