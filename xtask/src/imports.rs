//! That modules import each other in one direction: there is no cycle among the children of any module.
//!
//! A crate's sources are read as tokens: `use` declarations, and paths that begin with `crate`, `self` or `super`
//! anywhere, in macros, too. A name that a module has from a `use` of its own is followed to where it is defined. Items
//! for tests alone (`#[cfg(test)]`) do not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The packages that are checked, of a workspace.
///
/// # Errors
///
/// A folder can't be read.
pub fn packages(workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut packages = vec![workspace.join("lb-common")];
    let crates = workspace.join("lb-userspace/crates");
    for entry in fs::read_dir(&crates).with_context(|| crates.display().to_string())? {
        packages.push(entry?.path());
    }
    packages.sort();
    Ok(packages)
}

/// Of one child of a module to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    /// The module with its crate: `lb_vrrp::thread`.
    parent: String,
    from: String,
    to: String,
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.parent, self.from, self.to)
    }
}

/// Which edges there are, each with a file that has it.
type Edges = BTreeMap<Edge, PathBuf>;

/// Checks packages.
///
/// # Errors
///
/// There is a cycle; the error names its imports.
pub fn check(packages: &[PathBuf]) -> Result<()> {
    let mut edges = Edges::new();
    for folder in packages {
        edges.extend(Crate::read(folder)?.edges());
    }
    let Some(cycle) = cycle(&edges) else { return Ok(()) };
    let cycle = cycle.iter().map(|edge| format!("  {edge}, in {}", edges[edge].display()));
    Err(anyhow!(
        "these modules import each other; what they share belongs into one that imports neither:\n{}",
        cycle.collect::<Vec<_>>().join("\n")
    ))
}

/// A shortest cycle.
fn cycle(edges: &Edges) -> Option<Vec<&Edge>> {
    edges.keys().filter_map(|first| way_back(edges, first)).min_by_key(Vec::len)
}

/// The shortest way from the end of an edge to its beginning, after the edge.
fn way_back<'a>(edges: &'a Edges, first: &'a Edge) -> Option<Vec<&'a Edge>> {
    let mut ways = vec![vec![first]];
    let mut met = BTreeSet::from([&first.to]);
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            let last = way.last()?;
            if last.to == first.from {
                return Some(way);
            }
            let next =
                edges.keys().filter(|next| next.parent == first.parent && next.from == last.to);
            for next in next {
                if next.to == first.from || met.insert(&next.to) {
                    longer.push([&way[..], &[next]].concat());
                }
            }
        }
        ways = longer;
    }
    None
}

/// Names from a crate's root to a module or an item.
type Names = Vec<String>;

/// The names of a `use` or a path.
#[derive(Debug, PartialEq, Eq)]
struct Mention {
    /// As it is written, of which the first may be `crate`, `self` or `super`.
    path: Names,
    /// Its name by a `use` here.
    alias: Option<String>,
}

/// The code of a module, without its children's.
#[derive(Debug, Default)]
struct Module {
    file: PathBuf,
    children: BTreeSet<String>,
    mentions: Vec<Mention>,
}

/// The modules of a crate by their names from its root, which has none.
#[derive(Debug)]
struct Crate {
    name: String,
    modules: BTreeMap<Names, Module>,
}

impl Crate {
    /// That of a package's folder.
    fn read(folder: &Path) -> Result<Self> {
        let name = folder.file_name().context("a folder")?.to_string_lossy().replace('-', "_");
        // The folders of crates below the user side have their names without the common prefix.
        let is_part = folder.parent().is_some_and(|parent| parent.ends_with("crates"));
        let name = if is_part { format!("lb_{name}") } else { name };
        let mut this = Self { name, modules: BTreeMap::new() };
        let sources = folder.join("src");
        let mut unread = vec![(sources.join("lib.rs"), Names::new())];
        while let Some((file, names)) = unread.pop() {
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let tokens = text.parse().map_err(|err| anyhow!("{}: {err}", file.display()))?;
            for child in this.scan(tokens, &file, names) {
                let path = sources.join(child.iter().collect::<PathBuf>());
                let flat = path.with_extension("rs");
                unread.push((if flat.is_file() { flat } else { path.join("mod.rs") }, child));
            }
        }
        Ok(this)
    }

