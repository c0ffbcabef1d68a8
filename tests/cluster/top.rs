//! `xpando-node top` in a terminal.

use crate::kit::{Cluster, Terminal, three};

#[test]
fn top_shows_the_cluster_as_it_changes_and_leaves_the_terminal_as_it_was() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let directory = a.data_dir.display().to_string();
    let Some(mut terminal) = Terminal::run(&["top", "--data-dir", &directory]) else { return };
    terminal.shows("a@127.0.0.1 b@127.0.0.1 c@127.0.0.1 3 of 3 online events");
    b.kill();
    terminal.shows("crashed 2");
    a.kill();
    terminal.shows("trying again");
    terminal.press(b"q");
    let left = "\u{1b}[?1049l"; // the other screen, which it drew on
    terminal.shows(left);
    assert!(terminal.ended().success());
    drop(c);
}
