//! What `top` draws: a line of the node itself, its peers beside the matrix of links, rates, and the latest events.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};
use xpando_node::internals::gateway::status::{ClusterView, PeerStatus};
use xpando_node::internals::io::clock::rfc3339;
use xpando_node::internals::proto::event::Status;
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::printable::Printable;

use super::View;
use crate::cli::labels::{cut, labels};
use crate::cli::topology::sign;

/// Columns of a node's name, at most.
const NAME: usize = 24;
/// Columns of a node's label beside the matrix, at most.
const LABEL: usize = 12;
/// Columns of the peers' table, at least, whatever the matrix would take.
const PEERS: u16 = 50;

pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let Some(sight) = &view.sight else { return };
    let nodes = u16::try_from(sight.topology.nodes.len()).unwrap_or(u16::MAX);
    let height = frame.area().height;
    // The events get what is left, and never less than five lines.
    let tables = nodes.saturating_add(3).min(height.saturating_sub(12)).max(4);
    let parts = [
        Constraint::Length(2),
        Constraint::Length(tables),
        Constraint::Length(4),
        Constraint::Min(3),
    ];
    let [head, middle, rates, events] = Layout::vertical(parts).areas(frame.area());
    frame.render_widget(top(view, sight), head);
    let names: Vec<&NodeName> = sight.topology.nodes.iter().map(|node| &node.name).collect();
    let labels = labels(&names, LABEL);
    let label = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let label = u16::try_from(label).unwrap_or(u16::MAX);
    let matrix = nodes.saturating_mul(2).saturating_add(label).saturating_add(3);
    let matrix = matrix.min(frame.area().width.saturating_sub(PEERS));
    let [left, right] =
        Layout::horizontal([Constraint::Min(0), Constraint::Length(matrix)]).areas(middle);
    frame.render_widget(peers(sight, view.down), left);
    frame.render_widget(links(sight, &labels, view.down), right);
    draw_rates(frame, view, rates);
    frame.render_widget(latest(view, events), events);
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn framed(title: String) -> Block<'static> {
    Block::new().borders(Borders::TOP).border_style(dim()).title(title)
}

fn top(view: &View, sight: &ClusterView) -> Paragraph<'static> {
    let status = &sight.status;
    let known = status.peers.len() + 1;
    let online = status.peers.iter().filter(|peer| peer.status == Status::Online).count() + 1;
    let (hours, minutes) = (status.uptime_s / 3600, status.uptime_s / 60 % 60);
    let up = format!("up {hours}:{minutes:02}:{:02}", status.uptime_s % 60);
    let first = Line::from(vec![
        Span::styled(status.name.to_string(), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  life {}  {up}  ", status.incarnation)),
        Span::styled(format!("{online} of {known} online"), colour(online == known)),
        Span::raw(format!("  local health {}", status.local_health)),
    ]);
    let second = match &view.trouble {
        Some(trouble) => Line::styled(
            format!("no answer, trying again: {}", Printable(trouble)),
            Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        ),
        None => Line::styled("q quits   up/down events   page up/down nodes   home", dim()),
    };
    Paragraph::new(vec![first, second])
}

fn colour(well: bool) -> Style {
    Style::new().fg(if well { Color::Green } else { Color::Red })
}

fn state_of(peer: &PeerStatus) -> (String, Style) {
    let label = peer.status.label();
    match (peer.status, peer.suspect, peer.reason) {
        (Status::Online, true, _) => ("suspect".to_owned(), Style::new().fg(Color::Yellow)),
        (Status::Online, false, _) => (label.to_owned(), colour(true)),
        (Status::Offline, _, Some(reason)) => (reason.label().to_owned(), colour(false)),
        (Status::Offline, _, None) => (label.to_owned(), colour(false)),
        (Status::Connecting | Status::Syncing, ..) => {
            (label.to_owned(), Style::new().fg(Color::Yellow))
        }
    }
}

fn peers(sight: &ClusterView, down: usize) -> Table<'static> {
    let number = |number: Option<f64>| number.map_or("-".to_owned(), |it| format!("{it:.1}"));
    let row = |peer: &PeerStatus| {
        let (state, style) = state_of(peer);
        let life = peer.incarnation.map_or("-".to_owned(), |life| life.to_string());
        Row::new([
            Cell::new(cut(peer.name.as_str(), NAME)),
            Cell::new(state).style(style),
            Cell::new(life),
            Cell::new(number(peer.rtt_ms)),
            Cell::new(number(peer.phi)),
        ])
    };
    let rows = sight.status.peers.iter().skip(down).map(row);
    let width = sight.status.peers.iter().map(|it| it.name.as_str().len().min(NAME)).max();
    let widths = [
        Constraint::Length(u16::try_from(width.unwrap_or(4).max(4)).unwrap_or(u16::MAX)),
        Constraint::Length(12),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Length(5),
    ];
    Table::new(rows, widths)
        .header(Row::new(["peer", "status", "life", "rtt ms", "phi"]).style(dim()))
        .block(framed(format!("{} peers", sight.status.peers.len())))
}

