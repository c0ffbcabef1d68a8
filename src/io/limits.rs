//! What the system lets this process have: how many descriptors, how much memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A cgroup of version 1 without a limit says a number close to 2^63.
const NO_LIMIT: u64 = 1 << 62;
/// Memory is scarce when less than an eighth of the limit is free, but for so much.
const RESERVE: u64 = 1 << 30;

/// How many descriptors this process may have open; `None` when there is no limit.
pub fn descriptors() -> Option<usize> {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|most| usize::try_from(most).ok())
}

/// Raises the soft limit of descriptors to the hard one; what it was and is.
///
/// # Errors
/// The system's; nothing changed.
pub fn raise_descriptors() -> io::Result<(Option<u64>, Option<u64>)> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok((current, maximum))
}

/// Has this process, and those that it starts, open so many descriptors: raises both limits, where they are lower.
///
/// # Errors
/// The system's: only a privileged process may raise the hard limit. Nothing changed.
pub fn allow_descriptors(many: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = |limit: Option<u64>| limit.map(|most| most.max(many));
    if current.is_some_and(|most| most < many) {
        let limit = Rlimit { current: raised(current), maximum: raised(maximum) };
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}

/// A limit that is nearly reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scarce {
    /// Whose.
    pub limit: &'static str,
    /// Bytes in use.
    pub used: u64,
    /// Bytes there may be.
    pub of: u64,
}

impl std::fmt::Display for Scarce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} of {} bytes", self.limit, self.used, self.of)
    }
}

/// Files of a control group that tell what it uses and may use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    limit: PathBuf,
    used: PathBuf,
    /// Has lines `NAME BYTES`; one of them is of files in memory that can be dropped at once.
    details: (PathBuf, &'static str),
}

/// What limits this process's memory: its control groups, and its address space.
#[derive(Clone, Debug)]
pub struct Memory(Vec<Group>);

impl Memory {
    /// Looks up the control groups of this process, and those that they are in.
    pub fn of_this_process() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self(groups_below(Path::new("/sys/fs/cgroup"), &groups))
    }

    /// The first limit that is nearly reached. What cannot be read is no limit.
    pub fn scarce(&self) -> Option<Scarce> {
        let groups = self.0.iter().filter_map(|group| Some(("cgroup", group.used()?)));
        let address_space = address_space().map(|use_of| ("address space", use_of));
        groups
            .chain(address_space)
            .find(|(_, (used, of))| near(*used, *of))
            .map(|(limit, (used, of))| Scarce { limit, used, of })
    }
}

fn near(used: u64, of: u64) -> bool {
    of.saturating_sub(used) < (of / 8).min(RESERVE)
}

impl Group {
    /// Bytes in use, and the limit, if there is one.
    fn used(&self) -> Option<(u64, u64)> {
        let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let limit = number(&self.limit).filter(|limit| *limit < NO_LIMIT)?;
        let (details, name) = (fs::read_to_string(&self.details.0).ok()?, self.details.1);
        let mut lines = details.lines().filter_map(|line| line.split_once(' '));
        let files = lines.find(|(it, _)| *it == name).and_then(|(_, bytes)| bytes.parse().ok());
        Some((number(&self.used)?.saturating_sub(files.unwrap_or(0)), limit))
    }
}

/// The groups that `/proc/self/cgroup` names, from the innermost outwards.
fn groups_below(root: &Path, text: &str) -> Vec<Group> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, [limit, used], files) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current"], "inactive_file"),
            other if other.split(',').any(|it| it == "memory") => (
                root.join("memory"),
                ["memory.limit_in_bytes", "memory.usage_in_bytes"],
                "total_inactive_file",
            ),
            _ => continue,
        };
        // In a container the path may be one that only the host has: then the mount is the container's own group.
        let inner = mount.join(path.trim_start_matches('/'));
        let outwards = inner.ancestors().take_while(|it| it.starts_with(&mount));
        let groups = outwards.filter(|group| group.join(limit).exists()).map(|group| Group {
            limit: group.join(limit),
            used: group.join(used),
            details: (group.join("memory.stat"), files),
        });
        found.extend(groups);
    }
    found
}

/// What is used of the address space, and its limit, if there is one. What the allocator has reserved and not touched is
/// not used: it takes from there before it asks for more.
fn address_space() -> Option<(u64, u64)> {
    let limit = getrlimit(Resource::As).current?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let reserved = bytes("VmData:")?.saturating_sub(bytes("VmRSS:")?);
    Some((bytes("VmSize:")?.saturating_sub(reserved), limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(group: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(group).expect("made");
        for (name, text) in files {
            fs::write(group.join(name), text).expect("written");
        }
    }

    #[test]
    fn memory_is_scarce_near_the_limit_of_a_group_or_of_one_that_it_is_in() {
        let root = tempfile::tempdir().expect("a directory");
        let outer = root.path().join("outer");
        let stat = ("memory.stat", "anon 5\nactive_file 3\ninactive_file 100000\n");
        let none = ("memory.max", "max\n");
        write(&outer, &[stat, ("memory.max", "1000000\n"), ("memory.current", "900000\n")]);
        write(&outer.join("inner"), &[stat, none, ("memory.current", "800000\n")]);
        let memory = Memory(groups_below(root.path(), "0::/outer/inner\n"));
        assert_eq!(memory.scarce(), None, "files in memory can be dropped");
        fs::write(outer.join("memory.current"), "980000\n").expect("written");
        let scarce = Scarce { limit: "cgroup", used: 880_000, of: 1_000_000 };
        assert_eq!(memory.scarce(), Some(scarce));
        let container = Memory(groups_below(&outer, "0::/only/the/host/knows\n"));
        assert!(container.scarce().is_some(), "the mount is the container's own");
    }

    #[test]
    fn groups_of_version_one_count_too() {
        let root = tempfile::tempdir().expect("a directory");
        let group = root.path().join("memory/service");
        let stat = ("memory.stat", "inactive_file 0\ntotal_inactive_file 7\n");
        let limit = ("memory.limit_in_bytes", "1000\n");
        write(&group, &[stat, limit, ("memory.usage_in_bytes", "907\n")]);
        let none = ("memory.limit_in_bytes", "9223372036854771712\n");
        write(&root.path().join("memory"), &[stat, none, ("memory.usage_in_bytes", "1\n")]);
        let groups = "9:cpu,cpuacct:/other\n4:memory:/service\n0::/\n";
        let memory = Memory(groups_below(root.path(), groups));
        assert_eq!(memory.scarce(), Some(Scarce { limit: "cgroup", used: 900, of: 1000 }));
    }

    #[test]
    fn large_limits_keep_a_gibibyte_free_and_small_ones_an_eighth() {
        assert!(!near(62 << 30, 64 << 30) && near((63 << 30) + 1, 64 << 30));
        assert!(!near(448 << 20, 512 << 20) && near((448 << 20) + 1, 512 << 20));
        assert!(near(100, 64), "more than the limit: it was lowered");
    }

    #[test]
    fn this_process_can_be_asked() {
        assert_eq!(Memory::of_this_process().scarce(), None);
        let (_, now) = raise_descriptors().expect("raised");
        assert_eq!(descriptors().map(|many| many as u64), now);
        assert_eq!(raise_descriptors().expect("as it was"), (now, now));
        allow_descriptors(64).expect("there are more");
        assert_eq!(raise_descriptors().expect("as it was"), (now, now));
    }
}
