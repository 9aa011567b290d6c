//! The sandbox's containers: their table, and one file for each thing that is done with them.
//!
//! Runs in the agent's event loop; what forks is done by the [`helper`], a process of its own. Callers are the calls of
//! [`crate::rpc`] and the streams of [`crate::stdio`].

mod cgroup;
mod copy_up;
mod create;
mod devices;
mod exec;
pub mod helper;
mod inspect;
mod notify;
mod out_of_memory;
pub mod pod_init;
mod remove;
mod shared_memory;
mod signal;
pub mod spec;
mod start;
mod update;
mod volumes;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hull_agent_protocol::SHARED_MEMORY;
use hull_agent_protocol::notify::DIRECTORY;
use oci_spec::runtime::LinuxSeccomp;

pub use cgroup::CgroupError;
pub use create::CreateOptions;
pub use devices::DeviceError;
pub use inspect::ProcessInfo;
pub(crate) use notify::NotifySocket;
pub(crate) use out_of_memory::OutOfMemory;
pub use pod_init::PodInitError;
pub use shared_memory::SharedMemory;

use crate::mounts::MountError;
use crate::process::{Process, Reaper, Watched};
use cgroup::Cgroup;
use volumes::Volumes;

/// Why something could not be done with a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Ids become names of directories.
    #[error("{0:?} is no id of a container or process")]
    BadId(String),
    /// The id is taken.
    #[error("container {0:?} exists already")]
    Exists(String),
    /// There is none with this id.
    #[error("there is no container {0:?}")]
    NoContainer(String),
    /// The exec id is taken.
    #[error("container {container:?} has a process {exec:?} already")]
    ProcessExists {
        /// The container.
        container: String,
        /// The process.
        exec: String,
    },
    /// There is none with this exec id.
    #[error("container {container:?} has no process {exec:?}")]
    NoProcess {
        /// The container.
        container: String,
        /// The process.
        exec: String,
    },
    /// The container's state does not allow it.
    #[error("container {container:?} is {state}")]
    State {
        /// The container.
        container: String,
        /// What it is.
        state: &'static str,
    },
    /// The process has ended.
    #[error("the process has ended already")]
    Ended,
    /// The specification, or the process object.
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    /// A sysctl of the network namespace.
    #[error("set sysctl {name} to {value:?}")]
    Sysctl {
        /// Its name.
        name: String,
        /// The value asked for.
        value: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file of the agent's own.
    #[error("{action} {path:?}")]
    File {
        /// What was done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A tmpfs that begins with files of the image.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Copying these files ended by a fault of this program.
    #[error("copy files of the image")]
    CopyUp(#[source] tokio::task::JoinError),
    /// Pipes or the terminal of a process.
    #[error("make the process's stdio")]
    Stdio(#[source] io::Error),
    /// The helper.
    #[error(transparent)]
    Helper(#[from] helper::HelperError),
    /// The init of a pod that no container holds.
    #[error(transparent)]
    PodInit(#[from] PodInitError),
    /// `libcontainer` outside the helper.
    #[error("start the container")]
    Start(#[source] libcontainer::error::LibcontainerError),
    /// A cgroup that is not below the container's.
    #[error("{0} is not a sub cgroup path")]
    BadCgroup(String),
    /// The container's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container's device rules.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// A limit of its cgroup.
    #[error("limit the container")]
    Limit(#[source] Box<libcgroups::v2::manager::V2ManagerError>),
    /// A number that is no signal.
    #[error("{0} is no signal")]
    BadSignal(u32),
    /// kill(2).
    #[error("send the signal")]
    Signal(#[source] nix::Error),
}

/// Where things are in the guest.
#[derive(Clone, Debug)]
pub struct Paths {
    /// This program, to start helpers from.
    pub program: PathBuf,
    /// `libcontainer`'s state.
    pub state: PathBuf,
    /// The bundles that it reads.
    pub bundles: PathBuf,
    /// The parent of the containers' cgroups.
    pub cgroups: PathBuf,
    /// The parent of the directories of their notification sockets.
    pub notify: PathBuf,
    /// The parent of the mounts of their shared memory.
    pub shared_memory: PathBuf,
}

impl Paths {
    /// The guest's.
    pub fn guest() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            state: "/run/hull/state".into(),
            bundles: "/run/hull/bundles".into(),
            cgroups: "/sys/fs/cgroup/hull".into(),
            notify: DIRECTORY.into(),
            shared_memory: SHARED_MEMORY.into(),
        }
    }
}

/// All containers of the sandbox.
pub struct Containers {
    paths: Paths,
    reaper: Arc<Reaper>,
    /// Without a container: one is being made under this id.
    table: Mutex<HashMap<String, Option<Arc<Container>>>>,
    /// The init of the pod, from the first container on that shares its processes; held while one is started.
    pod_init: tokio::sync::Mutex<Option<Watched>>,
}

/// One container.
pub struct Container {
    id: String,
    cgroup: Cgroup,
    seccomp: Option<LinuxSeccomp>,
    notify: Option<Arc<NotifySocket>>,
    pub(crate) out_of_memory: OutOfMemory,
    shared_memory: Vec<SharedMemory>,
    volumes: Volumes,
    started: Mutex<bool>,
    processes: Mutex<HashMap<String, ProcessEntry>>,
    /// Held while a process is added: `libcontainer`'s files of one are not told from another's.
    adding: tokio::sync::Mutex<()>,
}

struct ProcessEntry {
    /// Without a process: it is being made.
    process: Option<Arc<Process>>,
    added: Instant,
}

/// How long a process of exec can be asked about after its end, and its streams can be opened.
const REMEMBERED: Duration = Duration::from_secs(600);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ids become names of files, and words of a line: see `hull_agent_protocol::stdio`.
fn check_id(id: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id.len() > 255 || id == "." || id == ".." || !id.bytes().all(plain) {
        return Err(Error::BadId(id.to_owned()));
    }
    Ok(())
}

impl Containers {
    /// No containers yet.
    pub fn new(paths: Paths, reaper: Arc<Reaper>) -> Self {
        Self {
            paths,
            reaper,
            table: Mutex::default(),
            pod_init: tokio::sync::Mutex::default(),
        }
    }

    /// The reaper that follows their processes.
    pub fn reaper(&self) -> &Arc<Reaper> {
        &self.reaper
    }

    /// The container with this id.
    ///
    /// # Errors
    /// [`Error::NoContainer`].
    pub fn get(&self, id: &str) -> Result<Arc<Container>, Error> {
        lock(&self.table)
            .get(id)
            .and_then(Option::clone)
            .ok_or_else(|| Error::NoContainer(id.to_owned()))
    }

    /// Whether a container has this shared memory.
    fn is_used(&self, memory: &SharedMemory) -> bool {
        let table = lock(&self.table);
        let mut all = table
            .values()
            .flatten()
            .flat_map(|container| &container.shared_memory);
        all.any(|used| used.name == memory.name)
    }

    /// The pid of the pod's init, which is started if there is none.
    async fn pod_init(&self) -> Result<i32, Error> {
        let mut held = self.pod_init.lock().await;
        if let Some(init) = held.as_ref().filter(|init| pod_init::runs(init)) {
            return Ok(init.pid());
        }
        let init = pod_init::start(&self.paths.program, &self.reaper).await?;
        Ok(held.insert(init).pid())
    }

    fn guest(&self) -> spec::Guest {
        let cpus = std::fs::read_to_string("/sys/devices/system/cpu/present")
            .ok()
            .and_then(|list| spec::parse_cpus(&list))
            .unwrap_or_else(|| BTreeSet::from([0]));
        let first_processes = lock(&self.table)
            .values()
            .flatten()
            .filter_map(|container| container.process("").ok())
            .filter(|process| process.exit().is_none())
            .map(|process| process.pid())
            .collect();
        spec::Guest {
            cpus,
            first_processes,
            swap: self.paths.cgroups.join("memory.swap.max").exists(),
            cgroups: Path::new("/").join(below_mount(&self.paths.cgroups)),
        }
    }
}

/// A cgroup's path from the root of its tree.
fn below_mount(cgroup: &Path) -> &Path {
    cgroup.strip_prefix("/sys/fs/cgroup").unwrap_or(cgroup)
}

impl Container {
    /// The process with this exec id; empty for the first one.
    ///
    /// # Errors
    /// [`Error::NoProcess`].
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        lock(&self.processes)
            .get(exec_id)
            .and_then(|entry| entry.process.clone())
            .ok_or_else(|| Error::NoProcess {
                container: self.id.clone(),
                exec: exec_id.to_owned(),
            })
    }

    /// Its notification socket, for the one who may read it.
    pub(crate) fn take_notify_socket(&self) -> Option<Arc<NotifySocket>> {
        self.notify.clone().filter(|socket| socket.take())
    }

    fn state(&self, state: &'static str) -> Error {
        Error::State {
            container: self.id.clone(),
            state,
        }
    }

    /// Whether the OOM killer has ended one of its processes.
    pub fn oom_killed(&self) -> bool {
        self.cgroup.oom_kills() > 0
    }
}
