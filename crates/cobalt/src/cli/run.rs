//! `cobalt dev`, `server` and `format`.

use super::args::{Client, DevArgs, FormatArgs, ServerArgs};
use super::clients::{Access, paste};
use super::configure;
use super::failure::Failure;
use super::place;
use crate::config::{Config, Origin};
use crate::process::credentials::Credentials;
use crate::process::format::Format;
use crate::process::halt::Halt;
use crate::process::lock::Lock;
use crate::process::{self, Plan, dev as data_dir};
use clap::ArgMatches;
use std::path::Path;

/// Log lines on stderr; `COBALT_LOG` chooses which.
fn log() {
    let mut filter = tracing_subscriber::EnvFilter::try_from_env("COBALT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    if let Ok(directive) = cobalt_gateway::LOG_DIRECTIVE.parse() {
        filter = filter.add_directive(directive);
    }
    // A second call, from a test, changes nothing.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// `cobalt dev`.
pub fn dev(args: &DevArgs) -> Result<(), Failure> {
    log();
    for (addr, what) in [(args.s3_listen, "S3"), (args.admin_listen, "the admin address")] {
        if !addr.ip().is_loopback() {
            return Err(configure::beyond_loopback(addr, what));
        }
    }
    let directory = &args.data_dir;
    std::fs::create_dir_all(directory)
        .map_err(|e| Failure::new(format!("cannot make {}", directory.display())).cause(e))?;
    let lock = Lock::take(&directory.join("run").join(format!("{}.lock", data_dir::PROCESS)))?;
    let config = data_dir::prepare(args)?;
    let mut process = config.process(None)?.clone();
    if let Some(s3) = &mut process.s3 {
        s3.listen.overridden(Some((args.s3_listen, Origin::Flag)));
    }
    if let Some(admin) = &mut process.admin {
        admin.overridden(Some((args.admin_listen, Origin::Flag)));
    }
    let credentials = match Credentials::from_env()? {
        Some(given) => given,
        None => Credentials::load_or_generate(&directory.join("credentials"))?,
    };
    let shown = credentials.clone();
    let region = process.s3.as_ref().map(|s| s.region.value.clone()).unwrap_or_default();
    let plan = plan(config, process, Some(credentials), args.volatile_cache)?;
    process::run(plan, lock, |s3| greet(directory, s3, &region, &shown))
}

/// Tells a person how to begin; on stderr, since stdout is for the ready line.
fn greet(directory: &Path, s3: &str, region: &str, credentials: &Credentials) {
    let host = s3.split_once("://").map_or(s3, |(_, host)| host);
    let access = Access {
        host,
        region,
        access_key: &credentials.access_key,
        secret_key: credentials.secret_key.as_str(),
    };
    eprintln!("data: {}\ncatalogue: 1 copy on t0; its loss loses all\n", directory.display());
    for client in [Client::Aws, Client::S3cmd, Client::Rclone] {
        eprintln!("{}", paste(client, &access));
    }
}

/// `cobalt server`.
pub fn server(args: &ServerArgs, matches: &ArgMatches) -> Result<(), Failure> {
    log();
    let config = Config::load(&args.config)?;
    let mut process = config.process(args.process.as_deref())?.clone();
    configure::apply(&mut process, &args.overrides, matches)?;
    let lock = Lock::take(&place::run_directory(&config).join(format!("{}.lock", process.name)))?;
    let credentials = Credentials::from_env()?;
    let plan = plan(config, process, credentials, args.volatile_cache)?;
    process::run(plan, lock, |_| {})
}

fn plan(
    config: Config,
    process: crate::config::ProcessConfig,
    credentials: Option<Credentials>,
    volatile_cache: Option<cobalt_base::ByteSize>,
) -> Result<Plan, Failure> {
    let id = process::identity_of(&config)?;
    Ok(Plan { config, process, id, credentials, volatile_cache, halt: Halt::from_env()? })
}

/// `cobalt format`.
pub fn format(args: &FormatArgs) -> Result<(), Failure> {
    log();
    let config = Config::load(&args.config)?;
    process::format::format(&Format { config: &config, process: args.process.as_deref(), force: args.force })
}
