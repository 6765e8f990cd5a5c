//! Records of lives, over a file that a test can look into and let fail.

use actorum_machine::ids::ClusterId;

use super::*;
use crate::features::Features;

const DIR: Incarnation = Incarnation(7);

/// A file in memory.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Bytes>>);

#[derive(Default)]
struct Bytes {
    durable: Option<Content>,
    written: Option<Content>,
    full: bool,
}

impl LifeFile for Kept {
    fn write(&mut self, content: &Content) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        if kept.full {
            return Err(io::Error::other("the disk is full"));
        }
        kept.written = Some(content.clone());
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        kept.durable = kept.written.take();
        Ok(())
    }
}

impl Kept {
    fn durable(&self) -> Content {
        self.0.lock().unwrap().durable.clone().unwrap()
    }

    /// The next opening of it.
    fn opened(&self, nonce: u64, term: u64, index: u64) -> Arc<LifeBook> {
        let content = self.0.lock().unwrap().durable.clone().unwrap_or_else(|| Content::new(DIR));
        let boot = content.own.last().map_or(1, |life| life.boot + 1);
        LifeBook::open(Box::new(self.clone()), content, Life { boot, nonce, term, index }).unwrap()
    }
}

fn life(boot: u64, nonce: u64, term: u64, index: u64) -> Life {
    Life { boot, nonce, term, index }
}

fn identity(lives: &[Life]) -> Identity {
    let boot = lives.last().map_or(1, |life| life.boot);
    let (cluster, features) = (Some(ClusterId(5)), Features::all());
    Identity { id: 3, incarnation: DIR, boot, cluster, features, machine_version: 1, lives: lives.into() }
}

fn acknowledges(term: u64, index: u64) -> RaftMessage {
    RaftMessage { index, ..RaftMessage::new(MessageKind::AppendResponse, term) }
}

#[test]
fn a_life_is_durable_before_it_counts() {
    let kept = Kept::default();
    let book = kept.opened(1, 0, 0);
    let three = identity(&[life(1, 10, 0, 0)]);
    assert!(!book.is_on_record(&three));
    book.record(&three).unwrap();
    assert!(book.is_on_record(&three));
    assert_eq!(kept.durable().peers[&3].life, life(1, 10, 0, 0));
    // One that cannot be recorded does not count.
    kept.0.lock().unwrap().full = true;
    let later = identity(&[life(1, 10, 0, 0), life(2, 11, 1, 4)]);
    assert!(book.record(&later).is_err());
    assert!(!book.is_on_record(&later));
}

#[test]
fn what_goes_on_from_another_past_does_not_fit() {
    let kept = Kept::default();
    let book = kept.opened(1, 0, 0);
    let (a, b) = (life(1, 10, 0, 0), life(2, 11, 1, 5));
    book.record(&identity(&[a, b])).unwrap();
    assert_eq!(book.check(&identity(&[a, b])), Ok(()));
    let later = [life(3, 12, 2, 9), life(4, 13, 2, 9)];
    assert_eq!(book.check(&identity(&[a, b, later[0], later[1]])), Ok(()), "opened twice without meeting this node");
    let refused = Err(book.record_of(3).unwrap());
    assert_eq!(book.check(&identity(&[a, life(2, 99, 1, 5)])), refused, "an older copy, opened as often");
    assert_eq!(book.check(&identity(&[a])), refused, "the life before it");
    assert_eq!(book.check(&identity(&[a, life(2, 99, 1, 5), life(3, 98, 7, 50)])), refused, "whatever it did since");
    let other = Identity { incarnation: Incarnation(8), ..identity(&[a]) };
    assert_eq!(book.check(&other), Ok(()), "another directory is judged by its incarnation");
    assert_eq!(book.check(&identity(&[])), Ok(()), "the first version has no nonces");
    // All of it also after a restart.
    let again = kept.opened(2, 0, 0);
    assert_eq!(again.check(&identity(&[a, life(2, 99, 1, 5)])), refused);
}

#[test]
fn a_log_that_ends_below_what_was_acknowledged_does_not_fit() {
    let kept = Kept::default();
    let book = kept.opened(1, 0, 0);
    let a = life(1, 10, 0, 0);
    book.record(&identity(&[a])).unwrap();
    book.note_acknowledged(
        3,
        &[acknowledges(4, 20), RaftMessage { reject: true, ..acknowledges(4, 90) }, acknowledges(4, 18)],
    );
    let record = book.record_of(3).unwrap();
    assert_eq!((record.term, record.index), (4, 20), "what was refused is not acknowledged");
    let with = |next: Life| book.check(&identity(&[a, next]));
    assert_eq!(with(life(2, 11, 4, 20)), Ok(()));
    assert_eq!(with(life(2, 11, 4, 19)), Err(record));
    assert_eq!(with(life(2, 11, 3, 99)), Err(record), "terms never run backwards");
    assert_eq!(with(life(2, 11, 5, 12)), Ok(()), "a later leader has cut off what was not committed");
    // The first opening after the life on record counts, not what became of the copy since.
    assert_eq!(book.check(&identity(&[a, life(2, 11, 4, 19), life(3, 12, 6, 80)])), Err(record));
    // Recorded in steps; never more than was said.
    assert_eq!(kept.durable().peers[&3].index, 0);
    assert!(book.wants_flush() && !book.wants_flush(), "one at a time");
    book.flush();
    assert_eq!(kept.durable().peers[&3], record);
    assert!(!book.wants_flush());
}

