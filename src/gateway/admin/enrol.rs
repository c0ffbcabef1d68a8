//! Invitations and requests for certificates, over the admin socket.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::VIA;
use crate::gateway::issue::{IssueError, Issuing};
use crate::io::clock;
use crate::io::identity::enrol::{Pending, Terms};
use crate::proto::capability::Capabilities;
use crate::proto::enrol::{Host, NamePattern, RequestId};
use crate::proto::event::Operator;
use crate::proto::node::NodeName;

/// In which terms to invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// The names that may be taken.
    pub names: NamePattern,
    /// For how long, in seconds.
    pub seconds: u64,
    /// For how many certificates.
    pub uses: u32,
    /// Whether each request waits for approval.
    pub approval: bool,
    /// Whether it is one to be said aloud.
    #[serde(default)]
    pub spoken: bool,
    /// What the nodes may do that come by it.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// An invitation that was made.
#[derive(Serialize, Deserialize)]
pub struct Invited {
    /// The line, or the words. Whoever has it may join.
    pub line: String,
    /// Of one to be said aloud: a node to ask.
    pub at: Option<SocketAddr>,
    /// Until when it is good: RFC 3339, UTC.
    pub until: String,
}

/// A request that waits for approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its id.
    pub request: RequestId,
    /// The name that it asks for.
    pub name: NodeName,
    /// The id of its key, which `join` shows on the machine that asks.
    pub key: String,
    /// Names and addresses of its host, beside the one in the name.
    pub hosts: Vec<Host>,
    /// What its certificate will let it do.
    pub can: String,
    /// When it came: RFC 3339, UTC.
    pub since: String,
    /// Who made the invitation.
    pub invited_by: String,
}

impl From<Pending> for Waiting {
    fn from(pending: Pending) -> Self {
        let Pending { id, name, key, hosts, capabilities, at, by } = pending;
        let can = capabilities.to_string();
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(at)).unwrap_or(UNIX_EPOCH);
        let since = clock::rfc3339(since);
        Self { request: id, name, key, hosts, can, since, invited_by: by }
    }
}

pub(super) async fn invite(
    issuing: &Issuing,
    invite: Invite,
    operator: Operator,
) -> Result<Invited, IssueError> {
    let Invite { names, seconds, uses, approval, spoken, capabilities } = invite;
    let (time, by) = (Duration::from_secs(seconds), operator.to_string());
    let until = clock::wall().checked_add(time).unwrap_or(UNIX_EPOCH);
    let terms = Terms { names, time, uses, approval, capabilities, by };
    let (line, at) = if spoken {
        issuing.invite_spoken(terms, operator, VIA).await?
    } else {
        (issuing.invite(terms, operator, VIA).await?, None)
    };
    Ok(Invited { line, at, until: clock::rfc3339(until) })
}

pub(super) async fn requests(issuing: &Issuing) -> Result<Vec<Waiting>, IssueError> {
    Ok(issuing.requests().await?.into_iter().map(Waiting::from).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::{World, deed, error, world};
    use super::*;
    use crate::gateway::admin::Answer;
    use crate::io::identity::enrol::{Issuer, Joiner, Line, Rules};
    use crate::proto::event::Event;

    /// What is answered to a request, and what the trail says of it.
    async fn done<T: serde::de::DeserializeOwned>(world: &World, request: &str) -> (T, Value) {
        let mut events = world.bus.events();
        let Answer::Ok(answer) = world.ask(format!("{request}\n").as_bytes()).await else {
            panic!("{request}")
        };
        let acted = deed(&mut events).await;
        let Event::OperatorActed { deed, .. } = &acted else { panic!("{acted:?}") };
        (answer, serde_json::to_value(deed).expect("plain"))
    }

    /// Has a machine ask with this line; the answer that the issuer of the world makes.
    fn asks(world: &World, line: &Line, name: &str) {
        let (certs, machine) = (world.dir.path().join("certs"), world.dir.path().join(name));
        let now = clock::wall();
        let joiner = Joiner::prepare(&machine, &name.parse().expect("a name"), &[], now);
        let asked = joiner.expect("prepared").ask(line, now).expect("asked");
        let issuer = Issuer::open(&certs, Rules::default()).expect("has the key");
        drop(issuer.answer(asked.bytes(), &[], now));
    }

    #[tokio::test]
    async fn each_deed_about_certificates_is_in_the_trail_and_the_secret_is_not() {
        let world = world(false).await;
        let invite =
            r#"{"ask":"invite","names":"*@10.0.0.*","seconds":60,"uses":2,"approval":true}"#;
        let (invited, acted) = done::<Invited>(&world, invite).await;
        assert_eq!(acted["deed"], "invite");
        let secret = invited.line.split(['.', '@']).nth(1).expect("a secret");
        assert!(!acted.to_string().contains(secret), "{acted}");
        let line: Line = invited.line.parse().expect("a line");
        asks(&world, &line, "c@10.0.0.3");
        asks(&world, &line, "d@10.0.0.4");
        let Answer::Ok(waiting) = world.ask::<Vec<Waiting>>(b"{\"ask\":\"requests\"}\n").await
        else {
            panic!()
        };
        let waiting = |name: &str| {
            let of = waiting.iter().find(|it| it.name.as_str() == name).expect("waits");
            of.request.to_string()
        };
        for (ask, name) in [("approve", "c@10.0.0.3"), ("deny", "d@10.0.0.4")] {
            let request = waiting(name);
            let line = format!(r#"{{"ask":"{ask}","request":"{request}"}}"#);
            let (about, acted) = done::<NodeName>(&world, &line).await;
            assert_eq!((about.as_str(), &acted["deed"]), (name, &Value::from(ask)));
            assert_eq!((&acted["peer"], &acted["request"]), (&Value::from(name), &request.into()));
            let again = error(world.ask(format!("{line}\n").as_bytes()).await);
            assert!(again.contains("waits for approval"), "{again}");
        }
        let release = r#"{"ask":"release","node":"a@127.0.0.1"}"#;
        let (revoked, acted) = done::<usize>(&world, release).await;
        assert_eq!((revoked, &acted["deed"]), (1, &Value::from("release")));
        let unknown = r#"{"ask":"release","node":"x@127.0.0.1"}"#;
        let refused = error(world.ask(format!("{unknown}\n").as_bytes()).await);
        assert!(refused.contains("never issued"), "{refused}");
    }

    #[tokio::test]
    async fn a_node_without_the_key_names_those_that_have_it() {
        let world = world(false).await;
        std::fs::remove_file(world.dir.path().join("certs/ca/key.pem")).expect("removed");
        let text = error(world.ask(b"{\"ask\":\"requests\"}\n").await);
        assert!(text.contains("key.pem"), "{text}");
    }
}
