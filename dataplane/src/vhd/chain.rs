//! Which files belong together: a VHD, its parent, and so on down to a whole disk.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use undercroft_format::vhd::uuid::VhdUuid;

use super::error::VhdFileError;
use super::layer::Layer;

/// Parents that are read. Storage managers make 30 at most (`vhdutil.py` of XAPI's SM).
const PARENTS_MAX: usize = 32;

/// Opens a whole disk: the VHDs at `paths`, a child and then its parents; parents that are not named are looked for in
/// their child's directory.
///
/// # Errors
/// A file that cannot be read or is not whole; a parent that is missing, or somebody else.
pub fn open_whole(paths: &[PathBuf]) -> Result<Vec<Layer>, VhdFileError> {
    let mut layers = open_named(paths)?;
    let mut known: HashSet<VhdUuid> = layers
        .iter()
        .map(|layer| layer.image().footer.uuid)
        .collect();
    while let Some(child) = layers
        .last()
        .filter(|layer| layer.image().is_differencing())
    {
        let parent = find_parent(child)?;
        if layers.len() > PARENTS_MAX || !known.insert(parent.image().footer.uuid) {
            return Err(too_deep(&layers));
        }
        layers.push(parent);
    }
    Ok(layers)
}

/// Opens what changed since somebody else: differencing VHDs at `paths`, each the parent of the one before. Gives them,
/// the newest first, and who the last one's parent is.
///
/// # Errors
/// A file that cannot be read or is not whole; one that is a whole disk, or not the one before's parent.
pub fn open_delta(paths: &[PathBuf]) -> Result<(Vec<Layer>, VhdUuid), VhdFileError> {
    let layers = open_named(paths)?;
    match layers.last() {
        Some(oldest) if oldest.image().is_differencing() => {
            let parent = parent_uuid(oldest);
            Ok((layers, parent))
        }
        oldest => Err(VhdFileError::NoDelta {
            path: oldest.map_or_else(String::new, shown),
        }),
    }
}

fn open_named(paths: &[PathBuf]) -> Result<Vec<Layer>, VhdFileError> {
    let mut layers: Vec<Layer> = Vec::new();
    for path in paths {
        if let Some(child) = layers
            .last()
            .filter(|child| !child.image().is_differencing())
        {
            return Err(VhdFileError::NoChild {
                path: shown(child),
                next: path.display().to_string(),
            });
        }
        if layers.len() > PARENTS_MAX {
            return Err(too_deep(&layers));
        }
        let layer = Layer::open(path)?;
        if let Some(child) = layers.last() {
            check_parent(child, &layer)?;
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// Looks for the parent in its child's directory alone, by the last part of what it is called: a name in a file from
/// elsewhere leads nowhere else.
fn find_parent(child: &Layer) -> Result<Layer, VhdFileError> {
    let mut names: Vec<String> = Vec::new();
    for path in child.parent_paths()? {
        let name = path.rsplit('/').next().unwrap_or_default();
        if !matches!(name, "" | "." | "..") && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    let directory = child.path().parent().unwrap_or(Path::new(""));
    let mut refused = None;
    for path in names.iter().map(|name| directory.join(name)) {
        if !path.is_file() {
            continue;
        }
        let found = Layer::open(&path).and_then(|parent| {
            check_parent(child, &parent)?;
            Ok(parent)
        });
        match found {
            Ok(parent) => return Ok(parent),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| VhdFileError::ParentMissing {
        child: shown(child),
        parent: parent_uuid(child),
        names,
    }))
}

fn check_parent(child: &Layer, parent: &Layer) -> Result<(), VhdFileError> {
    let (expected, found) = (parent_uuid(child), parent.image().footer.uuid);
    if expected == found {
        return Ok(());
    }
    Err(VhdFileError::OtherParent {
        child: shown(child),
        expected,
        path: shown(parent),
        found,
    })
}

fn parent_uuid(layer: &Layer) -> VhdUuid {
    let header = layer.image().header();
    header.map_or(VhdUuid::from_bytes([0; 16]), |header| header.parent_uuid)
}

fn shown(layer: &Layer) -> String {
    layer.path().display().to_string()
}

fn too_deep(layers: &[Layer]) -> VhdFileError {
    VhdFileError::Depth {
        path: layers.first().map_or_else(String::new, shown),
        max: PARENTS_MAX,
    }
}
