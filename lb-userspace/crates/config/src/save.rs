//! Replaces the file of a configuration, whole or not at all.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Replaces the file, which is `before`, by `after`; mode, owner and group stay. A link to a file stays a link to it.
/// Returns a note for the operator: the file may not outlast a crash of the machine, or its owner is
/// this process's user, which may not give files away (`CAP_CHOWN`).
///
/// # Errors
///
/// The file has changed meanwhile, or can't be written. It is as it was, then.
pub fn replace(file: &Path, before: &str, after: &str) -> Result<Option<String>> {
    let file = fs::canonicalize(file).with_context(|| format!("find {}", file.display()))?;
    let mut partial = OsString::from(&file);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write(&file, &partial, before, after);
    if written.is_err() {
        // It may not be there, or go with the next try.
        let _ = fs::remove_file(&partial);
    }
    let notes: Vec<_> = [written?, file.parent().and_then(sync)].into_iter().flatten().collect();
    Ok((!notes.is_empty()).then(|| notes.join("; ")))
}

/// Has the disk keep the content of a folder; returns a note if it may not.
fn sync(dir: &Path) -> Option<String> {
    let error = File::open(dir).and_then(|dir| dir.sync_all()).err()?;
    Some(format!(
        "the file is written, but a crash of the machine may bring back what it was: sync {}: {error}",
        dir.display()
    ))
}

fn write(file: &Path, partial: &Path, before: &str, after: &str) -> Result<Option<String>> {
    let meta = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?;
    let failed = || format!("write {}", partial.display());
    // No user may read it before it has its owner.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut new = options.open(partial).with_context(|| {
        format!("write {}, where lbd must be allowed to make files", partial.display())
    })?;
    new.write_all(after.as_bytes()).with_context(failed)?;
    let own = new.metadata().with_context(failed)?;
    if own.gid() != meta.gid() {
        fchown(&new, None, Some(meta.gid()))
            .with_context(|| format!("give {} the group of the file", partial.display()))?;
    }
    let mut note = None;
    if own.uid() != meta.uid() {
        match fchown(&new, Some(meta.uid()), None) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                note = Some(format!(
                    "{} has user {} as its owner now, since lbd may not give it to user {}",
                    file.display(),
                    own.uid(),
                    meta.uid()
                ));
            }
            given => given
                .with_context(|| format!("give {} the owner of the file", partial.display()))?,
        }
    }
    new.set_permissions(meta.permissions()).with_context(failed)?;
    new.sync_all().with_context(failed)?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    ensure!(read(partial)? == after.as_bytes(), "{} is not as it was written", partial.display());
    ensure!(read(file)? == before.as_bytes(), "{} has changed meanwhile", file.display());
    fs::rename(partial, file).with_context(|| format!("replace {}", file.display()))?;
    Ok(note)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn mode_and_link_stay() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (file, link) = (dir.path().join("real.toml"), dir.path().join("lb.toml"));
        fs::write(&file, "old").expect("it is written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("it is ours");
        symlink("real.toml", &link).expect("it is made");
        assert_eq!(replace(&link, "old", "new").expect("it is replaced"), None);
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "new");
        assert_eq!(fs::metadata(&file).expect("it is there").mode() & 0o7777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 2);
    }

    #[test]
    fn a_folder_that_can_not_be_synced_is_told_as_that() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(sync(dir.path()), None);
        let note = sync(&dir.path().join("gone")).expect("it is not there");
        assert!(note.starts_with("the file is written, but a crash"), "{note}");
    }

    #[test]
    fn what_can_not_be_replaced_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("lb.toml");
        fs::write(&file, "edited").expect("it is written");
        let error = replace(&file, "old", "new").expect_err("someone has edited it");
        assert!(error.to_string().contains("has changed meanwhile"), "{error:#}");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1, "nothing is left over");
        fs::create_dir(dir.path().join("lb.toml.partial")).expect("a folder is in the way");
        let error = replace(&file, "edited", "new").expect_err("it can't be written");
        assert!(error.to_string().contains("where lbd must be allowed"), "{error:#}");
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "edited");
    }
}
