//! What a process has used of the machine, as Linux tells it.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Use of the machine so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Time on a processor, of all threads.
    pub processor: Duration,
    /// Resident memory now, in bytes.
    pub memory: u64,
    /// The most it ever was, in bytes.
    pub peak_memory: u64,
}

/// The use of a process; `None` is this one.
///
/// # Errors
/// Of the `/proc` file system, for a process that is gone among others.
pub fn usage(pid: Option<u32>) -> Result<Usage> {
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let mut processor = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let text = match std::fs::read_to_string(thread?.path().join("schedstat")) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => continue, // it has just ended
            Err(error) => return Err(error),
        };
        let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
        processor += Duration::from_nanos(nanos.ok_or(ErrorKind::InvalidData)?);
    }
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let bytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim_end_matches("kB").trim().parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| Error::from(ErrorKind::InvalidData))
    };
    Ok(Usage { processor, memory: bytes("VmRSS:")?, peak_memory: bytes("VmHWM:")? })
}

/// Time on a processor of this thread.
pub fn thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_has_used_something() {
        let used = usage(None).expect("this process runs");
        assert!(used.processor > Duration::ZERO);
        assert!(used.memory > 0 && used.peak_memory >= used.memory / 2);
        assert!(usage(Some(std::process::id())).expect("the same").memory > 0);
        assert!(usage(Some(u32::MAX)).is_err());
    }
}
