"""The whole product on its own driver: a gateway and three storage processes, each with a controller of its own through
VFIO; meta and data of the first on two namespaces."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import cluster
import harness as h
import pci
import qmp
from block import BODY, SLOW, kill_under_load, put_and_verify, read_degraded, verify
from scenario import run, scenario

state = {}


def prepared():
    """Three controllers with vfio-pci and hugepages for everybody, by the host's own tool."""
    if "addresses" not in state:
        h.s3_soon()
        addresses = pci.controllers()[:3]
        h.run(h.ROOT / "hugepages/setup", "--pages", 700, *[w for a in addresses for w in ("--device", a)], env=h.environment(COBALT_BIN=h.BIN))
        state["addresses"] = addresses
    return state["addresses"]


def started():
    if "c" not in state:
        first, second, _ = prepared()
        devices = [f'meta = "nvme:{first}/1"\ndata = "nvme:{first}/2"', f'device = "nvme:{second}/1"', 'device = "nvme:serial=gamma/1"']
        state["c"] = cluster.Cluster(pathlib.Path("/tmp/c"), devices=devices, ready_s=SLOW)
        state["c"].start()
        h.s3(state["c"].endpoint).create_bucket(Bucket="bucket")
    return state["c"]


def monitor():
    if "monitor" not in state:
        state["monitor"] = qmp.Monitor()
    return state["monitor"]


@scenario
def put_and_get_on_the_driver():
    backends = put_and_verify(started())
    h.check(all(b.startswith("nvme ") for b in backends), f"{backends}")
    return ", ".join(backends)


@scenario
def meta_and_data_on_two_namespaces_and_in_two_regions_of_one():
    """The disks count what was written to them: of the first target the data's as many bytes as half of the object, the meta's some."""
    c = started()

    def written():
        rows = monitor()("query-blockstats")
        return {row["qdev"]: row["stats"]["wr_bytes"] for row in rows if row.get("qdev")}

    before = written()
    h.s3(c.endpoint, read_timeout=SLOW).put_object(Bucket="bucket", Key="split", Body=BODY["large"])
    after = written()
    meta, data, both = (after[name] - before[name] for name in ("c0ns1", "c0ns2", "c1ns1"))
    half = len(BODY["large"]) // 2
    h.check(0 < meta < half <= data, f"{meta} bytes to meta's namespace, {data} to data's, of {half}")
    h.check(both > half, f"{both} bytes to the namespace of both")
    return f"meta {meta} bytes, data {data}; both in one {both}"


@scenario
def an_idle_process_sleeps():
    """Done when 3 of the issue: at most a hundredth of a core, and the first I/O after it completes."""
    c = started()
    process, seconds = c.processes["p1"], 5

    def share():
        before = process.cpu_s()
        h.time.sleep(seconds)
        return (process.cpu_s() - before) / seconds

    # What the host takes from the machine counts as the process's: a loaded one gets further tries.
    shares = [share()]
    while shares[-1] > 0.01 and len(shares) < 5:
        shares.append(share())
    verify(c)
    told = ", ".join(f"{s:.2%}" for s in shares)
    h.check(shares[-1] <= 0.01, f"an idle process takes {told} of a core")
    return f"{told} of an emulated core"


@scenario
def its_owner_tells_how_a_disk_is():
    c = started()
    first, second, _ = state["addresses"]
    told = h.cobalt_json("device", "status", second)
    h.check(told["serial"] == "beta" and told["state"] == "ready" and told["counters"]["commands"] > 0, f"{told}")
    h.check([n["uses"] for n in told["namespaces"]] == [["target t1"]], f"{told['namespaces']}")
    health = told["health"]
    # The emulated disk gives no spare.
    h.check((health["temperature"], health["used"], health["critical_warnings"]) == (50, 0, []) and health["written_bytes"] > 0, f"{health}")
    said = h.cobalt("device", "status").stdout.decode()
    h.check(said.count("temperature: 50 °C") == 3 and said.count("target t0") == 2, said)
    c.kill("p1")
    alone = h.cobalt_json("device", "status", second)
    c.start("p1")
    # Its serial number is known if the kernel's driver had it before.
    h.check(alone["health"] is None and "no process" in alone["unknown"] and alone["serial"] in ("", "beta"), f"{alone}")
    return next(line.strip() for line in said.splitlines() if "temperature" in line)


