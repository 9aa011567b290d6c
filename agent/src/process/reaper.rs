//! Reaps every child of PID 1, and tells those who asked how theirs ended.
//!
//! A process may end before its pid has come back from the helper that started it. So exits are kept while any start is
//! under way ([`Reaper::starting`]), and [`Starting::watch`] finds them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use tokio::signal::unix::{SignalKind, signal as listen};
use tokio::sync::watch;

use crate::sys;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + N for a process that signal N ended.
    pub status: u8,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

impl Exit {
    fn now(status: i32) -> Self {
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_nanos()).ok())
            .unwrap_or(0);
        Self {
            status: u8::try_from(status).unwrap_or(u8::MAX),
            at,
        }
    }
}

/// Reaps the children of this process. One for the whole process, since it waits for all.
#[derive(Default)]
pub struct Reaper {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Who waits for which pid. An entry leaves when its process is reaped, so these pids are not used again.
    watched: HashMap<i32, watch::Sender<Option<Exit>>>,
    /// Starts under way.
    starting: usize,
    /// Exits of pids that nobody watches yet, kept while a start is under way.
    unclaimed: HashMap<i32, Exit>,
}

impl Reaper {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces that a process is about to be started.
    pub fn starting(self: &Arc<Self>) -> Starting {
        self.table().starting += 1;
        Starting {
            reaper: Arc::clone(self),
        }
    }

    /// Reaps on every SIGCHLD, for ever.
    ///
    /// # Errors
    /// When the signal cannot be listened for.
    pub async fn run(self: Arc<Self>) -> std::io::Result<()> {
        let mut children = listen(SignalKind::child())?;
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Reaps all children that have ended.
    pub fn reap(&self) {
        let mut table = self.table();
        loop {
            match sys::reap_any() {
                Ok(None) | Err(Errno::ECHILD) => return,
                Ok(Some((pid, status))) => table.ended(pid, Exit::now(status)),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waitpid failed");
                    return;
                }
            }
        }
    }

    /// Whether this process has children that have not been reaped.
    pub fn has_children(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::All, flags) != Err(Errno::ECHILD)
    }
}

impl Table {
    fn ended(&mut self, pid: i32, exit: Exit) {
        if let Some(watcher) = self.watched.remove(&pid) {
            watcher.send_replace(Some(exit));
        } else if self.starting > 0 {
            self.unclaimed.entry(pid).or_insert(exit);
        }
    }
}

/// A start under way: while it lives, no exit is lost.
pub struct Starting {
    reaper: Arc<Reaper>,
}

impl Starting {
    /// Follows the process that this start has made.
    pub fn watch(self, pid: i32) -> Watched {
        let mut table = self.reaper.table();
        let (sender, exit) = watch::channel(table.unclaimed.remove(&pid));
        if exit.borrow().is_none() {
            table.watched.insert(pid, sender);
        }
        drop(table);
        Watched {
            pid,
            exit,
            reaper: Arc::clone(&self.reaper),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        table.starting -= 1;
        if table.starting == 0 {
            table.unclaimed.clear();
        }
    }
}

/// A process that the reaper follows.
pub struct Watched {
    pid: i32,
    exit: watch::Receiver<Option<Exit>>,
    reaper: Arc<Reaper>,
}

impl Watched {
    /// The pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            if exit.changed().await.is_err() {
                // The sender leaves the table only after it has sent.
                if self.exit().is_none() {
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Sends a signal. False: it has ended already.
    ///
    /// # Errors
    /// As kill(2).
    pub fn signal(&self, signal: i32) -> nix::Result<bool> {
        // Under the table's lock nothing is reaped, so a pid that is still watched is still this process.
        let table = self.reaper.table();
        if !table.watched.contains_key(&self.pid) {
            return Ok(false);
        }
        sys::send_signal(self.pid, signal)?;
        Ok(true)
    }
}
