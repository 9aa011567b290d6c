//! `cargo xtask architecture`: whether every path that the documents name is there.
//!
//! A document that describes the tree rots unless something reads it. This reads the words in
//! backticks, takes those that look like paths of this repository, and fails if one does not exist.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{command, workspace};

#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// The document that must be there; the others are all Markdown files of the repository.
const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// What a name without a slash must end in to be taken for a file of the repository. Other endings,
/// such as `.json` and `.toml`, are those of files of containers and hosts as well.
const FILE_ENDINGS: [&str; 6] = [
    ".rs",
    ".md",
    ".proto",
    "Cargo.toml",
    "Cargo.lock",
    "Makefile",
];

/// Folders that builds make.
const GENERATED: [&str; 2] = ["build/", "target/"];

pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let listed = command::output(
        std::process::Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(workspace::root()),
    )?;
    let tree = Tree(
        listed
            .lines()
            .filter(|path| workspace::root().join(path).exists())
            .collect(),
    );
    if !tree.0.contains(ARCHITECTURE) {
        bail!("there is no {ARCHITECTURE}");
    }
    let mut named = 0;
    let mut missing = Vec::new();
    for document in tree.0.iter().filter(|path| path.ends_with(".md")) {
        let text = std::fs::read_to_string(workspace::root().join(document))
            .with_context(|| format!("cannot read {document}"))?;
        for (line, path) in paths(&text) {
            named += 1;
            if !tree.has(document, &path) {
                missing.push(format!("{document}:{line}: {path}"));
            }
        }
    }
    if !missing.is_empty() {
        bail!(
            "{} of {named} paths do not exist:\n{}",
            missing.len(),
            missing.join("\n")
        );
    }
    eprintln!("all {named} paths that the documents name exist");
    Ok(())
}

/// The repository's files, relative to its root.
struct Tree<'a>(BTreeSet<&'a str>);

impl Tree<'_> {
    /// Whether `path` is a file or folder: relative to the root or to the folder of `document`, or
    /// for a name without a slash anywhere.
    fn has(&self, document: &str, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        if !path.contains('/') && self.0.iter().any(|file| file_name(file) == path) {
            return true;
        }
        let folder = Path::new(document).parent().unwrap_or(Path::new(""));
        self.has_exactly(path) || self.has_exactly(&folder.join(path).to_string_lossy())
    }

    fn has_exactly(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.0.contains(path)
            || self
                .0
                .range(below.as_str()..)
                .next()
                .is_some_and(|file| file.starts_with(&below))
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The paths of the repository that a Markdown text names in backticks, with their lines. Fenced
/// blocks, which hold commands and their output, are passed over.
fn paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        // Every second piece is between two backticks; an unpaired last one is not.
        let pieces: Vec<&str> = line.split('`').collect();
        let closed = pieces.len().saturating_sub(1);
        for word in pieces[..closed].iter().skip(1).step_by(2) {
            let expanded = expand_braces(word);
            found.extend(
                expanded
                    .into_iter()
                    .filter(|word| is_path(word))
                    .map(|path| (number + 1, path)),
            );
        }
    }
    found
}

/// Whether a word is meant as a path of this repository.
fn is_path(word: &str) -> bool {
    let is_path_character =
        |character: char| character.is_ascii_alphanumeric() || "_-./".contains(character);
    if word.is_empty()
        || word.starts_with('/')
        || !word.chars().all(is_path_character)
        || GENERATED.iter().any(|folder| word.starts_with(folder))
    {
        return false;
    }
    // `NAME` in `instances/NAME/out` stands for something.
    let is_placeholder =
        |part: &str| part.len() > 1 && part.chars().all(|character| character.is_ascii_uppercase());
    match word.split_once('/') {
        Some(_) if word.split('/').any(is_placeholder) => false,
        // A first part with a dot inside is a host's name: `docs.rs/nix`.
        Some((first, _)) => !first.trim_start_matches('.').contains('.'),
        None => {
            FILE_ENDINGS
                .iter()
                .any(|ending| word.ends_with(ending) && word != *ending)
                || FILE_ENDINGS.contains(&word) && !word.starts_with('.')
        }
    }
}

/// Expands one pair of braces as a shell does: `net/{tap,worker}.rs`.
fn expand_braces(word: &str) -> Vec<String> {
    if let Some((before, rest)) = word.split_once('{')
        && let Some((inside, after)) = rest.split_once('}')
        && inside.contains(',')
    {
        return inside
            .split(',')
            .flat_map(|choice| expand_braces(&format!("{before}{}{after}", choice.trim())))
            .collect();
    }
    vec![word.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        paths(text).into_iter().map(|(_, path)| path).collect()
    }

    #[test]
    fn paths_are_told_from_other_words() {
        let text = "`vmm/src/main.rs` and `mod.rs`, not `/run/hull/x`, `cargo xtask ci`, `hull`,\n\
                    `<root>/lock`, `config.json`, `build/bin/hull`, `docs.rs/nix`, `.rs`, `a/NAME/b`.\n\
                    But `.ci/run`, `Makefile`, and `agent/`.";
        assert_eq!(
            names(text),
            ["vmm/src/main.rs", "mod.rs", ".ci/run", "Makefile", "agent/"]
        );
    }

    #[test]
    fn lines_are_counted_and_fences_passed_over() {
        let text = "one\n```\n`not/this.rs`\n```\n`this/one.rs` and an unpaired ` a/b";
        assert_eq!(paths(text), [(5, "this/one.rs".to_owned())]);
    }

    #[test]
    fn braces_are_expanded() {
        assert_eq!(
            names("`net/{tap,worker}.rs`"),
            ["net/tap.rs", "net/worker.rs"]
        );
        assert_eq!(
            names("`{a,b}/{c,d}.rs`"),
            ["a/c.rs", "a/d.rs", "b/c.rs", "b/d.rs"]
        );
    }

    #[test]
    fn a_path_is_looked_for_from_the_root_the_document_and_by_name() {
        let tree = Tree(
            [
                "tests/testbed/README.md",
                "tests/testbed/machine/init",
                "vmm/src/lib.rs",
            ]
            .into(),
        );
        assert!(tree.has("README.md", "tests/testbed/"));
        assert!(tree.has("tests/testbed/README.md", "machine/init"));
        assert!(tree.has("README.md", "lib.rs"));
        assert!(!tree.has("README.md", "machine/init"));
        assert!(!tree.has("README.md", "src/lib.rs"));
        assert!(!tree.has("README.md", "vmm/s"));
    }
}