/// A peer whose directory was put back accuses with what it had on record then. It must not stop the nodes that it
/// accuses.
#[test]
fn a_record_of_long_ago_proves_nothing() {
    let record = Record { incarnation: DIR, life: life(3, 10, 1, 5), index: 9, term: 2 };
    let since: Vec<Life> = (20..40).map(|boot| life(boot, boot, 3, 50)).collect();
    assert!(!record.fits(DIR, &since), "the link is refused all the same");
    assert!(!record.proves_copy(DIR, &since));
    let with = |lives: &[Life]| record.proves_copy(DIR, lives);
    assert!(with(&[life(1, 8, 0, 0), life(2, 9, 1, 3)]), "an opening that this directory has yet to come to");
    assert!(with(&[life(2, 9, 1, 3), life(3, 99, 1, 5)]), "another nonce under its number");
    assert!(with(&[life(3, 10, 1, 5), life(4, 11, 2, 8)]), "its log ends too early");
    assert!(!with(&[life(3, 10, 1, 5), life(4, 11, 2, 9)]) && !with(&[]));
    assert!(!record.proves_copy(Incarnation(8), &[life(3, 99, 1, 5)]), "of another directory");
}

#[test]
fn what_an_earlier_life_acknowledged_a_later_one_holds() {
    let book = Kept::default().opened(1, 0, 0);
    let (a, b) = (life(1, 10, 0, 0), life(2, 11, 4, 25));
    book.record(&identity(&[a])).unwrap();
    book.note_acknowledged(3, &[acknowledges(4, 20)]);
    book.record(&identity(&[a, b])).unwrap();
    let record = book.record_of(3).unwrap();
    assert_eq!((record.life, record.term, record.index), (b, 4, 20));
    assert_eq!(book.check(&identity(&[a, b, life(3, 12, 4, 19)])), Err(record));
}

#[test]
fn lives_are_shown_until_every_peer_has_a_later_one_on_record() {
    let kept = Kept::default();
    for nonce in 0..40 {
        let book = kept.opened(nonce, 0, 0);
        assert_eq!(book.shown().len(), nonce as usize + 1, "nobody has confirmed any");
        assert_eq!(book.shown().last().unwrap().nonce, nonce);
    }
    let book = kept.opened(40, 0, 0);
    let present = book.shown().last().unwrap().key();
    book.confirmed(2, present);
    book.set_peers([2, 3].iter(), &BTreeSet::new());
    book.flush();
    assert_eq!(kept.opened(41, 0, 0).shown().len(), 42, "node 3 has said nothing");
    let book = kept.opened(42, 0, 0);
    book.confirmed(3, book.shown()[30].key());
    book.confirmed(3, LifeKey { boot: 1, nonce: 77 });
    book.set_peers([2, 3].iter(), &BTreeSet::new());
    book.flush();
    let shown = kept.opened(43, 0, 0).shown();
    // Node 3 has the 31st on record, and no other word of it counts: that one was never this directory's.
    assert_eq!(shown.first().map(|life| life.nonce), Some(28), "the last sixteen at the least");
    assert_eq!(shown.len(), SHOWN_AT_LEAST);
}

#[test]
fn the_lives_that_peers_have_on_record_outlast_the_bound() {
    let kept = Kept::default();
    let mut said = Vec::new();
    for nonce in 0..1000 {
        let book = kept.opened(nonce, 0, 0);
        let shown = book.shown();
        assert!(shown.len() <= SHOWN_AT_MOST);
        let held = |key: &LifeKey| shown.iter().any(|life| life.key() == *key);
        assert!(said.iter().all(held), "boot {nonce} shows what peers have on record");
        // Node 2 was here once, at the beginning; node 3 until the middle.
        if nonce == 5 || nonce < 500 {
            let key = shown.last().unwrap().key();
            book.confirmed(if nonce == 5 { 2 } else { 3 }, key);
            book.flush();
            said = kept.durable().confirmed.values().copied().collect();
        }
    }
    assert_eq!(said.len(), 2);
    let bytes = rmp_serde::to_vec_named(&vec![life(u64::MAX, u64::MAX, u64::MAX, u64::MAX); SHOWN_AT_MOST]).unwrap();
    assert!(bytes.len() < 12 << 10, "a hello of 16 KiB has room for them: {}", bytes.len());
}

#[test]
fn a_closed_directory_is_not_written() {
    let kept = Kept::default();
    let book = kept.opened(1, 0, 0);
    book.close();
    let before = kept.durable();
    assert!(book.record(&identity(&[life(1, 10, 0, 0)])).is_err());
    book.flush();
    assert_eq!(kept.durable(), before);
}

#[test]
fn what_a_later_version_keeps_besides_is_skipped() {
    #[derive(Serialize)]
    struct Later {
        incarnation: Incarnation,
        own: Vec<Life>,
        epoch: u64,
    }
    let own = vec![life(1, 2, 3, 4)];
    let bytes = rmp_serde::to_vec_named(&Later { incarnation: DIR, own: own.clone(), epoch: 9 }).unwrap();
    assert_eq!(rmp_serde::from_slice::<Content>(&bytes).unwrap(), Content { own, ..Content::new(DIR) });
}
