//! `ova.xml`: what an XVA says of its VM, as records of the XenAPI.
//!
//! Records keep what a backup looks at; unknown classes and fields are passed over, and the text itself is
//! what is stored. References are the file's own, `Ref:NN`; those that lead out of the file count as absent.
//! Source: xapi-project/xen-api, `ocaml/xapi/importexport.ml` and `export.ml`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::xmlrpc::{Value, XmlError};
use crate::units::DiskLength;

/// Longest `ova.xml` that is read, in bytes. Those of large VMs have some 200 KB.
pub const OVA_XML_LEN_MAX: u64 = 16 << 20;
/// The only way of laying out disks that is still in use: checksums between the blocks, nothing at the end.
pub const EXPORT_VERSION: u64 = 2;
/// A reference is a directory's name in the archive; with a block's number it has to fit a tar header.
const REFERENCE_LEN_MAX: usize = 64;
const DISKS_MAX: usize = 4096;

/// The name of an object within one XVA, as in `Ref:17`. The numbers mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(String);

impl Reference {
    /// A reference into the file; `None` for one that leads elsewhere, such as `OpaqueRef:NULL`.
    pub(super) fn of(text: &str) -> Option<Self> {
        text.starts_with("Ref:").then(|| Self(text.to_owned()))
    }

    /// The text, which is also the name of the disk's directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_directory_name(&self) -> bool {
        let is_plain = |c: u8| c.is_ascii_graphic() && c != b'/';
        self.0.len() <= REFERENCE_LEN_MAX && self.0.bytes().all(is_plain)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What wrote the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// As in "XCP-ng".
    pub product_brand: String,
    /// As in "8.3.0".
    pub product_version: String,
    /// Which XenAPI the records are of.
    pub api_major: u64,
    /// The same.
    pub api_minor: u64,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its name in the file.
    pub reference: Reference,
    /// Its name in the pool.
    pub uuid: String,
    /// For people.
    pub name_label: String,
    /// For people.
    pub name_description: String,
    /// True for templates, and for snapshots.
    pub is_a_template: bool,
    /// True only where snapshots are exported along with their VM.
    pub is_a_snapshot: bool,
    /// True if it was exported from a snapshot, or is one.
    pub was_a_snapshot: bool,
    /// As in "Halted".
    pub power_state: String,
    /// Memory in bytes.
    pub memory_static_max: u64,
    /// Virtual processors.
    pub vcpus_max: u64,
    /// Holds the memory of a suspended VM.
    pub suspend_vdi: Option<Reference>,
}

impl Vm {
    /// True if its memory comes along as a disk.
    fn is_suspended(&self) -> bool {
        self.power_state.eq_ignore_ascii_case("suspended")
    }
}

/// The plug between a VM and a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vbd {
    /// Its name in the file.
    pub reference: Reference,
    /// The VM.
    pub vm: Option<Reference>,
    /// The disk, unless it is empty.
    pub vdi: Option<Reference>,
    /// Where the user plugged it in: a number as a rule.
    pub userdevice: String,
    /// What the guest called it when it last ran, as in "xvda".
    pub device: String,
    /// Disk, CD or Floppy.
    pub kind: String,
    /// RW or RO.
    pub mode: String,
    /// Whether the VM boots from it.
    pub bootable: bool,
    /// Without a disk.
    pub empty: bool,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdi {
    /// Its name in the file.
    pub reference: Reference,
    /// Its name in the pool.
    pub uuid: String,
    /// For people.
    pub name_label: String,
    /// Where it lay.
    pub sr: Option<Reference>,
    /// Its length.
    pub virtual_size: DiskLength,
    /// As in "user".
    pub kind: String,
}

