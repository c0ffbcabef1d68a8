//! `xpando-node top`: a node's view of the cluster, live in a terminal.
//!
//! It asks over the admin socket, once a second, and shows what it was told last while the node does not answer. The
//! terminal is as before when it ends, however it ends.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use ratatui::crossterm::event::{
    self, Event as Key, KeyCode, KeyEvent, KeyEventKind, KeyModifiers,
};
use xpando_node::internals::actors::timer;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::status::{ClusterView, Figures};
use xpando_node::internals::proto::event::{Page, Query, Recorded};

use super::ask::{Which, ask};

mod screen;

/// Between two looks at the node.
const LOOK: Duration = Duration::from_secs(1);
/// Events that are kept.
const EVENTS: usize = 500;
/// Rates that are kept: as many as a wide terminal shows.
const RATES: usize = 240;

/// All that is shown.
#[derive(Default)]
struct View {
    sight: Option<ClusterView>,
    events: VecDeque<Recorded>,
    /// The number of the last event.
    seen: Option<u64>,
    figures: Option<(Instant, Figures)>,
    /// Per second: messages in and out, bytes in and out.
    rates: VecDeque<[u64; 4]>,
    /// Why the node does not answer.
    trouble: Option<String>,
    /// Lines that the events and the tables are scrolled by.
    back: usize,
    down: usize,
}

/// Runs until `q`, Escape or Ctrl-C.
pub(super) fn top(which: &Which) -> anyhow::Result<()> {
    let directory = which.find()?;
    let mut view = View::default();
    view.look(&directory);
    if let Some(trouble) = &view.trouble {
        bail!("{trouble}");
    }
    let mut terminal = ratatui::try_init()?;
    let ended = follow(&mut terminal, &directory, &mut view);
    ratatui::try_restore()?;
    ended
}

fn follow(
    terminal: &mut ratatui::DefaultTerminal,
    directory: &Path,
    view: &mut View,
) -> anyhow::Result<()> {
    let mut due = timer::now() + LOOK;
    loop {
        terminal.draw(|frame| screen::draw(frame, view))?;
        let wait = due.saturating_duration_since(timer::now());
        if event::poll(wait)? {
            match event::read()? {
                Key::Key(key) if key.kind != KeyEventKind::Release && view.pressed(key) => {
                    return Ok(());
                }
                // A new size is drawn at once.
                Key::Key(_)
                | Key::Resize(..)
                | Key::FocusGained
                | Key::FocusLost
                | Key::Mouse(_)
                | Key::Paste(_) => {}
            }
        }
        if timer::now() >= due {
            view.look(directory);
            due = timer::now() + LOOK;
        }
    }
}

impl View {
    /// Whether the key ends it.
    fn pressed(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
            || control && key.code == KeyCode::Char('c')
        {
            return true;
        }
        if key.code == KeyCode::Up {
            self.back = (self.back + 1).min(self.events.len().saturating_sub(1));
        } else if key.code == KeyCode::Down {
            self.back = self.back.saturating_sub(1);
        } else if key.code == KeyCode::PageDown {
            let nodes = self.sight.as_ref().map_or(0, |sight| sight.topology.nodes.len());
            self.down = (self.down + 5).min(nodes.saturating_sub(1));
        } else if key.code == KeyCode::PageUp {
            self.down = self.down.saturating_sub(5);
        } else if key.code == KeyCode::Home {
            (self.back, self.down) = (0, 0);
        }
        false
    }

    /// Asks the node for what is new.
    fn look(&mut self, directory: &Path) {
        self.trouble = self.try_look(directory).err().map(|error| format!("{error:#}"));
    }

    fn try_look(&mut self, directory: &Path) -> anyhow::Result<()> {
        let sight: ClusterView = ask(directory, &Request::ClusterView)?;
        let lives = |sight: &ClusterView| (sight.status.incarnation, sight.status.id.clone());
        if self.sight.as_ref().is_some_and(|before| lives(before) != lives(&sight)) {
            (self.seen, self.figures) = (None, None); // another life counts anew
        }
        self.sight = Some(sight);
        let events = Request::Events(Query { after: self.seen, limit: EVENTS, ..Query::default() });
        let page: Page = ask(directory, &events)?;
        self.seen = Some(page.next);
        if self.back > 0 {
            self.back += page.events.len(); // who reads what was keeps it in view
        }
        self.events.extend(page.events);
        self.events.drain(..self.events.len().saturating_sub(EVENTS));
        let figures = ask(directory, &Request::Figures)?;
        self.measure(timer::now(), figures);
        Ok(())
    }

    fn measure(&mut self, now: Instant, figures: Figures) {
        if let Some((at, before)) = &self.figures {
            let seconds = now.saturating_duration_since(*at).as_secs_f64().max(0.1);
            let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
            self.rates.push_back([
                rate(figures.messages_in, before.messages_in),
                rate(figures.messages_out, before.messages_out),
                rate(figures.bytes_in, before.bytes_in),
                rate(figures.bytes_out, before.bytes_out),
            ]);
            self.rates.drain(..self.rates.len().saturating_sub(RATES));
        }
        self.figures = Some((now, figures));
    }
}
