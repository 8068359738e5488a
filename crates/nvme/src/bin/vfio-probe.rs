//! What test machines run to try the lowest layer alone: open a controller through VFIO, say what was found, and do what the
//! driver relies on. `vfio-probe look ADDRESS [ARENA_MIB]`, `vfio-probe hold ADDRESS`: the second waits for the request to
//! let go, and does. Not part of the product.

#![expect(clippy::disallowed_methods, reason = "a tool of tests, on no reactor")]

use cobalt_dma::{Arena, ArenaConfig};
use cobalt_nvme::vfio::{Bar, Handle, IovaSpace, Notice, PciAddress, VfioError, host};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::error::Error;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Capabilities, version, configuration and status of a controller.
const CAP: usize = 0x00;
const VS: usize = 0x08;
const CC: usize = 0x14;
const CSTS: usize = 0x1c;

fn look(address: PciAddress, arena_mib: usize) -> Result<(), Box<dyn Error>> {
    let bytes = arena_mib << 20;
    let (handle, found) = Handle::open(address, bytes as u64)?;
    let bar = handle.registers()?;
    println!(
        "group {} vectors {} resets {} ranges {:x?}",
        found.group, found.vectors, found.resets, found.ranges
    );
    println!("cap {:#x} vs {:#x} csts {:#x}", bar.read64(CAP), bar.read32(VS), bar.read32(CSTS));

    let arena = Arena::new_on_hugepages(ArenaConfig { limit: bytes })?;
    let (base, len) = arena.region();
    let mut space = IovaSpace::new(&found.ranges);
    let iova = space.take(len as u64, 2 << 20).ok_or(VfioError::NoAddresses { address, len: len as u64 })?;
    // SAFETY: the arena outlives the mapping, which is taken away below, or with the handle, which ends before the arena.
    #[expect(unsafe_code)]
    unsafe { handle.map(base as usize, len as u64, iova) }?;
    println!("arena {len} huge {} at {iova:#x}", arena.stats().huge);

    println!("bus master on {} off {}", handle.set_bus_master(true)?, handle.set_bus_master(false)?);
    handle.enable_vectors(2)?;
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    handle.set_vector(1, Some(event.as_fd()))?;
    handle.set_vector(1, None)?;
    handle.disable_vectors()?;
    bar.write32(CC, 0x0046_0000);
    let before = bar.read32(CC);
    handle.reset()?;
    println!("cc {before:#x} after reset {:#x}", bar.read32(CC));
    handle.unmap(iova, len as u64)?;
    println!("twice {}", handle.unmap(iova, len as u64).is_err());
    Ok(())
}

/// Holds the function until somebody asks for it, or a minute has passed.
fn hold(address: PciAddress) -> Result<(), Box<dyn Error>> {
    let (handle, _) = Handle::open(address, 0)?;
    let bar: Bar = handle.registers()?;
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    handle.set_notice(Notice::Request, event.as_fd())?;
    println!("held");
    let end = Instant::now() + Duration::from_secs(60);
    while event.read().is_err() {
        if Instant::now() > end {
            println!("nobody asked");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("asked for, vs {:#x} lost {}", bar.read32(VS), bar.lost());
    Ok(())
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut words = args.iter().map(String::as_str);
    match (words.next(), words.next()) {
        (Some("look"), Some(address)) => look(address.parse()?, words.next().map_or(Ok(64), str::parse)?),
        (Some("hold"), Some(address)) => hold(address.parse()?),
        (Some("list"), None) => {
            for function in host::controllers() {
                println!("{function:?} with {:?}", function.companions());
            }
            Ok(())
        }
        _ => Err("usage: vfio-probe look ADDRESS [ARENA_MIB] | hold ADDRESS | list".into()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut next = error.source();
            while let Some(source) = next {
                eprintln!("cause: {source}");
                next = source.source();
            }
            ExitCode::FAILURE
        }
    }
}