/// A storage repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sr {
    /// Its name in the file.
    pub reference: Reference,
    /// Its name in the pool.
    pub uuid: String,
    /// For people.
    pub name_label: String,
    /// As in "lvm".
    pub kind: String,
    /// "iso" for a library of CDs.
    pub content_type: String,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vif {
    /// Its name in the file.
    pub reference: Reference,
    /// The VM.
    pub vm: Option<Reference>,
    /// The network.
    pub network: Option<Reference>,
    /// Its number in the VM.
    pub device: String,
    /// Its address.
    pub mac: String,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name in the file.
    pub reference: Reference,
    /// Its name in the pool.
    pub uuid: String,
    /// For people.
    pub name_label: String,
    /// The bridge on the host.
    pub bridge: String,
}

/// What an `ova.xml` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OvaXml {
    /// What wrote it.
    pub version: Version,
    /// Records, in the order in which they stand there.
    pub vms: Vec<Vm>,
    /// Records.
    pub vbds: Vec<Vbd>,
    /// Records.
    pub vdis: Vec<Vdi>,
    /// Records.
    pub srs: Vec<Sr>,
    /// Records.
    pub vifs: Vec<Vif>,
    /// Records.
    pub networks: Vec<Network>,
}

/// A disk whose blocks the archive holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its directory in the archive.
    pub reference: Reference,
    /// What it is called in a snapshot: see [`OvaXml::disks`].
    pub label: String,
    /// Its length.
    pub virtual_size: DiskLength,
    /// Its name in the pool.
    pub vdi_uuid: String,
    /// The name of where it lay.
    pub sr_uuid: Option<String>,
    /// Where it was plugged in; `None` for a suspended VM's memory.
    pub userdevice: Option<String>,
}

/// 64 TiB: four times what XCP-ng's largest disks have. An XVA has names for every MiB of a disk, written or not, so that
/// what it claims costs time.
const NUMBER_MAX: u64 = 1 << 46;

/// An `ova.xml` that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OvaXmlError {
    /// Not XML-RPC.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Something without which it means nothing.
    #[error("{object} of ova.xml has no {field}")]
    Missing {
        /// Of what.
        object: String,
        /// What.
        field: &'static str,
    },
    /// A number that is none.
    #[error(
        "{object} of ova.xml: its {field} is {found:?} where a number from 0 to 2^46 is expected"
    )]
    Number {
        /// Of what.
        object: String,
        /// What.
        field: &'static str,
        /// What stands there.
        found: String,
    },
    /// Another layout of disks.
    #[error(
        "the XVA has export version {found}: only version 2, with checksums between the blocks, is supported, \
         which is what XenServer writes since 2007"
    )]
    ExportVersion {
        /// Its version; 0 if none is given.
        found: u64,
    },
    /// Two objects of one name.
    #[error("ova.xml has two objects called {0}")]
    Duplicate(Reference),
    /// A disk's name that cannot be a directory in the archive.
    #[error("ova.xml calls a disk {0:?}: Ref: and a number is expected")]
    Reference(String),
    /// Nothing to back up.
    #[error("ova.xml describes no VM")]
    NoVm,
    /// Too much.
    #[error("ova.xml has more than {DISKS_MAX} disks")]
    Disks,
}

impl OvaXml {
    /// Reads the text.
    pub fn parse(text: &[u8]) -> Result<Self, OvaXmlError> {
        Self::of_value(&Value::parse(text)?)
    }

    pub(super) fn of_value(value: &Value<'_>) -> Result<Self, OvaXmlError> {
        let version = Record::new("version", "", value.member("version"))?;
        let export = version.number("export_vsn")?.unwrap_or(0);
        if export != EXPORT_VERSION {
            return Err(OvaXmlError::ExportVersion { found: export });
        }
        let mut ova = Self {
            version: Version {
                product_brand: version.text("product_brand"),
                product_version: version.text("product_version"),
                api_major: version.number("xapi_major")?.unwrap_or(0),
                api_minor: version.number("xapi_minor")?.unwrap_or(0),
            },
            ..Self::default()
        };
        let mut known = HashSet::new();
        for object in objects(value)? {
            let (class, reference) = identity(object)?;
            let Some(reference) = reference else { continue };
            if !known.insert(reference.clone()) {
                return Err(OvaXmlError::Duplicate(reference));
            }
            let record = Record::new(class, reference.as_str(), object.member("snapshot"))?;
            ova.add(class, reference.clone(), &record)?;
        }
        if ova.vms.is_empty() {
            return Err(OvaXmlError::NoVm);
        }
        Ok(ova)
    }

