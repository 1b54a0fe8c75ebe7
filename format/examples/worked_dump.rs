//! The worked examples of docs/format.md and docs/trust.md, and the seeds of the fuzz targets: made by this crate, so that the
//! document cannot show what the code does not write.
//!
//! ```console
//! $ cargo run -p undercroft-format --example worked_dump            # the dumps of the document
//! $ cargo run -p undercroft-format --example worked_dump -- seeds fuzz/seeds
//! ```

use undercroft_format::chunker::{ChunkerSpec, FastCdcParams};
use undercroft_format::codec::{put_string, put_varint};
use undercroft_format::config::{Config, KeyMaterial, KeySlot, MasterKey, SlotKind};
use undercroft_format::extent::Extent;
use undercroft_format::id::{
    ChunkId, NodeId, ObjectId, PackId, RepositoryId, SegmentMapId, SessionId, SnapshotId, node_id,
};
use undercroft_format::maptree::{NodeStore, Tree, update};
use undercroft_format::nbd::wire::{
    CHUNK_MAGIC, Command, Cookie, OPTION_REPLY_MAGIC, OptionCode, SIMPLE_REPLY_MAGIC, put_option,
    put_request,
};
use undercroft_format::overlay;
use undercroft_format::pack::{
    Encoding, ObjectKind, PackHeader, PackKind, RecordHeader, RecordInfo, SealPrefix, Toc, TocEntry,
};
use undercroft_format::ranges::RangeSet;
use undercroft_format::reason::Reason;
use undercroft_format::segment::SegmentMap;
use undercroft_format::snapshot::{DiskFigures, DiskManifest, Metadata, ReadMode, Snapshot};
use undercroft_format::trust::fingerprint::Fingerprint;
use undercroft_format::trust::message::{Answer, EnrolRequest, Grant, RenewRequest};
use undercroft_format::trust::refusal::Refusal;
use undercroft_format::trust::role::Role;
use undercroft_format::trust::scope::Scope;
use undercroft_format::trust::time::UnixMs;
use undercroft_format::trust::token::{Secret, Token};
use undercroft_format::units::{DiskLength, SegmentNumber, SegmentSize};
use undercroft_format::vhd::error::Part;
use undercroft_format::vhd::footer::{DiskType, Footer};
use undercroft_format::vhd::header::{BlockSize, DynamicHeader};
use undercroft_format::vhd::layout::{Identity, Layout};
use undercroft_format::vhd::locator::Locator;
use undercroft_format::vhd::uuid::VhdUuid;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::fetch::RecordPrefix;
use undercroft_format::wire::frame::Body;
use undercroft_format::wire::hello::{Hello, Open};
use undercroft_format::wire::lane::{Answers, AskObjects, PushBuilder, SegmentDone};
use undercroft_format::wire::ledger::Ledger;
use undercroft_format::wire::message::Message;
use undercroft_format::wire::session::{Begin, DiskState, DoneSegment, SegmentPlace};
use undercroft_format::xva::ChecksumKind;

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([0x11; 16]);
const SESSION: SessionId = SessionId::from_bytes([0x22; 16]);
const PACK: PackId = PackId::from_bytes([0x5a; 16]);
const CREATED_MS: u64 = 1_795_000_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            for (name, text) in examples().into_iter().chain(trust_examples()) {
                println!("<!-- {name} -->\n```text\n{text}```\n");
            }
        }
        ["seeds", dir] => write_seeds(std::path::Path::new(dir)),
        _ => {
            eprintln!("worked_dump [seeds DIRECTORY]");
            std::process::exit(2);
        }
    }
}

/// The examples as they stand in the document: name and text.
pub fn examples() -> Vec<(&'static str, String)> {
    vec![
        ("varints", varints()),
        ("keys and ids", keys_and_ids()),
        ("config", dump(&config(clear()).encode())),
        ("key slots", key_slots()),
        ("chunkers", chunkers()),
        ("pack", dump(&pack())),
        ("seal prefix", dump(&seal_prefix().encode())),
        ("segment map", dump(&segment_map().encode())),
        ("map tree node", dump(&node())),
        ("snapshot", dump(&snapshot_file().1)),
    ]
}

