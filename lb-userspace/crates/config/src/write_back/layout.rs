//! Where keys and tables go in the text of a document, and which comments belong to them.
//!
//! `toml_edit` keeps white space and comments as the prefix of what follows them. So the comment behind an element of
//! an array is part of the next element, and a comment at the end of a section part of the next header.

use std::mem;

use toml_edit::{
    Array, ArrayOfTables, Decor, DocumentMut, InlineTable, Item, KeyMut, RawString, Table,
    TableLike, Value,
};

/// A table in either form. One with dotted keys is one by itself.
pub(super) enum Place<'d> {
    /// Under a header, or the document.
    Section(&'d mut Table),
    Inline(&'d mut InlineTable),
}

impl Place<'_> {
    pub(super) fn keys(&mut self) -> &mut dyn TableLike {
        match self {
            Self::Section(table) => *table,
            Self::Inline(table) => *table,
        }
    }

    /// The table under a key.
    pub(super) fn inner(&mut self, key: &str) -> Option<Place<'_>> {
        match self.keys().get_mut(key)? {
            Item::Table(table) => Some(Place::Section(table)),
            item => item.as_inline_table_mut().map(Place::Inline),
        }
    }

    /// The tables of the list under a key, be they sections or inline.
    pub(super) fn tables(&mut self, key: &str) -> Vec<Place<'_>> {
        match self.keys().get_mut(key) {
            Some(Item::ArrayOfTables(list)) => list.iter_mut().map(Place::Section).collect(),
            Some(Item::Value(Value::Array(list))) => {
                list.iter_mut().filter_map(Value::as_inline_table_mut).map(Place::Inline).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Removes keys with their values, or the sections that have their name.
    pub(super) fn remove(&mut self, keys: &[&str]) {
        if !keys.iter().any(|key| self.keys().contains_key(key)) {
            return;
        }
        let remove =
            |table: &mut dyn TableLike| keys.iter().for_each(|key| drop(table.remove(key)));
        match self {
            Self::Section(table) => {
                let is_gone = |path: &Vec<String>| keys.contains(&&*path[0]);
                while let Some(gone) = paths(*table).iter().position(is_gone) {
                    remove_line(table, gone);
                }
                remove(*table);
            }
            Self::Inline(table) => edit_inline(table, remove),
        }
    }

    /// Puts a key behind the ones that are there.
    pub(super) fn insert(&mut self, key: &str, value: Value) {
        match self {
            Self::Section(table) => {
                let indent = indent_of_keys(table);
                table.insert(key, Item::Value(value));
                if let Some(mut key) = table.key_mut(key) {
                    key.leaf_decor_mut().set_prefix(indent);
                }
            }
            Self::Inline(table) => {
                edit_inline(table, |table| drop(table.insert(key, value.into())))
            }
        }
    }

    /// Removes tables of the list under a key, and puts new ones behind those that stay.
    pub(super) fn replace_tables(
        &mut self,
        key: &str,
        is_wanted: impl Fn(&dyn TableLike) -> bool,
        added: Vec<InlineTable>,
    ) {
        if let Some(Item::Value(Value::Array(array))) = self.keys().get_mut(key) {
            replace_elements(array, is_wanted, added);
        } else if let Self::Section(table) = self {
            replace_sections(table, key, is_wanted, added);
        } else if !added.is_empty() {
            self.insert(key, Value::from_iter(added));
        }
    }
}

/// The keys of all values that are written in a table, each with the dotted keys before it.
fn paths(table: &dyn TableLike) -> Vec<Vec<String>> {
    let path = |keys: Vec<&toml_edit::Key>| keys.iter().map(|key| key.get().to_owned()).collect();
    table.get_values().into_iter().map(|(keys, _)| path(keys)).collect()
}

/// The table that has the last key of a path, and that key.
fn innermost<'t, 'p>(
    table: &'t mut dyn TableLike,
    path: &'p [String],
) -> Option<(&'t mut dyn TableLike, &'p str)> {
    match path {
        [] => None,
        [key] => Some((table, key)),
        [key, rest @ ..] => innermost(table.get_mut(key)?.as_table_like_mut()?, rest),
    }
}

fn value_at<'t>(
    table: &'t mut dyn TableLike,
    path: &[String],
) -> Option<(KeyMut<'t>, &'t mut Value)> {
    let (table, key) = innermost(table, path)?;
    let (key, item) = table.get_key_value_mut(key)?;
    Some((key, item.as_value_mut()?))
}