    fn add(
        &mut self,
        class: &str,
        reference: Reference,
        record: &Record<'_>,
    ) -> Result<(), OvaXmlError> {
        match class {
            "VM" => self.vms.push(Vm {
                reference,
                uuid: record.text("uuid"),
                name_label: record.text("name_label"),
                name_description: record.text("name_description"),
                is_a_template: record.flag("is_a_template"),
                is_a_snapshot: record.flag("is_a_snapshot"),
                was_a_snapshot: record.was_a_snapshot(),
                power_state: record.text("power_state"),
                memory_static_max: record.number("memory_static_max")?.unwrap_or(0),
                vcpus_max: record.number("VCPUs_max")?.unwrap_or(0),
                suspend_vdi: record.reference("suspend_VDI"),
            }),
            "VBD" => self.vbds.push(Vbd {
                reference,
                vm: record.reference("VM"),
                vdi: record.reference("VDI"),
                userdevice: record.text("userdevice"),
                device: record.text("device"),
                kind: record.text("type"),
                mode: record.text("mode"),
                bootable: record.flag("bootable"),
                empty: record.flag("empty"),
            }),
            "VDI" => self.vdis.push(Vdi {
                virtual_size: DiskLength::new(record.needed_number("virtual_size")?),
                reference,
                uuid: record.text("uuid"),
                name_label: record.text("name_label"),
                sr: record.reference("SR"),
                kind: record.text("type"),
            }),
            "SR" => self.srs.push(Sr {
                reference,
                uuid: record.text("uuid"),
                name_label: record.text("name_label"),
                kind: record.text("type"),
                content_type: record.text("content_type"),
            }),
            "VIF" => self.vifs.push(Vif {
                reference,
                vm: record.reference("VM"),
                network: record.reference("network"),
                device: record.text("device"),
                mac: record.text("MAC"),
            }),
            "network" => self.networks.push(Network {
                reference,
                uuid: record.text("uuid"),
                name_label: record.text("name_label"),
                bridge: record.text("bridge"),
            }),
            _ => {}
        }
        Ok(())
    }

    /// The VM that was exported: the first that is no snapshot of another.
    pub fn vm(&self) -> &Vm {
        let main = self.vms.iter().find(|vm| !vm.is_a_snapshot);
        main.unwrap_or(&self.vms[0])
    }

