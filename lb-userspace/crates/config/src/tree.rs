//! Walks a parsed TOML document, and keeps every mistake with its place.

use std::{
    cell::RefCell,
    fmt,
    ops::{Range, RangeInclusive},
    str::FromStr,
};

use lb_model::{
    desired::Ports,
    units::{nearest, unknown_word},
};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key, as `service[0].backend[2].weight`; empty for the whole file.
    pub path: String,
    /// The mistake, and its remedy.
    pub message: String,
    /// Its subject.
    pub about: About,
    /// The command that fixes it, for a shell of root; none if it takes a decision.
    pub fix: Option<String>,
}

/// The subject of a mistake; it decides whether trying again may help.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum About {
    /// The text of the configuration.
    #[default]
    Text,
    /// A file that the configuration names, without which `lbd` can't run as configured.
    File,
    /// A file of the HTTP listener, without which everything else can be done.
    ListenerFile,
}

impl Problem {
    /// The file itself can't be used, until `fix` was run.
    pub(super) fn of_file(message: String, fix: String) -> Self {
        let (line, column, path) = (1, 1, String::new());
        Self { line, column, path, message, about: About::File, fix: Some(fix) }
    }

    /// It without its place.
    fn what(&self) -> String {
        match self.path.as_str() {
            "" => self.message.clone(),
            path => format!("{path}: {}", self.message),
        }
    }

    /// Its line as a warning: no mistake, and probably not meant.
    #[must_use]
    pub fn as_warning(&self) -> String {
        format!("{}:{}: warning: {}", self.line, self.column, self.what())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what())
    }
}

const UNKNOWN: &str = "unknown key";

/// Collects mistakes by their offset in the text.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    text: &'t str,
    found: RefCell<Vec<(usize, Problem)>>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, found: RefCell::default() }
    }

    pub(super) fn push(&self, offset: usize, path: impl Into<String>, message: impl Into<String>) {
        self.push_about((About::Text, None), offset, path, message);
    }

    fn push_about(
        &self,
        (about, fix): (About, Option<String>),
        offset: usize,
        path: impl Into<String>,
        message: impl Into<String>,
    ) {
        let before = self.text.get(..offset.min(self.text.len())).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let problem = Problem {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            path: path.into(),
            message: message.into(),
            about,
            fix,
        };
        self.found.borrow_mut().push((offset, problem));
    }

    /// Reports a message about a field, here and not where its mistakes go.
    pub(super) fn push_at(&self, field: &Field<'_>, message: impl Into<String>) {
        self.push(field.span().start, field.path(), message);
    }

    /// Keys of the top level that stand below a table's header belong to that table, where they are unknown.
    fn explain_misplaced(&self, top: &[&str]) {
        for (_, problem) in self.found.borrow_mut().iter_mut() {
            let key = problem.path.rsplit_once('.').map(|(_, key)| key);
            // Tables have keys of this name, too.
            let key = key.filter(|key| *key != "interface");
            let key = key.filter(|key| top.contains(key) && problem.message.starts_with(UNKNOWN));
            if let Some(key) = key {
                problem.message = format!(
                    "{UNKNOWN} here; the top level of the file has a key `{key}`, which stands above the first [table]"
                );
            }
        }
    }

    pub(super) const fn text(&self) -> &'t str {
        self.text
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// All of them, in the order of the text.
    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(offset, _)| *offset);
        found.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// A table of the document. It may hold the keys that the readers request.
pub(super) struct Table<'a> {
    table: &'a DeTable<'a>,
    /// Where the table begins.
    offset: usize,
    path: String,
    problems: &'a Problems<'a>,
    requested: RefCell<Vec<&'static str>>,
}

/// A key that is there, with its value.
pub(super) struct Field<'a> {
    value: &'a Spanned<DeValue<'a>>,
    path: String,
    problems: &'a Problems<'a>,
}

