//! The keyboard controller's reset line: how a guest with `reboot=k` ends its machine.

use crate::bus::BusDevice;

/// The first port.
pub const PORT: u64 = 0x60;
/// Ports, from data (0x60) to command and status (0x64).
pub const PORTS: u64 = 5;

const COMMAND: u64 = 4;
const RESET_CPU: u8 = 0xfe;

/// A keyboard controller that knows the reset command, and whose buffers are always empty.
pub struct ResetPort {
    on_reset: Box<dyn Fn() + Send + Sync>,
}

impl ResetPort {
    /// Calls `on_reset`, in the thread of the vCPU, each time the guest asks for a reset.
    pub fn new(on_reset: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            on_reset: Box::new(on_reset),
        }
    }
}

impl BusDevice for ResetPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [RESET_CPU] {
            (self.on_reset)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn only_the_command_at_its_port_resets() {
        let count = Arc::new(AtomicU32::new(0));
        let counter = count.clone();
        let port = ResetPort::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        for (offset, data, resets) in [
            (0, &[0xfe][..], 0),
            (4, &[0xd1], 0),
            (4, &[0xfe, 0xfe], 0),
            (4, &[], 0),
            (4, &[0xfe], 1),
        ] {
            port.write(offset, data);
            assert_eq!(count.load(Ordering::Relaxed), resets);
        }
        let mut status = [0xff];
        port.read(4, &mut status);
        assert_eq!(status, [0]);
    }
}
