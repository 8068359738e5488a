"""The lowest layer on emulated controllers: what VFIO gives, what it refuses, and to whom."""

import os
import pathlib
import re
import subprocess
import sys

import harness as h
import pci
from scenario import run, scenario

PROBE = h.BIN.parent / "vfio-probe"
USER = 1000
MIB = 1 << 20


def probe(*args, ok=(0,), user=None, memlock=8 * MIB):
    """Runs the probe; as an ordinary user with this limit on locked memory where asked to."""
    as_user = ["prlimit", f"--memlock={memlock}:{memlock}", "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    done = subprocess.run([*as_user, PROBE, *args], capture_output=True, text=True, timeout=120)
    h.check(done.returncode in ok, f"probe {args} exited with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def hugepages(count):
    pathlib.Path("/proc/sys/vm/nr_hugepages").write_text(str(count))


def bound(index=0):
    address = pci.controllers()[index]
    if pci.driver(address) != "vfio-pci":
        pci.bind(address, "vfio-pci")
    return address


def node(address):
    return pathlib.Path("/dev/vfio") / pci.group(address)


@scenario
def what_the_kernel_drives_is_refused():
    address = pci.controllers()[0]
    pci.bind(address, "nvme")
    said = probe("look", address, ok=(1,))
    h.check("is driven by nvme" in said and f"cobalt device bind {address}" in said, said)


@scenario
def a_controller_is_opened_with_its_address_ranges():
    address = bound()
    hugepages(64)
    said = probe("look", address)
    for part in ["0..fee00000", "fef00000..8000000000", "huge true", "bus master on true off true", "after reset 0x0", "twice true"]:
        h.check(part in said, f"no `{part}` in: {said}")
    return re.search(r"cap .*", said)[0]


@scenario
def without_hugepages_ordinary_ones_do():
    hugepages(0)
    h.check("huge false" in probe("look", bound()), "hugepages out of nothing")


@scenario
def a_held_group_names_its_holder():
    address = bound()
    holder = subprocess.Popen([PROBE, "hold", address], stdout=subprocess.PIPE, text=True)
    try:
        h.check(holder.stdout.readline() == "held\n", "the holder did not start")
        said = probe("look", address, ok=(1,))
        h.check(f"held by process {holder.pid} (vfio-probe)" in said, said)
    finally:
        holder.kill()
        holder.wait()
    probe("look", address)


@scenario
def what_is_asked_for_is_let_go():
    address = bound()
    holder = subprocess.Popen([PROBE, "hold", address], stdout=subprocess.PIPE, text=True)
    h.check(holder.stdout.readline() == "held\n", "the holder did not start")
    # Returns when the holder has closed the device: VFIO asks it to.
    (pci.DEVICES / address / "driver/unbind").write_text(address)
    said = holder.stdout.read()
    holder.wait(30)
    h.check("asked for" in said, f"the holder heard nothing: {said}")
    h.check(pci.driver(address) is None, "the device is still bound")
    bound()


@scenario
def an_ordinary_user_is_told_what_is_missing():
    address = bound()
    os.chmod("/dev/vfio/vfio", 0o666)
    said = probe("look", address, ok=(1,), user=USER)
    h.check(f"/dev/vfio/{pci.group(address)}" in said and "memlock limit of 64 MiB" in said, said)


@scenario
def an_ordinary_user_with_too_little_memlock_is_told_so():
    address = bound()
    os.chown(node(address), 0, USER)
    os.chmod(node(address), 0o660)
    said = probe("look", address, ok=(1,), user=USER, memlock=32 * MIB)
    h.check("the memlock limit is 32 MiB" in said, said)


@scenario
def an_ordinary_user_with_both_works():
    address = bound()
    hugepages(64)
    os.chown(node(address), 0, USER)
    os.chmod(node(address), 0o660)
    h.check("huge true" in probe("look", address, user=USER, memlock=64 * MIB), "no hugepages")
    hugepages(0)
    # Ordinary pages count twice: the arena locks them, and so does VFIO.
    h.check("huge false" in probe("look", address, user=USER, memlock=128 * MIB), "hugepages out of nothing")


@scenario
def without_an_iommu_it_is_refused():
    address = pci.controllers()[0]
    said = probe("look", address, ok=(1,))
    h.check("stands behind no IOMMU" in said and "intel_iommu=on" in said, said)


if __name__ == "__main__":
    run(sys.argv[1:])
