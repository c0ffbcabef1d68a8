//! Services that are present, ask who is, and follow it.

use std::time::Duration;

use super::*;

fn text(news: &PresenceNews) -> String {
    let one = |entry: &PresenceEntry| format!("{}{}", entry.key(), entry.meta());
    match news {
        PresenceNews::State { present, missed } => {
            let all: Vec<_> = present.iter().map(one).collect();
            format!("={} missed {missed}", all.join(" "))
        }
        PresenceNews::Joined(entry) => format!("+{}", one(entry)),
        PresenceNews::Updated { before, now } => format!("{}>{}", one(before), now.meta()),
        PresenceNews::Left(entry) => format!("-{}", one(entry)),
    }
}

async fn next(following: &mut Following) -> String {
    let news = tokio::time::timeout(PATIENCE, following.recv()).await;
    text(&news.expect("news in time"))
}

async fn keys_of(presences: &Presences) -> Vec<String> {
    let listed = tokio::time::timeout(PATIENCE, presences.list(&room())).await;
    listed
        .expect("an answer")
        .iter()
        .map(|entry| format!("{}{}", entry.key(), entry.meta()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_service_tracks_updates_lists_and_follows() {
    let world = world().await;
    let presences = Presences::new(&world.router);
    let early = presences.track(&room(), "bot", &json!({ "n": 1 })).await.expect("tracked");
    let mut following = presences.follow(&room());
    assert_eq!(next(&mut following).await, r#"=bot{"n":1} missed 0"#);
    // Several metas of one key, and one of a client.
    let second = presences.track(&room(), "bot", &json!({ "n": 2 })).await.expect("tracked");
    assert_eq!(next(&mut following).await, r#"+bot{"n":2}"#);
    let anna = world.enter(world.member(Some("anna"))).await;
    assert_eq!(next(&mut following).await, r#"+anna{"x":1}"#);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let state = anna.take().remove(1).1;
    assert_eq!(state["bot"]["metas"].as_array().map(Vec::len), Some(2));
    early.update(&json!({ "n": 3 })).await.expect("updated");
    assert_eq!(next(&mut following).await, r#"bot{"n":1}>{"n":3}"#);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let diff = anna.take().remove(0).1;
    assert_eq!(diff["joins"]["bot"]["metas"][0]["n"], 3);
    assert!(diff["joins"]["bot"]["metas"][0]["phx_ref_prev"].is_string());
    assert_eq!(keys_of(&presences).await, [r#"anna{"x":1}"#, r#"bot{"n":2}"#, r#"bot{"n":3}"#]);
    drop(early);
    assert_eq!(next(&mut following).await, r#"-bot{"n":3}"#);
    second.untrack();
    assert_eq!(next(&mut following).await, r#"-bot{"n":2}"#);
    world.router.leave(room(), anna.id);
    assert_eq!(next(&mut following).await, r#"-anna{"x":1}"#);
    assert_eq!(keys_of(&presences).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_presence_is_refused_and_changes_nothing() {
    let world = world().await;
    let presences = Presences::new(&world.router);
    let track = |key: &'static str, meta: Value| {
        let presences = presences.clone();
        async move { presences.track(&room(), key, &meta).await.map(drop) }
    };
    assert_eq!(track("bot", json!([1])).await, Err(PresenceError::Meta));
    assert_eq!(track("bot", json!({ "phx_ref": 1 })).await, Err(PresenceError::Meta));
    assert_eq!(track(String::leak("k".repeat(256)), json!({})).await, Err(PresenceError::Key));
    let bot = presences.track(&room(), "bot", &json!({ "n": 1 })).await.expect("tracked");
    assert_eq!(bot.update(&json!({ "x": "x".repeat(1024) })).await, Err(PresenceError::Meta));
    assert_eq!(keys_of(&presences).await, [r#"bot{"n":1}"#]);
    // One whose caller gave up waiting is not there.
    let (topic, nobody) = (room(), json!({}));
    drop(tokio::time::timeout(Duration::ZERO, presences.track(&topic, "ghost", &nobody)).await);
    assert_eq!(keys_of(&presences).await, [r#"bot{"n":1}"#]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_follower_is_told_what_it_missed_and_who_is_there() {
    let world = world().await;
    let presences = Presences::new(&world.router);
    let bot = presences.track(&room(), "bot", &json!({ "n": 0 })).await.expect("tracked");
    let mut following = presences.follow(&room());
    assert_eq!(next(&mut following).await, r#"=bot{"n":0} missed 0"#);
    for n in 1..=2000 {
        bot.update(&json!({ "n": n })).await.expect("updated");
    }
    assert_eq!(next(&mut following).await, r#"=bot{"n":2000} missed 2000"#);
    bot.update(&json!({ "n": 1 })).await.expect("updated");
    assert_eq!(next(&mut following).await, r#"bot{"n":2000}>{"n":1}"#);
}

#[tokio::test]
async fn what_is_tracked_outlives_a_crash_of_the_router_and_followers_hear_of_it() {
    let world = world().await;
    let presences = Presences::new(&world.router);
    let bot = presences.track(&room(), "bot", &json!({ "n": 1 })).await.expect("tracked");
    let gone = presences.track(&room(), "gone", &json!({})).await.expect("tracked");
    let mut following = presences.follow(&room());
    assert_eq!(next(&mut following).await, r#"=bot{"n":1} gone{} missed 0"#);
    assert!(world.roster.kill("channel_router"));
    // Both are asked for at any time: before it has ended, while it starts, or later.
    drop(gone);
    bot.update(&json!({ "n": 2 })).await.expect("updated");
    let mut news = String::new();
    until("a restart", || counted(&world.metrics, "actor_restarts", "channel_router") > 0).await;
    assert_eq!(keys_of(&presences).await, [r#"bot{"n":2}"#]);
    // Whatever the state was at the restart, what is told comes to the same.
    let same = [r#"=bot{"n":2} missed"#, r#"bot{"n":1}>{"n":2}"#];
    while !same.iter().any(|wanted| news.starts_with(wanted)) {
        news = next(&mut following).await;
    }
}
