//! What instances are restored from: Debian's tree, the disk, and the saved state of the booted machine.
//!
//! Two entries of the cache. `testbed/tree-<hash>` is what mmdebstrap makes from `tests/testbed/packages` for a release
//! of Debian. `testbed/image-<hash>` has the disk with the files of `tests/testbed/machine` over it, and the state. The
//! machines of all releases are run by QEMU of Debian 13's tree, which an image names by the link `tree`, with the kernel of
//! that tree; its busybox is that of a release whose list has none, too. Entries never change: instances write to disks of
//! their own on top.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::erratum;
use super::qemu::{self, Qemu};
use super::ssh::{self, Connection, Terminal};
use crate::cache::Fingerprint;
use crate::debian::{Mirror, Release};
use crate::progress::Progress;
use crate::{cache, command, workspace};

/// To be raised when what this file does to an image changes.
const REVISION: &str = "1";

/// Files of the image's entry.
const BASE: &str = "base.img";
const STATE: &str = "state";
const KEY: &str = "key";
const KNOWN_HOSTS: &str = "known_hosts";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.cpio";
const TREE: &str = "tree";
const QEMU: &str = "qemu-system-x86_64";

/// In a tree.
const BUSYBOX: &str = "usr/bin/busybox";

/// The disk's size as the machine sees it; the file is sparse.
const DISK_SIZE: u64 = 16 << 30;

/// The release whose QEMU and kernel run the machines. Those of others are not reliable: QEMU of Debian 12 with two CPUs,
/// its kernel's timers under emulation, and guests of unstable's kernel.
const QEMU_RELEASE: Release = Release::Trixie;

/// What the small initrd loads to mount the root disk, in this order, each after those that it needs. Those that a
/// kernel has built in are left out.
const INITRD_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// Not every root's PATH has the directory.
const MKFS: &str = "/sbin/mkfs.ext4";

/// Programs of the host that making an image needs, and their packages.
const TOOLS: [(&str, &str); 5] = [
    ("mmdebstrap", "mmdebstrap"),
    (MKFS, "e2fsprogs"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("setpriv", "util-linux"),
];

/// An image, whole and unchanging.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    directory: PathBuf,
}

impl Image {
    /// The image of this checkout's `tests/testbed` with a release of Debian, made if the cache does not have it.
    pub(crate) fn build(release: Release) -> Result<Image> {
        let inputs = workspace::root().join("tests/testbed");
        let qemu = tree_name(&inputs, QEMU_RELEASE)?;
        let tree = tree_name(&inputs, release)?;
        let name = image_name(&inputs, &tree, &qemu)?;
        if cache::has(&name)? {
            return Ok(Image::at(cache::root()?.join(name)));
        }
        require_host()?;
        cache::entry(&qemu, |directory| {
            make_tree(&inputs, QEMU_RELEASE, directory)
        })?;
        let tree = Tree(cache::entry(&tree, |directory| {
            make_tree(&inputs, release, directory)
        })?);
        cache::entry(&name, |directory| {
            make_image(&inputs, &tree, &qemu, directory)
        })
        .map(Image::at)
    }