impl<'a> Table<'a> {
    pub(super) fn root(root: &'a Spanned<DeTable<'a>>, problems: &'a Problems<'a>) -> Self {
        Self {
            table: root.get_ref(),
            offset: 0,
            path: String::new(),
            problems,
            requested: RefCell::default(),
        }
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Reports a mistake of the table as a whole.
    pub(super) fn refuse(&self, message: impl Into<String>) {
        self.problems.push(self.offset, self.path.as_str(), message);
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn optional(&self, key: &'static str) -> Option<Field<'a>> {
        self.requested.borrow_mut().push(key);
        let value = self.table.get(key)?;
        Some(Field { value, path: self.path_of(key), problems: self.problems })
    }

    /// A key that has a former name, too; both are a mistake.
    pub(super) fn optional_renamed(
        &self,
        (key, former): (&'static str, &'static str),
    ) -> Option<Field<'a>> {
        let field = self.optional(key);
        // Messages name no former key that the table does not have.
        if !self.table.contains_key(former) {
            return field;
        }
        let old = self.optional(former)?;
        if field.is_some() {
            old.refuse(format!(
                "this is the former name of `{key}`, which is set as well; remove `{former}`"
            ));
            return field;
        }
        Some(old)
    }

    /// All that the table holds, where any key may be: with its name.
    pub(super) fn entries(self) -> Vec<(&'a str, Field<'a>)> {
        let field = |(key, value): (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)| {
            let name: &'a str = key.get_ref().as_ref();
            (name, Field { value, path: self.path_of(name), problems: self.problems })
        };
        self.table.iter().map(field).collect()
    }

    /// Reports a key that is missing; `example` is a right one.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<Field<'a>> {
        let field = self.optional(key);
        if field.is_none() {
            self.refuse(format!("`{key}` is missing; add {example}"));
        }
        field
    }

    /// The tables of an array of tables; none if there is no such key.
    pub(super) fn tables(&self, key: &'static str, header: &str) -> Vec<Table<'a>> {
        let Some(field) = self.optional(key) else { return Vec::new() };
        let Some(array) = field.value.get_ref().as_array() else {
            field.refuse(format!(
                "{} instead of tables; begin each with [[{header}]]",
                field.kind()
            ));
            return Vec::new();
        };
        let fields = array.iter().enumerate().map(|(index, value)| Field {
            value,
            path: format!("{}[{index}]", field.path),
            problems: self.problems,
        });
        fields.filter_map(|field| field.table(header)).collect()
    }

    /// Leaves keys that no reader requested unreported, where the possible keys are unknown.
    pub(super) fn leave(self) {
        drop(self);
    }

    /// Reports the keys that no reader requested.
    pub(super) fn finish(self) {
        let requested = self.requested.borrow();
        let mut known: Vec<&str> = Vec::new();
        for key in requested.iter().copied() {
            if !known.contains(&key) {
                known.push(key);
            }
        }
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if requested.contains(&name) {
                continue;
            }
            let message = match nearest(name, requested.iter().copied()) {
                Some(known) => format!("{UNKNOWN}; did you mean `{known}`?"),
                None => format!("{UNKNOWN}; the keys here are {}", known.join(", ")),
            };
            self.problems.push(key.span().start, self.path_of(name), message);
        }
        if self.path.is_empty() {
            self.problems.explain_misplaced(&known);
        }
    }
}

impl<'a> Field<'a> {
    pub(super) fn span(&self) -> Range<usize> {
        self.value.span()
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn refuse(&self, message: impl Into<String>) {
        self.problems.push(self.span().start, self.path.as_str(), message);
    }

    /// Reports a mistake of the file that the field names.
    pub(super) fn refuse_file(&self, about: About, message: impl Into<String>) {
        self.refuse_for((about, None), message);
    }

    /// The same, with the command that fixes it.
    pub(super) fn refuse_file_until(&self, fix: String, about: About, message: impl Into<String>) {
        self.refuse_for((about, Some(fix)), message);
    }

    fn refuse_for(&self, about: (About, Option<String>), message: impl Into<String>) {
        self.problems.push_about(about, self.span().start, self.path.as_str(), message);
    }

    fn kind(&self) -> String {
        let kind = self.value.get_ref().type_str();
        let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
        format!("{article} {kind}")
    }

    pub(super) fn table(self, header: &str) -> Option<Table<'a>> {
        let Some(table) = self.value.get_ref().as_table() else {
            self.refuse(format!("{} instead of a table; begin it with [{header}]", self.kind()));
            return None;
        };
        Some(Table {
            table,
            offset: self.span().start,
            path: self.path,
            problems: self.problems,
            requested: RefCell::default(),
        })
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    pub(super) fn is_flag(&self) -> bool {
        self.value.get_ref().as_bool().is_some()
    }

    /// A string; `example` is a right one.
    pub(super) fn string(&self, example: &str) -> Option<&'a str> {
        let text = self.value.get_ref().as_str();
        if text.is_none() {
            self.refuse(format!("{} instead of a string; write {example}", self.kind()));
        }
        text
    }

