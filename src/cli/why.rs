//! `xpando-node why NAME`: why a peer has the status it has, in a few lines of plain words; `why HOST:PORT`: what became
//! of a `--join`.

use std::io::Write;
use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::bail;
use clap::Args;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::status::{EvidenceStatus, NodeStatus, PeerStatus, SeedStatus};
use xpando_node::internals::io::seeds::{Seed, SeedError};
use xpando_node::internals::proto::event::{Broken, Event, Page, Query, Reason, Status};
use xpando_node::internals::proto::node::NodeName;

use super::ask::{Which, ask, status_of};
use super::output::write_line;
use super::query::{majority, uptime};
use super::watch::described;

/// Events of the peer that are shown.
const SHOWN: usize = 5;

#[derive(Debug, Args)]
pub(super) struct WhyArgs {
    /// The peer, or what was given to --join
    #[arg(value_name = "NAME@HOST|HOST:PORT")]
    subject: Subject,

    #[command(flatten)]
    which: Which,
}

/// What is asked about.
#[derive(Clone, Debug)]
enum Subject {
    Peer(NodeName),
    /// A `--join`, or the short name of a peer, as it was typed.
    Seed(String, Seed),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            text.parse().map(Self::Peer).map_err(|error| error.to_string())
        } else {
            let seed = text.parse().map_err(|error: SeedError| error.to_string())?;
            Ok(Self::Seed(text.to_owned(), seed))
        }
    }
}

pub(super) fn why(args: &WhyArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let directory = args.which.find()?;
    let status = status_of(&directory)?;
    let name = match &args.subject {
        Subject::Peer(name) => name.clone(),
        Subject::Seed(text, seed) => match peer_called(&status, text) {
            Some(name) => name,
            None => {
                let (lines, node) = seed_lines(&status, &seed.to_string())?;
                lines.iter().try_for_each(|line| write_line!(out, "{line}"))?;
                let Some(node) = node.filter(|node| *node != status.name) else { return Ok(()) };
                node
            }
        },
    };
    let peer = status.peers.iter().find(|peer| peer.name == name);
    let told = match peer {
        _ if name == status.name => own(&status),
        Some(peer) => lines(peer, &status.name),
        None => bail!(
            "{} knows of no {name}; `xpando-node nodes` lists the nodes that it knows",
            status.name
        ),
    };
    told.iter().try_for_each(|line| write_line!(out, "{line}"))?;
    let label = Some("equivocation".to_owned());
    let query = Query { limit: 1, label, node: Some(name.clone()), ..Query::default() };
    let page: Page = ask(&directory, &Request::Events(query))?;
    let proofs = page.events.iter().flat_map(|it| proof(&it.event));
    proofs.into_iter().try_for_each(|line| write_line!(out, "{line}"))?;
    let query = Query { limit: SHOWN, node: Some(name), ..Query::default() };
    let page: Page = ask(&directory, &Request::Events(query))?;
    if !page.events.is_empty() {
        write_line!(out, "What happened last:")?;
    }
    for event in &page.events {
        write_line!(out, "  {}", described(event))?;
    }
    Ok(())
}

/// What proves that a node states different things to different peers.
fn proof(event: &Event) -> Vec<String> {
    let Event::Equivocation { statements, signatures, .. } = event else { return Vec::new() };
    let both = statements.iter().zip(signatures);
    let both = both.map(|(it, signature)| format!("  statement {it}\n  signature {signature}"));
    [format!("{event}.")].into_iter().chain(both).collect()
}

/// The node that is asked about itself.
fn own(status: &NodeStatus) -> Vec<String> {
    let NodeStatus { name, incarnation, listen, .. } = status;
    let mut lines = vec![
        format!("{name} is that node itself: no peer of its own."),
        format!(
            "It runs as incarnation {incarnation} for {}, listens on {listen}, and {}.",
            uptime(status.uptime_s),
            majority(&status.majority)
        ),
    ];
    lines.extend(status.degraded.as_ref().map(|why| format!("It is degraded: {why}.")));
    if status.draining {
        lines.push("It sends clients to other nodes.".to_owned());
    }
    if status.local_health > 0 {
        lines.push("It was paused lately, and waits longer before it doubts others.".to_owned());
    }
    lines
}

/// The one peer with this short name.
fn peer_called(status: &NodeStatus, short: &str) -> Option<NodeName> {
    let mut called = status.peers.iter().filter(|peer| peer.name.short() == short);
    called.next().filter(|_| called.next().is_none()).map(|peer| peer.name.clone())
}

