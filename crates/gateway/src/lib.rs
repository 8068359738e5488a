//! S3 over HTTP, and the process's own doors: the admin address and the control socket.
//!
//! A request's life: `server` accepts and frames it, `guard` judges its head, s3s its signature and what it means, `ops`
//! does it over [`storage::Storage`], `body` carries its bytes. The only home of tokio, hyper and s3s.

mod body;
mod error;
mod guard;
mod keys;
mod ops;
mod refusal;
mod reply;
mod server;
mod service;
pub mod storage;

pub mod admin;
mod config;
pub mod control;
pub mod limits;

pub use config::{BindError, GatewayConfig, runtime};
pub use keys::{SecretString, Unseal};
pub use limits::Limits;
pub use ops::StepHook;
pub use server::Gateway;

/// Directive for the process's log filter: s3s shows headers and computed signatures at its lower levels, so whatever else the
/// user turns on, these stay off. Its errors are the answers, which the gateway logs itself.
pub const LOG_DIRECTIVE: &str = "s3s=off";

#[cfg(test)]
mod tests;