/// The examples of docs/trust.md.
pub fn trust_examples() -> Vec<(&'static str, String)> {
    vec![
        ("token", format!("{}\n", token().to_text().as_str())),
        ("enrolment request", dump(&enrol_request().encode())),
        ("refusal", dump(&refusal().encode())),
    ]
}

/// Offset, 16 bytes, and the same as text; lines that repeat the one before are a `*`.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut last: Option<&[u8]> = None;
    let mut elided = false;
    let lines = bytes.len().div_ceil(16);
    for (number, line) in bytes.chunks(16).enumerate() {
        if last == Some(line) && number + 1 < lines {
            if !elided {
                text.push_str("*\n");
            }
            elided = true;
            continue;
        }
        (last, elided) = (Some(line), false);
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let (left, right) = hex.split_at(hex.len().min(8));
        let shown: String = line
            .iter()
            .map(|byte| match byte {
                0x20..=0x7e => *byte as char,
                _ => '.',
            })
            .collect();
        let hex = format!("{:<23}  {:<23}", left.join(" "), right.join(" "));
        text.push_str(&format!("{:06x}  {hex}  |{shown}|\n", number * 16));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn varints() -> String {
    let mut text = String::new();
    for value in [0, 1, 127, 128, 300, 16 << 20, u64::MAX] {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        text.push_str(&format!("{value:>20}  {}\n", hex(&out)));
    }
    let mut out = Vec::new();
    put_string(&mut out, "web01");
    text.push_str(&format!("{:>20}  {}\n", "\"web01\"", hex(&out)));
    text
}

fn master() -> MasterKey {
    MasterKey::from_bytes(std::array::from_fn(|at| at as u8))
}

fn chunk(text: &str) -> ChunkId {
    master().id_key().chunk_id(text.as_bytes())
}

fn keys_and_ids() -> String {
    let (map_id, _) = segment_map().encode_with_id();
    [
        ("master key", hex(master().as_bytes())),
        ("session id", SESSION.to_string()),
        ("snapshot authentication key", hex(&master().snapshot_key())),
        ("session sealing key", hex(&master().session_key(SESSION))),
        ("id of the chunk \"hello\"", chunk("hello").to_string()),
        ("id of the segment map below", map_id.to_string()),
        (
            "id of the map tree node below",
            node_id(&node()).to_string(),
        ),
        ("id of the snapshot below", snapshot_file().0.to_string()),
    ]
    .iter()
    .map(|(name, value)| format!("{name:<30} {value}\n"))
    .collect()
}

fn clear() -> KeyMaterial {
    KeyMaterial::Clear(master())
}

fn wrapped() -> KeyMaterial {
    let slot = |kind| KeySlot {
        kind,
        nonce: [0xaa; 12],
        wrapped: [0xbb; 48],
    };
    KeyMaterial::Wrapped(vec![
        slot(SlotKind::Passphrase {
            memory_kib: 64 << 10,
            passes: 3,
            lanes: 4,
            salt: [0xcc; 16],
        }),
        slot(SlotKind::Recovery),
    ])
}

fn config(keys: KeyMaterial) -> Config {
    Config {
        repository: REPOSITORY,
        created_ms: CREATED_MS,
        chunker: ChunkerSpec::default(),
        segment_size: SegmentSize::DEFAULT,
        pack_len_target: 32 << 20,
        zstd_level: 1,
        index_memory_max: 1 << 30,
        keys,
    }
}

/// The end of an encrypted repository's config, from the byte on that says where the master key is.
fn key_slots() -> String {
    let clear = config(clear()).encode();
    let wrapped = config(wrapped()).encode();
    let from = clear.len() - 32 - 33;
    dump(&wrapped[from..wrapped.len() - 32])
}

fn chunkers() -> String {
    [
        ChunkerSpec::default(),
        ChunkerSpec::FastCdc(FastCdcParams::default()),
    ]
    .iter()
    .map(|spec| format!("{spec}\n{}", dump(&spec.encode())))
    .collect()
}

/// A data pack with the chunks "hello" and, elsewhere, "world".
fn pack() -> Vec<u8> {
    let header = PackHeader {
        id: PACK,
        kind: PackKind::Data,
        repository: REPOSITORY,
    };
    let mut out = header.encode().to_vec();
    let mut entries = Vec::new();
    for text in ["hello", "world"] {
        let info = RecordInfo {
            id: chunk(text).into(),
            kind: ObjectKind::Chunk,
            encoding: Encoding::RAW,
            stored_len: text.len() as u32,
            plain_len: text.len() as u32,
        };
        let position = out.len();
        let record = RecordHeader::new(info, text.as_bytes());
        out.extend_from_slice(&record.encode(PACK, position as u64));
        out.extend_from_slice(text.as_bytes());
        entries.push(TocEntry {
            info,
            position: position as u32,
        });
    }
    let position = out.len() as u64;
    out.extend_from_slice(&Toc { entries }.encode_tail(PACK, position));
    out
}

fn seal_prefix() -> SealPrefix {
    SealPrefix {
        session: SESSION,
        sequence: 258,
    }
}

/// 1 MiB: 64 KiB of one chunk, of which a splice replaced 4 KiB with another's; the rest is zero.
fn segment_map() -> SegmentMap {
    let data = |text, offset, len| Extent::Data {
        chunk: chunk(text),
        offset,
        len,
    };
    SegmentMap::from_extents([
        data("hello", 0, 16 << 10),
        data("world", 0, 4 << 10),
        data("hello", 20 << 10, 44 << 10),
        Extent::Zero { len: 960 << 10 },
    ])
}

#[derive(Default)]
struct Nodes(Vec<(NodeId, Vec<u8>)>);

impl NodeStore for Nodes {
    type Error = undercroft_format::codec::DecodeError;

    fn load(&mut self, id: NodeId) -> Result<Vec<u8>, Self::Error> {
        let found = self.0.iter().find(|(known, _)| *known == id);
        Ok(found
            .expect("only nodes that were saved are loaded")
            .1
            .clone())
    }

    fn save(&mut self, id: NodeId, encoded: Vec<u8>) -> Result<(), Self::Error> {
        self.0.push((id, encoded));
        Ok(())
    }
}

/// The only node of a disk of four segments, of which the first and the last are not zero.
fn node() -> Vec<u8> {
    let (map, _) = segment_map().encode_with_id();
    let other = SegmentMapId::from_bytes([0xee; 32]);
    let changes = [
        (SegmentNumber(0), Some(map)),
        (SegmentNumber(3), Some(other)),
    ]
    .into();
    let empty = Tree {
        root: None,
        segments: 0,
    };
    let mut nodes = Nodes::default();
    update(&mut nodes, empty, 4, &changes).expect("nothing is loaded");
    nodes.0.pop().expect("one node was saved").1
}

fn snapshot_file() -> (SnapshotId, Vec<u8>) {
    let disk = DiskManifest {
        label: "root".into(),
        size: DiskLength::new(4 << 20),
        segment_size: SegmentSize::from_log2(20).expect("1 MiB is allowed"),
        grid_phase: 3584,
        root: Some(node_id(&node())),
        read_mode: ReadMode::ChangedBlocks,
        reasons: vec![Reason::Grown],
        source: "/dev/xvdb".into(),
        lineage: vec![("vdi".into(), "7f3c".into())],
        figures: DiskFigures {
            data_bytes: 131_072,
            read_bytes: 65_536,
            new_bytes: 4_096,
            stored_bytes: 1_864,
            metadata_bytes: 372,
        },
    };
    let snapshot = Snapshot {
        repository: REPOSITORY,
        session: SESSION,
        created_ms: CREATED_MS,
        duration_ms: 1_250,
        vm: "web01".into(),
        tags: vec!["daily".into()],
        parent: Some(SnapshotId::from_bytes([0x33; 16])),
        disks: vec![disk],
        metadata: Some(Metadata {
            name: "ova.xml".into(),
            len: 5,
            chunks: vec![(chunk("hello"), 5)],
        }),
    };
    snapshot.encode(|body| *blake3::keyed_hash(&master().snapshot_key(), body).as_bytes())
}

/// An MBR with one partition at sector 63, or a GPT with one at sector 2048, cut after their last entry.
fn partition_tables() -> [Vec<u8>; 2] {
    let mut mbr = vec![0; 512];
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr[450] = 0x83;
    mbr[454..458].copy_from_slice(&63_u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&1000_u32.to_le_bytes());
    let mut gpt = mbr.clone();
    gpt[450] = 0xee;
    gpt.resize(1024 + 128, 0);
    gpt[512..520].copy_from_slice(b"EFI PART");
    gpt[584..592].copy_from_slice(&2_u64.to_le_bytes());
    gpt[592..596].copy_from_slice(&128_u32.to_le_bytes());
    gpt[596..600].copy_from_slice(&128_u32.to_le_bytes());
    gpt[1024..1040].fill(0xa5);
    gpt[1056..1064].copy_from_slice(&2049_u64.to_le_bytes());
    gpt[1064..1072].copy_from_slice(&4095_u64.to_le_bytes());
    [mbr, gpt]
}

fn token() -> Token {
    Token {
        role: Role::Ingest,
        authority: Fingerprint::from_bytes(std::array::from_fn(|place| place as u8)),
        secret: Secret::from_bytes(std::array::from_fn(|place| place as u8)),
    }
}

/// The request for a certificate in it is cut short: two bytes of an empty sequence.
fn enrol_request() -> EnrolRequest {
    let pattern = |text: &str| text.parse().expect("a pattern");
    let scope = Scope::new([pattern("web*"), pattern("db1")], [pattern("main")]);
    EnrolRequest {
        secret: token().secret,
        role: Role::Ingest,
        name: "proxy-1".parse().expect("a name"),
        scope: Some(scope.expect("few patterns")),
        request: vec![0x30, 0],
    }
}

fn refusal() -> Answer {
    Answer::Refused(Refusal::TokenUsed {
        by: "proxy-1".parse().expect("a name"),
        at: UnixMs::from_millis(CREATED_MS),
    })
}

/// A few small inputs per fuzz target. Targets with structured input take numbers from the front; the
/// byte string that comes last is what is left.
fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let pack = pack();
    let mut all_varints = Vec::new();
    for shift in 0..64 {
        put_varint(&mut all_varints, 1 << shift);
    }
    let id = |id: ObjectId| id.to_string().into_bytes();
    let with_size = |size: u64, bytes: &[u8]| [&size.to_le_bytes()[..], bytes].concat();
    let [mbr, gpt] = partition_tables();
    let padded = |table: &[u8]| [table, &[0; 4096]].concat();
    vec![
        (
            "cbt",
            vec![
                [&[0; 4], &with_size(1 << 20, b"oAE=\n")[..]].concat(),
                [&[0xff; 4], &(5_u32 << 20).to_le_bytes()[..], &[0xa0; 12]].concat(),
            ],
        ),
        (
            "chunker_spec",
            vec![
                ChunkerSpec::default().encode().to_vec(),
                ChunkerSpec::FastCdc(FastCdcParams::default())
                    .encode()
                    .to_vec(),
                b"aligned-v1:32K-64K-128K".to_vec(),
                b"fastcdc-v2020".to_vec(),
            ],
        ),
        ("extents", extents_seeds()),
        ("nbd", nbd_seeds()),
        ("nbd_server", nbd_server_seeds()),
        ("overlay", overlay_seeds()),
        ("vhd", vhd_seeds()),
        ("codec", vec![all_varints]),
        (
            "config",
            vec![config(clear()).encode(), config(wrapped()).encode()],
        ),
        (
            "enrolment",
            vec![
                enrol_request().encode(),
                refusal().encode(),
                Answer::Granted(Grant {
                    certificate: vec![0x30, 0],
                    authority: vec![0x30, 0],
                })
                .encode(),
                RenewRequest {
                    request: vec![0x30, 0],
                }
                .encode(),
            ],
        ),
        (
            "id",
            vec![id(chunk("hello").into()), PACK.to_string().into_bytes()],
        ),
        ("map_node", vec![[&[1; 25], &node()[..]].concat()]),
        (
            "pack",
            vec![
                pack[..256].to_vec(),
                pack[64..133].to_vec(),
                pack[202..298].to_vec(),
                {
                    let mut tail = pack[202..298].to_vec();
                    tail.extend_from_slice(&pack[pack.len() - 64..]);
                    tail
                },
            ],
        ),
        (
            "partition",
            vec![with_size(1 << 40, &mbr), with_size(1 << 40, &gpt)],
        ),
        ("partition_table", vec![padded(&mbr), padded(&gpt)]),
        ("pattern", vec![b"web*web0*web01\x04\x05".to_vec()]),
        ("seal", vec![seal_prefix().encode().to_vec()]),
        ("segment_map", vec![segment_map().encode()]),
        ("snapshot", vec![snapshot_file().1]),
        ("splice", vec![(0..200).collect(), vec![3; 90]]),
        (
            "token",
            vec![
                token().to_text().as_bytes().to_vec(),
                b"uct1-0oO 1iIlL".to_vec(),
            ],
        ),
        ("wire", wire_seeds()),
        ("ova_xml", vec![ova_xml_seed()]),
        (
            "xva",
            xva_seeds()
                .into_iter()
                .map(|seed| [&[1, 9], &seed[..]].concat())
                .collect(),
        ),
        ("xva_tar", xva_seeds()),
    ]
}

