//! Frames: the form of the structs of [`wire`](actorum_core::wire) on a QUIC stream. This file has no socket.
//!
//! ```text
//!  ┌────────────┬─────────┬──────┬──────────────────────────────┐
//!  │ length u32 │ version │ kind │ body: MessagePack, by name   │   length = version + kind + body, big endian
//!  └────────────┴─────────┴──────┴──────────────────────────────┘
//! ```
//!
//! The length is checked against a bound before anything is allocated for it, and the buffer grows only with the bytes
//! that really arrive. A body must decode to its end and nothing may follow it. Fields that a newer peer added are
//! skipped. A variant that it added is an error, since a request that is not understood must not be half carried out.
//!
//! Deliberately absent: validation. A message that decodes may still be invalid; the consensus core validates it before
//! its step.

use actorum_core::{
    features::Features,
    identity::{Identity, RefusedBecause},
    lives::{Life, LifeKey},
    wire::{RaftMessage, Request, Response},
};
use actorum_machine::ids::{ClusterId, GroupId, Incarnation, NodeId};
use bytes::{Buf, Bytes, BytesMut};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor},
};

/// The version of this framing, in every frame.
pub const VERSION: u8 = 1;

/// The bytes before a body: length, version, kind.
pub const HEADER: usize = 6;

/// The bound of frames that may come before the peer is trusted (hello, lane, refusal), in bytes.
pub const SMALL: usize = 16 * 1024;

/// The most messages in one frame. A message of a few bytes takes a few hundred in memory, so that a bound on
/// bytes alone would let a frame grow twentyfold when decoded.
pub const MAX_MESSAGES: usize = 16 * 1024;

/// The most that a batch takes in a frame besides its messages.
pub(crate) const BATCH_FRAMING: usize = 64;

/// How deep a body may nest. What we send nests eight deep; a newer peer's unknown fields may be a little deeper.
const MAX_DEPTH: usize = 32;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// [`Hello`]: the first frame of each side on every connection.
    Hello = 1,
    /// [`Welcome`]: the dialler accepts the hello that answered its own.
    Welcome = 2,
    /// [`Refused`]: the last frame of a connection that is refused.
    Refused = 3,
    /// [`Lane`]: the first frame on a one-way stream.
    Lane = 4,
    /// [`Batch`]: Raft messages of one group.
    Raft = 5,
    /// [`GroupRequest`]: the only frame of the asking half of a two-way stream.
    Request = 6,
    /// [`Response`]: the only frame of its answering half.
    Response = 7,
}

impl TryFrom<u8> for FrameKind {
    type Error = FrameError;

    fn try_from(byte: u8) -> Result<Self, FrameError> {
        use FrameKind::*;
        [Hello, Welcome, Refused, Lane, Raft, Request, Response]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or(FrameError::UnknownKind { kind: byte })
    }
}

/// Why bytes are not a frame, or a value cannot become one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than this side accepts or sends.
    #[error("a frame of {length} bytes is over the bound of {max}")]
    TooLarge {
        /// What it claims, or takes.
        length: u64,
        /// The bound.
        max: usize,
    },
    /// Too short to hold a version and a kind.
    #[error("a frame of {length} bytes is too short to have a kind")]
    TooShort {
        /// What it claims.
        length: u32,
    },
    /// Another framing.
    #[error("framing version {theirs} is not spoken here (this node speaks {VERSION})")]
    Version {
        /// The version in the frame.
        theirs: u8,
    },
    /// A kind that this version does not know.
    #[error("unknown frame kind {kind}")]
    UnknownKind {
        /// The kind in the frame.
        kind: u8,
    },
    /// A known kind at the wrong place.
    #[error("a {found:?} frame came where {expected:?} was expected")]
    Unexpected {
        /// What came.
        found: FrameKind,
        /// What belongs there.
        expected: FrameKind,
    },
    /// The body does not decode.
    #[error("malformed body: {0}")]
    Malformed(String),
    /// The body goes on after its end.
    #[error("bytes after the end of the body")]
    Trailing,
    /// The stream ended in the middle of a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
}

