"""What the layers in this folder share: starting Cobalt, stopping it in every way, asking it things.

Every process that is started here is ended here, by its own id. Ports are chosen by the system; everything listens
on loopback."""

import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("COBALT_BIN", ROOT / "target/release/cobalt"))
ACCESS, SECRET = "ci-access-key", "ci-secret-key-of-forty-characters-0123456"
MIB = 1 << 20
QUICK = bool(os.environ.get("COBALT_TEST_QUICK"))


class Failure(AssertionError):
    """A promise that did not hold."""


def check(condition, message):
    """Raises with `message` unless `condition` holds. Unlike assert it cannot be switched off."""
    if not condition:
        raise Failure(message)


def environment(**extra):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COBALT_", "AWS_"))}
    env |= {"COBALT_ACCESS_KEY": ACCESS, "COBALT_SECRET_KEY": SECRET, "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    return env | {k: str(v) for k, v in extra.items()}


class Process:
    """One cobalt process, from its start to its end."""

    def __init__(self, args, log, env=None, ready_s=60):
        self.log_path = pathlib.Path(log)
        self.log = open(log, "ab")
        self.popen = subprocess.Popen([str(BIN), *map(str, args)], stdout=subprocess.PIPE, stderr=self.log,
                                      env=env or environment(), text=True)
        self.lines = []
        self.ready = threading.Event()
        self.ready_s = ready_s
        # Before the thread that fills them in: a process may be ready at once.
        self.s3 = self.admin = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.popen.stdout:
            self.lines.append(line)
            match = re.match(r"ready\b(.*)", line)
            if match:
                for word in match.group(1).split():
                    name, _, value = word.partition("=")
                    setattr(self, name, value)
                self.ready.set()
        self.ready.set()

    def wait_ready(self):
        check(self.ready.wait(self.ready_s), f"no ready line within {self.ready_s} s; log: {self.tail()}")
        check(any(l.startswith("ready") for l in self.lines), f"ended before it was ready ({self.popen.poll()}); log: {self.tail()}")
        return self

    def tail(self, lines=15):
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def kill(self):
        if self.alive():
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(30)

    def terminate(self, wait_s=30):
        self.popen.send_signal(signal.SIGTERM)
        code = self.popen.wait(wait_s)
        check(code == 0, f"SIGTERM ended with {code}; log: {self.tail()}")

    def stopped(self):
        """Whether a halt switch has stopped it."""
        try:
            return pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
        except FileNotFoundError:
            return False

    def rss(self):
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise Failure("no VmRSS")

    def cpu_s(self):
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def dev(data_dir, *args, env=None, target_size="256MiB", ready=True):
    """`cobalt dev` on free ports."""
    process = Process(["dev", "--data-dir", data_dir, "--target-size", target_size, "--s3-listen", "127.0.0.1:0",
                       "--admin-listen", "127.0.0.1:0", *args], str(data_dir) + ".log", env)
    return process.wait_ready() if ready else process


def run(*args, ok=(0,), env=None, timeout=120, **kw):
    """Runs a command to its end, and returns what it printed."""
    try:
        done = subprocess.run([str(a) for a in args], env=env or environment(), timeout=timeout, capture_output=True, **kw)
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{' '.join(map(str, args))} did not end within {timeout} s\n{(late.stderr or b'')[-2000:]}") from late
    if ok is not None and done.returncode not in ok:
        raise Failure(f"{' '.join(map(str, args))} exited with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done


def cobalt(*args, **kw):
    return run(BIN, *args, **kw)


def cobalt_json(*args, **kw):
    return json.loads(cobalt(*args, "-o", "json", **kw).stdout)


def fsck(where, data=True):
    """Proves the invariants of stopped targets."""
    return cobalt("fsck", *where, *(["--data"] if data else []), timeout=300)


_making_clients = threading.Lock()  # boto3's session is not for several threads.


def s3(endpoint, read_timeout=60, retries=0, keys=(ACCESS, SECRET), **config):
    with _making_clients:
        import boto3
        from botocore.config import Config
        return boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=keys[0], aws_secret_access_key=keys[1], region_name="us-east-1",
                            config=Config(retries={"max_attempts": retries, "mode": "standard"}, connect_timeout=5, read_timeout=read_timeout,
                                          max_pool_connections=64, signature_version="s3v4", s3={"addressing_style": "path"}, **config))


def s3_soon():
    """The first client reads so much that it takes ten seconds and more in a test machine: another processor has time for it."""
    threading.Thread(target=s3, args=("http://127.0.0.1:1",)).start()


def code_of(error):
    """HTTP status and S3 code of a boto error; (None, class name) where none was answered."""
    response = getattr(error, "response", None)
    if not response:
        return None, type(error).__name__
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"].get("Code", "")


def status_of(call):
    """HTTP status of a boto call, whether it is an answer or a refusal."""
    try:
        return call()["ResponseMetadata"]["HTTPStatusCode"]
    except Exception as error:
        return code_of(error)[0]


def payload(size, seed):
    return random.Random(seed).randbytes(size)


def sha(data):
    return hashlib.sha256(data).hexdigest()


def eventually(what, test, seconds=60, every=0.1):
    """Waits until `test` returns something true."""
    end = time.monotonic() + seconds
    while True:
        value = test()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"not within {seconds} s: {what}")
        time.sleep(every)


class Scratch:
    """A folder for one run, removed unless something failed."""

    def __init__(self, name, report):
        self.report = report
        base = ROOT / "target" / "ci"
        base.mkdir(parents=True, exist_ok=True)
        self.path = pathlib.Path(tempfile.mkdtemp(prefix=name + ".", dir=base))

    def __enter__(self):
        return self.path

    def __exit__(self, kind, value, trace):
        if kind is None and not self.report.failed:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            print(f"kept for a look: {self.path.relative_to(ROOT)}", file=sys.stderr)


class Report:
    """Counts what passed; prints the line that scripts/test reads."""

    def __init__(self, layer):
        self.layer, self.passed, self.failed = layer, 0, 0

    def case(self, name, body):
        began = time.monotonic()
        try:
            note = body()
        except Exception as error:  # Every failure is told, then the next case runs.
            self.failed += 1
            kind = "" if isinstance(error, Failure) else type(error).__name__ + ": "
            print(f"FAIL {self.layer} {name}: {kind}{error}", flush=True)
        else:
            self.passed += 1
            print(f"ok   {self.layer} {name} ({time.monotonic() - began:.1f} s){': ' + str(note) if note else ''}", flush=True)

    def told(self, name, ok, seconds, note):
        """Counts a case that ran elsewhere."""
        if ok:
            self.passed += 1
        else:
            self.failed += 1
        print(f"{'ok  ' if ok else 'FAIL'} {self.layer} {name} ({seconds:.1f} s){': ' + note if note else ''}", flush=True)

    def skip(self, name, why, avoidable):
        """Tells that a case cannot run here. In CI what scripts/setup could have provided is a failure."""
        if avoidable and os.environ.get("CI") == "true":
            self.case(name, lambda: check(False, f"skipped: {why}"))
        else:
            print(f"skip {self.layer} {name}: {why}", flush=True)

    def finish(self):
        print(f"{self.layer}: {self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed or not self.passed else 0)
