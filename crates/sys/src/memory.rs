//! Giving back memory that only starting needed, or only work that is over.
//!
//! A helper process runs much code once, or now and then: parsing, compiling, making keys, deciding. The pages of that
//! code stay mapped for as long as the process lives, and count as its own in every tool that looks.

use std::ffi::{c_int, c_void};

/// Unmaps the program's code and constants, which come back page by page as they are used, from the page cache;
/// and returns free heap to the kernel. Costs a few microseconds, and a fault for each page that is used again.
pub fn forget_code() {
    // SAFETY: the callback has the signature that the function asks for, and ignores its argument.
    unsafe { libc::dl_iterate_phdr(Some(forget), std::ptr::null_mut()) };
    trim_heap();
}

/// Returns free heap to the kernel, which the allocator keeps otherwise; for after work that took much of it.
pub fn trim_heap() {
    // SAFETY: may be called at any time; it only gives free pages back.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

unsafe extern "C" fn forget(info: *mut libc::dl_phdr_info, _size: usize, _argument: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid description, alive during this call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader's array has this many headers and outlives this call.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    // SAFETY: asks libc for a number that it was told when the process began.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return 0 };
    for header in headers {
        // Writable segments hold what cannot be read again, relocations among it.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let (Ok(at), Ok(length)) = (usize::try_from(header.p_vaddr), usize::try_from(header.p_memsz)) else { continue };
        let Ok(base) = usize::try_from(info.dlpi_addr) else { continue };
        let begin = (base + at) & !(page - 1);
        let end = (base + at + length + page - 1) & !(page - 1);
        // SAFETY: the range is a private mapping of an unchanged file that is never written: what is dropped is read
        // again from that file at the next use. An error changes nothing.
        unsafe { libc::madvise(begin as *mut c_void, end - begin, libc::MADV_DONTNEED) };
    }
    0
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_goes_on_with_less() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap().trim().to_owned();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        super::forget_code();
        let after = resident();
        assert!(after < before, "{before} KiB before, {after} KiB after");
        assert_eq!(format!("{:?}", vec![1, 2, 3]), "[1, 2, 3]");
    }
}
