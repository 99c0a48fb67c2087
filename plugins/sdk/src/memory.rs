//! The guest's allocator. An instance lives for one call, so the first mebibyte comes from the component's initial
//! memory, one allocation after the other: growing a memory costs the host two changes of its page tables, and
//! returning blocks costs code. Further memory of a call comes from the standard allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};

const SIZE: usize = 1 << 20;

#[repr(align(16))]
struct Arena {
    bytes: UnsafeCell<[u8; SIZE]>,
    used: Cell<usize>,
}

// SAFETY: a component has one thread.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena { bytes: UnsafeCell::new([0; SIZE]), used: Cell::new(0) };

impl Arena {
    fn start(&self) -> *mut u8 {
        self.bytes.get().cast()
    }

    fn offset(&self, block: *mut u8) -> Option<usize> {
        (block as usize).checked_sub(self.start() as usize).filter(|offset| *offset < SIZE)
    }

    fn is_last(&self, offset: usize, size: usize) -> bool {
        offset + size == self.used.get()
    }
}

// SAFETY: a block from the arena lies between the old and the new `used`, aligned as asked
// (the arena's start is aligned to 16, larger alignments go to the system), so that no two
// overlap; the last one alone is resized or given back.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let at = self.used.get().next_multiple_of(layout.align());
        match at.checked_add(layout.size()) {
            Some(end) if end <= SIZE && layout.align() <= 16 => {
                self.used.set(end);
                // SAFETY: `at` is at most `SIZE`.
                unsafe { self.start().add(at) }
            }
            // SAFETY: the same contract.
            _ => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.offset(block) {
            Some(offset) if self.is_last(offset, layout.size()) => self.used.set(offset),
            Some(_) => {}
            // SAFETY: memory outside the arena belongs to the system's allocator.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match self.offset(block) {
            Some(offset)
                if self.is_last(offset, layout.size()) && offset.checked_add(size).is_some_and(|end| end <= SIZE) =>
            {
                self.used.set(offset + size);
                block
            }
            Some(_) if size <= layout.size() => block,
            Some(_) => {
                // SAFETY: a new block of at least the old one's bytes; the two don't overlap.
                unsafe {
                    let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if !moved.is_null() {
                        std::ptr::copy_nonoverlapping(block, moved, layout.size());
                    }
                    moved
                }
            }
            // SAFETY: memory outside the arena belongs to the system's allocator.
            None => unsafe { System.realloc(block, layout, size) },
        }
    }
}
