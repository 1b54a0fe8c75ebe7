//! The `ova.xml` of an XVA that is written: that of the backup, adapted, or one made up from what a snapshot
//! knows.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;

use super::ova_xml::{Disk, OvaXml, OvaXmlError, Reference, identity, objects};
use super::xmlrpc::{Value, escape};
use crate::units::DiskLength;

/// `text`, the `ova.xml` of a backup, as that of a VM to import.
///
/// What was exported from a snapshot says that it is a template: it becomes a VM. Disks get the sizes that
/// `size_of` gives for them; those without one are left out, with what plugs them in. A suspended VM whose memory is
/// left out becomes a halted one. All else stays as it stands.
pub fn adapted(
    text: &[u8],
    size_of: &dyn Fn(&Disk) -> Option<DiskLength>,
) -> Result<Vec<u8>, OvaXmlError> {
    let value = Value::parse(text)?;
    let ova = OvaXml::of_value(&value)?;
    let vm = ova.vm();
    let disks = ova.disks()?;
    let disks: BTreeMap<_, _> = disks.iter().map(|disk| (&disk.reference, disk)).collect();
    let is_left_out = |vdi: &Reference| disks.get(vdi).is_some_and(|disk| size_of(disk).is_none());
    let plugs = ova.vbds.iter();
    let plugs = plugs.filter(|vbd| vbd.vdi.as_ref().is_some_and(is_left_out));
    let plugs: BTreeSet<_> = plugs.map(|vbd| &vbd.reference).collect();
    let is_gone = |reference: &Reference| is_left_out(reference) || plugs.contains(reference);
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for object in objects(&value)? {
        let (class, Some(reference)) = identity(object)? else {
            continue;
        };
        if is_gone(&reference) {
            edits.push((object.span.clone(), String::new()));
            continue;
        }
        let record = object.member("snapshot");
        let field = |name| record.and_then(|record| record.member(name));
        if class == "VM" && reference == vm.reference && vm.was_a_snapshot {
            let flags = ["is_a_template", "is_a_snapshot"];
            let flags = flags.into_iter().filter_map(field);
            edits.extend(flags.map(|flag| (flag.span.clone(), FALSE.to_owned())));
        }
        // xapi imports no suspended VM without its memory.
        let memory = field("suspend_VDI").filter(|_| class == "VM");
        if let Some(memory) = memory
            && let Some(vdi) = memory.text().and_then(Reference::of)
            && is_gone(&vdi)
        {
            edits.push((memory.span.clone(), format!("<value>{NULL}</value>")));
            let state = field("power_state");
            edits.extend(state.map(|state| (state.span.clone(), HALTED.to_owned())));
        }
        if let (Some(disk), Some(size)) = (disks.get(&reference), field("virtual_size"))
            && let Some(wanted) = size_of(disk).filter(|wanted| *wanted != disk.virtual_size)
        {
            edits.push((size.span.clone(), format!("<value>{wanted}</value>")));
        }
        let lists = ["VBDs", "VDIs"].into_iter().filter_map(field);
        for named in lists.filter_map(Value::array).flatten() {
            let named_one = named.text().and_then(Reference::of);
            if named_one.is_some_and(|named| is_gone(&named)) {
                edits.push((named.span.clone(), String::new()));
            }
        }
    }
    Ok(edited(text, edits))
}

const HALTED: &str = "<value>Halted</value>";
const FALSE: &str = "<value><boolean>0</boolean></value>";

fn edited(text: &[u8], mut edits: Vec<(Range<usize>, String)>) -> Vec<u8> {
    edits.sort_by_key(|(span, _)| span.start);
    let mut result = Vec::with_capacity(text.len() + 256);
    let mut at = 0;
    for (span, new) in edits {
        result.extend_from_slice(&text[at..span.start]);
        result.extend_from_slice(new.as_bytes());
        at = span.end;
    }
    result.extend_from_slice(&text[at..]);
    result
}

