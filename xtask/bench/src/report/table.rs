//! A table that omits its empty columns.

use super::text::{clean, markdown};

/// The title of a column, and the side at which its text is aligned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    title: &'static str,
    right: bool,
}

impl Column {
    /// A column of text.
    pub(crate) const fn left(title: &'static str) -> Self {
        Self { title, right: false }
    }

    /// A column of numbers.
    pub(crate) const fn right(title: &'static str) -> Self {
        Self { title, right: true }
    }
}

/// The contents of a cell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    strong: bool,
}

impl Cell {
    /// A highlighted cell.
    pub(crate) fn strong(text: &str) -> Self {
        Self { text: text.to_owned(), strong: true }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, strong: false }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// A table of `N` columns.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(columns: [Column; N]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: [Cell; N]) {
        self.rows.push(row);
    }

    /// The indices of the columns that are not empty.
    fn used(&self) -> Vec<usize> {
        (0..N).filter(|at| self.rows.iter().any(|row| !row[*at].text.is_empty())).collect()
    }

    /// The table for a terminal, with columns of equal width; empty without rows.
    pub(crate) fn terminal(&self) -> String {
        let used = self.used();
        let titles = used.iter().map(|at| self.columns[*at].title.to_owned()).collect();
        let rows =
            self.rows.iter().map(|row| used.iter().map(|at| clean(&row[*at].text)).collect());
        let lines: Vec<Vec<String>> = if used.is_empty() {
            Vec::new()
        } else {
            std::iter::once(titles).chain(rows).collect()
        };
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max();
        let widths: Vec<usize> = (0..used.len()).filter_map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells = line.iter().zip(&widths).zip(&used).map(|((cell, width), at)| {
                if self.columns[*at].right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    /// The table in Markdown; empty without rows.
    pub(crate) fn markdown(&self) -> String {
        let used = self.used();
        if used.is_empty() {
            return String::new();
        }
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let rule = |at: &usize| if self.columns[*at].right { "---:" } else { "---" }.to_owned();
        let mut text = line(used.iter().map(|at| markdown(self.columns[*at].title)).collect());
        text += &line(used.iter().map(rule).collect());
        for row in &self.rows {
            let cell = |at: &usize| match (markdown(&row[*at].text), row[*at].strong) {
                (text, true) => format!("**{text}**"),
                (text, false) => text,
            };
            text += &line(used.iter().map(cell).collect());
        }
        text
    }
}
