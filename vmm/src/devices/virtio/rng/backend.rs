//! Where the entropy comes from.

use std::fs::File;
use std::io;

const DEVICE: &str = "/dev/urandom";

/// Opens the host's random number generator. The descriptor serves for the life of the machine, so that it also works
/// where the VMM later has no `/dev`. Reads from it do not block once the host has booted.
pub(super) fn open() -> io::Result<File> {
    File::open(DEVICE)
}
