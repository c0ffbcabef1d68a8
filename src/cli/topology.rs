//! `xpando-node topology`: who sees whom, as a matrix, a graph, or JSON.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::status::{TopologyLink, TopologyStatus};
use xpando_node::internals::proto::node::NodeName;

use super::ask::{Which, ask};
use super::output;

#[derive(Debug, Args)]
pub(super) struct TopologyArgs {
    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    form: Form,
}

/// One of them; a matrix for people when none is given.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Form {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Print a graph for Graphviz
    #[arg(long)]
    dot: bool,

    /// Print a graph for Mermaid
    #[arg(long)]
    mermaid: bool,

    /// Print a matrix of characters (the default)
    #[arg(long)]
    ascii: bool,
}

pub(super) fn topology(args: &TopologyArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let topology: TopologyStatus = ask(&args.which.find()?, &Request::Topology)?;
    let form = &args.form;
    let text = match (form.json, form.dot, form.mermaid) {
        (true, ..) => return output::json(out, &topology),
        (_, true, _) => dot(&topology),
        (.., true) => mermaid(&topology),
        (false, false, false) => matrix(&topology),
    };
    Ok(output::lines(out, &text)?)
}

/// A row for each node that sees, a column for each that is seen.
fn matrix(topology: &TopologyStatus) -> String {
    let names: Vec<&NodeName> = topology.nodes.iter().map(|node| &node.name).collect();
    let cells: BTreeMap<_, _> = topology.links.iter().map(|l| ((&l.from, &l.to), l)).collect();
    let width = names.iter().map(|name| name.as_str().len()).max().unwrap_or(0);
    let mut text = format!("as seen by {}\n{:width$}", topology.as_seen_by, "");
    for column in 1..=names.len() {
        text.push_str(&format!(" {column:>3}"));
    }
    text.push('\n');
    for (row, from) in names.iter().enumerate() {
        text.push_str(&format!("{from:width$}"));
        for to in &names {
            let sign = if from == to { "\\" } else { sign(cells.get(&(*from, *to)).copied()) };
            text.push_str(&format!("   {sign}"));
        }
        text.push_str(&format!("  {}\n", row + 1));
    }
    text + "# online  ? suspect  x offline  . connecting or syncing  (blank) nothing known\n"
}

pub(super) fn sign(link: Option<&TopologyLink>) -> &'static str {
    match link.map(|link| link.state.as_str()) {
        Some("online") => "#",
        Some("suspect") => "?",
        Some("offline") => "x",
        Some(_) => ".",
        None => " ",
    }
}

fn dot(topology: &TopologyStatus) -> String {
    let mut text = format!("digraph \"as seen by {}\" {{\n", topology.as_seen_by);
    for node in &topology.nodes {
        text.push_str(&format!("  \"{}\" [comment=\"{}\"];\n", node.name, node.status.label()));
    }
    for link in &topology.links {
        let colour = if link.state == "online" { "darkgreen" } else { "red" };
        let TopologyLink { from, to, state, .. } = link;
        let label = link.rtt_ms.map_or_else(|| state.clone(), |rtt| format!("{rtt:.1} ms"));
        text.push_str(&format!("  \"{from}\" -> \"{to}\" [label=\"{label}\", color={colour}];\n"));
    }
    text + "}\n"
}

fn mermaid(topology: &TopologyStatus) -> String {
    let names: Vec<&NodeName> = topology.nodes.iter().map(|node| &node.name).collect();
    let at = |name: &NodeName| names.iter().position(|other| *other == name).unwrap_or(0);
    let mut text = "graph LR\n".to_owned();
    for (number, name) in names.iter().enumerate() {
        text.push_str(&format!("  n{number}[\"{name}\"]\n"));
    }
    for link in &topology.links {
        let arrow = if link.state == "online" { "-->" } else { "-.->" };
        let (from, to) = (at(&link.from), at(&link.to));
        text.push_str(&format!("  n{from} {arrow}|{}| n{to}\n", link.state));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use xpando_node::internals::gateway::status::TopologyNode;
    use xpando_node::internals::proto::event::Status;

    fn topology() -> TopologyStatus {
        let name = |text: &str| -> NodeName { text.parse().expect("valid") };
        let node =
            |text: &str| TopologyNode { name: name(text), status: Status::Online, incarnation: 1 };
        let link = |from: &str, to: &str, state: &str| TopologyLink {
            from: name(from),
            to: name(to),
            state: state.to_owned(),
            rtt_ms: None,
            phi: 0.0,
            since: String::new(),
            reason: None,
        };
        TopologyStatus {
            as_seen_by: name("a@h"),
            version: 1,
            agreement: String::new(),
            nodes: vec![node("a@h"), node("b@h"), node("c@h")],
            links: vec![
                link("a@h", "b@h", "online"),
                link("a@h", "c@h", "suspect"),
                link("b@h", "a@h", "offline"),
            ],
        }
    }

    #[test]
    fn the_matrix_has_a_sign_for_each_direction() {
        let text = matrix(&topology());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "      1   2   3");
        assert_eq!(lines[2], "a@h   \\   #   ?  1");
        assert_eq!(lines[3], "b@h   x   \\      2");
        assert_eq!(lines[4], "c@h           \\  3");
    }

    #[test]
    fn graphs_have_an_edge_for_each_direction() {
        let text = dot(&topology());
        assert!(text.contains("\"a@h\" -> \"b@h\" [label=\"online\", color=darkgreen]"), "{text}");
        assert!(text.contains("\"b@h\" -> \"a@h\" [label=\"offline\", color=red]"), "{text}");
        let text = mermaid(&topology());
        assert!(
            text.contains("n0 -->|online| n1") && text.contains("n1 -.->|offline| n0"),
            "{text}"
        );
    }
}