/// A frame of most families, and a session's file.
/// No more than what is read: smaller is faster.
fn ova_xml_seed() -> Vec<u8> {
    let member = |name: &str, value: &str| format!("<member><name>{name}</name>{value}</member>");
    let text = |name: &str, text: &str| member(name, &format!("<value>{text}</value>"));
    let record = |fields: &[String]| format!("<value><struct>{}</struct></value>", fields.concat());
    let object = |class: &str, id: &str, fields: &[String]| {
        record(&[
            text("class", class),
            text("id", id),
            member("snapshot", &record(fields)),
        ])
    };
    let plug = |vdi: &str, place: &str| {
        [
            text("VM", "Ref:0"),
            text("VDI", vdi),
            text("userdevice", place),
        ]
    };
    let disk = |size: &str| [text("virtual_size", size), text("SR", "Ref:1")];
    let flag = member("is_a_template", "<value><boolean>1</boolean></value>");
    let objects = [
        object(
            "VM",
            "Ref:0",
            &[flag, member("snapshot_info", &record(&[text("a", "b")]))],
        ),
        object("SR", "Ref:1", &[text("content_type", "user")]),
        object("VDI", "Ref:2", &disk("40")),
        object("VDI", "Ref:3", &disk("5")),
        object("VBD", "Ref:4", &plug("Ref:2", "0")),
        object("VBD", "Ref:5", &plug("Ref:3", "1")),
    ];
    let objects = format!(
        "<value><array><data>{}</data></array></value>",
        objects.concat()
    );
    let version = member("version", &record(&[text("export_vsn", "2")]));
    record(&[version, member("objects", &objects)]).into_bytes()
}

