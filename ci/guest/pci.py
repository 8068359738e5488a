"""PCI functions in the guest: which driver has them, and giving them another."""

import pathlib

import harness as h

DEVICES = pathlib.Path("/sys/bus/pci/devices")
NVME_CLASS = "0x010802"


def modprobe(*modules):
    for module in modules:
        h.run("modprobe", module)


def controllers():
    """Addresses of all NVMe controllers, in the order of the machine's slots."""
    return sorted(d.name for d in DEVICES.iterdir() if (d / "class").read_text().strip() == NVME_CLASS)


def driver(address):
    link = DEVICES / address / "driver"
    return link.resolve().name if link.exists() else None


def group(address):
    return (DEVICES / address / "iommu_group").resolve().name


def kernel_nvme(*nodes):
    """Lets the kernel's driver have what nobody has, and waits for these block devices."""
    modprobe("nvme")
    for node in nodes:
        h.eventually(f"{node} appears", lambda: pathlib.Path(node).exists(), 60)


def bind(address, to):
    """Hands a function to another driver, `vfio-pci` or `nvme`."""
    modprobe(to)
    if driver(address):
        (DEVICES / address / "driver/unbind").write_text(address)
    (DEVICES / address / "driver_override").write_text(to)
    pathlib.Path("/sys/bus/pci/drivers_probe").write_text(address)
    h.check(driver(address) == to, f"{address} is with {driver(address)} instead of {to}")
