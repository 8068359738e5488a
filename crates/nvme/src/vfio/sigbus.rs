//! A controller that is gone: the kernel takes its registers' pages away, and the next access raises SIGBUS, which would end
//! the process and all its other targets. Here the signal puts a page of all-ones where the registers were, which is what the
//! bus of a removed device reads, and the driver takes all-ones for removal anyway. So there is one path for both.
//!
//! Why a handler may do this. It runs on the thread that touched the page, in the middle of one load or store of [`super::Bar`]:
//! no Rust reference points into registers, only volatile accesses do, so nothing that the compiler believes changes. `mmap` with
//! MAP_FIXED replaces the page in one step; other threads see the old page (and come here too) or the new one. Registers are looked
//! up in a table of atomics without a lock. `mmap` is a bare system call in every libc of Linux; it changes `errno` alone, which is
//! put back. A fault anywhere else goes to whoever had the signal before, and ends the process as it always did.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

/// Register windows of one process.
const WINDOWS_MAX: usize = 64;
const PAGE: usize = 4096;

struct Window {
    taken: AtomicBool,
    /// Address of the first byte; zero while it is not filled in.
    base: AtomicUsize,
    len: AtomicUsize,
    /// The signal has come.
    lost: AtomicBool,
}

static WINDOWS: [Window; WINDOWS_MAX] = [const {
    Window {
        taken: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; WINDOWS_MAX];
/// A file of one page of all-ones; open as long as the process lives.
static ONES: AtomicI32 = AtomicI32::new(-1);
/// Who had the signal before.
static BEFORE: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

/// Protects a window until it is dropped, which must be before the window is unmapped.
pub(super) struct Guard {
    index: usize,
}

impl Guard {
    /// From now on a bus error in the window is answered with all-ones.
    pub(super) fn new(base: usize, len: usize) -> io::Result<Guard> {
        assert!(base != 0 && base.is_multiple_of(PAGE), "registers begin at a page");
        BEFORE.get_or_init(install).as_ref().map_err(|errno| io::Error::from_raw_os_error(*errno))?;
        let free = |w: &Window| !w.taken.swap(true, Ordering::SeqCst);
        let index = WINDOWS
            .iter()
            .position(free)
            .ok_or_else(|| io::Error::other(format!("more than {WINDOWS_MAX} controllers in one process")))?;
        let window = &WINDOWS[index];
        window.lost.store(false, Ordering::SeqCst);
        window.len.store(len, Ordering::SeqCst);
        window.base.store(base, Ordering::SeqCst);
        Ok(Guard { index })
    }

    /// Whether the window's device is gone.
    pub(super) fn lost(&self) -> bool {
        WINDOWS[self.index].lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let window = &WINDOWS[self.index];
        window.base.store(0, Ordering::SeqCst);
        window.taken.store(false, Ordering::SeqCst);
    }
}

fn page_of_ones() -> io::Result<OwnedFd> {
    let fd = nix::sys::memfd::memfd_create(c"cobalt-ones", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let written = nix::unistd::write(&fd, &[0xff; PAGE])?;
    if written == PAGE { Ok(fd) } else { Err(io::Error::other("a short write to memory")) }
}

fn install() -> Result<libc::sigaction, i32> {
    let ones = page_of_ones().map_err(|e| e.raw_os_error().unwrap_or(libc::ENOMEM))?;
    // Open for as long as the process lives: the handler may come at any time.
    ONES.store(ones.into_raw_fd(), Ordering::SeqCst);
    // SAFETY: a sigaction of zeros is a valid value: no flags, an empty mask, the default action.
    #[expect(unsafe_code)]
    let (mut new, mut old): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    new.sa_sigaction = on_sigbus as *const () as usize;
    // On the alternate stack where a thread has one: Rust's own threads do, for the case of an overflow.
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both point to valid structures; the handler obeys what the file's head says.
    #[expect(unsafe_code)]
    let rc = unsafe { libc::sigaction(libc::SIGBUS, &raw const new, &raw mut old) };
    if rc == 0 { Ok(old) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
}

/// Puts all-ones over the page of a window that has `address`. False when it is in none.
fn cover(address: usize) -> bool {
    for window in &WINDOWS {
        let (base, len) = (window.base.load(Ordering::SeqCst), window.len.load(Ordering::SeqCst));
        if base == 0 || address < base || address - base >= len {
            continue;
        }
        let page = address / PAGE * PAGE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the page belongs to a window that its owner keeps mapped, and that nobody has a reference into.
        #[expect(unsafe_code)]
        let mapped = unsafe {
            libc::mmap(
                page as *mut c_void,
                PAGE,
                protection,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                ONES.load(Ordering::SeqCst).as_raw_fd(),
                0,
            )
        };
        window.lost.store(true, Ordering::SeqCst);
        return mapped != libc::MAP_FAILED;
    }
    false
}

#[expect(unsafe_code)]
extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: `errno` of this thread always exists.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; nobody else touches it.
    let saved = unsafe { *errno };
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo that is valid until the handler returns.
    let info_ref = unsafe { &*info };
    // SAFETY: for SIGBUS the address is set.
    let address = unsafe { info_ref.si_addr() } as usize;
    let covered = cover(address);
    // SAFETY: as above.
    unsafe { *errno = saved };
    if covered {
        return; // The access is made again, and finds the new page.
    }
    let before = match BEFORE.get() {
        Some(Ok(before)) if before.sa_sigaction > libc::SIG_IGN => before,
        _ => {
            // SAFETY: back to the default, which ends the process when the access is made again.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            return;
        }
    };
    if before.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: with SA_SIGINFO the field holds such a function; it is neither default nor ignore.
        let handler = unsafe { std::mem::transmute::<usize, Handler>(before.sa_sigaction) };
        handler(signal, info, context);
    } else {
        // SAFETY: without SA_SIGINFO the field holds such a function; it is neither default nor ignore.
        let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(i32)>(before.sa_sigaction) };
        handler(signal);
    }
}
