"""Test machines: Debian's standard kernel under QEMU's software emulation, with this machine's own root below it.

The guest sees this machine's files at the same paths, read-only under an overlay in its memory, so a program that was
built here runs there. What it leaves behind goes into one folder that it may write. The processor is emulated: what
runs there must not have been built for this machine's processor alone (no AVX-512 there)."""

import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

import harness as h

# The standard flavour, from bookworm-security or bookworm-backports. The cloud flavour lacks drivers that are tested here.
KERNEL_PACKAGE = "linux-image-6.12-amd64"
CACHE = h.ROOT / "target" / "vm"
# What the first stage needs to see the root; everything else is loaded by modprobe later. Both sides of an IOMMU
# group's devices need vfio-pci first: nothing else may bind them in between.
FIRST_MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "/bin/busybox": "busybox-static", "cpio": "cpio", "zstd": "zstd",
            "xz": "xz-utils", "systemd-analyze": "systemd", "depmod": "kmod", "dpkg-deb": "dpkg", "apt-cache": "apt"}

# True surprise removal: the slot is the hot plug driver's, and power taken from it takes the device away.
SURPRISES = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read -r m; do insmod /modules/$m || echo "init: insmod $m failed"; done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro root /ro || poweroff -f
mount -t tmpfs -o mode=755 tmpfs /rw; mkdir -p /rw/upper /rw/work
mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /newroot || poweroff -f
for m in proc sys dev; do mount --move /$m /newroot/$m; done
exec switch_root /newroot /bin/busybox sh @STAGE2@
"""

# Runs on the overlay. The kernel's modules, a temporary /tmp and /run, the folder for results, then the program. The S3 client
# looks into the folder of each of 400 services before it believes that there is one named s3, a millisecond and more for each here.
STAGE2 = """export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mkdir -p /lib/modules /dev/shm /dev/pts /dev/hugepages; mount --bind @KERNEL@/lib/modules /lib/modules
mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /dev/shm; mount -t devpts devpts /dev/pts
ip link set lo up || /bin/busybox ip link set lo up
for all in @ROOT@/target/venv/lib/python3*/site-packages/botocore/data; do
    mkdir -p /s3-only; cp -r "$all"/*.json* "$all/s3" /s3-only; mount --bind /s3-only "$all"
done
out=$(sed 's/.*cobalt.out=\\([^ ]*\\).*/\\1/' /proc/cmdline)
mkdir -p "$out"; mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none out "$out" || poweroff -f
cd "$out"; . ./run; echo "guest: the program ended with $?"
sync; poweroff -f
"""


class Unavailable(Exception):
    """A machine cannot be had here."""


def missing():
    """Why no machine can be had, or None."""
    lacking = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if lacking:
        return f"no {', '.join(lacking)} (scripts/setup --vm installs what is missing)"
    return None


def _run(*args, **kw):
    return subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True, timeout=600, **kw).stdout


def _kernel_release():
    names = sorted((CACHE / "kernel/boot").glob("vmlinuz-*"))
    return names[-1].name.removeprefix("vmlinuz-") if names else None


def _fetch_kernel():
    """Unpacked, not installed: no boot loader's hooks run, and nobody needs to be root."""
    depends = _run("apt-cache", "depends", KERNEL_PACKAGE)
    found = re.search(r"Depends: (linux-image-6\S+)", depends)
    if not found:
        raise Unavailable(f"no {KERNEL_PACKAGE} in the package lists: add bookworm-security or bookworm-backports and apt-get update")
    new = CACHE / "kernel.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    print(f"vm: fetching {found[1]}", flush=True)
    try:
        _run("apt-get", "download", found[1], cwd=new)
        (package,) = new.glob("*.deb")
        _run("dpkg-deb", "-x", package, new)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{found[1]} cannot be fetched: {error.stderr.strip()[-300:]}") from error
    package.unlink()
    release = next((new / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    # Nothing here draws, sounds or joins a radio network: a third of the room.
    for part in ["gpu", "media", "net/wireless", "infiniband/hw"]:
        shutil.rmtree(new / "lib/modules" / release / "kernel/drivers" / part, ignore_errors=True)
    shutil.rmtree(new / "lib/modules" / release / "kernel/sound", ignore_errors=True)
    _run("depmod", "-b", new, release)
    shutil.rmtree(CACHE / "kernel", ignore_errors=True)
    new.rename(CACHE / "kernel")


def prepare():
    """Kernel and initrd, from the cache where they are there already.

    Raises Unavailable with the reason."""
    why = missing()
    if why:
        raise Unavailable(why)
    CACHE.mkdir(parents=True, exist_ok=True)
    if not _kernel_release():
        try:
            _fetch_kernel()
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{error.cmd[0]}: {error.stderr.strip()[-300:]}") from error
    release, kernel, root = _kernel_release(), CACHE / "kernel", CACHE / "initrd"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ["bin", "proc", "sys", "dev", "ro", "rw", "newroot", "modules"]:
        (root / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    files = []
    for module in FIRST_MODULES:
        wanted = _run("modprobe", "-d", kernel, "-S", release, "--show-depends", module)
        files += [line.split()[1] for line in wanted.splitlines() if line.startswith("insmod")]
    order = []
    for file in map(pathlib.Path, dict.fromkeys(files)):
        name = file.name.removesuffix(".xz")
        with open(root / "modules" / name, "wb") as plain:
            subprocess.run(["xz", "-dc", file] if file.suffix == ".xz" else ["cat", file], stdout=plain, check=True)
        order.append(name)
    (root / "modules/order").write_text("\n".join(order) + "\n")
    stage2 = CACHE / "stage2"
    stage2.write_text(STAGE2.replace("@KERNEL@", str(kernel)).replace("@ROOT@", str(h.ROOT)))
    (root / "init").write_text(INIT.replace("@STAGE2@", str(stage2)))
    (root / "init").chmod(0o755)
    with open(CACHE / "initrd.zst", "wb") as packed:
        find = subprocess.Popen(["find", "."], cwd=root, stdout=subprocess.PIPE)
        cpio = subprocess.Popen(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, stdin=find.stdout, stdout=subprocess.PIPE)
        subprocess.run(["zstd", "-q", "-3"], stdin=cpio.stdout, stdout=packed, check=True)
        h.check(cpio.wait(60) == 0 and find.wait(60) == 0, "the initrd was not packed")
    return release


class Machine:
    """One boot: runs `command` in the guest until it ends."""

    def __init__(self, name, folder, command, devices=(), memory="2G", cpus=2, iommu=True, reboots=False):
        self.name, self.folder = name, folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run").write_text(command + "\n")
        self.console = folder / "console"
        kernel = CACHE / "kernel/boot" / f"vmlinuz-{_kernel_release()}"
        # iommu=pt: the kernel's own drivers skip the emulated IOMMU, which is slow; what VFIO holds goes through it.
        # iomem=relaxed: a test reaches a controller's registers behind its driver's back.
        words = ("console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off audit=0 nokaslr no_timer_check iomem=relaxed "
                 f"{'intel_iommu=on iommu=pt' if iommu else ''} cobalt.out={folder}")
        args = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35,kernel-irqchip=split", "-accel", "tcg,thread=multi",
                "-cpu", "max", "-smp", cpus, "-m", memory, "-display", "none", *([] if reboots else ["-no-reboot"]),
                "-serial", f"file:{self.console}", "-qmp", "unix:qmp,server=on,wait=off",
                "-kernel", kernel, "-initrd", CACHE / "initrd.zst", "-append", words,
                *(["-device", "intel-iommu,intremap=on"] if iommu else []),
                "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
                "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
                "-fsdev", f"local,id=out,path={folder},security_model=none",
                "-device", "virtio-9p-pci,fsdev=out,mount_tag=out", *devices]
        self.log = open(folder / "qemu.log", "wb")
        self.began = time.monotonic()
        self.popen = subprocess.Popen([str(a) for a in args], cwd=folder, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def wait(self, seconds):
        """Waits for the end of the boot. The text says how it ended."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            return f"the machine {self.name} did not end within {seconds} s; its console: {self.tail()}"
        self.log.close()
        return None if code == 0 else f"QEMU ended with {code}: {(self.folder / 'qemu.log').read_text(errors='replace')[-800:]}"

    def stop(self):
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(20)

    def tail(self, lines=12):
        try:
            text = self.console.read_text(errors="replace")
        except FileNotFoundError:
            return "(nothing)"
        return "\n".join(text.splitlines()[-lines:])


def drive(name, image):
    """QEMU's words for a disk's content: the block nodes NAME and, under it, NAME-file."""
    return ["-blockdev", f"driver=file,node-name={name}-file,filename={image},discard=unmap",
            "-blockdev", f"driver=raw,node-name={name},file={name}-file,discard=unmap"]


def redefined(words, node, definition):
    """The same words with another definition of a block node."""
    found = [word for word in words if f"node-name={node}," in word]
    h.check(len(found) == 1, f"{len(found)} nodes are named {node}")
    return [f"{definition},node-name={node}" if word in found else word for word in words]


def nvme(index, image, serial, namespaces=(), **options):
    """QEMU's words for one controller behind its own root port, so that it can be unplugged and stands in an IOMMU
    group of its own. `namespaces` are further images, or with `image` None all of them.

    Devices are named c0, and c0ns1 with a namespace of its own; their block nodes c0d and c0n1."""
    extra = "".join(f",{k.replace('_', '-')}={v}" for k, v in options.items())
    slot = f"c{index}"
    args = ["-device", f"pcie-root-port,id=port{index},chassis={index + 1},slot={index + 1}"]
    if image:
        args += [*drive(f"{slot}d", image), "-device", f"nvme,id={slot},bus=port{index},serial={serial},drive={slot}d{extra}"]
    else:
        args += ["-device", f"nvme,id={slot},bus=port{index},serial={serial}{extra}"]
    for number, (file, more) in enumerate(namespaces, 1):
        args += [*drive(f"{slot}n{number}", file),
                 "-device", f"nvme-ns,id={slot}ns{number},bus={slot},drive={slot}n{number},nsid={number}{more}"]
    return args


def qmp():
    """QEMU's words for a serial port on which the guest commands its own machine (ci/guest/qmp.py)."""
    return ["-chardev", "socket,id=monitor,path=qmp.guest,server=on,wait=off", "-mon", "chardev=monitor,mode=control",
            "-chardev", "socket,id=port,path=qmp.guest", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=qmp"]


def image(path, size):
    """A sparse file of zeros."""
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    return path
