//! The kernel command line that every machine has.

use std::fmt::Write;

/// The command line of a machine that starts `vcpus` of `max_vcpus` vCPUs, with `extra` behind it.
///
/// - `console=hvc0`: the virtio console.
/// - `reboot=k`: a reboot writes 0xfe to port 0x64, which is how a machine ends; `panic=-1` makes a panic one too.
/// - `tsc=reliable no_timer_check rcupdate.rcu_expedited=1`: nothing waits for a check of clocks that KVM keeps, or
///   for a grace period, during boot.
/// - `pci=lastbus=0`: there is one PCI bus.
#[must_use]
pub fn compose(vcpus: u8, max_vcpus: u8, early_serial: bool, extra: &str) -> String {
    let mut line = String::from(
        "console=hvc0 reboot=k panic=-1 tsc=reliable no_timer_check rcupdate.rcu_expedited=1 pci=lastbus=0",
    );
    if early_serial {
        line.push_str(" earlycon=uart8250,io,0x3f8");
    } else {
        line.push_str(" quiet");
    }
    if vcpus < max_vcpus {
        // Writing to a string does not fail.
        let _ = write!(line, " maxcpus={vcpus}");
    }
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_that_are_held_back_are_named() {
        assert!(!compose(2, 2, false, "").contains("maxcpus"));
        assert!(compose(1, 4, false, "").contains(" maxcpus=1"));
    }

    #[test]
    fn an_early_console_is_not_quiet() {
        let line = compose(1, 1, true, "loglevel=8");
        assert!(line.contains("earlycon=") && !line.contains("quiet"));
        assert!(line.ends_with(" loglevel=8"));
        assert!(compose(1, 1, false, "").ends_with(" quiet"));
    }
}
