//! What `query-block` tells of a guest's disks: which there are, what they are called, which bitmaps they
//! have.

use serde_json::Value;

use super::QmpError;

/// Most drives and most bitmaps of a drive that are taken.
const COUNT_MAX: usize = 4096;
const COMMAND: &str = "query-block";

/// A drive of a guest that has a medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The name that backups know it by.
    pub label: String,
    /// The node that the guest writes to.
    pub node: String,
    /// The guest's device, by its id or by its path in QEMU's object model; none if no device has the drive.
    pub qdev: Option<String>,
    /// The image behind it, as QEMU names it.
    pub file: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether the guest cannot write to it.
    pub is_read_only: bool,
    /// Whether the medium can be taken out: a CD-ROM or floppy.
    pub is_removable: bool,
    /// Whether its image keeps bitmaps while QEMU does not run.
    pub keeps_bitmaps: bool,
    /// The bitmaps of its node.
    pub bitmaps: Vec<Bitmap>,
}

/// A dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Whether it knows of every write since it was made, as far as it can tell.
    pub is_whole: bool,
    /// Whether something uses it now.
    pub is_busy: bool,
}

impl Device {
    /// The bitmap of this name.
    pub fn bitmap(&self, name: &str) -> Option<&Bitmap> {
        self.bitmaps.iter().find(|bitmap| bitmap.name == name)
    }
}

/// The drives with media that an answer to `query-block` lists, in its order.
///
/// A drive's label is the first of these that it has: the id of its `-drive` (QEMU gives one, as in
/// `virtio0`, where the command line does not); the id of its device, as in `virtio-disk0`; the name of
/// its node. All of them stay the same from one run of the guest to the next.
///
/// # Errors
/// [`QmpError::Field`].
pub fn devices(answer: &Value) -> Result<Vec<Device>, QmpError> {
    let drives = answer.as_array().filter(|drives| drives.len() <= COUNT_MAX);
    let drives = drives.ok_or(missing("drives", "an array of at most 4096"))?;
    let media = drives
        .iter()
        .enumerate()
        .filter(|(_, drive)| drive["inserted"].is_object());
    media.map(|(number, drive)| device(number, drive)).collect()
}

fn device(number: usize, drive: &Value) -> Result<Device, QmpError> {
    let medium = &drive["inserted"];
    let node = medium["node-name"].as_str().filter(|node| !node.is_empty());
    let node = node.ok_or(missing("inserted.node-name", "the name of a node"))?;
    let size = medium["image"]["virtual-size"].as_u64();
    // Filters of QEMU before 6.0 hold bitmaps here instead.
    let bitmaps = [&medium["dirty-bitmaps"], &drive["dirty-bitmaps"]];
    let bitmaps = bitmaps.into_iter().filter_map(Value::as_array).flatten();
    let image = &medium["image"];
    // Images as QEMU before 1.1 made them have no place for bitmaps.
    let is_old = image["format-specific"]["data"]["compat"] == "0.10";
    Ok(Device {
        label: label(number, drive, node),
        node: node.to_owned(),
        qdev: drive["qdev"].as_str().map(str::to_owned),
        file: medium["file"].as_str().unwrap_or_default().to_owned(),
        keeps_bitmaps: medium["drv"] == "qcow2" && !is_old,
        size: size.ok_or(missing("inserted.image.virtual-size", "a number of bytes"))?,
        is_read_only: medium["ro"].as_bool().unwrap_or(false),
        is_removable: drive["removable"].as_bool().unwrap_or(false),
        bitmaps: bitmaps.take(COUNT_MAX).filter_map(bitmap).collect(),
    })
}

