//! Every message comes back as it went, from one encoding alone.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::id::{ObjectId, PackId, SegmentMapId, SessionId, SnapshotId, TaskId};
use crate::lock::LockEnd;
use crate::pack::{Encoding, ObjectKind, RecordHeader, RecordInfo};
use crate::trust::time::UnixMs;
use crate::units::{DiskLength, SegmentNumber};
use crate::wire::failure::FailureCode;
use crate::wire::fetch::RecordPrefix;
use crate::wire::judge::JudgeBuilder;
use crate::wire::lane::PushBuilder;
use crate::wire::proxy::Ending;
use crate::wire::reference::{ShortId, UnchangedSegment};
use crate::wire::session::{DiskState, DoneSegment, Epoch, SegmentPlace};

fn text() -> impl Strategy<Value = String> {
    "[a-zö0-9 ]{0,40}"
}

fn object() -> impl Strategy<Value = ObjectId> {
    any::<[u8; 32]>().prop_map(ObjectId::from_bytes)
}

fn snapshot() -> impl Strategy<Value = SnapshotId> {
    any::<[u8; 16]>().prop_map(SnapshotId::from_bytes)
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(SessionId::from_bytes)
}

fn kind() -> impl Strategy<Value = ObjectKind> {
    prop_oneof![
        Just(ObjectKind::Chunk),
        Just(ObjectKind::SegmentMap),
        Just(ObjectKind::Node)
    ]
}

fn done() -> impl Strategy<Value = DoneSegment> {
    (
        proptest::option::of(object()),
        0..1_u32 << 26,
        0..1_u32 << 26,
    )
        .prop_map(|(map, data_bytes, replaced_bytes)| DoneSegment {
            map: map.map(SegmentMapId::from),
            data_bytes,
            replaced_bytes,
        })
}

fn place() -> impl Strategy<Value = SegmentPlace> {
    (any::<u16>(), 0..1_u64 << 40).prop_map(|(disk, number)| SegmentPlace {
        disk,
        number: SegmentNumber(number),
    })
}