    /// The image in `directory`.
    pub(super) fn at(directory: PathBuf) -> Image {
        Image { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The tree that QEMU is run from.
    pub(super) fn tree(&self) -> Tree {
        Tree(self.directory.join(TREE))
    }

    /// The words that start QEMU, which is a repaired copy of the tree's.
    pub(super) fn qemu(&self) -> [PathBuf; 4] {
        self.tree().with_its_libraries(self.directory.join(QEMU))
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.directory.join(KERNEL)
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.directory.join(INITRD)
    }

    pub(super) fn state(&self) -> PathBuf {
        self.directory.join(STATE)
    }

    pub(super) fn key(&self) -> PathBuf {
        self.directory.join(KEY)
    }

    pub(super) fn known_hosts(&self) -> PathBuf {
        self.directory.join(KNOWN_HOSTS)
    }

    /// Makes the disk of a new instance in its `directory`, as it was when the state was saved.
    pub(super) fn make_disk(&self, directory: &Path) -> Result<()> {
        let disk = directory.join(qemu::DISK);
        // A new file, for a QEMU that is about to end may still have the old one open.
        if disk.exists() {
            fs::remove_file(&disk)?;
        }
        self.tree()
            .overlay(&self.directory.join(qemu::DISK), "qcow2", &disk)
    }
}

/// An unpacked tree of Debian packages, whose programs run on the host.
pub(super) struct Tree(PathBuf);

impl Tree {
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.path("usr/bin").join(name)
    }

    /// The words that start `program` with the tree's dynamic linker and libraries.
    fn with_its_libraries(&self, program: PathBuf) -> [PathBuf; 4] {
        [
            self.path("usr/lib64/ld-linux-x86-64.so.2"),
            PathBuf::from("--library-path"),
            self.path("usr/lib/x86_64-linux-gnu"),
            program,
        ]
    }

    fn overlay(&self, below: &Path, format: &str, disk: &Path) -> Result<()> {
        let [linker, further @ ..] = self.with_its_libraries(self.program("qemu-img"));
        command::quiet(
            Command::new(linker)
                .args(further)
                .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
                .args([below, disk]),
        )
    }

    /// Its one kernel.
    fn kernel(&self) -> Result<Kernel> {
        let modules = self.path("usr/lib/modules");
        let versions = names(&modules)?;
        let [version] = versions.as_slice() else {
            bail!(
                "{} should hold one kernel's modules: {versions:?}",
                modules.display()
            );
        };
        Ok(Kernel {
            file: self.path(&format!("boot/vmlinuz-{version}")),
            modules: modules.join(version),
        })
    }
}

/// A kernel in a tree.
struct Kernel {
    file: PathBuf,
    /// The directory with its modules, named after its version.
    modules: PathBuf,
}

fn tree_name(inputs: &Path, release: Release) -> Result<String> {
    let mut inputs_of_tree = Fingerprint::default();
    inputs_of_tree.add("revision", REVISION);
    inputs_of_tree.add("suite", release.suite());
    inputs_of_tree.add("packages", packages(inputs, release)?.join(" "));
    Ok(format!("testbed/tree-{}", inputs_of_tree.name()))
}

/// `qemu`: the tree that QEMU is run from.
fn image_name(inputs: &Path, tree: &str, qemu: &str) -> Result<String> {
    let mut inputs_of_image = Fingerprint::default();
    inputs_of_image.add("revision", REVISION);
    inputs_of_image.add("tree", tree);
    // The saved state depends on QEMU too.
    if qemu != tree {
        inputs_of_image.add("qemu", qemu);
    }
    inputs_of_image.add("erratum", erratum::NAME);
    inputs_of_image.add("machine", qemu::MACHINE.join(" "));
    inputs_of_image.add_file("initrd-init", &inputs.join("initrd-init"))?;
    for file in files(&inputs.join("machine"))? {
        let name = file.strip_prefix(inputs)?.to_string_lossy();
        inputs_of_image.add(&name, [u8::from(is_executable(&file)?)]);
        inputs_of_image.add_file(&name, &file)?;
    }
    Ok(format!("testbed/image-{}", inputs_of_image.name()))
}

/// Refuses a host on which an image cannot be made.
fn require_host() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the test bed's image is made as root, for the files in it to be root's");
    }
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| !is_in_path(program))
        .map(|&(_, package)| package)
        .collect();
    if !missing.is_empty() {
        bail!(
            "the test bed's image needs more packages: apt-get install {}",
            missing.join(" ")
        );
    }
    Ok(())
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn make_tree(inputs: &Path, release: Release, directory: &Path) -> Result<()> {
    let mirror = Mirror::of_host()?;
    let suite = release.suite();
    // unstable's lists are valid for a week; a mirror that stands still serves the tests as well.
    let source = format!(
        "deb [signed-by=\"{}\" check-valid-until=no] {} {suite} main",
        mirror.keyring.display(),
        mirror.address
    );
    eprintln!("making a tree of Debian {suite}'s packages for the test bed (some two minutes)");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        // The machine has its own small initrd.
        .env("INITRD", "No")
        .args(["--mode=root", "--variant=minbase"])
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg(format!(
            "--include={}",
            packages(inputs, release)?.join(",")
        ))
        .arg(suite)
        .arg(directory)
        .arg(source)
        .stdin(Stdio::null());
    command::run(&mut mmdebstrap)
}

fn make_image(inputs: &Path, tree: &Tree, qemu: &str, directory: &Path) -> Result<()> {
    let mut progress = Progress::start("test bed");
    let image = Image::at(directory.to_owned());
    // The entries lie side by side.
    let qemu = Path::new(qemu).file_name().context("a tree has a name")?;
    symlink(Path::new("..").join(qemu), directory.join(TREE))?;
    let kernel = image.tree().kernel()?;
    fs::copy(&kernel.file, image.kernel())?;
    copy_qemu(&image)?;

    progress.say("making its initrd and its disk");
    make_initrd(inputs, &image, &kernel)?;
    make_base_disk(inputs, &image, tree, &kernel)?;

    progress.say("booting");
    // A relative name below, for the entry is renamed when it is finished.
    image
        .tree()
        .overlay(Path::new(BASE), "raw", &directory.join(qemu::DISK))?;
    let mut machine = Qemu::boot(&image, directory)?;
    warm_up(&image, &mut machine, &mut progress)
        .with_context(|| machine.said())
        .context("cannot warm the test bed's machine up")?;

    progress.say("saving its state");
    machine.save(&image.state())?;
    progress.finish("ready");
    Ok(())
}

