//! Labels interned to numbers, label sets to signatures with a bitset.

use std::{collections::BTreeMap, sync::Arc};

use crate::table::Table;

/// A growing set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub(crate) fn insert(&mut self, bit: u32) {
        let word = bit as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (bit % 64);
    }

    pub(crate) fn remove(&mut self, bit: u32) {
        if let Some(word) = self.0.get_mut(bit as usize / 64) {
            *word &= !(1 << (bit % 64));
        }
    }

    pub(crate) fn contains(&self, bit: u32) -> bool {
        self.0
            .get(bit as usize / 64)
            .is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    pub(crate) fn is_subset(&self, other: &Self) -> bool {
        self.0
            .iter()
            .enumerate()
            .all(|(at, word)| word & !other.0.get(at).copied().unwrap_or(0) == 0)
    }

    pub(crate) fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Keeps its own length: a set that only grows is never allocated anew.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        let (here, beyond) = self.0.split_at_mut(other.0.len());
        here.copy_from_slice(&other.0);
        beyond.fill(0);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }

    pub(crate) fn keep(&mut self, other: &Self) {
        let beyond = other.0.len().min(self.0.len());
        self.0[beyond..].fill(0);
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
    }

    pub(crate) fn take_out(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= !b);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.both(self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Members of both, ascending.
    pub(crate) fn both<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        self.0
            .iter()
            .zip(&other.0)
            .enumerate()
            .flat_map(|(at, (a, b))| {
                let mut word = a & b;
                std::iter::from_fn(move || {
                    (word != 0).then(|| {
                        let bit = word.trailing_zeros();
                        word &= word - 1;
                        at as u32 * 64 + bit
                    })
                })
            })
    }
}

pub(crate) type LabelIx = u32;
pub(crate) type SignatureIx = u32;

#[derive(Clone, Debug)]
pub(crate) struct Signature {
    /// Case-folded, sorted, without repeats.
    pub(crate) labels: Arc<[String]>,
    pub(crate) bits: Bits,
    pub(crate) ids: Vec<LabelIx>,
    pub(crate) wants_gpu: bool,
}

impl Signature {
    /// For explaining: words only, unknown to the index.
    pub(crate) fn unindexed(folded: Vec<String>) -> Self {
        Self {
            wants_gpu: folded.iter().any(|label| is_gpu(label)),
            labels: folded.into(),
            bits: Bits::default(),
            ids: Vec::new(),
        }
    }

    /// Asks for `self-hosted` and nothing else.
    pub(crate) fn is_bare(&self) -> bool {
        self.labels.len() == 1 && self.labels[0] == "self-hosted"
    }
}

/// Spellings remembered beside their signature, so that the common case folds nothing.
const REMEMBERED_SPELLINGS: usize = 16_384;

#[derive(Debug, Default)]
pub(crate) struct Labels {
    ids: BTreeMap<Arc<str>, LabelIx>,
    names: Vec<Arc<str>>,
    signatures: Vec<Signature>,
    by_set: BTreeMap<Vec<LabelIx>, SignatureIx>,
    spellings: Table<Vec<String>, SignatureIx>,
}

impl Labels {
    pub(crate) fn id(&mut self, folded: &str) -> LabelIx {
        if let Some(id) = self.ids.get(folded) {
            return *id;
        }
        let id = self.names.len() as LabelIx;
        let name: Arc<str> = folded.into();
        self.names.push(name.clone());
        self.ids.insert(name, id);
        id
    }

    pub(crate) fn name(&self, id: LabelIx) -> &str {
        &self.names[id as usize]
    }

    /// `None` for the empty set, which matches nothing.
    pub(crate) fn signature(&mut self, labels: &[String]) -> Option<SignatureIx> {
        if labels.is_empty() {
            return None;
        }
        if let Some(known) = self.spellings.get(labels) {
            return Some(*known);
        }
        let mut folded = fold(labels);
        if folded.is_empty() {
            return None;
        }
        let mut ids: Vec<LabelIx> = folded.iter().map(|label| self.id(label)).collect();
        ids.sort_unstable();
        let signature = match self.by_set.get(&ids) {
            Some(known) => *known,
            None => {
                let mut bits = Bits::default();
                ids.iter().for_each(|id| bits.insert(*id));
                let wants_gpu = folded.iter().any(|label| is_gpu(label));
                let made = self.signatures.len() as SignatureIx;
                self.signatures.push(Signature {
                    labels: std::mem::take(&mut folded).into(),
                    bits,
                    ids: ids.clone(),
                    wants_gpu,
                });
                self.by_set.insert(ids, made);
                made
            }
        };
        if self.spellings.len() >= REMEMBERED_SPELLINGS {
            self.spellings = Table::default();
        }
        self.spellings.insert(labels.to_vec(), signature);
        Some(signature)
    }

    pub(crate) fn get(&self, signature: SignatureIx) -> &Signature {
        &self.signatures[signature as usize]
    }

    /// A runner with `wider` is offered jobs that ask for `narrower`.
    pub(crate) fn serves(&self, wider: SignatureIx, narrower: SignatureIx) -> bool {
        self.get(narrower).bits.is_subset(&self.get(wider).bits)
    }
}

/// Case-folded, sorted, without blanks and repeats.
pub(crate) fn fold(labels: &[String]) -> Vec<String> {
    let mut folded: Vec<String> = labels
        .iter()
        .map(|label| label.trim().to_lowercase())
        .filter(|label| !label.is_empty())
        .collect();
    folded.sort_unstable();
    folded.dedup();
    folded
}

/// Answered only by a GPU that a container really saw.
pub(crate) fn is_gpu(folded: &str) -> bool {
    matches!(folded, "cuda" | "gpu")
}

/// Labels a pool may not simply grant: the node has to prove them.
pub(crate) fn must_be_proven(folded: &str) -> bool {
    is_gpu(folded)
        || matches!(
            folded,
            "linux" | "windows" | "macos" | "x64" | "x86" | "arm64" | "arm" | "docker"
        )
        || folded.starts_with("emulated-")
        || folded.ends_with("-emulated")
}
