"""Rounds of one disk under the kernel's driver (fio, io_uring_cmd) and under ours, one after the other. Not a test: benches/vm
runs it, with what to measure in `plan.json`, and finds the figures in `figures`, one JSON line for each run."""

import json
import pathlib
import subprocess
import sys
import time

import harness as h
import pci

LOAD = h.ROOT / "target/release/nvme-load"
NODE = pathlib.Path("/dev/ng0n1")


def real_time():
    """The machine's battery clock: the guest's own may go wrong when its host is loaded at boot. Ratios do not care."""
    return int(pathlib.Path("/sys/class/rtc/rtc0/since_epoch").read_text())


def fio(row, seconds):
    """IOPS of passthrough commands; what fio counts beside is switched off."""
    done = h.run("fio", "--name=row", f"--filename={NODE}", "--ioengine=io_uring_cmd", "--cmd_type=nvme", f"--rw={row['rw']}",
                 f"--bs={row['bytes']}", f"--iodepth={row['depth']}", "--time_based", f"--runtime={seconds}", "--ramp_time=1",
                 "--norandommap", "--gtod_reduce=1", "--thread", "--output-format=json", timeout=120)
    text = done.stdout.decode()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    side = job["write" if "write" in row["rw"] else "read"]
    return {"iops": side["iops"], "commands": side["total_ios"]}


def ours(address, row, seconds, *more):
    op = "write" if "write" in row["rw"] else "read"
    done = subprocess.run([LOAD, address, op, str(row["bytes"]), str(row["depth"]), f"seconds={seconds}", *more],
                          stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def main():
    plan = json.loads(pathlib.Path("plan.json").read_text())
    address, seconds = pci.controllers()[0], plan["seconds"]
    began, real = time.monotonic(), real_time()
    pathlib.Path("/proc/sys/vm/nr_hugepages").write_text("64")
    with open("figures", "w") as figures:
        def tell(engine, row, found):
            figures.write(json.dumps({"engine": engine, "row": row["name"], "round": number, **found}) + "\n")
            figures.flush()
        for number in range(plan["rounds"]):
            pci.bind(address, "nvme")
            h.eventually(f"{NODE} appears", NODE.exists, 30)
            if number == 0:
                h.run("dd", "if=/dev/urandom", "of=/dev/nvme0n1", "bs=1M", "oflag=direct", ok=(0, 1), timeout=120)  # No holes.
            for row in plan["rows"]:
                tell("fio", row, fio(row, seconds))
            pci.bind(address, "vfio-pci")
            for row in plan["rows"]:
                tell("shadow", row, ours(address, row, seconds))
                tell("registers", row, ours(address, row, seconds, "registers"))
                if row["bytes"] > 2 * 4096:  # Less has no list.
                    tell("prps", row, ours(address, row, seconds, "prps"))
        figures.write(json.dumps({"clock": (time.monotonic() - began) / (real_time() - real)}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
