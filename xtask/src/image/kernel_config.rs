//! The kernel's configuration: what is asked for, and whether the kernel's build agreed.
//!
//! Kconfig drops without a word a line whose dependencies are not met or whose symbol no longer
//! exists. So what it made of a configuration is compared with what was asked for.

use std::collections::HashMap;

/// What the lines of `wanted` ask for and the finished configuration `made` does not have, one
/// line of text each.
pub(super) fn not_honoured(wanted: &str, made: &str) -> Vec<String> {
    let made: HashMap<&str, &str> = made.lines().filter_map(setting).collect();
    wanted
        .lines()
        .filter_map(setting)
        .filter_map(|(symbol, value)| {
            let found = made.get(symbol).copied().unwrap_or("n");
            (found != value).then(|| format!("{symbol}: wanted {value}, got {found}"))
        })
        .collect()
}

/// The symbol and value of a line such as `CONFIG_SMP=y` or `# CONFIG_SMP is not set`, which is the
/// value `n`.
fn setting(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    match line.strip_prefix("# ") {
        Some(comment) => Some((comment.strip_suffix(" is not set")?, "n")),
        None => line.split_once('='),
    }
    .filter(|(symbol, _)| symbol.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::not_honoured;

    const MADE: &str = "CONFIG_SMP=y\n# CONFIG_ACPI is not set\nCONFIG_NR_CPUS=64\nCONFIG_PCI=y\n";

    #[test]
    fn what_was_honoured_is_not_told() {
        let wanted = "# A comment\nCONFIG_SMP=y\n\nCONFIG_NR_CPUS=64\n# CONFIG_ACPI is not set\n\
                      # CONFIG_EFI is not set\n";
        assert_eq!(not_honoured(wanted, MADE), Vec::<String>::new());
    }

    #[test]
    fn what_kconfig_dropped_changed_or_selected_is_told() {
        let wanted = "CONFIG_PVH=y\nCONFIG_NR_CPUS=8\n# CONFIG_PCI is not set\nCONFIG_ACPI=y\n";
        assert_eq!(
            not_honoured(wanted, MADE),
            [
                "CONFIG_PVH: wanted y, got n",
                "CONFIG_NR_CPUS: wanted 8, got 64",
                "CONFIG_PCI: wanted n, got y",
                "CONFIG_ACPI: wanted y, got n",
            ]
        );
    }
}
