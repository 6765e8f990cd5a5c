//! The bytes of a peer on a stream: cut into frames however they arrive, and every body decoded as every kind.

#![no_main]

use actorum_core::wire::Response;
use actorum_fuzz::Draw;
use actorum_transport::frame::{self, Batch, FrameKind, GroupRequest, Hello, Lane, Refused, Splitter, Welcome};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut draw = Draw(data);
    let max = [frame::SMALL, 64, 1 << 20][draw.below(3) as usize];
    let step = 1 + usize::from(draw.byte());
    let all = draw.0;

    // However the bytes are cut, the frames are the same.
    let frames = |step: usize| {
        let mut splitter = Splitter::new(max);
        let mut found = Vec::new();
        for chunk in all.chunks(step) {
            splitter.push(chunk);
            loop {
                match splitter.next_frame() {
                    Ok(Some((kind, body))) => {
                        assert!(body.len() + 2 <= max, "a frame over the bound");
                        found.push((kind, body.to_vec()));
                    }
                    Ok(None) => break,
                    Err(error) => return (found, Some(error), splitter.is_partial()),
                }
            }
        }
        (found, None, splitter.is_partial())
    };
    let (found, error, partial) = frames(step);
    assert_eq!((&found, &error), (&frames(usize::MAX).0, &frames(usize::MAX).1));
    assert!(
        error.is_some()
            || partial == (found.iter().map(|(_, body)| body.len() + frame::HEADER).sum::<usize>() < all.len())
    );

    for (kind, body) in &found {
        bodies(*kind, body);
    }
    // And bodies without the luck of a header before them.
    for kind in [FrameKind::Hello, FrameKind::Refused, FrameKind::Raft, FrameKind::Request, FrameKind::Response] {
        bodies(kind, all);
    }
});

/// What decodes encodes again to what decodes to the same.
fn bodies(kind: FrameKind, body: &[u8]) {
    match kind {
        FrameKind::Hello => again::<Hello>(kind, body),
        FrameKind::Welcome => again::<Welcome>(kind, body),
        FrameKind::Refused => {
            if let Ok(refused) = frame::decode::<Refused>(body) {
                let _ = refused.because().map(|reason| reason.to_string());
            }
        }
        FrameKind::Lane => again::<Lane>(kind, body),
        FrameKind::Raft => {
            if let Ok(Batch { group, messages }) = frame::decode::<Batch>(body) {
                assert!(messages.len() <= frame::MAX_MESSAGES);
                let mut bytes = Vec::new();
                assert_eq!(frame::encode_messages(group, &messages, 64 << 20, &mut bytes), 0);
                let mut splitter = Splitter::new(64 << 20);
                splitter.push(&bytes);
                let mut back = Vec::new();
                while let Some((_, body)) = splitter.next_frame().expect("own frames") {
                    back.extend(frame::decode::<Batch>(&body).expect("own bodies").messages);
                }
                assert_eq!(back, messages);
                messages.iter().for_each(|message| drop((message.to_string(), message.size())));
            }
        }
        FrameKind::Request => again::<GroupRequest>(kind, body),
        FrameKind::Response => again::<Response>(kind, body),
    }
}

fn again<T>(kind: FrameKind, body: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(value) = frame::decode::<T>(body) else { return };
    let mut bytes = Vec::new();
    frame::encode(kind, &value, 64 << 20, &mut bytes).expect("what decoded can be encoded");
    assert_eq!(frame::decode::<T>(&bytes[frame::HEADER..]).as_ref(), Ok(&value));
}
