//! An ordered set that is small nearly always: a sorted array, and a tree beyond.
//!
//! Most queues and lists of a fleet have one to a dozen members, and there are many
//! of them: an array costs one or two cache lines where a tree costs a node of eleven.

use std::collections::{BTreeSet, VecDeque};

/// The most an array holds: what moves at an insertion stays about a kilobyte.
const FEW: usize = 64;

#[derive(Clone, Debug)]
pub(crate) enum Ordered<T> {
    /// Open at both ends: the oldest leave where the newest do not come.
    Few(VecDeque<T>),
    Many(BTreeSet<T>),
}

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self::Few(VecDeque::new())
    }
}

impl<T: Ord + Copy> Ordered<T> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn first(&self) -> Option<T> {
        match self {
            Self::Few(few) => few.front().copied(),
            Self::Many(many) => many.first().copied(),
        }
    }

    pub(crate) fn second(&self) -> Option<T> {
        match self {
            Self::Few(few) => few.get(1).copied(),
            Self::Many(many) => many.iter().nth(1).copied(),
        }
    }

    pub(crate) fn last(&self) -> Option<T> {
        match self {
            Self::Few(few) => few.back().copied(),
            Self::Many(many) => many.last().copied(),
        }
    }

    /// The first that is not before `from`.
    pub(crate) fn at_or_after(&self, from: T) -> Option<T> {
        match self {
            Self::Few(few) => few.get(few.partition_point(|known| *known < from)).copied(),
            Self::Many(many) => many.range(from..).next().copied(),
        }
    }

    pub(crate) fn contains(&self, value: T) -> bool {
        match self {
            Self::Few(few) => few.binary_search(&value).is_ok(),
            Self::Many(many) => many.contains(&value),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        let (few, many) = match self {
            Self::Few(few) => (Some(few), None),
            Self::Many(many) => (None, Some(many)),
        };
        let few = few.into_iter().flatten();
        few.chain(many.into_iter().flatten()).copied()
    }

    /// False when it was known.
    pub(crate) fn insert(&mut self, value: T) -> bool {
        match self {
            Self::Few(few) => {
                // Whoever comes, comes last as a rule: time and ids grow.
                if few.back().is_none_or(|last| *last < value) {
                    few.push_back(value);
                } else {
                    match few.binary_search(&value) {
                        Ok(_) => return false,
                        Err(at) => few.insert(at, value),
                    }
                }
                if few.len() > FEW {
                    *self = Self::Many(few.iter().copied().collect());
                }
                true
            }
            Self::Many(many) => many.insert(value),
        }
    }

    /// False when it was not there.
    pub(crate) fn remove(&mut self, value: T) -> bool {
        match self {
            Self::Few(few) => match few.binary_search(&value) {
                Ok(at) => {
                    few.remove(at);
                    true
                }
                Err(_) => false,
            },
            Self::Many(many) => {
                let known = many.remove(&value);
                if many.len() < FEW / 2 {
                    *self = Self::Few(many.iter().copied().collect());
                }
                known
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Ordered;

    proptest! {
        #[test]
        fn it_agrees_with_a_tree_whatever_comes_and_goes(
            ops in prop::collection::vec((0..5_u8, 0..200_u32), 0..600),
        ) {
            let mut set = Ordered::default();
            let mut model = BTreeSet::new();
            for (op, value) in ops {
                if op > 1 {
                    prop_assert_eq!(set.insert(value), model.insert(value));
                } else {
                    prop_assert_eq!(set.remove(value), model.remove(&value));
                }
                prop_assert_eq!(set.len(), model.len());
                prop_assert_eq!(set.is_empty(), model.is_empty());
                prop_assert_eq!(set.first(), model.first().copied());
                prop_assert_eq!(set.second(), model.iter().nth(1).copied());
                prop_assert_eq!(set.last(), model.last().copied());
                prop_assert_eq!(set.contains(value), model.contains(&value));
                prop_assert_eq!(set.at_or_after(value), model.range(value..).next().copied());
                prop_assert!(set.iter().eq(model.iter().copied()));
            }
        }
    }
}
