//! Results on stdout: tables for people, JSON for programs.

pub(crate) mod style;
mod table;

use std::collections::BTreeMap;
use std::io::{BufWriter, IsTerminal, Stdout, Write};

use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;

use crate::exit::Failure;
use crate::shapes::join_token::Fresh;
pub(crate) use table::Table;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For people, with more columns
    Wide,
    /// One JSON value
    Json,
    /// One JSON object a line
    Jsonl,
    /// Names only, one a line
    Name,
}

/// What can be listed: columns for people, serde for programs.
pub(crate) trait Listed: Serialize {
    const COLUMNS: &'static [&'static str];
    /// Columns that `-o wide` adds.
    const WIDE: &'static [&'static str] = &[];
    fn cells(&self, now: Timestamp) -> Vec<String>;
    fn wide_cells(&self, _now: Timestamp) -> Vec<String> {
        Vec::new()
    }
    fn name(&self) -> String;
}

/// What can be shown alone: lines of `key  value` for people.
pub(crate) trait Described: Serialize {
    fn describe(&self, page: &mut Page, now: Timestamp);
    fn name(&self) -> String;
}

/// Stdout in the chosen format.
pub(crate) struct Out {
    format: Format,
    writer: BufWriter<Stdout>,
    now: Timestamp,
}

impl Out {
    pub(crate) fn new(format: Option<Format>) -> Out {
        Out {
            format: format.unwrap_or(Format::Table),
            writer: BufWriter::new(std::io::stdout()),
            now: Timestamp::now(),
        }
    }

    /// For the three commands whose predecessors printed JSON: tables on a
    /// terminal, JSON into a pipe, unless `-o` says otherwise.
    pub(crate) fn json_when_piped(format: Option<Format>) -> Out {
        let piped = !std::io::stdout().is_terminal();
        Out::new(format.or(piped.then_some(Format::Json)))
    }

    /// Whether a person reads this.
    pub(crate) fn for_people(&self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    pub(crate) fn list<T: Listed>(&mut self, items: &[T]) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(&items)?,
            Format::Jsonl => {
                for item in items {
                    self.json_line(item)?;
                }
            }
            Format::Name => {
                for item in items {
                    writeln!(self.writer, "{}", style::printable(&item.name()))?;
                }
            }
            Format::Table | Format::Wide => {
                let wide = self.format == Format::Wide;
                let mut columns = T::COLUMNS.to_vec();
                if wide {
                    columns.extend(T::WIDE);
                }
                let mut table = Table::new(&columns);
                for item in items {
                    let mut cells = item.cells(self.now);
                    if wide {
                        cells.extend(item.wide_cells(self.now));
                    }
                    table.row(cells);
                }
                self.writer.write_all(table.render().as_bytes())?;
            }
        }
        self.flush()
    }

    pub(crate) fn object<T: Described>(&mut self, item: &T) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(item)?,
            Format::Jsonl => self.json_line(item)?,
            Format::Name => writeln!(self.writer, "{}", style::printable(&item.name()))?,
            Format::Table | Format::Wide => {
                let mut page = Page::default();
                item.describe(&mut page, self.now);
                self.writer.write_all(page.render().as_bytes())?;
            }
        }
        self.flush()
    }

    /// One object of a stream, on a line of its own.
    pub(crate) fn line<T: Serialize>(&mut self, item: &T) -> Result<(), Failure> {
        self.json_line(item)?;
        self.flush()
    }

    /// What is shown once: alone on its line, so that it can be piped on, or in JSON.
    pub(crate) fn secret(&mut self, fresh: &Fresh) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(fresh)?,
            Format::Jsonl => self.json_line(fresh)?,
            Format::Table | Format::Wide | Format::Name => {
                writeln!(self.writer, "{}", style::printable(&fresh.token))?;
            }
        }
        self.flush()
    }

    /// A line for people; nothing in the other formats.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), Failure> {
        if self.for_people() {
            writeln!(self.writer, "{}", style::printable(line))?;
        }
        self.flush()
    }

    fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
        writeln!(self.writer, "{text}")?;
        Ok(())
    }

    fn json_line<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(std::io::Error::from)?;
        writeln!(self.writer, "{text}")?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.writer.flush()?)
    }
}

/// Lines of `key  value`, and tables under headings.
#[derive(Default)]
pub(crate) struct Page {
    keys: Vec<(String, String)>,
    rest: String,
}

impl Page {
    /// A line; left out when the value is empty.
    pub(crate) fn line(&mut self, key: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.keys.push((key.to_owned(), style::printable(&value)));
        }
    }

    /// A table below the lines; left out when it has no rows.
    pub(crate) fn table(&mut self, heading: &str, table: Table) {
        if !table.is_empty() {
            self.rest.push_str(&format!("\n{heading}\n"));
            for line in table.render().lines() {
                self.rest.push_str(&format!("  {line}\n"));
            }
        }
    }

    /// A sentence below the lines.
    pub(crate) fn sentence(&mut self, text: &str) {
        self.rest.push_str(&style::printable(text));
        self.rest.push('\n');
    }

    fn render(&self) -> String {
        let width = self.keys.iter().map(|(k, _)| k.chars().count()).max();
        let width = width.unwrap_or(0);
        let mut text = String::new();
        for (key, value) in &self.keys {
            text.push_str(&format!("{key:width$}  {value}\n"));
        }
        text.push_str(&self.rest);
        text
    }
}

/// `12 filtered: ...`, one line for each missing label.
pub(crate) fn filtered_lines(filtered: &BTreeMap<String, u32>) -> Vec<String> {
    filtered
        .iter()
        .map(|(label, count)| format!("{count} filtered: no node can run {label}"))
        .collect()
}
