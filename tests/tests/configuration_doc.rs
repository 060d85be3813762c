//! docs/configuration.md names every key with its default. `make docs` brings keys and defaults up to date; what they
//! mean is written by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod programs;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use programs::{SERVICES, output, read, root, run};

const FILE: &str = "docs/configuration.md";
/// Begins the part of the document that is written anew.
const KEYS: &str = "## All keys\n";
/// Sections that every service has come first.
const FIRST: &[&str] = &["kafka", "registry", "runner", "http", "telemetry", "qdrant", "model", "llm"];

type Defaults = BTreeMap<String, BTreeMap<&'static str, String>>;

/// `section.key` -> service -> default.
fn defaults() -> Defaults {
    let mut defaults = Defaults::new();
    for service in SERVICES {
        let printed = run(&format!("weir-{service}"), &["--print-config"], &BTreeMap::new());
        let config: toml::Table = printed.parse().unwrap();
        for (section, keys) in config {
            flatten(&section, &keys, service, &mut defaults);
        }
    }
    defaults
}

fn flatten(path: &str, value: &toml::Value, service: &'static str, defaults: &mut Defaults) {
    match value {
        toml::Value::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                flatten(&format!("{path}.{key}"), value, service, defaults);
            }
        }
        value => {
            let text = value.to_string().replace("/nonexistent", "~").replace('|', "\\|");
            defaults.entry(path.to_owned()).or_default().insert(service, text);
        }
    }
}

/// The default of most services, then the exceptions.
fn cell(key: &str, by_service: &BTreeMap<&str, String>) -> String {
    if key == "http.listen" {
        return "127.0.0.1 and the service's port".into();
    }
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    by_service.values().for_each(|value| *counts.entry(value).or_default() += 1);
    let (common, _) = counts.into_iter().max_by_key(|(_, count)| *count).unwrap();
    let mut cell = format!("`{common}`");
    for service in SERVICES {
        if let Some(value) = by_service.get(service).filter(|value| *value != common) {
            let _ = write!(cell, "; {service}: `{value}`");
        }
    }
    cell
}

/// Rows of the document: key -> (default, meaning).
fn rows(text: &str) -> BTreeMap<String, (String, String)> {
    text.lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
            let key = cells.first()?.strip_suffix('`')?;
            key.contains('.').then(|| (key.to_owned(), (cells[1].to_owned(), cells[2..].join(" | "))))
        })
        .collect()
}

fn document(old: &str, defaults: &Defaults) -> String {
    let (head, _) = old.split_once(KEYS).expect("the heading of the keys");
    let mut rows = rows(old);
    for (key, by_service) in defaults {
        let meaning = rows.get(key).map_or("?", |(_, meaning)| meaning.as_str()).to_owned();
        rows.insert(key.clone(), (cell(key, by_service), meaning));
    }
    rows.retain(|key, (default, _)| defaults.contains_key(key) || default == "none");
    let mut sections: Vec<&str> = rows.keys().map(|key| key.split('.').next().unwrap()).collect();
    sections.dedup();
    let order = |section: &str| {
        let first = FIRST.iter().position(|first| *first == section);
        let service = SERVICES.iter().position(|service| *service == section);
        first.unwrap_or(FIRST.len() + service.unwrap_or(SERVICES.len()))
    };
    sections.sort_by_key(|section| order(section));
    let mut out = format!("{head}{KEYS}");
    for section in sections {
        let _ = write!(out, "\n### [{section}]\n\n| Key | Default | Meaning |\n| --- | --- | --- |\n");
        for (key, (default, meaning)) in rows.iter().filter(|(key, _)| key.split('.').next() == Some(section)) {
            let _ = writeln!(out, "| `{key}` | {default} | {meaning} |");
        }
    }
    out
}

#[test]
fn every_key_is_documented_with_its_default() {
    let old = read(FILE);
    let expected = document(&old, &defaults());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(root().join(FILE), &expected).unwrap();
    } else {
        assert!(old == expected, "{FILE} is out of date: run `make docs`, fill in what the new keys mean, commit it");
    }
    let without: Vec<_> = rows(&expected).into_iter().filter(|(_, (_, meaning))| meaning == "?").collect();
    assert!(without.is_empty(), "what do these mean? {without:#?}");
}

/// Keys without a default exist too: a service that has the section takes them.
#[test]
fn every_documented_key_without_a_default_exists() {
    let defaults = defaults();
    for (key, (default, _)) in rows(&read(FILE)) {
        if default != "none" {
            continue;
        }
        let section = key.split('.').next().unwrap();
        let service = SERVICES
            .iter()
            .find(|service| {
                let prefix = format!("{section}.");
                defaults.iter().any(|(known, by)| known.starts_with(&prefix) && by.contains_key(*service))
            })
            .unwrap_or_else(|| panic!("no service has the section of {key}"));
        let setting = format!("{}=1", key.replace("<name>", "main"));
        let asked = output(&format!("weir-{service}"), &["--print-config", "--set", &setting], &BTreeMap::new());
        let complaint = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(!complaint.contains("unknown key"), "{key}: {complaint}");
    }
}
