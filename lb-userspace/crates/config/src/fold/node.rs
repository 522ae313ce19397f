//! The tables of a parsed configuration, whatever form they have in the text.

use std::ops::Range;

use toml_edit::{InlineTable, Item, Key, Table, Value};

use super::text::Edits;

/// A table: under a header, or inline. Either may be dotted, and then is a part of another's.
#[derive(Clone, Copy)]
pub(super) enum Node<'d> {
    Section(&'d Table),
    Inline(&'d InlineTable),
}

impl<'d> Node<'d> {
    fn of(item: &'d Item) -> Option<Self> {
        match item {
            Item::Table(table) => Some(Self::Section(table)),
            Item::Value(Value::InlineTable(table)) => Some(Self::Inline(table)),
            _ => None,
        }
    }

    fn is_dotted(self) -> bool {
        match self {
            Self::Section(table) => table.is_dotted(),
            Self::Inline(table) => table.is_dotted(),
        }
    }

    fn span(self) -> Option<Range<usize>> {
        match self {
            Self::Section(table) => table.span(),
            Self::Inline(table) => table.span(),
        }
    }

    fn entry(self, key: &str) -> Option<(&'d Key, &'d Item)> {
        match self {
            Self::Section(table) => table.get_key_value(key),
            Self::Inline(table) => table.get_key_value(key),
        }
    }

    pub(super) fn item(self, key: &str) -> Option<&'d Item> {
        self.entry(key).map(|(_, item)| item)
    }

    fn entries(self) -> Vec<(&'d Key, &'d Item)> {
        let keys: Vec<&str> = match self {
            Self::Section(table) => table.iter().map(|(key, _)| key).collect(),
            Self::Inline(table) => table.iter().map(|(key, _)| key).collect(),
        };
        keys.into_iter().filter_map(|key| self.entry(key)).collect()
    }

    /// From the key to the end of the value, of each value that is written in this table's place.
    fn values(self) -> Vec<Range<usize>> {
        let mut all = Vec::new();
        for (key, item) in self.entries() {
            match (Self::of(item), item) {
                (Some(inner), _) if inner.is_dotted() => all.extend(inner.values()),
                (_, Item::Value(value)) => {
                    if let (Some(key), Some(value)) = (key.span(), value.span()) {
                        all.push(key.start..value.end);
                    }
                }
                _ => {}
            }
        }
        all.sort_by_key(|range| range.start);
        all
    }

    /// From the header to the last value, of this table and of those under it.
    fn sections(self) -> Vec<Range<usize>> {
        let mut all = Vec::new();
        if let (Self::Section(table), false) = (self, self.is_dotted()) {
            let values = self.values();
            let end = values.iter().map(|range| range.end).max();
            all.extend(table.span().map(|header| header.start..end.unwrap_or(header.end)));
            for (_, item) in self.entries() {
                match item {
                    Item::Table(table) => all.extend(Node::Section(table).sections()),
                    Item::ArrayOfTables(tables) => {
                        all.extend(tables.iter().flat_map(|table| Node::Section(table).sections()));
                    }
                    _ => {}
                }
            }
        }
        all
    }

    /// The tables under a key, be they sections or inline.
    pub(super) fn tables(self, key: &str) -> Vec<Self> {
        match self.item(key) {
            Some(Item::ArrayOfTables(tables)) => tables.iter().map(Node::Section).collect(),
            Some(Item::Value(Value::Array(array))) => {
                array.iter().filter_map(Value::as_inline_table).map(Node::Inline).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Cuts tables under a key.
    pub(super) fn cut_tables(
        self,
        edits: &mut Edits<'_>,
        key: &str,
        unwanted: impl Fn(Node<'_>) -> bool,
    ) {
        match self.item(key) {
            Some(Item::ArrayOfTables(tables)) => {
                for table in tables.iter().map(Node::Section).filter(|table| unwanted(*table)) {
                    for section in table.sections() {
                        edits.cut_section(section);
                    }
                }
            }
            Some(Item::Value(Value::Array(array))) => {
                let tables = array.iter().filter_map(Value::as_inline_table).map(Node::Inline);
                let elements: Vec<_> =
                    tables.filter_map(|table| Some((table.span()?, unwanted(table)))).collect();
                if let (Some(span), true) = (array.span(), elements.iter().any(|(_, out)| *out)) {
                    edits.cut_elements(span, &elements);
                }
            }
            _ => {}
        }
    }

    /// Adds tables under the last word of `header`, behind those that are there.
    pub(super) fn add_tables(self, edits: &mut Edits<'_>, header: &str, new: &[Vec<String>]) {
        let key = header.rsplit('.').next().unwrap_or(header);
        let inline = || new.iter().map(|entries| super::inline(entries)).collect::<Vec<_>>();
        match (self.item(key), self) {
            (Some(Item::Value(Value::Array(array))), _) => {
                let last = array.iter().filter_map(Value::span).last();
                if let Some(span) = array.span() {
                    edits.push_elements(span, last, &inline());
                }
            }
            (_, Self::Inline(_)) => {
                Place::of(self).insert(edits, key, &format!("[{}]", inline().join(", ")));
            }
            (_, Self::Section(_)) => {
                let sections = self.sections();
                let Some(last) = sections.iter().map(|section| section.end).max() else { return };
                let sibling = self.tables(key).last().and_then(|table| {
                    let first = table.values().first()?.start;
                    Some((table.span()?.start, first))
                });
                let (indent, inner, blank) = match sibling {
                    Some((header, first)) => {
                        (edits.indent(header), edits.indent(first), edits.is_below_blank(header))
                    }
                    None => ("    ", "    ", true),
                };
                let mut lines = Vec::new();
                for entries in new {
                    lines.extend(blank.then(String::new));
                    lines.push(format!("{indent}[[{header}]]"));
                    lines.extend(entries.iter().map(|entry| format!("{inner}{entry}")));
                }
                edits.insert_lines_behind_section(last, &lines);
            }
        }
    }
}

/// A table, and where its keys are written.
pub(super) struct Place<'d> {
    node: Node<'d>,
    /// The prefix of its keys there: `check.` if it is dotted.
    prefix: String,
    /// The table that has a place: itself, or the one that it is dotted in.
    holder: Node<'d>,
}

impl<'d> Place<'d> {
    pub(super) fn of(node: Node<'d>) -> Self {
        Self { node, prefix: String::new(), holder: node }
    }

    /// The table under a key.
    pub(super) fn inner(&self, key: &str) -> Option<Self> {
        let node = Node::of(self.node.item(key)?)?;
        if node.is_dotted() {
            let prefix = format!("{}{key}.", self.prefix);
            return Some(Self { node, prefix, holder: self.holder });
        }
        Some(Self::of(node))
    }

    /// Where the value of a key is, if there is one.
    pub(super) fn span_of(&self, key: &str) -> Option<Range<usize>> {
        self.node.item(key)?.as_value()?.span()
    }

    /// Puts a key behind the ones that are there.
    pub(super) fn insert(&self, edits: &mut Edits<'_>, key: &str, value: &str) {
        let entry = format!("{}{key} = {value}", self.prefix);
        let values = self.holder.values();
        let first = values.first().map(|range| range.start);
        let last = values.iter().map(|range| range.end).max();
        let Some(span) = self.holder.span() else { return };
        match (self.holder, first.zip(last)) {
            (Node::Section(_), found) => {
                let (first, last) = found.unwrap_or((span.start, span.end));
                let line = format!("{}{entry}", edits.indent(first));
                edits.insert_lines(last, &[line]);
            }
            (Node::Inline(_), Some((_, last))) => edits.insert(last, format!(", {entry}")),
            // Other additions come before this, with a comma.
            (Node::Inline(_), None) => edits.insert_first(span.start + 1, &entry),
        }
    }

    /// Cuts keys with their values.
    pub(super) fn cut_keys(&self, edits: &mut Edits<'_>, unwanted: impl Fn(&str) -> bool) {
        let mut cut = Vec::new();
        for (key, item) in self.node.entries() {
            if !unwanted(key.get()) {
                continue;
            }
            match (Node::of(item), item) {
                (Some(inner), _) if inner.is_dotted() => cut.extend(inner.values()),
                (Some(inner @ Node::Section(_)), _) => {
                    for section in inner.sections() {
                        edits.cut_section(section);
                    }
                }
                (_, Item::Value(value)) => {
                    cut.extend(key.span().zip(value.span()).map(|(key, end)| key.start..end.end));
                }
                _ => {}
            }
        }
        match (self.holder, self.holder.span()) {
            (Node::Section(_), _) => cut.into_iter().for_each(|range| edits.cut_lines(range)),
            (Node::Inline(_), Some(span)) if !cut.is_empty() => {
                let values = self.holder.values().into_iter();
                let elements: Vec<_> = values
                    .map(|range| {
                        let out = cut.contains(&range);
                        (range, out)
                    })
                    .collect();
                edits.cut_elements(span, &elements);
            }
            _ => {}
        }
    }
}
