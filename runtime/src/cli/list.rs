//! `hull list`.

use hull_runtime::Runtime;
use hull_runtime::container::{State, list};

use super::{print, print_json_line};

/// List the containers of the state directory
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A table, or the states as JSON
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// Only the ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    let states = list(runtime)?;
    match arguments.format {
        _ if arguments.quiet => {
            let ids: String = states
                .iter()
                .map(|state| format!("{}\n", state.id))
                .collect();
            print(&ids)?;
        }
        Format::Json => print_json_line(&states)?,
        Format::Table => print(&table(&states))?,
    }
    Ok(0)
}

/// Columns of 12 characters, or as wide as what is in them and three spaces apart, as runc has it.
fn table(states: &[State]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let rows = states.iter().map(|state| {
        [
            state.id.to_string(),
            state.pid.to_string(),
            state.status.to_string(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let widest = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
            let width = (widest + 3).max(12);
            text.push_str(&format!("{cell:<width$}"));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}
