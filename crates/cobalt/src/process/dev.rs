//! `cobalt dev`: a data directory with everything in it. It is made on the first start; every later start finds it, and
//! refuses to be told something else than it holds.

use super::format::{Format, format};
use super::identity::write_durably;
use crate::cli::args::DevArgs;
use crate::cli::{Code, Failure};
use crate::config::{Config, LayoutSpec, TargetDevice};
use cobalt_base::ByteSize;
use std::path::Path;

/// Name of the only process.
pub const PROCESS: &str = "dev";
const TARGETS: u16 = 3;
const TARGET_SIZE: ByteSize = ByteSize(8 << 30);
/// Stands while the directory is being made: what is in it then was never served.
const UNFINISHED: &str = "unfinished";

/// The configuration in the data directory, made if there is none. The caller holds the directory's lock.
///
/// # Errors
/// When something else is asked for than is there, or nothing can be made.
pub fn prepare(args: &DevArgs) -> Result<Config, Failure> {
    let file = args.data_dir.join(crate::cli::DEV_CONFIG);
    if file.exists() && !args.data_dir.join(UNFINISHED).exists() {
        let config = Config::load(&file)?;
        same(args, &config)?;
        return Ok(config);
    }
    make(args, &file)
}

fn make(args: &DevArgs, file: &Path) -> Result<Config, Failure> {
    let directory = &args.data_dir;
    let failed = |e: std::io::Error| Failure::new(format!("cannot make {}", directory.display())).cause(e);
    let marker = directory.join(UNFINISHED);
    // Without the marker, what lies here is somebody's: then nothing is overwritten.
    let again = marker.exists();
    write_durably(&marker, b"this data directory is being made\n", 0o644).map_err(failed)?;
    let text = describe(args);
    let config = Config::parse(file, &text)?;
    if again {
        for name in ["cluster.secret", "cluster.id"] {
            let _ = std::fs::remove_file(directory.join(name));
        }
    }
    let laid_out = format(&Format { config: &config, process: None, force: again });
    if let Err(failure) = laid_out {
        if !again {
            let _ = std::fs::remove_file(&marker);
        }
        return Err(failure);
    }
    write_durably(file, text.as_bytes(), 0o644).map_err(failed)?;
    std::fs::remove_file(&marker).map_err(failed)?;
    Ok(config)
}

fn describe(args: &DevArgs) -> String {
    let targets = args.targets.unwrap_or(TARGETS);
    let size = args.target_size.unwrap_or(TARGET_SIZE);
    let layout = args.layout.unwrap_or_default();
    let mut text = format!(
        "# Made by `cobalt dev`. Addresses are those of its flags at each start.\n\n\
         [cluster]\nsecret_file = \"cluster.secret\"\nlayout = \"{layout}\"\nunit_size = \"1MiB\"\n\n\
         [[process]]\nname = \"{PROCESS}\"\nadmin = \"127.0.0.1:9001\"\ncas = true\n"
    );
    for i in 0..targets {
        text.push_str(&format!(
            "\n[[process.target]]\nname = \"t{i}\"\ndevice = \"file:targets/t{i}?size={size}&sparse=true\"\n"
        ));
    }
    text.push_str("\n[process.s3]\nlisten = \"127.0.0.1:9000\"\n");
    text
}

/// What was asked for is what is there.
fn same(args: &DevArgs, config: &Config) -> Result<(), Failure> {
    let refuse = |flag: &str, asked: String, has: String| {
        Err(Failure::new(format!(
            "{} was made with {flag} {has}, and {flag} {asked} is asked for",
            args.data_dir.display()
        ))
        .hint(format!("leave {flag} out, or choose another --data-dir"))
        .code(Code::Usage))
    };
    let targets: Vec<_> = config.targets().map(|(_, t)| t).collect();
    if let Some(asked) = args.targets
        && usize::from(asked) != targets.len()
    {
        return refuse("--targets", asked.to_string(), targets.len().to_string());
    }
    let layout: LayoutSpec = config.cluster.layout.value;
    if let Some(asked) = args.layout
        && asked != layout
    {
        return refuse("--layout", asked.to_string(), layout.to_string());
    }
    let size_of = |device: &TargetDevice| match device.uris().first().map(|u| &u.kind) {
        Some(cobalt_bdev::DeviceKind::File { size, .. }) => *size,
        _ => None,
    };
    if let (Some(asked), Some(has)) = (args.target_size, targets.first().and_then(|t| size_of(&t.device)))
        && asked != has
    {
        return refuse("--target-size", asked.to_string(), has.to_string());
    }
    Ok(())
}
