//! `cobalt key create|list|disable|delete`, through the socket of a process with a gateway.

use super::args::{Client, KeyCommand, Output, PlaceArgs};
use super::clients::{Access, paste};
use super::failure::{Code, Failure};
use super::{output, place, talk};
use crate::control::{Request, Response};

/// Runs a `key` command.
pub fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Create { place, account, client, output } => create(&place, account, client, output),
        KeyCommand::List { place, output } => list(&place, output),
        KeyCommand::Disable { place, access_key, undo } => {
            done(&place, &Request::KeyEnable { access_key, enabled: undo })
        }
        KeyCommand::Delete { place, access_key } => done(&place, &Request::KeyDelete { access_key }),
    }
}

/// Asks the first process with a gateway that runs.
fn ask(place: &PlaceArgs, request: &Request) -> Result<Response, Failure> {
    let config = place::config(place)?;
    let mut failure = Failure::new("no process of this configuration serves S3")
        .hint("add [process.s3] to one")
        .code(Code::Unreachable);
    for process in config.processes.iter().filter(|p| p.s3.is_some()) {
        match talk::ask(&config, &process.name, request) {
            Err(f) if f.code == Code::Unreachable => failure = f,
            answer => return answer,
        }
    }
    Err(failure)
}

fn unexpected(response: &Response) -> Failure {
    Failure::new("the process answered something else").cause(format!("it sent {}", response.name()))
}

fn create(place: &PlaceArgs, account: String, client: Option<Client>, output: Output) -> Result<(), Failure> {
    let answer = ask(place, &Request::KeyCreate { account: account.clone() })?;
    let Response::KeyCreated { access_key, secret_key, s3, region } = answer else {
        return Err(unexpected(&answer));
    };
    let url = s3.unwrap_or_default();
    let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
    if let Some(client) = client {
        let access = Access { host, region: &region, access_key: &access_key, secret_key: &secret_key };
        return output::line(paste(client, &access).trim_end());
    }
    match output {
        Output::Json => output::json(&serde_json::json!({
            "access_key": access_key, "secret_key": secret_key, "account": account, "s3": url, "region": region,
        })),
        Output::Table => {
            output::line(&format!("COBALT_ACCESS_KEY={access_key}\nCOBALT_SECRET_KEY={secret_key}"))
        }
    }
}

fn list(place: &PlaceArgs, output: Output) -> Result<(), Failure> {
    let answer = ask(place, &Request::KeyList)?;
    let Response::Keys { keys } = answer else { return Err(unexpected(&answer)) };
    if output == Output::Json {
        return output::json(&serde_json::json!({ "keys": keys }));
    }
    let rows = keys.into_iter().map(|k| {
        let state = if k.enabled { "enabled" } else { "disabled" };
        vec![k.access_key, k.account, state.into()]
    });
    output::table(&["access key", "account", "state"], rows.collect())
}

fn done(place: &PlaceArgs, request: &Request) -> Result<(), Failure> {
    match ask(place, request)? {
        Response::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}
