//! Errors as sentences for those who get nothing else: callers over ttrpc, the agent of its helper, a list of failures.

use std::error::Error;

/// The error with its causes: "a: b: c". A cause that its error repeats in its own words is left out.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
