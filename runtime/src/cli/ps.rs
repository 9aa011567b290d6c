//! `hull ps`.

use hull_runtime::Runtime;
use hull_runtime::container::{host_pids, ps};

use super::{container_id, print, print_json_line};

/// List the processes of a container
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A table of all, with their pids in the guest; or the pids of the host, as JSON, by which engines know those that
    /// they have started
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
    let id = container_id(&arguments.id)?;
    match arguments.format {
        Format::Json => print_json_line(&host_pids(runtime, &id)?)?,
        Format::Table => {
            let mut table = format!("{:<8} {:>8} {:>8} CMD\n", "UID", "PID", "PPID");
            for process in ps(runtime, &id)? {
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