/// A row for each node that sees, a column for each that is seen.
fn links(sight: &ClusterView, labels: &[String], down: usize) -> Paragraph<'static> {
    let topology = &sight.topology;
    let cells: BTreeMap<_, _> =
        topology.links.iter().map(|link| ((&link.from, &link.to), link)).collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (from, label) in topology.nodes.iter().zip(labels).skip(down) {
        let mut spans = vec![Span::styled(format!("{label:width$} "), dim())];
        for to in &topology.nodes {
            let link = cells.get(&(&from.name, &to.name)).copied();
            let (sign, style) = match sign(link) {
                _ if from.name == to.name => ("\\", dim()),
                sign @ "#" => (sign, colour(true)),
                sign @ "x" => (sign, colour(false)),
                sign => (sign, Style::new().fg(Color::Yellow)),
            };
            spans.push(Span::styled(format!("{sign} "), style));
        }
        lines.push(Line::from(spans));
    }
    Paragraph::new(lines).block(framed("who sees whom".to_owned()))
}

fn draw_rates(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]);
    let last = view.rates.back().copied().unwrap_or_default();
    let titles = [
        format!("messages/s in {} out {}", human(last[0]), human(last[1])),
        format!("bytes/s in {} out {}", human(last[2]), human(last[3])),
    ];
    for ((area, title), first) in halves.areas::<2>(area).into_iter().zip(titles).zip([0, 2]) {
        let sums = view.rates.iter().rev().map(|rate| rate[first] + rate[first + 1]);
        let mut data: Vec<u64> = sums.take(area.width.into()).collect();
        data.reverse();
        let line = Sparkline::default().data(data).style(Style::new().fg(Color::Cyan));
        frame.render_widget(line.block(framed(title)), area);
    }
}

/// A number of at most five characters.
fn human(number: u64) -> String {
    const STEPS: [(u64, &str); 3] = [(1_000_000_000, "G"), (1_000_000, "M"), (10_000, "k")];
    match STEPS.iter().find(|(from, _)| number >= *from) {
        Some((from, unit)) => {
            let unit_size = if *unit == "k" { 1_000 } else { *from };
            format!("{:.1}{unit}", number as f64 / unit_size as f64)
        }
        None => number.to_string(),
    }
}

