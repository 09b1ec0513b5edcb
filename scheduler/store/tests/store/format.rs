//! The stored format: old readers with new bytes, new readers with old bytes.
//!
//! `tests/data` holds the bytes. `BLESS=1` writes them; after the first release
//! the files of that release stay as they are and only new ones are added.

use std::{fs, path::PathBuf, sync::Arc};

use scheduler_core::fact::Fact;
use scheduler_core::input::Defaults;
use scheduler_core::model::GpuNeeds;
use scheduler_store::format::{self, Error, FORMAT};

use super::samples::{every_fact, every_word};

fn data(name: &str, fresh: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, fresh()).expect("write sample bytes");
    }
    fs::read(&path).expect("checked-in bytes; BLESS=1 writes them")
}

/// A length-delimited protobuf field.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in [u64::from(number << 3 | 2), content.len() as u64] {
        let mut n = n;
        while n >= 0x80 {
            bytes.push((n as u8 & 0x7f) | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
    }
    bytes.extend_from_slice(content);
    bytes
}

/// A batch of format 9, written by release 9.9.0, first sequence 40.
fn newer_batch(facts: &[Vec<u8>]) -> Vec<u8> {
    let mut batch = vec![8, 9];
    batch.extend(field(2, b"9.9.0"));
    batch.extend([24, 40]);
    for fact in facts {
        batch.extend(field(4, fact));
    }
    // A field of the batch itself that we do not know.
    batch.extend(field(1_000, b"later"));
    batch
}

#[test]
fn every_fact_and_word_comes_back_as_it_was() {
    for facts in [every_fact(), every_word()] {
        let (first, back) = format::decode(&format::encode(17, &facts)).expect("decode");
        assert_eq!(first, 17);
        assert_eq!(back, facts);
    }
}

#[test]
fn a_new_reader_reads_the_bytes_of_format_1() {
    let bytes = data("facts-format-1.bin", || format::encode(5, &every_fact()));
    let (first, facts) = format::decode(&bytes).expect("decode");
    assert_eq!(first, 5);
    assert_eq!(facts, without_later_fields(every_fact()));
}

/// What was added after the bytes of format 1 were written reads as absent.
fn without_later_fields(mut facts: Vec<Fact>) -> Vec<Fact> {
    for fact in &mut facts {
        match fact {
            Fact::RunnerRetired {
                exit: Some(exit), ..
            } => exit.denied = None,
            Fact::RunnerPlaced(placed) => {
                let placed = Arc::make_mut(placed);
                Arc::make_mut(&mut placed.spec).runtime.clear();
            }
            Fact::PoolSet { pool, .. } => {
                pool.allowed_domains.clear();
                pool.runtime.clear();
                pool.gpu = GpuNeeds::default();
            }
            // Times that were no settings then read as what they were.
            Fact::DefaultsSet { defaults } => {
                let then = Defaults::default();
                defaults.ghost_age = then.ghost_age;
                defaults.ghost_confirmation = then.ghost_confirmation;
                defaults.after_completion = then.after_completion;
                defaults.stop_grace = then.stop_grace;
            }
            Fact::NodeJoined { capability, .. } | Fact::CapabilityChanged { capability, .. } => {
                for gpu in &mut capability.gpus {
                    gpu.parent = None;
                    gpu.withheld = None;
                }
            }
            _ => {}
        }
    }
    facts
}

#[test]
fn an_old_reader_skips_fields_it_does_not_know() {
    let bytes = data("facts-newer-fields.bin", || {
        // JobForgotten { job: 70 } and a field 99.
        let mut forgotten = vec![8, 70];
        forgotten.extend(field(99, b"a reason of a later release"));
        newer_batch(&[field(5, &forgotten)])
    });
    let (first, facts) = format::decode(&bytes).expect("decode");
    assert_eq!(first, 40);
    assert_eq!(
        facts,
        [Fact::JobForgotten {
            job: scheduler_core::model::JobId(70)
        }]
    );
}

#[test]
fn an_old_reader_refuses_a_fact_it_does_not_know_and_names_the_release() {
    let bytes = data("facts-newer-kind.bin", || {
        newer_batch(&[field(5, &[8, 70]), field(900, b"")])
    });
    let error = format::decode(&bytes).expect_err("unknown fact");
    assert_eq!(
        error,
        Error::Newer {
            sequence: 41,
            format: 9,
            ours: FORMAT,
            written_by: "9.9.0".into()
        }
    );
    assert!(error.to_string().contains("start release 9.9.0"));
}

#[test]
fn an_old_reader_refuses_a_word_it_does_not_know() {
    let bytes = data("facts-newer-word.bin", || {
        // JobPhaseChanged { job: 70, phase: 77 }
        newer_batch(&[field(3, &[8, 70, 16, 77])])
    });
    assert!(matches!(
        format::decode(&bytes),
        Err(Error::Newer { sequence: 40, .. })
    ));
}

#[test]
fn a_hole_in_bytes_of_our_own_format_is_damage_not_a_newer_release() {
    // JobPhaseChanged without a phase, in a batch of our format.
    let mut batch = vec![8, u8::try_from(FORMAT).expect("small")];
    batch.extend(field(4, &field(3, &[8, 70])));
    assert!(matches!(
        format::decode(&batch),
        Err(Error::Broken { sequence: 0, .. })
    ));
}

#[test]
fn cut_bytes_are_refused() {
    let whole = format::encode(1, &every_fact());
    for cut in [1, whole.len() / 2, whole.len() - 1] {
        assert!(
            format::decode(&whole[..cut]).is_err(),
            "cut at {cut} of {}",
            whole.len()
        );
    }
}
