//! Edits of a text by offsets, which keep its lines, its indentation and its line ends.

use std::ops::Range;

use anyhow::{Result, ensure};

/// Edits of one text, made all at once.
pub(super) struct Edits<'t> {
    text: &'t str,
    eol: &'static str,
    /// Replaced ranges and their replacements; edits of one place in their order.
    edits: Vec<(Range<usize>, String)>,
}

impl<'t> Edits<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let first = text.find('\n').unwrap_or(0);
        let eol = if text[..first].ends_with('\r') { "\r\n" } else { "\n" };
        Self { text, eol, edits: Vec::new() }
    }

    /// The text with the edits made. A range that is cut twice is cut once.
    pub(super) fn apply(mut self) -> Result<String> {
        self.edits.sort_by_key(|(range, _)| range.start);
        let mut out = String::with_capacity(self.text.len());
        let mut at = 0;
        for (range, new) in self.edits {
            ensure!(range.start >= at || new.is_empty(), "changes of the file overlap");
            let start = range.start.max(at);
            out += &self.text[at..start];
            out += &new;
            at = range.end.max(start);
        }
        out += &self.text[at..];
        Ok(out)
    }

    pub(super) fn replace(&mut self, range: Range<usize>, new: String) {
        self.edits.push((range, new));
    }

    pub(super) fn insert(&mut self, at: usize, new: String) {
        self.edits.push((at..at, new));
    }

    fn cut(&mut self, range: Range<usize>) {
        self.edits.push((range, String::new()));
    }

    /// Inserts lines behind the line of an offset.
    pub(super) fn insert_lines(&mut self, behind: usize, lines: &[String]) {
        let at = self.line_end(behind);
        let ends = self.text[..at].ends_with('\n') || at == 0;
        let lines = lines.join(self.eol);
        self.insert(at, if ends { lines + self.eol } else { format!("{}{lines}", self.eol) });
    }

    /// Inserts lines behind a section that ends at an offset, and the comments that belong to it.
    pub(super) fn insert_lines_behind_section(&mut self, last: usize, lines: &[String]) {
        let end = self.section_end(last);
        // `insert_lines` looks for the end of a line, from inside of it.
        self.insert_lines(if self.text[..end].ends_with('\n') { end - 1 } else { end }, lines);
    }

    /// Inserts an entry into an inline table that has none.
    pub(super) fn insert_first(&mut self, at: usize, entry: &str) {
        match self.edits.iter_mut().find(|(range, _)| range.start == at) {
            Some((_, first)) => first.insert_str(first.len() - 1, &format!(", {entry}")),
            None => self.insert(at, format!(" {entry} ")),
        }
    }

    /// The white space that the line of an offset begins with.
    pub(super) fn indent(&self, at: usize) -> &'t str {
        let line = &self.text[self.line_start(at)..];
        &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
    }

    /// Whether the line before that of an offset is empty.
    pub(super) fn is_below_blank(&self, at: usize) -> bool {
        self.is_blank_before(self.line_start(at))
    }

    /// The end of a section's last line, with the comments that belong to it.
    pub(super) fn section_end(&self, last: usize) -> usize {
        let end = self.line_end(last);
        let mut below = end;
        while self.is_comment(below) {
            below = self.line_end(below);
        }
        // A comment that runs into the next header belongs to that.
        if below >= self.text.len() || self.is_blank(below) { below } else { end }
    }

    /// Cuts whole lines.
    pub(super) fn cut_lines(&mut self, range: Range<usize>) {
        self.cut(self.line_start(range.start)..self.line_end(range.end));
    }

    /// Cuts a section with the comments that belong to it, and the empty lines that would pile up.
    pub(super) fn cut_section(&mut self, range: Range<usize>) {
        let mut end = self.section_end(range.end);
        let own = self.line_start(range.start);
        let mut start = own;
        while start > 0 && self.is_comment(self.line_start(start - 1)) {
            start = self.line_start(start - 1);
        }
        // A comment right after a value may belong to that.
        if start > 0 && !self.is_blank_before(start) {
            start = own;
        }
        while end < self.text.len()
            && self.is_blank(end)
            && (start == 0 || self.is_blank_before(start))
        {
            end = self.line_end(end);
        }
        while end >= self.text.len() && self.is_blank_before(start) {
            start = self.line_start(start - 1);
        }
        self.cut(start..end);
    }

    /// Cuts elements that have commas between them: an array or an inline table.
    pub(super) fn cut_elements(&mut self, around: Range<usize>, elements: &[(Range<usize>, bool)]) {
        let out: Vec<usize> = (0..elements.len()).filter(|index| elements[*index].1).collect();
        let inner = around.start + 1..around.end.saturating_sub(1);
        if out.iter().all(|index| self.has_own_line(&elements[*index].0, &inner)) {
            for index in out {
                let range = &elements[index].0;
                let mut start = self.line_start(range.start);
                while start > inner.start && self.is_comment(self.line_start(start - 1)) {
                    start = self.line_start(start - 1);
                }
                self.cut(start.max(inner.start)..self.line_end(range.end));
            }
            return;
        }
        if out.len() == elements.len() {
            self.cut(inner);
            return;
        }
        for index in out {
            let range = &elements[index].0;
            let next = elements.get(index + 1);
            match (next, index.checked_sub(1).map(|before| &elements[before])) {
                (Some((next, _)), _) => self.cut(range.start..next.start),
                (None, Some(_)) => {
                    // The last one goes with the comma before it, and before those that go as well.
                    let kept = elements[..index].iter().rfind(|(_, out)| !out);
                    let from = kept.map_or(inner.start, |(kept, _)| kept.end);
                    self.cut(from..range.end);
                }
                (None, None) => self.cut(range.clone()),
            }
        }
    }

    /// Adds elements to an array.
    pub(super) fn push_elements(
        &mut self,
        around: Range<usize>,
        last: Option<Range<usize>>,
        new: &[String],
    ) {
        let Some(last) = last else {
            self.insert(around.start + 1, new.join(", "));
            return;
        };
        let comma = self.comma_behind(last.end, around.end);
        let line_end = self.line_end(comma.unwrap_or(last.end));
        let own_line = self.text[self.line_start(last.start)..last.start].trim().is_empty();
        if own_line && line_end < around.end {
            if comma.is_none() {
                self.insert(last.end, ",".into());
            }
            let indent = self.indent(last.start).to_owned();
            let lines: Vec<_> = new.iter().map(|element| format!("{indent}{element},")).collect();
            self.insert_lines(comma.unwrap_or(last.end), &lines);
            return;
        }
        match comma {
            Some(comma) => self.insert(comma + 1, format!(" {}", new.join(", "))),
            None => self.insert(last.end, format!(", {}", new.join(", "))),
        }
    }

    /// The comma behind an element, if there is one before `end`.
    fn comma_behind(&self, from: usize, end: usize) -> Option<usize> {
        let mut at = from;
        while at < end {
            let rest = &self.text[at..end];
            match rest.chars().next()? {
                ',' => return Some(at),
                '#' => at += rest.find('\n')?,
                sign if sign.is_whitespace() => at += sign.len_utf8(),
                _ => return None,
            }
        }
        None
    }

    /// Whether nothing else is on the lines of an element but its comma and a comment.
    fn has_own_line(&self, range: &Range<usize>, inner: &Range<usize>) -> bool {
        let (start, end) = (self.line_start(range.start), self.line_end(range.end));
        let after = self.text[range.end..end].trim_start();
        let after = after.strip_prefix(',').unwrap_or(after).trim();
        start >= inner.start
            && end <= inner.end
            && self.text[start..range.start].trim().is_empty()
            && (after.is_empty() || after.starts_with('#'))
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// The start of the next line, or the end of the text.
    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    fn line(&self, start: usize) -> &'t str {
        self.text[start..self.line_end(start)].trim()
    }

    fn is_blank(&self, start: usize) -> bool {
        start < self.text.len() && self.line(start).is_empty()
    }

    fn is_comment(&self, start: usize) -> bool {
        start < self.text.len() && self.line(start).starts_with('#')
    }

    fn is_blank_before(&self, start: usize) -> bool {
        start > 0 && self.line(self.line_start(start - 1)).is_empty()
    }
}
