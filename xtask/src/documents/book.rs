//! The guide as an mdBook, in `target/book`: with all that its chapters link to, so that no link leaves it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// The guide's folder in the workspace.
pub const GUIDE: &str = "docs/guide";

/// The chapters of the book beside the guide, with the titles in its table of contents.
const MORE: [(&str, &str); 9] = [
    ("docs/METRICS.md", "Metrics"),
    ("docs/BENCHMARKS.md", "Benchmarks"),
    ("docs/RELIABILITY.md", "Reliability"),
    ("docs/dev/glossary.md", "Glossary"),
    ("docs/dev/testing.md", "Testing"),
    ("docs/dev/benchmarks.md", "Running benchmarks"),
    ("ARCHITECTURE.md", "Architecture"),
    ("CHANGELOG.md", "Changelog"),
    ("README.md", "README"),
];

/// Builds the book where mdbook is installed.
///
/// # Errors
///
/// If a file can't be copied, or mdbook fails.
pub fn build() -> Result<()> {
    let Some(mdbook) = kit::command::find("mdbook") else {
        println!(
            "the guide is not built as a book: mdbook is not installed (`cargo install mdbook`)"
        );
        return Ok(());
    };
    let workspace = crate::workspace();
    let book = workspace.join("target/book");
    if book.exists() {
        fs::remove_dir_all(&book).with_context(|| format!("remove {}", book.display()))?;
    }
    let source = book.join("src");
    for folder in ["docs", "deploy"] {
        copy_folder(&workspace.join(folder), &source.join(folder))?;
    }
    for (path, _) in MORE.iter().filter(|(path, _)| !path.contains('/')) {
        copy(&workspace.join(path), &source.join(path))?;
    }
    let summary = workspace.join(GUIDE).join("SUMMARY.md");
    let summary = fs::read_to_string(&summary).with_context(|| summary.display().to_string())?;
    write(&source.join("SUMMARY.md"), &contents(&summary))?;
    let settings = workspace.join(GUIDE).join("book.toml");
    let settings = fs::read_to_string(&settings).with_context(|| settings.display().to_string())?;
    let settings =
        settings.replace("src = \".\"", "src = \"src\"").replace("../../target/guide", "html");
    write(&book.join("book.toml"), &settings)?;
    kit::command::run(Command::new(mdbook).arg("build").arg(&book))?;
    println!("written: {}", book.join("html/docs/guide/index.html").display());
    Ok(())
}

/// The guide's table of contents, for a book that begins at the workspace, and its other chapters.
fn contents(guide: &str) -> String {
    let mut contents = guide.replace("](", "](docs/guide/") + "\n# More\n\n";
    for (path, title) in MORE {
        let _ = writeln!(contents, "- [{title}]({path})");
    }
    contents
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from).with_context(|| from.display().to_string())?;
    for entry in entries {
        let entry = entry.with_context(|| from.display().to_string())?;
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            copy(&entry.path(), &to)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    made(to)?;
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    made(file)?;
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

fn made(file: &Path) -> Result<()> {
    let folder: PathBuf = file.parent().context("a file is in a folder")?.into();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_has_the_guides_chapters_and_what_they_link_to() {
        let contents = contents("# Summary\n\n[Guide](README.md)\n\n- [A](a.md)\n");
        assert!(contents.contains("[Guide](docs/guide/README.md)\n"), "{contents}");
        assert!(contents.contains("- [A](docs/guide/a.md)\n"), "{contents}");
        assert!(contents.ends_with("- [README](README.md)\n"), "{contents}");
        for (path, title) in MORE {
            assert!(crate::workspace().join(path).is_file(), "{title}: {path}");
        }
    }
}