/// The identity of the sender: the first frame in each direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol version, [`crate::hello::PROTOCOL`].
    pub protocol: u32,
    /// The formats of group messages that it reads.
    #[serde(default)]
    pub formats: Vec<u32>,
    /// Its cluster; nothing while it waits to be formed or added.
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    /// Its id: the one in its certificate.
    pub node: NodeId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// How often that directory was opened.
    pub boot: u64,
    /// The dialler's count of dials in this boot: of two connections it made, the one with the higher number
    /// is newer, whichever arrives first. Zero from the side that accepts.
    #[serde(default)]
    pub dial: u64,
    /// The features that it understands besides the formats of the first version, which has no such field.
    #[serde(default)]
    pub features: Features,
    /// The version of its state machine. Builds before there was such a field say nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub machine_version: u32,
    /// The lives of its directory, oldest first, up to this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lives: Vec<Life>,
    /// Which life of the receiver it has on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<LifeKey>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Hello {
    /// The identity it claims.
    pub fn identity(&self) -> Identity {
        Identity {
            id: self.node,
            incarnation: self.incarnation,
            boot: self.boot,
            cluster: self.cluster,
            features: self.features.clone(),
            machine_version: self.machine_version,
            lives: self.lives.clone().into(),
        }
    }
}

/// The dialler accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Which life of the acceptor it has on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<LifeKey>,
}

/// A refusal: the sentence for the log, and the reason for the program. A reason that only a newer version knows
/// stays readable as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// For people.
    pub text: String,
    /// The encoded [`RefusedBecause`].
    #[serde(default)]
    pub reason: Bytes,
}

impl Refused {
    /// Of a reason.
    pub fn new(reason: &RefusedBecause) -> Refused {
        let encoded = rmp_serde::to_vec_named(reason).unwrap_or_default();
        Refused { text: reason.to_string(), reason: encoded.into() }
    }

    /// The reason, if this version knows it.
    pub fn because(&self) -> Option<RefusedBecause> {
        decode(&self.reason).ok()
    }
}

/// What a one-way stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// Appends, their answers and snapshots, in order.
    Log,
    /// Heartbeats and votes, which bulk data must not delay.
    Urgent,
}

/// Raft messages of one group, in order.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Batch {
    /// The group.
    #[serde(default)]
    pub group: GroupId,
    /// At most [`MAX_MESSAGES`].
    #[serde(deserialize_with = "bounded_messages")]
    pub messages: Vec<RaftMessage>,
}

/// A [`Batch`] to be written, without owning it.
#[derive(Serialize)]
struct BatchRef<'a> {
    group: GroupId,
    messages: &'a [RaftMessage],
}

/// A [`GroupRequest`] to be written, without owning it.
#[derive(Serialize)]
struct GroupRequestRef<'a> {
    group: GroupId,
    request: &'a Request,
}

/// A request and the group it concerns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRequest {
    /// The group.
    #[serde(default)]
    pub group: GroupId,
    /// What is asked.
    pub request: Request,
}

/// Appends the frame of a value to `out`, which is left as it was on an error.
pub fn encode<T: Serialize>(kind: FrameKind, body: &T, max: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, VERSION, kind as u8]);
    let written =
        rmp_serde::encode::write_named(out, body).map_err(|e| FrameError::Malformed(e.to_string())).and_then(|()| {
            match out.len() - start - 4 {
                length if length > max || u32::try_from(length).is_err() => {
                    Err(FrameError::TooLarge { length: length as u64, max })
                }
                length => Ok(length as u32),
            }
        });
    match written {
        Ok(length) => {
            out[start..start + 4].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(e) => {
            out.truncate(start);
            Err(e)
        }
    }
}

/// Appends messages of one group to `out`, as few frames as the bounds allow. Returns how many messages
/// were left out because one alone is over the bound. What might not fit a frame is not encoded to find out.
pub fn encode_messages(group: GroupId, messages: &[RaftMessage], max: usize, out: &mut Vec<u8>) -> usize {
    let bytes: usize = messages.iter().map(RaftMessage::encoded_bound).sum();
    let fits = messages.len() <= MAX_MESSAGES && bytes.saturating_add(BATCH_FRAMING) <= max;
    match messages {
        [] => 0,
        messages if fits && encode(FrameKind::Raft, &BatchRef { group, messages }, max, out).is_ok() => 0,
        [_] => 1,
        messages => {
            let (first, second) = messages.split_at(messages.len() / 2);
            encode_messages(group, first, max, out) + encode_messages(group, second, max, out)
        }
    }
}

