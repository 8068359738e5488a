//! Time, CPU and memory of this process.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::time::Instant;

/// What a phase took.
#[derive(Clone, Copy, Debug)]
pub struct Lap {
    pub seconds: f64,
    /// CPU of all threads, in user mode and in the kernel.
    pub user: f64,
    pub system: f64,
}

/// The beginning of a phase.
pub struct Clock {
    start: Instant,
    user: i64,
    system: i64,
}

impl Clock {
    pub fn start() -> Clock {
        let (user, system) = cpu();
        Clock { start: now(), user, system }
    }

    pub fn lap(&self) -> Lap {
        let (user, system) = cpu();
        let seconds = |us: i64| us as f64 / 1e6;
        Lap {
            seconds: self.start.elapsed().as_secs_f64(),
            user: seconds(user - self.user),
            system: seconds(system - self.system),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "figures are taken in real time")]
fn now() -> Instant {
    Instant::now()
}

/// Microseconds in user mode and in the kernel.
fn cpu() -> (i64, i64) {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask for its own usage");
    (usage.user_time().num_microseconds(), usage.system_time().num_microseconds())
}

/// Highest resident size of this process so far, in bytes.
pub fn peak_rss() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask for its own usage");
    u64::try_from(usage.max_rss()).unwrap_or(0) * 1024
}

/// Resident size of this process now, in bytes; 0 where the system does not say.
pub fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
