//! The places of clients: the machine that gives them away, and what a client holds of one.
//!
//! Invariants: a [`Place`] is free again when its last clone is dropped. One that is evicted is free at once, and anyone who
//! holds it ends what it is for as soon as [`Place::evicted`] returns.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::actors::timer;
use crate::gateway::refusal::Cause;
use crate::proto::admission::{Admission, Limits, NoPlace, PROVISIONAL, PlaceId, network};
use crate::proto::share::{Rate, Share};
use crate::proto::token::Claims;

/// Shares are forgotten when there are so many more of them than at the last look.
const SHARES: usize = 64;

/// Who has a share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    /// The subject of a token.
    User(String),
    /// Clients of one address that have no token, and joined all the same.
    Anonymous(IpAddr),
    /// Connections of one address that are not entitled yet.
    Strangers(IpAddr),
}

impl Holder {
    fn rate(&self) -> Rate {
        match self {
            Self::User(_) | Self::Anonymous(_) => Rate::ENTITLED,
            Self::Strangers(_) => Rate::STRANGERS,
        }
    }
}

type Shared = Arc<Mutex<Share>>;

/// The shares that are held by more than one connection.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<(usize, BTreeMap<Holder, Shared>)>);

impl Shares {
    fn of(&self, holder: Holder) -> Shared {
        let (mut shares, now) = (self.0.lock(), timer::now());
        let (kept, shares) = &mut *shares;
        if shares.len() >= *kept + SHARES {
            // One that somebody holds, or has used lately, is kept: anyone who comes back gets no new one.
            shares.retain(|_, share| Arc::strong_count(share) > 1 || !share.lock().is_whole(now));
            *kept = shares.len();
        }
        let rate = holder.rate();
        let share = shares.entry(holder);
        share.or_insert_with(|| Arc::new(Mutex::new(Share::new(rate, now)))).clone()
    }
}

/// All places of one kind.
#[derive(Debug)]
pub(super) struct Places {
    state: Mutex<(Admission, BTreeMap<PlaceId, watch::Sender<()>>)>,
    shares: Arc<Shares>,
    /// Places that somebody holds, evicted ones and refusals too.
    held: AtomicUsize,
    freed: Notify,
}

impl Places {
    pub(super) fn new(limits: Limits, shares: &Arc<Shares>) -> Arc<Self> {
        let state = Mutex::new((Admission::new(limits), BTreeMap::new()));
        let (held, freed) = (AtomicUsize::new(0), Notify::new());
        Arc::new(Self { state, shares: shares.clone(), held, freed })
    }

    /// Waits until fewer than so many are held: what is evicted is closed soon, and not at once.
    pub(super) async fn fewer_than(&self, many: usize) {
        while self.held.load(Ordering::Relaxed) >= many {
            self.freed.notified().await;
        }
    }

    /// A provisional place for a client of this address, or for a trusted proxy at it. How many others gave theirs up.
    pub(super) fn open(
        self: &Arc<Self>,
        from: IpAddr,
        proxy: bool,
    ) -> Result<(Place, usize), NoPlace> {
        let (mut state, mut evicted) = (self.state.lock(), Vec::new());
        let id = state.0.open((!proxy).then_some(from), &mut evicted)?;
        let (evict, eviction) = watch::channel(());
        state.1.insert(id, evict);
        evicted.iter().for_each(|id| drop(state.1.remove(id)));
        drop(state);
        let held = Held::new(self, Some(id), from, proxy, None, eviction);
        Ok((Place(Arc::new(held)), evicted.len()))
    }

    /// No place: a connection that is answered and closed.
    pub(super) fn refused(self: &Arc<Self>, from: IpAddr, cause: Cause) -> Place {
        // It is ended by its time, never for another's sake.
        let (_, eviction) = watch::channel(());
        Place(Arc::new(Held::new(self, None, from, false, Some(cause), eviction)))
    }
}

/// A client's place.
#[derive(Clone, Debug)]
pub(super) struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    places: Arc<Places>,
    id: Option<PlaceId>,
    refused: Option<Cause>,
    standing: Mutex<Standing>,
    entitled: AtomicBool,
    /// Closed when the place is evicted.
    eviction: watch::Receiver<()>,
}

#[derive(Debug)]
struct Standing {
    from: IpAddr,
    /// It is of a trusted proxy that has not said whose it is.
    proxy: bool,
    since: Instant,
    /// What it has for itself, so that others of its address do not keep it from showing a token.
    own: Option<Share>,
    share: Shared,
}

impl Standing {
    fn provisional(from: IpAddr, proxy: bool, shares: &Shares) -> Self {
        let since = timer::now();
        let share = shares.of(Holder::Strangers(network(from)));
        Self { from, proxy, since, own: Some(Share::new(Rate::PROVISIONAL, since)), share }
    }

