//! A 16550A serial port, output only: the early console of a kernel that has not found its virtio console yet.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// The first port: COM1.
pub const PORT: u64 = 0x3f8;
/// Ports.
pub const PORTS: u64 = 8;
/// The ISA interrupt of COM1.
pub const INTERRUPT: u32 = 4;

struct InterruptLine(EventFd);

impl Trigger for InterruptLine {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}

/// The port.
pub struct SerialPort {
    uart: Mutex<Serial<InterruptLine, NoEvents, Box<dyn Write + Send>>>,
}

impl SerialPort {
    /// Writes the guest's output to `output`, which must not block; raises `interrupt` when the driver wants it.
    #[must_use]
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>) -> Self {
        Self {
            uart: Mutex::new(Serial::new(InterruptLine(interrupt), output)),
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (Ok(register), [byte]) = (u8::try_from(offset), data) else {
            return;
        };
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        *byte = uart.read(register);
    }

    /// Takes the bytes of a string instruction (`rep outsb`) one after another.
    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(register) = u8::try_from(offset) else {
            return;
        };
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in data {
            if let Err(error) = uart.write(register, *byte) {
                tracing::debug!(%error, "serial port");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_sent_comes_out_and_the_transmitter_is_always_empty() {
        let output = Output::default();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(interrupt, Box::new(output.clone()));
        port.write(0, b"h");
        port.write(0, b"ull");
        assert_eq!(*output.0.lock().unwrap(), b"hull");
        let mut status = [0];
        port.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
    }

    #[test]
    fn odd_widths_and_offsets_do_no_harm() {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(interrupt, Box::new(std::io::sink()));
        for offset in [0, 1, 2, 3, 4, 5, 6, 7, 8, 255, 256, u64::MAX] {
            port.write(offset, &[0xff; 8]);
            let mut data = [0; 8];
            port.read(offset, &mut data);
            port.read(offset, &mut data[..1]);
        }
    }
}