/// What a snapshot without `ova.xml` knows of its VM.
#[derive(Clone, Debug)]
pub struct MadeUp<'a> {
    /// Name of the VM.
    pub vm: &'a str,
    /// Labels and sizes of the disks, in the order in which they are plugged in.
    pub disks: Vec<(&'a str, DiskLength)>,
    /// What the uuids are made from: the same gives the same.
    pub seed: [u8; 32],
}

const NULL: &str = "OpaqueRef:NULL";
/// One GiB and one processor: what the backup does not know, whoever imports the VM has to set.
const MEMORY: &str = "1073741824";

/// An `ova.xml` with full records of a VM, its disks, and an SR for them.
///
/// The VM boots in BIOS mode from its first disk, has 1 GiB of memory, one processor and no network.
pub fn made_up(made_up: &MadeUp<'_>) -> Vec<u8> {
    let reference = |number: usize| format!("Ref:{number}");
    let vbd = |place: usize| reference(2 + 2 * place);
    let vdi = |place: usize| reference(3 + 2 * place);
    let count = made_up.disks.len();
    let mut objects = vec![
        object(
            "VM",
            &reference(0),
            vm_record(made_up, (0..count).map(vbd).collect()),
        ),
        object(
            "SR",
            &reference(1),
            sr_record(made_up, (0..count).map(vdi).collect()),
        ),
    ];
    for (place, (label, size)) in made_up.disks.iter().enumerate() {
        let number = place.to_string();
        let uuid = |kind| uuid(&made_up.seed, kind, label);
        let record = vbd_record(uuid("VBD"), &vdi(place), &number);
        objects.push(object("VBD", &vbd(place), record));
        let record = vdi_record(uuid("VDI"), label, *size, &vbd(place));
        objects.push(object("VDI", &vdi(place), record));
    }
    let version = Field::Record(vec![
        ("hostname", text("localhost")),
        ("date", text("1970-01-01")),
        ("product_version", text("8.2.0")),
        ("product_brand", text("undercroft")),
        ("build_number", text("0")),
        // No newer than any host that is still in use.
        ("xapi_major", text("1")),
        ("xapi_minor", text("20")),
        ("export_vsn", text("2")),
    ]);
    let all = Field::Record(vec![
        ("version", version),
        ("objects", Field::List(objects)),
    ]);
    let mut xml = String::new();
    all.write(&mut xml);
    xml.into_bytes()
}

enum Field<'a> {
    Text(Cow<'a, str>),
    Flag(bool),
    Number(f64),
    Never,
    List(Vec<Field<'a>>),
    Record(Vec<(&'a str, Field<'a>)>),
}

impl Field<'_> {
    fn write(&self, xml: &mut String) {
        xml.push_str("<value>");
        match self {
            Self::Text(text) => xml.push_str(&escape(text)),
            Self::Flag(flag) => {
                let _ = write!(xml, "<boolean>{}</boolean>", u8::from(*flag));
            }
            Self::Number(number) => {
                let _ = write!(xml, "<double>{number:?}</double>");
            }
            Self::Never => {
                xml.push_str("<dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601>");
            }
            Self::List(fields) => {
                xml.push_str("<array><data>");
                fields.iter().for_each(|field| field.write(xml));
                xml.push_str("</data></array>");
            }
            Self::Record(fields) => {
                xml.push_str("<struct>");
                for (name, field) in fields {
                    let _ = write!(xml, "<member><name>{}</name>", escape(name));
                    field.write(xml);
                    xml.push_str("</member>");
                }
                xml.push_str("</struct>");
            }
        }
        xml.push_str("</value>");
    }
}

type Fields<'a> = Vec<(&'a str, Field<'a>)>;

fn text<'a>(text: impl Into<Cow<'a, str>>) -> Field<'a> {
    Field::Text(text.into())
}

fn texts<'a>(fields: &[(&'a str, &'a str)]) -> impl Iterator<Item = (&'a str, Field<'a>)> {
    fields.iter().map(|(name, value)| (*name, text(*value)))
}

fn references<'a>(references: Vec<String>) -> Field<'a> {
    Field::List(references.into_iter().map(text).collect())
}

fn object<'a>(class: &'a str, id: &str, record: Fields<'a>) -> Field<'a> {
    Field::Record(vec![
        ("class", text(class)),
        ("id", text(id.to_owned())),
        ("snapshot", Field::Record(record)),
    ])
}

