//! Processes whose parents have ended become children of the case, as they do of an engine.

use nix::sys::prctl::set_child_subreaper;

/// Makes this process the parent of its orphaned descendants until it is dropped, also by a case that fails: the
/// proxies of the cases after it would stay as zombies that nobody reaps.
#[must_use]
pub struct Subreaper(());

impl Subreaper {
    /// # Panics
    /// If the kernel refuses.
    #[expect(clippy::new_without_default, reason = "it changes the process")]
    pub fn new() -> Self {
        set_child_subreaper(true).expect("subreaper");
        Self(())
    }
}

impl Drop for Subreaper {
    fn drop(&mut self) {
        if let Err(error) = set_child_subreaper(false) {
            eprintln!("still a subreaper: {error}");
        }
    }
}
