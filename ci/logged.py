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
        few = {name: int(re.search(rf"(\d+) {name}", said)[1]) for name in ("prefixes", "subsets", "acknowledged", "flushes")}
        h.check(few["prefixes"] >= 200 and few["subsets"] >= 200 and few["acknowledged"] >= 80 and few["flushes"] >= 50, f"too few to say much: {said}")
        return said
    failed = report.failed
    report.case("log every_state_that_a_power_cut_leaves_holds_what_was_acknowledged", states)
    report.case("log lost_flushes_would_be_noticed", lambda: replay(folder, "--without-flushes"))
    return report.failed == failed