/// Fields that are the same for all of a class, by their kinds.
struct Defaults {
    flags: &'static [(&'static str, bool)],
    empty_texts: &'static [&'static str],
    nulls: &'static [&'static str],
    lists: &'static [&'static str],
    maps: &'static [&'static str],
    times: &'static [&'static str],
}

impl Defaults {
    fn fields<'a>(&self) -> Fields<'a> {
        let flags = self
            .flags
            .iter()
            .map(|(name, flag)| (*name, Field::Flag(*flag)));
        let texts = self.empty_texts.iter().map(|name| (*name, text("")));
        let nulls = self.nulls.iter().map(|name| (*name, text(NULL)));
        let lists = self
            .lists
            .iter()
            .map(|name| (*name, Field::List(Vec::new())));
        let maps = self
            .maps
            .iter()
            .map(|name| (*name, Field::Record(Vec::new())));
        let times = self.times.iter().map(|name| (*name, Field::Never));
        flags
            .chain(texts)
            .chain(nulls)
            .chain(lists)
            .chain(maps)
            .chain(times)
            .collect()
    }
}

fn vm_record<'a>(made_up: &MadeUp<'a>, vbds: Vec<String>) -> Fields<'a> {
    let defaults = Defaults {
        flags: &[
            ("is_a_template", false),
            ("is_default_template", false),
            ("is_a_snapshot", false),
            ("is_control_domain", false),
            ("is_snapshot_from_vmpp", false),
            ("is_vmss_snapshot", false),
            ("ha_always_run", false),
            ("has_vendor_device", false),
            ("requires_reboot", false),
        ],
        empty_texts: &[
            "name_description",
            "PV_bootloader",
            "PV_kernel",
            "PV_ramdisk",
            "PV_args",
            "PV_bootloader_args",
            "PV_legacy_args",
            "PCI_bus",
            "domarch",
            "last_booted_record",
            "recommendations",
            "transportable_snapshot_id",
            "snapshot_metadata",
            "ha_restart_priority",
            "generation_id",
            "reference_label",
        ],
        nulls: &[
            "suspend_VDI",
            "suspend_SR",
            "resident_on",
            "scheduled_to_be_resident_on",
            "affinity",
            "metrics",
            "guest_metrics",
            "snapshot_of",
            "parent",
            "protection_policy",
            "snapshot_schedule",
            "appliance",
        ],
        lists: &[
            "allowed_operations",
            "consoles",
            "VIFs",
            "crash_dumps",
            "VTPMs",
            "VGPUs",
            "VUSBs",
            "attached_PCIs",
            "snapshots",
            "children",
            "tags",
        ],
        maps: &[
            "current_operations",
            "VCPUs_params",
            "other_config",
            "last_boot_CPU_flags",
            "xenstore_data",
            "snapshot_info",
            "blobs",
            "blocked_operations",
            "bios_strings",
            "NVRAM",
        ],
        times: &["snapshot_time"],
    };
    let mut fields = defaults.fields();
    fields.extend(texts(&[
        ("name_label", made_up.vm),
        ("power_state", "Halted"),
        ("user_version", "1"),
        ("version", "0"),
        ("memory_overhead", "0"),
        ("memory_target", "0"),
        ("memory_static_max", MEMORY),
        ("memory_dynamic_max", MEMORY),
        ("memory_dynamic_min", MEMORY),
        ("memory_static_min", MEMORY),
        ("VCPUs_max", "1"),
        ("VCPUs_at_startup", "1"),
        ("actions_after_shutdown", "destroy"),
        ("actions_after_reboot", "restart"),
        ("actions_after_crash", "restart"),
        ("actions_after_softreboot", "soft_reboot"),
        ("HVM_boot_policy", "BIOS order"),
        ("domain_type", "hvm"),
        ("domid", "-1"),
        ("start_delay", "0"),
        ("shutdown_delay", "0"),
        ("order", "0"),
        ("hardware_platform_version", "0"),
    ]));
    let boot = texts(&[("firmware", "bios"), ("order", "cdn")]).collect();
    let platform = texts(&[
        ("acpi", "1"),
        ("apic", "true"),
        ("pae", "true"),
        ("nx", "true"),
        ("viridian", "true"),
        ("device-model", "qemu-upstream-compat"),
    ]);
    fields.extend([
        ("uuid", text(uuid(&made_up.seed, "VM", ""))),
        ("HVM_boot_params", Field::Record(boot)),
        ("HVM_shadow_multiplier", Field::Number(1.0)),
        ("platform", Field::Record(platform.collect())),
        ("VBDs", references(vbds)),
    ]);
    fields
}

