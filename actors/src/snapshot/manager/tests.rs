//! The snapshot manager between a core, an applier and a transport that do what the test says.

use std::sync::{Condvar, Mutex, atomic::AtomicBool};

use actorum_core::{
    message::FetchSnapshot,
    testkit::founded,
    wire::{AskError, Refusal, Request, Response, SnapshotRequest},
};
use actorum_machine::machine::StateView;
use actorum_store::snapshot::{
    SnapshotStore,
    files::{Appending, Files, InMemory, Reading},
};
use actorum_transport::message::{Answered, Asked, Responder};
use tokio::sync::mpsc;

use super::*;
use crate::{
    clock::SystemClock,
    message::{FromCore, PeerFetches, SnapshotFetched},
};

const TIMEOUT: Duration = Duration::from_millis(200);

/// What the snapshot manager says to those around it.
#[derive(Debug)]
enum Heard {
    CaptureState,
    Built(Result<Snapshot, String>),
    Fetched(Result<(), String>),
    PeerFetches(PeerFetches),
    Asked(u64, NodeId, SnapshotRequest),
}

/// All of them at once, around the manager of that group.
struct Around(mpsc::Sender<Heard>, GroupId);

impl Actor for Around {
    type Context = Context<Self>;
}

impl Around {
    fn hear(&self, heard: Heard) {
        self.0.try_send(heard).expect("the test listens");
    }
}

impl Handler<CaptureState> for Around {
    type Result = ();

    fn handle(&mut self, _: CaptureState, _: &mut Context<Self>) {
        self.hear(Heard::CaptureState);
    }
}

impl Handler<SnapshotBuilt> for Around {
    type Result = ();

    fn handle(&mut self, SnapshotBuilt(result): SnapshotBuilt, _: &mut Context<Self>) {
        self.hear(Heard::Built(result));
    }
}

impl Handler<SnapshotFetched> for Around {
    type Result = ();

    fn handle(&mut self, SnapshotFetched { result, .. }: SnapshotFetched, _: &mut Context<Self>) {
        self.hear(Heard::Fetched(result));
    }
}

impl Handler<PeerFetches> for Around {
    type Result = ();

    fn handle(&mut self, message: PeerFetches, _: &mut Context<Self>) {
        self.hear(Heard::PeerFetches(message));
    }
}

impl Handler<Ask> for Around {
    type Result = ();

    fn handle(&mut self, Ask { id, group, to, request, .. }: Ask, _: &mut Context<Self>) {
        assert_eq!(group, self.1, "it asks in its own group");
        let Request::Snapshot(request) = request else { panic!("{request:?}") };
        self.hear(Heard::Asked(id, to, request));
    }
}

/// Files in memory that may wait for a device, and do where the test has closed the way.
#[derive(Default)]
struct Gated {
    files: InMemory,
    closed: Mutex<Option<&'static str>>,
    opened: Condvar,
    /// Whether a call waits there. Others pass.
    waits: AtomicBool,
}

impl Gated {
    fn close(&self, what: &'static str) {
        *self.closed.lock().unwrap() = Some(what);
    }

    fn open_all(&self) {
        *self.closed.lock().unwrap() = None;
        self.opened.notify_all();
    }

    fn pass(&self, what: &str) {
        let mut closed = self.closed.lock().unwrap();
        if closed.is_none_or(|closed| !what.starts_with(closed)) || self.waits.swap(true, Ordering::SeqCst) {
            return;
        }
        while closed.is_some() {
            closed = self.opened.wait(closed).unwrap();
        }
        self.waits.store(false, Ordering::SeqCst);
    }
}

impl Files for Gated {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let found = self.files.list();
        self.pass("list");
        found
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        self.files.create(name)
    }

    fn append(&self, name: &str) -> io::Result<Box<dyn Appending>> {
        self.files.append(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Reading>> {
        self.pass(name);
        self.files.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.files.sync_names()
    }

    fn folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        self.files.folder(name)
    }

    fn make_folder(&self, name: &str) -> io::Result<Arc<dyn Files>> {
        self.files.make_folder(name)
    }
}

struct Fixture {
    manager: Addr<SnapshotManager>,
    snapshots: GroupSnapshots,
    files: Arc<Gated>,
    heard: mpsc::Receiver<Heard>,
    status: watch::Receiver<Snapshots>,
    _around: Addr<Around>,
}

fn start() -> Fixture {
    start_of(GroupId::FIRST)
}

/// The manager of that group.
fn start_of(group: GroupId) -> Fixture {
    start_over(Arc::default(), group)
}

