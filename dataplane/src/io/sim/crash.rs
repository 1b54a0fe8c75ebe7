//! The states a simulated disk could be in if the power failed now.
//!
//! A [`Plan`] gives every operation that is not durable its fate. Data operations are independent of each
//! other: any may be lost, and a write may be torn at sectors, with or without the file's new length. The
//! names of a directory survive as a prefix of its operations, as journaling file systems keep them, and a
//! rename between directories survives in both or in neither. If there are no more plans than asked for,
//! all are tried; else the extreme ones and a sample chosen by seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::disk::{
    DataOp, DirNode, Disk, FileNode, Inode, Node, ROOT, SECTOR, apply_data, apply_names, write_into,
};

/// Writes of more sectors than this are never enumerated, only sampled.
const SECTORS_ENUMERATED_MAX: u64 = 12;

/// The disks that could be found after a power failure: at most `limit` (at least two) different plans.
pub(super) fn crash_disks(disk: &Disk, seed: u64, limit: usize) -> Vec<Disk> {
    let questions = Question::all(disk);
    let plans = plans(disk, &questions, seed, limit.max(2));
    plans
        .iter()
        .map(|plan| outcome(disk, &questions, plan))
        .collect()
}

/// Something whose fate is open.
enum Question {
    /// How many of a directory's operations survive.
    Names { dir: Inode, ops: usize },
    /// What becomes of a change of a file.
    Data {
        file: Inode,
        op: usize,
        sectors: u64,
        extends: bool,
    },
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Names(usize),
    Lost,
    Kept,
    /// Only these sectors reached the disk; `extended`: the file's length did too.
    Torn {
        kept: Vec<bool>,
        extended: bool,
    },
}

/// One fate per question.
type Plan = Vec<Fate>;

impl Question {
    /// All open questions about files and directories that can be found after a failure.
    fn all(disk: &Disk) -> Vec<Question> {
        let mut questions = Vec::new();
        for inode in findable(disk) {
            match &disk.nodes[inode] {
                Node::Dir(dir) if dir.pending.is_empty() => {}
                Node::Dir(dir) => questions.push(Question::Names {
                    dir: inode,
                    ops: dir.pending.len(),
                }),
                Node::File(file) => {
                    for (op, data) in file.pending.iter().enumerate() {
                        let (sectors, extends) = match data {
                            DataOp::Write {
                                offset,
                                bytes,
                                extends,
                            } => (sectors_of(*offset, bytes.len()), *extends),
                            DataOp::SetLen(_) | DataOp::Punch(_) => (1, false),
                        };
                        questions.push(Question::Data {
                            file: inode,
                            op,
                            sectors,
                            extends,
                        });
                    }
                }
            }
        }
        questions
    }

    /// How many fates there are; `None` for too many to enumerate.
    fn fates(&self) -> Option<u64> {
        match *self {
            Question::Names { ops, .. } => Some(ops as u64 + 1),
            Question::Data { sectors, .. } if sectors > SECTORS_ENUMERATED_MAX => None,
            Question::Data {
                sectors,
                extends: false,
                ..
            } => Some(1 << sectors),
            // The last sector lost leaves two lengths possible.
            Question::Data {
                sectors,
                extends: true,
                ..
            } => Some((1 << sectors) + (1 << (sectors - 1))),
        }
    }

    /// The fate of a number below [`Question::fates`]; zero is all lost.
    fn fate(&self, number: u64) -> Fate {
        match *self {
            Question::Names { .. } => Fate::Names(number as usize),
            Question::Data { sectors, .. } => {
                let all = 1 << sectors;
                let (mask, extended) = if number < all {
                    (number, false)
                } else {
                    (number - all, true)
                };
                Fate::torn(
                    (0..sectors).map(|sector| mask >> sector & 1 == 1).collect(),
                    extended,
                )
            }
        }
    }

    fn lost(&self) -> Fate {
        match self {
            Question::Names { .. } => Fate::Names(0),
            Question::Data { .. } => Fate::Lost,
        }
    }

    fn kept(&self) -> Fate {
        match self {
            Question::Names { ops, .. } => Fate::Names(*ops),
            Question::Data { .. } => Fate::Kept,
        }
    }

