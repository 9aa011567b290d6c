//! The credentials of a thread that works for all the guest's users.

use std::io;

/// Keep capabilities when a user id changes from or to 0 (`linux/securebits.h`).
const SECBIT_NO_SETUID_FIXUP: libc::c_int = 1 << 2;

/// Lets the calling thread, and those that it starts from now on, keep their capabilities when they take on another
/// user. New files get the owner that the guest wants by such a change; without this, the host would check access
/// again, and refuse what the guest's kernel allowed by a supplementary group or a capability.
///
/// # Errors
/// It was not so already, and the thread lacks CAP_SETPCAP.
#[allow(unsafe_code)]
pub fn keep_capabilities() -> io::Result<()> {
    // SAFETY: this reads a flag word of the calling thread and takes no pointer.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    if bits < 0 {
        return Err(io::Error::last_os_error());
    }
    if bits & SECBIT_NO_SETUID_FIXUP != 0 {
        return Ok(());
    }
    // SAFETY: this sets a flag word of the calling thread and takes no pointer.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
