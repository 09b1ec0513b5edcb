//! The table of results: one row per figure, kept in `target/bench/results.json`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::row::Row;

/// Folder of results and raw samples.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("LONGSHORE_BENCH_DIR")
        .map_or_else(|| PathBuf::from("target/bench"), PathBuf::from)
}

/// Keeps the raw samples of a figure beside the results.
pub(crate) fn keep_samples(name: &str, samples: &[f64]) -> Result<()> {
    let folder = folder().join("samples");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec(samples)?)
        .with_context(|| format!("write {}", path.display()))
}

/// Merges new rows into the results file and prints them all.
pub(crate) fn keep(rows: Vec<Row>) -> Result<()> {
    let path = folder().join("results.json");
    fs::create_dir_all(folder())?;
    let mut all: BTreeMap<String, Value> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice::<Vec<Value>>(&bytes)
            .with_context(|| format!("{} is not a list of results", path.display()))?
            .into_iter()
            .map(|row| (text(&row, "name"), row))
            .collect(),
        Err(_) => BTreeMap::new(),
    };
    for row in rows {
        all.insert(row.name.to_string(), serde_json::to_value(row)?);
    }
    let all: Vec<Value> = all.into_values().collect();
    fs::write(&path, serde_json::to_vec_pretty(&all)?)?;
    print(&all);
    Ok(())
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_default().to_string()
}

fn print(rows: &[Value]) {
    println!(
        "{:<34} {:>12} {:<6} {:>12} {:>8} {:>7}  reference",
        "figure", "value", "unit", "reference", "ratio", "n"
    );
    for row in rows {
        let number = |field: &str| row[field].as_f64().unwrap_or(f64::NAN);
        println!(
            "{:<34} {:>12.3} {:<6} {:>12.3} {:>8.3} {:>7}  {}; load {}",
            text(row, "name"),
            number("value"),
            text(row, "unit"),
            number("reference_value"),
            number("ratio"),
            row["n"],
            text(row, "reference"),
            row["load"]
        );
    }
}

/// The value below which `share` of the samples lie.
pub(crate) fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return f64::NAN;
    }
    let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1;
    sorted[index]
}