/// Removes the value with this number from a section. The lines above it stay: below the value before it, or above the
/// next one.
fn remove_line(table: &mut Table, number: usize) {
    let paths = paths(table);
    let Some((key, _)) = value_at(table, &paths[number]) else { return };
    if let Some((lines, _)) = text(key.leaf_decor().prefix()).to_owned().rsplit_once('\n') {
        let below = |decor: &mut Decor| {
            decor.set_suffix(format!("{}\n{lines}", text(decor.suffix())));
        };
        let neighbour = paths.get(number.checked_sub(1).unwrap_or(1));
        match neighbour {
            None => below(table.decor_mut()),
            Some(path) => {
                let Some((mut key, value)) = value_at(table, path) else { return };
                if number > 0 {
                    below(value.decor_mut());
                } else {
                    let prefix = format!("{lines}\n{}", text(key.leaf_decor().prefix()));
                    key.leaf_decor_mut().set_prefix(prefix);
                }
            }
        }
    }
    innermost(table, &paths[number]).map(|(table, key)| table.remove(key));
}

fn text(raw: Option<&RawString>) -> &str {
    raw.and_then(RawString::as_str).unwrap_or_default()
}

/// The white space at the start of the line that a prefix ends in.
fn indent(prefix: &str) -> &str {
    prefix.rsplit_once('\n').map_or(prefix, |(_, indent)| indent)
}

fn indent_of_keys(table: &Table) -> String {
    let values = table.get_values();
    let key = values.first().and_then(|(path, _)| path.last());
    let decor = key.map_or(table.decor(), |key| key.leaf_decor());
    indent(text(decor.prefix())).to_owned()
}

/// Changes the keys of an inline table.
fn edit_inline(table: &mut InlineTable, edit: impl FnOnce(&mut dyn TableLike)) {
    let before = paths(table);
    let around = table.get_values().into_iter().map(|(path, value)| {
        (path.last().and_then(|key| key.leaf_decor().prefix()), value.decor().suffix())
    });
    let gaps = Gaps::of_list(around, table.trailing());
    edit(table);
    let after = paths(table);
    let order = after.iter().map(|path| before.iter().position(|old| old == path));
    let order: Vec<_> = order.collect();
    let (prefixes, trailing, comma) = gaps.lay_out_list(&order, " ");
    // A table of dotted keys has no end of its own.
    let (end, trailing) = if table.is_dotted() { (&*trailing, "") } else { ("", &*trailing) };
    for (path, prefix) in after.iter().zip(prefixes) {
        if let Some((mut key, value)) = value_at(table, path) {
            key.leaf_decor_mut().set_prefix(prefix);
            value.decor_mut().set_suffix(if Some(path) == after.last() { end } else { "" });
        }
    }
    table.set_trailing_comma(comma.unwrap_or(table.trailing_comma()));
    table.set_trailing(trailing);
}

fn replace_elements(
    array: &mut Array,
    is_wanted: impl Fn(&dyn TableLike) -> bool,
    added: Vec<InlineTable>,
) {
    let around = array.iter().map(|value| (value.decor().prefix(), value.decor().suffix()));
    let gaps = Gaps::of_list(around, array.trailing());
    let mut numbers = 0..array.len();
    let mut order = Vec::new();
    array.retain(|element| {
        let number = numbers.next();
        let stays = element.as_inline_table().is_none_or(|table| is_wanted(table));
        order.extend(stays.then_some(number));
        stays
    });
    if order.len() == numbers.end && added.is_empty() {
        return;
    }
    order.extend(added.iter().map(|_| None));
    added.into_iter().for_each(|table| array.push_formatted(table.into()));
    let (prefixes, trailing, comma) = gaps.lay_out_list(&order, "");
    for (element, prefix) in array.iter_mut().zip(prefixes) {
        *element.decor_mut() = Decor::new(prefix, "");
    }
    array.set_trailing_comma(comma.unwrap_or(array.trailing_comma()));
    array.set_trailing(trailing);
}

fn replace_sections(
    table: &mut Table,
    key: &str,
    is_wanted: impl Fn(&dyn TableLike) -> bool,
    added: Vec<InlineTable>,
) {
    let is_document = table.position().is_none();
    let list = table.entry(key).or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let Some(sections) = list.as_array_of_tables_mut() else { return };
    sections.retain(|section| is_wanted(section));
    let (header, indent) = match sections.iter().last() {
        _ if is_document => ("\n".to_owned(), String::new()),
        None => ("\n    ".to_owned(), "    ".to_owned()),
        Some(last) => {
            let prefix = text(last.decor().prefix());
            let is_below_blank = is_last_blank(&prefix[..prefix.len() - indent(prefix).len()]);
            let line = if is_below_blank { "\n" } else { "" };
            (format!("{line}{}", indent(prefix)), indent_of_keys(last))
        }
    };
    let mut last = table.position();
    each_section(table, &mut |section| last = last.max(section.position()));
    let position = if is_document { END + 1 } else { last.map_or(END, |last| last + 1) };
    if let Some(Item::ArrayOfTables(sections)) = table.get_mut(key) {
        for mut section in added.into_iter().map(InlineTable::into_table) {
            place_section(&mut section, &header, &indent, position);
            sections.push(section);
        }
    }
}