/// The newest at the bottom.
fn latest(view: &View, area: Rect) -> Paragraph<'static> {
    let room = usize::from(area.height.saturating_sub(1));
    let mut lines: Vec<Line<'_>> = view
        .events
        .iter()
        .rev()
        .skip(view.back)
        .take(room)
        .map(|it| {
            let time = rfc3339(UNIX_EPOCH + Duration::from_millis(it.at));
            let text = format!("  {}", Printable(&it.event));
            let time = time.get(11..23).unwrap_or(&time).to_owned();
            Line::from(vec![Span::styled(time, dim()), Span::raw(text)])
        })
        .collect();
    lines.reverse();
    let title = match view.back {
        0 => "events (UTC)".to_owned(),
        back => format!("events (UTC), {back} later ones below"),
    };
    Paragraph::new(lines).block(framed(title))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;
    use xpando_node::internals::gateway::status::{NodeStatus, TopologyStatus};
    use xpando_node::internals::proto::event::Recorded;

    /// A view of `a` with so many peers, of which the last is offline.
    fn view(peers: usize) -> View {
        let name = |at: usize| format!("n{at}@127.0.0.1");
        let at = "2026-01-02T03:04:05.678Z";
        let peer = |at_: usize| {
            let online = at_ < peers;
            json!({
                "name": name(at_), "id": null, "address": null,
                "status": if online { "online" } else { "offline" }, "suspect": false,
                "reason": if online { None } else { Some("crashed") }, "cause": null,
                "reached_by": [], "incarnation": 7, "since": at, "rtt_ms": 1.25,
                "rtt_p50_ms": null, "rtt_p99_ms": null, "phi": 0.5, "last_heard": null,
                "evidence": null, "specializations": [], "metadata": {}, "uptime_s": null,
                "first_seen": null, "last_seen": null, "reputation": 0.0,
            })
        };
        let status: NodeStatus = serde_json::from_value(json!({
            "name": name(0), "id": "1", "cluster": "2", "incarnation": 3,
            "listen": "127.0.0.1:1", "http": null, "uptime_s": 3661, "local_health": 0,
            "specializations": [], "metadata": {}, "degraded": null,
            "majority": {"held": true, "here": 1, "known": 1, "missing": []},
            "peers": (1..=peers).map(peer).collect::<Vec<_>>(),
        }))
        .expect("a status");
        let links = (0..=peers).flat_map(|from| (0..=peers).map(move |to| (from, to)));
        let link = |(from, to): (usize, usize)| {
            let state = if from == peers || to == peers { "offline" } else { "online" };
            json!({
                "from": name(from), "to": name(to), "state": state, "rtt_ms": null, "phi": 0.0,
                "since": at, "reason": null,
            })
        };
        let topology: TopologyStatus = serde_json::from_value(json!({
            "as_seen_by": name(0), "version": 1, "agreement": "0",
            "nodes": (0..=peers)
                .map(|at| json!({ "name": name(at), "status": "online", "incarnation": 1 }))
                .collect::<Vec<_>>(),
            "links": links.filter(|(from, to)| from != to).map(link).collect::<Vec<_>>(),
        }))
        .expect("a topology");
        let event: Recorded = serde_json::from_value(json!({
            "seq": 1, "at": at, "event": "peer_offline", "peer": name(peers), "reason": "crashed",
        }))
        .expect("an event");
        View {
            sight: Some(ClusterView { status, topology }),
            events: vec![event; 30].into(),
            rates: vec![[5, 6, 70_000, 8]; 9].into(),
            ..View::default()
        }
    }

    fn drawn(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, view)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let rows = (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect());
        rows.collect()
    }

    fn has(rows: &[String], text: &str) -> bool {
        rows.iter().any(|row| row.contains(text))
    }

    #[test]
    fn everything_has_its_place_at_80_by_24() {
        let rows = drawn(&view(4), 80, 24);
        for text in [
            "n0@127.0.0.1  life 3  up 1:01:01  4 of 5 online",
            "n1@127.0.0.1 online       7     1.2",
            "n4@127.0.0.1 crashed",
            "n0 \\ # # # x",
            "n4 x x x x \\",
            "messages/s in 5 out 6",
            "bytes/s in 70.0k out 8",
            "03:04:05.678  n4@127.0.0.1 offline (crashed)",
        ] {
            assert!(has(&rows, text), "{text}: {rows:#?}");
        }
    }

    #[test]
    fn nodes_of_one_name_are_told_apart() {
        let mut view = view(2);
        let nodes = &mut view.sight.as_mut().expect("a sight").topology.nodes;
        for (node, host) in nodes.iter_mut().zip(["h1", "h2", "h3"]) {
            node.name = format!("app@{host}").parse().expect("valid");
        }
        let rows = drawn(&view, 80, 24);
        for row in ["h1 \\", "h2   \\", "h3     \\"] {
            assert!(has(&rows, row), "{row}: {rows:#?}");
        }
    }

    #[test]
    fn events_of_others_are_text() {
        let mut view = view(1);
        view.events = vec![serde_json::from_value(json!({
            "at": "2026-01-02T03:04:05.678Z", "event": "link_lost", "peer": "b@h", "cause": "x\n\u{1b}[2Jy",
        }))
        .expect("an event")]
        .into();
        assert!(has(&drawn(&view, 80, 24), r"b@h link lost: x\n\u{1b}[2Jy"));
    }

    #[test]
    fn any_size_is_drawn() {
        for (peers, width, height) in
            [(4, 1, 1), (4, 20, 5), (60, 80, 24), (60, 250, 80), (0, 80, 24)]
        {
            let mut view = view(peers.max(1));
            if peers == 0 {
                view.sight = None;
            }
            drawn(&view, width, height);
        }
        let mut view = view(60);
        view.down = 55;
        assert!(has(&drawn(&view, 80, 24), "n58@127.0.0.1"));
    }

    #[test]
    fn a_node_that_does_not_answer_is_told_and_its_last_view_stays() {
        let mut view = view(4);
        view.trouble = Some("connection refused".to_owned());
        let rows = drawn(&view, 80, 24);
        assert!(has(&rows, "no answer, trying again: connection refused"), "{rows:#?}");
        assert!(has(&rows, "n1@127.0.0.1"));
    }
}