    /// Reads the code of a module; returns its children that have files of their own.
    fn scan(&mut self, tokens: TokenStream, file: &Path, names: Names) -> Vec<Names> {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        let (mut inline, mut files) = (Vec::new(), Vec::new());
        let mut streams = vec![tokens.into_iter().collect::<Vec<_>>()];
        while let Some(tokens) = streams.pop() {
            let mut rest = &tokens[..];
            while let [first, behind @ ..] = rest {
                rest = behind;
                match first {
                    TokenTree::Punct(punct) if punct.as_char() == '#' => {
                        let [TokenTree::Group(group), behind @ ..] = rest else { continue };
                        if group.stream().to_string() == "cfg (test)" {
                            rest = after_item(behind);
                        }
                    }
                    TokenTree::Ident(word) if word == "mod" => {
                        let [TokenTree::Ident(name), end, ..] = rest else { continue };
                        let (name, mut child) = (name.to_string(), names.clone());
                        child.push(name.clone());
                        match end {
                            TokenTree::Group(body) => {
                                inline.push((child, body.stream()));
                                rest = &rest[2..];
                            }
                            TokenTree::Punct(_) => files.push(child),
                            _ => continue,
                        }
                        module.children.insert(name);
                    }
                    TokenTree::Ident(word) if word == "use" && !is_punct(rest.first(), '<') => {
                        let end = rest.iter().position(|token| is_punct(Some(token), ';'));
                        let (tree, behind) = rest.split_at(end.unwrap_or(rest.len()));
                        imports(tree, &[], &mut module.mentions);
                        rest = behind;
                    }
                    TokenTree::Ident(word)
                        if ["crate", "self", "super"].iter().any(|root| word == root) =>
                    {
                        let (path, behind) = path(&tokens[tokens.len() - rest.len() - 1..]);
                        module.mentions.push(Mention { path, alias: None });
                        rest = behind;
                    }
                    TokenTree::Group(group) => streams.push(group.stream().into_iter().collect()),
                    _ => {}
                }
            }
        }
        self.modules.insert(names, module);
        for (child, body) in inline {
            files.extend(self.scan(body, file, child));
        }
        files
    }

    /// The module that a path leads to, or to an item of; none if it leads out of the crate.
    fn target(&self, from: &Names, path: &[String], depth: u8) -> Option<Names> {
        let (first, rest) = path.split_first()?;
        let mut at = from.clone();
        let mut rest = match first.as_str() {
            "crate" => {
                at.clear();
                rest
            }
            "self" => rest,
            "super" => {
                at.pop();
                rest
            }
            name => {
                let module = &self.modules[from];
                let is_here = module.children.contains(name) || module.alias(name).is_some();
                is_here.then_some(path)?
            }
        };
        while let [name, behind @ ..] = rest {
            let module = &self.modules[&at];
            if name == "super" {
                at.pop();
            } else if module.children.contains(name) {
                at.push(name.clone());
            } else if let Some(alias) = module.alias(name).filter(|_| depth > 0) {
                let whole: Vec<_> = alias.iter().chain(behind).cloned().collect();
                return self.target(&at, &whole, depth - 1);
            } else {
                break;
            }
            rest = behind;
        }
        Some(at)
    }

    fn edges(&self) -> Edges {
        let mut edges = Edges::new();
        for (names, module) in &self.modules {
            for mention in &module.mentions {
                let Some(target) = self.target(names, &mention.path, 8) else { continue };
                let common =
                    names.iter().zip(&target).take_while(|(one, other)| one == other).count();
                let (Some(from), Some(to)) = (names.get(common), target.get(common)) else {
                    continue;
                };
                let mut parent = vec![self.name.clone()];
                parent.extend_from_slice(&names[..common]);
                let (parent, from, to) = (parent.join("::"), from.clone(), to.clone());
                edges.entry(Edge { parent, from, to }).or_insert_with(|| module.file.clone());
            }
        }
        edges
    }
}

impl Module {
    /// The item that a `use` of this module binds to a name.
    fn alias(&self, name: &str) -> Option<&[String]> {
        let of = |mention: &&Mention| mention.alias.as_deref() == Some(name);
        let found = self.mentions.iter().find(of)?;
        // One that names itself, as `use serde;` does.
        (found.path != [name]).then_some(&found.path)
    }
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

/// The text behind an item.
fn after_item(tokens: &[TokenTree]) -> &[TokenTree] {
    let is_end = |token: &TokenTree| {
        let is_body =
            matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace);
        is_body || is_punct(Some(token), ';')
    };
    let end = tokens.iter().position(is_end);
    &tokens[end.map_or(tokens.len(), |end| end + 1)..]
}