/// What became of a `--join`, and the node that it led to.
fn seed_lines(status: &NodeStatus, asked: &str) -> anyhow::Result<(Vec<String>, Option<NodeName>)> {
    let is_at = |address: Option<SocketAddr>| address.is_some_and(|at| at.to_string() == asked);
    let seeds = status.seeds.iter().filter(|it| it.seed == asked || is_at(it.address));
    let lines: Vec<_> = seeds.clone().map(|seed| seed_line(seed, &status.name)).collect();
    if !lines.is_empty() {
        return Ok((lines, seeds.into_iter().find_map(|seed| seed.node.clone())));
    }
    let Some(peer) = status.peers.iter().find(|peer| is_at(peer.address)) else {
        let seeds: Vec<_> = status.seeds.iter().map(|it| it.seed.as_str()).collect();
        let given = if seeds.is_empty() { "no --join".to_owned() } else { seeds.join(", ") };
        bail!(
            "{} knows nobody at {asked}, and was not told to join there (it was given {given})",
            status.name
        )
    };
    let line =
        format!("{} was not told to join at {asked}, but {} is there.", status.name, peer.name);
    Ok((vec![line], Some(peer.name.clone())))
}

fn seed_line(seed: &SeedStatus, asked: &NodeName) -> String {
    let address = seed.address.map(|address| address.to_string());
    let address = address.filter(|address| *address != seed.seed);
    let at =
        address.map_or_else(|| seed.seed.clone(), |address| format!("{} ({address})", seed.seed));
    let node = seed.node.as_ref().filter(|node| *node != asked);
    let found = match (node, &seed.error, &seed.tried) {
        (Some(node), _, _) if seed.linked => format!("{node} is there, and linked"),
        (_, Some(error), Some(tried)) => {
            format!(
                "tried last at {tried}: {error}. It is tried again, at most 30 s apart{}",
                remedy(error)
            )
        }
        (_, Some(error), None) => error.clone(),
        (Some(node), None, _) => format!("{node} is there, and is being linked"),
        (None, None, _) => "no answer yet".to_owned(),
    };
    format!("{asked} is to join at {at}: {found}.")
}

/// What helps, where the error tells.
fn remedy(error: &str) -> &'static str {
    let remedies = [
        (
            "belongs to another cluster",
            ". Both need certificates of one authority: give them one --certs",
        ),
        (
            "connection refused",
            ". Nobody listens there: is the node running, and is this its port (`xpando-node ps`)",
        ),
        ("timed out", ". Nothing answers there: a firewall, or no such host"),
        ("no TLS within", ". Somebody listens there, but does not answer as a node"),
    ];
    let found = remedies.iter().find(|(part, _)| error.contains(part));
    found.map_or("", |(_, remedy)| remedy)
}

/// What is said where one side does not trust the other one's authority, which has the same name as its own.
const REFUSED: [&str; 3] = ["refused our certificate", "BadSignature", "UnknownIssuer"];

fn lines(peer: &PeerStatus, asked: &NodeName) -> Vec<String> {
    let name = &peer.name;
    let mut lines = vec![match peer.reason {
        Some(reason) => format!(
            "{asked} sees {name} {} ({}) since {}.",
            peer.status.label(),
            reason.label(),
            peer.since
        ),
        None => format!("{asked} sees {name} {} since {}.", peer.status.label(), peer.since),
    }];
    lines.push(meaning(peer));
    if let Some(cause) = &peer.cause {
        lines.push(format!("The last thing that went wrong: {cause}."));
        if REFUSED.iter().any(|part| cause.contains(part)) {
            lines.push(format!(
                "If {asked} was away while the cluster's authority was replaced, it has to join anew: stop it, remove ca and {asked}/cert.pem from its certificate directory (the key may stay), run `xpando-node invite` on a node that issues, and here `xpando-node join LINE --name {asked}`."
            ));
        }
    }
    if !peer.reached_by.is_empty() {
        lines.push(format!(
            "{} linked with it: it is unreachable from here, not down.",
            list(&peer.reached_by)
        ));
    }
    if let Some(heard) = &peer.last_heard {
        lines.push(format!("Its last byte arrived here at {heard}."));
    }
    if let Some(evidence) = &peer.evidence {
        lines.extend(grounds(evidence));
    }
    if peer.status == Status::Offline && peer.reason != Some(Reason::Left) {
        let address = peer.address.map_or_else(String::new, |address| format!(" at {address}"));
        lines.push(format!("It is dialed again and again{address}, at most 30 s apart."));
    }
    lines
}

