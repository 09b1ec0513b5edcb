//! Facts as bytes: protobuf, versioned, one to one with `scheduler_core::fact`.
//!
//! Unknown fields are skipped. An unknown fact or word is refused, naming the
//! release that wrote it: leaving it out would rebuild a different state.

mod fact;
mod value;

use longshore_proto::store::v1 as stored;
use prost::Message;
use scheduler_core::fact::Fact;

/// Grows when a fact or a word is added to `facts.proto`.
pub const FORMAT: u32 = 1;

/// Release of this writer.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "read fact {sequence}: release {written_by} wrote it in format {format} and this release reads up to {ours}; start release {written_by} or a newer one"
    )]
    Newer {
        sequence: u64,
        format: u32,
        ours: u32,
        written_by: String,
    },
    #[error("read fact {sequence}: {what}; restore the state folder from a backup")]
    Broken { sequence: u64, what: &'static str },
    #[error("read facts: not a batch of facts ({0}); restore the state folder from a backup")]
    Bytes(#[from] prost::DecodeError),
}

/// What a stored value lacks.
#[derive(Debug)]
struct Hole(&'static str);

fn need<T>(value: Option<T>, what: &'static str) -> Result<T, Hole> {
    value.ok_or(Hole(what))
}

/// Facts of one commit, the first with this sequence.
pub fn encode(first_sequence: u64, facts: &[Fact]) -> Vec<u8> {
    stored::FactBatch {
        format: FORMAT,
        written_by: RELEASE.to_owned(),
        first_sequence,
        facts: facts.iter().map(fact::encode).collect(),
    }
    .encode_to_vec()
}

/// The sequence of the first fact, and the facts.
pub fn decode(bytes: &[u8]) -> Result<(u64, Vec<Fact>), Error> {
    let batch = stored::FactBatch::decode(bytes)?;
    let mut facts = Vec::with_capacity(batch.facts.len());
    for (sequence, stored) in (batch.first_sequence..).zip(batch.facts) {
        facts.push(fact::decode(stored).map_err(|Hole(what)| {
            if batch.format > FORMAT {
                Error::Newer {
                    sequence,
                    format: batch.format,
                    ours: FORMAT,
                    written_by: batch.written_by.clone(),
                }
            } else {
                Error::Broken { sequence, what }
            }
        })?);
    }
    Ok((batch.first_sequence, facts))
}

/// GitHub's word for a conclusion, as rows and facts keep it.
pub(crate) fn conclusion_word(conclusion: &scheduler_core::model::Conclusion) -> String {
    value::conclusion(conclusion)
}