/// The same over these files.
fn start_over(files: Arc<Gated>, group: GroupId) -> Fixture {
    let (sender, heard) = mpsc::channel(1024);
    let around = Around(sender, group).start();
    let snapshots = SnapshotStore::over(files.clone()).of(group);
    let (shows, status) = watch::channel(Snapshots::default());
    let links = ManagerLinks {
        capture: around.downgrade().recipient(),
        built: around.downgrade().recipient(),
        fetched: around.downgrade().recipient(),
        peer_fetches: around.downgrade().recipient(),
        ask: around.clone().recipient(),
    };
    let bounds = ManagerBounds { max_sends: 1, rate: 0, piece: 256 << 10, timeout: TIMEOUT };
    let clock = SystemClock::shared();
    let manager = SnapshotManager::new(snapshots.clone(), Vec::new(), bounds, clock, links, shows).start();
    Fixture { manager, snapshots, files, heard, status, _around: around }
}

fn captured(index: u64) -> WriteSnapshot {
    let machine = StateView::bytes(vec![index as u8; 1000]);
    WriteSnapshot(Ok(CapturedState { index, term: 1, system: founded(), machine }))
}

fn content(index: u64) -> Content {
    let state = StateView::bytes(vec![7; 1000]);
    Content { index, term: 1, system: founded(), formed_with: BTreeMap::new(), state }
}

impl Fixture {
    /// The next thing that is heard of that kind; what else is heard meanwhile is no matter here.
    async fn hear<T>(&mut self, mut kind: impl FnMut(Heard) -> Option<T>) -> T {
        loop {
            let heard = self.heard.recv().await.expect("the manager lives");
            if let Some(found) = kind(heard) {
                return found;
            }
        }
    }

    async fn captures(&mut self) {
        self.hear(|heard| matches!(heard, Heard::CaptureState).then_some(())).await;
    }

    async fn built(&mut self) -> Result<Snapshot, String> {
        self.hear(|heard| if let Heard::Built(result) = heard { Some(result) } else { None }).await
    }

    async fn is_asked(&mut self) -> (u64, NodeId, SnapshotRequest) {
        let asked = |heard| if let Heard::Asked(id, to, request) = heard { Some((id, to, request)) } else { None };
        self.hear(asked).await
    }

    /// A snapshot is built and recorded.
    async fn take(&mut self, index: u64) -> Snapshot {
        self.manager.do_send(BuildSnapshot);
        self.captures().await;
        self.manager.do_send(captured(index));
        let snapshot = self.built().await.unwrap();
        self.manager.send(SnapshotsKept(vec![snapshot.clone()])).await.unwrap();
        snapshot
    }
}

