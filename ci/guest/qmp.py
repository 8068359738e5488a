"""The guest's own machine, commanded from inside: errors of a disk switched on and off, a disk frozen (machine.qmp)."""

import contextlib
import json
import pathlib

import harness as h
import pci

PORTS = pathlib.Path("/sys/class/virtio-ports")


class Monitor:
    """QEMU's monitor, a command and its answer at a time."""

    def __init__(self):
        pci.modprobe("virtio_console")
        port = h.eventually("the monitor's port appears", self._port, 30)
        self.stream = open(port, "r+b", buffering=0)
        self.lines = open(self.stream.fileno(), "rb", closefd=False)
        self("qmp_capabilities")

    @staticmethod
    def _port():
        names = [p for p in PORTS.glob("*/name") if p.read_text().strip() == "qmp"] if PORTS.exists() else []
        return pathlib.Path("/dev") / names[0].parent.name if names else None

    def __call__(self, command, **arguments):
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self.lines:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            h.check("error" not in answer, f"{command} {arguments}: {answer.get('error')}")
        raise h.Failure("the monitor is gone")

    @contextlib.contextmanager
    def errors(self, node, *rules):
        """While the block runs, requests of the disk on block node `node` fail that fit one of `rules`."""
        rules = [{"event": "none", "errno": 5, **rule} for rule in rules]
        self("blockdev-add", **{"driver": "blkdebug", "node-name": f"{node}-errors", "image": f"{node}-file", "discard": "unmap",
                                "inject-error": rules})
        self._under(node, f"{node}-errors")
        try:
            yield
        finally:
            self._under(node, f"{node}-file")
            self("blockdev-del", **{"node-name": f"{node}-errors"})

    def _under(self, node, file):
        self("blockdev-reopen", options=[{"driver": "raw", "node-name": node, "file": file, "discard": "unmap"}])

    def freeze(self, device, frozen=True):
        """A disk that takes one more request and then, for years, none. False: it goes on."""
        self("block_set_io_throttle", id=device, bps=int(frozen), bps_rd=0, bps_wr=0, iops=0, iops_rd=0, iops_wr=0)
