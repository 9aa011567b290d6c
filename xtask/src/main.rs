//! Developer tasks of hull: `cargo xtask <task>`, one file each.

mod cache;
mod command;
mod debian;
mod image;
mod progress;
mod task_architecture;
mod task_bench;
mod task_build;
mod task_ci;
mod task_demo;
mod task_deps;
mod task_image;
mod task_testbed;
mod testbed;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of hull")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check that the paths that the documents name exist.
    Architecture(task_architecture::Arguments),
    /// Measure hull against a peer.
    Bench(task_bench::Arguments),
    /// Build everything that is installed into `build/`.
    Build(task_build::Arguments),
    /// Run every check.
    Ci(task_ci::Arguments),
    /// Show a container in its own VM, with its network.
    Demo(task_demo::Arguments),
    /// Install what a build and the tests need of the host.
    Deps(task_deps::Arguments),
    /// Build the guest's kernel and initramfs.
    Image(task_image::Arguments),
    /// The machine that the cases run on.
    Testbed(task_testbed::Arguments),
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    match Arguments::parse().task {
        Task::Architecture(arguments) => task_architecture::run(&arguments)?,
        Task::Bench(arguments) => task_bench::run(&arguments)?,
        Task::Build(arguments) => task_build::run(&arguments)?,
        Task::Ci(arguments) => return task_ci::run(&arguments),
        Task::Demo(arguments) => task_demo::run(&arguments)?,
        Task::Deps(arguments) => task_deps::run(&arguments)?,
        Task::Image(arguments) => task_image::run(&arguments)?,
        Task::Testbed(arguments) => task_testbed::run(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}
