//! Columns separated by two spaces, without lines around them.

use comfy_table::ContentArrangement;

use super::style;

pub(crate) struct Table {
    inner: comfy_table::Table,
}

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Table {
        let mut inner = comfy_table::Table::new();
        inner
            .load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(columns);
        for column in inner.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Table { inner }
    }

    /// Empty cells are shown as `-`, so that columns can be counted.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        let cells = cells.into_iter().map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                style::printable(&cell)
            }
        });
        self.inner.add_row(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    pub(crate) fn render(&self) -> String {
        let style = style::on_stdout();
        let mut text = String::new();
        for (i, line) in self.inner.lines().enumerate() {
            let line = line.trim_end();
            let line = if i == 0 {
                style.bold(line)
            } else {
                line.to_owned()
            };
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}
