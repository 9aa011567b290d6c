//! QEMU's monitor protocol over its standard input and output: one JSON object a line (QEMU's `docs/interop/qmp-spec`).

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection that has left the negotiation behind.
pub(super) struct Qmp {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Qmp {
    /// Reads QEMU's greeting and takes the connection into command mode.
    pub(super) fn open(input: ChildStdin, output: ChildStdout) -> Result<Qmp> {
        let mut qmp = Qmp {
            input,
            output: BufReader::new(output),
        };
        qmp.message().context("no greeting from QEMU")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns its result. Events that come meanwhile are passed over.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        // At once: QEMU obeys at the last brace, and who is told to quit may be gone before the end of the line.
        self.input
            .write_all(format!("{request}\n").as_bytes())
            .with_context(|| format!("cannot ask QEMU to {command}"))?;
        loop {
            let mut message = self.message()?;
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"]);
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("QEMU has ended");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU wrote no JSON: {line}"))
    }
}
