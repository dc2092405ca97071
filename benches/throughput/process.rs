//! The processes that are measured: started, pinned, read from `/proc`, and always ended.

use std::{
    env, fmt, fs,
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    thread,
};

/// A process that ends when this goes.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command` without its standard output, which is the log: written, as in production, and read by nobody.
pub(crate) fn spawn(command: &mut Command) -> Guard {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    Guard(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// This binary in another role, listening.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) address: SocketAddr,
    guard: Guard,
}

impl Process {
    pub(crate) fn start(flag: &str, role: &str, upstream: Option<&SocketAddr>, cpu: Option<&str>) -> Self {
        let this = env::current_exe().unwrap();
        let mut command = match cpu {
            // It becomes the command, so the process id is the target's.
            Some(cpu) => {
                let mut taskset = Command::new("taskset");
                taskset.args(["-c", cpu]).arg(this);
                taskset
            }
            None => Command::new(this),
        };
        command.args([flag, role]).args(upstream.map(SocketAddr::to_string)).stderr(Stdio::piped());
        let mut guard = spawn(&mut command);
        let mut said = BufReader::new(guard.0.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap_or_else(|_| panic!("the {role} did not start: {line}"));
        // What else it says there is why it failed.
        thread::spawn(move || io::copy(&mut said, &mut io::stderr()));
        Self { address, guard }
    }

    /// CPU time of all its threads, ended ones included; `NaN` where there is no `/proc`.
    ///
    /// In ticks of 10 ms, which is finer than a percent of the shortest sensible measurement.
    pub(crate) fn cpu_micros(&self) -> f64 {
        const MICROS_PER_TICK: f64 = 10_000.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.guard.0.id())).unwrap_or_default();
        // The second field is the name, which may have spaces; user and system time are the 14th and 15th.
        let ticks = stat.rsplit_once(") ").and_then(|(_, rest)| {
            let mut rest = rest.split(' ').skip(11);
            Some(rest.next()?.parse::<f64>().ok()? + rest.next()?.parse::<f64>().ok()?)
        });
        ticks.map_or(f64::NAN, |ticks| ticks * MICROS_PER_TICK)
    }

    /// Resident memory; `NaN` where there is no `/proc`.
    pub(crate) fn rss_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.guard.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.map_or(f64::NAN, |kib| kib / 1024.0)
    }
}

/// Lets this process, and those that it starts from now on, have at least `wanted` files open, if the system allows it
/// and `prlimit` is there to ask for it. Returns how many they may have.
pub(crate) fn allow_open_files(wanted: usize) -> usize {
    let allowed = open_files().0;
    if allowed < wanted {
        let mut command = Command::new("prlimit");
        let (limit, id) = (open_files().1.min(wanted), std::process::id());
        command.args([format!("--nofile={limit}:"), format!("--pid={id}")]);
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    open_files().0
}

/// How many files this process may have open now, and how many it may ask for.
fn open_files() -> (usize, usize) {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(usize::MAX));
    (numbers.next().unwrap_or(usize::MAX), numbers.next().unwrap_or(usize::MAX))
}

/// An address that nobody listens at, a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Ends this process when its parent has ended, however that happened: its standard input ends with it.
pub(crate) fn end_with_parent() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}

/// Whether processes keep to a CPU each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pinning(bool);

impl Pinning {
    /// Pins this process, which makes the load, to CPU 0, if there is a second one and `taskset` to do it with.
    pub(crate) fn of_this_process() -> Self {
        let quietly = |arguments: &[&str]| {
            let mut command = Command::new("taskset");
            let ended =
                command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            ended.is_ok_and(|status| status.success())
        };
        let id = std::process::id().to_string();
        Self(quietly(&["-c", "1", "true"]) && quietly(&["-a", "-c", "-p", "0", &id]))
    }

    pub(crate) fn upstream(self) -> Option<&'static str> {
        self.0.then_some("0")
    }

    pub(crate) fn target(self) -> Option<&'static str> {
        self.0.then_some("1")
    }
}

impl fmt::Display for Pinning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 {
            "load and upstream on CPU 0, target on CPU 1"
        } else {
            "not pinned to CPUs (no taskset, or one CPU): figures vary more"
        })
    }
}
