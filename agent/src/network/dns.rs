//! The guest's resolver file. Containers have their own, which engines bind-mount.

use std::fs;
use std::io;
use std::path::Path;

/// Writes `resolv.conf`.
///
/// # Errors
/// When an entry would break the file's lines, or the file cannot be written.
pub fn write_resolv_conf(
    path: &Path,
    servers: &[String],
    searches: &[String],
    options: &[String],
) -> io::Result<()> {
    let plain = |entry: &String| !entry.is_empty() && !entry.contains(char::is_whitespace);
    if ![servers, searches, options]
        .into_iter()
        .flatten()
        .all(plain)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an entry of the resolver file is empty or holds white space",
        ));
    }
    let mut text = String::new();
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for (keyword, words) in [("search", searches), ("options", options)] {
        if !words.is_empty() {
            text.push_str(&format!("{keyword} {}\n", words.join(" ")));
        }
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_is_on_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let words = |list: &[&str]| {
            list.iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        write_resolv_conf(
            file.path(),
            &words(&["10.0.0.2", "fd00::2"]),
            &words(&["a.b", "c"]),
            &words(&["ndots:0"]),
        )
        .unwrap();
        assert_eq!(
            fs::read_to_string(file.path()).unwrap(),
            "nameserver 10.0.0.2\nnameserver fd00::2\nsearch a.b c\noptions ndots:0\n"
        );
        assert!(write_resolv_conf(file.path(), &words(&["1\nnameserver 2"]), &[], &[]).is_err());
    }
}