    /// The disks that belong into the archive, ordered by where they are plugged in.
    ///
    /// These are the VDIs of all VBDs but those of CDs and of ISO libraries, and what a suspended VM had in
    /// memory. A label is made from the `userdevice`, which stays while `device` depends on whether the VM ever
    /// ran: `xvda` for 0, `xvdz` for 25, `xvdaa` for 26; what is no number stands for itself. Memory is
    /// labelled `suspend`. Where that gives nothing, or a label that is taken, it is `vdi-UUID`.
    ///
    /// # Errors
    /// A disk whose name cannot be a directory's, and too many disks.
    pub fn disks(&self) -> Result<Vec<Disk>, OvaXmlError> {
        let vdis: BTreeMap<_, _> = self.vdis.iter().map(|vdi| (&vdi.reference, vdi)).collect();
        let srs: BTreeMap<_, _> = self.srs.iter().map(|sr| (&sr.reference, sr)).collect();
        let main = &self.vm().reference;
        let rank = |vbd: &&Vbd| {
            let place: u64 = vbd.userdevice.parse().unwrap_or(u64::MAX);
            (vbd.vm.as_ref() != Some(main), place, vbd.userdevice.clone())
        };
        let mut plugs: Vec<&Vbd> = self.vbds.iter().filter(|vbd| vbd.is_of_disk()).collect();
        plugs.sort_by_key(rank);
        let plugged = plugs
            .iter()
            .filter_map(|vbd| Some((vdis.get(vbd.vdi.as_ref()?)?, Some(*vbd))));
        let suspended = self.vms.iter().filter(|vm| vm.is_suspended());
        let suspended =
            suspended.filter_map(|vm| Some((vdis.get(vm.suspend_vdi.as_ref()?)?, None)));
        let mut disks: Vec<Disk> = Vec::new();
        let mut seen = HashSet::new();
        let mut labels = HashSet::new();
        for (vdi, vbd) in plugged.chain(suspended) {
            let sr = vdi.sr.as_ref().and_then(|sr| srs.get(sr));
            if sr.is_some_and(|sr| sr.content_type == "iso") || !seen.insert(&vdi.reference) {
                continue;
            }
            if !vdi.reference.is_directory_name() {
                let name: String = vdi.reference.as_str().chars().take(80).collect();
                return Err(OvaXmlError::Reference(name));
            }
            if disks.len() == DISKS_MAX {
                return Err(OvaXmlError::Disks);
            }
            let label = label_of(vdi, vbd, &labels);
            labels.insert(label.clone());
            disks.push(Disk {
                reference: vdi.reference.clone(),
                label,
                virtual_size: vdi.virtual_size,
                vdi_uuid: vdi.uuid.clone(),
                sr_uuid: sr.map(|sr| sr.uuid.clone()),
                userdevice: vbd.map(|vbd| vbd.userdevice.clone()),
            });
        }
        Ok(disks)
    }
}

impl Vbd {
    fn is_of_disk(&self) -> bool {
        !self.empty && !self.kind.eq_ignore_ascii_case("CD")
    }
}

fn label_of(vdi: &Vdi, vbd: Option<&Vbd>, taken: &HashSet<String>) -> String {
    let place = match vbd {
        Some(vbd) => match vbd.userdevice.parse() {
            Ok(number) => Some(device_name(number)),
            Err(_) if is_label(&vbd.userdevice) => Some(vbd.userdevice.clone()),
            Err(_) => Some(vbd.device.clone()),
        },
        None => Some("suspend".to_owned()),
    };
    let by_uuid = is_label(&vdi.uuid).then(|| format!("vdi-{}", vdi.uuid));
    let numbered = (0_u64..).map(|number| format!("disk{number}"));
    place
        .into_iter()
        .chain(by_uuid)
        .chain(numbered)
        .find(|label| is_label(label) && !taken.contains(label))
        .expect("there is a number that is not taken")
}

/// Something that is a file's name anywhere.
fn is_label(text: &str) -> bool {
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(is_plain)
}

/// `xvda` for 0, `xvdz` for 25, `xvdaa` for 26, as Linux counts.
fn device_name(number: u16) -> String {
    let mut letters = Vec::new();
    let mut rest = u32::from(number) + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    let letters: String = letters.iter().rev().collect();
    format!("xvd{letters}")
}

/// The objects of a file.
pub(super) fn objects<'a, 'v>(value: &'a Value<'v>) -> Result<&'a [Value<'v>], OvaXmlError> {
    let objects = value.member("objects").and_then(Value::array);
    objects.ok_or_else(|| missing("the struct", "objects"))
}

/// Class and reference of an object.
pub(super) fn identity<'a>(
    object: &'a Value<'_>,
) -> Result<(&'a str, Option<Reference>), OvaXmlError> {
    let text = |field: &'static str| {
        let text = object.member(field).and_then(Value::text);
        text.ok_or_else(|| missing("an object", field))
    };
    Ok((text("class")?, Reference::of(text("id")?)))
}

fn missing(object: &str, field: &'static str) -> OvaXmlError {
    OvaXmlError::Missing {
        object: object.to_owned(),
        field,
    }
}

/// The fields of an object.
struct Record<'a> {
    name: String,
    fields: &'a Value<'a>,
}

