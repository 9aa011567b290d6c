//! hull, its VMM and its callers are killed or get in each other's way, and nothing is left over.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use hull_tests::command::{eventually, wait};
use hull_tests::hull::vmm_of;
use hull_tests::interruption::{Interrupted, run_until_step};
use hull_tests::{Bundle, Engine, Finished, Hull, LeakCheck, Netns, Subreaper, run};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

/// After which steps of a command it is killed: `all`, `FIRST-LAST`, or how many, evenly over all of them.
const STEPS_VARIABLE: &str = "HULL_FAULT_STEPS";

/// A container that has of everything which `create` makes, in a network namespace that outlives it.
struct Ground {
    hull: Hull,
    bundle: Bundle,
    container: Netns,
    _peer: Netns,
    before: Vec<String>,
    leaks: LeakCheck,
}

impl Ground {
    fn new() -> Self {
        let (container, peer) = (Netns::new(), Netns::new());
        container.veth(
            "eth0",
            &["10.77.0.2/24", "fd77::2/64"],
            &peer,
            "peer0",
            &["10.77.0.1/24", "fd77::1/64"],
        );
        container.ip("route add default via 10.77.0.1");
        container.ip("neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        container.settle("eth0");
        let bundle = Bundle::new(&["sleep", "1000"])
            .in_netns(&container.path())
            .with(|config| {
                config["annotations"] = json!({ "dev.hull.memory_mib": "192" });
                config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
                config["hooks"]["createRuntime"] = json!([{ "path": "/bin/true" }]);
                config["mounts"].as_array_mut().unwrap().push(json!({
                    "destination": "/volume", "type": "bind", "source": "/etc", "options": ["rbind", "ro"]
                }));
            });
        fs::create_dir(bundle.path().join("pids")).expect("a directory");
        let before = network_of(&container);
        Self {
            hull: Hull::new(),
            bundle,
            before,
            container,
            _peer: peer,
            leaks: LeakCheck::with_cgroups(),
        }
    }

    fn create(&self) -> Command {
        let (bundle, pid_file) = (self.bundle.arg(), self.bundle.path().join("pids/pid"));
        let mut command = self.command(&["create", "--bundle", bundle, "--pid-file"]);
        command.arg(pid_file).arg("fault");
        command
    }

    fn ready(&self) {
        let _output = self.hull.create(&self.bundle, "fault");
    }

    fn started(&self) {
        self.ready();
        let _ = self.hull.hull(&["start", "fault"]).expect(0);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.hull.command(arguments);
        quieten(&mut command);
        command
    }

    /// `delete --force` takes all away that there is, however much that be.
    #[track_caller]
    fn clean_up(&self, after: &Interrupted) {
        let list = self.hull.hull(&["list", "--quiet"]);
        assert_eq!(list.code, 0, "{list:?} after {:?}", after.steps.last());
        let deleted = self.hull.hull(&["delete", "--force", "fault"]);
        assert_eq!(
            deleted.code,
            0,
            "{deleted:?} after {:?}",
            after.steps.last()
        );
        self.is_as_before(&format!("{:?}", after.steps.last()));
    }

    #[track_caller]
    fn is_as_before(&self, what: &str) {
        self.leaks.nothing_left(&self.hull.root());
        let mut network = Vec::new();
        let same = eventually(|| {
            network = network_of(&self.container);
            network == self.before
        });
        assert!(same, "after {what}: {network:#?}, not {:#?}", self.before);
        let beside = fs::read_dir(self.bundle.path().join("pids")).expect("a directory");
        for file in beside.flatten().map(|entry| entry.file_name()) {
            assert_eq!(file, "pid", "after {what}");
        }
    }

    /// Kills `command` after some of its steps, or after each, each time on a container that `prepare` has made.
    /// `count` is how many steps a run of all cases has the time for.
    fn sweep(&self, name: &str, count: usize, prepare: impl Fn(), command: impl Fn() -> Command) {
        prepare();
        let mut complaining = command();
        let complaints = self.bundle.path().join("complaints");
        complaining.stderr(File::create(&complaints).expect("a file"));
        let whole = run_until_step(&mut complaining, usize::MAX);
        let complaints = fs::read_to_string(complaints).expect("a file");
        assert_eq!(whole.code, Some(0), "{complaints}, {whole:?}");
        self.clean_up(&whole);
        let total = whole.steps.len();
        assert!(total > count, "{whole:?}");
        println!("{name} takes {total} steps");
        for step in chosen_steps(total, count) {
            let start = Instant::now();
            prepare();
            let interrupted = run_until_step(&mut command(), step);
            self.clean_up(&interrupted);
            println!(
                "{name}, step {step}: {:?}, {:?}, {:?}",
                interrupted.steps.last(),
                interrupted.code,
                start.elapsed()
            );
        }
    }
}

/// See [`STEPS_VARIABLE`].
fn chosen_steps(total: usize, count: usize) -> Vec<usize> {
    let number = |text: &str| text.parse::<usize>().expect(STEPS_VARIABLE);
    let count = match std::env::var(STEPS_VARIABLE) {
        Ok(all) if all == "all" => return (1..=total).collect(),
        Ok(text) => match text.split_once('-') {
            Some((first, last)) => return (number(first)..=number(last).min(total)).collect(),
            None => number(&text),
        },
        Err(_) => count,
    };
    let last = total - 1;
    (0..count)
        .map(|number| 1 + number * last / (count - 1).max(1))
        .collect()
}

fn quieten(command: &mut Command) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
}