    /// A fate by chance, kept with a probability of about `kept` percent.
    fn random(&self, chance: &mut Chance, kept: u64) -> Fate {
        match *self {
            _ if chance.below(100) < kept => self.kept(),
            Question::Names { ops, .. } => Fate::Names(chance.below(ops as u64 + 1) as usize),
            Question::Data {
                sectors, extends, ..
            } => {
                let extended = extends && chance.below(2) == 1;
                match chance.below(3) {
                    0 => Fate::torn(vec![false; sectors as usize], extended),
                    1 => {
                        let prefix = chance.below(sectors + 1);
                        Fate::torn(
                            (0..sectors).map(|sector| sector < prefix).collect(),
                            extended,
                        )
                    }
                    _ => Fate::torn(
                        (0..sectors).map(|_| chance.below(2) == 1).collect(),
                        extended,
                    ),
                }
            }
        }
    }
}

impl Fate {
    /// In the one spelling each fate has.
    fn torn(kept: Vec<bool>, extended: bool) -> Fate {
        if kept.iter().all(|&kept| kept) {
            Fate::Kept
        } else if !extended && !kept.contains(&true) {
            Fate::Lost
        } else {
            // With its last sector, a write brings the length along anyway.
            let extended = extended && kept.last() == Some(&false);
            Fate::Torn { kept, extended }
        }
    }
}

/// The plans to try, each once.
fn plans(disk: &Disk, questions: &[Question], seed: u64, limit: usize) -> Vec<Plan> {
    let mut seen = BTreeSet::new();
    let mut plans = Vec::new();
    let mut add = |mut plan: Plan| {
        settle_renames(disk, questions, &mut plan);
        if seen.insert(plan.clone()) {
            plans.push(plan);
        }
        plans.len()
    };
    let total = questions
        .iter()
        .try_fold(1u64, |total, question| total.checked_mul(question.fates()?));
    if let Some(total) = total.filter(|&total| total <= limit as u64) {
        for mut number in 0..total {
            let plan = questions.iter().map(|question| {
                let fates = question.fates().expect("all can be enumerated");
                let fate = question.fate(number % fates);
                number /= fates;
                fate
            });
            add(plan.collect());
        }
        return plans;
    }

    let is_names = |question: &Question| matches!(question, Question::Names { .. });
    let choose = |keep: &dyn Fn(usize, &Question) -> bool| -> Plan {
        let fate = |(at, question): (usize, &Question)| {
            if keep(at, question) {
                question.kept()
            } else {
                question.lost()
            }
        };
        questions.iter().enumerate().map(fate).collect()
    };
    add(choose(&|_, _| false));
    let mut count = add(choose(&|_, _| true));
    if count < limit {
        // Names without their bytes: the rename that was not preceded by a sync.
        count = add(choose(&|_, question| is_names(question)));
    }
    for odd in 0..questions.len() {
        if count < limit / 2 {
            count = add(choose(&|at, _| at != odd));
        }
        if count < limit / 2 {
            count = add(choose(&|at, _| at == odd));
        }
    }
    let mut chance = Chance(seed);
    for _ in 0..limit.saturating_mul(4) {
        if count >= limit {
            break;
        }
        let kept = [5, 40, 70, 95][chance.below(4) as usize];
        count = add(questions
            .iter()
            .map(|question| question.random(&mut chance, kept))
            .collect());
    }
    plans
}

/// Shortens directories' prefixes until every rename between directories is in both or in neither.
fn settle_renames(disk: &Disk, questions: &[Question], plan: &mut Plan) {
    let question_of = |dir: Inode| {
        questions.iter().position(
            |question| matches!(question, Question::Names { dir: other, .. } if *other == dir),
        )
    };
    // Halves in directories that nothing leads to any more tie nothing.
    let halves: Vec<[(usize, usize); 2]> = disk
        .rename_halves()
        .iter()
        .filter_map(|&[(a, a_at), (b, b_at)]| {
            Some([(question_of(a)?, a_at), (question_of(b)?, b_at)])
        })
        .collect();
    let mut changed = true;
    while changed {
        changed = false;
        for &[a, b] in &halves {
            for ((question, at), (other, other_at)) in [(a, b), (b, a)] {
                let (Fate::Names(cut), Fate::Names(other_cut)) = (&plan[question], &plan[other])
                else {
                    unreachable!("directories' questions have such answers")
                };
                if at < *cut && other_at >= *other_cut {
                    plan[question] = Fate::Names(at);
                    changed = true;
                }
            }
        }
    }
}