    /// A string that `parse` understands; its error has the remedy.
    pub(super) fn parsed<T>(
        &self,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(self.string(example)?).map_err(|message| self.refuse(message)).ok()
    }

    /// One of several names.
    pub(super) fn word<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let all =
            words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let text = self.string(&format!("one of {all}"))?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.refuse(unknown_word(text, &words));
        }
        found
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Option<bool> {
        let flag = self.value.get_ref().as_bool();
        if flag.is_none() {
            self.refuse(format!("{} instead of true or false", self.kind()));
        }
        flag
    }

    /// A whole number of a range.
    pub(super) fn integer<T: TryFrom<u64>>(&self, range: Range<u64>) -> Option<T> {
        let expected = || format!("a number from {} to {} is expected", range.start, range.end - 1);
        let Some(integer) = self.value.get_ref().as_integer() else {
            self.refuse(format!("{} instead of a number; {}", self.kind(), expected()));
            return None;
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| range.contains(number));
        let value = number.and_then(|number| T::try_from(number).ok());
        if value.is_none() {
            self.refuse(format!("{integer} is out of range; {}", expected()));
        }
        value
    }

    /// Ports: one as a number, several as text.
    pub(super) fn ports(&self) -> Option<Ports> {
        if self.value.get_ref().as_integer().is_some() {
            return self.integer(1..65_536).map(Ports::one);
        }
        self.parsed("port = 80, port = \"8000-8100\" or port = \"any\"", str::parse)
    }

    /// A whole number as it is written, if `parse` understands that; its error has the remedy.
    pub(super) fn number<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(integer) = self.value.get_ref().as_integer() else {
            self.refuse(format!("{} instead of a number; {expected} is expected", self.kind()));
            return None;
        };
        let decimal = i64::from_str_radix(integer.as_str(), integer.radix());
        let text = decimal.map_or_else(|_| integer.to_string(), |number| number.to_string());
        parse(&text).map_err(|message| self.refuse(message)).ok()
    }

    /// A whole number of a range, which may be negative.
    pub(super) fn signed<T: TryFrom<i64>>(&self, range: RangeInclusive<i64>) -> Option<T> {
        let expected = || format!("a number from {} to {} is expected", range.start(), range.end());
        let Some(integer) = self.value.get_ref().as_integer() else {
            self.refuse(format!("{} instead of a number; {}", self.kind(), expected()));
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| range.contains(number));
        let value = number.and_then(|number| T::try_from(number).ok());
        if value.is_none() {
            self.refuse(format!("{integer} is out of range; {}", expected()));
        }
        value
    }

    /// Strings: one, or an array of them.
    pub(super) fn strings(&self, example: &str) -> Option<Vec<Field<'a>>> {
        let Some(array) = self.value.get_ref().as_array() else {
            self.refuse(format!("{} instead of an array; write {example}", self.kind()));
            return None;
        };
        let items = array.iter().enumerate().map(|(index, value)| Field {
            value,
            path: format!("{}[{index}]", self.path),
            problems: self.problems,
        });
        Some(items.collect())
    }
}

/// Reads `address/length`, where the bits behind the length are zero.
pub(super) fn parse_prefix<A: FromStr>(
    text: &str,
    example: &str,
    fits: impl Fn(&A, u8) -> bool,
) -> Result<(A, u8), String> {
    let wrong = || format!("`{text}` is no prefix; write an address and a length, as {example}");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: A = address.parse().map_err(|_| wrong())?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    if fits(&address, length) { Ok((address, length)) } else { Err(wrong()) }
}
