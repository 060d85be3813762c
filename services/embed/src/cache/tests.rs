//! What the cache promises, on a real disk.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use weir_contracts::TenantId;

use super::{CacheError, VectorCache, key};
use crate::generation::{Key, disk_usage};

const DIMENSION: usize = 384;
const MIB: u64 = 1 << 20;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(folder: &Path) -> VectorCache {
    VectorCache::open(folder, 2 * MIB).unwrap()
}

fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn nth(n: usize) -> Key {
    key(&tenant(), "model", DIMENSION, &format!("text {n}"))
}

/// A vector of which no bit is like that of another: nothing to compress.
fn vector(n: usize) -> Vec<f32> {
    let mut state = n as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0
    };
    (0..DIMENSION).map(|_| next()).collect()
}

fn put(cache: &VectorCache, numbers: impl IntoIterator<Item = usize>) {
    let vectors: Vec<_> = numbers.into_iter().map(|n| (nth(n), vector(n))).collect();
    cache.put(vectors.iter().map(|(key, vector)| (*key, vector)));
}

/// How many of these are there; each that is there is right.
fn there(cache: &VectorCache, numbers: impl IntoIterator<Item = usize>) -> usize {
    let numbers: Vec<usize> = numbers.into_iter().collect();
    let keys: Vec<Key> = numbers.iter().map(|n| nth(*n)).collect();
    let found = cache.get(&keys, DIMENSION);
    for (n, key) in numbers.iter().zip(&keys) {
        assert!(found.get(key).is_none_or(|found| *found == vector(*n)), "{n} is another vector");
    }
    found.len()
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn tables(folder: &Path) -> Vec<PathBuf> {
    files(folder).into_iter().filter(|path| path.parent().is_some_and(|above| above.ends_with("1/tables"))).collect()
}

/// A cache with the vectors 0 to 199 on disk.
fn filled() -> TempDir {
    let folder = folder();
    let cache = open(folder.path());
    put(&cache, 0..200);
    cache.flush();
    assert_eq!(there(&cache, 0..200), 200);
    assert!(!tables(folder.path()).is_empty());
    folder
}

#[test]
fn a_vector_is_found_at_once_and_after_a_restart() {
    let folder = folder();
    let cache = open(folder.path());
    assert_eq!(there(&cache, [1]), 0);
    put(&cache, [1]);
    assert_eq!(there(&cache, [1, 2]), 1);
    cache.flush();
    assert_eq!(there(&cache, [1, 2]), 1);
    drop(cache);
    for _ in 0..3 {
        let cache = open(folder.path());
        assert_eq!(there(&cache, [1, 2]), 1);
    }
}

/// The negative control of the test above, and what a crash costs: the newest vectors, never a wrong one.
#[test]
fn a_crash_loses_what_was_not_written_and_no_more() {
    let folder = filled();
    let cache = open(folder.path());
    put(&cache, [1_000]);
    drop(cache);
    let cache = open(folder.path());
    assert_eq!(there(&cache, 0..200), 200);
    assert_eq!(there(&cache, [1_000]), 0);
}

#[test]
fn writing_goes_on_in_what_was_there_before_a_restart() {
    let folder = folder();
    for n in 0..5 {
        let cache = open(folder.path());
        put(&cache, [n]);
        cache.flush();
    }
    assert_eq!(there(&open(folder.path()), 0..5), 5);
    let generations = fs::read_dir(folder.path().join("0")).unwrap().count() - 1;
    assert_eq!(generations, 1);
}

#[test]
fn the_bound_holds_on_disk_when_ten_times_more_is_put() {
    let limit = 4 * MIB;
    let folder = folder();
    let cache = VectorCache::open(folder.path(), limit).unwrap();
    let fits = usize::try_from(limit).unwrap() / (DIMENSION * 4);
    let all = 10 * fits;
    let mut most = 0;
    for n in (0..all).step_by(20) {
        put(&cache, n..n + 20);
        let taken = disk_usage(folder.path()).unwrap();
        assert!(taken <= limit, "{taken} of {limit} bytes after {n} vectors");
        most = most.max(taken);
    }
    assert!(most > limit * 3 / 4, "only {most} of {limit} bytes were used");
    assert_eq!(there(&cache, all - 20..all), 20, "the newest stay");
    assert_eq!(there(&cache, 0..20), 0, "the oldest go");
    let left = there(&cache, 0..all);
    assert!(left > fits / 2 && left <= fits, "{left} of {fits} vectors that fit are there");
    drop(cache);
    let smaller = VectorCache::open(folder.path(), limit / 2).unwrap();
    assert!(disk_usage(folder.path()).unwrap() <= limit / 2, "a smaller limit holds from the start");
    assert!(there(&smaller, all - 500..all) > 0);
}

#[test]
fn what_is_used_stays() {
    let folder = folder();
    let cache = open(folder.path());
    let fits = usize::try_from(2 * MIB).unwrap() / (DIMENSION * 4);
    put(&cache, 0..40);
    for n in (40..4 * fits).step_by(20) {
        put(&cache, n..n + 20);
        assert_eq!(there(&cache, 0..20), 20, "used ones are there after {n}");
    }
    assert_eq!(there(&cache, 20..40), 0, "unused ones of the same age are not");
}

#[test]
fn another_tenant_model_dimension_or_text_is_another_key() {
    let here = key(&tenant(), "model@1/f32", 384, "text");
    let others = [
        key(&TenantId::parse("acme2").unwrap(), "model@1/f32", 384, "text"),
        key(&tenant(), "model@2/f32", 384, "text"),
        key(&tenant(), "model@1/f32", 383, "text"),
        key(&tenant(), "model@1/f32", 384, "text "),
        // What moves from one part to the next.
        key(&TenantId::parse("acm").unwrap(), "emodel@1/f32", 384, "text"),
    ];
    assert_eq!(here, key(&tenant(), "model@1/f32", 384, "text"));
    for other in others {
        assert_ne!(here, other);
    }
}

#[test]
fn a_vector_of_another_length_is_not_found() {
    let folder = filled();
    let cache = open(folder.path());
    assert_eq!(cache.get(&[nth(1)], DIMENSION).len(), 1);
    assert_eq!(cache.get(&[nth(1)], DIMENSION - 1).len(), 0);
}

/// After whatever was done to its files, the cache opens, gives nothing wrong, and keeps vectors again.
fn heals(damage: impl Fn(&Path)) -> usize {
    let folder = filled();
    damage(&folder.path().join("0"));
    let cache = open(folder.path());
    let left = there(&cache, 0..200);
    put(&cache, 0..200);
    cache.flush();
    assert_eq!(there(&cache, 0..200), 200);
    drop(cache);
    assert_eq!(there(&open(folder.path()), 0..200), 200);
    left
}

#[test]
fn a_damaged_folder_heals() {
    assert_eq!(heals(|_| {}), 200, "nothing damaged, nothing lost");
    let everything_is = |content: &'static [u8]| {
        move |folder: &Path| {
            for file in files(folder) {
                fs::write(file, content).unwrap();
            }
        }
    };
    assert_eq!(heals(everything_is(b"")), 0);
    assert_eq!(heals(everything_is(&[0xa5; 3000])), 0);
    let vectors_are_garbage = |folder: &Path| {
        for file in files(folder).iter().filter(|file| file.display().to_string().contains("keyspaces/1/")) {
            fs::write(file, [0xa5; 3000]).unwrap();
        }
    };
    assert_eq!(heals(vectors_are_garbage), 0);
    let without = |what: fn(&Path) -> bool| {
        move |folder: &Path| {
            for file in files(folder).iter().filter(|file| what(file)) {
                fs::remove_file(file).unwrap();
            }
        }
    };
    assert_eq!(heals(without(|file| file.parent().is_some_and(|above| above.ends_with("1/tables")))), 0);
    assert_eq!(heals(without(|file| file.ends_with("current"))), 0);
    heals(without(|file| file.extension().is_some_and(|extension| extension == "jnl")));
    heals(without(|file| file.ends_with("version")));
    // A generation that took the process down when it was opened is not opened again.
    assert_eq!(heals(|folder| fs::write(folder.join("opening"), "generation-0").unwrap()), 0);
    // What a removal that was cut short leaves behind.
    heals(|folder| fs::rename(folder.join("generation-0"), folder.join("generation-0.removed")).unwrap());
}