/// An archive with a gap, an empty block and both kinds of checksums; and one of ustar and pax headers.
fn xva_seeds() -> Vec<Vec<u8>> {
    let member = |name: &str, kind: u8, magic: &[u8], payload: &[u8]| {
        let mut bytes = vec![0; 512];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[124..136].copy_from_slice(format!("{:011o}\0", payload.len()).as_bytes());
        bytes[148..156].fill(b' ');
        bytes[156] = kind;
        bytes[257..257 + magic.len()].copy_from_slice(magic);
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let block = |name: &str, kind: ChecksumKind, payload: &[u8]| {
        let checksum = format!("{name}{}", kind.suffix());
        let checksum = member(&checksum, 0, b"", kind.of(payload).as_bytes());
        [member(name, 0, b"", payload), checksum].concat()
    };
    let description = member("ova.xml", 0, b"", &ova_xml_seed());
    let xapi = [
        description.clone(),
        block("Ref:2/00000000", ChecksumKind::Xxh64, &[1; 10]),
        block("Ref:2/00000001", ChecksumKind::Xxh64, &[]),
        block("Ref:2/00000004", ChecksumKind::Xxh64, &[2; 10]),
        block("Ref:3/00000000", ChecksumKind::Sha1, &[3; 5]),
        vec![0; 1024],
    ];
    let ustar = |name: &str, kind: u8, payload: &[u8]| member(name, kind, b"ustar\x0000", payload);
    let zeros = ChecksumKind::Xxh64.of(&[0; 40]);
    let others = [
        description,
        ustar("./Ref:2/", b'5', b""),
        ustar("x", b'x', b"23 path=Ref:2/00000000\n"),
        ustar("other", b'0', &[0; 40]),
        ustar("././@LongLink", b'L', b"Ref:2/00000000.xxhash\0"),
        ustar("other", b'0', zeros.as_bytes()),
        block(
            "Ref:3/00000000",
            ChecksumKind::Xxh64,
            &[3, 3, 3, 3, 3, 0, 0],
        ),
        vec![0; 2048],
    ];
    vec![xapi.concat(), others.concat()]
}

fn wire_seeds() -> Vec<Vec<u8>> {
    let begin = Begin {
        vm: "web01".into(),
        disks: vec![DiskState {
            label: "root".into(),
            size: DiskLength::new(40 << 20),
            state: [3; 32],
        }],
        resume: None,
        lock: None,
    };
    let place = SegmentPlace {
        disk: 0,
        number: SegmentNumber(2),
    };
    let done = DoneSegment {
        map: Some(segment_map().encode_with_id().0),
        data_bytes: 4096,
        replaced_bytes: 0,
    };
    let mut ledger = Ledger::begin(SESSION, &begin);
    let noted = ledger.done(ledger.epoch(), place, done);
    noted.expect("the disk is there");
    ledger.settle(&[(place, done)]);
    let payload = b"a chunk";
    let info = RecordInfo {
        id: ObjectId::from_bytes([7; 32]),
        kind: ObjectKind::Chunk,
        encoding: Encoding::RAW,
        stored_len: payload.len() as u32,
        plain_len: payload.len() as u32,
    };
    let header = RecordHeader::new(info, payload);
    let mut push = PushBuilder::default();
    push.push(&header, payload);
    let prefix = RecordPrefix {
        tag: 1,
        pack: PACK,
        position: 64,
        header,
    };
    let failure = Failure {
        place: Some((PACK, 64)),
        object: Some((ObjectKind::Chunk, info.id)),
        ..Failure::new(FailureCode::CorruptObject, "checksum mismatch")
    };
    vec![
        Hello::ours("undercroft").frame(),
        Open {
            name: "backup1".into(),
        }
        .frame(),
        begin.frame(),
        SegmentDone { place, done }.frame(),
        AskObjects { ids: vec![info.id] }.frame(),
        Answers {
            known: vec![true, false, true],
        }
        .frame(),
        push.finish(),
        Message::Record([&prefix.encode()[..], payload].concat()).frame(),
        failure.frame(),
        ledger.encode(),
    ]
}

fn write_seeds(dir: &std::path::Path) {
    for (target, seeds) in seeds() {
        let dir = dir.join(target);
        std::fs::create_dir_all(&dir).expect("the directory can be made");
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(dir.join(number.to_string()), seed).expect("a seed can be written");
        }
    }
}

