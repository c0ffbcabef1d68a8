//! The suite of `tests/proxies`: nginx in front of real nodes, with the official client and a real Chromium behind it.
//! Where there is no nginx, no Node.js or no npm, the test says so and shows nothing.

use crate::kit::Cluster;
use crate::phoenix::checks;

#[test]
fn clients_and_pages_find_the_node_behind_a_proxy() {
    let _turn = Cluster::without_authority();
    if let Some(said) = checks("proxies", &[]) {
        eprintln!("{said}");
    }
}