/// All of a namespace's network that somebody has set.
fn network_of(netns: &Netns) -> Vec<String> {
    let shown = [
        "-d link",
        "addr",
        "route show table all",
        "-6 route show table all",
        "rule",
        "-6 rule",
        "neigh show nud permanent",
    ];
    let mut network: Vec<String> = shown.iter().map(|words| netns.ip(words)).collect();
    network.push(netns.exec("tc qdisc show").expect(0).text());
    network.push(netns.exec("tc filter show dev eth0 ingress").text());
    let settings = "grep -rs . /proc/sys/net/ipv4/conf/eth0 /proc/sys/net/ipv6/conf/eth0";
    network.push(netns.exec(settings).text());
    network
}

#[test]
fn create_killed_at_any_step_is_cleaned_up() {
    let ground = Ground::new();
    ground.sweep("create", 6, || (), || ground.create());
}

#[test]
fn start_killed_at_any_step_is_cleaned_up() {
    let ground = Ground::new();
    ground.sweep(
        "start",
        3,
        || ground.ready(),
        || ground.command(&["start", "fault"]),
    );
}

#[test]
fn delete_killed_at_any_step_is_cleaned_up() {
    let ground = Ground::new();
    ground.sweep(
        "delete --force",
        3,
        || ground.started(),
        || ground.command(&["delete", "--force", "fault"]),
    );
    ground.sweep(
        "delete",
        2,
        || ground.ready(),
        || ground.command(&["delete", "fault"]),
    );
}

#[test]
fn a_vm_that_ends_while_its_container_is_made_is_told_of_with_its_reason() {
    let leaks = LeakCheck::with_cgroups();
    let hull = Hull::new();
    // It is not to match the hook's own command line.
    let vmm = format!("{}/sandboxes/short/[v]m.json", hull.root().display());
    let script = format!("pkill -f {vmm}; while pgrep -f {vmm}; do sleep 0.1; done");
    let bundle = Bundle::new(&["true"]).with(|config| {
        config["hooks"]["createContainer"] =
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    });
    hull.run(&bundle, "short").expect_error(&[
        "the VM of sandbox short has ended",
        "signal 15 ended the machine",
    ]);
    leaks.nothing_left(&hull.root());
}

/// Runs two commands of hull at once.
fn at_once(hull: &Hull, commands: [&[&str]; 2]) -> [Finished; 2] {
    std::thread::scope(|scope| {
        let running = commands.map(|words| scope.spawn(move || hull.hull(words)));
        running.map(|command| command.join().expect("a command"))
    })
}

#[test]
fn of_two_deletes_at_once_one_wins_and_the_other_finds_the_container_gone() {
    let ground = Ground::new();
    ground.ready();
    let mut deletes = at_once(&ground.hull, [&["delete", "fault"], &["delete", "fault"]]);
    deletes.sort_by_key(|finished| finished.code);
    let [winner, loser] = deletes;
    let _ = winner.expect(0);
    loser.expect_error(&["does not exist"]);
    ground.is_as_before("two deletes");

    ground.started();
    let forced: &[&str] = &["delete", "--force", "fault"];
    for finished in at_once(&ground.hull, [forced, forced]) {
        let _ = finished.expect(0);
    }
    ground.is_as_before("two forced deletes");
}

#[test]
fn a_delete_wins_over_a_start_and_a_kill_at_the_same_time() {
    let ground = Ground::new();
    let forced: &[&str] = &["delete", "--force", "fault"];
    for other in [&["start", "fault"][..], &["kill", "fault", "KILL"]] {
        ground.ready();
        let [deleted, other] = at_once(&ground.hull, [forced, other]);
        let _ = deleted.expect(0);
        // The other may have come first, and has failed in words if it has not.
        assert!(other.code == 0 || !other.stderr.is_empty(), "{other:?}");
        ground.is_as_before("delete at once with another command");
    }
}

