//! docs/metrics.md says what the programs say. `make docs` writes it anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use programs::{SERVICES, read, root, run};
use regex::Regex;
use serde::Deserialize;

const FILE: &str = "docs/metrics.md";

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Metric {
    scope: String,
    name: String,
    kind: String,
    labels: Vec<String>,
    help: String,
}

/// Metrics of each service, as its program lists them.
fn listed() -> BTreeMap<&'static str, Vec<Metric>> {
    let environment = BTreeMap::new();
    SERVICES
        .iter()
        .map(|service| {
            let text = run(&format!("weir-{service}"), &["--print-metrics"], &environment);
            (*service, serde_json::from_str(&text).unwrap())
        })
        .collect()
}

fn table(out: &mut String, metrics: &[(&Metric, String)], last: &str) {
    let _ = writeln!(out, "| Metric | Kind | Labels | Meaning |{}", if last.is_empty() { "" } else { last });
    let _ = writeln!(out, "| --- | --- | --- | --- |{}", if last.is_empty() { "" } else { " --- |" });
    for (metric, services) in metrics {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = write!(out, "| `{}` | {} | {} | {} |", metric.name, metric.kind, labels.join(", "), metric.help);
        if last.is_empty() {
            out.push('\n');
        } else {
            let _ = writeln!(out, " {services} |");
        }
    }
}

fn document() -> String {
    let listed = listed();
    let mut out = String::from(
        "# Metrics\n\n\
         Written from the code by `make docs`; a test keeps it true. Every service shows its metrics at `/metrics` on \
         its health port, for Prometheus. Durations are seconds, sizes bytes. Labels have few values: tenants beyond \
         the first 50 of an instance count as `other`.\n\n\
         What to look at first: [operations.md](operations.md); what the alerts mean: [runbooks/](runbooks/README.md).\n",
    );
    let any = listed.values().next().unwrap();
    for (scope, title) in [("every service", "Every service"), ("every stage", "Every stage")] {
        let metrics: Vec<_> = any.iter().filter(|m| m.scope == scope).map(|m| (m, String::new())).collect();
        let _ = write!(out, "\n## {title}\n\n");
        table(&mut out, &metrics, "");
    }
    let mut own: BTreeMap<&str, (&Metric, BTreeSet<&str>)> = BTreeMap::new();
    for (service, metrics) in &listed {
        for metric in metrics.iter().filter(|metric| metric.scope == *service) {
            own.entry(&metric.name).or_insert((metric, BTreeSet::new())).1.insert(service);
        }
    }
    let rows: Vec<_> = own
        .values()
        .map(|(metric, services)| {
            let in_order: Vec<&str> = SERVICES.iter().copied().filter(|service| services.contains(service)).collect();
            (*metric, in_order.join(", "))
        })
        .collect();
    out.push_str("\n## Single services\n\n");
    table(&mut out, &rows, " Services |");
    out
}

#[test]
fn the_document_says_what_the_programs_say() {
    let expected = document();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(root().join(FILE), &expected).unwrap();
    }
    assert!(read(FILE) == expected, "{FILE} is out of date: run `make docs` and commit it");
}

#[test]
fn names_follow_the_grammar_and_mean_one_thing() {
    let grammar = Regex::new("^weir(_[a-z0-9]+)+$").unwrap();
    let mut seen: BTreeMap<String, Metric> = BTreeMap::new();
    for (service, metrics) in listed() {
        let mut of_this_service = BTreeSet::new();
        for metric in metrics {
            let name = metric.name.clone();
            assert!(of_this_service.insert(name.clone()), "{service} lists {name} twice");
            assert!(grammar.is_match(&name), "{name} does not follow weir_<what>[_<unit>]");
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == "counter",
                "{name}: counters end in _total, and only they"
            );
            assert!(metric.help.ends_with('.'), "{name}: its help is a sentence");
            let known = seen.entry(name.clone()).or_insert_with(|| metric.clone());
            let same = (&known.kind, &known.labels, &known.help) == (&metric.kind, &metric.labels, &metric.help);
            assert!(same, "{name} means different things in different services");
        }
    }
}

