//! `ova.xml`: whatever is read has disks with labels and directories of their own; adapting it to the sizes it
//! has changes nothing but that a snapshot becomes a VM.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use undercroft_format::units::DiskLength;
use undercroft_format::xva::OvaXml;
use undercroft_format::xva::compose::adapted;

fuzz_target!(|text: &[u8]| {
    let Ok(ova) = OvaXml::parse(text) else {
        return;
    };
    let Ok(disks) = ova.disks() else {
        assert!(adapted(text, &|_| None).is_err());
        return;
    };
    let labels: HashSet<_> = disks.iter().map(|disk| &disk.label).collect();
    let references: HashSet<_> = disks.iter().map(|disk| &disk.reference).collect();
    assert_eq!((labels.len(), references.len()), (disks.len(), disks.len()));
    for disk in &disks {
        assert!(!disk.label.is_empty() && !disk.label.contains(['/', '.', '\0']));
        assert!(!disk.reference.as_str().contains('/'));
    }
    let same = adapted(text, &|disk| Some(disk.virtual_size)).expect("it was read");
    if !ova.vm().was_a_snapshot {
        assert_eq!(same, text);
    }
    let grown = adapted(text, &|_| Some(DiskLength::new(7))).expect("it was read");
    let again = OvaXml::parse(&grown).expect("what is adapted is read again");
    if again.vm().reference == ova.vm().reference {
        assert!(!ova.vm().was_a_snapshot || !again.vm().is_a_template);
    }
    assert!(again.vdis.len() == ova.vdis.len() && again.vbds == ova.vbds);
    let bare = adapted(text, &|_| None).expect("it was read");
    let bare = OvaXml::parse(&bare).expect("what is adapted is read again");
    assert_eq!(bare.vdis.len(), ova.vdis.len() - disks.len());
});
