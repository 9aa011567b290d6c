//! FIFOs of containerd's clients, which come and go: opened so that nothing waits for them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::error::Error;

/// An input: the end that the process reads, and one for writing that keeps it from ending.
pub(super) fn open_input(path: &Path) -> Result<(OwnedFd, OwnedFd), Error> {
    let open = || -> io::Result<(OwnedFd, OwnedFd)> {
        // Without a writer this does not wait, and with a reader neither does the other.
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        check_fifo(&reader)?;
        let writer = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        Ok((reader.into(), writer.into()))
    };
    open().map_err(Error::io("open", path))
}

/// An output: the end that the process writes, and if it is a FIFO one for reading, so that a process does not fail for
/// want of a client.
pub(super) fn open_output(path: &Path) -> Result<(OwnedFd, Option<OwnedFd>), Error> {
    let open = || -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        if !std::fs::metadata(path)?.file_type().is_fifo() {
            let file = OpenOptions::new().append(true).open(path)?;
            return Ok((file.into(), None));
        }
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        check_fifo(&reader)?;
        let writer = OpenOptions::new().write(true).open(path)?;
        Ok((writer.into(), Some(reader.into())))
    };
    open().map_err(Error::io("open", path))
}

/// Of what was opened, whatever the path names by now.
fn check_fifo(file: &File) -> io::Result<()> {
    if file.metadata()?.file_type().is_fifo() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no FIFO"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn clients_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();

        let (reader, keeper) = open_input(&path).unwrap();
        let mut reader = File::from(reader);
        for _ in 0..2 {
            let mut client = OpenOptions::new().write(true).open(&path).unwrap();
            client.write_all(b"in").unwrap();
            drop(client);
            let mut bytes = [0; 8];
            assert_eq!(reader.read(&mut bytes).unwrap(), 2);
            let error = reader.read(&mut bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
        drop(keeper);
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);

        let (writer, keeper) = open_output(&path).unwrap();
        File::from(writer).write_all(b"out").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(File::from(keeper.unwrap()).read(&mut bytes).unwrap(), 3);
    }

    #[test]
    fn a_file_is_appended_to_and_is_no_input() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a").unwrap();
        let (writer, keeper) = open_output(file.path()).unwrap();
        assert!(keeper.is_none());
        File::from(writer).write_all(b"b").unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "ab");
        open_input(file.path()).unwrap_err();
    }
}
