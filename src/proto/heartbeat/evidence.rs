//! What a doubt or a verdict rests on, and what it says about the way between two nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::WITNESSES;
use crate::proto::event::Broken;
use crate::proto::node::NodeName;

/// A beacon within the first two seconds of a silence may be older than what caused it: until then no
/// beat was missed.
const CLEARLY: Duration = Duration::from_secs(2);
/// A process that sent a beacon so lately runs.
const FRESH: Duration = Duration::from_secs(3);

/// What a doubt or a verdict rests on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Suspicion level now.
    pub phi: f64,
    /// Beats that should have come since the last byte.
    pub missed: u64,
    /// Time since the last byte.
    pub silence: Duration,
    /// Peers that still hear it.
    pub heard_by: BTreeSet<NodeName>,
    /// Peers that do not hear it either.
    pub confirmed_by: BTreeSet<NodeName>,
    /// What the layers below saw; the machine leaves it empty.
    pub traces: Traces,
}

/// What the layers below a link saw of a silent peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Bytes sent to it that its machine has not acknowledged; `None` where the system does not tell.
    pub unacknowledged: Option<u32>,
    /// TCP segments of its machine that arrived during the silence, likewise.
    pub segments: Option<u32>,
    /// Bytes that its machine acknowledged during the silence, likewise.
    pub acknowledged: Option<u32>,
    /// Time since its last beacon; `None` when none was ever heard.
    pub beacon: Option<Duration>,
}

impl Traces {
    /// Whether both ways are open and its process runs, and only the connection waits for what a bad line has lost: it
    /// sends beacons, and its machine acknowledges what this one sends.
    pub(super) fn reached(&self) -> bool {
        self.acknowledged.is_some_and(|bytes| bytes > 0)
            && self.beacon.is_some_and(|age| age < FRESH)
    }
}

impl Evidence {
    /// What is broken; `None` when it cannot be told.
    pub fn broken(&self) -> Option<Broken> {
        let Traces { unacknowledged, segments, beacon, .. } = self.traces;
        let beacon = beacon.is_some_and(|age| age + CLEARLY < self.silence);
        match (unacknowledged, segments) {
            (Some(0), Some(1..)) => Some(Broken::Process),
            (Some(1..), Some(1..)) => Some(Broken::WayThere),
            (Some(1..), _) if beacon => Some(Broken::WayThere),
            (_, Some(0)) if !beacon && self.heard_by.len() >= WITNESSES => Some(Broken::WayBack),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn evidence(traces: Traces, heard: usize) -> Evidence {
        let witnesses = ["c@h", "d@h", "e@h"].into_iter().take(heard);
        let heard_by = witnesses.map(|name| name.parse().expect("valid")).collect();
        Evidence { silence: seconds(8), heard_by, traces, ..Evidence::default() }
    }

    #[test]
    fn a_peer_is_reached_when_it_acknowledges_and_its_beacons_come() {
        let reached = |acknowledged, beacon: Option<u64>| {
            let beacon = beacon.map(seconds);
            Traces { acknowledged, beacon, ..Traces::default() }.reached()
        };
        assert!(reached(Some(1), Some(2)));
        assert!(!reached(Some(0), Some(0)), "the way there is cut");
        assert!(!reached(Some(90), Some(3)), "a stopped process on a machine that runs");
        assert!(!reached(Some(90), None) && !reached(None, Some(0)), "nothing is known");
    }

    #[test]
    fn the_evidence_names_what_is_broken_only_when_it_shows() {
        let traces = |unacknowledged, segments, beacon: Option<u64>| Traces {
            unacknowledged,
            segments,
            acknowledged: None,
            beacon: beacon.map(seconds),
        };
        for (traces, heard, broken) in [
            // Retransmissions arrive, and nothing sent is acknowledged.
            (traces(Some(90), Some(2), None), 2, Some(Broken::WayThere)),
            // Only its beacons arrive.
            (traces(Some(90), Some(0), Some(3)), 2, Some(Broken::WayThere)),
            (traces(Some(90), None, Some(3)), 0, Some(Broken::WayThere)),
            // Nothing arrives, but others hear it; its last beacon is from before the cut.
            (traces(Some(90), Some(0), Some(11)), 2, Some(Broken::WayBack)),
            (traces(Some(90), Some(0), Some(7)), 2, Some(Broken::WayBack)),
            (traces(Some(90), Some(0), None), 2, Some(Broken::WayBack)),
            (traces(Some(90), Some(0), None), 3, Some(Broken::WayBack)),
            // One may be wrong, or lie.
            (traces(Some(90), Some(0), None), 1, None),
            // Nothing arrives, and nobody hears it: dead, or cut off.
            (traces(Some(90), Some(0), None), 0, None),
            // A stopped process on a machine that runs.
            (traces(Some(0), Some(7), None), 0, Some(Broken::Process)),
            // A system that tells nothing.
            (traces(None, None, None), 2, None),
            (traces(None, None, Some(1)), 2, None),
        ] {
            assert_eq!(evidence(traces, heard).broken(), broken, "{traces:?}, heard: {heard}");
        }
    }
}
