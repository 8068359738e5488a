"""The product on a disk whose every write QEMU writes down, killed twice under load. What clients asked for and were told is
written to where the host finds it, each with the length of the log at that moment: the host makes every disk that a power
cut could have left, and judges it (ci/logged.py)."""

import os
import pathlib
import struct
import sys
import threading

import cluster
import harness as h
import pci
from scenario import run, scenario

SLOW = 120
LOG, CLIENT = pathlib.Path("disk.log"), pathlib.Path("client")
# Each life has so many answers, then a checkpoint if none came with them, and a few more.
WORKERS, KEYS, ANSWERS, AFTER, MOST = 8, 5, 60, 15, 400
# Inside of a journal record, whose room is what starts a checkpoint, and beside it; one unit, and several.
SIZES = [700, 16_384, 40_000, 14_000, 150_000, 16_000, 16_384, 15_000]
state = {"content": 0}
lock = threading.Lock()

CONFIG = """[cluster]
secret_file = "cluster.secret"
layout = "1+0"
unit_size = "64KiB"

[[process]]
name = "p0"
listen = ["tcp://127.0.0.1:{0}"]
admin = "127.0.0.1:{1}"
cas = true
arena = "64MiB"
cache = "4MiB"

[[process.target]]
name = "t0"
device = "nvme:{2}/1?fua=false"

[process.s3]
listen = "127.0.0.1:{3}"
region = "us-east-1"
"""


def length():
    """Of the log, as the host's file system has it: no cache lies between."""
    return LOG.stat().st_size


def note(line):
    with lock:
        with open(CLIENT, "a") as client:
            client.write(line + "\n")


def started():
    config = pathlib.Path("/tmp/c/cobalt.toml")
    if "process" not in state:
        h.s3_soon()
        address = pci.controllers()[0]
        h.run(h.ROOT / "hugepages/setup", "--pages", 200, "--device", address, env=h.environment(COBALT_BIN=h.BIN))
        config.parent.mkdir()
        ports = cluster.free_ports(3)
        config.write_text(CONFIG.format(ports[0], ports[1], address, ports[2]))
        h.cobalt("format", "--config", config, timeout=SLOW)
        note(f"laid-out {length()}")
    again = "process" in state
    state["process"] = h.Process(["server", "--config", config, "--process", "p0"], "/tmp/c/p0.log", ready_s=SLOW).wait_ready()
    if not again:
        h.s3(state["process"].s3).create_bucket(Bucket="bucket")
    return state["process"]


def body(content, size):
    """Says of each of its blocks whose it is, and which."""
    blocks = (struct.pack("<II", content, at) * 512 for at in range(-(-size // 4096)))
    return b"".join(blocks)[:size]


def work(worker, life, answers, end):
    client = h.s3(state["process"].s3, read_timeout=SLOW)
    turn = worker * 3 + life
    while not end.is_set():
        turn += 1
        key = f"k{worker}-{turn % KEYS}"
        with lock:
            state["content"] += 1
            content = state["content"]
        if turn % 7 == 6:
            ask, words = (lambda: client.delete_object(Bucket="bucket", Key=key)), f"delete {key} 0 0"
        else:
            size = SIZES[turn % len(SIZES)]
            ask, words = (lambda: client.put_object(Bucket="bucket", Key=key, Body=body(content, size))), f"put {key} {content} {size}"
        begun = length()
        status = h.status_of(ask)
        if status in (200, 204):
            note(f"{words} {begun} {length()}")
            answers.release()
        else:
            note(f"{words} {begun} -")
            h.check(status is None or end.is_set(), f"{words}: {status}")


def checkpoints():
    return h.cobalt_json("status", "--config", "/tmp/c/cobalt.toml")["counters"]["checkpoints"]


def life(number):
    process, answers, end = started(), threading.Semaphore(0), threading.Event()
    workers = [threading.Thread(target=work, args=(n, number, answers, end)) for n in range(WORKERS)]
    for worker in workers:
        worker.start()

    def wait(count):
        for _ in range(count):
            h.check(answers.acquire(timeout=SLOW), "no answer comes")
        return count

    told = wait(ANSWERS)
    while not checkpoints():
        h.check(told < MOST, f"{told} answers, and no checkpoint")
        told += wait(AFTER)
    told += wait(AFTER)
    done = checkpoints()
    end.set()
    process.kill()
    for worker in workers:
        worker.join(SLOW)
    return f"killed after {told} answers and {done} checkpoints, the log at {length() >> 20} MiB"


@scenario
def killed_under_load():
    return life(0)


@scenario
def killed_again_after_a_recovery():
    return life(1)


if __name__ == "__main__":
    run(sys.argv[1:], "/tmp/c/*.log")
