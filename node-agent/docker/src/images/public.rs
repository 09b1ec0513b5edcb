//! Images that a job names itself, for a container beside it: its own, what anybody may pull,
//! and what the operator lists. The rest of what is on the node is its owner's.

use std::time::{Duration, Instant};

use agent_core::containers::Listed;
use agent_core::runtime::RuntimeError;
use bollard::Docker;

use super::{Images, Key, Known, fetch, inspect, unavailable};

/// A registry that gave an image without credentials is not asked again for so long.
const PUBLIC_FOR: Duration = Duration::from_secs(3_600);
/// Most images that are known to be public.
const MOST: usize = 256;

/// Found to be anybody's.
#[derive(Clone, Debug)]
pub(crate) struct Public {
    id: String,
    at: Instant,
}

impl Images {
    /// The id of the image that a job means, when it may have it. `own` is the id of the one
    /// that it is in already.
    pub(crate) async fn for_a_job(
        &self,
        docker: &Docker,
        reference: &str,
        platform: &str,
        pull: bool,
        (own, listed): (&str, &Listed),
    ) -> Result<String, RuntimeError> {
        if listed.has(reference) {
            return self.ensure(docker, reference, platform, pull).await;
        }
        let key = (reference.to_owned(), platform.to_owned());
        let gate = self.gate(reference);
        let _one = gate.lock().await;
        if let Some(known) = self.known_public(&key)
            && inspect(docker, &known).await?.is_some()
        {
            return Ok(known);
        }
        if let Some(Known::Broken { why, until, .. }) = self.get(&key)
            && Instant::now() < until
        {
            let wait = until.saturating_duration_since(Instant::now()).as_secs();
            return Err(unavailable(format!("{why}; tried again in {wait} s")));
        }
        let local = inspect(docker, reference).await?;
        if local.as_ref().is_some_and(|here| here.id == own) {
            return Ok(own.to_owned());
        }
        if local
            .as_ref()
            .is_some_and(|here| is_id(reference, &here.id))
        {
            return Err(unavailable(format!(
                "{reference} is an image's id; a job names images by their names"
            )));
        }
        let only_here = if local.is_some() {
            "; that it is on this node gives it to no job, unless container_images of the node's agent lists it"
        } else {
            ""
        };
        if !pull {
            return Err(unavailable(format!(
                "image {reference} cannot be had: pulling is off on this node{only_here}"
            )));
        }
        match fetch(docker, reference, platform, local.is_some()).await {
            Ok((id, _)) => {
                self.note_public(key, &id);
                Ok(id)
            }
            Err(why) => {
                let why = format!("{why}{only_here}");
                self.trip(&key, &why);
                Err(unavailable(why))
            }
        }
    }

    fn known_public(&self, key: &Key) -> Option<String> {
        let public = crate::runtime::lock(&self.public);
        let known = public
            .get(key)
            .filter(|known| known.at.elapsed() < PUBLIC_FOR);
        known.map(|known| known.id.clone())
    }

    fn note_public(&self, key: Key, id: &str) {
        let mut public = crate::runtime::lock(&self.public);
        public.retain(|_, known| known.at.elapsed() < PUBLIC_FOR);
        if public.len() >= MOST {
            public.pop_first();
        }
        let known = Public {
            id: id.to_owned(),
            at: Instant::now(),
        };
        public.insert(key, known);
    }
}

/// Whether a name is no name: the engine takes the beginning of an id for one.
fn is_id(reference: &str, id: &str) -> bool {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    id == reference || digits.starts_with(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_no_name() {
        let id = "sha256:cafe0123456789";
        for (reference, is) in [
            ("cafe", true),
            ("sha256:cafe0123456789", true),
            ("cafe0123456789", true),
            ("cafe:1", false),
            ("company/cafe", false),
        ] {
            assert_eq!(is_id(reference, id), is, "{reference}");
        }
    }

    #[test]
    fn what_is_known_to_be_public_is_bounded() {
        let images = Images::default();
        for n in 0..1_000 {
            images.note_public((format!("i{n}"), String::new()), "sha256:x");
        }
        assert_eq!(crate::runtime::lock(&images.public).len(), MOST);
        assert_eq!(
            images
                .known_public(&("i999".into(), String::new()))
                .as_deref(),
            Some("sha256:x")
        );
        assert_eq!(images.known_public(&("other".into(), String::new())), None);
    }
}