    fn spend(&mut self, cost: u64, now: Instant) {
        match &mut self.own {
            Some(own) if own.ready(now).is_none() => own.spend(cost, now),
            Some(_) | None => self.share.lock().spend(cost, now),
        }
    }

    fn ready(&self, now: Instant) -> Option<Instant> {
        self.own
            .as_ref()
            .is_none_or(|own| own.ready(now).is_some())
            .then(|| self.share.lock().ready(now))?
    }
}

impl Held {
    fn new(
        places: &Arc<Places>,
        id: Option<PlaceId>,
        from: IpAddr,
        proxy: bool,
        refused: Option<Cause>,
        eviction: watch::Receiver<()>,
    ) -> Self {
        let standing = Mutex::new(Standing::provisional(from, proxy, &places.shares));
        places.held.fetch_add(1, Ordering::Relaxed);
        let (places, entitled) = (places.clone(), AtomicBool::new(false));
        Self { places, id, refused, standing, entitled, eviction }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut state = self.places.state.lock();
            state.0.close(id);
            state.1.remove(&id);
        }
        self.places.held.fetch_sub(1, Ordering::Relaxed);
        self.places.freed.notify_one();
    }
}

impl Place {
    /// Why nothing but its health is told to this connection.
    pub(super) fn refusal(&self) -> Option<Cause> {
        self.0.refused
    }

    /// The address of the client, or of the proxy as long as that has not named one.
    pub(super) fn address(&self) -> IpAddr {
        self.0.standing.lock().from
    }

    /// Whether a trusted proxy has the connection.
    pub(super) fn is_proxys(&self) -> bool {
        self.0.standing.lock().proxy
    }

    pub(super) fn is_entitled(&self) -> bool {
        self.0.entitled.load(Ordering::Relaxed)
    }

    /// The connection is one client's from now on, as its proxy says. How many others gave theirs up.
    pub(super) fn attribute(&self, from: IpAddr) -> Result<usize, NoPlace> {
        let mut standing = self.0.standing.lock();
        let (true, Some(id)) = (standing.proxy, self.0.id) else { return Ok(0) };
        let (mut state, mut evicted) = (self.0.places.state.lock(), Vec::new());
        state.0.attribute(id, from, &mut evicted)?;
        evicted.iter().for_each(|id| drop(state.1.remove(id)));
        *standing = Standing::provisional(from, false, &self.0.places.shares);
        self.0.entitled.store(false, Ordering::Relaxed);
        Ok(evicted.len())
    }

    /// The client may do something here, by a token or without one.
    pub(super) fn entitle(&self, claims: Option<&Claims>) {
        if self.is_entitled() {
            return;
        }
        let from = network(self.address());
        let holder = claims.map_or(Holder::Anonymous(from), |it| Holder::User(it.sub.clone()));
        self.entitle_with(self.0.places.shares.of(holder));
    }

    /// What this connection carries is entitled.
    pub(super) fn entitle_as(&self, other: &Self) {
        if other.is_entitled() && !self.is_entitled() {
            let share = other.0.standing.lock().share.clone();
            self.entitle_with(share);
        }
    }

    fn entitle_with(&self, share: Shared) {
        let mut standing = self.0.standing.lock();
        (standing.own, standing.share) = (None, share);
        drop(standing);
        self.0.entitled.store(true, Ordering::Relaxed);
        if let Some(id) = self.0.id {
            self.0.places.state.lock().0.entitle(id);
        }
    }

