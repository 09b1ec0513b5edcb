//! Which image each name means on this node, kept over a restart, and which images came
//! here by our own pulls: those alone are ever removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

/// A name that nobody asked for in this time means nothing any more.
const FORGOTTEN_MS: u64 = 7 * 24 * 3_600_000;
/// The time of use is not worth a write more often.
const NOTED_MS: u64 = 3_600_000;
const MAX: usize = 256;

/// What one name means on one platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meant {
    pub(crate) image: String,
    pub(crate) platform: String,
    pub(crate) id: String,
    /// What the engine had under that name at the time. Another one there since is
    /// somebody's decision, and holds.
    pub(crate) local: Option<String>,
    pub(crate) used_ms: u64,
}

/// An image that some name meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// It was not on the node before our pull.
    pub(crate) ours: bool,
    /// Names that our pulls gave it.
    pub(crate) names: Vec<String>,
    /// Since when no name means it.
    pub(crate) left_ms: Option<u64>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(skip)]
    path: Option<PathBuf>,
    meant: Vec<Meant>,
    images: BTreeMap<String, Kept>,
}

impl Record {
    pub(crate) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("images.json");
        // Without it nothing is ours: images stay, and names mean what the engine says.
        let read: Self = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            path: Some(path),
            ..read
        }
    }

    pub(crate) fn get(&self, image: &str, platform: &str) -> Option<&Meant> {
        self.meant
            .iter()
            .find(|meant| meant.image == image && meant.platform == platform)
    }

    pub(crate) fn all(&self) -> Vec<Meant> {
        self.meant.clone()
    }

    /// From now on the name means this image.
    pub(crate) fn settle(&mut self, mut meant: Meant, brought: Option<&str>) {
        let at = self
            .meant
            .iter()
            .position(|known| known.image == meant.image && known.platform == meant.platform);
        let old = at.map(|at| self.meant.swap_remove(at));
        if let Some(old) = &old
            && old.id == meant.id
            && old.local == meant.local
            && brought.is_none()
            && meant.used_ms.saturating_sub(old.used_ms) < NOTED_MS
        {
            self.meant.push(old.clone());
            return;
        }
        meant.used_ms = meant.used_ms.max(old.map_or(0, |old| old.used_ms));
        if self.meant.len() >= MAX {
            let oldest = (0..self.meant.len()).min_by_key(|at| self.meant[*at].used_ms);
            oldest.map(|at| self.meant.swap_remove(at));
        }
        let (id, now_ms) = (meant.id.clone(), meant.used_ms);
        self.meant.push(meant);
        let kept = self.images.entry(id).or_default();
        if let Some(name) = brought {
            kept.ours = true;
            kept.names.push(name.to_owned());
        }
        self.leave(now_ms);
        self.write();
    }

    /// Notes which images no name means any more.
    fn leave(&mut self, now_ms: u64) {
        self.meant
            .retain(|meant| now_ms.saturating_sub(meant.used_ms) < FORGOTTEN_MS);
        for (id, kept) in &mut self.images {
            let needed = self.meant.iter().any(|meant| meant.id == *id);
            kept.left_ms = (!needed).then(|| kept.left_ms.unwrap_or(now_ms));
        }
        while self.images.len() > 2 * MAX {
            // Never one that is ours while there is another.
            let one = self.images.iter().min_by_key(|(_, kept)| kept.ours);
            let Some(id) = one.map(|(id, _)| id.clone()) else {
                return;
            };
            self.images.remove(&id);
        }
    }

    /// Images that no name has meant for so long.
    pub(crate) fn left(&mut self, now_ms: u64, keep_ms: u64) -> Vec<(String, Kept)> {
        self.leave(now_ms);
        self.images
            .iter()
            .filter(|(_, kept)| {
                kept.left_ms
                    .is_some_and(|since| now_ms.saturating_sub(since) >= keep_ms)
            })
            .map(|(id, kept)| (id.clone(), kept.clone()))
            .collect()
    }

    /// It is gone, or somebody else's now.
    pub(crate) fn forget(&mut self, id: &str) {
        self.images.remove(id);
        self.write();
    }

    fn write(&self) {
        let (Some(path), Ok(text)) = (&self.path, serde_json::to_vec(self)) else {
            return;
        };
        let temporary = path.with_extension("new");
        let written =
            std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
        if let Err(error) = written {
            // Then images stay that could go, and a name may mean an older one again.
            warn!(path = %path.display(), %error, "cannot record the images");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(id: &str, at: u64) -> Meant {
        Meant {
            image: "r/i:1".into(),
            platform: "linux/amd64".into(),
            id: id.into(),
            local: Some(id.into()),
            used_ms: at,
        }
    }

    #[test]
    fn only_what_is_superseded_or_forgotten_is_left_and_after_a_while() {
        let mut record = Record::default();
        record.settle(meant("a", 1_000), Some("r/i:1"));
        assert!(record.left(1_000, 0).is_empty());
        record.settle(meant("b", 2_000), None);
        assert!(record.left(2_999, 1_000).is_empty());
        let left = record.left(3_000, 1_000);
        assert_eq!(left.len(), 1);
        assert!(left[0].0 == "a" && left[0].1.ours);
        // Meant again, it is needed again.
        record.settle(meant("a", 4_000), None);
        let left: Vec<_> = record
            .left(4_000, 0)
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        assert_eq!(left, ["b"]);
        let later = 4_000 + FORGOTTEN_MS;
        assert_eq!(record.left(later, 0).len(), 2);
        assert_eq!(record.get("r/i:1", "linux/amd64"), None);
    }

    #[test]
    fn what_the_owner_put_there_is_never_ours() {
        let mut record = Record::default();
        record.settle(meant("a", 1), None);
        record.settle(meant("b", 2), Some("r/i@sha256:b"));
        record.settle(meant("c", 3), None);
        let ours: Vec<_> = record
            .left(3, 0)
            .into_iter()
            .map(|(id, k)| (id, k.ours))
            .collect();
        assert_eq!(ours, [("a".to_owned(), false), ("b".to_owned(), true)]);
    }

    #[test]
    fn it_is_the_same_after_a_restart_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::open(dir.path());
        for n in 0..600u64 {
            let one = Meant {
                image: format!("r/i:{n}"),
                ..meant(&format!("sha256:{n}"), n)
            };
            record.settle(one, Some("x"));
        }
        assert!(record.meant.len() <= MAX && record.images.len() <= 2 * MAX);
        assert_eq!(Record::open(dir.path()), record);
    }

    #[test]
    fn a_look_is_not_a_write() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::open(dir.path());
        record.settle(meant("a", 1), None);
        std::fs::remove_file(dir.path().join("images.json")).unwrap();
        record.settle(meant("a", NOTED_MS), None);
        assert!(!dir.path().join("images.json").exists());
        record.settle(meant("a", NOTED_MS + 1), None);
        assert!(dir.path().join("images.json").exists());
    }
}
