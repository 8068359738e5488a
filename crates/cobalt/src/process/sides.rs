//! What a process shows to the outside over HTTP: S3 and the admin address.

use super::Plan;
use super::metrics;
use super::report::Reporter;
use super::targets::with_sources;
use crate::cli::Failure;
use crate::control::Report;
use cobalt_client::Handle;
use cobalt_gateway::admin::{Admin, AdminView};
use cobalt_gateway::{BindError, Gateway, GatewayConfig, SecretString, StepHook, Unseal};
use cobalt_rpc::ClusterSecret;
use cobalt_rpc::proto::record::KeyRecord;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// HTTP threads of a gateway.
const THREADS: usize = 2;
/// Time for the numbers of one scrape.
const SCRAPE: Duration = Duration::from_secs(2);

/// A port that is taken is told before anything else is started. It is let go again: who serves it binds it.
///
/// # Errors
/// With what to do.
pub fn is_free(address: SocketAddr, flag: &str) -> Result<(), Failure> {
    match std::net::TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            Err(Failure::new(format!("{address} is in use"))
                .cause("another process listens there")
                .hint(format!("stop it (`ss -ltnp` shows it), or choose another port with {flag}")))
        }
        Err(e) => Err(Failure::new(format!("cannot listen on {address}"))
            .cause(e)
            .hint(format!("choose another address with {flag}"))),
    }
}

fn refused(what: &str, error: &BindError) -> Failure {
    Failure::new(format!("{what} cannot be served")).cause(with_sources(error))
}

/// S3, bound.
///
/// # Errors
/// Why not.
pub fn gateway(plan: &Plan, handle: Handle, secret: ClusterSecret) -> Result<Option<Gateway>, Failure> {
    let Some(s3) = &plan.process.s3 else { return Ok(None) };
    let config = GatewayConfig {
        listen: s3.listen.value,
        region: s3.region.value.clone(),
        domain: s3.domain.as_ref().map(|d| d.value.clone()),
        threads: THREADS,
        allow_plaintext: false,
        limits: cobalt_gateway::Limits::default(),
    };
    let unseal: Unseal = Arc::new(move |record: &KeyRecord| {
        let text =
            cobalt_cas::secrets::open(secret.expose(), &record.access_key, &record.sealed_secret).ok()?;
        Some(SecretString::new(text.to_string()))
    });
    let halt = plan.halt.clone();
    let step: StepHook = Arc::new(move |number| {
        if let Some(halt) = &halt {
            halt.pass_number(number);
        }
    });
    Gateway::bind(config, handle, unseal, step).map(Some).map_err(|e| refused("S3", &e))
}

/// The admin address, bound.
///
/// # Errors
/// Why not.
pub fn admin(
    plan: &Plan,
    reporter: &Reporter,
    serving: watch::Receiver<bool>,
) -> Result<Option<Admin>, Failure> {
    let Some(admin) = &plan.process.admin else { return Ok(None) };
    let reporter = reporter.clone();
    let runtime = tokio::runtime::Handle::current();
    let view = AdminView {
        ready: Arc::new(move || {
            let serving = *serving.borrow();
            Box::pin(async move { if serving { Ok(()) } else { Err("it starts or ends".to_owned()) } })
        }),
        metrics: Arc::new(move || {
            let report = async { tokio::time::timeout(SCRAPE, reporter.report()).await };
            let report = tokio::task::block_in_place(|| runtime.block_on(report));
            metrics::of(&report.unwrap_or_else(|_| Report::default()))
        }),
    };
    Admin::bind(admin.value, view).map(Some).map_err(|e| refused("the admin address", &e))
}
