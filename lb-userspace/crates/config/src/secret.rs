//! Keys that a configuration names the files of.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::tree::{About, Field, Problems};

/// The other readers that the file of a key may have without a warning: its group, as that of a daemon's user.
const MODE: u32 = 0o640;
/// Files that are larger hold no key.
const MOST: u64 = 4_096;

/// Files that are larger hold no certificate, and no list of passwords.
const MOST_LISTED: u64 = 256 << 10;

/// The content of a key's file. `remedy` is the command for a missing file.
pub(super) fn read(
    field: &Field<'_>,
    doubts: &Problems<'_>,
    remedy: impl FnOnce(&str) -> String,
) -> Option<Vec<u8>> {
    read_file(field, "key_file = \"/etc/lb/sync.key\"", MOST, Some(doubts), About::File, remedy)
}

/// The content of a file of the HTTP listener with keys, passwords or tokens.
pub(super) fn read_as(
    field: &Field<'_>,
    example: &str,
    doubts: &Problems<'_>,
    remedy: impl FnOnce(&str) -> String,
) -> Option<Vec<u8>> {
    read_file(field, example, MOST_LISTED, Some(doubts), About::ListenerFile, remedy)
}

/// The content of a file that belongs to one with a key, and that anybody may read.
pub(super) fn read_public(
    field: &Field<'_>,
    example: &str,
    remedy: impl FnOnce(&str) -> String,
) -> Option<Vec<u8>> {
    read_file(field, example, MOST_LISTED, None, About::ListenerFile, remedy)
}

/// Adds to `doubts` when others can read or change the secret.
fn read_file(
    field: &Field<'_>,
    example: &str,
    most: u64,
    doubts: Option<&Problems<'_>>,
    about: About,
    remedy: impl FnOnce(&str) -> String,
) -> Option<Vec<u8>> {
    let path = field.parsed(example, super::absolute)?;
    match look(&path, most) {
        Ok((bytes, mode)) => {
            if let Some(doubts) = doubts
                && mode & 0o777 & !MODE != 0
            {
                let path = path.display();
                doubts.push_at(
                    field,
                    format!(
                        "{path} has mode {:04o}, so that others can read or change the key; run \
                         'chmod 0640 {path}'",
                        mode & 0o7777
                    ),
                );
            }
            Some(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = path.display().to_string();
            field.refuse_file(about, format!("{path} is missing; {}", remedy(&path)));
            None
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let (fix, path) = (make_readable(&path), path.display());
            let message = format!("read {path}: {error}; let the group of lbd read it: '{fix}'");
            field.refuse_file_until(fix, about, message);
            None
        }
        Err(error) => {
            field.refuse_file(about, format!("read {}: {error}", path.display()));
            None
        }
    }
}

/// The command that lets `lbd` of the package read a file.
pub(super) fn make_readable(path: &Path) -> String {
    let path = path.display();
    format!("chgrp lb {path}; chmod 0640 {path}")
}

/// The command that makes a key for all nodes, in a file that `lbd` of the package can read.
pub(super) fn make_key(path: &str) -> String {
    format!("(umask 027; lbctl sync key > {path}; chgrp lb {path})")
}

fn look(path: &PathBuf, most: u64) -> io::Result<(Vec<u8>, u32)> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > most {
        return Err(io::Error::other("it is no file with a key"));
    }
    Ok((fs::read(path)?, meta.mode()))
}