/// A variant, two sizes, and lists of our own and of nbdinfo and qemu-img.
fn extents_seeds() -> Vec<Vec<u8>> {
    let list = |text: &str| {
        let sizes = [(1_u64 << 20).to_le_bytes(), (1_u64 << 20).to_le_bytes()];
        [&[0; 4], sizes.as_flattened(), text.as_bytes()].concat()
    };
    vec![
        list("[{\"offset\":0,\"length\":65536},{\"offset\":131073,\"length\":5}]"),
        list(
            "[{\"offset\":0,\"length\":983040,\"type\":0,\"description\":\"clean\"},\n\
             {\"offset\":983040,\"length\":65536,\"type\":1,\"description\":\"dirty\"}]",
        ),
        list(
            "[{\"start\":0,\"length\":65536,\"depth\":0,\"present\":true,\"zero\":false,\"data\":true,\"offset\":327680},\n\
             {\"start\":65536,\"length\":983040,\"depth\":1,\"present\":false}]",
        ),
        list("[{\"offset\":0,\"length\":1048576,\"dirty\":false}]"),
        [&[0xff; 4], &(1_u32 << 20).to_le_bytes()[..], &[7; 30]].concat(),
    ]
}

/// A byte says whether checksums are made to fit; then a VHD.
fn vhd_seeds() -> Vec<Vec<u8>> {
    let identity = |byte| Identity {
        uuid: VhdUuid::derived([byte; 16]),
        timestamp: 800_000_000,
    };
    let size = DiskLength::new((5 << 20) + 512);
    let whole = Layout::dynamic(size, identity(1), []).expect("a size");
    let child = Layout::differencing(size, identity(2), identity(1), RangeSet::default());
    let child = child.expect("a size");
    let seed = |mode: u8, parts: &[&[u8]]| {
        let mut bytes = vec![mode];
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes
    };
    let footer = Footer::parse(&whole.footer(), Part::Footer, 0).expect("just made");
    let small = |disk_type, entries: [u32; 2], blocks: usize| {
        let footer = Footer {
            disk_type,
            current_size: 8192,
            ..footer
        };
        let header = DynamicHeader {
            table_offset: 1536,
            entries: 2,
            block_size: BlockSize::new(4096).expect("a size"),
            parent_uuid: VhdUuid::derived([1; 16]),
            parent_timestamp: 0,
            parent_name: "parent.vhd".to_owned(),
            locators: [Locator::NONE; 8],
        };
        let mut bytes = vec![1];
        bytes.extend(footer.encode());
        bytes.extend(header.encode());
        bytes.extend(entries.iter().flat_map(|entry| entry.to_be_bytes()));
        bytes.resize(1 + 2048, 0);
        for _ in 0..blocks {
            bytes.extend([0xa5, 0xff, 0, 1]);
            bytes.resize(bytes.len() + 508 + 4096, 0);
        }
        bytes.extend(footer.encode());
        bytes
    };
    let fixed = Footer {
        disk_type: DiskType::Fixed,
        header_offset: u64::MAX,
        current_size: 1024,
        ..footer
    };
    vec![
        seed(1, &[&whole.head(), &whole.footer()]),
        seed(2, &[&child.head(), &child.footer()]),
        seed(1, &[&[7; 1024], &fixed.encode()]),
        small(DiskType::Dynamic, [4, u32::MAX], 1),
        small(DiskType::Differencing, [13, 4], 2),
        small(DiskType::Dynamic, [4, 5], 2),
        seed(0, &[b"file://./a%20b.vhd"]),
    ]
}