/// The names at the beginning that `::` joins, and the rest.
fn path(tokens: &[TokenTree]) -> (Names, &[TokenTree]) {
    let (mut names, mut rest) = (Names::new(), tokens);
    while let [TokenTree::Ident(name), behind @ ..] = rest {
        names.push(name.to_string());
        rest = behind;
        match rest {
            [one, other, behind @ ..] if is_punct(Some(one), ':') && is_punct(Some(other), ':') => {
                rest = behind;
            }
            _ => break,
        }
    }
    (names, rest)
}

/// The names of a `use` declaration's tree behind `prefix`.
fn imports(tree: &[TokenTree], prefix: &[String], mentions: &mut Vec<Mention>) {
    for branch in tree.split(|token| is_punct(Some(token), ',')) {
        let (names, rest) = path(branch);
        let mut path = [prefix, &names].concat();
        match rest {
            [TokenTree::Group(group)] => {
                let tree: Vec<_> = group.stream().into_iter().collect();
                imports(&tree, &path, mentions);
            }
            _ if path.is_empty() => {}
            rest => {
                // `a::{self}` is `a`.
                if path.len() > 1 {
                    path.pop_if(|name| name == "self");
                }
                let alias = match rest {
                    [TokenTree::Ident(_), TokenTree::Ident(alias)] => Some(alias.to_string()),
                    [] => path.last().cloned(),
                    _ => None,
                };
                mentions.push(Mention { path, alias });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The errors of a package with these files in its sources.
    fn errors_of(name: &str, files: &[(&str, &str)]) -> Result<String> {
        let folder = std::env::temp_dir().join(format!("lb-xtask-{}-{name}", std::process::id()));
        for (name, text) in files {
            let file = folder.join("src").join(name);
            fs::create_dir_all(file.parent().context("a folder")?)?;
            fs::write(file, text)?;
        }
        let checked = check(std::slice::from_ref(&folder));
        fs::remove_dir_all(&folder)?;
        Ok(checked.err().map(|err| format!("{err:#}")).unwrap_or_default())
    }

    const ROOT: (&str, &str) = ("lib.rs", "mod one; mod other; mod third;");

    #[test]
    fn a_cycle_is_named_with_its_files() -> Result<()> {
        let files = [
            ROOT,
            ("one.rs", "use crate::other::Thing;"),
            ("other/mod.rs", "mod deep; pub struct Thing;"),
            ("other/deep.rs", "fn f() { println!(\"{}\", crate::third::name()) }"),
            (
                "third.rs",
                "use std::fmt; pub(crate) fn name() -> super::one::Name { super::one::Name }",
            ),
        ];
        let errors = errors_of("cycle", &files)?;
        for part in ["one -> other", "other -> third", "third -> one", "other/deep.rs"] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
        Ok(())
    }

    #[test]
    fn what_tests_and_comments_import_does_not_count() -> Result<()> {
        let files = [
            ROOT,
            ("one.rs", "use crate::{other::Thing, third as drei};"),
            (
                "other.rs",
                "//! [`crate::one`]\npub struct Thing;\n#[cfg(test)]\n#[allow(unused)]\nmod tests { use crate::one; }\n\
                 fn f() -> &'static str { \"crate::one::X\" }",
            ),
            ("third.rs", "#[cfg(test)] mod tests;"),
        ];
        assert_eq!(errors_of("tests", &files)?, "");
        Ok(())
    }

    #[test]
    fn a_name_that_a_module_has_from_another_is_followed_there() -> Result<()> {
        let files = [
            ("lib.rs", "pub mod top;"),
            (
                "top/mod.rs",
                "mod one; mod other; pub use self::one::{Thing, inner as outer}; use other::*;",
            ),
            (
                "top/one.rs",
                "use super::other::f; pub struct Thing; pub mod inner { pub fn g() {} }",
            ),
            ("top/other.rs", "pub fn f() { super::outer::g() }"),
        ];
        let top = errors_of("names", &files)?;
        assert!(
            top.contains("::top: one -> other") && top.contains("::top: other -> one"),
            "{top}"
        );
        Ok(())
    }
}