/// Takes QEMU from the tree without the fault that kills guests.
fn copy_qemu(image: &Image) -> Result<()> {
    let mut program = fs::read(image.tree().program(QEMU))?;
    if !erratum::repair(&mut program) {
        eprintln!(
            "this QEMU is not the one whose SVM erratum is known: if it has it too, one guest in some hundred dies as it boots"
        );
    }
    let copy = image.directory().join(QEMU);
    fs::write(&copy, program)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn warm_up(image: &Image, machine: &mut Qemu, progress: &mut Progress) -> Result<()> {
    let connection = Connection {
        image,
        directory: image.directory(),
        port: machine.ssh_port()?,
    };
    // sshd is reached once the machine has booted; until then QEMU takes the connection and says nothing.
    let start = std::time::Instant::now();
    loop {
        let mut ssh = connection.shell("exec true".as_ref(), Terminal::No);
        if command::quiet(&mut ssh).is_ok() {
            break;
        }
        if let Some(status) = machine.ended()? {
            bail!("it ended while booting: {status}");
        }
        ensure!(start.elapsed().as_secs() < 300, "it does not boot");
        progress.tick(|| "booting".to_owned());
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    progress.say("importing container images and running each engine once");
    let words = ["/usr/lib/testbed/warm-up".into()];
    let mut ssh = connection.shell(&ssh::script(&words, &[]), Terminal::No);
    let said = command::output(&mut ssh)?;
    fs::write(image.directory().join("warm-up.log"), said)?;
    Ok(())
}

/// Packs the initrd: busybox, the modules, and `tests/testbed/initrd-init`.
fn make_initrd(inputs: &Path, image: &Image, kernel: &Kernel) -> Result<()> {
    let content = image.directory().join("initrd");
    fs::create_dir_all(content.join("bin"))?;
    let busybox = image.tree().path(BUSYBOX);
    fs::copy(&busybox, content.join("bin/busybox"))?;
    install_file(&inputs.join("initrd-init"), &content.join("init"), 0o755)?;
    let mut order = fs::File::create(content.join("modules"))?;
    let dependencies = String::from_utf8(read(&kernel.modules.join("modules.dep"))?)?;
    for file in load_order(&dependencies, &INITRD_MODULES) {
        let unpack: &[&str] = if file.ends_with(".xz") {
            &["unxz", "-c"]
        } else {
            &["cat"]
        };
        let name = module_name(file);
        let mut unpacking = Command::new(&busybox);
        unpacking
            .args(unpack)
            .arg(kernel.modules.join(file))
            .stdout(fs::File::create(content.join(name))?);
        command::run(&mut unpacking)?;
        writeln!(order, "{name}")?;
    }
    drop(order);
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | \"$1\" cpio -o -H newc >\"$2\"", "sh"])
        .args([&busybox, &image.initrd()])
        .current_dir(&content);
    command::quiet(&mut cpio)?;
    fs::remove_dir_all(content)?;
    Ok(())
}

/// The files of `modules`, and of those that they need, in the order to load them. `dependencies` is the text of
/// `modules.dep`: for each file those that it needs, the first one to load last.
fn load_order<'a>(dependencies: &'a str, modules: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for module in modules {
        let mut entries = dependencies.lines().filter_map(|line| line.split_once(':'));
        let Some((file, needed)) = entries.find(|(file, _)| module_name(file) == *module) else {
            // It is built in.
            continue;
        };
        for file in needed.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

/// The name of the module in `file`, such as `kernel/fs/ext4/ext4.ko.xz`.
fn module_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}

