//! The suite of `tests/dashboard`: a real Chromium looks at the dashboard of nodes of the suite's own, kills some of
//! them, and cuts their network where there is a laboratory. Where there is no Chromium, no Node.js, no npm or no way to
//! get the browser's driver, the test says so and shows nothing.

use crate::kit::Cluster;
use crate::phoenix::checks;

#[test]
fn a_browser_sees_what_happens() {
    // Its turn: the checks measure how soon a page shows what happened.
    let _turn = Cluster::without_authority();
    if let Some(said) = checks("dashboard", &[]) {
        eprintln!("{said}");
    }
}
