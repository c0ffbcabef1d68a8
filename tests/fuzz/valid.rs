//! Valid inputs of each target: every kind of statement and word is among them.

use serde::Serialize;
use xpando_node::internals::proto::beacon::Beacon;
use xpando_node::internals::proto::codec;
use xpando_node::internals::proto::enrol::{
    Answer, AuthorityHash, InvitationId, Issued, Proof, Refused, Request,
};
use xpando_node::internals::proto::event::{Author, Operator, Refusal, Status};
use xpando_node::internals::proto::frame::{CloseReason, Control};
use xpando_node::internals::proto::hello::{Greeting, Hello};
use xpando_node::internals::proto::node::{Contact, Incarnation, KeyId, NodeName};
use xpando_node::internals::proto::registry::{self, Profile, Profiles, Ruling, Stated};
use xpando_node::internals::proto::rows::{Mark, Row, State, Table, Values, Word, statement};
use xpando_node::internals::proto::seal::{Equivocation, Sealed};
use xpando_node::internals::proto::talk::{self, DownReason, Outcome};
use xpando_node::internals::proto::topology::{self, Cell, Links};
use xpando_node::internals::proto::{discovery, heartbeat};

use crate::bodies::seal;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn encoded<T: Serialize>(values: &[T]) -> Vec<Vec<u8>> {
    values.iter().map(|value| codec::encode(value).unwrap()).collect()
}

fn contact() -> Contact {
    let address = ([127, 0, 0, 1], 4697).into();
    Contact { name: name("c@h"), address, incarnation: Incarnation(3) }
}

pub(crate) fn channel_frames() -> Vec<Vec<u8>> {
    let texts = [
        r#"["1","2","room:1","phx_join",{"token":"x","n":[1,2.5,null,"é"]}]"#,
        r#"[null,"3","phoenix","heartbeat",{}]"#,
        r#"{"topic":"room:1","event":"phx_join","payload":{},"ref":"1","join_ref":"1"}"#,
    ];
    let binary = b"\x00\x01\x01\x06\x0312room:1new\x00\xff".to_vec();
    texts.iter().map(|text| text.as_bytes().to_vec()).chain([binary]).collect()
}

pub(crate) fn enrolments() -> Vec<Vec<u8>> {
    let proofs = [
        Proof::Invitation { id: InvitationId([1; 16]), mac: [2; 32] },
        Proof::Certificate { der: vec![3; 600], signature: vec![4; 71] },
        Proof::Operator,
        Proof::SpokenStart { number: 7, share: vec![5; 33] },
        Proof::Spoken { session: [6; 16], mac: [7; 32] },
        Proof::Machine { jwt: "e30.e30.AAAA".to_owned() },
    ];
    let requests = proofs.map(|proof| Request {
        csr: vec![8; 300],
        name: name("web@10.0.0.7"),
        hosts: vec!["web.example".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        time: 1_700_000_000_000,
        authority: AuthorityHash([9; 32]),
        proof,
    });
    let issued = Issued {
        certificate: vec![1; 700],
        authorities: vec![vec![2; 500]],
        trust: None,
        tokens: Some(b"xpando tokens 1".to_vec()),
        revocations: Some(vec![3; 200]),
        peers: vec![contact().address],
        seal: Some([4; 32]),
    };
    let answers = [
        Answer::Issued(Box::new(issued)),
        Answer::Refused(Refused::Clock { ahead: -400_000 }),
        Answer::Refused(Refused::NameTaken { holder: KeyId([1; 16]), requested: KeyId([2; 16]) }),
        Answer::SpokenShare { session: [5; 16], share: vec![6; 33] },
    ];
    let line =
        format!("xpando1:{0}.{0}@10.0.0.1:4697,h.example:1#{1}", "A".repeat(22), "A".repeat(43));
    let texts = [line.as_str(), "web.example", "2001:db8::7", "web-*@10.0.*", "00c0ffee"];
    let requests = requests.iter().map(|it| it.encode().unwrap());
    let answers = answers.iter().map(|it| it.encode().unwrap());
    requests.chain(answers).chain(texts.map(|it| it.as_bytes().to_vec())).collect()
}

fn beacon() -> Vec<u8> {
    let (cluster, sequence, sent) = (KeyId([7; 16]), 9, 1_700_000_000_000);
    let beacon = Beacon { cluster, contact: contact(), sequence, sent };
    Beacon::seal(beacon.to_sign().unwrap(), &[5; 600], &[6; 72]).unwrap()
}

pub(crate) fn beacons() -> Vec<Vec<u8>> {
    vec![beacon()]
}

pub(crate) fn greetings() -> Vec<Vec<u8>> {
    let (cluster, advertise) = (KeyId([7; 16]), ([127, 0, 0, 1], 4697).into());
    let hello = Hello {
        name: name("b@h"),
        cluster,
        incarnation: Incarnation(3),
        boot: 9,
        advertise,
        lists: None,
    };
    let stale = Refusal::Stale { known: Incarnation(4), linked: Some(advertise) };
    let all = [
        Greeting::Hello(hello.clone()),
        Greeting::Welcome(hello),
        Greeting::Confirm,
        Greeting::Refuse(stale),
    ];
    all.map(|greeting| greeting.encode().unwrap().split_off(2)).into()
}

/// Before each the size of its pieces: a frame that has not come as a whole keeps the gate open.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    vec![b"\x03\x00\x00\x00\x00\x00\x00\x00\x40\x0a\x05".to_vec(), vec![7, 0, 0, 0]]
}