fn disk() -> impl Strategy<Value = DiskState> {
    (text(), 0..1_u64 << 60, any::<[u8; 32]>()).prop_map(|(label, size, state)| DiskState {
        label,
        size: DiskLength::new(size),
        state,
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    (
        proptest::sample::select(FailureCode::ALL),
        text(),
        proptest::option::of(snapshot()),
        proptest::option::of((kind(), object())),
        proptest::option::of((any::<[u8; 16]>().prop_map(PackId::from_bytes), any::<u64>())),
    )
        .prop_map(|(code, text, snapshot, object, place)| Failure {
            code,
            text,
            snapshot,
            object,
            place,
        })
}

fn time() -> impl Strategy<Value = UnixMs> {
    any::<u64>().prop_map(UnixMs::from_millis)
}

fn lock_end() -> impl Strategy<Value = LockEnd> {
    prop_oneof![
        time().prop_map(LockEnd::At),
        time().prop_map(|time| LockEnd::After(Duration::from_millis(time.as_millis()))),
    ]
}

fn ended() -> impl Strategy<Value = Ended> {
    (any::<u64>(), any::<u64>(), proptest::option::of(time())).prop_map(
        |(packs, pack_bytes, locked_until)| Ended {
            packs,
            pack_bytes,
            locked_until,
        },
    )
}

fn record() -> impl Strategy<Value = (RecordHeader, Vec<u8>)> {
    (object(), kind(), vec(any::<u8>(), 0..200)).prop_map(|(id, kind, payload)| {
        let info = RecordInfo {
            id,
            kind,
            encoding: Encoding::RAW,
            stored_len: payload.len() as u32,
            plain_len: payload.len() as u32,
        };
        (RecordHeader::new(info, &payload), payload)
    })
}

fn message() -> impl Strategy<Value = Message> {
    let beginning = prop_oneof![
        ((0..9_u16, 9..99_u16), any::<u64>(), text()).prop_map(
            |(versions, capabilities, program)| {
                Message::Hello(Hello {
                    versions,
                    capabilities,
                    program,
                })
            }
        ),
        (
            any::<u16>(),
            any::<u64>(),
            any::<u64>(),
            any::<u16>(),
            text()
        )
            .prop_map(|(version, capabilities, lease_ms, lanes_max, program)| {
                Message::Welcome(Welcome {
                    version,
                    capabilities,
                    lease_ms,
                    lanes_max,
                    program,
                })
            }),
        text().prop_map(|name| Message::Open(Open { name })),
        vec(any::<u8>(), 0..300).prop_map(|config| Message::Opened(Opened { config })),
        (text(), vec(any::<u8>(), 0..300))
            .prop_map(|(name, config)| Message::Create(Create { name, config })),
        vec(any::<u8>(), 0..300).prop_map(|request| Message::Renew(Renew { request })),
        vec(any::<u8>(), 0..300).prop_map(|answer| Message::Renewed(Renewed { answer })),
        Just(Message::Done(Done)),
        failure().prop_map(Message::Failed),
    ];
    let sessions = prop_oneof![
        (
            text(),
            vec(disk(), 0..4),
            proptest::option::of(session()),
            proptest::option::of(lock_end())
        )
            .prop_map(|(vm, disks, resume, lock)| {
                Message::Begin(Begin {
                    vm,
                    disks,
                    resume,
                    lock,
                })
            }),
        (
            any::<u16>(),
            proptest::collection::btree_map(0..1_u64 << 40, done(), 0..9)
        )
            .prop_map(|(disk, segments)| Message::Finished(Finished {
                disk,
                segments: segments
                    .into_iter()
                    .map(|(n, d)| (SegmentNumber(n), d))
                    .collect(),
            })),
        (session(), any::<u64>(), proptest::option::of(snapshot())).prop_map(
            |(session, epoch, reference)| Message::Begun(Begun {
                session,
                epoch: Epoch(epoch),
                reference,
            })
        ),
        snapshot().prop_map(|snapshot| Message::Pin(Pin { snapshot })),
        any::<bool>().prop_map(|is_there| Message::Pinned(Pinned { is_there })),
        vec(place(), 0..9).prop_map(|places| Message::Acknowledged(Acknowledged { places })),
        (proptest::option::of(lock_end()), vec(any::<u8>(), 0..300))
            .prop_map(|(lock, snapshot)| Message::Commit(Commit { lock, snapshot })),
        Just(Message::Abandon(Abandon)),
        Just(Message::Draining(Draining)),
        ended().prop_map(Message::Ended),
        (snapshot(), ended())
            .prop_map(|(snapshot, ended)| Message::Published(Published { snapshot, ended })),
    ];
    let lanes = prop_oneof![
        (session(), any::<u64>()).prop_map(|(session, epoch)| Message::Attach(Attach {
            session,
            epoch: Epoch(epoch),
        })),
        vec(object(), 0..9).prop_map(|ids| Message::AskSegments(AskSegments {
            ids: ids.into_iter().map(SegmentMapId::from).collect(),
        })),
        vec(object(), 0..9).prop_map(|ids| Message::AskObjects(AskObjects { ids })),
        vec(any::<bool>(), 0..40).prop_map(|known| Message::Answers(Answers { known })),
        (place(), done())
            .prop_map(|(place, done)| Message::SegmentDone(SegmentDone { place, done })),
        Just(Message::Flush(Flush)),
        (kind(), vec(object(), 0..9))
            .prop_map(|(kind, ids)| Message::Distrust(Distrust { kind, ids })),
        (any::<u16>(), 0..1_u64 << 40, 0..=4096_u16).prop_map(|(disk, first, count)| {
            Message::AskReference(AskReference {
                disk,
                first: SegmentNumber(first),
                count,
            })
        }),
        vec(proptest::option::of(object()), 0..9).prop_map(|maps| {
            let maps = maps.into_iter();
            let short = |map: Option<_>| map.map_or(ShortId::default(), ShortId::of);
            Message::ReferenceMaps(ReferenceMaps {
                maps: maps.map(|map| short(map.map(SegmentMapId::from))).collect(),
            })
        }),
        (
            any::<u16>(),
            proptest::collection::btree_map(0..1_u64 << 40, 0..1_u32 << 26, 0..9)
        )
            .prop_map(|(disk, segments)| {
                let segments = segments.into_iter();
                let segments = segments.map(|(number, data_bytes)| UnchangedSegment {
                    number: SegmentNumber(number),
                    data_bytes,
                });
                Message::SegmentsUnchanged(SegmentsUnchanged {
                    disk,
                    segments: segments.collect(),
                })
            }),
        vec(record(), 0..5).prop_map(|records| {
            let mut builder = PushBuilder::default();
            for (header, payload) in &records {
                builder.push(header, payload);
            }
            Message::Push(builder.finish().split_off(FRAME_HEADER_LEN))
        }),
    ];
    let fetches = prop_oneof![
        (kind(), vec(object(), 0..9)).prop_map(|(kind, ids)| Message::Fetch(Fetch { kind, ids })),
        (0..1_u32 << 16, failure())
            .prop_map(|(tag, failure)| Message::Unfetched(Unfetched { tag, failure })),
        (0..1_u32 << 16, record(), 0..1_u64 << 31).prop_map(
            |(tag, (header, payload), position)| {
                let pack = PackId::from_bytes([3; 16]);
                let prefix = RecordPrefix {
                    tag,
                    pack,
                    position,
                    header,
                };
                Message::Record([&prefix.encode()[..], &payload].concat())
            }
        ),
        Just(Message::ListSnapshots(ListSnapshots)),
        (text(), vec(any::<u8>(), 0..300))
            .prop_map(|(name, content)| Message::SnapshotFile(SnapshotFile { name, content })),
        snapshot().prop_map(|snapshot| Message::ReadSnapshot(ReadSnapshot { snapshot })),
        snapshot().prop_map(|snapshot| Message::StatSnapshot(StatSnapshot { snapshot })),
        (
            any::<(bool, bool, bool)>(),
            proptest::option::of(vec(any::<u8>(), 0..40))
        )
            .prop_map(|((is_there, is_protected, is_incomplete), lock)| {
                Message::SnapshotState(SnapshotState {
                    is_there,
                    is_protected,
                    is_incomplete,
                    lock,
                })
            }),
        vec(snapshot(), 0..5).prop_map(|snapshots| Message::Forget(Forget { snapshots })),
        (snapshot(), lock_end()).prop_map(|(snapshot, end)| Message::Lock(Lock { snapshot, end })),
        time().prop_map(|until| Message::LockedUntil(LockedUntil { until })),
        (snapshot(), any::<bool>()).prop_map(|(snapshot, is_protected)| {
            Message::Protect(Protect {
                snapshot,
                is_protected,
            })
        }),
        vec(snapshot(), 0..5).prop_map(|snapshots| Message::Hold(Hold { snapshots })),
    ];
    let upkeep = prop_oneof![
        text().prop_map(|json| Message::Collect(Collect { json })),
        text().prop_map(|json| Message::Verify(Verify { json })),
        any::<bool>().prop_map(|is_deep| Message::Repair(Repair { is_deep })),
        Just(Message::Stats(Stats)),
        Just(Message::PackBytes(PackBytes)),
        any::<(u64, u64, u64, u64)>().prop_map(|(total, done, read, stored)| {
            Message::Progress(Progress {
                total_bytes: total,
                done_bytes: done,
                read_bytes: read,
                stored_bytes: stored,
            })
        }),
        Just(Message::Stop(Stop)),
        (0..FrameType::ALL.len()).prop_map(|at| {
            let first = FrameType::ALL[at];
            Message::May(May { first })
        }),
        text().prop_map(|json| Message::Report(Report { json })),
        (any::<u32>(), vec(record(), 0..5)).prop_map(|(batch, records)| {
            let mut builder = JudgeBuilder::new(batch);
            for (header, payload) in &records {
                builder.push(header, payload);
            }
            Message::Judge(builder.finish().split_off(FRAME_HEADER_LEN))
        }),
        (
            any::<u32>(),
            proptest::collection::btree_map(any::<u32>(), text(), 0..5)
        )
            .prop_map(|(batch, problems)| {
                Message::Judged(Judged {
                    batch,
                    problems: problems.into_iter().collect(),
                })
            }),
        Just(Message::Status(Status)),
        Just(Message::Sessions(Sessions)),
    ];
    let id = || any::<[u8; 16]>().prop_map(TaskId::from_bytes);
    let ending = proptest::sample::select(Ending::ALL.to_vec());
    let proxies = prop_oneof![
        (id(), crate::wire::task::tests::any_task())
            .prop_map(|(id, task)| Message::Submit(Submit { id, task })),
        any::<bool>().prop_map(|is_new| Message::Accepted(Accepted { is_new })),
        (id(), any::<u32>())
            .prop_map(|(id, notes_seen)| Message::Follow(Follow { id, notes_seen })),
        text().prop_map(|text| Message::TaskNote(TaskNote { text })),
        (any::<bool>(), text(), any::<[u64; 5]>()).prop_map(|(is_running, waits_for, figures)| {
            let [total_bytes, done_bytes, read_bytes, new_bytes, stored_bytes] = figures;
            Message::TaskProgress(TaskProgress {
                is_running,
                waits_for,
                total_bytes,
                done_bytes,
                read_bytes,
                new_bytes,
                stored_bytes,
            })
        }),
        (ending, text(), text()).prop_map(|(ending, json, text)| Message::TaskOver(TaskOver {
            ending,
            json,
            text
        })),
        id().prop_map(|id| Message::CancelTask(CancelTask { id })),
        Just(Message::ListTasks(ListTasks)),
        id().prop_map(|id| Message::ShowTask(ShowTask { id })),
        any::<bool>().prop_map(|is_suspended| Message::Suspend(Suspend { is_suspended })),
    ];
    prop_oneof![beginning, sessions, lanes, fetches, upkeep, proxies]
}

proptest! {
    #[test]
    fn messages_round_trip(message in message()) {
        prop_assert_eq!(Message::decode_frame(&message.frame()), Ok(message));
    }

    /// TLS finds flipped bits; here they may make another message, but never one of two encodings.
    #[test]
    fn a_flipped_bit_is_refused_or_makes_another_message(
        message in message(), place: prop::sample::Index, bit in 0..8_u32,
    ) {
        let mut frame = message.frame();
        let place = place.index(frame.len());
        frame[place] ^= 1 << bit;
        if let Ok(other) = Message::decode_frame(&frame) {
            prop_assert_ne!(&other, &message);
            prop_assert_eq!(other.frame(), frame);
        }
    }

    #[test]
    fn a_cut_frame_is_refused(message in message(), len: prop::sample::Index) {
        let frame = message.frame();
        prop_assert!(Message::decode_frame(&frame[..len.index(frame.len())]).is_err());
    }

    #[test]
    fn any_bytes_give_a_message_or_an_error(
        code in any::<u8>(), body in vec(any::<u8>(), 0..400),
    ) {
        if let Some(kind) = FrameType::from_code(code)
            && let Ok(message) = Message::decode(kind, &body)
        {
            prop_assert_eq!(&message.frame()[FRAME_HEADER_LEN..], &body[..]);
        }
    }
}