fn meaning(peer: &PeerStatus) -> String {
    let text = match (peer.status, peer.reason) {
        (Status::Online, _) if peer.suspect => {
            "It is linked, but has been silent for too long: doubted."
        }
        (Status::Online, _) => match peer.rtt_ms {
            Some(rtt) => {
                return format!("It is linked and answers: the last beat took {rtt:.1} ms.");
            }
            None => "It is linked.",
        },
        (Status::Syncing, _) => "Both sides agreed; ractor exchanges its state.",
        (Status::Connecting, _) => "It is being dialed.",
        (Status::Offline, Some(Reason::Left)) => {
            "It said goodbye. It is dialed no more until a later life of it is heard of."
        }
        (Status::Offline, Some(Reason::Crashed)) => {
            "Its connection closed, and nobody listens at its address."
        }
        (Status::Offline, Some(Reason::Rejected)) => {
            "Somebody answers there, but the link was refused."
        }
        (Status::Offline, Some(Reason::Replaced)) => {
            "It announced a later life, which is not linked yet."
        }
        (Status::Offline, Some(Reason::Revoked)) => {
            "Its certificate is revoked: it needs a new one from the cluster's authority."
        }
        (Status::Offline, Some(Reason::Disconnected)) => {
            "An operator ended the link. It is dialed again later."
        }
        (Status::Offline, _) => "It does not answer from here.",
    };
    text.to_owned()
}

/// Names as the subject of a sentence: "a is", "a and b are".
fn list(names: &[NodeName]) -> String {
    match names {
        [] => "nobody is".to_owned(),
        [one] => format!("{one} is"),
        [some @ .., last] => {
            let some: Vec<&str> = some.iter().map(NodeName::as_str).collect();
            format!("{} and {last} are", some.join(", "))
        }
    }
}

fn grounds(evidence: &EvidenceStatus) -> Vec<String> {
    let EvidenceStatus { phi, missed, silence_ms, heard_by, confirmed_by, .. } = evidence;
    let seconds = *silence_ms as f64 / 1e3;
    let mut lines =
        vec![format!("It had missed {missed} beats in {seconds:.1} s of silence (phi {phi:.1}).")];
    let names =
        |names: &[NodeName]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match heard_by.as_slice() {
        [] => {}
        [one] => lines.push(format!("{one} states that it still heard it.")),
        some => {
            let who = names(some);
            lines.push(format!("Still heard by {who}: the path from here is cut, not the node."));
        }
    }
    if !confirmed_by.is_empty() {
        lines.push(format!("Not heard by {} either.", names(confirmed_by)));
    }
    lines.extend(traces(evidence));
    lines.extend(evidence.broken.map(|broken| {
        match broken {
            Broken::WayThere => {
                "So the way from here to it is cut; it can still be heard.".to_owned()
            }
            Broken::WayBack => "So the way from it to here is cut, at least.".to_owned(),
            Broken::Process => "So its machine runs and the way is open, but the node itself \
                            is stopped or starved."
                .to_owned(),
        }
    }));
    lines
}

