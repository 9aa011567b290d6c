//! Names of streams: a path is a FIFO, and so is `fifo://`; `file://` is appended to; `binary://` is a program
//! (containerd's `core/runtime/v2/README.md`, "Logging").

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::Error;

/// A stream's name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Uri {
    /// A FIFO, or nothing.
    Fifo(Option<PathBuf>),
    /// A file.
    File(PathBuf),
    /// A program that reads both outputs.
    Binary {
        program: PathBuf,
        /// Names and values, one after the other; a value that is empty is left out.
        arguments: Vec<OsString>,
    },
}

impl Uri {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Fifo((!text.is_empty()).then(|| text.into())));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(decode(path, false));
        if !path.is_absolute() {
            return Err(Error::Invalid {
                what: "stream",
                problem: format!("{text}: an absolute path is expected"),
            });
        }
        match scheme {
            "fifo" => Ok(Self::Fifo(Some(path))),
            "file" => Ok(Self::File(path)),
            "binary" => Ok(Self::Binary {
                program: path,
                arguments: arguments(query),
            }),
            _ => Err(Error::Unsupported(format!("the stream {text}"))),
        }
    }
}

fn arguments(query: &str) -> Vec<OsString> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .flat_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            [decode(name, true), decode(value, true)]
        })
        .filter(|word| !word.is_empty())
        .collect()
}

/// `%41` is `A`, and in a query `+` is a blank.
fn decode(text: &str, is_query: bool) -> OsString {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(escaped) => {
                decoded.push(escaped);
                at += 3;
            }
            None => {
                decoded.push(if is_query && byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    OsString::from_vec(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_streams_are_read() {
        assert_eq!(Uri::parse("").unwrap(), Uri::Fifo(None));
        for text in ["/run/f", "fifo:///run/f"] {
            assert_eq!(Uri::parse(text).unwrap(), Uri::Fifo(Some("/run/f".into())));
        }
        assert_eq!(
            Uri::parse("file:///a%20b").unwrap(),
            Uri::File("/a b".into())
        );
        assert_eq!(
            Uri::parse("binary:///bin/l?id=a+b&flag&%2d=%").unwrap(),
            Uri::Binary {
                program: "/bin/l".into(),
                arguments: ["id", "a b", "flag", "-", "%"].map(OsString::from).into(),
            }
        );
        Uri::parse("npipe:///x").unwrap_err();
        Uri::parse("file://relative").unwrap_err();
    }
}
