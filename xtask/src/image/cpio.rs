//! Writes cpio archives in the "newc" format, which is what the kernel unpacks
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Everything belongs to root and has the time 0, so equal content gives equal archives.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written to `W`.
pub(super) struct Archive<W> {
    output: W,
    written: usize,
    entries: u32,
}

struct Entry<'a> {
    name: &'a str,
    /// File type and permissions, as in `stat(2)`.
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl<W: Write> Archive<W> {
    pub(super) fn new(output: W) -> Archive<W> {
        Archive {
            output,
            written: 0,
            entries: 0,
        }
    }

    /// Adds a directory. Its parents are to be added before it; names have no leading slash.
    pub(super) fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: DIRECTORY | permissions,
            device: (0, 0),
            content: &[],
        })
    }

    /// Adds a regular file.
    pub(super) fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: REGULAR | permissions,
            device: (0, 0),
            content,
        })
    }

    /// Adds a character device with its major and minor number.
    pub(super) fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: CHARACTER_DEVICE | permissions,
            device,
            content: &[],
        })
    }

    /// Ends the archive and returns what it was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(&Entry {
            name: TRAILER,
            mode: 0,
            device: (0, 0),
            content: &[],
        })?;
        self.align(512)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let length = |bytes: usize| {
            u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
        };
        self.entries += 1;
        let links = if entry.mode & DIRECTORY == 0 { 1 } else { 2 };
        let fields = [
            self.entries, // inode
            entry.mode,
            0, // uid
            0, // gid
            links,
            0, // time of modification
            length(entry.content.len())?,
            0, // major and minor number of the device that holds the file
            0,
            entry.device.0,
            entry.device.1,
            length(entry.name.len() + 1)?,
            0, // checksum, unused in this format
        ];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08X}").as_bytes())?;
        }
        self.put(entry.name.as_bytes())?;
        self.put(&[0])?;
        self.align(4)?;
        self.put(entry.content)?;
        self.align(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.output.write_all(bytes)
    }

    fn align(&mut self, alignment: usize) -> io::Result<()> {
        let padding = self.written.next_multiple_of(alignment) - self.written;
        self.put(&vec![0; padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive
            .character_device("dev/console", 0o600, (5, 1))
            .unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn entries_are_laid_out_as_the_kernel_reads_them() {
        let archive = archive();
        assert_eq!(archive.len() % 512, 0);
        // The first header's magic, inode and mode; then the name `dev` and its padding.
        assert_eq!(&archive[..22], b"07070100000001000041ED");
        assert_eq!(&archive[110..116], b"dev\0\0\0");
        let text = String::from_utf8_lossy(&archive);
        let init = text.find("init\0").unwrap();
        assert_eq!(init % 4, 2, "a name follows a header of 110 bytes");
        let content = (init + "init\0".len()).next_multiple_of(4);
        assert_eq!(&archive[content..content + 8], b"hello\0\0\0");
        assert!(text[content..].contains(TRAILER));
    }

    #[test]
    fn cpio_lists_what_was_written() {
        use std::process::{Command, Stdio};
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is among the packages of `cargo xtask deps`");
        cpio.stdin.take().unwrap().write_all(&archive()).unwrap();
        let listed = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 3, "{listed}");
        assert!(lines[0].starts_with("drwxr-xr-x"), "{listed}");
        assert!(
            lines[1].starts_with("crw-------") && lines[1].contains("5,   1"),
            "{listed}"
        );
        assert!(
            lines[2].starts_with("-rwxr-xr-x") && lines[2].ends_with("init"),
            "{listed}"
        );
    }
}