/// What the layers below saw, in one sentence.
fn traces(evidence: &EvidenceStatus) -> Option<String> {
    let mut seen = Vec::new();
    match evidence.unacknowledged_bytes {
        Some(0) => seen.push("everything sent to it was acknowledged".to_owned()),
        Some(bytes) => seen.push(format!("{bytes} bytes sent to it were not acknowledged")),
        None => {}
    }
    seen.extend(evidence.segments.map(|count| match count {
        0 => "no segment of its machine arrived".to_owned(),
        count => format!("{count} segments of its machine arrived"),
    }));
    seen.extend(
        evidence
            .beacon_ms
            .map(|age| format!("its last beacon had come {:.1} s before", age as f64 / 1e3)),
    );
    (!seen.is_empty()).then(|| format!("By then {}.", seen.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(status: Status, reason: Option<Reason>) -> PeerStatus {
        PeerStatus {
            name: "b@h".parse().expect("valid"),
            id: None,
            address: Some(([10, 0, 0, 2], 4697).into()),
            status,
            suspect: false,
            reason,
            cause: None,
            reached_by: vec![],
            incarnation: Some(1),
            since: "2026-01-02T03:04:05.678Z".to_owned(),
            rtt_ms: None,
            rtt_p50_ms: None,
            rtt_p99_ms: None,
            phi: None,
            last_heard: None,
            evidence: None,
            specializations: vec![],
            metadata: Default::default(),
            uptime_s: None,
            first_seen: None,
            last_seen: None,
            reputation: 0.0,
        }
    }

    fn shown(peer: &PeerStatus) -> String {
        lines(peer, &"a@h".parse().expect("valid")).join("\n")
    }

    #[test]
    fn a_cut_path_is_told_from_a_dead_node() {
        let evidence = EvidenceStatus {
            phi: 300.0,
            missed: 8,
            silence_ms: 8500,
            heard_by: vec!["c@h".parse().expect("valid"), "d@h".parse().expect("valid")],
            confirmed_by: vec![],
            unacknowledged_bytes: Some(180),
            segments: Some(2),
            beacon_ms: Some(400),
            broken: Some(Broken::WayThere),
        };
        let cut = PeerStatus {
            evidence: Some(evidence.clone()),
            cause: Some("not heard for too long".to_owned()),
            reached_by: vec!["c@h".parse().expect("valid"), "d@h".parse().expect("valid")],
            ..peer(Status::Offline, Some(Reason::Unreachable))
        };
        let text = shown(&cut);
        assert!(text.contains("offline (unreachable) since 2026-01-02"), "{text}");
        assert!(text.contains("missed 8 beats in 8.5 s") && text.contains("phi 300.0"), "{text}");
        assert!(text.contains("Still heard by c@h, d@h: the path from here is cut"), "{text}");
        assert!(text.contains("went wrong: not heard for too long."), "{text}");
        assert!(
            text.contains("c@h and d@h are linked with it: it is unreachable from here, not down")
        );
        assert!(text.contains(
            "By then 180 bytes sent to it were not acknowledged, 2 segments of its machine arrived, \
             its last beacon had come 0.4 s before."
        ));
        assert!(text.contains("the way from here to it is cut"), "{text}");
        assert!(text.contains("dialed again and again at 10.0.0.2:4697"), "{text}");
        let one = vec!["c@h".parse().expect("valid")];
        let text = grounds(&EvidenceStatus { heard_by: one, ..evidence }).concat();
        assert!(text.contains("c@h states that it") && !text.contains("not the node"), "{text}");
    }

    #[test]
    fn a_seed_is_explained_with_its_last_error_and_what_helps() {
        let seed = |error: Option<&str>, node: Option<&str>, linked| SeedStatus {
            seed: "db.example:4697".to_owned(),
            address: Some(([10, 0, 0, 2], 4697).into()),
            node: node.map(|name| name.parse().expect("valid")),
            linked,
            tried: Some("2026-01-02T03:04:05.678Z".to_owned()),
            error: error.map(str::to_owned),
        };
        let line = |seed: &SeedStatus| seed_line(seed, &"a@h".parse().expect("valid"));
        let refused = line(&seed(Some("connection refused"), None, false));
        let begins = "a@h is to join at db.example:4697 (10.0.0.2:4697): tried last at 2026-01-02";
        assert!(refused.starts_with(begins), "{refused}");
        assert!(refused.contains("connection refused. It is tried again"), "{refused}");
        assert!(refused.contains("is the node running"), "{refused}");
        let linked = line(&seed(None, Some("b@h"), true));
        assert!(linked.ends_with("b@h is there, and linked."), "{linked}");
        let myself = line(&seed(Some("it is this node itself"), Some("a@h"), false));
        assert!(myself.contains("it is this node itself"), "{myself}");
    }

    #[test]
    fn who_left_is_not_said_to_be_dialed() {
        let text = shown(&peer(Status::Offline, Some(Reason::Left)));
        assert!(text.contains("said goodbye") && !text.contains("again and again"), "{text}");
        let text = shown(&peer(Status::Offline, Some(Reason::Crashed)));
        assert!(text.contains("nobody listens") && text.contains("again and again"), "{text}");
        let text = shown(&peer(Status::Offline, Some(Reason::Revoked)));
        assert!(text.contains("offline (revoked)") && text.contains("needs a new one"), "{text}");
        let online = PeerStatus { rtt_ms: Some(0.84), ..peer(Status::Online, None) };
        assert!(shown(&online).contains("the last beat took 0.8 ms"));
        assert!(shown(&PeerStatus { suspect: true, ..online }).contains("doubted"));
    }
}