@scenario
def a_controller_in_use_is_refused_and_its_owner_named():
    c = started()
    said = h.cobalt("device", "unbind", state["addresses"][1], ok=(1,)).stderr.decode()
    h.check(f"process {c.processes['p1'].pid} (cobalt)" in said, said)
    said = h.run(h.BIN, "fsck", "--config", c.config, "t1", ok=(1,), timeout=SLOW)
    h.check(f"held by process {c.processes['p1'].pid}" in (said.stdout + said.stderr).decode(), said)


@scenario
def killed_under_load():
    kill_under_load(started())


@scenario
def a_disk_that_cannot_read_is_decoded_around():
    """Of the first target, data's namespace alone: its target stays."""
    c = started()

    def decoded():
        return c.json("status")["counters"]["client_units_decoded"]

    before = decoded()
    with monitor().errors("c0n2", {"iotype": "read"}):
        verify(c)
        count = decoded() - before
        h.check(count > 0, "no unit was decoded: the disk was not read")
    verify(c)
    status = c.json("status")
    h.check(all(t["up"] for t in status["targets"]) and not status["degraded"], f"a target went with it: {status}")
    h.check(decoded() - before == count, "units are decoded though the disk reads again")
    return f"{count} units decoded"


def fail_writes(c, rule):
    """Once, on the second target's disk: a second attempt would succeed, so none was made. The process lives, and a restart
    finds out what the disk holds."""
    with monitor().errors("c1n1", rule):
        h.status_of(lambda: h.s3(c.endpoint, read_timeout=SLOW).put_object(Bucket="bucket", Key="while", Body=BODY["unit"]))
        rows = h.eventually("the target has failed", lambda: {t["name"]: t for t in c.json("status")["targets"] if not t["up"]}, SLOW)
    h.check(list(rows) == ["t1"], f"others failed: {rows}")
    h.check("write fault" in json.dumps(rows["t1"]), f"without the reason: {rows['t1']}")
    verify(c)
    h.check(c.json("status", ok=(4,))["degraded"], "status does not say degraded")
    h.check(c.processes["p1"].alive(), "the process died with its target")
    c.kill("p1")
    c.start("p1")
    verify(c)
    h.check(not c.json("status", ok=(0,))["degraded"], "it is still degraded")


@scenario
def a_write_that_fails_fails_its_target_and_s3_answers_degraded():
    fail_writes(started(), {"iotype": "write", "once": True})


@scenario
def a_flush_that_fails_fails_its_target_and_s3_answers_degraded():
    fail_writes(started(), {"iotype": "flush", "once": True})


@scenario
def a_serial_number_is_found_while_others_hold_theirs():
    """Each of them may be the one: asked in turn, and waited for together, not one after the other."""
    c = started()
    c.kill("p2")
    began = h.time.monotonic()
    c.start("p2")
    took = h.time.monotonic() - began
    h.check(took < 15, f"{took:.1f} s: it waited for the controllers of others")
    return f"{took:.1f} s"


@scenario
def read_without_one_controller():
    read_degraded(started())


def wanted_back():
    """Asks p1's process for its device: VFIO's request."""
    device = pci.DEVICES / state["addresses"][1]
    return subprocess.Popen(["sh", "-c", f"echo {device.name} >{device}/driver/unbind"])


def let_go(c, unbind):
    """It was let go, and its target is down without being asked for anything, and no other. Then all is as before. What status said."""
    unbind.wait(120)
    h.check(c.processes["p1"].alive(), "the process died with its target")
    h.check(pci.driver(state["addresses"][1]) is None, "the device was not let go")
    pci.bind(state["addresses"][1], "vfio-pci")

    def down():
        return {t["name"]: t["why"] for t in c.json("status", ok=(0, 4))["targets"] if not t["up"]}

    h.eventually("that target is down, and no other", lambda: list(down()) == ["t1"], SLOW)
    why = down()["t1"]
    c.processes["p1"].kill()
    c.start("p1")
    verify(c)
    return why