    /// When it is to end unless it is entitled until then; `None` when it is, or a proxy's.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let standing = self.0.standing.lock();
        (!self.is_entitled() && !standing.proxy).then_some(standing.since + PROVISIONAL)
    }

    /// Returns when it was provisional for too long.
    pub(super) async fn overdue(&self) {
        while let Some(deadline) = self.deadline() {
            if deadline <= timer::now() {
                return;
            }
            tokio::time::sleep_until(deadline.into()).await;
        }
        std::future::pending().await
    }

    /// Returns when another client has the place.
    pub(super) async fn evicted(&self) {
        if self.0.id.is_none() {
            return std::future::pending().await;
        }
        let mut eviction = self.0.eviction.clone();
        while eviction.changed().await.is_ok() {}
    }

    /// Takes from the client's share what something costs.
    pub(super) fn spend(&self, cost: u64) {
        self.0.standing.lock().spend(cost, timer::now());
    }

    /// When the client may go on; `None`: now.
    pub(super) fn ready(&self) -> Option<Instant> {
        self.0.standing.lock().ready(timer::now())
    }

    /// Takes what a request costs from the share of the client that sent it, and waits until there is anything of it
    /// again. Over a proxy's connection come the requests of many.
    pub(super) async fn pay(&self, from: IpAddr, cost: u64) {
        let now = timer::now();
        let ready = if self.is_proxys() {
            let share = self.0.places.shares.of(Holder::Anonymous(network(from)));
            let mut share = share.lock();
            share.spend(cost, now);
            share.ready(now)
        } else {
            self.spend(cost);
            self.ready()
        };
        if let Some(ready) = ready {
            tokio::time::sleep_until(ready.into()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn places(many: usize) -> Arc<Places> {
        Places::new(Limits::of(many), &Arc::default())
    }

    fn at(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn taken(places: &Places) -> usize {
        places.state.lock().0.taken()
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_ends_when_it_is_evicted_and_is_free_when_it_is_dropped() {
        let places = places(4);
        let (first, _) = places.open(at(1), false).expect("a place");
        let (second, _) = places.open(at(1), false).expect("a place");
        let (third, evicted) = places.open(at(1), false).expect("a place");
        assert_eq!(evicted, 1, "half of four");
        first.evicted().await;
        for stays in [&second, &third] {
            let wait = tokio::time::timeout(Duration::from_secs(60), stays.evicted());
            assert!(wait.await.is_err());
        }
        let mut fewer = std::pin::pin!(places.fewer_than(3));
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut fewer).await.is_err());
        drop(first); // evicted, and closed only now
        fewer.await;
        drop(second);
        assert_eq!(taken(&places), 1);
        drop(third.clone());
        assert_eq!(taken(&places), 1);
        drop(third);
        assert_eq!(taken(&places), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_provisional_place_is_overdue_after_ten_seconds_and_an_entitled_one_never() {
        let (places, start) = (places(8), timer::now());
        let (late, _) = places.open(at(1), false).expect("a place");
        let (entitled, _) = places.open(at(1), false).expect("a place");
        let (proxy, _) = places.open(at(9), true).expect("a place");
        let patience = Duration::from_secs(100);
        entitled.entitle(None);
        late.overdue().await;
        assert_eq!(timer::now() - start, PROVISIONAL);
        for stays in [&entitled, &proxy] {
            assert!(tokio::time::timeout(patience, stays.overdue()).await.is_err());
        }
        assert_eq!(proxy.attribute(at(2)), Ok(0));
        let start = timer::now();
        proxy.overdue().await;
        assert_eq!((timer::now() - start, proxy.address()), (PROVISIONAL, at(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_one_user_share_what_is_taken_of_them_and_new_ones_get_no_new_share() {
        let places = places(8);
        let share = |place: &Place| place.0.standing.lock().share.clone();
        let open = |sub: &str| {
            let (place, _) = places.open(at(1), false).expect("a place");
            place.entitle_with(places.shares.of(Holder::User(sub.to_owned())));
            place
        };
        let (one, two, other) = (open("alice"), open("alice"), open("bob"));
        assert!(Arc::ptr_eq(&share(&one), &share(&two)));
        one.spend(1 << 30);
        assert!(two.ready().is_some() && other.ready().is_none());
        drop((one, two));
        for number in 0..2 * SHARES {
            drop(open(&format!("user-{number}")));
        }
        assert!(open("alice").ready().is_some(), "it is remembered until it is whole again");
        assert!(places.shares.0.lock().1.len() < 2 * SHARES, "others are not");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_come_too_fast_wait() {
        let (places, start) = (places(8), timer::now());
        let open = || places.open(at(1), false).expect("a place").0;
        let own = Rate::PROVISIONAL.burst as u64 + 1;
        let first = open();
        first.pay(at(1), own).await;
        first.pay(at(1), Rate::STRANGERS.burst as u64).await;
        assert_eq!(timer::now(), start, "a burst");
        first.pay(at(1), Rate::STRANGERS.second as u64 / 2).await;
        let waited = timer::now() - start;
        assert!(
            waited.abs_diff(Duration::from_millis(500)) < Duration::from_millis(50),
            "{waited:?}"
        );
        for _of_its_own_and_of_all in 0..2 {
            first.spend(Rate::STRANGERS.second as u64);
        }
        assert!(first.ready().is_some());
        let late = open();
        assert!(late.ready().is_none(), "a newcomer of that address can show a token");
        late.spend(own);
        assert!(late.ready().is_some(), "and no more");
        late.entitle(None);
        assert!(late.ready().is_none() && first.ready().is_some());
        let (proxy, _) = places.open(at(9), true).expect("a place");
        let start = timer::now();
        for number in 0..200 {
            proxy.pay(at(number), 16384).await;
        }
        assert_eq!(timer::now(), start, "clients of one proxy do not share");
    }
}