/// The exit code that a waiting caller was given, and how long after the VMM's end.
fn outcome(waiting: ScopedJoinHandle<'_, (i32, Instant)>, what: &str, killed: Instant) -> i32 {
    let (code, ended) = waiting.join().expect("a caller");
    println!(
        "{what}: {code}, {:?} after the VMM was killed",
        ended.duration_since(killed)
    );
    code
}

fn kill_vmm(pid: i32) -> Instant {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the VMM");
    Instant::now()
}

#[test]
fn a_killed_vmm_gives_137_to_every_caller_and_leaves_stopped_containers() {
    let ground = Ground::new();
    // Two containers in one VM: one whose caller is hull's, and one whose caller waits for its proxy.
    let subreaper = Subreaper::new();
    let (hull, bundle) = (&ground.hull, &ground.bundle);
    let speaking = Bundle::shell("echo there; sleep 1000").in_netns(&ground.container.path());
    std::thread::scope(|scope| {
        // A command that says a word once its process runs and it stands for it.
        let foreground = |arguments: &[&str]| {
            let mut child = hull
                .command(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("hull");
            let mut word = [0; 6];
            let output = child.stdout.as_mut().expect("piped");
            output.read_exact(&mut word).expect("a word");
            scope.spawn(move || (wait(&mut child).expect("an end"), Instant::now()))
        };
        let first = foreground(&["run", "--bundle", speaking.arg(), "first"]);
        let _output = hull.create(bundle, "second");
        let _ = hull.hull(&["start", "second"]).expect(0);
        let proxy = hull.state("second")["pid"].as_i64().expect("pid");
        let executed = foreground(&["exec", "second", "sh", "-c", "echo there; sleep 1000"]);
        let second = scope.spawn(move || {
            let pid = Pid::from_raw(proxy.try_into().expect("pid"));
            match waitpid(pid, None) {
                Ok(WaitStatus::Exited(_, code)) => (code, Instant::now()),
                other => panic!("{other:?}"),
            }
        });

        let killed = kill_vmm(hull.vmm("first"));
        hull.await_status("second", "stopped");
        assert_eq!(outcome(first, "run", killed), 137);
        assert_eq!(
            outcome(second, "the proxy of a detached container", killed),
            137
        );
        assert_eq!(outcome(executed, "exec", killed), 137);
    });
    drop(subreaper);
    hull.hull(&["kill", "second", "KILL"])
        .expect_error(&["not running"]);
    hull.hull(&["exec", "second", "true"])
        .expect_error(&["stopped"]);
    let _ = hull.hull(&["delete", "second"]).expect(0);
    ground.is_as_before("the VMM's end");
}

#[test]
fn a_killed_vmm_gives_137_to_docker_and_to_podman() {
    let leaks = LeakCheck::new();
    let (docker, podman) = (Engine::docker(), Engine::podman());
    let (in_docker, in_podman) = (
        docker.start(&[], "sleep 1000"),
        podman.start(&[], "sleep 1000"),
    );
    std::thread::scope(|scope| {
        let wait = |program: &'static str, words: Vec<String>| {
            scope.spawn(move || {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let finished = run(program, &words);
                // `wait` prints the code, and the rest end with it.
                let printed = finished.text().trim().parse();
                (printed.unwrap_or(finished.code), Instant::now())
            })
        };
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let waiting = [
            ("docker wait", wait("docker", words(&["wait", &in_docker]))),
            ("podman wait", wait("podman", words(&["wait", &in_podman]))),
        ];
        let vmm = |engine: &Engine, name: &str, format: &str| {
            let id = engine.ok(&["inspect", "--format", format, name]);
            vmm_of(engine.root(), id.trim())
        };
        let vmms = [
            vmm(&docker, &in_docker, "{{.Id}}"),
            vmm(&podman, &in_podman, "{{.Id}}"),
        ];
        for ((what, waiting), vmm) in waiting.into_iter().zip(vmms) {
            let killed = kill_vmm(vmm);
            assert_eq!(outcome(waiting, what, killed), 137, "{what}");
        }
    });
    for (engine, container) in [(&docker, &in_docker), (&podman, &in_podman)] {
        let code = engine.ok(&["inspect", "--format", "{{.State.ExitCode}}", container]);
        assert_eq!(code, "137\n");
        engine.remove(container);
    }
    let root = docker.root().to_owned();
    drop((docker, podman));
    leaks.nothing_left(&root);
    leaks.nothing_left(Path::new("/run/hull"));
}