@scenario
def an_idle_target_whose_disk_is_gone_is_shown_failed():
    """No operation of the store tells it: the driver does."""
    why = let_go(started(), wanted_back())
    h.check("the device is gone" in why, why)
    return why


@scenario
def asked_for_under_load_it_becomes_an_error_of_its_target():
    """The device is wanted back (VFIO's request): its process lets go of it, lives on, and reads are decoded."""
    c = started()
    unbind = wanted_back()
    client = h.s3(c.endpoint, read_timeout=SLOW)
    verify(c)
    h.status_of(lambda: client.put_object(Bucket="bucket", Key="while", Body=BODY["unit"]))
    verify(c)
    let_go(c, unbind)


@scenario
def stopped_in_order_it_shuts_the_controllers_down():
    c = started()
    for name in reversed(cluster.ALL):  # The gateway first: it closes its session with the catalogue.
        c.processes[name].terminate(120)
    h.fsck(["--config", c.config])
    c.start()
    verify(c)


def starts_and_says(what, server):
    """Starts a server until it says `what`. The line in which it does."""
    process = subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told = []
    try:
        for line in process.stdout:
            if what in line:
                return line
            told.append(line)
        raise h.Failure(f"it ended without `{what}`: {''.join(told)}")
    finally:
        process.kill()
        process.wait(60)


@scenario
def an_ordinary_user_runs_it():
    c = started()
    c.kill()
    addresses = state["addresses"]
    for address in addresses:
        os.chown(f"/dev/vfio/{pci.group(address)}", 0, 1000)
        os.chmod(f"/dev/vfio/{pci.group(address)}", 0o660)
    h.run("chown", "-R", "1000:1000", "/tmp/c")
    server = [h.BIN, "server", "--config", c.config, "--process", "p1"]
    as_user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    starts_and_says("memlock limit is 64 MiB", ["prlimit", "--memlock=67108864:67108864", *as_user, *server])
    full = subprocess.Popen(["prlimit", "--memlock=536870912:536870912", *as_user, *server], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        h.check(full.stdout.readline().startswith("ready"), "not ready")
        status = h.cobalt_json("status", "--config", c.config, ok=(4,))
        up = {t["name"]: t["up"] for t in status["targets"]}
        h.check(up["t1"], f"{status}")
    finally:
        full.send_signal(signal.SIGTERM)
        full.wait(60)
    return "64 MiB of memlock are refused with the figure, 512 MiB do"


@scenario
def what_lies_on_another_disk_is_not_taken_for_the_target():
    """Two controllers changed places: the uuid of the target tells."""
    c = started()
    c.kill()
    first, second, _ = state["addresses"]
    text = c.config.read_text()
    other = pathlib.Path("/tmp/c/swapped.toml")
    other.write_text(text.replace(f"nvme:{second}/1", "nvme:X/1").replace("nvme:serial=gamma/1", f"nvme:{second}/1").replace("nvme:X/1", "nvme:serial=gamma/1"))
    line = starts_and_says("belongs here: check the device path", [h.BIN, "server", "--config", other, "--process", "p1"])
    h.check("target t1" in line, line)
    return line.strip()[-200:]


@scenario
def one_controller_in_two_processes_is_refused():
    c = started()
    text = c.config.read_text().replace("nvme:serial=gamma/1", f"nvme:{state['addresses'][0]}/3")
    other = pathlib.Path("/tmp/c/shared.toml")
    other.write_text(text)
    said = h.cobalt("config", "check", "--config", other, ok=(2,)).stderr.decode()
    h.check("`p0` and `p2` would share" in said and state["addresses"][0] in said, said)


if __name__ == "__main__":
    run(sys.argv[1:], "/tmp/c/*.log")
