//! The hull-vmm command.
fn main() {}
