//! The ioctls of VFIO (linux/vfio.h), each with the one type that it takes. They block: none runs on a reactor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use vfio_bindings::bindings::vfio;

/// `_IO(';', 100 + nr)`: VFIO encodes neither size nor direction.
const fn request(nr: u32) -> libc::Ioctl {
    (((vfio::VFIO_TYPE as u32) << 8) | (vfio::VFIO_BASE + nr)) as libc::Ioctl
}

const GET_API_VERSION: libc::Ioctl = request(0);
const CHECK_EXTENSION: libc::Ioctl = request(1);
const SET_IOMMU: libc::Ioctl = request(2);
const GROUP_GET_STATUS: libc::Ioctl = request(3);
const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
const DEVICE_GET_INFO: libc::Ioctl = request(7);
const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
const DEVICE_GET_IRQ_INFO: libc::Ioctl = request(9);
const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const DEVICE_RESET: libc::Ioctl = request(11);
const IOMMU_GET_INFO: libc::Ioctl = request(12);
const IOMMU_MAP_DMA: libc::Ioctl = request(13);
const IOMMU_UNMAP_DMA: libc::Ioctl = request(14);

/// Most bytes that the kernel's description of an IOMMU may have.
const INFO_MAX: usize = 64 << 10;

/// Room for a structure's `argsz`.
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

fn answer(rc: i32) -> io::Result<i32> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// An ioctl whose argument is a number.
fn with_number(fd: BorrowedFd<'_>, request: libc::Ioctl, number: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the requests that this module passes here take a number, so the kernel follows no pointer.
    #[expect(unsafe_code)]
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request, number) };
    answer(rc)
}

/// An ioctl whose argument is `T`.
///
/// # Safety
/// `request` reads and writes at most the `T` (whose `argsz`, where it has one, says no more than that), and keeps no
/// pointer to it.
#[expect(unsafe_code)]
unsafe fn with<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<i32> {
    // SAFETY: as the caller promises; the borrow is exclusive and lives for the whole call.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    answer(rc)
}

/// The version of VFIO's interface.
pub(super) fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    with_number(container, GET_API_VERSION, 0)
}

/// Whether the container can be of type 1, with unmapping in the pieces that were mapped.
pub(super) fn has_type1(container: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(with_number(container, CHECK_EXTENSION, vfio::VFIO_TYPE1v2_IOMMU.into())? == 1)
}

/// Makes the container one of type 1.
pub(super) fn set_type1(container: BorrowedFd<'_>) -> io::Result<()> {
    with_number(container, SET_IOMMU, vfio::VFIO_TYPE1v2_IOMMU.into()).map(drop)
}

/// Flags of a group: viable or not.
pub(super) fn group_flags(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio::vfio_group_status { argsz: size::<vfio::vfio_group_status>(), flags: 0 };
    // SAFETY: GROUP_GET_STATUS fills a vfio_group_status.
    #[expect(unsafe_code)]
    unsafe { with(group, GROUP_GET_STATUS, &mut status) }?;
    Ok(status.flags)
}

/// Puts the group into the container.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd = container.as_raw_fd();
    // SAFETY: GROUP_SET_CONTAINER reads one int.
    #[expect(unsafe_code)]
    unsafe { with(group, GROUP_SET_CONTAINER, &mut fd) }.map(drop)
}

/// Opens a device of the group by its name, as a PCI address.
pub(super) fn device_fd(group: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: GROUP_GET_DEVICE_FD reads a string that ends with NUL; `name` lives for the whole call.
    #[expect(unsafe_code)]
    let rc = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
    let fd = answer(rc)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    #[expect(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Flags of a device, and how many regions and interrupts it has.
pub(super) fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio::vfio_device_info> {
    let mut info = vfio::vfio_device_info { argsz: size::<vfio::vfio_device_info>(), ..Default::default() };
    // SAFETY: DEVICE_GET_INFO fills at most argsz bytes of a vfio_device_info.
    #[expect(unsafe_code)]
    unsafe { with(device, DEVICE_GET_INFO, &mut info) }?;
    Ok(info)
}

/// Where a region lies in the device's descriptor, how large it is and what may be done with it.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio::vfio_region_info> {
    let mut info =
        vfio::vfio_region_info { argsz: size::<vfio::vfio_region_info>(), index, ..Default::default() };
    // SAFETY: DEVICE_GET_REGION_INFO fills at most argsz bytes of a vfio_region_info.
    #[expect(unsafe_code)]
    unsafe { with(device, DEVICE_GET_REGION_INFO, &mut info) }?;
    Ok(info)
}

/// How many interrupts of a kind the device has.
pub(super) fn irq_count(device: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    let mut info = vfio::vfio_irq_info { argsz: size::<vfio::vfio_irq_info>(), index, ..Default::default() };
    // SAFETY: DEVICE_GET_IRQ_INFO fills a vfio_irq_info.
    #[expect(unsafe_code)]
    unsafe { with(device, DEVICE_GET_IRQ_INFO, &mut info) }?;
    Ok(info.count)
}

