//! The process's allocator: mimalloc, with a balance of bytes for each thread. The balance lets a run of foreign code be
//! limited by the memory that it really holds. It must not allocate, lock, log or panic: every allocation goes through
//! here.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Counted = Counted(MiMalloc);

thread_local! {
    /// Bytes that this thread has allocated, less those that it has freed.
    static BALANCE: Cell<isize> = const { Cell::new(0) };
}

/// Returns the bytes that this thread has allocated since it began, minus those that it has freed. The value is
/// negative if the thread frees memory of others: only the difference between two moments is meaningful.
#[must_use]
pub fn balance() -> isize {
    BALANCE.get()
}

struct Counted(MiMalloc);

// A layout's size is never larger than `isize::MAX`, so that no cast loses anything.
fn count(allocated: *mut u8, size: usize) -> *mut u8 {
    if !allocated.is_null() {
        BALANCE.set(BALANCE.get().wrapping_add(size as isize));
    }
    allocated
}

fn count_freed(size: usize) {
    BALANCE.set(BALANCE.get().wrapping_sub(size as isize));
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait; each call goes on to mimalloc as it came")]
// SAFETY: `MiMalloc` keeps the trait's contract, and gets the arguments that the caller vouches for.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(unsafe { self.0.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(unsafe { self.0.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count_freed(layout.size());
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let moved = unsafe { self.0.realloc(pointer, layout, new_size) };
        if !moved.is_null() {
            count_freed(layout.size());
        }
        count(moved, new_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_balance_is_what_a_thread_holds() {
        let before = balance();
        let mut held = vec![0_u8; 10_000];
        assert_eq!(balance() - before, 10_000);
        held.reserve_exact(20_000);
        assert_eq!(balance() - before, 30_000);
        held.truncate(1);
        held.shrink_to_fit();
        assert_eq!(balance() - before, 1);
        drop(held);
        assert_eq!(balance(), before);
    }

    #[test]
    fn another_threads_memory_is_not_counted() {
        let before = balance();
        let other = std::thread::spawn(|| vec![0_u8; 1_000_000]).join().unwrap();
        assert!((balance() - before).abs() < 10_000, "{}", balance() - before);
        drop(other);
        assert!(balance() - before <= -900_000, "what it frees is");
    }
}
