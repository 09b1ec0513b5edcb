//! Tables found by hash and walked in order.
//!
//! A lookup costs one or two cache lines however many entries there are. The hash
//! is fixed and walking sorts, so the same inputs still give the same bytes.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    ops::Index,
};

/// Entries of a table before its first growth, a power of two.
const SMALLEST: usize = 8;

/// Folded multiplication, eight bytes at a time.
#[derive(Default)]
struct Mix(u64);

impl Mix {
    fn add(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd1b5_4a32_d192_ed03;
        self.0 = wide as u64 ^ (wide >> 64) as u64;
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        let (chunks, rest) = bytes.as_chunks::<8>();
        for chunk in chunks {
            self.add(u64::from_le_bytes(*chunk));
        }
        if !rest.is_empty() {
            let word = match bytes.last_chunk::<8>() {
                Some(last) => u64::from_le_bytes(*last),
                None => rest
                    .iter()
                    .fold(0, |word, byte| (word << 8) | u64::from(*byte)),
            };
            self.add(word ^ ((rest.len() as u64) << 56));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.add(value as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = Self(self.0);
        last.add(0xff51_afd7_ed55_8ccd);
        last.0
    }
}

fn hash_of<Q: Hash + ?Sized>(key: &Q) -> u32 {
    let mut mix = Mix::default();
    key.hash(&mut mix);
    (mix.finish() >> 32) as u32
}

/// Where an entry stands; stays the same until it is removed, then is used again.
pub(crate) type Slot = u32;

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    hash: u32,
    /// Slot and one; 0 is empty.
    slot: u32,
}

/// A map from `K` to `V` whose entries also have a number.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V> {
    /// Open addressing with linear probing; a power of two, at most half full.
    marks: Vec<Mark>,
    entries: Vec<Option<(K, V)>>,
    free: Vec<Slot>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            marks: Vec::new(),
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<K: Hash + Eq + Ord, V> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn slot<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<Slot>
    where
        K: Borrow<Q>,
    {
        self.mark(key).map(|at| self.marks[at].slot - 1)
    }

    fn mark<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        if self.is_empty() {
            return None;
        }
        let hash = hash_of(key);
        let mask = self.marks.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let mark = self.marks[at];
            if mark.slot == 0 {
                return None;
            }
            if mark.hash == hash
                && let Some((known, _)) = &self.entries[mark.slot as usize - 1]
                && known.borrow() == key
            {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    pub(crate) fn at(&self, slot: Slot) -> Option<(&K, &V)> {
        self.entries
            .get(slot as usize)?
            .as_ref()
            .map(|(key, value)| (key, value))
    }

    pub(crate) fn at_mut(&mut self, slot: Slot) -> Option<&mut V> {
        self.entries
            .get_mut(slot as usize)?
            .as_mut()
            .map(|(_, value)| value)
    }

    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let slot = self.slot(key)?;
        self.at(slot).map(|(_, value)| value)
    }

    pub(crate) fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let slot = self.slot(key)?;
        self.at_mut(slot)
    }

    pub(crate) fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.mark(key).is_some()
    }

    /// The value it replaces, if the key was known.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(known) = self.get_mut(&key) {
            return Some(std::mem::replace(known, value));
        }
        self.add(key, value);
        None
    }

    /// Of a key that is not known, whose slot it returns.
    pub(crate) fn add(&mut self, key: K, value: V) -> Slot {
        debug_assert!(!self.contains_key(&key), "the key is new");
        if (self.len() + 1) * 2 > self.marks.len() {
            self.grow();
        }
        let hash = hash_of(&key);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = Some((key, value));
                slot
            }
            None => {
                self.entries.push(Some((key, value)));
                self.entries.len() as Slot - 1
            }
        };
        self.put(Mark {
            hash,
            slot: slot + 1,
        });
        slot
    }

    fn put(&mut self, mark: Mark) {
        let mask = self.marks.len() - 1;
        let mut at = mark.hash as usize & mask;
        while self.marks[at].slot != 0 {
            at = (at + 1) & mask;
        }
        self.marks[at] = mark;
    }

    fn grow(&mut self) {
        let size = (self.marks.len() * 2).max(SMALLEST);
        for mark in std::mem::replace(&mut self.marks, vec![Mark::default(); size]) {
            if mark.slot != 0 {
                self.put(mark);
            }
        }
    }

    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let mut hole = self.mark(key)?;
        let slot = self.marks[hole].slot - 1;
        // Whoever was pushed past the hole moves back, so that no probe stops short.
        let mask = self.marks.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let mark = self.marks[at];
            if mark.slot == 0 {
                break;
            }
            let home = mark.hash as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.marks[hole] = mark;
                hole = at;
            }
        }
        self.marks[hole] = Mark::default();
        self.free.push(slot);
        self.entries[slot as usize].take().map(|(_, value)| value)
    }

    /// Ordered by key. Not for the hot path: it sorts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut all: Vec<(&K, &V)> = self.unordered().collect();
        all.sort_unstable_by(|a, b| a.0.cmp(b.0));
        all.into_iter()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Ordered by key. Not for the hot path: it sorts.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let mut all: Vec<(&K, &mut V)> = self
            .entries
            .iter_mut()
            .flatten()
            .map(|(key, value)| (&*key, value))
            .collect();
        all.sort_unstable_by(|a, b| a.0.cmp(b.0));
        all.into_iter().map(|(_, value)| value)
    }

    /// By slot: for sums and counts that no order changes.
    pub(crate) fn unordered(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries
            .iter()
            .flatten()
            .map(|(key, value)| (key, value))
    }
}

impl<K: Hash + Eq + Ord + Borrow<Q>, Q: Hash + Eq + ?Sized, V> Index<&Q> for Table<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the entry was seen before")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::Table;

    proptest! {
        #[test]
        fn it_agrees_with_an_ordered_map_whatever_comes_and_goes(
            ops in prop::collection::vec((any::<bool>(), 0..64_u32, any::<u16>()), 0..400),
        ) {
            let mut table: Table<String, u16> = Table::default();
            let mut model: BTreeMap<String, u16> = BTreeMap::new();
            for (put, key, value) in ops {
                let key = format!("key-{key}");
                if put {
                    prop_assert_eq!(table.insert(key.clone(), value), model.insert(key, value));
                } else {
                    prop_assert_eq!(table.remove(key.as_str()), model.remove(&key));
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert!(table.iter().eq(model.iter()));
                for (key, value) in &model {
                    let slot = table.slot(key).expect("known");
                    prop_assert_eq!(table.at(slot), Some((key, value)));
                }
            }
        }
    }

    #[test]
    fn a_slot_stays_while_others_come_and_go() {
        let mut table = Table::default();
        table.insert("kept".to_owned(), 1);
        let slot = table.slot("kept");
        for at in 0..100 {
            table.insert(format!("other-{at}"), 2);
        }
        for at in 0..100 {
            table.remove(format!("other-{at}").as_str());
        }
        assert_eq!(table.slot("kept"), slot);
        assert_eq!(table.get("gone"), None);
    }
}
