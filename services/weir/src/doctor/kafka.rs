//! Brokers, their limits, and the topics.

use std::collections::BTreeMap;

use weir_runner::RunnerConfig;
use weir_stack::topics::{Change, Step};
use weir_stack::{Cluster, ClusterState, Setting};

use super::finding::{Finding, Findings};
use super::rights;
use crate::context::Context;
use crate::topics;

/// All checks of Kafka.
pub async fn check(context: &Context, runner: &RunnerConfig) -> Vec<Finding> {
    let mut found = Findings::of("kafka");
    look(context, runner, &mut found).await;
    found.done()
}

async fn look(context: &Context, runner: &RunnerConfig, found: &mut Findings) {
    let kafka = &context.kafka;
    let cluster = match Cluster::connect(&kafka.brokers, &kafka.properties) {
        Ok(cluster) => cluster,
        Err(error) => {
            found.fail("properties", error.to_string(), "check the -X properties, or [kafka.properties] in the file");
            return;
        }
    };
    let state = match cluster.metadata(&kafka.prefix).await {
        Ok(state) => state,
        Err(error) => {
            found.fail("brokers", error.to_string(), unreachable_fix(&error.reason));
            return;
        }
    };
    let count = state.brokers.len();
    found.ok("brokers", format!("{count} at {}", kafka.brokers));
    settings(&cluster, &state, runner, found).await;
    declared(context, &cluster, &state, found).await;
    rights::check(context, runner, &cluster, &state, found).await;
}

/// What most likely helps, by what the client complained of.
fn unreachable_fix(reason: &str) -> &'static str {
    let reason = reason.to_lowercase();
    if reason.contains("authentication") || reason.contains("sasl") {
        "check sasl.mechanism, sasl.username and sasl.password (-X, or [kafka.properties])"
    } else if reason.contains("certificate") {
        "name the certificate authority with -X ssl.ca.location=FILE, and reach the broker by a name in its certificate"
    } else if reason.contains("ssl") || reason.contains("handshake") || reason.contains("disconnected") {
        "security.protocol must be what that listener speaks: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    } else {
        "start the local stack (weir stack up), or name a broker that can be reached with --kafka"
    }
}

async fn settings(cluster: &Cluster, state: &ClusterState, runner: &RunnerConfig, found: &mut Findings) {
    let Some(first) = state.brokers.first() else { return };
    let settings = match cluster.broker_settings(*first).await {
        Ok(settings) => settings,
        Err(error) => {
            found.warn("limits", error.to_string(), "allow DescribeConfigs on the cluster, to have its limits checked");
            return;
        }
    };
    durability(state.brokers.len(), &settings, found);
    transactions(&settings, runner, found);
    sessions(&settings, runner, found);
    if text(&settings, "auto.create.topics.enable") == "true" {
        let fix = "set auto.create.topics.enable=false on the brokers";
        found.warn("auto-create", "a misspelt topic is created with the broker's defaults instead of refused", fix);
    }
}

fn durability(brokers: usize, settings: &BTreeMap<String, Setting>, found: &mut Findings) {
    if brokers < 3 {
        let says = format!("{brokers} broker(s): the loss of a disk loses records");
        found.warn("durability", says, "fine on one machine; for more, three brokers (weir stack up --brokers 3)");
        return;
    }
    for topic in ["offsets.topic", "transaction.state.log"] {
        let key = format!("{topic}.replication.factor");
        let replicas = number(settings, &key);
        if replicas.is_some_and(|replicas| replicas < 3) {
            let says = format!("{key} is {}: the loss of one broker can stop commits", text(settings, &key));
            found.warn("durability", says, format!("set {key}=3 on the brokers and move the existing topic"));
        }
    }
    match number(settings, "transaction.state.log.min.isr") {
        Some(2..) => found.ok("durability", "internal topics keep 3 copies of which 2 must be written"),
        _ => found.warn(
            "durability",
            format!("transaction.state.log.min.isr is {}", text(settings, "transaction.state.log.min.isr")),
            "set transaction.state.log.min.isr=2 on the brokers",
        ),
    }
}

