//! What can be typed. Completions come from these definitions.

use super::device::DeviceCommand;
use super::host::HostCommand;
use crate::config::LayoutSpec;
use clap::{Args, Parser, Subcommand, ValueEnum};
use cobalt_base::ByteSize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// An S3 object store for NVMe hosts.
///
/// Without a command it runs `cobalt dev`: a whole store in one process, on files under ./cobalt-data.
#[derive(Parser)]
#[command(name = "cobalt", version, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub dev: DevArgs,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a whole store in this process, on sparse files; makes what is missing.
    Dev(DevArgs),
    /// Run one process of a cluster: its targets, its gateway, or both.
    Server(ServerArgs),
    /// Lay out the targets of a configuration; makes the cluster secret if there is none.
    Format(FormatArgs),
    /// Check, show or begin a configuration file.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// S3 credentials.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Processes, targets and redundancy. Exits 4 when something is short.
    Status(ReportArgs),
    /// One line on whether all is well. Exits 4 when not.
    Health(ReportArgs),
    /// Space, per target and in all.
    Df(ReportArgs),
    /// Prove the invariants of targets that are not in use. Exits 1 with findings.
    Fsck(FsckArgs),
    /// Print what a target holds on disk.
    Dump(DumpArgs),
    /// NVMe controllers: who drives them, and giving them to the driver in userspace and back.
    Device {
        #[command(subcommand)]
        command: DeviceCommand,
    },
    /// Prepare this host for the NVMe driver, and undo it; hugepages/ has scripts that run this.
    Host {
        #[command(subcommand)]
        command: HostCommand,
    },
    /// What this host lacks for the NVMe driver, each with its fix. Exits 1 when the driver cannot run.
    Doctor {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// A store in one process.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Where everything lies.
    #[arg(long, env = "COBALT_DATA_DIR", default_value = "./cobalt-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Number of targets [default: 3]
    #[arg(long, env = "COBALT_TARGETS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub targets: Option<u16>,
    /// Size of each target's sparse file [default: 8GiB]
    #[arg(long, env = "COBALT_TARGET_SIZE", value_name = "SIZE")]
    pub target_size: Option<ByteSize>,
    /// Data and parity units per group [default: 2+1]
    #[arg(long, env = "COBALT_LAYOUT", value_name = "N+K")]
    pub layout: Option<LayoutSpec>,
    /// Where S3 is served.
    #[arg(long, env = "COBALT_S3_LISTEN", default_value = "127.0.0.1:9000", value_name = "HOST:PORT")]
    pub s3_listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "COBALT_ADMIN_LISTEN", default_value = "127.0.0.1:9001", value_name = "HOST:PORT")]
    pub admin_listen: SocketAddr,
    /// Model a volatile write cache, so that killing the process acts as a power cut (for tests).
    #[arg(long, hide = true, value_name = "SIZE")]
    pub volatile_cache: Option<ByteSize>,
}

#[derive(Args)]
pub struct ServerArgs {
    /// The cluster's configuration.
    #[arg(long, env = "COBALT_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// The process to run; may be left out where there is only one.
    #[arg(long, env = "COBALT_PROCESS", value_name = "NAME")]
    pub process: Option<String>,
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Model a volatile write cache, so that killing the process acts as a power cut (for tests).
    #[arg(long, hide = true, value_name = "SIZE")]
    pub volatile_cache: Option<ByteSize>,
}

/// What may be said above the file.
#[derive(Args, Clone, Debug, Default)]
pub struct OverrideArgs {
    /// Serve S3 here instead of where the file says.
    #[arg(long, env = "COBALT_S3_LISTEN", value_name = "HOST:PORT")]
    pub s3_listen: Option<SocketAddr>,
    /// Serve the admin address here instead of where the file says.
    #[arg(long, env = "COBALT_ADMIN_LISTEN", value_name = "HOST:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// The S3 region instead of the file's.
    #[arg(long, env = "COBALT_REGION", value_name = "NAME")]
    pub region: Option<String>,
}

