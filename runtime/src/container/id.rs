//! Ids of containers and sandboxes, which become names of directories.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An id: 1 to [`ContainerId::MAX_LENGTH`] letters, digits, `_`, `+`, `-` and `.`, as runc has it, and neither `.`
/// nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// An id that is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It is empty.
    #[error("container id cannot be empty")]
    Empty,
    /// It has a character, or is a word, that could leave the state directory.
    #[error(
        "invalid container id {0:?}: only letters, digits and the characters _ + - . are allowed"
    )]
    Invalid(String),
    /// It is too long.
    #[error("invalid container id of {0} bytes: at most {max} are allowed", max = ContainerId::MAX_LENGTH)]
    TooLong(usize),
}

impl ContainerId {
    /// Bytes. A file name has 255.
    pub const MAX_LENGTH: usize = 200;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerId {
    type Error = IdError;

    fn try_from(id: String) -> Result<Self, IdError> {
        if id.is_empty() {
            return Err(IdError::Empty);
        }
        if id.len() > Self::MAX_LENGTH {
            return Err(IdError::TooLong(id.len()));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        if !id.bytes().all(allowed) || id == "." || id == ".." {
            return Err(IdError::Invalid(id));
        }
        Ok(Self(id))
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(id: &str) -> Result<Self, IdError> {
        id.to_owned().try_into()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_engines_are_accepted() {
        for id in ["a", "..a", "web-1", "a_b+c.d", &"f".repeat(64)] {
            assert_eq!(id.parse::<ContainerId>().unwrap().as_str(), id);
        }
    }

    #[test]
    fn what_could_leave_the_directory_is_refused() {
        assert_eq!("".parse::<ContainerId>(), Err(IdError::Empty));
        for id in [
            ".", "..", "a/b", "../a", "/", "a b", "a\n", "a\0", "ä", "-/", "a:b",
        ] {
            assert_eq!(
                id.parse::<ContainerId>(),
                Err(IdError::Invalid(id.into())),
                "{id:?}"
            );
        }
        assert_eq!(
            "f".repeat(201).parse::<ContainerId>(),
            Err(IdError::TooLong(201))
        );
    }
}
