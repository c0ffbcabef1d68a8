//! Files that were damaged while nobody looked: never a panic that gets out, never a loss that nobody is told of.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const TRIALS: u64 = 60;
const RECORDS: u64 = 200;

/// What the file held.
fn fill(chain: &Chain) {
    let store = &chain.store;
    store.raise(Incarnation(5)).expect("writes");
    for n in 0..RECORDS / 20 {
        chain.append(&events(20 * n + 1..=20 * n + 20)).expect("writes");
        chain.sign_head(at(1), sign).expect("writes");
        let port = u16::try_from(n).expect("few");
        let node = known(&format!("p{n}@h"), port, n);
        store.remember(&[node, whole(&format!("q{n}@h"))], &[]).expect("writes");
    }
}

/// Whether everything is there.
fn is_whole(chain: &Chain) -> Result<bool, StoreError> {
    let verified = chain.verify(is_signed)?;
    let kept = chain.after(0, usize::MAX, |_| true)?;
    let (long, short): (Vec<_>, Vec<_>) =
        chain.store.known()?.into_iter().partition(|node| node.id.is_some());
    let ports = |node: &Known| node.contacts().next().map(|contact| contact.address.port());
    Ok(verified == Verified { forgotten: 0, lasting: 0, last: RECORDS, proved: RECORDS }
        && kept.iter().all(is_as_written)
        && kept.len() as u64 == RECORDS
        && [short.len() as u64, long.len() as u64] == [RECORDS / 20; 2]
        && short
            .iter()
            .all(|it| ports(it).is_some_and(|n| *it == known(it.name.as_str(), n, n.into())))
        && short.iter().all(|it| ports(it).is_some_and(|n| it.name.as_str() == format!("p{n}@h")))
        && long.iter().all(|node| *node == whole(node.name.as_str()))
        && chain.store.raise(Incarnation(0))? == Incarnation(5))
}

fn truncated(mut bytes: Vec<u8>, rng: &mut StdRng) -> Vec<u8> {
    bytes.truncate(rng.random_range(0..bytes.len()));
    bytes
}

fn flipped(mut bytes: Vec<u8>, rng: &mut StdRng) -> Vec<u8> {
    let at = rng.random_range(0..bytes.len());
    bytes[at] ^= 1 << rng.random_range(0..8);
    bytes
}

fn zeroed(mut bytes: Vec<u8>, rng: &mut StdRng) -> Vec<u8> {
    let pages = bytes.len() / 4096;
    let page = rng.random_range(0..pages);
    bytes[4096 * page..4096 * (page + 1)].fill(0);
    bytes
}

type Kind = (&'static str, fn(Vec<u8>, &mut StdRng) -> Vec<u8>);
const KINDS: [Kind; 3] = [("truncated", truncated), ("flipped", flipped), ("zeroed", zeroed)];

#[test]
fn a_short_file_that_is_damaged_is_whole_or_set_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    fill(&chain);
    assert!(is_whole(&chain).expect("sound"));
    drop(chain);
    let sound = fs::read(dir.path().join(FILE)).expect("reads");
    for (kind, damage) in KINDS {
        let mut aside = 0;
        for trial in 0..TRIALS {
            let bytes = damage(sound.clone(), &mut StdRng::seed_from_u64(trial));
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(FILE), &bytes).expect("writes");
            let (store, opened) = Store::open(dir.path(), at(9)).expect("opens");
            let (condition, chain) = (store.condition(), trail(store));
            match opened {
                Opened::Sound => assert!(is_whole(&chain).expect("sound"), "{kind} {trial}"),
                Opened::SetAside(path) => {
                    aside += 1;
                    assert_eq!(fs::read(&path).expect("reads").len(), bytes.len());
                    assert_eq!(condition.set_aside, Some(path), "{kind} {trial}");
                    assert_eq!(chain.last().expect("reads").seq, 0);
                    assert_eq!(chain.append(&events(1..=1)).expect("writes").seq, 1);
                }
            }
        }
        assert!(aside > 0, "no damage was done: {kind}");
    }
}

/// A long file is not read whole when it is opened, so its damage may show only when it is used.
#[test]
fn a_long_file_that_is_damaged_says_so_at_the_latest_when_it_is_verified() {
    let disk = Disk::default();
    let chain = trail(simulated(&disk).0);
    fill(&chain);
    drop(chain);
    says_so(&disk.bytes(), true);
}

/// What a process that was killed leaves was never closed; its last commit is not taken back because of the damage.
#[test]
fn a_file_that_was_never_closed_and_is_damaged_is_whole_or_says_so() {
    let disk = Disk::default();
    let chain = trail(simulated(&disk).0);
    fill(&chain);
    says_so(&disk.bytes(), false);
}

fn says_so(sound: &[u8], trusting: bool) {
    for (kind, damage) in KINDS {
        let mut told = 0;
        for trial in 0..TRIALS {
            let bytes = damage(sound.to_vec(), &mut StdRng::seed_from_u64(trial));
            let (store, opened) = simulated(&Disk::holding(&bytes, trusting));
            if opened != Opened::Sound {
                assert!(store.condition().is_degraded());
                told += 1;
                continue;
            }
            let store = Arc::new(store);
            let node = "a@127.0.0.1".parse().expect("valid");
            match Chain::new(store.clone(), node).and_then(|chain| is_whole(&chain)) {
                Ok(whole) => assert!(whole, "{kind} {trial}: a loss that nobody is told of"),
                Err(StoreError::Chain(_)) => told += 1,
                Err(StoreError::Damaged(_)) => {
                    told += 1;
                    assert!(store.condition().is_degraded(), "{kind} {trial}");
                    store.begin_life().expect("goes on with a new file");
                    assert!(store.condition().set_aside.is_some(), "{kind} {trial}");
                }
                Err(other) => panic!("{kind} {trial}: {other}"),
            }
        }
        assert!(told > 0, "no damage was done: {kind}");
    }
}

/// Even where the database would close a damaged file in good order and open it again.
#[test]
fn after_damage_the_whole_file_is_looked_at() {
    let disk = Disk::default();
    let chain = trail(simulated(&disk).0);
    fill(&chain);
    drop(chain);
    let mut bytes = disk.bytes();
    let word = serde_json::to_vec(&event(77).event).expect("plain");
    let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&word)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| bytes[*at] ^= 1);
    let (store, opened) = simulated(&Disk::holding(&bytes, true));
    assert_eq!(opened, Opened::Sound, "it is not looked at whole");
    let said = store.work(|_| Err::<(), _>(Failure::Damaged("so it is said".to_owned())));
    assert!(matches!(said, Err(StoreError::Damaged(_))));
    assert_eq!(store.begin_life().expect("a new file"), Incarnation(6));
    assert!(store.condition().set_aside.is_some());
}
