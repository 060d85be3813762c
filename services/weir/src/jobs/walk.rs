//! The files of a folder, one after another, in an order that is the same every time.

use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use crate::collect::is_hidden;

/// A file of the folder, or what is known of one that can't be read.
pub type Entry = Result<PathBuf, String>;

/// The files below a folder, relative to it, sorted by the names of folders and files: every path is greater than those
/// before it. With `after`, only those that are greater than it: what lies before is not even looked into.
pub fn files(root: &Path, hidden: bool, after: Option<PathBuf>) -> impl Iterator<Item = Entry> + Send + use<> {
    let (base, root) = (root.to_owned(), root.to_owned());
    let wanted = move |entry: &DirEntry| {
        let visible = hidden || entry.depth() == 0 || !is_hidden(entry.file_name());
        let (Some(after), Some(path)) = (&after, relative(&root, entry.path())) else { return visible };
        visible && (path > after.as_path() || (entry.file_type().is_dir() && after.starts_with(path)))
    };
    let walk = WalkDir::new(&base).sort_by_file_name().into_iter().filter_entry(wanted);
    walk.filter_map(move |entry| match entry {
        Ok(entry) if entry.file_type().is_file() => relative(&base, entry.path()).map(|path| Ok(path.to_owned())),
        Ok(_) => None,
        Err(error) => Some(Err(error.to_string())),
    })
}

/// The path below the root; nothing for the root itself.
fn relative<'a>(root: &Path, path: &'a Path) -> Option<&'a Path> {
    path.strip_prefix(root).ok().filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn all(root: &Path, after: Option<&str>) -> Vec<String> {
        let files = files(root, false, after.map(PathBuf::from));
        files.map(|file| file.unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn wherever_one_goes_on_the_rest_is_what_would_have_come() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.md", "a/z.md", "a/b/c.md", "a.md", "a-b/c.md", "c/.git/x", "c/d.md", ".h/x"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let whole = all(dir.path(), None);
        assert_eq!(whole.len(), 6, "{whole:?}");
        let paths: Vec<PathBuf> = whole.iter().map(PathBuf::from).collect();
        assert!(paths.is_sorted(), "{whole:?}");
        for (n, last) in whole.iter().enumerate() {
            let rest = whole.get(n + 1..).unwrap_or_default();
            assert_eq!(all(dir.path(), Some(last)), rest, "after {last}");
            // The file itself may be gone meanwhile.
            std::fs::rename(dir.path().join(last), dir.path().join(".gone")).unwrap();
            assert_eq!(all(dir.path(), Some(last)), rest, "after {last}, which is gone");
            std::fs::rename(dir.path().join(".gone"), dir.path().join(last)).unwrap();
        }
        assert_eq!(files(dir.path(), true, None).count(), 8);
        assert!(files(&dir.path().join("none"), false, None).next().unwrap().is_err());
    }
}