/// Interrupts in one call.
pub(super) const IRQS_MAX: usize = 64;

/// `vfio_irq_set` with its descriptors behind it.
#[repr(C)]
struct IrqSet {
    head: [u32; 5],
    eventfds: [i32; IRQS_MAX],
}

const _: () = assert!(std::mem::offset_of!(IrqSet, eventfds) == size_of::<vfio::vfio_irq_set>());

/// Attaches eventfds to the interrupts from `start` on; -1 detaches.
pub(super) fn set_irqs(device: BorrowedFd<'_>, index: u32, start: u32, eventfds: &[i32]) -> io::Result<()> {
    assert!(!eventfds.is_empty() && eventfds.len() <= IRQS_MAX, "{} eventfds in one call", eventfds.len());
    let count = eventfds.len() as u32;
    let flags = vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER;
    let mut set = IrqSet {
        head: [size::<vfio::vfio_irq_set>() + 4 * count, flags, index, start, count],
        eventfds: [-1; IRQS_MAX],
    };
    set.eventfds[..eventfds.len()].copy_from_slice(eventfds);
    // SAFETY: DEVICE_SET_IRQS reads argsz bytes, which are the head and `count` descriptors, all inside of the set.
    #[expect(unsafe_code)]
    unsafe { with(device, DEVICE_SET_IRQS, &mut set) }.map(drop)
}

/// Turns all interrupts of a kind off.
pub(super) fn irqs_off(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let flags = vfio::VFIO_IRQ_SET_DATA_NONE | vfio::VFIO_IRQ_SET_ACTION_TRIGGER;
    let mut set =
        IrqSet { head: [size::<vfio::vfio_irq_set>(), flags, index, 0, 0], eventfds: [-1; IRQS_MAX] };
    // SAFETY: DEVICE_SET_IRQS reads argsz bytes, which are the head.
    #[expect(unsafe_code)]
    unsafe { with(device, DEVICE_SET_IRQS, &mut set) }.map(drop)
}

/// Resets the function.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    with_number(device, DEVICE_RESET, 0).map(drop)
}

/// What the kernel says of the IOMMU: a `vfio_iommu_type1_info` and its capabilities, as bytes.
pub(super) fn iommu_info(container: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut room = size_of::<vfio::vfio_iommu_type1_info>();
    loop {
        // In words of eight bytes: the structure has such fields.
        let mut info = vec![0u64; room.div_ceil(8)];
        let head = &mut info[0];
        *head = u64::from(room as u32); // argsz is the first field.
        // SAFETY: IOMMU_GET_INFO writes at most argsz bytes, and the vector has as many.
        #[expect(unsafe_code)]
        let rc = unsafe { libc::ioctl(container.as_raw_fd(), IOMMU_GET_INFO, info.as_mut_ptr()) };
        answer(rc)?;
        let needed = (info[0] & u64::from(u32::MAX)) as usize;
        if needed <= room {
            return Ok(info.iter().flat_map(|word| word.to_le_bytes()).take(room).collect());
        }
        if needed > INFO_MAX {
            return Err(io::Error::other(format!("{needed} bytes of description")));
        }
        room = needed;
    }
}

/// Maps `len` bytes of this process at `address` for the device at `iova`, for reading and writing. The pages are pinned.
///
/// # Safety
/// The memory stays mapped in this process until `unmap` of the range, or the container's end: the device writes there.
#[expect(unsafe_code)]
pub(super) unsafe fn map(container: BorrowedFd<'_>, address: usize, len: u64, iova: u64) -> io::Result<()> {
    let mut map = vfio::vfio_iommu_type1_dma_map {
        argsz: size::<vfio::vfio_iommu_type1_dma_map>(),
        flags: vfio::VFIO_DMA_MAP_FLAG_READ | vfio::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: address as u64,
        iova,
        size: len,
    };
    // SAFETY: IOMMU_MAP_DMA reads a vfio_iommu_type1_dma_map; what the device does later is the caller's promise.
    unsafe { with(container, IOMMU_MAP_DMA, &mut map) }.map(drop)
}

/// Takes a mapping away: no DMA reaches the range when this has returned. Answers with the bytes that were unmapped.
pub(super) fn unmap(container: BorrowedFd<'_>, iova: u64, len: u64) -> io::Result<u64> {
    // The binding's structure ends with a flexible array; this is its fixed part.
    let mut unmap = [0u64; 3];
    const { assert!(size_of::<vfio::vfio_iommu_type1_dma_unmap>() == 24) };
    unmap[0] = u64::from(size::<vfio::vfio_iommu_type1_dma_unmap>()); // argsz, and flags of zero.
    unmap[1] = iova;
    unmap[2] = len;
    // SAFETY: IOMMU_UNMAP_DMA reads and writes the 24 bytes of a vfio_iommu_type1_dma_unmap.
    #[expect(unsafe_code)]
    unsafe { with(container, IOMMU_UNMAP_DMA, &mut unmap) }?;
    Ok(unmap[2])
}
