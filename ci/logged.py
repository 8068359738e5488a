"""What a power cut could have left of the disk of boot `log`, judged: `replay` of crates/sim does it, in one process."""

import re
import subprocess

import harness as h

REPLAY = h.BIN.parent / "replay"
DISK = 96 << 20
META = 32 << 20  # Of a disk of this size (process/targets.rs).


def replay(folder, *more):
    done = subprocess.run([REPLAY, folder / "disk.log", folder / "client", str(DISK), str(META), *more], capture_output=True, text=True, timeout=300)
    said = (done.stdout + done.stderr).strip()
    h.check(done.returncode == 0, said[-1500:])
    return said


def judge(report, folder):
    def states():
        said = replay(folder)
        least = {"prefixes": 200, "subsets": 200, "acknowledged": 80, "flushes": 50, "checkpoints": 2, "torn writes": 500, "of them of superblocks": 4}
        for name, count in least.items():
            h.check(int(re.search(rf"(\d+) {name}", said)[1]) >= count, f"fewer than {count} {name} say little: {said}")
        return said
    failed = report.failed
    report.case("log every_state_that_a_power_cut_leaves_holds_what_was_acknowledged", states)
    report.case("log lost_flushes_would_be_noticed", lambda: replay(folder, "--without-flushes"))
    return report.failed == failed