/// Makes the root file system from a copy of the tree, which is made of hard links, and this project's files.
fn make_base_disk(inputs: &Path, image: &Image, tree: &Tree, kernel: &Kernel) -> Result<()> {
    let root = image.directory().join("root");
    link_tree(&tree.path("."), &root)?;
    let modules = root.join("usr/lib/modules");
    fs::create_dir_all(&modules)?;
    if names(&modules)?.is_empty() {
        link_tree(&kernel.modules, &modules)?;
    }
    let busybox = root.join(BUSYBOX);
    if !busybox.exists() {
        fs::hard_link(image.tree().path(BUSYBOX), busybox)?;
    }
    let machine = inputs.join("machine");
    for file in files(&machine)? {
        let mode = if is_executable(&file)? { 0o755 } else { 0o644 };
        install_file(&file, &root.join(file.strip_prefix(&machine)?), mode)?;
    }
    make_keys(image, &root)?;
    fs::create_dir_all(root.join("opt/cni"))?;
    symlink("/usr/lib/cni", root.join("opt/cni/bin"))?;

    let base = image.directory().join(BASE);
    fs::File::create(&base)?.set_len(DISK_SIZE)?;
    command::quiet(
        Command::new(MKFS)
            .args(["-q", "-F", "-L", "testbed"])
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1"])
            .arg("-d")
            .args([&root, &base]),
    )?;
    fs::remove_dir_all(root)?;
    Ok(())
}

/// Copies a directory by hard links to its files.
fn link_tree(source: &Path, target: &Path) -> Result<()> {
    command::quiet(
        Command::new("cp")
            .args(["--archive", "--link"])
            .args([source, target]),
    )
}

/// Makes the key that root logs in with and the one that the machine is known by.
fn make_keys(image: &Image, root: &Path) -> Result<()> {
    let generate = |file: &Path| {
        command::quiet(
            Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f"])
                .arg(file),
        )
    };
    let public = |file: &Path| -> Result<String> {
        let path = file.with_extension("pub");
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    generate(&image.key())?;
    let authorized = root.join("root/.ssh/authorized_keys");
    fs::create_dir_all(root.join("root/.ssh"))?;
    fs::set_permissions(root.join("root/.ssh"), fs::Permissions::from_mode(0o700))?;
    fs::write(authorized, public(&image.key())?)?;

    for name in names(&root.join("etc/ssh"))? {
        if name.starts_with("ssh_host_") {
            fs::remove_file(root.join("etc/ssh").join(name))?;
        }
    }
    let host_key = root.join("etc/ssh/ssh_host_ed25519_key");
    generate(&host_key)?;
    let known = format!("testbed {}", public(&host_key)?);
    fs::write(image.known_hosts(), known)?;
    Ok(())
}

/// Copies a file over another, or over a hard link to it, whose content elsewhere stays as it is.
fn install_file(source: &Path, target: &Path, mode: u32) -> Result<()> {
    let parent = target.parent().context("an installed file has a parent")?;
    fs::create_dir_all(parent)?;
    if target.exists() {
        fs::remove_file(target)?;
    }
    fs::write(target, read(source)?)
        .with_context(|| format!("cannot write {}", target.display()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// The packages that the list names for a release.
fn packages(inputs: &Path, release: Release) -> Result<Vec<String>> {
    let list = fs::read_to_string(inputs.join("packages"))
        .context("cannot read the test bed's list of packages")?;
    let packages = list.lines().filter_map(|line| package(line, release));
    Ok(packages.map(str::to_owned).collect())
}

/// The package that a line of the list names, if the release is among those that it is for: `NAME`, or
/// `NAME [SUITE SUITE …]`.
fn package(line: &str, release: Release) -> Option<&str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let Some((name, suites)) = line.split_once('[') else {
        return Some(line);
    };
    let mut suites = suites.trim_end_matches(']').split_whitespace();
    suites
        .any(|suite| suite == release.suite())
        .then(|| name.trim())
}

/// All files below `directory`, in order of their names.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in names(directory)? {
        let path = directory.join(name);
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?
    {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn is_executable(file: &Path) -> Result<bool> {
    Ok(fs::metadata(file)?.permissions().mode() & 0o100 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_loaded_after_those_that_it_needs_and_once() {
        let dependencies = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
                            kernel/fs/jbd2/jbd2.ko.xz: kernel/lib/crc16.ko.xz\n\
                            kernel/lib/crc16.ko.xz:\n";
        assert_eq!(
            load_order(dependencies, &["virtio_blk", "jbd2", "ext4"]),
            [
                "kernel/lib/crc16.ko.xz",
                "kernel/fs/jbd2/jbd2.ko.xz",
                "kernel/fs/ext4/ext4.ko.xz"
            ]
        );
    }

    #[test]
    fn a_package_may_be_for_some_releases_only() {
        assert_eq!(package("runc", Release::Sid), Some("runc"));
        let marked = "seabios [bookworm trixie]";
        assert_eq!(package(marked, Release::Trixie), Some("seabios"));
        assert_eq!(package(marked, Release::Sid), None);
        assert_eq!(package("# a comment", Release::Sid), None);
    }
}