/// Whether a question fits a frame.
pub(crate) fn question_fits(group: GroupId, request: &Request, max: usize) -> Result<(), FrameError> {
    // Around a command there are only a few numbers, so a large command is not encoded to find out.
    if let Request::Propose { data, .. } | Request::Change { data, .. } = request
        && data.len().saturating_add(SMALL) <= max
    {
        return Ok(());
    }
    encode(FrameKind::Request, &GroupRequestRef { group, request }, max, &mut Vec::new())
}

/// Whether an answer fits a frame.
pub(crate) fn answer_fits(response: &Response, max: usize) -> bool {
    if let Response::Applied { response: data, .. } | Response::Piece { data, .. } = response
        && data.len().saturating_add(SMALL) <= max
    {
        return true;
    }
    encode(FrameKind::Response, response, max, &mut Vec::new()).is_ok()
}

/// An answer that fits a frame, or the error that is sent in its place. The answer is not encoded to find that out.
pub(crate) fn answer_within(response: Response, max: usize) -> Response {
    match response {
        Response::Applied { index, response, .. } if response.len().saturating_add(SMALL) > max => {
            let cause = format!("applied at {index}, but its response of {} bytes fits no message", response.len());
            Response::Unknown { cause }
        }
        response => response,
    }
}

/// Decodes a body, to its end.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let malformed = |e: rmp_serde::decode::Error| FrameError::Malformed(e.to_string());
    let mut decoder = rmp_serde::Deserializer::from_read_ref(body);
    decoder.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut decoder).map_err(malformed)?;
    // The decoder does not tell its position. If nothing more can be read, it is at the end.
    match IgnoredAny::deserialize(&mut decoder) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Ok(value)
        }
        _ => Err(FrameError::Trailing),
    }
}

fn bounded_messages<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RaftMessage>, D::Error> {
    struct Bounded;

    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<RaftMessage>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "at most {MAX_MESSAGES} messages")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut messages = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(256));
            while let Some(message) = seq.next_element()? {
                if messages.len() == MAX_MESSAGES {
                    return Err(serde::de::Error::invalid_length(messages.len() + 1, &self));
                }
                messages.push(message);
            }
            Ok(messages)
        }
    }

    deserializer.deserialize_seq(Bounded)
}

/// One stream's bytes on their way to frames.
///
/// Bound: one frame of `max` bytes and the bytes of one read. A length above `max` is an error at once. No memory is
/// reserved for a length that is only announced.
#[derive(Debug)]
pub struct Splitter {
    buffer: BytesMut,
    max: usize,
}

impl Splitter {
    /// For frames of at most `max` bytes.
    pub fn new(max: usize) -> Splitter {
        Splitter { buffer: BytesMut::new(), max }
    }

    /// The same bytes under another bound.
    pub fn with_max(self, max: usize) -> Splitter {
        Splitter { max, ..self }
    }

    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether a frame has begun that is not complete.
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// How many bytes the next frame says it has, once that is known. Not checked: [`next_frame`](Self::next_frame)
    /// does.
    pub fn claim(&self) -> Option<u32> {
        self.buffer.first_chunk::<4>().map(|length| u32::from_be_bytes(*length))
    }

    /// The next complete frame: its kind and body. After an error the stream makes no sense any more.
    pub fn next_frame(&mut self) -> Result<Option<(FrameKind, BytesMut)>, FrameError> {
        let Some(length) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        if length as usize > self.max {
            return Err(FrameError::TooLarge { length: length.into(), max: self.max });
        }
        if length < 2 {
            return Err(FrameError::TooShort { length });
        }
        let Some([_, _, _, _, version, kind]) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        if *version != VERSION {
            return Err(FrameError::Version { theirs: *version });
        }
        let kind = FrameKind::try_from(*kind)?;
        if self.buffer.len() < 4 + length as usize {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(4 + length as usize);
        frame.advance(HEADER);
        // The memory of one large frame must not be kept for the life of the connection.
        if self.buffer.is_empty() && self.buffer.capacity() > 1 << 20 {
            self.buffer = BytesMut::new();
        }
        Ok(Some((kind, frame)))
    }
}

#[cfg(test)]
mod tests {
    use actorum_core::{
        marks::{HashValue, Mark, ResponseHash, StateHash},
        wire::{
            ChangeRefusal, ClockReading, ConfState, Entry, EntryKind, Formation, MessageKind, Refusal, Response,
            Snapshot, SnapshotFile, SnapshotRequest,
        },
    };
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn kind() -> impl Strategy<Value = MessageKind> {
        use MessageKind::*;
        prop::sample::select(vec![
            Append,
            AppendResponse,
            Heartbeat,
            HeartbeatResponse,
            PreVote,
            PreVoteResponse,
            Vote,
            VoteResponse,
            MessageKind::Snapshot,
            TimeoutNow,
        ])
    }

