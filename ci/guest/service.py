"""The daemon under a running systemd, in the steps of docs/operations/nvme.md: an ordinary user, its unit, the host's unit, and
what is left of it all after a boot."""

import json
import pathlib
import shutil
import subprocess
import sys

import cluster
import harness as h
import pci
from scenario import run, scenario

SLOW = 120
PROGRAM, HOME, UNIT = pathlib.Path("/usr/local/bin/cobalt"), pathlib.Path("/var/lib/cobalt"), "cobalt@p0.service"
CONFIG = HOME / "cobalt.toml"
DROP_IN = pathlib.Path(f"/etc/systemd/system/{UNIT}.d/test.conf")
KEY = HOME / "key.json"
KEPT = pathlib.Path("kept.tar")
# What an operator made, and a disk would have kept.
KEEP = ["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/security/limits.d", "etc/systemd/system/multi-user.target.wants",
        "etc/systemd/system/cobalt-host.service", "etc/systemd/system/cobalt@.service", "var/lib/cobalt", "usr/local/bin/cobalt"]
BODY = h.payload(3 * h.MIB + 7, 1)

TOML = """[cluster]
secret_file = "cluster.secret"
layout = "1+0"

[[process]]
name = "p0"
listen = ["tcp://127.0.0.1:{0}"]
admin = "127.0.0.1:{1}"
cas = true

[[process.target]]
name = "t0"
device = "nvme:{3}/1"

[process.s3]
listen = "127.0.0.1:{2}"
region = "us-east-1"
"""


def systemctl(*args, ok=(0,)):
    return h.run("systemctl", *args, ok=ok, timeout=SLOW).stdout.decode().strip()


def told(name):
    return systemctl("show", "--value", "-p", name, UNIT)


def journal():
    return h.run("journalctl", "--no-pager", "-o", "cat", "-u", UNIT).stdout.decode()


def as_user(*args, **kw):
    return h.run("runuser", "-u", "cobalt", "--", *args, timeout=SLOW, **kw)


def client():
    key = json.loads(KEY.read_text())
    return h.s3(key["s3"], read_timeout=SLOW, keys=(key["access_key"], key["secret_key"]))


def verify():
    h.check(client().get_object(Bucket="bucket", Key="object")["Body"].read() == BODY, "it came back different")


@scenario
def installed_as_it_is_written_it_runs_as_an_ordinary_user():
    h.s3_soon()
    address = pci.controllers()[0]
    shutil.copy(h.BIN, PROGRAM)
    h.run("useradd", "--system", "cobalt")
    h.run(h.ROOT / "hugepages/setup", "--pages", 128, "--device", address, "--user", "cobalt", "--persist", env=h.environment(COBALT_BIN=PROGRAM))
    h.run("install", "-d", "-o", "cobalt", "-g", "cobalt", "-m", "700", HOME)
    CONFIG.write_text(TOML.format(*cluster.free_ports(3), address))
    as_user(PROGRAM, "format", "--config", CONFIG)
    shutil.copy(h.ROOT / "docs/operations/cobalt@.service", "/etc/systemd/system")
    systemctl("daemon-reload")
    systemctl("enable", "--now", UNIT)
    pid = told("MainPID")
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    h.check("0" not in status["Uid"].split() and int(status["CapBnd"], 16) == 0, f"{status['Uid']} {status['CapBnd']}")
    h.check(status["NoNewPrivs"].strip() == "1" and status["Seccomp"].strip() == "2", f"{status['NoNewPrivs']} {status['Seccomp']}")
    KEY.write_bytes(as_user(PROGRAM, "key", "create", "--config", CONFIG, "-o", "json").stdout)
    client().create_bucket(Bucket="bucket")
    client().put_object(Bucket="bucket", Key="object", Body=BODY)
    verify()
    h.check(h.cobalt_json("device", "status", address)["health"], "root is not told how the disk is")
    h.run("tar", "cf", KEPT, "--blocking-factor=1024", "-C", "/", *KEEP)
    return f"{status['VmLck'].strip()} locked"


@scenario
def stopped_it_has_closed_everything_and_starts_again():
    systemctl("stop", UNIT)
    h.check((told("Result"), told("ExecMainStatus")) == ("success", "0"), f"{told('Result')} {told('ExecMainStatus')}: {journal()[-2000:]}")
    said = as_user(PROGRAM, "fsck", "--config", CONFIG, "--data").stdout.decode()
    systemctl("start", UNIT)
    verify()
    return said.strip().splitlines()[-1]


@scenario
def killed_it_is_started_again():
    pid = told("MainPID")
    systemctl("kill", "--signal=KILL", UNIT)
    h.eventually("systemd starts it again", lambda: told("ActiveState") == "active" and told("MainPID") not in ("0", pid), SLOW)
    verify()
    h.check(told("NRestarts") == "1", told("NRestarts"))


def starts_and_says(what, lines):
    """Starts the service with further lines in its unit, until the journal says `what`."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text(f"[Service]\n{lines}\n")
    try:
        systemctl("daemon-reload")
        systemctl("start", "--no-block", UNIT)
        said = lambda: [line.strip() for line in journal().splitlines() if what in line]
        return h.eventually(f"with {lines} it says `{what}`", said, SLOW)[0]
    finally:
        shutil.rmtree(DROP_IN.parent)
        systemctl("daemon-reload")


@scenario
def what_the_unit_takes_away_is_away():
    """With less of locked memory and of devices than it needs, it says what is missing."""
    group = pci.group(pci.controllers()[0])
    systemctl("stop", UNIT)
    said = [starts_and_says("memlock limit is 64 MiB", "LimitMEMLOCK=64M")]
    systemctl("stop", UNIT)
    said.append(starts_and_says(f"/dev/vfio/{group}", "DeviceAllow=\nDeviceAllow=/dev/vfio/vfio rw"))
    systemctl("stop", UNIT)
    said.append(starts_and_says("nobody", f"ExecStart=\nExecStart={PROGRAM} server --config {CONFIG} --process nobody"))
    h.eventually("it has failed", lambda: told("ActiveState") == "failed", SLOW)
    h.time.sleep(3)
    h.check(told("ActiveState") == "failed" and told("NRestarts") == "0", "a configuration that is refused was tried again")
    systemctl("start", UNIT)
    verify()
    return "; ".join(said)


@scenario
def after_a_boot_it_runs_again():
    h.eventually("the daemon is active", lambda: told("ActiveState") == "active", SLOW, every=1)
    h.check(systemctl("is-active", "cobalt-host.service") == "active", "the host's unit is not active")
    verify()
    systemctl("stop", UNIT)
    as_user(PROGRAM, "fsck", "--config", CONFIG, "--data")


def end(how, names):
    run(names)
    with open("journal", "ab") as all_of_it:
        subprocess.run(["journalctl", "--no-pager", "-o", "short-monotonic"], stdout=all_of_it, check=True)
    systemctl("--no-block", how)


if __name__ == "__main__":
    if KEPT.exists():
        end("poweroff", sys.argv[-1:])
    else:
        end("reboot", sys.argv[1:-1])
