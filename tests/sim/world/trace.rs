//! What a run leaves behind: its last lines, its hash, and how to see it again.

use std::collections::VecDeque;
use std::env;

use super::{Micros, World};

/// Lines shown of a run that failed.
const LINES: usize = 40;

pub(crate) struct Trace {
    /// `SIM_TRACE=1`: every line is printed as it comes.
    pub(crate) full: bool,
    lines: VecDeque<String>,
    hash: u64,
    told: std::cell::Cell<bool>,
}

impl Trace {
    pub(super) fn new() -> Self {
        let full = env::var_os("SIM_TRACE").is_some();
        let told = std::cell::Cell::new(false);
        Self { full, lines: VecDeque::new(), hash: 0xcbf2_9ce4_8422_2325, told }
    }

    /// FNV-1a over the times of all events: any other decision of a machine shows in one of them.
    pub(super) fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0100_0000_01b3);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

impl World {
    /// A line of the trace: a change that a reader of the run wants to know of.
    pub(crate) fn note(&mut self, node: usize, what: impl FnOnce() -> String) {
        let line = format!("{} n{node:03} {}", clock(self.now), what());
        if self.trace.full {
            eprintln!("{line}");
        }
        self.trace.lines.push_back(line);
        if self.trace.lines.len() > LINES {
            self.trace.lines.pop_front();
        }
    }

    /// A line that only the full trace has.
    pub(crate) fn detail(&self, node: usize, what: impl FnOnce() -> String) {
        if self.trace.full {
            eprintln!("{} n{node:03}   {}", clock(self.now), what());
        }
    }

    /// Ends the run: an invariant does not hold.
    pub(crate) fn fail(&self, invariant: &str, what: &str) -> ! {
        self.trace.told.set(true);
        panic!("invariant {invariant} does not hold: {what}\n{}", self.story());
    }

    fn story(&self) -> String {
        let lines: Vec<_> = self.trace.lines.iter().map(|line| format!("  {line}\n")).collect();
        let (seed, scenario, at) = (self.seed, self.scenario, clock(self.now));
        format!(
            "seed {seed}, {} nodes, at {at}; before that:\n{}replay with\n  SIM_SEED={seed} \
             SIM_TRACE=1 cargo test --test sim {scenario} -- --exact --nocapture",
            self.nodes.len(),
            lines.concat(),
        )
    }
}

/// A machine that panics is told of as well.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.trace.told.get() {
            eprintln!("{}", self.story());
        }
    }
}

fn clock(at: Micros) -> String {
    format!("{:4}.{:06}", at / 1_000_000, at % 1_000_000)
}