    fn entry() -> impl Strategy<Value = Entry> {
        (any::<bool>(), any::<u64>(), any::<u64>(), bytes(), bytes()).prop_map(|(conf, term, index, data, context)| {
            let kind = if conf { EntryKind::ConfChange } else { EntryKind::Normal };
            Entry { kind, term, index, data, context }
        })
    }

    fn snapshot() -> impl Strategy<Value = Snapshot> {
        (any::<u64>(), any::<u64>(), vec(any::<u64>(), 0..4), vec(any::<u64>(), 0..4), any::<bool>(), bytes()).prop_map(
            |(index, term, voters, learners, auto_leave, data)| Snapshot {
                index,
                term,
                conf: ConfState { voters, learners, auto_leave, ..ConfState::default() },
                data,
            },
        )
    }

    prop_compose! {
        fn message()(
            kind in kind(),
            n in any::<[u64; 7]>(),
            entries in vec(entry(), 0..5),
            snapshot in proptest::option::of(snapshot()),
            reject in any::<bool>(),
            context in bytes(),
            priority in any::<i64>(),
        ) -> RaftMessage {
            let [term, log_term, index, commit, commit_term, request_snapshot, reject_hint] = n;
            RaftMessage {
                kind, term, log_term, index, entries, commit, commit_term, snapshot, request_snapshot,
                reject, reject_hint, context, priority,
            }
        }
    }

    fn mark() -> impl Strategy<Value = Mark> {
        let state =
            (any::<u64>(), any::<u128>()).prop_map(|(since, value)| StateHash { since, value: HashValue(value) });
        let responses = (any::<u64>(), any::<u32>(), any::<u128>()).prop_map(|(since, version, value)| ResponseHash {
            since,
            version,
            value: HashValue(value),
        });
        (any::<u64>(), proptest::option::of(state), proptest::option::of(responses))
            .prop_map(|(index, state, responses)| Mark { index, state, responses })
    }

    fn refusal() -> impl Strategy<Value = Refusal> {
        let change = |cause: String| match cause.len() % 3 {
            0 => ChangeRefusal::InProgress,
            1 => ChangeRefusal::NotReady,
            _ => ChangeRefusal::Invalid { cause, reading: None },
        };
        prop_oneof![
            proptest::option::of(any::<u64>()).prop_map(|leader| Refusal::NotLeader { leader }),
            ".{0,20}".prop_map(|cause| Refusal::Dropped { cause }),
            Just(Refusal::Busy),
            any::<[u64; 2]>().prop_map(|[free, needed]| Refusal::LowSpace { free, needed }),
            any::<u64>().prop_map(|limit| Refusal::TooLarge { limit }),
            Just(Refusal::Late),
            ".{0,20}".prop_map(|cause| Refusal::Stopped { cause }),
            ".{0,20}".prop_map(move |cause| Refusal::Change(change(cause))),
            ".{0,20}".prop_map(|cause| Refusal::Invalid { cause }),
        ]
    }