fn label(number: usize, drive: &Value, node: &str) -> String {
    let text = |field: &str| drive[field].as_str().unwrap_or_default();
    let qdev = text("qdev");
    let qdev_id = match qdev.strip_prefix("/machine/peripheral/") {
        Some(path) => path.split('/').next().unwrap_or_default(),
        // Devices without an id have other paths; with one some tell it alone.
        None if qdev.starts_with('/') => "",
        None => qdev,
    };
    // Names that begin so were made up by QEMU, and are others each time.
    let node = if node.starts_with('#') { "" } else { node };
    let names = [text("device"), qdev_id, node].into_iter();
    match names.into_iter().find(|name| !name.is_empty()) {
        Some(name) => name.replace('/', "_"),
        None => format!("disk{number}"),
    }
}

fn bitmap(bitmap: &Value) -> Option<Bitmap> {
    let is = |field: &str| bitmap[field].as_bool().unwrap_or(false);
    Some(Bitmap {
        name: bitmap["name"].as_str()?.to_owned(),
        is_whole: is("recording") && !is("inconsistent"),
        is_busy: is("busy"),
    })
}

fn missing(field: &'static str, expected: &'static str) -> QmpError {
    QmpError::Field {
        command: COMMAND,
        field,
        expected,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inserted(node: &str) -> Value {
        json!({"node-name": node, "drv": "qcow2", "ro": false, "file": "/i/a.qcow2",
        "image": {"virtual-size": 1048576}, "dirty-bitmaps": [
            {"name": "a", "recording": true, "busy": false, "persistent": true},
            {"name": "b", "recording": false},
            {"name": "c", "recording": true, "inconsistent": true},
            {"recording": true},
        ]})
    }

    #[test]
    fn labels_are_those_that_stay() {
        let drive = |device: &str, qdev: Option<&str>, node: &str| {
            let answer = json!([{"device": device, "qdev": qdev, "inserted": inserted(node)}]);
            devices(&answer).expect("drives").remove(0).label
        };
        let path = Some("/machine/peripheral/virtio-disk0/virtio-backend");
        assert_eq!(drive("virtio0", path, "#block123"), "virtio0");
        assert_eq!(drive("", path, "libvirt-1-format"), "virtio-disk0");
        assert_eq!(drive("", Some("scsi0-0-0-0"), "n"), "scsi0-0-0-0");
        let anonymous = Some("/machine/peripheral-anon/device[1]/virtio-backend");
        assert_eq!(drive("", anonymous, "data"), "data");
        assert_eq!(drive("", None, "data"), "data");
        assert_eq!(drive("", anonymous, "#block7"), "disk0");
        assert_eq!(drive("a/b", None, "n"), "a_b");
    }

    #[test]
    fn media_and_bitmaps_are_told() {
        let answer = json!([
            {"device": "ide1-cd0", "removable": true},
            {"device": "root", "removable": false, "inserted": inserted("#block1")},
        ]);
        let found = devices(&answer).expect("drives");
        assert_eq!(found.len(), 1);
        let device = &found[0];
        assert_eq!(
            (device.size, &*device.node, &*device.file),
            (1 << 20, "#block1", "/i/a.qcow2")
        );
        assert!(!device.is_read_only && !device.is_removable && device.keeps_bitmaps);
        let whole: Vec<_> = device
            .bitmaps
            .iter()
            .map(|map| (&*map.name, map.is_whole))
            .collect();
        assert_eq!(whole, [("a", true), ("b", false), ("c", false)]);
        assert_eq!(device.bitmap("d"), None);
        let mut old = inserted("n");
        old["image"]["format-specific"] = json!({"type": "qcow2", "data": {"compat": "0.10"}});
        let old = devices(&json!([{"device": "root", "inserted": old}])).expect("drives");
        assert!(!old[0].keeps_bitmaps);
    }

    #[test]
    fn answers_that_lack_something_are_refused() {
        let mut medium = inserted("n");
        medium["image"] = json!({});
        let text = |answer: Value| devices(&answer).expect_err("refused").to_string();
        assert!(text(json!([{"inserted": medium}])).contains("inserted.image.virtual-size"));
        assert!(text(json!([{"inserted": {}}])).contains("node-name"));
        assert!(text(json!({})).contains("array"));
    }
}
