//! What this host lacks for the NVMe driver, each with its fix.

use super::{nodes, word};
use cobalt_nvme::vfio::host;
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;
use std::path::Path;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, and could be better.
    Warning,
    /// It does not work like this.
    Failed,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    pub found: String,
    pub fix: Option<String>,
}

fn check(name: &'static str, verdict: Verdict, found: impl Into<String>, fix: &str) -> Check {
    let fix = (verdict != Verdict::Ok).then(|| fix.to_owned());
    Check { name, verdict, found: found.into(), fix }
}

fn worse(bad: bool, verdict: Verdict) -> Verdict {
    if bad { verdict } else { Verdict::Ok }
}

/// All checks, in the order in which to mend them.
pub fn checks() -> Vec<Check> {
    let kernel = word(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default();
    let mut numbers = kernel.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let groups = std::fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count);
    let vfio = Path::new("/dev/vfio/vfio").exists();
    let uring = word(Path::new("/proc/sys/kernel/io_uring_disabled")).unwrap_or_else(|| "0".into());
    let pages: u64 = nodes().iter().map(|n| n.pages).sum();
    let free: u64 = nodes().iter().map(|n| n.free).sum();
    let memlock = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let unlimited = memlock == libc::RLIM_INFINITY || nix::unistd::Uid::effective().is_root();
    let limit = if unlimited { "unlimited".to_owned() } else { format!("{} MiB", memlock >> 20) };
    let mut checks = vec![
        check(
            "kernel",
            worse(version < (5, 4), Verdict::Failed),
            kernel,
            "use Linux 5.4 or later: VFIO lists its address ranges since then",
        ),
        check(
            "io_uring",
            worse(uring != "0", Verdict::Warning),
            format!("kernel.io_uring_disabled is {uring}"),
            "sysctl kernel.io_uring_disabled=0; without it file and block devices use threads",
        ),
        check(
            "iommu",
            worse(groups == 0, Verdict::Failed),
            format!("{groups} groups"),
            "switch VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on (AMD: amd_iommu=on)",
        ),
        check(
            "vfio",
            worse(!vfio, Verdict::Failed),
            if vfio { "/dev/vfio/vfio is there" } else { "/dev/vfio/vfio is missing" },
            "modprobe vfio-pci, or hugepages/setup --device ADDRESS, which does",
        ),
        check(
            "hugepages",
            worse(pages == 0, Verdict::Warning),
            format!("{pages} of 2 MiB, {free} free"),
            "hugepages/setup --pages N; without them the driver uses ordinary pages, which is slower",
        ),
        check(
            "memlock",
            worse(!unlimited && memlock < 256 << 20, Verdict::Warning),
            limit,
            "hugepages/setup --user NAME, or LimitMEMLOCK= in the service: every arena counts once for each controller",
        ),
    ];
    for function in host::controllers() {
        let driver = function.driver.clone().unwrap_or_else(|| "nobody".into());
        let alone = function.companions().iter().all(|f| f.is_bridge());
        checks.push(Check {
            name: "controller",
            verdict: worse(function.group.is_none() || !alone, Verdict::Warning),
            found: format!("{} with {driver}", function.address),
            fix: (!alone).then(|| "others are in its IOMMU group: `cobalt device list` names them".into()),
        });
    }
    checks
}