fn sealed<T: Table>(row: Row<T::Value>) -> Row<T::Value> {
    Row { seal: Some(seal(row.maker(), &statement::<T>(&row))), ..row }
}

fn row<T: Table>(origin: &str, version: u64, state: State<T::Value>) -> Row<T::Value> {
    let (origin, incarnation) = (name(origin), Incarnation(7));
    sealed::<T>(Row { origin, incarnation, version, state, seal: None })
}

/// Two rows that their origin sealed under one mark, one of them alone and both as the proof.
fn equivocal<T: Table>(rows: [Row<T::Value>; 2]) -> [Word<T::Value, T::Change>; 2] {
    let both = rows.map(|row| {
        let statement = statement::<T>(&row);
        Sealed { seal: seal(row.maker(), &statement), statement }
    });
    [Word::Sealed(vec![both[0].clone()]), Word::Equivocation(Box::new(Equivocation(both)))]
}

/// Words about rows that need nothing of a row's value.
fn marks<V, C>() -> Vec<Word<V, C>> {
    let mark = Mark { incarnation: Incarnation(7), version: 5, gone: false };
    let marks = vec![(name("b@h"), mark), (name("x@h"), Mark { gone: true, ..mark })];
    let after = Some(name("a@h"));
    let values = Values { salt: 9, hashes: vec![Some([1, 2, 3, 4]), None] };
    vec![
        Word::Digest(77),
        Word::News(marks.clone()),
        Word::Marks { after, marks, more: true, values },
        Word::Want(vec![name("a@h"), name("x@h")]),
    ]
}

pub(crate) fn rows() -> Vec<Vec<u8>> {
    let cell = Cell {
        state: Status::Online,
        suspect: false,
        rtt: Some(9),
        phi: 1,
        since: 5,
        reason: None,
    };
    let cells = || State::Live([(name("a@h"), cell.clone())].into());
    let left = |by: &str| State::Gone { at: 5, by: name(by) };
    let links = [
        row::<Links>("b@h", 5, cells()),
        row::<Links>("x@h", 5, cells()),
        row::<Links>("x@h", 6, left("x@h")),
    ];
    let mut links: Vec<topology::Word> = links.map(|row| Word::Rows(vec![row])).into();
    links.extend(marks());
    let other = row::<Links>("x@h", 5, State::Live([(name("b@h"), cell.clone())].into()));
    links.extend(equivocal::<Links>([row::<Links>("x@h", 5, cells()), other]));

    let profile = Profile::new(["gpu".parse().unwrap()], ["zone=eu".parse().unwrap()], 7).unwrap();
    let live = || row::<Profiles>("x@h", 5, State::Live(profile.clone()));
    let ruled = |version, forgotten, by: &str, last: Option<Row<Profile>>| {
        let author = Author::new(name(by), Operator::local(1000));
        let last = last.map(|row| {
            let (incarnation, version) = (row.incarnation, row.version);
            Stated { incarnation, version, value: profile.clone(), seal: row.seal.unwrap() }
        });
        let ruling = Ruling { forgotten, at: 5, author, last };
        row::<Profiles>("x@h", version, State::Ruled(Box::new(ruling)))
    };
    let profiles = [
        row::<Profiles>("b@h", 5, State::Live(profile.clone())),
        live(),
        ruled(6, true, "b@h", None),
        ruled(6, true, "f@h", Some(live())),
        ruled(7, false, "f@h", Some(live())),
    ];
    let mut profiles: Vec<registry::Word> = profiles.map(|row| Word::Rows(vec![row])).into();
    profiles.extend(marks());
    let other = row::<Profiles>("x@h", 5, State::Live(Profile::default()));
    profiles.extend(equivocal::<Profiles>([live(), other]));
    [encoded(&links), encoded(&profiles)].concat()
}

pub(crate) fn words() -> Vec<Vec<u8>> {
    let control = [
        Control::Goodbye(CloseReason::Left),
        Control::Ping(1),
        Control::Pong(2),
        Control::Credit(3),
    ];
    let mut all: Vec<_> = control.iter().map(|it| it.encode().unwrap()).collect();
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    let (work, topic) = ("work".parse().unwrap(), "room:1".parse().unwrap());
    all.extend([
        written(&|out| talk::request(out, 1, 500, &work)),
        written(&|out| talk::reply(out, 1, Outcome::Replied)),
        written(&|out| talk::watch(out, 2, &work)),
        written(&|out| talk::unwatch(out, 2)),
        written(&|out| talk::gone(out, 2, DownReason::NoSuchName)),
        written(&|out| talk::broadcast(out, Some(&topic))),
        b"\x00\x03abc\x02de".to_vec(),
        b"\x01\x80\x80\x04begin".to_vec(),
    ]);
    let places = discovery::Word::Contacts(vec![contact()]);
    all.extend(encoded(&[
        places,
        discovery::Word::Show(name("c@h")),
        discovery::Word::Shown(beacon()),
    ]));
    all.extend(encoded(&[
        heartbeat::Word::Ask(name("c@h")),
        heartbeat::Word::Answer(name("c@h"), true),
        heartbeat::Word::Doubted(name("c@h")),
    ]));
    all
}
