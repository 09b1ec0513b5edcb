//! Benchmarks: `longshore-bench [NAME...]` runs them and prints one JSON row a line.

mod core;
mod fairness;
mod row;

use row::Row;

/// A benchmark and the names of the rows it measures together.
struct Benchmark {
    rows: &'static [&'static str],
    run: fn() -> Vec<Row>,
}

const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        rows: &["core_decide_1k", "core_decide_10k", "core_decide_flatness"],
        run: core::measure,
    },
    Benchmark {
        rows: &["fair_jain", "fair_light_wait"],
        run: fairness::measure,
    },
];

fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for name in &wanted {
        let known = BENCHMARKS.iter().any(|bench| bench.rows.contains(&&**name));
        anyhow::ensure!(known, "no benchmark measures {name}");
    }
    for bench in BENCHMARKS {
        let chosen = wanted.is_empty()
            || bench
                .rows
                .iter()
                .any(|row| wanted.iter().any(|name| name == row));
        if chosen {
            for row in (bench.run)() {
                println!("{}", serde_json::to_string(&row)?);
            }
        }
    }
    Ok(())
}