#[actix::test]
async fn checking_what_came_may_take_longer_than_the_timeout_and_the_sender_hears_of_it() {
    let mut f = start();
    let elsewhere = SnapshotStore::memory().of(GroupId::FIRST);
    let snapshot = elsewhere.build(content(9), &mut |_| {}).unwrap();
    let file = SystemState::of(&snapshot).unwrap().1.unwrap();
    f.manager.do_send(FromCore(FetchSnapshot { from: 2, snapshot: snapshot.clone() }));
    let (id, to, request) = f.is_asked().await;
    let SnapshotRequest::Read { offset, max, .. } = request else { panic!("{request:?}") };
    assert_eq!((to, offset), (2, 0));
    f.files.close("receiving-");
    let data = elsewhere.read(9, &file, offset, max).unwrap().unwrap();
    f.manager.do_send(Answered { id, from: 2, result: Ok(Response::Piece { offset, data }) });
    // Many times its timeout, and it never gives up.
    for _ in 0..8 {
        let (_, to, request) = f.is_asked().await;
        assert_eq!(to, 2);
        assert!(matches!(request, SnapshotRequest::Working { file: of, index: 9, progress: Some(_) } if of == file));
    }
    f.files.open_all();
    f.hear(|heard| if let Heard::Fetched(result) = heard { Some(result) } else { None }).await.unwrap();
    // Nor while it is installed. Then it says so no more.
    for _ in 0..4 {
        let SnapshotRequest::Working { progress, .. } = f.is_asked().await.2 else { panic!("it does not work") };
        assert!(progress.is_some_and(|bytes| bytes >= file.bytes), "it read all of it: {progress:?}");
    }
    f.manager.send(SnapshotsKept(vec![snapshot])).await.unwrap();
    while f.heard.try_recv().is_ok() {}
    let quiet = tokio::time::timeout(TIMEOUT * 3, f.heard.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[actix::test]
async fn the_core_hears_of_a_peer_that_works_on_what_it_was_sent() {
    let mut f = start();
    let file = SnapshotFile { bytes: 10, hash: [1; 32] };
    let (responder, answer) = Responder::new();
    let request = Request::Snapshot(SnapshotRequest::Working { file, index: 5, progress: None });
    f.manager.do_send(Asked { group: GroupId::FIRST, from: 2, request, responder });
    assert_eq!(answer.await.unwrap(), Response::Noted);
    let told = f.hear(|heard| if let Heard::PeerFetches(told) = heard { Some(told) } else { None }).await;
    assert_eq!(told, PeerFetches { peer: 2, index: 5, gave_up: None });
}

#[actix::test]
async fn a_sender_that_falls_silent_is_given_up_on_and_hears_why() {
    let mut f = start();
    let snapshot = SnapshotStore::memory().of(GroupId::FIRST).build(content(9), &mut |_| {}).unwrap();
    f.manager.do_send(FromCore(FetchSnapshot { from: 2, snapshot }));
    let (id, ..) = f.is_asked().await;
    f.manager.do_send(Answered { id, from: 2, result: Err(AskError::Lost("cut".into())) });
    let gave_up = |heard| match heard {
        Heard::Asked(_, 2, SnapshotRequest::GaveUp { cause, .. }) => Some(cause),
        _ => None,
    };
    assert!(f.hear(gave_up).await.contains("not a byte came"));
    let fetched = f.hear(|heard| if let Heard::Fetched(result) = heard { Some(result) } else { None }).await;
    assert!(fetched.unwrap_err().contains("not a byte came"));
}

#[actix::test]
async fn a_group_is_not_given_the_file_of_another_and_gives_none() {
    let mut f = start_of(GroupId(7));
    let elsewhere = SnapshotStore::memory();
    for (sent, right) in [(GroupId::FIRST, false), (GroupId(8), false), (GroupId(7), true)] {
        let theirs = elsewhere.of(sent);
        let snapshot = theirs.build(content(9), &mut |_| {}).unwrap();
        let file = SystemState::of(&snapshot).unwrap().1.unwrap();
        f.manager.do_send(FromCore(FetchSnapshot { from: 2, snapshot: snapshot.clone() }));
        let (id, _, request) = f.is_asked().await;
        let SnapshotRequest::Read { offset, max, .. } = request else { panic!("{request:?}") };
        let data = theirs.read(9, &file, offset, max).unwrap().unwrap();
        f.manager.do_send(Answered { id, from: 2, result: Ok(Response::Piece { offset, data }) });
        if !right {
            // The sender hears of it first, then the core.
            let SnapshotRequest::GaveUp { cause, .. } = f.is_asked().await.2 else { panic!("it goes on") };
            let both = format!("it is of group {}, and the snapshot of group 7", sent.0);
            assert!(cause.ends_with(&both), "{cause}");
        }
        let fetched = f.hear(|heard| if let Heard::Fetched(result) = heard { Some(result) } else { None }).await;
        assert_eq!(fetched.is_ok(), right, "{fetched:?}");
        assert_eq!(f.snapshots.has(9, &file), right);
    }
    // Nor does it look for what a peer asks for in the folder of another group.
    let zero = start();
    let snapshot = zero.snapshots.build(content(9), &mut |_| {}).unwrap();
    let file = SystemState::of(&snapshot).unwrap().1.unwrap();
    let mut seven = start_over(zero.files.clone(), GroupId(7));
    for (asked, found) in [(&zero, true), (&seven, false)] {
        let (responder, answer) = Responder::new();
        let request = Request::Snapshot(SnapshotRequest::Read { file, index: 9, offset: 0, max: 10 });
        let group = asked.snapshots.group();
        asked.manager.do_send(Asked { group, from: 2, request, responder });
        let answer = answer.await.unwrap();
        assert_eq!(matches!(answer, Response::Piece { .. }), found, "{answer:?}");
        assert_eq!(matches!(answer, Response::Gone), !found, "{answer:?}");
    }
    seven.take(9).await;
    zero.snapshots.verify(&snapshot).unwrap();
}

#[actix::test]
async fn who_asks_after_a_snapshot_began_gets_the_next_one() {
    let mut f = start();
    let first = f.manager.send(TakeSnapshot);
    let first = actix_rt::spawn(first);
    f.captures().await;
    // The state is out of the applier's hands; what is applied from here on is not in it.
    let late = actix_rt::spawn(f.manager.send(TakeSnapshot));
    f.manager.send(captured(5)).await.unwrap();
    let five = f.built().await.unwrap();
    f.manager.do_send(SnapshotsKept(vec![five]));
    assert_eq!(first.await.unwrap().unwrap().unwrap().index, 5);
    f.captures().await;
    f.manager.do_send(captured(8));
    let eight = f.built().await.unwrap();
    f.manager.do_send(SnapshotsKept(vec![eight]));
    assert_eq!(late.await.unwrap().unwrap().unwrap().index, 8);
}

#[actix::test]
async fn only_so_many_wait_for_a_snapshot() {
    let mut f = start();
    let waiting: Vec<_> = (0..MAX_WAITING).map(|_| actix_rt::spawn(f.manager.send(TakeSnapshot))).collect();
    f.captures().await;
    let refused = f.manager.send(TakeSnapshot).await.unwrap();
    assert!(matches!(&refused, Err(TakeSnapshotError::Failed { cause }) if cause.contains("ask again")), "{refused:?}");
    f.manager.do_send(WriteSnapshot(Err("not today".to_owned())));
    f.captures().await;
    f.manager.do_send(WriteSnapshot(Err("not today".to_owned())));
    for answer in waiting {
        assert!(answer.await.unwrap().unwrap().is_err());
    }
}

#[actix::test]
async fn a_damaged_file_is_found_out_when_a_peer_cannot_use_it_and_taken_anew() {
    let mut f = start();
    let snapshot = f.take(5).await;
    let file = SystemState::of(&snapshot).unwrap().1.unwrap();
    let name = actorum_store::snapshot::store::complete_name(5, &file);
    let mut bytes = Vec::new();
    f.files.files.open(&name).unwrap().read_to_end(&mut bytes).unwrap();
    bytes[40] ^= 1;
    let mut content = f.files.files.append(&name).unwrap();
    content.cut(0).unwrap();
    io::Write::write_all(&mut content, &bytes).unwrap();
    assert!(f.snapshots.verify(&snapshot).is_err());

    let (responder, _answer) = Responder::new();
    let gave_up = SnapshotRequest::GaveUp { file, index: 5, cause: "a bit is wrong".into() };
    let request = Request::Snapshot(gave_up);
    f.manager.do_send(Asked { group: GroupId::FIRST, from: 2, request, responder });
    f.captures().await;
    f.manager.do_send(captured(5));
    let again = f.built().await.unwrap();
    assert_eq!(again, snapshot, "the same state, the same file");
    f.snapshots.verify(&snapshot).unwrap();
    assert!(f.status.borrow().last_error.as_ref().unwrap().contains("is damaged here"));
}

#[actix::test]
async fn what_is_no_longer_kept_is_removed_by_the_latest_word_only() {
    let mut f = start();
    let older = f.take(5).await;
    let newer = [9, 12].map(|index| f.snapshots.build(content(index), &mut |_| {}).unwrap());
    // A first sweep has looked at what is there, and is slow to go on.
    f.files.close("list");
    f.manager.do_send(SnapshotsKept(vec![older]));
    while !f.files.waits.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    // Meanwhile newer ones are recorded. A sweep that overtook the first would call them known, and the first remove
    // one.
    for _ in 0..2 {
        f.manager.send(SnapshotsKept(newer.to_vec())).await.unwrap();
    }
    let quiet = tokio::time::timeout(TIMEOUT, f.heard.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    f.files.open_all();
    while f.files.waits.load(Ordering::SeqCst) || f.files.files.list().unwrap().len() > 2 {
        tokio::task::yield_now().await;
    }
    let quiet = tokio::time::timeout(TIMEOUT, f.heard.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    newer.iter().for_each(|newer| f.snapshots.verify(newer).unwrap());
}

#[actix::test]
async fn absurd_questions_are_refused_and_take_no_place() {
    let mut f = start();
    let snapshot = f.take(5).await;
    let file = SystemState::of(&snapshot).unwrap().1.unwrap();
    let ask = |from, file, index, offset, max| {
        let (responder, answer) = Responder::new();
        let request = Request::Snapshot(SnapshotRequest::Read { file, index, offset, max });
        f.manager.do_send(Asked { group: GroupId::FIRST, from, request, responder });
        answer
    };
    let past = ask(2, file, 5, u64::MAX, 10).await.unwrap();
    assert!(matches!(past, Response::Refused(Refusal::Invalid { .. })), "{past:?}");
    let other = SnapshotFile { bytes: u64::MAX, ..file };
    assert_eq!(ask(2, other, 5, u64::MAX - 1, u32::MAX).await.unwrap(), Response::Gone);
    // The one place is free for who asks for what is here.
    let piece = ask(3, file, 5, 0, 10).await.unwrap();
    assert!(matches!(&piece, Response::Piece { offset: 0, data } if data.len() == 10), "{piece:?}");
    assert_eq!(ask(2, file, 5, 0, 10).await.unwrap(), Response::Refused(Refusal::Busy));
}
