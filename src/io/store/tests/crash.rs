//! The end of a process and of the power at any moment: nothing acknowledged is lost, and the chain verifies.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Names the directory, in the process that is to be killed.
const VICTIM: &str = "XPANDO_STORE_TEST_VICTIM";
const ROUNDS: u64 = 100;
const POWER_CUTS: u64 = 1000;

/// An event of which every fifth outlasts the others.
fn varied(n: u64) -> Recorded {
    let lasting = Event::NodeStarted { version: n.to_string() };
    if n.is_multiple_of(5) { Recorded { event: lasting, ..event(n) } } else { event(n) }
}

/// What one process does until it is ended: appends, and all that may come between.
fn write(chain: &Chain, rng: &mut StdRng) -> Result<u64, StoreError> {
    let next = chain.last()?.seq + 1;
    let more: Vec<_> = (next..=next + rng.random_range(0..12)).map(varied).collect();
    let last = chain.append(&more)?.seq;
    match rng.random_range(0..12) {
        0 => drop(chain.sign_head(at(1), sign)?),
        1 => {
            let limits = Limits { age: Duration::from_secs(u64::MAX / 2000), bytes: 16 * 1024 };
            chain.retain(&limits, at(1), sign, is_signed)?;
        }
        2 => chain
            .store
            .remember(&[known("b@h", rng.random_range(1..9), last), whole("c@h")], &[])?,
        _ => {}
    }
    Ok(last)
}

/// Checks what is left, and returns where the chain ends.
fn check(chain: &Chain) -> u64 {
    let verified = chain.verify(is_signed).expect("the chain verifies");
    let kept = chain.after(0, usize::MAX, |_| true).expect("reads");
    assert_eq!(kept.len() as u64, verified.last - verified.forgotten + verified.lasting);
    let (older, newer) = kept.split_at(usize::try_from(verified.lasting).expect("few"));
    assert!(older.iter().all(|it| it.seq <= verified.forgotten && it.seq % 5 == 0));
    assert!(newer.iter().map(|it| it.seq).eq(verified.forgotten + 1..=verified.last));
    let as_written = |it: &Recorded| Recorded { hash: None, ..it.clone() } == varied(it.seq);
    assert!(kept.iter().all(as_written));
    verified.last
}

/// In the process of the test below it writes until it is killed; elsewhere it does nothing.
#[test]
fn the_victim() {
    let Some(directory) = std::env::var_os(VICTIM) else { return };
    let (store, opened) = Store::open(Path::new(&directory), at(0)).expect("opens");
    assert_eq!(opened, Opened::Sound);
    let life = store.begin_life().expect("writes");
    let chain = trail(store);
    let mut rng = StdRng::seed_from_u64(life.0);
    let mut out = std::io::stdout().lock();
    loop {
        let last = write(&chain, &mut rng).expect("writes");
        // It does not outlive the test that started it.
        writeln!(out, "acknowledged {} {last}", life.0).and_then(|()| out.flush()).expect("read");
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rng = StdRng::seed_from_u64(1);
    for round in 1..=ROUNDS {
        let mut victim = Command::new(std::env::current_exe().expect("this program"))
            .args(["internals::io::store::tests::crash::the_victim", "--exact", "--nocapture"])
            .env(VICTIM, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut out = BufReader::new(victim.stdout.take().expect("piped"));
        let (mut wanted, mut acknowledged, mut line) = (rng.random_range(1..30), 0, String::new());
        // After the kill it reads on: what was said before is acknowledged, too.
        while out.read_line(&mut line).expect("text") > 0 {
            let whole = line.strip_suffix('\n').and_then(|line| line.split_once("acknowledged "));
            if let Some((life, last)) = whole.and_then(|(_, said)| said.split_once(' ')) {
                assert_eq!(life.parse(), Ok(round), "every life is counted");
                acknowledged = last.parse().expect("a number");
                wanted -= 1;
                if wanted == 0 {
                    victim.kill().expect("runs");
                }
            }
            line.clear();
        }
        assert!(!victim.wait().expect("ends").success());
        assert!(wanted <= 0, "round {round}: it ended by itself");
        let (store, opened) = Store::open(dir.path(), at(0)).expect("opens");
        assert_eq!(opened, Opened::Sound, "round {round}");
        let last = check(&trail(store));
        assert!(
            last >= acknowledged,
            "round {round}: {acknowledged} was acknowledged, {last} left"
        );
    }
}

/// A disk that keeps what was synced, and of the rest whatever it likes.
#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let mut cuts = 0;
    for seed in 0.. {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        drop(simulated(&disk));
        let (mut acknowledged, mut life) = (0, Incarnation(0));
        for _ in 0..25 {
            disk.cut_after(rng.random_range(0..120));
            // The cut may come while the file is being opened, and repaired after the last one.
            if let Ok((store, opened)) = Store::open_at(Place::Simulated(disk.clone()), at(0)) {
                assert_eq!(opened, Opened::Sound, "seed {seed}");
                let begun = store.begin_life();
                life = begun.unwrap_or(life);
                let store = Arc::new(store);
                let chain = Chain::new(store, "a@127.0.0.1".parse().expect("valid"));
                while let Ok(last) = chain
                    .as_ref()
                    .map_err(drop)
                    .and_then(|chain| write(chain, &mut rng).map_err(drop))
                {
                    acknowledged = last;
                }
            }
            disk.restart(&mut rng);
            cuts += 1;
            let (store, opened) = simulated(&disk);
            assert_eq!(opened, Opened::Sound, "seed {seed}");
            assert!(store.raise(Incarnation(0)).expect("writes") >= life, "seed {seed}");
            let last = check(&trail(store));
            assert!(last >= acknowledged, "seed {seed}: {acknowledged} acknowledged, {last} left");
            acknowledged = last;
        }
        if cuts >= POWER_CUTS {
            return;
        }
    }
}