fn transactions(settings: &BTreeMap<String, Setting>, runner: &RunnerConfig, found: &mut Findings) {
    const KEY: &str = "transaction.max.timeout.ms";
    let wanted = i64::try_from(runner.transaction_timeout_ms).unwrap_or(i64::MAX);
    match number(settings, KEY) {
        Some(limit) if limit < wanted => found.fail(
            "transactions",
            format!("{KEY} is {limit}, and runner.transaction_timeout_ms is {wanted}: the brokers will refuse it"),
            format!("raise {KEY} on the brokers, or lower runner.transaction_timeout_ms to {limit}"),
        ),
        Some(limit) => found.ok("transactions", format!("timeout {wanted} ms, allowed up to {limit} ms")),
        None => {}
    }
}

fn sessions(settings: &BTreeMap<String, Setting>, runner: &RunnerConfig, found: &mut Findings) {
    let wanted = i64::try_from(runner.session_timeout_ms).unwrap_or(i64::MAX);
    let lowest = number(settings, "group.min.session.timeout.ms").unwrap_or(0);
    let highest = number(settings, "group.max.session.timeout.ms").unwrap_or(i64::MAX);
    if (lowest..=highest).contains(&wanted) {
        found.ok("sessions", format!("timeout {wanted} ms, allowed from {lowest} to {highest} ms"));
    } else {
        let says = format!("runner.session_timeout_ms is {wanted}; the brokers allow {lowest} to {highest}");
        found.fail("sessions", says, "change runner.session_timeout_ms, or group.{min,max}.session.timeout.ms");
    }
}

async fn declared(context: &Context, cluster: &Cluster, state: &ClusterState, found: &mut Findings) {
    let steps = match topics::differences(context, cluster).await {
        Ok(steps) => steps,
        Err(error) => {
            let fix = rights::grant(context, "DescribeConfigs", "topic");
            found.fail("topics", error.to_string(), fix);
            return;
        }
    };
    let of = |wanted: fn(&Change) -> bool| -> Vec<&Step> { steps.iter().filter(|step| wanted(&step.change)).collect() };
    let missing = of(|change| matches!(change, Change::Create { .. }));
    let refused = of(|change| matches!(change, Change::Refused { .. }));
    let different = of(|change| matches!(change, Change::Set { .. } | Change::Grow { .. }));
    if !missing.is_empty() {
        let says = format!("{} are missing (or may not be seen), the first is {}", missing.len(), first(&missing));
        found.fail("topics", says, "weir topics apply");
    }
    for step in refused {
        found.fail("topics", step.to_string(), "weir topics diff shows all; this one needs a decision");
    }
    let insecure: Vec<_> = different
        .iter()
        .filter(|step| matches!(&step.change, Change::Set { key, .. } if key == "min.insync.replicas"))
        .collect();
    if let Some(step) = insecure.first() {
        found.fail("min.isr", format!("{} topics, the first: {step}", insecure.len()), "weir topics apply");
    } else if missing.is_empty() {
        let single = state.topics.values().filter(|topic| topic.replication < 2).count();
        let says = if single == 0 {
            "every topic survives the loss of a broker".to_owned()
        } else {
            format!("{single} topics have one copy")
        };
        if single > 0 && state.brokers.len() >= 3 {
            found.warn("min.isr", says, "move their replicas with kafka-reassign-partitions, then weir topics apply");
        } else {
            found.ok("min.isr", says);
        }
    }
    if different.len() > insecure.len() {
        let says = format!("{} settings differ, the first: {}", different.len() - insecure.len(), first(&different));
        found.warn("topics", says, "weir topics diff, then weir topics apply");
    }
    if steps.iter().all(|step| matches!(step.change, Change::Note { .. })) {
        found.ok("topics", format!("as declared, under the prefix {}", context.kafka.prefix));
    }
}

fn first(steps: &[&Step]) -> String {
    steps.first().map(|step| step.topic.clone()).unwrap_or_default()
}

fn text<'a>(settings: &'a BTreeMap<String, Setting>, key: &str) -> &'a str {
    settings.get(key).map_or("unknown", |setting| setting.value.as_str())
}

fn number(settings: &BTreeMap<String, Setting>, key: &str) -> Option<i64> {
    settings.get(key)?.value.parse().ok()
}