/// Two bytes say what the rest is for and how it is cut; then what a server says.
fn nbd_seeds() -> Vec<Vec<u8>> {
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let numbers = [option, kind, data.len() as u32];
        let numbers = numbers.iter().flat_map(|number| number.to_be_bytes());
        let magic = OPTION_REPLY_MAGIC.to_be_bytes().into_iter();
        let mut bytes: Vec<u8> = magic.chain(numbers).collect();
        bytes.extend_from_slice(data);
        bytes
    };
    let chunk = |flags: u16, kind: u16, cookie: u64, body: &[u8]| {
        let mut bytes = CHUNK_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    };
    let export = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[1, 3]].concat();
    let modern = [
        b"\x01\x07NBDMAGICIHAVEOPT\0\x03".to_vec(),
        reply(8, 1, b""),
        reply(10, 4, b"\0\0\0\x01base:allocation"),
        reply(10, 1, b""),
        reply(7, 3, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]),
        reply(7, 3, &export),
        reply(7, 1, b""),
    ];
    let old = [
        b"\x01\x40NBDMAGICIHAVEOPT\0\x01".to_vec(),
        reply(8, 1 << 31 | 1, b"no"),
        reply(7, 1 << 31 | 1, b""),
        [&export[2..], &[0; 124]].concat(),
    ];
    let status = [&[0, 0, 0, 1, 0, 16, 0, 0, 0, 0, 0, 3][..]].concat();
    let structured = [
        vec![2, 9],
        chunk(0, 1, 1, &[0; 8 + 16]),
        chunk(1, 5, 4, &status),
        chunk(1, 2, 1, &[0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16]),
        chunk(1, 32769, 2, b"\0\0\0\x05\0\x03bad"),
    ];
    let simple = [
        vec![3, 9],
        SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec(),
        vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        vec![7; 32],
        SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec(),
        vec![0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2],
    ];
    vec![
        modern.concat(),
        old.concat(),
        structured.concat(),
        simple.concat(),
        b"\0\x01nbds://[::1]:7/a%20b?tls-hostname=n&x-connections=2".to_vec(),
        b"\0\x01nbd+unix:///e?socket=%2Frun%2Fs".to_vec(),
    ]
}

