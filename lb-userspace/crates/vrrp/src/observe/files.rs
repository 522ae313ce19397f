//! The numbers in tracked files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

/// More than the longest number.
const LONGEST: u64 = 64;

/// The number in each file, or why there is none.
#[must_use]
pub fn read(files: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Result<i64, String>> {
    files.iter().map(|path| (path.clone(), number(path))).collect()
}

fn number(path: &Path) -> Result<i64, String> {
    let read = || {
        // A pipe would have its reader wait.
        if !path.metadata()?.is_file() {
            return Err(std::io::Error::other("is no file"));
        }
        let mut text = String::new();
        File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error| format!("{}: {error}", path.display()))?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().map_err(|_| format!("{}: has no whole number", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn file_has_a_number_or_says_why_not() {
        let folder = tempfile::tempdir().expect("make a folder");
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::write(&path, content).expect("write a file");
            path
        };
        assert_eq!(number(&file("plain", "-20\n")), Ok(-20));
        assert_eq!(number(&file("remark", "5 because of maintenance")), Ok(5));
        for (name, content) in [("empty", ""), ("word", "yes"), ("large", &"9".repeat(100))] {
            assert!(number(&file(name, content)).is_err(), "{name}");
        }
        assert!(number(&folder.path().join("missing")).is_err_and(|why| why.contains("missing")));
        assert!(number(folder.path()).is_err_and(|why| why.contains("is no file")));
    }
}
