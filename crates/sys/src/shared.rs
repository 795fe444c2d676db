//! Counters that several processes share, and that outlive all of them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags};

/// Numbers in a file, mapped into memory. What one process counts, all see at once; and the kernel keeps it when they
/// are killed.
#[derive(Debug)]
pub struct Counters {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory is reached as atomics alone, which may be shared, and is unmapped by the last owner.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}

impl Counters {
    /// Maps the first `count` numbers of a file, which grows to hold them.
    ///
    /// The blocks are taken at once: to find no space on the disk later would be the end of the process.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map(file: &File, count: usize) -> io::Result<Self> {
        let bytes = count.checked_mul(size_of::<AtomicU64>()).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let length = u64::try_from(bytes).map_err(io::Error::other)?;
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, length) {
            // Not every file system knows of it; the file then has holes.
            Err(rustix::io::Errno::OPNOTSUPP) if file.metadata()?.len() < length => file.set_len(length)?,
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            done => done?,
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else points into it.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, file.as_fd(), 0)? };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { start, count })
    }

    /// All of them.
    #[must_use]
    pub const fn all(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds `count` of them, is aligned to a page, and lives as long as `self`. Other processes
        // reach it as atomics too.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference to it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_one_mapping_counts_another_sees_and_the_file_keeps() {
        let file = File::from(rustix::fs::memfd_create("counters", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let (one, other) = (Counters::map(&file, 512).unwrap(), Counters::map(&file, 512).unwrap());
        one.all()[511].fetch_add(7, Ordering::Relaxed);
        assert_eq!(other.all()[511].load(Ordering::Relaxed), 7);
        assert_eq!(other.all().len(), 512);
        drop((one, other));
        let again = Counters::map(&file, 512).unwrap();
        assert_eq!(again.all()[511].load(Ordering::Relaxed), 7);
        assert_eq!(file.metadata().unwrap().len(), 4096);
        assert!(Counters::map(&file, 0).is_err());
    }
}