/// Gives a new section its place, and makes sections of the list of tables in it.
fn place_section(section: &mut Table, header: &str, indent: &str, position: isize) {
    section.decor_mut().set_prefix(header);
    section.set_position(Some(position));
    for (mut key, item) in section.iter_mut() {
        key.leaf_decor_mut().set_prefix(indent);
        *item = match mem::take(item).into_array_of_tables() {
            Ok(mut list) => {
                list.iter_mut()
                    .for_each(|section| place_section(section, "    ", "    ", position));
                Item::ArrayOfTables(list)
            }
            Err(item) => item,
        };
    }
}

/// What is between the elements of a list, before the first and behind the last one: the part that belongs to the one
/// before, the part that stays when both go, and the part that belongs to the next one.
struct Gaps(Vec<[String; 3]>);

impl Gaps {
    /// The gaps of an array or an inline table: the rest of a line belongs to the element before.
    fn of_list<'e>(
        around: impl Iterator<Item = (Option<&'e RawString>, Option<&'e RawString>)>,
        trailing: &RawString,
    ) -> Self {
        let split = |gap: String| {
            let (rest, lines) = gap.split_at(gap.find('\n').unwrap_or(0));
            [rest.to_owned(), String::new(), lines.to_owned()]
        };
        let mut gaps = Vec::new();
        let mut before_comma = "";
        for (prefix, suffix) in around {
            gaps.push(split(before_comma.trim_end_matches(' ').to_owned() + text(prefix)));
            before_comma = text(suffix);
        }
        gaps.push(split(before_comma.to_owned() + text(Some(trailing))));
        Self(gaps)
    }

    /// The text before each element of `order`: an old one by its number, where the end counts as the last one, or a
    /// new one with the text before it. Old ones are in their old order.
    fn lay_out(&self, order: &[Result<usize, String>]) -> Vec<String> {
        let mut before = &*self.0[0][0];
        let mut next = 0;
        let mut texts = Vec::new();
        for element in order {
            let mut lines = String::new();
            let (own, below) = match element {
                Ok(number) => {
                    for [_, between, _] in self.0.get(next..*number).unwrap_or_default() {
                        push_lines(&mut lines, between);
                    }
                    next = number + 1;
                    let [_, between, own] = &self.0[*number];
                    (format!("{between}{own}"), self.0.get(next).map_or("", |gap| &gap[0]))
                }
                Err(new) => (new.clone(), ""),
            };
            push_lines(&mut lines, &own);
            // What followed the comment in a line of its own may be gone.
            let is_in_comment = before.contains('#') && !before.ends_with('\n');
            let line_break = if is_in_comment && !lines.starts_with('\n') { "\n" } else { "" };
            texts.push(format!("{before}{line_break}{lines}"));
            before = below;
        }
        texts
    }

    /// The prefixes of the elements of an array or inline table, the text behind the last one, and whether there is a
    /// comma before that, if it changes. `order` has the old numbers, and `None` for new elements.
    fn lay_out_list(
        mut self,
        order: &[Option<usize>],
        padding: &str,
    ) -> (Vec<String>, String, Option<bool>) {
        let count = self.0.len() - 1;
        let first = if count == 0 { padding.to_owned() } else { self.0[0][2].clone() };
        let last = count.checked_sub(1).map_or("", |last| &self.0[last][2]);
        let line = last.rfind('\n').map(|at| last[at..].to_owned());
        let comma = (order.last() == Some(&None)).then_some(line.is_some());
        // In one line, the first element and the bracket keep their distance.
        if let Some(Some(old)) = order.first()
            && !self.0[*old][2].contains('\n')
        {
            self.0[*old][2].clone_from(&first);
        }
        let close = &mut self.0[count][2];
        if !close.contains('\n') && (order.is_empty() || count == 0) {
            *close = if order.is_empty() { String::new() } else { padding.to_owned() };
        }
        let new = |number| match &line {
            Some(line) => line.clone(),
            None if number == 0 => first.clone(),
            None => " ".to_owned(),
        };
        let order = order.iter().enumerate().map(|(number, old)| old.ok_or_else(|| new(number)));
        let order: Vec<_> = order.chain([Ok(count)]).collect();
        let mut texts = self.lay_out(&order);
        let trailing = texts.pop().unwrap_or_default();
        (texts, trailing, comma)
    }
}

