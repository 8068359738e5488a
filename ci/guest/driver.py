"""The driver alone on emulated controllers: kinds of namespaces and limits, errors, a frozen disk, resets, removal. `nvme-probe`
holds a controller and does what it is told; faults come from the machine's monitor."""

import collections
import contextlib
import mmap
import os
import pathlib
import re
import subprocess
import sys

import harness as h
import pci
import qmp
from scenario import run, scenario

PROBE = h.BIN.parent / "nvme-probe"
PAGE, KIB, MIB = 4096, 1 << 10, 1 << 20
CC = 0x14  # Controller Configuration.
CACHED, THROUGH = 0, 1
SECTOR = 512
SGLS = pathlib.Path("sgls")  # Written by QEMU: type and length of each SGL that it follows.
DATA_BLOCK, LAST_SEGMENT = "0x0", "0x3"
PATIENCE = 180


class Probe:
    """A controller in the hands of a test."""

    def __init__(self, index, **options):
        self.address = pci.controllers()[index]
        if pci.driver(self.address) != "vfio-pci":
            pci.bind(self.address, "vfio-pci")
        words = [f"{name}={value}" for name, value in options.items()]
        self.popen = subprocess.Popen([PROBE, self.address, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        said = self._line()
        h.check(said == "ready", f"{said}")

    def _line(self):
        # Nothing here waits for ever: what hangs ends with the boot's time.
        line = self.popen.stdout.readline().strip()
        h.check(line, f"the probe ended with {self.popen.poll()}")
        return line

    def answer(self, *words):
        self.popen.stdin.write(" ".join(map(str, words)) + "\n")
        self.popen.stdin.flush()
        return self._line()

    def __call__(self, *words):
        """Does it. What it was told, numbers as such."""
        said = self.answer(*words)
        h.check(said.startswith("ok"), f"{words}: {said}")
        return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", said)} | {"said": said}

    def refused(self, *words):
        """Does it and must not succeed. Why it did not."""
        said = self.answer(*words)
        h.check(said.startswith("error "), f"{words} succeeded: {said}")
        return said.removeprefix("error ")

    def all_of(self, verb, *words, count):
        """The same act `count` times at once; all succeed."""
        self("start", count, verb, *words)
        told = self("wait")
        h.check(told["done"] == count and not told["failed"], f"{verb} {words}: {told['said']}")

    def end(self):
        self.popen.stdin.close()
        self.popen.wait(PATIENCE)


@contextlib.contextmanager
def probe(index, **options):
    """A controller that is shut down afterwards, nothing of it left over."""
    held = Probe(index, **options)
    try:
        yield held
        told = held("counters")
        h.check(not told["unexpected"] and not told["leaked"] and not told["in_flight"], told["said"])
        held("close")
    finally:
        held.end()


monitors = []


def monitor():
    if not monitors:
        monitors.append(qmp.Monitor())
    return monitors[0]


def kernel_log():
    return h.run("dmesg").stdout.decode()


@scenario
def blocks_of_512_and_4096_bytes():
    for index in (CACHED, THROUGH):
        with probe(index) as p:
            for nsid, block in ((1, 512), (2, 4096)):
                told = p("namespace", nsid)
                h.check((told["block"], told["unit"], told["size"]) == (block, PAGE, 64 * MIB), told["said"])
                p("write", nsid, 5 * PAGE, 3 * PAGE, 7)
                p("write", nsid, told["size"] - PAGE, PAGE, 8)
                p("read", nsid, 5 * PAGE, 3 * PAGE, 7)
                p("read", nsid, told["size"] - PAGE, PAGE, 8)
                p("read", nsid, 4 * PAGE, PAGE, 0)
                p("read", nsid, 8 * PAGE, PAGE, 0)
                h.check("outside of the device" in p.refused("write", nsid, told["size"], PAGE, 9), "written past the end")


@scenario
def with_a_write_cache_a_flush_goes_to_the_disk_and_without_one_none_does():
    """Counted in the queue; that it arrives shows where it fails."""
    for index, cached in ((CACHED, 1), (THROUGH, 0)):
        with probe(index) as p:
            for nsid in (1, 2):
                told = p("namespace", nsid)
                h.check(told["cache"] == cached, told["said"])
                p("write", nsid, 0, PAGE, 3)
                before = p("counters")["submitted"]
                p("flush", nsid)
                sent = p("counters")["submitted"] - before
                h.check(sent == cached, f"{cached} flushes are due, not {sent}")
    with probe(CACHED) as p, monitor().errors("c0n2", {"iotype": "flush", "once": True}):
        p("write", 2, 0, PAGE, 4)
        h.check("write fault" in p.refused("flush", 2), "another reason")


@scenario
def what_is_more_than_mdts_is_split():
    """1 MiB, in commands of 8 KiB and of 512 KiB; the controller counts them, too."""
    counted = []
    for index, most in ((THROUGH, 8 * KIB), (CACHED, 512 * KIB)):
        with probe(index) as p:
            h.check(p("namespace", 1)["transfer"] == most, p("namespace", 1)["said"])
            parts = MIB // most
            before, theirs = p("counters"), p("smart")
            p("write", 1, 8 * MIB, MIB, 4)
            between = p("counters")
            h.check(between["submitted"] - before["submitted"] == parts, f"{parts} writes are due: {between['said']}")
            p("read", 1, 8 * MIB, MIB, 4)
            done, told = p("counters")["submitted"] - between["submitted"], p("smart")
            h.check(done == parts, f"{parts} reads are due, not {done}")
            h.check((told["writes"] - theirs["writes"], told["reads"] - theirs["reads"]) == (parts, parts), f"{theirs['said']} then {told['said']}")
            # Not a multiple of it: the last command is smaller.
            p("write", 1, 16 * MIB, most + PAGE, 5)
            p("read", 1, 16 * MIB, most + PAGE, 5)
            p("read", 1, 16 * MIB + most + PAGE, PAGE, 0)
            counted.append(f"{parts} of {most // KIB} KiB")
    return ", ".join(counted)


@scenario
def namespaces_of_one_controller_are_apart():
    with probe(CACHED) as p:
        for nsid in (1, 2):
            p("start", 32, "write", nsid, 4 * MIB, 2 * PAGE, 10 + nsid)
        told = p("wait")
        h.check(told["done"] == 64, told["said"])
        for nsid in (1, 2):
            p.all_of("read", nsid, 4 * MIB, 2 * PAGE, 10 + nsid, count=32)
        p("deallocate", 1, 4 * MIB, 64 * PAGE)
        p.all_of("read", 2, 4 * MIB, 2 * PAGE, 12, count=32)
        h.check("has no namespace 9; it has 1, 2" in p.refused("namespace", 9), "a namespace out of nothing")


@scenario
def one_command_at_a_time():
    """A queue of one: each command is rung alone, and those that wait are not lost."""
    with probe(CACHED, depth=1) as p:
        h.check(p("namespace", 1)["depth"] == 1, p("namespace", 1)["said"])
        before = p("counters")
        p.all_of("write", 1, 24 * MIB, PAGE, 6, count=100)
        p.all_of("read", 1, 24 * MIB, PAGE, 6, count=100)
        after = p("counters")
        rings = after["rings"] - before["rings"]
        h.check(rings == after["submitted"] - before["submitted"] == 200, f"{before['said']} then {after['said']}")


@scenario
def as_many_commands_as_there_are_slots():
    """All 256 at once, and more that wait; a command beyond the queue's end would have been lost or answered twice."""
    with probe(CACHED) as p:
        h.check(p("namespace", 1)["depth"] == 256, p("namespace", 1)["said"])
        before = p("counters")
        p("start", 600, "write", 1, 24 * MIB, PAGE, 8)
        told = p("wait")
        h.check(told["done"] == 600, told["said"])
        p.all_of("read", 1, 24 * MIB, PAGE, 8, count=600)
        after = p("counters")
        rings, commands = (after[name] - before[name] for name in ("rings", "submitted"))
        h.check(commands == 1200 and rings < commands / 8, f"{rings} doorbells for {commands} commands")
        return f"{rings} doorbells for {commands} commands"


@scenario
def a_queue_of_few_entries_goes_round():
    """CAP.MQES is 4 as the driver sees it (QEMU's own never changes): three commands at a time, round and round."""
    with probe(THROUGH, entries=4) as p:
        h.check(p("namespace", 1)["depth"] == 3, p("namespace", 1)["said"])
        p.all_of("write", 1, 24 * MIB, PAGE, 9, count=150)
        p.all_of("read", 1, 24 * MIB, PAGE, 9, count=150)


@scenario
def vectors_of_odd_pieces_at_every_boundary_of_the_list():
    """Pieces of memory that do not follow each other; commands of 1, 2, 3 pages, and of one more and one less than fit."""
    shapes = [(1,), (2,), (1, 1), (1, 2), (3,), (1, 1, 1), (7, 1, 5), (1, 3, 1, 2), (127,), (128,), (129,), (1, 127), (127, 2), (64, 1, 64),
              (5, 250, 1), (255, 2)]
    for index, sgls in ((CACHED, 0), (CACHED, 1), (THROUGH, 1)):
        with probe(index, sgls=sgls) as p:
            for seed, shape in enumerate(shapes, 20):
                offset, pages = 32 * MIB + seed * 3 * PAGE, sum(shape)
                p("write", 2, offset - PAGE, (pages + 2) * PAGE, 1)
                p("write", 2, offset, ",".join(str(n * PAGE) for n in shape), seed)
                p("read", 2, offset, pages * PAGE, seed)
                p("read", 2, offset - PAGE, PAGE, 1)
                p("read", 2, offset + pages * PAGE, PAGE, 1)
            for lens in ("512", f"{PAGE},512", f"{PAGE + 512},{PAGE - 512}"):
                h.check("unaligned" in p.refused("write", 2, 0, lens, 1), f"{lens} was written")
    return f"{len(shapes)} shapes on both controllers, by PRPs and by SGLs"


def followed():
    """How many SGLs of each type QEMU has followed."""
    types = re.findall(r"map_sgl type (0x[0-9a-f]+)", SGLS.read_text() if SGLS.exists() else "")
    return collections.Counter(types)


@scenario
def what_needs_a_list_goes_by_sgls_or_by_prps():
    """The same vectors, written by one and read by the other: QEMU tells which they were. Two pages and less are PRPs in any case."""
    shapes = [(1,), (2,), (1, 1), (3,), (1, 2), (1, 1, 1), (32,), (7, 1, 5), (64, 1, 63), (1,) * 120]
    listed = sum(len(shape) > 1 and sum(shape) > 2 for shape in shapes)
    longer = sum(sum(shape) > 2 for shape in shapes)
    for writes, reads in ((1, 0), (0, 1)):
        for sgls, verb in ((writes, "write"), (reads, "read")):
            with probe(CACHED, sgls=sgls) as p:
                before, known = followed(), p("counters")
                for seed, shape in enumerate(shapes, 100 + 50 * writes):
                    pieces = [n * PAGE for n in shape]
                    p(verb, 2, seed * 128 * PAGE % (48 * MIB), ",".join(map(str, pieces)) if verb == "write" else sum(pieces), seed)
                after, told = followed(), p("counters")
                ours = tuple(told[name] - known[name] for name in ("sgl_blocks", "sgl_lists"))
                theirs = tuple((after - before)[kind] for kind in (DATA_BLOCK, LAST_SEGMENT))
                lists = listed if verb == "write" else 0
                due = (longer - lists, lists) if sgls else (0, 0)
                h.check(ours == theirs == due, f"{verb}, sgls={sgls}: blocks and lists {due} are due; sent {ours}, seen {theirs}")
    return f"{longer} vectors of {len(shapes)}, {listed} of them in several pieces"


@scenario
def deallocated_blocks_read_as_the_namespace_promises():
    with probe(CACHED) as p:
        for nsid in (1, 2):
            told = p("namespace", nsid)
            h.check(told["deallocates"] == 1 and told["deallocated"] == 0, told["said"])
            p("write", nsid, 40 * MIB, MIB, 30)
            p("deallocate", nsid, 40 * MIB + 64 * KIB, 512 * KIB)
            p("read", nsid, 40 * MIB, 64 * KIB, 30)
            p("read", nsid, 40 * MIB + 64 * KIB, 512 * KIB, 0)
            p("read", nsid, 40 * MIB + 576 * KIB, 448 * KIB, 30)
            p("write", nsid, 40 * MIB + 64 * KIB, PAGE, 31)
            p("read", nsid, 40 * MIB + 64 * KIB, PAGE, 31)


@scenario
def namespaces_that_cannot_be_used_are_refused_with_the_reason():
    with probe(CACHED) as p:
        metadata, zoned = p.refused("namespace", 3), p.refused("namespace", 4)
        h.check("namespace 3 has 8 bytes of metadata with each block" in metadata and "--ms=0" in metadata, metadata)
        h.check("namespace 4 is zoned" in zoned, zoned)
        p("write", 1, 0, PAGE, 2)
    return zoned


@scenario
def memory_that_is_not_mapped_is_out_of_the_device_s_reach():
    """The driver is told that memory is mapped which is not: the IOMMU blocks the write to it and says so."""
    h.run("dmesg", "--clear")
    with probe(CACHED) as p:
        p("write", 1, 0, MIB, 40)
        told = p("blocked", 1, 41)
        h.check(told["untouched"] == 1, f"the device wrote where it may not: {told['said']}")
        p("read", 1, 0, MIB, 40)
        line = re.search(rf"DMAR:.*DMA Write.*\[{p.address[5:]}\].*fault addr 0x40000[0-9a-f]+.*", kernel_log())
        h.check(line, f"no word of it in the kernel's log: {kernel_log()[-800:]}")
    return line[0]


@scenario
def a_read_that_fails_fails_alone():
    with probe(CACHED) as p:
        p("write", 1, 48 * MIB, MIB, 50)
        before = p("counters")
        with monitor().errors("c0n1", {"iotype": "read", "sector": (48 * MIB + 5 * PAGE) // SECTOR}):
            for _ in range(2):
                why = p.refused("read", 1, 48 * MIB + 5 * PAGE, PAGE, 50)
                h.check("unrecovered read error" in why, why)
            p("read", 1, 48 * MIB, 5 * PAGE, 50)
            p("read", 1, 48 * MIB + 6 * PAGE, 10 * PAGE, 50)
            p("write", 1, 48 * MIB + 5 * PAGE, PAGE, 51)
        p("read", 1, 48 * MIB + 5 * PAGE, PAGE, 51)
        after = p("counters")
        h.check(after["retries"] == before["retries"] and not after["resets"], f"it was tried again: {after['said']}")
    return why


@scenario
def a_write_that_fails_is_told_and_not_tried_again():
    """It would succeed the second time: so it was not tried a second time."""
    with probe(CACHED) as p:
        for fua in ((), ("fua",)):
            p("write", 2, 48 * MIB, PAGE, 60)
            before = p("counters")
            with monitor().errors("c0n2", {"iotype": "write", "sector": 48 * MIB // SECTOR, "once": True}):
                why = p.refused("write", 2, 48 * MIB, PAGE, 61, *fua)
                after = p("counters")
                h.check("write fault" in why, why)
                h.check(after["submitted"] - before["submitted"] == 1 and not after["retries"], f"it was tried again: {after['said']}")
                p("write", 2, 48 * MIB, PAGE, 62, *fua)
            p("read", 2, 48 * MIB, PAGE, 62)
    return why


@scenario
def a_flush_that_fails_is_told_and_not_tried_again():
    with probe(CACHED) as p:
        with monitor().errors("c0n1", {"iotype": "flush", "once": True}):
            p("write", 1, 0, PAGE, 70)
            before = p("counters")
            why = p.refused("flush", 1)
            after = p("counters")
            h.check("write fault" in why, why)
            h.check(after["submitted"] - before["submitted"] == 1 and not after["retries"], f"it was tried again: {after['said']}")
            p("flush", 1)
    return why


@scenario
def what_may_be_tried_again_is():
    """A deallocation fails with an internal error, which says nothing about the next attempt."""
    with probe(CACHED) as p:
        p("write", 1, 0, MIB, 80)
        with monitor().errors("c0n1", {"iotype": "discard", "once": True}):
            p("deallocate", 1, 0, MIB)
        h.check(p("counters")["retries"] == 1, p("counters")["said"])
        p("read", 1, 0, MIB, 0)


@scenario
def a_disk_that_freezes_and_goes_on_before_the_deadline_delays_only():
    with probe(CACHED) as p:
        monitor().freeze("c0ns1")
        p("start", 40, "write", 1, MIB, 2 * PAGE, 90)
        p("write", 2, 0, PAGE, 1)  # The other namespace is not frozen, so the first has come to rest.
        h.check(p("counters")["in_flight"] >= 39, f"the disk is not frozen: {p('counters')['said']}")
        monitor().freeze("c0ns1", False)
        told = p("wait")
        h.check(told["done"] == 40, told["said"])
        p.all_of("read", 1, MIB, 2 * PAGE, 90, count=40)
        told = p("counters")
        h.check(not told["aborts"] and not told["resets"], told["said"])


@scenario
def a_disk_that_freezes_past_the_deadline_is_asked_to_abort():
    """QEMU says "not aborted" to every abort: then the command's own completion counts, when it comes."""
    with probe(CACHED, io_ms=1500, abort_ms=100000) as p:
        monitor().freeze("c0ns1")
        p("start", 12, "write", 1, 2 * MIB, PAGE, 91)
        p("until", "aborts", 1)
        monitor().freeze("c0ns1", False)
        told = p("wait")
        h.check(told["done"] == 12, told["said"])
        p.all_of("read", 1, 2 * MIB, PAGE, 91, count=12)
        told = p("counters")
        h.check(told["aborts"] >= 1 and not told["resets"], told["said"])
        return f"{told['aborts']} aborts"


@scenario
def a_disk_that_freezes_for_longer_has_its_controller_reset():
    """Every command is answered once, by another completion than the one it waited for first; then everything goes on."""
    with probe(CACHED, io_ms=2000, abort_ms=2000) as p:
        p("write", 1, 3 * MIB, 64 * PAGE, 92)
        p("flush", 1)
        monitor().freeze("c0ns1")
        p("start", 20, "read", 1, 3 * MIB, PAGE, 92)
        p("start", 20, "write", 1, 4 * MIB, PAGE, 93)
        p("until", "resets", 1)
        monitor().freeze("c0ns1", False)
        told = p("wait")
        h.check((told["done"], told["failed"]) == (40, 0), told["said"])
        p.all_of("read", 1, 4 * MIB, PAGE, 93, count=20)
        p("flush", 1)
        told = p("counters")
        h.check(1 <= told["resets"] <= 3 and told["retries"] >= 1, told["said"])
        return f"{told['resets']} resets, {told['retries']} commands issued again"


@scenario
def a_disk_that_stays_frozen_is_given_up():
    """Everybody is told, and the other namespaces of the controller with it."""
    with probe(CACHED, io_ms=500, abort_ms=500) as p:
        monitor().freeze("c0ns1")
        try:
            p("start", 20, "write", 1, 5 * MIB, PAGE, 94)
            told = p("wait")
            h.check(told["done"] + told["failed"] == 20 and "(Timeout)" in told["said"], told["said"])
            why = p.refused("write", 2, 0, PAGE, 1)
            h.check("given up after 4 resets" in why, why)
        finally:
            monitor().freeze("c0ns1", False)
    with probe(CACHED) as p:
        p("write", 1, 5 * MIB, PAGE, 95)
        p("read", 1, 5 * MIB, PAGE, 95)
    return why


def disable(address):
    """Resets a controller behind its driver's back: CC.EN is cleared from another process."""
    registers = os.open(pci.DEVICES / address / "resource0", os.O_RDWR | os.O_SYNC)
    try:
        with mmap.mmap(registers, PAGE) as bar:
            bar[CC:CC + 4] = bytes(4)
    finally:
        os.close(registers)


@scenario
def a_reset_from_outside_under_load_loses_no_command():
    """No cache, so nothing is lost with it: four times, every command is answered, and every byte is right."""
    with probe(THROUGH) as p:
        for nsid in (1, 2):
            p("load", nsid, 32, 4 * PAGE)
        for times in range(1, 5):
            # Only a controller that is up again brings rounds to their end.
            p("until", "rounds", p("counters")["rounds"] + 100)
            disable(p.address)
            p("until", "resets", times)
        p("until", "rounds", p("counters")["rounds"] + 100)
        told = p("stop")
        h.check(told["failed"] == 0, told["said"])
        counters = p("counters")
        h.check(counters["resets"] == 4 and counters["retries"] >= 4, counters["said"])
        p("flush", 1)
        return f"{told['rounds']} writes read back, {counters['retries']} commands issued again, {counters['aborts']} aborts"


@scenario
def after_a_reset_from_outside_no_flush_vouches_for_what_was_cached():
    with probe(CACHED) as p:
        p("write", 1, 0, PAGE, 96)
        resets = p("counters")["resets"]
        disable(p.address)
        p("until", "resets", resets + 1)
        p("read", 1, 0, PAGE, 96)
        p("write", 1, 0, PAGE, 97)
        why = p.refused("flush", 1)
        h.check("they may be lost" in why, why)
    return why


@scenario
def pulled_out_under_load():
    """The slot's power goes, and the device with it. Alone in its boot, which ends before VFIO has let go of what is not there:
    that takes it more than a minute."""
    p = Probe(CACHED)
    for nsid in (1, 2):
        p("load", nsid, 32, 4 * PAGE)
    p("until", "rounds", 100)
    port = (pci.DEVICES / p.address).resolve().parent.name
    h.run("setpci", "-s", port, "CAP_EXP+18.w=0700:0700")
    told = p("stop")
    h.check(told["failed"] == 64, f"every worker is told: {told['said']}")
    h.check("the device is gone" in told["said"], told["said"])
    h.check("the device is gone" in p.refused("write", 1, 0, PAGE, 1), "it is still there")
    counters = p("counters")
    h.check(not counters["in_flight"] and not counters["unexpected"] and not counters["leaked"], counters["said"])
    h.check(p.popen.poll() is None, "the process died with its disk")
    return f"{told['rounds']} writes read back before it"


if __name__ == "__main__":
    run(sys.argv[1:])
    monitor()("quit")
