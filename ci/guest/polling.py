"""What the driver spends while it polls and while it waits, counted by others than itself where there are others: the kernel's
interrupts and system calls, the emulated controller's doorbells."""

import json
import pathlib
import re
import subprocess
import sys
import threading

import harness as h
import pci
from scenario import run, scenario

LOAD = h.BIN.parent / "nvme-load"
DOORBELLS = pathlib.Path("doorbells")  # Written by QEMU, one line for each write of a submission queue's doorbell.
COUNT = 20_000


def prepared():
    address = pci.controllers()[0]
    pathlib.Path("/proc/sys/vm/nr_hugepages").write_text("64")
    if pci.driver(address) != "vfio-pci":
        pci.bind(address, "vfio-pci")
    return address


def load(*args, under=()):
    done = subprocess.run([*under, LOAD, prepared(), *map(str, args)], capture_output=True, text=True, timeout=60)
    h.check(done.returncode == 0, f"nvme-load exited with {done.returncode}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def interrupts():
    """What has arrived at vectors that VFIO has attached. A vector that is not attached has no line."""
    lines = [line for line in pathlib.Path("/proc/interrupts").read_text().splitlines() if "vfio-msi" in line]
    return sum(int(word) for line in lines for word in line.split()[1:] if word.isdigit()), len(lines)


class Watched:
    """The most that `interrupts` said meanwhile."""

    def __enter__(self):
        self.most, self.looks, self.end = (0, 0), 0, threading.Event()

        def look():
            while not self.end.wait(0.01):
                self.most, self.looks = max(self.most, interrupts()), self.looks + 1
        self.thread = threading.Thread(target=look)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()


def doorbells():
    return sum("doorbell_sq" in line and " sqid 1 " in line for line in DOORBELLS.read_text().splitlines())


@scenario
def polling_takes_no_interrupt():
    with Watched() as watched:
        told = load("read", 4096, 32, f"count={3 * COUNT}")
    h.check(watched.looks > 10, f"looked {watched.looks} times only")
    h.check(watched.most == (0, 0) and told["armed"] == 0, f"{watched.most} interrupts and vectors, armed {told['armed']} times")
    return f"{told['commands']} commands, {watched.looks} looks at /proc/interrupts"


@scenario
def polling_takes_no_system_call_and_no_allocation():
    def calls(count):
        # The clock is read without a call where the machine's own counter is trusted, which the load of its host decides here.
        told = load("read", 4096, 32, f"count={count}", under=["strace", "-f", "-c", "-e", "trace=!clock_gettime", "-o", "/tmp/calls"])
        h.check(told["allocations"] == 0, f"{told['allocations']} allocations")
        total = pathlib.Path("/tmp/calls").read_text().splitlines()[-1]
        h.check(total.endswith("total"), total)
        return int(total.split()[3 if total.split()[3].isdigit() else 2])
    few, many = calls(COUNT // 10), calls(COUNT)
    more = COUNT - COUNT // 10
    h.check(many - few <= more // 1000, f"{more} commands more took {many - few} system calls more ({few} before)")
    return f"{few} system calls around {COUNT // 10} commands, {many} around {COUNT}"


@scenario
def a_turn_that_submits_rings_once():
    said, spared = [], 0
    for more in (["registers"], []):
        for op, size, depth in (("read", 4096, 32), ("write", 4096, 1), ("read", 128 << 10, 8)):
            before = doorbells()
            told = load(op, size, depth, f"count={COUNT // 10}", *more)
            rung = doorbells() - before
            h.check(told["rings"] == told["submitting_turns"], f"{told['rings']} rings in {told['submitting_turns']} turns that submitted: {told}")
            h.check(told["sq_writes"] <= told["rings"], f"{told}")
            h.check(not more or told["sq_writes"] == told["rings"], f"registers alone, and not each ring wrote one: {told}")
            h.check(rung == told["sq_writes_ever"], f"QEMU saw {rung} doorbells, the driver wrote {told['sq_writes_ever']}")
            spared += 0 if more else told["rings"] - told["sq_writes"]
            said.append(f"{told['commands']} in {told['rings']} turns by {told['sq_writes']}{' registers' if more else ''}")
    h.check(spared > 0, f"shadow doorbells spared no register: {said}")
    return "; ".join(said)


@scenario
def with_interrupts_it_sleeps_and_wakes():
    with Watched() as watched:
        told = load("idle", 5)
    h.check(told["cpu_share"] <= 0.01, f"idle it took {told['cpu_share']:.1%} of a core: {told}")
    h.check(told["first_us"] < 1e6 and told["resets"] == 0, f"{told}")
    h.check(told["armed"] > 0 and watched.most[0] > told["commands"] // 4, f"{watched.most} interrupts and vectors for {told}")
    h.check(told["parks"] > told["commands"] // 4, f"it slept {told['parks']} times only: {told}")
    # Attached again for the reads after the idle time: it was detached in between.
    h.check(told["armed"] > 1, f"the interrupt stayed attached: {told}")
    return (f"{told['cpu_share']:.2%} of an emulated core idle, the first read after it {told['first_us']:.0f} µs; "
            f"{watched.most[0]} interrupts and {told['parks']} sleeps, attached {told['armed']} times, for {told['commands']} reads one by one")


if __name__ == "__main__":
    run(sys.argv[1:])