/// The lines between the sections of a document as it was read. The end of the document counts as a section.
pub(super) struct Sections(Gaps);

/// The position of the end of the document: behind that of sections, before that of new ones at the end.
const END: isize = isize::MAX - 1;

impl Sections {
    /// Gives each section twice its number as its position, so that there is room between them.
    pub(super) fn of(document: &mut DocumentMut) -> Self {
        let mut positions = Vec::new();
        each_section(document, &mut |section| positions.push(section.position()));
        positions.sort_unstable();
        let mut prefixes = vec![String::new(); positions.len()];
        each_section(document, &mut |section| {
            let number = positions.partition_point(|position| *position < section.position());
            section.set_position(isize::try_from(2 * number).ok());
            text(section.decor().prefix()).clone_into(&mut prefixes[number]);
        });
        document.set_position(None);
        let mut gaps: Vec<_> = prefixes.iter().map(|prefix| split(prefix, false)).collect();
        gaps.push(split(text(Some(document.trailing())), true));
        Self(Gaps(gaps))
    }

    /// Puts the lines between the sections that the document has, without the comments of those that are gone.
    pub(super) fn lay_out(self, document: &mut DocumentMut) {
        let Self(gaps) = self;
        let end = gaps.0.len() - 1;
        let (mut present, mut order) = (vec![(END, None)], vec![]);
        each_section(document, &mut |section| {
            let position = section.position().unwrap_or(END);
            present.push((position, Some(order.len())));
            let old = usize::try_from(position / 2).ok();
            let old = old.filter(|old| position % 2 == 0 && *old < end);
            order.push(old.ok_or_else(|| text(section.decor().prefix()).to_owned()));
        });
        present.sort_by_key(|(position, _)| *position);
        let sorted = present.iter().map(|(_, number)| match number {
            Some(number) => order[*number].clone(),
            None => Ok(end),
        });
        let texts = gaps.lay_out(&sorted.collect::<Vec<_>>());
        let mut prefixes = vec![String::new(); order.len()];
        let mut lines = String::new();
        for ((_, number), text) in present.iter().zip(texts) {
            push_lines(&mut lines, &text);
            if let Some(number) = number {
                prefixes[*number] = mem::take(&mut lines);
            }
        }
        while is_last_blank(&lines) && !is_last_blank(text(Some(document.trailing()))) {
            lines.pop();
        }
        document.set_trailing(lines);
        let mut prefixes = prefixes.into_iter();
        each_section(document, &mut |section| {
            section.decor_mut().set_prefix(prefixes.next().unwrap_or_default());
        });
    }
}

/// The comments that belong to the section before, the lines that belong to none, and the comments of the next header
/// with its indentation. Comments that run from the one into the other belong to none.
fn split(prefix: &str, is_end: bool) -> [String; 3] {
    let header = prefix.len() - indent(prefix).len();
    let lines: Vec<&str> = prefix[..header].split_inclusive('\n').collect();
    let is_comment = |line: &&&str| line.trim_start().starts_with('#');
    let mut below = lines.iter().take_while(is_comment).count();
    let mut above = lines.len() - lines.iter().rev().take_while(is_comment).count();
    if is_end || above == 0 {
        above = lines.len();
    }
    if below == lines.len() && !is_end {
        below = 0;
    }
    let above_with_indent = lines[above..].concat() + &prefix[header..];
    [lines[..below].concat(), lines[below..above].concat(), above_with_indent]
}

fn is_last_blank(lines: &str) -> bool {
    lines == "\n" || lines.ends_with("\n\n")
}

/// Adds lines behind others, without empty lines that would pile up.
fn push_lines(lines: &mut String, new: &str) {
    let new = if is_last_blank(lines) { new.trim_start_matches('\n') } else { new };
    lines.push_str(new);
}

/// Passes all sections under a table, in the order of their names.
fn each_section(table: &mut Table, visit: &mut dyn FnMut(&mut Table)) {
    for (_, item) in table.iter_mut() {
        match item {
            Item::Table(inner) => {
                // As `toml_edit` decides whether it writes a header.
                let is_implied = inner.is_implicit() && inner.get_values().is_empty();
                if !inner.is_dotted() && !is_implied {
                    visit(inner);
                }
                each_section(inner, visit);
            }
            Item::ArrayOfTables(sections) => {
                for section in sections.iter_mut() {
                    visit(section);
                    each_section(section, visit);
                }
            }
            _ => {}
        }
    }
}