impl<'a> Record<'a> {
    fn new(class: &str, id: &str, fields: Option<&'a Value<'_>>) -> Result<Self, OvaXmlError> {
        let name = [class, id].join(" ").trim_end().chars().take(100).collect();
        match fields {
            Some(fields) => Ok(Self { name, fields }),
            None => Err(missing(&name, "record")),
        }
    }

    fn get(&self, field: &str) -> Option<&str> {
        self.fields.member(field).and_then(Value::text)
    }

    fn text(&self, field: &str) -> String {
        self.get(field).unwrap_or_default().to_owned()
    }

    fn flag(&self, field: &str) -> bool {
        matches!(self.get(field).map(str::trim), Some("1" | "true"))
    }

    fn number(&self, field: &'static str) -> Result<Option<u64>, OvaXmlError> {
        let Some(text) = self.get(field) else {
            return Ok(None);
        };
        match text.trim().parse() {
            Ok(number) if number <= NUMBER_MAX => Ok(Some(number)),
            _ => Err(OvaXmlError::Number {
                object: self.name.clone(),
                field,
                found: text.chars().take(40).collect(),
            }),
        }
    }

    fn needed_number(&self, field: &'static str) -> Result<u64, OvaXmlError> {
        self.number(field)?
            .ok_or_else(|| missing(&self.name, field))
    }

    fn reference(&self, field: &str) -> Option<Reference> {
        self.get(field).and_then(Reference::of)
    }