fn sr_record<'a>(made_up: &MadeUp<'a>, vdis: Vec<String>) -> Fields<'a> {
    let defaults = Defaults {
        flags: &[
            ("shared", false),
            ("local_cache_enabled", false),
            ("clustered", false),
            ("is_tools_sr", false),
        ],
        empty_texts: &["name_description"],
        nulls: &["introduced_by"],
        lists: &["allowed_operations", "PBDs", "tags"],
        maps: &["current_operations", "other_config", "sm_config", "blobs"],
        times: &[],
    };
    let mut fields = defaults.fields();
    fields.extend(texts(&[
        ("name_label", "undercroft"),
        ("type", "ext"),
        ("content_type", "user"),
        ("virtual_allocation", "0"),
        ("physical_utilisation", "0"),
        ("physical_size", "0"),
    ]));
    fields.extend([
        ("uuid", text(uuid(&made_up.seed, "SR", ""))),
        ("VDIs", references(vdis)),
    ]);
    fields
}

fn vbd_record<'a>(uuid: String, vdi: &str, userdevice: &str) -> Fields<'a> {
    let defaults = Defaults {
        flags: &[
            ("unpluggable", true),
            ("storage_lock", false),
            ("empty", false),
            ("currently_attached", false),
        ],
        empty_texts: &["device", "status_detail", "qos_algorithm_type"],
        nulls: &["metrics"],
        lists: &["allowed_operations", "qos_supported_algorithms"],
        maps: &[
            "current_operations",
            "other_config",
            "runtime_properties",
            "qos_algorithm_params",
        ],
        times: &[],
    };
    let mut fields = defaults.fields();
    fields.extend(texts(&[
        ("VM", "Ref:0"),
        ("mode", "RW"),
        ("type", "Disk"),
        ("status_code", "0"),
    ]));
    fields.extend([
        ("uuid", text(uuid)),
        ("VDI", text(vdi.to_owned())),
        ("bootable", Field::Flag(userdevice == "0")),
        ("userdevice", text(userdevice.to_owned())),
    ]);
    fields
}

fn vdi_record<'a>(uuid: String, label: &str, size: DiskLength, vbd: &str) -> Fields<'a> {
    let defaults = Defaults {
        flags: &[
            ("sharable", false),
            ("read_only", false),
            ("storage_lock", false),
            ("managed", true),
            ("missing", false),
            ("is_a_snapshot", false),
            ("allow_caching", false),
            ("metadata_latest", false),
            ("is_tools_iso", false),
            ("cbt_enabled", false),
        ],
        empty_texts: &["name_description"],
        nulls: &["parent", "snapshot_of", "metadata_of_pool"],
        lists: &["allowed_operations", "crash_dumps", "snapshots", "tags"],
        maps: &[
            "current_operations",
            "other_config",
            "xenstore_data",
            "sm_config",
        ],
        times: &["snapshot_time"],
    };
    let mut fields = defaults.fields();
    fields.extend(texts(&[
        ("SR", "Ref:1"),
        ("type", "user"),
        ("on_boot", "persist"),
    ]));
    fields.extend([
        ("location", text(uuid.clone())),
        ("uuid", text(uuid)),
        ("name_label", text(label.to_owned())),
        ("virtual_size", text(size.to_string())),
        ("physical_utilisation", text(size.to_string())),
        ("VBDs", references(vec![vbd.to_owned()])),
    ]);
    fields
}