/// Two bytes say what the rest is for and how it is cut; then what a client says.
fn nbd_server_seeds() -> Vec<Vec<u8>> {
    let option = |code: u32, data: &[u8]| {
        let mut bytes = Vec::new();
        put_option(&mut bytes, OptionCode::from_code(code), data);
        bytes
    };
    let request = |flags: u8, command: Command, offset: u64, len: u32| {
        let mut bytes = Vec::new();
        put_request(&mut bytes, command, Cookie(7), offset, len);
        bytes[5] = flags;
        bytes
    };
    let modern = [
        vec![1, 5, 0, 0, 0, 3],
        option(8, b""),
        option(9, b"\0\0\0\x04root\0\0\0\0"),
        option(10, b"\0\0\0\x04root\0\0\0\x01\0\0\0\x0fbase:allocation"),
        option(3, b""),
        option(6, b"\0\0\0\x04swap\0\0"),
        option(77, b"what"),
        option(7, b"\0\0\0\x04root\0\x03\0\x01\0\x02\0\x03"),
    ];
    let old = [vec![1, 3, 0, 0, 0, 1], option(1, b"swap")];
    let secure = [vec![3, 30, 0, 0, 0, 3], option(8, b""), option(5, b"")];
    let asked = [
        vec![6, 9],
        request(0, Command::Read, 512, 4096),
        request(1, Command::Write, 0, 16),
        vec![9; 16],
        request(1, Command::WriteZeroes, 65536, 65536),
        request(8, Command::BlockStatus, 0, 1 << 20),
        request(0, Command::Flush, 0, 0),
        request(0, Command::Disconnect, 0, 0),
    ];
    let refused = [
        vec![0, 9],
        request(0, Command::Write, 0, 16),
        vec![9; 16],
        request(4, Command::Read, 0, 1 << 30),
        request(0, Command::Trim, 1 << 40, 1),
    ];
    vec![
        modern.concat(),
        old.concat(),
        secure.concat(),
        asked.concat(),
        refused.concat(),
    ]
}

/// A header; the same with entries in place of its zeros.
fn overlay_seeds() -> Vec<Vec<u8>> {
    let header = overlay::Header {
        data: overlay::DataPlace::Here,
        id: [7; 16],
        size: DiskLength::new((5 << 20) + 512),
        repository: RepositoryId::from_bytes([1; 16]),
        snapshot: SnapshotId::from_bytes([2; 16]),
        label: "root".to_owned(),
    };
    vec![header.encode()]
}
