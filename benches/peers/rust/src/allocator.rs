//! What is allocated, counted; and whether freed memory is kept.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with the bytes that are in use.
pub struct Counting;

fn add(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_sub(layout.size(), Relaxed);
        add(size);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The most that is in use at a time while `work` runs, beyond what was before.
pub fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    PEAK.load(Relaxed).saturating_sub(before)
}

/// What becomes of freed memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// Large blocks go back to the system at once, and the next ones are pages never touched.
    Returned,
    /// The allocator keeps them. There is no way back: what it has kept it uses.
    Kept,
}

/// Tells glibc; false where there is none, or it will not.
pub fn set_freed(freed: Freed) -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let settings = match freed {
            // Otherwise the threshold grows with every large block that is freed.
            Freed::Returned => [(libc::M_MMAP_THRESHOLD, 128 << 10), (libc::M_MMAP_MAX, 65_536)],
            Freed::Kept => [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, -1)],
        };
        // SAFETY: plain numbers; glibc locks by itself.
        settings.iter().all(|&(name, value)| unsafe { libc::mallopt(name, value) } == 1)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        let _ = freed;
        false
    }
}