    fn response() -> impl Strategy<Value = Response> {
        prop_oneof![
            (any::<u64>(), any::<u64>(), bytes()).prop_map(|(index, term, response)| Response::Applied {
                index,
                term,
                response
            }),
            any::<u64>().prop_map(|index| Response::ReadAt { index }),
            (any::<u64>(), proptest::option::of("[a-z_]{0,20}")).prop_map(|(calendar_us, refuses_writes)| {
                Response::Clock(ClockReading { calendar_us, refuses_writes })
            }),
            (any::<u64>(), bytes()).prop_map(|(offset, data)| Response::Piece { offset, data }),
            prop::sample::select(vec![Response::Gone, Response::Noted]),
            bytes().prop_map(|membership| Response::Changed { membership }),
            vec(mark(), 0..4).prop_map(|marks| Response::Marks { marks }),
            ".{0,20}".prop_map(|cause| Response::Unknown { cause }),
            refusal().prop_map(Response::Refused),
            (any::<u64>(), any::<u64>()).prop_map(|(i, n)| Response::Formation(Formation {
                incarnation: Incarnation(i),
                founders: [(n, "n:1".into())].into(),
                formed_with: None,
                heard: [(n, Incarnation(i))].into(),
                cluster_name: (i % 2 == 0).then(|| "blue".to_owned()),
                cluster: (n % 2 == 0).then_some(ClusterId(u128::from(i))),
            })),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        let file = (any::<u64>(), any::<[u8; 32]>()).prop_map(|(bytes, hash)| SnapshotFile { bytes, hash });
        let read = (file.clone(), any::<[u64; 2]>(), any::<u32>())
            .prop_map(|(file, [index, offset], max)| SnapshotRequest::Read { file, index, offset, max });
        let working = (file.clone(), any::<u64>()).prop_map(|(file, index)| SnapshotRequest::Working {
            file,
            index,
            progress: (index % 2 == 0).then_some(index / 2),
        });
        let gave_up = (file, any::<u64>(), ".{0,20}").prop_map(|(file, index, cause)| SnapshotRequest::GaveUp {
            file,
            index,
            cause,
        });
        prop_oneof![
            (bytes(), any::<u64>()).prop_map(|(data, remaining_ms)| Request::Propose { data, remaining_ms }),
            (bytes(), any::<u64>(), any::<bool>()).prop_map(|(data, remaining_ms, force)| Request::Change {
                data,
                remaining_ms,
                force
            }),
            any::<u64>().prop_map(|remaining_ms| Request::ReadIndex { remaining_ms }),
            Just(Request::Clock),
            Just(Request::Activate),
            vec(mark(), 0..4).prop_map(|marks| Request::Marks { marks }),
            read.prop_map(Request::Snapshot),
            working.prop_map(Request::Snapshot),
            gave_up.prop_map(Request::Snapshot),
        ]
    }

    fn split(bytes: &[u8], max: usize) -> Result<Vec<(FrameKind, BytesMut)>, FrameError> {
        let mut splitter = Splitter::new(max);
        splitter.push(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = splitter.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        /// What was sent arrives, however the bytes are cut and whatever came before.
        #[test]
        fn messages_survive_any_cut(messages in vec(message(), 1..6), group in any::<u32>(), cut in 1usize..50) {
            let mut out = Vec::new();
            prop_assert_eq!(encode_messages(GroupId(group), &messages, 1 << 20, &mut out), 0);
            encode(FrameKind::Welcome, &Welcome::default(), SMALL, &mut out).unwrap();
            let mut splitter = Splitter::new(1 << 20);
            let mut frames = Vec::new();
            for piece in out.chunks(cut) {
                splitter.push(piece);
                while let Some(frame) = splitter.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            prop_assert!(!splitter.is_partial());
            prop_assert_eq!(frames.len(), 2);
            let batch: Batch = decode(&frames[0].1).unwrap();
            prop_assert_eq!(batch, Batch { group: GroupId(group), messages });
        }

        /// A small bound splits a batch into several frames, in order, and leaves out only what fits in none.
        #[test]
        fn a_batch_splits_at_the_bound(messages in vec(message(), 1..12)) {
            let max = 1200;
            let mut out = Vec::new();
            let left_out = encode_messages(GroupId(0), &messages, max, &mut out);
            let mut arrived = Vec::new();
            for (kind, body) in split(&out, max).unwrap() {
                prop_assert_eq!(kind, FrameKind::Raft);
                arrived.extend(decode::<Batch>(&body).unwrap().messages);
            }
            prop_assert_eq!(arrived.len() + left_out, messages.len());
            let mut arrived = arrived.iter().peekable();
            for message in &messages {
                if arrived.next_if(|next| *next == message).is_none() {
                    let bound = message.encoded_bound() + BATCH_FRAMING;
                    prop_assert!(bound > max, "it fits a frame, and was left out or moved");
                }
            }
            prop_assert!(arrived.next().is_none(), "out of order");
        }

        /// What a message may take is known before it is encoded, so that nothing larger than a frame ever is.
        #[test]
        fn a_message_takes_no_more_than_its_bound(messages in vec(message(), 1..6)) {
            let mut out = Vec::new();
            let batch = BatchRef { group: GroupId(u32::MAX), messages: &messages };
            encode(FrameKind::Raft, &batch, 1 << 20, &mut out).unwrap();
            let bound: usize = messages.iter().map(RaftMessage::encoded_bound).sum();
            prop_assert!(out.len() - HEADER <= bound + BATCH_FRAMING, "{} > {bound}", out.len());
        }

        #[test]
        fn responses_survive(response in response()) {
            let mut out = Vec::new();
            encode(FrameKind::Response, &response, SMALL, &mut out).unwrap();
            let frames = split(&out, SMALL).unwrap();
            prop_assert_eq!(decode::<Response>(&frames[0].1).unwrap(), response);
        }

        #[test]
        fn questions_survive(group in any::<u32>(), request in request()) {
            let (mut out, question) = (Vec::new(), GroupRequest { group: GroupId(group), request });
            encode(FrameKind::Request, &question, SMALL, &mut out).unwrap();
            let frames = split(&out, SMALL).unwrap();
            prop_assert_eq!(decode::<GroupRequest>(&frames[0].1).unwrap(), question);
        }

        /// Any bytes at all: an error or a frame, never a panic.
        #[test]
        fn garbage_is_an_error(garbage in vec(any::<u8>(), 0..400)) {
            if let Ok(frames) = split(&garbage, 1 << 20) {
                for (_, body) in frames {
                    let _ = decode::<Batch>(&body);
                }
            }
            let _ = decode::<Batch>(&garbage);
            let _ = decode::<Hello>(&garbage);
            let _ = decode::<GroupRequest>(&garbage);
            let _ = decode::<Response>(&garbage);
            let _ = decode::<Refused>(&garbage).map(|refused| refused.because());
        }

        /// A true frame with one byte changed: an error or another value, never a panic.
        #[test]
        fn one_wrong_byte_is_harmless(
            messages in vec(message(), 1..4),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut out = Vec::new();
            encode_messages(GroupId(0), &messages, 1 << 20, &mut out);
            let at = at.index(out.len());
            out[at] = byte;
            if let Ok(frames) = split(&out, 1 << 20) {
                for (_, body) in frames {
                    let _ = decode::<Batch>(&body);
                }
            }
        }
    }

    #[test]
    fn a_claim_of_four_gigabytes_is_refused_by_its_header() {
        let mut splitter = Splitter::new(64 << 20);
        splitter.push(&[0xff, 0xff, 0xff, 0xff]);
        assert_eq!(splitter.next_frame(), Err(FrameError::TooLarge { length: u32::MAX.into(), max: 64 << 20 }));
        assert!(splitter.buffer.capacity() < 1024, "nothing was reserved for it");
    }

    #[test]
    fn a_claim_within_the_bound_reserves_nothing() {
        let mut splitter = Splitter::new(64 << 20);
        splitter.push(&(64u32 << 20).to_be_bytes());
        splitter.push(&[VERSION, FrameKind::Raft as u8]);
        assert_eq!(splitter.next_frame(), Ok(None));
        assert!(splitter.buffer.capacity() < 1024);
    }

    #[test]
    fn collections_that_lie_about_their_length_are_errors() {
        // {"messages": array of 2^32 - 1}, {"messages": bin of 4 GiB}, and a thousand arrays inside each other.
        let name = b"\x81\xa8messages";
        for rest in [&b"\xdd\xff\xff\xff\xff"[..], b"\xc6\xff\xff\xff\xff", &[0x91; 1000]] {
            let body = [name, rest].concat();
            assert!(matches!(decode::<Batch>(&body), Err(FrameError::Malformed(_))));
        }
    }

    #[test]
    fn more_messages_than_the_bound_are_split_by_the_sender_and_refused_by_the_receiver() {
        let messages = vec![RaftMessage::new(MessageKind::Heartbeat, 1); MAX_MESSAGES + 1];
        let mut out = Vec::new();
        assert_eq!(encode_messages(GroupId(0), &messages, 64 << 20, &mut out), 0);
        assert_eq!(split(&out, 64 << 20).unwrap().len(), 2);

        let mut forced = Vec::new();
        encode(FrameKind::Raft, &BatchRef { group: GroupId(0), messages: &messages }, 64 << 20, &mut forced).unwrap();
        assert!(matches!(decode::<Batch>(&forced[HEADER..]), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn fields_of_a_newer_peer_are_skipped_and_its_variants_are_not() {
        #[derive(Serialize)]
        struct NewerBatch {
            group: u32,
            messages: Vec<NewerMessage>,
            colour: &'static str,
        }
        #[derive(Serialize)]
        struct NewerMessage {
            kind: &'static str,
            term: u64,
            mood: Vec<u64>,
        }
        let newer = |kind| {
            let messages = vec![NewerMessage { kind, term: 7, mood: vec![1, 2] }];
            rmp_serde::to_vec_named(&NewerBatch { group: 3, messages, colour: "green" }).unwrap()
        };
        let batch: Batch = decode(&newer("Vote")).unwrap();
        assert_eq!(batch.messages, vec![RaftMessage::new(MessageKind::Vote, 7)]);
        assert!(matches!(decode::<Batch>(&newer("Telepathy")), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn bytes_after_the_body_are_an_error() {
        let mut body = rmp_serde::to_vec_named(&Welcome::default()).unwrap();
        assert_eq!(decode::<Welcome>(&body), Ok(Welcome::default()));
        body.push(0xc0);
        assert_eq!(decode::<Welcome>(&body), Err(FrameError::Trailing));
    }

    #[test]
    fn another_version_and_an_unknown_kind_are_named() {
        assert_eq!(split(&[0, 0, 0, 2, 9, 1], SMALL), Err(FrameError::Version { theirs: 9 }));
        assert_eq!(split(&[0, 0, 0, 2, VERSION, 99], SMALL), Err(FrameError::UnknownKind { kind: 99 }));
        assert_eq!(split(&[0, 0, 0, 1, VERSION], SMALL), Err(FrameError::TooShort { length: 1 }));
    }

    #[test]
    fn a_cluster_id_keeps_all_its_bits() {
        let hello = Hello {
            protocol: 1,
            formats: vec![1],
            cluster: Some(ClusterId(u128::MAX - 5)),
            node: 1,
            incarnation: Incarnation(u64::MAX),
            boot: 2,
            dial: 3,
            features: Features::all(),
            machine_version: 7,
            lives: vec![Life { boot: 2, nonce: u64::MAX, term: 3, index: 4 }],
            recorded: Some(LifeKey { boot: 1, nonce: 9 }),
        };
        assert_eq!(decode::<Hello>(&rmp_serde::to_vec_named(&hello).unwrap()), Ok(hello));
    }

    /// The hello as the first version has it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct FirstHello {
        protocol: u32,
        formats: Vec<u32>,
        cluster: Option<ClusterId>,
        node: NodeId,
        incarnation: Incarnation,
        boot: u64,
        dial: u64,
    }

    #[test]
    fn a_hello_of_the_first_version_names_no_features_and_reads_one_that_does() {
        let (formats, cluster) = (vec![1], Some(ClusterId(9)));
        let first =
            FirstHello { protocol: 1, formats, cluster, node: 4, incarnation: Incarnation(5), boot: 6, dial: 7 };
        let read: Hello = decode(&rmp_serde::to_vec_named(&first).unwrap()).unwrap();
        assert_eq!(read.identity().features, Features::none());
        let (lives, recorded) = (vec![Life::default(); 3], Some(LifeKey { boot: 1, nonce: 2 }));
        assert_eq!(read.identity().machine_version, 0, "it does not say which state machine it has");
        let hello = Hello { features: Features::all(), machine_version: 3, lives, recorded, ..read };
        assert_eq!(decode::<FirstHello>(&rmp_serde::to_vec_named(&hello).unwrap()), Ok(first));
        let read: Hello = decode(&rmp_serde::to_vec_named(&hello).unwrap()).unwrap();
        assert_eq!(read.identity().features, Features::all());
    }
}