/// The disk after a failure that went by `plan`: nothing is open on it any more.
fn outcome(disk: &Disk, questions: &[Question], plan: &Plan) -> Disk {
    let mut cuts = BTreeMap::new();
    let mut fates: BTreeMap<(Inode, usize), &Fate> = BTreeMap::new();
    for (question, fate) in questions.iter().zip(plan) {
        match (question, fate) {
            (Question::Names { dir, .. }, Fate::Names(cut)) => {
                cuts.insert(*dir, *cut);
            }
            (Question::Data { file, op, .. }, fate) => {
                fates.insert((*file, *op), fate);
            }
            (Question::Names { .. }, _) => {
                unreachable!("directories' questions have other answers")
            }
        }
    }
    let mut after = Disk::new();
    copy_dir(disk, ROOT, &mut after, ROOT, &cuts, &fates);
    after
}

fn copy_dir(
    disk: &Disk,
    source: Inode,
    after: &mut Disk,
    target: Inode,
    cuts: &BTreeMap<Inode, usize>,
    fates: &BTreeMap<(Inode, usize), &Fate>,
) {
    let Node::Dir(dir) = &disk.nodes[source] else {
        unreachable!("called for directories")
    };
    let mut names = dir.durable.clone();
    let cut = cuts.get(&source).copied().unwrap_or(0);
    dir.pending[..cut]
        .iter()
        .for_each(|op| apply_names(&mut names, op));
    for inode in names.values_mut() {
        let child = *inode;
        *inode = match &disk.nodes[child] {
            Node::File(file) => after.add_node(Node::File(file_after(file, child, fates))),
            Node::Dir(_) => {
                let copy = after.add_node(Node::Dir(DirNode::default()));
                copy_dir(disk, child, after, copy, cuts, fates);
                copy
            }
        };
    }
    after.nodes[target] = Node::Dir(DirNode {
        live: names.clone(),
        durable: names,
        pending: Vec::new(),
    });
}

fn file_after(file: &FileNode, inode: Inode, fates: &BTreeMap<(Inode, usize), &Fate>) -> FileNode {
    let mut data = Arc::clone(&file.durable);
    for (at, op) in file.pending.iter().enumerate() {
        match fates.get(&(inode, at)) {
            Some(Fate::Kept) => apply_data(Arc::make_mut(&mut data), op),
            Some(Fate::Torn { kept, extended }) => {
                apply_torn(Arc::make_mut(&mut data), op, kept, *extended)
            }
            Some(Fate::Lost | Fate::Names(_)) | None => {}
        }
    }
    FileNode {
        live: Arc::clone(&data),
        durable: data,
        pending: Vec::new(),
        named: true,
    }
}

fn apply_torn(data: &mut Vec<u8>, op: &DataOp, kept: &[bool], extended: bool) {
    let DataOp::Write { offset, bytes, .. } = op else {
        unreachable!("only writes are torn")
    };
    let (start, end) = (*offset, offset + bytes.len() as u64);
    for (sector, _) in (start / SECTOR..).zip(kept).filter(|(_, kept)| **kept) {
        let from = (sector * SECTOR).max(start);
        let to = ((sector + 1) * SECTOR).min(end);
        write_into(
            data,
            from,
            &bytes[(from - start) as usize..(to - start) as usize],
        );
    }
    if extended && (data.len() as u64) < end {
        data.resize(end as usize, 0);
    }
}

/// Inodes that some outcome has a path to, in the order of their creation.
fn findable(disk: &Disk) -> BTreeSet<Inode> {
    let mut found = BTreeSet::new();
    let mut rest = vec![ROOT];
    while let Some(inode) = rest.pop() {
        if !found.insert(inode) {
            continue;
        }
        if let Node::Dir(dir) = &disk.nodes[inode] {
            rest.extend(dir.durable.values());
            let edits = dir.pending.iter().flat_map(|op| &op.edits);
            rest.extend(edits.filter_map(|(_, inode)| *inode));
        }
    }
    found
}

/// Sectors that `len` bytes at `offset` touch.
fn sectors_of(offset: u64, len: usize) -> u64 {
    (offset + len as u64).div_ceil(SECTOR) - offset / SECTOR
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same everywhere and forever, so that a seed stays a repro.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform enough below `end`, which is small.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