#[derive(Args)]
pub struct FormatArgs {
    /// The cluster's configuration.
    #[arg(long, env = "COBALT_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Only the targets of this process.
    #[arg(long, env = "COBALT_PROCESS", value_name = "NAME")]
    pub process: Option<String>,
    /// Lay out devices that hold something too. What they hold is lost.
    #[arg(long)]
    pub force: bool,
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Check a file.
    Check {
        /// The file.
        #[arg(long, env = "COBALT_CONFIG", value_name = "FILE")]
        config: PathBuf,
    },
    /// Print what holds, defaults and overrides included.
    Show {
        /// The file.
        #[arg(long, env = "COBALT_CONFIG", value_name = "FILE")]
        config: PathBuf,
        /// Say where each value came from.
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        overrides: OverrideArgs,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Print a commented file to begin with.
    Example,
}

/// Which store is meant.
#[derive(Args, Clone, Debug)]
pub struct PlaceArgs {
    /// The cluster's configuration.
    #[arg(long, env = "COBALT_CONFIG", value_name = "FILE", conflicts_with = "data_dir")]
    pub config: Option<PathBuf>,
    /// The directory of a `cobalt dev` [default: ./cobalt-data]
    #[arg(long, env = "COBALT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Args)]
pub struct ReportArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Make a credential and print it; the secret is shown this once.
    Create {
        #[command(flatten)]
        place: PlaceArgs,
        /// The account that owns what the key creates.
        #[arg(long, default_value = "default")]
        account: String,
        /// Print configuration ready to paste for this client.
        #[arg(long = "for", value_enum, value_name = "CLIENT")]
        client: Option<Client>,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// List credentials, without their secrets.
    List {
        #[command(flatten)]
        place: PlaceArgs,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Refuse a credential from now on.
    Disable {
        #[command(flatten)]
        place: PlaceArgs,
        /// The access key.
        access_key: String,
        /// Accept it again instead.
        #[arg(long)]
        undo: bool,
    },
    /// Forget a credential.
    Delete {
        #[command(flatten)]
        place: PlaceArgs,
        /// The access key.
        access_key: String,
    },
}

#[derive(Args)]
#[command(after_long_help = FSCK_HELP)]
pub struct FsckArgs {
    /// Targets to check: names of the configuration, device URIs, or paths of files and block devices [default: all
    /// targets of the configuration]
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Read all data too, and compare it with its checksums.
    #[arg(long)]
    pub data: bool,
    /// Show how far the check is: a bar on a terminal, lines elsewhere.
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = ProgressWhen::Auto,
        default_missing_value = "always"
    )]
    pub progress: ProgressWhen,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// The same as --output json.
    #[arg(long)]
    pub json: bool,
}

const FSCK_HELP: &str = "\
Checks every node, row, data block and count, in the state that the next start would have after redoing the journal.
Nothing is written. The processes that serve the targets must be stopped.

Exit codes:
  0  clean, or only what the next start mends by itself (a superblock copy that a crash left old)
  1  damage was found, or a target could not be checked
  2  the command line or the configuration is wrong

Examples:
  cobalt fsck --data-dir ./cobalt-data --data
  cobalt fsck --config cobalt.toml t0 t1 --json
  cobalt fsck /dev/nvme0n1

docs/operations/fsck.md says what each kind of finding means and what to do.";

/// When progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressWhen {
    /// On a terminal.
    Auto,
    Always,
    Never,
}

#[derive(Args)]
#[command(after_long_help = DUMP_HELP)]
pub struct DumpArgs {
    /// What to print.
    #[arg(value_enum)]
    pub what: DumpWhat,
    /// The target: a name of the configuration, a device URI, or a path.
    #[arg(long, value_name = "TARGET")]
    pub target: String,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// One node block instead: its header, its verdict and its rows.
    #[arg(long, value_name = "BLOCK")]
    pub node: Option<u64>,
    /// Only this cob, as fsck prints it; with `cob`, its extents too.
    #[arg(long, value_name = "FID")]
    pub fid: Option<String>,
    /// Only this catalogue: its number or its name, as in objects.
    #[arg(long, value_name = "CATALOGUE")]
    pub ctg: Option<String>,
    /// Only keys that begin so: text, or hexadecimal after 0x.
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Rows at most.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub limit: u64,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// The same as --output json.
    #[arg(long)]
    pub json: bool,
}

const DUMP_HELP: &str = "\
Rows are those of the trees after the journal, as the next start will have them. What is damaged is skipped, and said.
Nothing is written. Secrets are not shown.

Examples:
  cobalt dump superblock --target cobalt-data/targets/t0
  cobalt dump cob --fid 1:2a --target t0 --data-dir ./cobalt-data
  cobalt dump ctg --ctg buckets --target t0 --json
  cobalt dump extmap --node 17 --target t0";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DumpWhat {
    /// All copies of the superblock.
    Superblock,
    /// Node blocks that are used.
    Bitmap,
    /// Records of the journal with their intents, the last ones first to be kept by --limit.
    Journal,
    /// Cobs, tombstones and fences.
    Cob,
    /// Extents of cobs, with checksums.
    Extmap,
    /// Rows of the allocator.
    Balloc,
    /// Used and free blocks by group.
    Space,
    /// Rows of the catalogues.
    Ctg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// S3 clients whose configuration can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Client {
    Aws,
    Rclone,
    S3cmd,
    Boto3,
}