#[test]
fn damaged_bytes_are_never_given_out() {
    let left = heals(|folder| {
        for table in tables(folder) {
            let mut bytes = fs::read(&table).unwrap();
            // In the vectors, which come first: the table opens.
            for at in (5_000..bytes.len() / 2).step_by(5_000) {
                bytes[at] ^= 0x10;
            }
            fs::write(table, bytes).unwrap();
        }
    });
    assert!(left < 200);
}

#[test]
fn a_disk_that_fails_costs_the_cache_only() {
    let folder = filled();
    let cache = open(folder.path());
    for table in tables(folder.path()) {
        fs::remove_file(table).unwrap();
    }
    let broken = folder.path().join("0/generation-0/keyspaces/1/tables");
    fs::remove_dir(&broken).unwrap();
    fs::write(&broken, "not a folder").unwrap();
    put(&cache, 300..310);
    cache.flush();
    assert!(there(&cache, 0..310) <= 200, "what could not be written is not there");
    put(&cache, 300..310);
    cache.flush();
    assert_eq!(there(&cache, 300..310), 10, "it works again");
}

#[test]
fn a_folder_that_is_deleted_under_the_running_cache_is_made_anew() {
    let folder = filled();
    let cache = open(folder.path());
    fs::remove_dir_all(folder.path().join("0")).unwrap();
    for _ in 0..2 {
        put(&cache, 300..310);
        cache.flush();
        there(&cache, 0..310);
    }
    assert_eq!(there(&cache, 300..310), 10);
}

#[test]
fn instances_that_share_a_folder_do_not_share_vectors() {
    let folder = folder();
    let first = open(folder.path());
    let second = open(folder.path());
    put(&first, [1]);
    first.flush();
    assert_eq!(there(&second, [1]), 0);
    drop(first);
    // The next to come takes over what the first left.
    assert_eq!(there(&open(folder.path()), [1]), 1);
}

#[test]
fn a_folder_that_can_not_be_is_an_error_and_foreign_files_stay() {
    let folder = folder();
    let file = folder.path().join("file");
    let mut foreign = OpenOptions::new().create_new(true).write(true).open(&file).unwrap();
    foreign.write_all(b"precious").unwrap();
    let error: CacheError = VectorCache::open(&file, MIB).err().unwrap();
    assert!(error.to_string().contains("file"), "{error}");
    let part = folder.path().join("0");
    fs::create_dir_all(part.join("notes")).unwrap();
    fs::write(part.join("notes/list"), "precious").unwrap();
    drop(open(folder.path()));
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert_eq!(fs::read(part.join("notes/list")).unwrap(), b"precious");
}