/// A uuid (RFC 9562, version 8) from `seed` and what it is for.
fn uuid(seed: &[u8; 32], kind: &str, label: &str) -> String {
    let mut hasher = blake3::Hasher::new_keyed(seed);
    hasher.update(kind.as_bytes());
    hasher.update(&[0]);
    hasher.update(label.as_bytes());
    let mut bytes: [u8; 16] = *hasher
        .finalize()
        .as_bytes()
        .first_chunk()
        .expect("32 bytes");
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    let (a, b, c, d, e) = (
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        made_up(&MadeUp {
            vm: "web <1>",
            disks: vec![
                ("root", DiskLength::new(5 << 20)),
                ("data", DiskLength::new(7)),
            ],
            seed: [7; 32],
        })
    }

    #[test]
    fn what_is_made_up_is_read_back() {
        let ova = OvaXml::parse(&example()).unwrap();
        assert_eq!(ova.vm().name_label, "web <1>");
        assert!(!ova.vm().is_a_template && !ova.vm().was_a_snapshot);
        let disks = ova.disks().unwrap();
        let shown: Vec<_> = disks
            .iter()
            .map(|disk| (disk.label.as_str(), disk.virtual_size.get()))
            .collect();
        assert_eq!(shown, [("xvda", 5 << 20), ("xvdb", 7)]);
        assert_ne!(disks[0].vdi_uuid, disks[1].vdi_uuid);
        assert!(disks.iter().all(|disk| disk.sr_uuid.is_some()));
    }

    #[test]
    fn adapting_changes_what_it_must_alone() {
        let plain = example();
        let same = adapted(&plain, &|disk| Some(disk.virtual_size)).unwrap();
        assert_eq!(same, plain);
        let text = String::from_utf8(plain).unwrap();
        let flag = "<name>is_a_template</name><value><boolean>";
        let info = "<name>snapshot_info</name><value><struct>";
        assert!(text.contains(&format!("{flag}0")) && text.contains(info));
        let of_snapshot = text
            .replace(&format!("{flag}0"), &format!("{flag}1"))
            .replace(
                info,
                &format!("{info}<member><name>a</name><value>b</value></member>"),
            );
        let changed = adapted(of_snapshot.as_bytes(), &|disk| Some(disk.virtual_size)).unwrap();
        let expected = of_snapshot.replace(&format!("{flag}1"), &format!("{flag}0"));
        assert_eq!(String::from_utf8(changed).unwrap(), expected);
        let grown = adapted(text.as_bytes(), &|disk| match disk.label.as_str() {
            "xvdb" => Some(DiskLength::new(4096)),
            _ => Some(disk.virtual_size),
        });
        let disks = OvaXml::parse(&grown.unwrap()).unwrap().disks().unwrap();
        assert_eq!(disks[1].virtual_size.get(), 4096);
        assert_eq!(disks[0].virtual_size.get(), 5 << 20);
    }

    #[test]
    fn disks_left_out_leave_nothing_behind() {
        let text = example();
        let size_of = |disk: &Disk| (disk.label == "xvdb").then_some(disk.virtual_size);
        let one = String::from_utf8(adapted(&text, &size_of).unwrap()).unwrap();
        let ova = OvaXml::parse(one.as_bytes()).unwrap();
        assert_eq!((ova.vdis.len(), ova.vbds.len()), (1, 1));
        assert_eq!(ova.disks().unwrap()[0].label, "xvdb");
        let suspended = String::from_utf8(text)
            .unwrap()
            .replace(
                "<name>suspend_VDI</name><value>OpaqueRef:NULL",
                "<name>suspend_VDI</name><value>Ref:3",
            )
            .replace("<value>Halted", "<value>Suspended");
        assert!(
            suspended.contains("<value>Suspended") && suspended.contains("VDI</name><value>Ref:3")
        );
        let halted = adapted(suspended.as_bytes(), &size_of).unwrap();
        assert_eq!(String::from_utf8(halted).unwrap(), one);
        // The first disk and its plug.
        assert!(!one.contains("Ref:3<") && !one.contains("Ref:2<"));
        assert!(one.contains("Ref:5<") && one.contains("Ref:4<"));
    }
}
