//! Developer tasks of hull: `cargo xtask <task>`, one file each.

mod cache;
mod command;
mod debian;
mod image;
mod progress;
mod task_build;
mod task_image;
mod task_testbed;
mod workspace;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of hull")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build everything that is installed into `build/`.
    Build(task_build::Arguments),
    /// Build the guest's kernel and initramfs.
    Image(task_image::Arguments),
    /// The machine that the cases run on.
    Testbed(task_testbed::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Build(arguments) => task_build::run(&arguments),
        Task::Image(arguments) => task_image::run(&arguments),
        Task::Testbed(arguments) => task_testbed::run(&arguments),
    }
}
