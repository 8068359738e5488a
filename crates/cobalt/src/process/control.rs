//! What the Unix socket of a process answers: `status`, `df`, `health` and `key` ask here.

use super::keys::Keys;
use super::report::Reporter;
use crate::control::{Request, Response};
use cobalt_gateway::control::Handler;
use cobalt_rpc::proto::cas::Command;
use std::sync::Arc;

/// Name of the only command on the wire; its argument is a [`Request`].
pub const COMMAND: &str = "cobalt";

/// What the socket answers from.
pub struct Control {
    pub reporter: Reporter,
    /// In a process with a gateway.
    pub keys: Option<Keys>,
    pub region: String,
}

impl Control {
    /// The function that the socket calls.
    pub fn handler(self) -> Handler {
        let control = Arc::new(self);
        Arc::new(move |command, args| {
            let control = control.clone();
            Box::pin(async move {
                if command != COMMAND {
                    return Err(format!("no command is called {command}"));
                }
                let request: Request = serde_json::from_value(args).map_err(|e| e.to_string())?;
                serde_json::to_value(control.answer(request).await).map_err(|e| e.to_string())
            })
        })
    }

    async fn answer(&self, request: Request) -> Response {
        if matches!(request, Request::Report) {
            return Response::Report(Box::new(self.reporter.report().await));
        }
        if matches!(request, Request::Controllers) {
            return Response::Controllers { controllers: self.reporter.controllers().await };
        }
        let Some(keys) = &self.keys else {
            return Response::Refused { error: "this process has no gateway".into(), hint: None };
        };
        match request {
            Request::Report | Request::Controllers => unreachable!("answered above"),
            Request::KeyCreate { account } => {
                keys.create(&account, self.reporter.s3.clone(), self.region.clone()).await
            }
            Request::KeyList => keys.list().await,
            Request::KeyEnable { access_key, enabled } => {
                keys.change(Command::EnableKey { access_key, enabled }).await
            }
            Request::KeyDelete { access_key } => keys.change(Command::DeleteKey { access_key }).await,
        }
    }
}