    /// A full export of a snapshot says that it is none, but keeps what was noted when it was made.
    fn was_a_snapshot(&self) -> bool {
        let has_info = self.fields.member("snapshot_info").is_some_and(|info| {
            matches!(&info.kind, super::xmlrpc::ValueKind::Struct(members) if !members.is_empty())
        });
        self.flag("is_a_snapshot") || has_info || self.reference("snapshot_of").is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(class: &str, id: &str, fields: &[(&str, &str)]) -> String {
        let members: String = fields
            .iter()
            .map(|(name, value)| {
                format!("<member><name>{name}</name><value>{value}</value></member>")
            })
            .collect();
        format!(
            "<value><struct><member><name>class</name><value>{class}</value></member>\
             <member><name>id</name><value>{id}</value></member>\
             <member><name>snapshot</name><value><struct>{members}</struct></value></member>\
             </struct></value>"
        )
    }

    fn ova(export: &str, objects: &[String]) -> String {
        format!(
            "<value><struct><member><name>version</name><value><struct>{export}</struct></value></member>\
             <member><name>objects</name><value><array><data>{}</data></array></value></member>\
             </struct></value>",
            objects.concat()
        )
    }

    const V2: &str = "<member><name>export_vsn</name><value>2</value></member>";

    fn vdi(id: &str, size: &str, sr: &str) -> String {
        object(
            "VDI",
            id,
            &[
                ("uuid", &format!("u-{}", &id[4..])),
                ("virtual_size", size),
                ("SR", sr),
            ],
        )
    }

    fn vbd(id: &str, vdi: &str, userdevice: &str, more: &[(&str, &str)]) -> String {
        let fields = [("VM", "Ref:0"), ("VDI", vdi), ("userdevice", userdevice)];
        object("VBD", id, &[&fields, more].concat())
    }

    #[test]
    fn disks_are_those_that_the_archive_holds() {
        let vm = [
            ("name_label", "web &amp; co"),
            ("power_state", "Halted"),
            ("suspend_VDI", "Ref:15"),
        ];
        let text = ova(
            V2,
            &[
                object("host", "OpaqueRef:1", &[]),
                object("VM", "Ref:0", &vm),
                object("SR", "Ref:1", &[("content_type", "iso")]),
                object("SR", "Ref:2", &[("uuid", "s"), ("content_type", "user")]),
                vdi("Ref:10", "4096", "Ref:2"),
                vdi("Ref:11", "8192", "Ref:2"),
                vdi("Ref:12", "1", "Ref:1"),
                vdi("Ref:13", "1", "Ref:2"),
                vdi("Ref:14", "5", "OpaqueRef:NULL"),
                vdi("Ref:15", "5", "Ref:2"),
                vbd("Ref:21", "Ref:11", "26", &[("type", "Disk")]),
                vbd("Ref:20", "Ref:10", "0", &[("device", "hda")]),
                vbd("Ref:22", "Ref:12", "3", &[]),
                vbd("Ref:23", "Ref:13", "4", &[("type", "CD")]),
                vbd("Ref:24", "OpaqueRef:NULL", "5", &[("empty", "1")]),
                vbd("Ref:25", "Ref:10", "7", &[]),
                vbd("Ref:26", "Ref:14", "0", &[]),
            ],
        );
        let ova = OvaXml::parse(text.as_bytes()).unwrap();
        assert_eq!(ova.vm().name_label, "web & co");
        let disks = ova.disks().unwrap();
        let shown: Vec<_> = disks
            .iter()
            .map(|disk| {
                (
                    disk.reference.as_str(),
                    disk.label.as_str(),
                    disk.virtual_size.get(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("Ref:10", "xvda", 4096),
                ("Ref:14", "vdi-u-14", 5),
                ("Ref:11", "xvdaa", 8192)
            ]
        );
        assert_eq!(disks[0].sr_uuid.as_deref(), Some("s"));
        let suspended = text.replace("Halted", "Suspended");
        let disks = OvaXml::parse(suspended.as_bytes())
            .unwrap()
            .disks()
            .unwrap();
        assert_eq!(
            disks.last().map(|disk| disk.label.as_str()),
            Some("suspend")
        );
    }

    #[test]
    fn devices_are_counted_as_linux_counts() {
        for (number, name) in [
            (0, "xvda"),
            (25, "xvdz"),
            (26, "xvdaa"),
            (51, "xvdaz"),
            (702, "xvdaaa"),
        ] {
            assert_eq!(device_name(number), name);
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let vm = object("VM", "Ref:0", &[]);
        let one = "<member><name>export_vsn</name><value><i4>1</i4></value></member>";
        for (text, expected) in [
            (ova("", std::slice::from_ref(&vm)), "export version 0"),
            (ova(one, std::slice::from_ref(&vm)), "export version 1"),
            (ova(V2, &[]), "no VM"),
            (
                ova(V2, &[vm.clone(), vm.clone()]),
                "two objects called Ref:0",
            ),
            (
                ova(V2, &[vm.clone(), vdi("Ref:1", "-1", "")]),
                "VDI Ref:1 of ova.xml: its virtual_size is \"-1\"",
            ),
            (
                ova(V2, &[object("VDI", "Ref:1", &[])]),
                "VDI Ref:1 of ova.xml has no virtual_size",
            ),
            (
                "<value>x</value>".to_owned(),
                "version of ova.xml has no record",
            ),
        ] {
            let error = OvaXml::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let text = ova(
            V2,
            &[
                vm,
                vdi("Ref:../x", "1", ""),
                vbd("Ref:2", "Ref:../x", "0", &[]),
            ],
        );
        let ova = OvaXml::parse(text.as_bytes()).unwrap();
        assert_eq!(
            ova.disks(),
            Err(OvaXmlError::Reference("Ref:../x".to_owned()))
        );
    }

    #[test]
    fn exports_of_snapshots_are_told_by_what_was_noted() {
        let info = "<struct><member><name>disk-snapshot-type</name><value>crash_consistent</value></member></struct>";
        for (fields, expected) in [
            (&[("snapshot_info", info)][..], true),
            (&[("is_a_snapshot", "<boolean>1</boolean>")], true),
            (&[("snapshot_of", "Ref:7")], true),
            (
                &[
                    ("snapshot_of", "OpaqueRef:NULL"),
                    ("snapshot_info", "<struct></struct>"),
                ],
                false,
            ),
        ] {
            let text = ova(V2, &[object("VM", "Ref:0", fields)]);
            let ova = OvaXml::parse(text.as_bytes()).unwrap();
            assert_eq!(ova.vm().was_a_snapshot, expected, "{fields:?}");
        }
    }
}
