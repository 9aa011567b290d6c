//! `hull ps`.

use hull_runtime::Runtime;
use hull_runtime::container::ps;

use super::{container_id, print, print_json};

/// List the processes of a container, with their pids in the guest
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A table, or the pids as JSON
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// The container's id
    id: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    let processes = ps(runtime, &container_id(&arguments.id)?)?;
    match arguments.format {
        Format::Json => {
            let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
            print_json(&pids)?;
        }
        Format::Table => {
            let mut table = format!("{:<8} {:>8} {:>8} CMD\n", "UID", "PID", "PPID");
            for process in processes {
                // The guest names its processes as it likes.
                let command: String = process
                    .command
                    .chars()
                    .map(|character| {
                        if character.is_control() {
                            '?'
                        } else {
                            character
                        }
                    })
                    .collect();
                table.push_str(&format!(
                    "{:<8} {:>8} {:>8} {command}\n",
                    process.uid, process.pid, process.ppid
                ));
            }
            print(&table)?;
        }
    }
    Ok(0)
}