fn sources_below(folder: &Path) -> Vec<String> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(sources_below(&path));
        } else {
            sources.push(std::fs::read_to_string(path).unwrap());
        }
    }
    sources
}

/// A metric that nothing counts is a promise nobody keeps.
#[test]
fn every_metric_is_counted_somewhere() {
    let declaration = Regex::new(r#"(?m)^\s*(?:pub const )?([A-Z_]+)(?:: &str)? = (?:\w+ )?"weir_"#).unwrap();
    let mut declared = 0;
    for parent in ["services", "shared"] {
        for package in std::fs::read_dir(root().join(parent)).unwrap() {
            let folder = package.unwrap().path().join("src");
            let Ok(list) = std::fs::read_to_string(folder.join("metric.rs")) else { continue };
            let sources = sources_below(&folder);
            for found in declaration.captures_iter(&list) {
                let name = &found[1];
                let listed = [format!("const {name}:"), format!("name: {name},"), format!("{name} = ")];
                let used = Regex::new(&format!(r"\b{name}\b")).unwrap();
                let counted = sources
                    .iter()
                    .flat_map(|text| text.lines())
                    .any(|line| used.is_match(line) && !listed.iter().any(|listed| line.contains(listed)));
                assert!(counted, "nothing counts {name} of {}", folder.display());
                declared += 1;
            }
        }
    }
    assert!(declared > 50, "only {declared} metrics were found");
}

/// Panels and alerts ask for metrics and labels that exist.
#[test]
fn dashboards_and_alerts_ask_for_metrics_that_exist() {
    let known: BTreeMap<String, Metric> =
        listed().into_values().flatten().map(|metric| (metric.name.clone(), metric)).collect();
    let name = Regex::new(r"weir_[a-z0-9_]+").unwrap();
    let by = Regex::new(r"by \(([^)]*)\)").unwrap();
    let alerts: serde_yaml_ng::Value = serde_yaml_ng::from_str(&read("deploy/prometheus/alerts.yml")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/dashboards/weir.json")).unwrap();
    let mut expressions: Vec<String> = alerts["groups"][0]["rules"]
        .as_sequence()
        .unwrap()
        .iter()
        .map(|rule| rule["expr"].as_str().unwrap().to_owned())
        .collect();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    assert!(expressions.len() > 20);
    for expression in expressions {
        let mut labels: BTreeSet<&str> = ["le", "job", "instance"].into();
        for found in name.find_iter(&expression) {
            let asked = found.as_str();
            let metric = ["", "_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| known.get(asked.strip_suffix(suffix)?))
                .unwrap_or_else(|| panic!("there is no metric {asked}: {expression}"));
            labels.extend(metric.labels.iter().map(String::as_str));
        }
        for group in by.captures_iter(&expression) {
            for label in group[1].split(',').map(str::trim) {
                assert!(labels.contains(label), "no metric has the label {label}: {expression}");
            }
        }
    }
}

/// Who is woken finds what to do.
#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let alerts: serde_yaml_ng::Value = serde_yaml_ng::from_str(&read("deploy/prometheus/alerts.yml")).unwrap();
    let index = read("docs/runbooks/README.md");
    let mut pages = BTreeSet::from(["README.md".to_owned()]);
    for rule in alerts["groups"][0]["rules"].as_sequence().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        let page = format!("{name}.md");
        assert_eq!(rule["annotations"]["runbook"].as_str(), Some(format!("docs/runbooks/{page}").as_str()), "{name}");
        assert!(read(&format!("docs/runbooks/{page}")).contains("Over when"), "{page} does not say when it is over");
        assert!(index.contains(&format!("[{name}]({page})")), "docs/runbooks/README.md does not list {name}");
        pages.insert(page);
    }
    let found: BTreeSet<String> = std::fs::read_dir(root().join("docs/runbooks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, pages);
}
