//! Tables of markdown.

use std::fmt::Write as _;

/// A table with names in its first column and figures in the others.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With this head.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    /// One more row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// At the end of a document.
    pub fn write(&self, out: &mut String) {
        out.push('\n');
        for (n, row) in self.rows.iter().enumerate() {
            let cells: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
            if n == 0 {
                let _ = writeln!(out, "|---|{}", "--:|".repeat(row.len() - 1));
            }
        }
        out.push('\n');
    }
}

/// A whole number with commas: 16,777,216.
pub fn commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_markdown() {
        let mut table = Table::new(["case", "ns"]);
        table.row(["a|b".into(), "44".into()]);
        let mut out = String::new();
        table.write(&mut out);
        assert_eq!(out, "\n| case | ns |\n|---|--:|\n| a\\|b | 44 |\n\n");
    }

    #[test]
    fn thousands_are_set_apart() {
        let texts = [0, 999, 1_000, 65_537, 16_777_216].map(commas);
        assert_eq!(texts, ["0", "999", "1,000", "65,537", "16,777,216"]);
    }
}
