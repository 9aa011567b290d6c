//! `cargo xtask demo`: the main job, shown where KVM runs Linux.

use anyhow::Result;

use crate::task_testbed;

#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    task_testbed::exec_script("demo", "tests/demo/demo.sh", &[])
}
