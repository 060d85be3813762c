//! The rules of the house that a machine can check.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::Value;

/// More than this in one file is two things in one file.
const LINES: usize = 600;

/// Files that may be longer, and why.
const LONGER: &[(&str, usize, &str)] =
    &[("shared/contracts/src/records.rs", 800, "one type for each schema, nothing else")];

/// Lines of a service's main: configuration, build, run.
const MAIN_LINES: usize = 100;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the repository below `folder`, relative to the root, without what builds and runs leave behind.
fn files(folder: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                let left_behind = ["target", ".git", ".weir", "bench-results", "node_modules", "__pycache__"];
                if !left_behind.contains(&name.as_str()) {
                    walk(&path, found);
                }
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    let mut relative: Vec<_> = found.iter().map(|path| path.strip_prefix(root()).unwrap().to_owned()).collect();
    relative.sort();
    relative
}

fn with_extension(folder: &str, extension: &str) -> Vec<PathBuf> {
    files(folder).into_iter().filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

fn rust_files() -> Vec<PathBuf> {
    ["services", "shared", "tests", "benches"].iter().flat_map(|folder| with_extension(folder, "rs")).collect()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Manifests of all packages by package name, with their folder.
fn packages() -> BTreeMap<String, (PathBuf, toml::Table)> {
    let mut folders: Vec<PathBuf> = ["services", "shared"]
        .iter()
        .flat_map(|parent| fs::read_dir(root().join(parent)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("Cargo.toml").exists())
        .collect();
    folders.extend([root().join("tests"), root().join("benches")]);
    folders
        .into_iter()
        .map(|folder| {
            let manifest: toml::Table = read(folder.join("Cargo.toml")).parse().unwrap();
            let name = manifest["package"]["name"].as_str().unwrap().to_owned();
            (name, (folder, manifest))
        })
        .collect()
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    manifest
        .get("dependencies")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

fn is_service(folder: &Path) -> bool {
    folder.parent() == Some(root().join("services").as_path())
}

#[test]
fn files_are_small_enough_to_hold_in_the_head() {
    let complaints = rust_files()
        .into_iter()
        .filter_map(|path| {
            let name = path.display().to_string();
            let limit = LONGER.iter().find(|(longer, ..)| *longer == name).map_or(LINES, |(_, limit, _)| *limit);
            let lines = read(&path).lines().count();
            (lines > limit).then(|| format!("{name}: {lines} lines, at most {limit}: are there two things in it?"))
        })
        .collect();
    none(complaints);
}

#[test]
fn files_are_named_for_what_they_do() {
    let vague = ["utils.rs", "util.rs", "common.rs", "helpers.rs", "helper.rs", "types.rs", "misc.rs"];
    let complaints = rust_files()
        .into_iter()
        .filter(|path| vague.contains(&path.file_name().unwrap().to_str().unwrap()))
        .map(|path| format!("{}: what does it do?", path.display()))
        .collect();
    none(complaints);
}

#[test]
fn every_file_says_what_it_is_for() {
    let complaints = rust_files()
        .into_iter()
        // Examples are quoted whole in documents that say it for them.
        .filter(|path| !path.display().to_string().contains("/examples/"))
        .filter(|path| {
            let text = read(path);
            let first = text.lines().find(|line| !line.is_empty() && !line.starts_with("#!["));
            !first.is_some_and(|line| line.starts_with("//!"))
        })
        .map(|path| format!("{}: does not begin with a //! line", path.display()))
        .collect();
    none(complaints);
}

#[test]
fn a_services_main_fits_on_a_page() {
    let mut complaints = Vec::new();
    for (name, (folder, _)) in packages() {
        if is_service(&folder) && name != "weir" {
            let lines = read(folder.join("src/main.rs")).lines().count();
            if lines > MAIN_LINES {
                complaints.push(format!("{name}: main.rs has {lines} lines, at most {MAIN_LINES}"));
            }
        }
    }
    none(complaints);
}

#[test]
fn every_package_has_the_lints_and_the_versions_of_the_workspace() {
    let mut complaints = Vec::new();
    for (name, (_, manifest)) in packages() {
        let inherits = |section: &str, key: &str| {
            manifest.get(section).and_then(|table| table.get(key)).is_some_and(|value| {
                value.as_bool() == Some(true) || value.get("workspace").and_then(toml::Value::as_bool) == Some(true)
            })
        };
        if !inherits("lints", "workspace") {
            complaints.push(format!("{name}: lacks [lints] workspace = true"));
        }
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            if !inherits("package", key) {
                complaints.push(format!("{name}: package.{key} is not the workspace's"));
            }
        }
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (dependency, value) in manifest.get(section).and_then(toml::Value::as_table).into_iter().flatten() {
                if value.get("workspace").is_none() && value.get("path").is_none() {
                    complaints.push(format!("{name}: {section}.{dependency} has a version of its own"));
                }
            }
        }
    }
    none(complaints);
}

/// Denied lints are lifted in code for tests only; elsewhere each exception says why, in its `reason` or on the line
/// above.
#[test]
fn outside_tests_every_excuse_from_a_lint_is_explained() {
    let excuse = Regex::new(
        r"allow\([^)]*clippy::(unwrap_used|expect_used|panic|indexing_slicing|cast_possible_truncation|cast_sign_loss)",
    )
    .unwrap();
    let is_test = |path: &Path| {
        let text = path.display().to_string();
        text.contains("/tests/")
            || text.ends_with("_tests.rs")
            || text.starts_with("tests/")
            || text.starts_with("shared/testing/")
            || text.starts_with("benches/")
            || text.contains("/examples/")
    };
    let mut complaints = Vec::new();
    for path in rust_files().into_iter().filter(|path| !is_test(path)) {
        let text = read(&path);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let mut before = "";
        for (number, line) in code.lines().enumerate() {
            let explained = line.contains("reason") || before.trim_start().starts_with("// ");
            before = line;
            if excuse.is_match(line) && !explained {
                complaints.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    none(complaints);
}

#[test]
fn dependencies_point_one_way() {
    let packages = packages();
    let services: BTreeSet<&String> =
        packages.iter().filter(|(_, (folder, _))| is_service(folder)).map(|(name, _)| name).collect();
    let lowest = |name: &str| -> Option<&[&str]> {
        match name {
            "weir-contracts" => Some(&[]),
            "weir-stage" => Some(&["weir-contracts"]),
            "weir-runner" => Some(&["weir-contracts", "weir-stage"]),
            "weir-service" => Some(&["weir-contracts", "weir-stage", "weir-runner"]),
            _ => None,
        }
    };
    let mut complaints = Vec::new();
    for (name, (folder, manifest)) in &packages {
        let ours: BTreeSet<String> =
            dependencies(manifest).into_iter().filter(|dependency| packages.contains_key(dependency)).collect();
        for dependency in &ours {
            if services.contains(dependency) {
                complaints.push(format!("{name} depends on the service {dependency}"));
            }
            if lowest(name).is_some_and(|allowed| !allowed.contains(&dependency.as_str())) {
                complaints.push(format!("{name} may not depend on {dependency}"));
            }
            let helps_tests = ["weir-testing", "weir-tests"].contains(&dependency.as_str());
            if helps_tests && !["weir-tests", "weir-benches"].contains(&name.as_str()) {
                complaints.push(format!("{name} depends on {dependency} outside its tests"));
            }
            let runs_things = ["weir-runner", "weir-service", "weir-stack"].contains(&dependency.as_str());
            let is_library_of_a_stage =
                ["weir-models", "weir-vectors", "weir-llm", "weir-text"].contains(&name.as_str());
            if runs_things && is_library_of_a_stage && !is_service(folder) {
                complaints
                    .push(format!("{name} depends on {dependency}: stages and their libraries do no IO on Kafka"));
            }
        }
    }
    none(complaints);
}

/// Contracts and stages are plain values: no files, no network, no clock, no chance.
#[test]
fn contracts_and_stage_do_no_io() {
    let io = Regex::new(
        r"std::(fs|net|process|env|thread)\b|SystemTime::now|Instant::now|new_v4|now_v7|\b(tokio|rand|reqwest|rdkafka)::",
    )
    .unwrap();
    let mut complaints = Vec::new();
    for path in ["shared/contracts/src", "shared/stage/src"].iter().flat_map(|folder| with_extension(folder, "rs")) {
        let text = read(&path);
        for line in text.split("#[cfg(test)]").next().unwrap_or_default().lines() {
            if io.is_match(line) && !line.trim_start().starts_with("//") {
                complaints.push(format!("{}: {}", path.display(), line.trim()));
            }
        }
    }
    none(complaints);
}

/// Heavy or delicate dependencies stay alone in their crates.
#[test]
fn one_crate_owns_each_heavy_dependency() {
    let owners: &[(&str, &[&str])] = &[
        ("rdkafka", &["weir-runner", "weir-stack", "weir", "weir-testing", "weir-tests", "weir-chaos", "weir-benches"]),
        ("qdrant-edge", &["qdrant-embedded"]),
        ("candle-core", &["weir-models", "weir-benches"]),
        ("candle-nn", &["weir-models", "weir-benches"]),
        ("candle-transformers", &["weir-benches"]),
        (
            "qdrant-client",
            &["weir-vectors", "qdrant-embedded", "weir-stack", "weir", "weir-testing", "weir-tests", "weir-chaos"],
        ),
        ("pdf-extract", &["weir-ingest"]),
    ];
    let mut complaints = Vec::new();
    for (name, (_, manifest)) in packages() {
        for dependency in dependencies(&manifest) {
            if let Some((_, allowed)) = owners.iter().find(|(owned, _)| *owned == dependency)
                && !allowed.contains(&name.as_str())
            {
                complaints.push(format!("{name} depends on {dependency}, which belongs to {allowed:?}"));
            }
        }
    }
    none(complaints);
}

#[test]
fn every_topic_has_a_schema_or_keeps_bytes_as_they_are() {
    // Records of other topics whole, or a stage's own memory.
    let as_they_are = |name: &str| {
        ["dlq.", "retry."].iter().any(|start| name.starts_with(start))
            || [".again", "-state"].iter().any(|end| name.ends_with(end))
    };
    let mut complaints = Vec::new();
    for path in with_extension("topics", "toml") {
        let topic: toml::Table = read(&path).parse().unwrap();
        let name = topic["name"].as_str().unwrap();
        let file = path.display();
        if path.file_stem().unwrap().to_str().unwrap() != name {
            complaints.push(format!("{file}: the topic is called {name}"));
        }
        match topic.get("schema").and_then(toml::Value::as_str) {
            Some(schema) if root().join(format!("schemas/{schema}.avsc")).exists() => {}
            Some(schema) => complaints.push(format!("{file}: there is no schemas/{schema}.avsc")),
            None if as_they_are(name) => {}
            None => complaints.push(format!("{file}: names no schema")),
        }
    }
    none(complaints);
}

#[test]
fn every_field_of_every_schema_is_documented_and_optional_ones_have_defaults() {
    fn look(file: &str, path: &str, schema: &Value, complaints: &mut Vec<String>) {
        match schema {
            Value::Array(branches) => branches.iter().for_each(|branch| look(file, path, branch, complaints)),
            Value::Object(object) => {
                for field in object.get("fields").and_then(Value::as_array).into_iter().flatten() {
                    let name = format!("{path}.{}", field["name"].as_str().unwrap_or_default());
                    if field.get("doc").and_then(Value::as_str).is_none_or(str::is_empty) {
                        complaints.push(format!("{file}: {name} has no doc"));
                    }
                    let optional = field["type"].as_array().is_some_and(|union| union.contains(&"null".into()));
                    if optional && field.get("default") != Some(&Value::Null) {
                        complaints.push(format!("{file}: {name} is optional without the default null"));
                    }
                    look(file, &name, &field["type"], complaints);
                }
                for inner in ["items", "values"] {
                    if let Some(inner) = object.get(inner) {
                        look(file, path, inner, complaints);
                    }
                }
            }
            _ => {}
        }
    }
    let mut complaints = Vec::new();
    for path in with_extension("schemas", "avsc") {
        let schema: Value = serde_json::from_str(&read(&path)).unwrap();
        look(&path.display().to_string(), "", &schema, &mut complaints);
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let has_example = files("schemas/examples").iter().any(|example| {
            let text = example.strip_prefix("schemas/examples").unwrap().display().to_string();
            text.strip_prefix(&name).is_some_and(|rest| rest.starts_with(['.', '/', '-']))
        });
        if !has_example {
            complaints.push(format!("{}: has no example in schemas/examples", path.display()));
        }
    }
    none(complaints);
}

#[test]
fn scripts_stop_at_the_first_error() {
    let mut scripts = with_extension("scripts", "sh");
    scripts.push(".ci/run".into());
    let complaints = scripts
        .into_iter()
        .filter(|path| !read(path).contains("set -euo pipefail"))
        .map(|path| format!("{}: lacks set -euo pipefail", path.display()))
        .collect();
    none(complaints);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)#\s]+)(#[^)]*)?\)").unwrap();
    let mut complaints = Vec::new();
    for path in with_extension(".", "md") {
        let text = read(&path);
        let folder = root().join(path.parent().unwrap());
        for found in link.captures_iter(&text) {
            let target = &found[1];
            if !target.contains("://") && !target.starts_with("mailto:") && !folder.join(target).exists() {
                complaints.push(format!("{}: {target} does not exist", path.display()));
            }
        }
    }
    none(complaints);
}

/// Files that documents name in backticks, and comments anywhere, exist.
#[test]
fn paths_that_documents_and_comments_name_exist() {
    const FOLDERS: &str = "(?:services|shared|schemas|topics|prompts|deploy|docs|tests|benches|scripts)";
    let in_documents = Regex::new(&format!(r"`({FOLDERS}/[\w./-]+)`")).unwrap();
    let in_comments = Regex::new(&format!(r"(?:^|[\s`(])({FOLDERS}/[\w./-]*\w)")).unwrap();
    let mut complaints = Vec::new();
    for path in files(".") {
        let (named, comment) = match path.extension().and_then(|extension| extension.to_str()) {
            Some("md") => (&in_documents, ""),
            Some("rs") => (&in_comments, "//"),
            Some("toml" | "yml" | "sh" | "py") => (&in_comments, "#"),
            _ => continue,
        };
        let text = read(&path);
        for line in text.lines().filter(|line| line.trim_start().starts_with(comment)) {
            for found in named.captures_iter(line) {
                let target = found[1].trim_end_matches('/');
                if !root().join(target).exists() {
                    complaints.push(format!("{}: {target} does not exist", path.display()));
                }
            }
        }
    }
    none(complaints);
}

/// A test that a document calls a proof is there.
#[test]
fn tests_that_documents_name_exist() {
    let named = Regex::new(r"`([a-z0-9]+(?:_[a-z0-9]+){3,})`").unwrap();
    let function = Regex::new(r"fn ([a-z0-9_]+)\(").unwrap();
    let code: Vec<String> = rust_files().into_iter().map(read).collect();
    let functions: BTreeSet<&str> =
        code.iter().flat_map(|text| function.captures_iter(text)).map(|found| found.get(1).unwrap().as_str()).collect();
    let document = read("docs/guarantees.md");
    let proofs: Vec<&str> = named.captures_iter(&document).map(|found| found.get(1).unwrap().as_str()).collect();
    assert!(proofs.len() > 20, "{proofs:?}");
    none(proofs.iter().filter(|name| !functions.contains(*name)).map(|name| format!("no test {name}")).collect());
}

#[test]
fn make_targets_that_documents_name_exist() {
    let named = Regex::new(r"(?m)(?:^|`)make ([a-z-]+)").unwrap();
    let makefile = read("Makefile");
    let mut complaints = Vec::new();
    for path in with_extension(".", "md") {
        for found in named.captures_iter(&read(&path)) {
            if !makefile.lines().any(|line| line.starts_with(&format!("{}:", &found[1]))) {
                complaints.push(format!("{}: there is no make {}", path.display(), &found[1]));
            }
        }
    }
    none(complaints);
}

/// Examples for producers write fields that the schemas have, and all that have no default.
#[test]
fn examples_in_documents_follow_the_schemas() {
    let python = Regex::new(r#"(?s)write\("weir\.([a-z-]+)", key=[^{]*value=\{(.*?)\n\}\)"#).unwrap();
    let java = Regex::new(r#"(?s)GenericRecordBuilder\(schema\("([a-z-]+)"\)\)(.*?)\.build\(\)"#).unwrap();
    let nested = Regex::new(r"\{[^{}]*\}").unwrap();
    let (key, set) = (Regex::new(r#""(\w+)":"#).unwrap(), Regex::new(r#"\.set\("(\w+)""#).unwrap());
    let schema = |name: &str| -> Value { serde_json::from_str(&read(format!("schemas/{name}.avsc"))).unwrap() };
    let mut complaints = Vec::new();
    for file in ["README.md", "docs/clients.md"] {
        let text = read(file);
        let written = python.captures_iter(&text).map(|found| {
            let topic: toml::Table = read(format!("topics/{}.toml", &found[1])).parse().unwrap();
            let fields = nested.replace_all(&found[2], "").into_owned();
            let fields: BTreeSet<String> = key.captures_iter(&fields).map(|found| found[1].to_owned()).collect();
            (topic["schema"].as_str().unwrap().to_owned(), fields)
        });
        let built = java.captures_iter(&text).map(|found| {
            (found[1].to_owned(), set.captures_iter(&found[2]).map(|found| found[1].to_owned()).collect())
        });
        let examples: Vec<(String, BTreeSet<String>)> = written.chain(built).collect();
        let names: Vec<&str> = examples.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["document-request", "question", "document-request", "question"], "{file}");
        for (name, fields) in &examples {
            let schema = schema(name);
            let known = schema["fields"].as_array().unwrap();
            for field in fields.iter().filter(|field| !known.iter().any(|known| known["name"] == ***field)) {
                complaints.push(format!("{file}: {name} has no field {field}"));
            }
            for field in known.iter().filter(|field| field.get("default").is_none()) {
                if !fields.contains(field["name"].as_str().unwrap()) {
                    complaints.push(format!("{file}: {name} lacks {}", field["name"]));
                }
            }
        }
    }
    none(complaints);
}

/// Nothing in the repository is true on one machine only.
#[test]
fn no_file_names_somebodys_own_folder() {
    let home =
        Regex::new(concat!(r"(?m)(^|[\s'", "\"`=(:])/(ro", "ot|ho", r"me/\w+|wo", r"rk|Us", r"ers/\w+)/\w")).unwrap();
    let text_files = ["rs", "toml", "md", "sh", "yml", "yaml", "json", "py", "java", "xml", "avsc", "j2", "properties"];
    let mut complaints = Vec::new();
    for path in files(".") {
        let extension = path.extension().and_then(|found| found.to_str()).unwrap_or_default();
        if !text_files.contains(&extension) {
            continue;
        }
        for (number, line) in read(&path).lines().enumerate() {
            if home.is_match(line) {
                complaints.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    none(complaints);
}
