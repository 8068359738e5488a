"""The product on an emulated NVMe disk through the kernel's own driver: one gateway and three storage processes, each
on a namespace."""

import pathlib
import sys

import cluster
import harness as h
import pci
from scenario import run, scenario

SLOW = 300
state = {}


def started():
    if "c" not in state:
        h.s3_soon()
        c = cluster.Cluster(pathlib.Path("/tmp/c"), devices=[f'device = "uring:/dev/nvme0n{i}"' for i in (1, 2, 3)], ready_s=SLOW)
        state["c"] = c.start()
        h.s3(c.endpoint).create_bucket(Bucket="bucket")
    return state["c"]


BODY = {"small": h.payload(700, 1), "unit": h.payload(h.MIB, 2), "large": h.payload(5 * h.MIB + 3, 3)}


def verify(c):
    client = h.s3(c.endpoint, read_timeout=SLOW)
    for key, body in BODY.items():
        h.check(client.get_object(Bucket="bucket", Key=key)["Body"].read() == body, f"{key} came back different")


def put_and_verify(c):
    """The backends of the targets that hold it now."""
    client = h.s3(c.endpoint, read_timeout=SLOW)
    for key, body in BODY.items():
        client.put_object(Bucket="bucket", Key=key, Body=body)
    verify(c)
    return [t["backend"] for t in c.json("status")["targets"]]


def kill_under_load(c):
    """All die in the middle of a large PUT; what was acknowledged before is there after the next start."""
    doomed = h.threading.Thread(target=lambda: h.status_of(lambda: h.s3(c.endpoint).put_object(Bucket="bucket", Key="doomed", Body=h.payload(30 * h.MIB, 4))))
    doomed.start()
    h.time.sleep(1)
    c.kill()
    doomed.join(SLOW)
    h.fsck(["--config", c.config])
    c.start()
    verify(c)


def read_degraded(c):
    """Reads are decoded while one process is down, and `status` says so."""
    c.kill("p2")
    verify(c)
    h.check(c.json("status", ok=(4,))["degraded"], "status does not say degraded")
    c.start("p2")
    verify(c)


@scenario
def put_and_get():
    return ", ".join(put_and_verify(started()))


@scenario
def a_disk_that_is_formatted_is_refused():
    c = started()
    c.kill()
    said = h.cobalt("format", "--config", c.config, ok=(1,), timeout=SLOW).stderr.decode()
    h.check("target t0" in said and "holds another Cobalt target" in said, f"refused without saying why: {said}")


@scenario
def killed_with_everything():
    c = started()
    c.start()
    kill_under_load(c)


@scenario
def read_without_one_target():
    read_degraded(started())


if __name__ == "__main__":
    pci.kernel_nvme("/dev/nvme0n1", "/dev/nvme0n2", "/dev/nvme0n3")
    run(sys.argv[1:], "/tmp/c/*.log")
