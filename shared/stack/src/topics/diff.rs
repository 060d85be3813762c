//! What has to change in a cluster, and what must not.

use std::collections::BTreeMap;
use std::fmt;

use weir_contracts::{Cleanup, Partitions, TopicNames};

use super::TopicSpec;
use crate::cluster::{ClusterState, TopicState};

/// What the topics are measured by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Names on the cluster.
    pub names: TopicNames,
    /// Lanes.
    pub lanes: i32,
    /// Replicas of new topics; none: 3, or as many as there are brokers.
    pub replication: Option<i32>,
    /// Whether stored records may become removable: shorter retention, another cleanup policy.
    pub allow_loss: bool,
}

impl Shape {
    /// Replicas of new topics on a cluster of so many brokers.
    #[must_use]
    pub fn replication_on(&self, brokers: usize) -> i32 {
        self.replication.unwrap_or_else(|| i32::try_from(brokers.clamp(1, 3)).unwrap_or(1))
    }
}

/// How many replicas must have a record, where there are so many: one may fail.
fn min_insync_replicas(replication: i32) -> i32 {
    if replication >= 3 { replication - 1 } else { 1 }
}

/// One difference between what is declared and what is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// Full name of the topic.
    pub topic: String,
    /// What differs, and what follows.
    #[serde(flatten)]
    pub change: Change,
}

/// What to do about a difference.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// The topic is missing.
    Create {
        /// How many.
        partitions: i32,
        /// Replicas of each.
        replication: i32,
        /// Its settings.
        settings: BTreeMap<String, String>,
    },
    /// A setting differs.
    Set {
        /// Which.
        key: String,
        /// As it is.
        from: String,
        /// As it should be.
        to: String,
    },
    /// A topic before the routers has too few partitions.
    Grow {
        /// As many as there are.
        from: i32,
        /// As many as there should be.
        to: i32,
    },
    /// A difference that is not mended, since that would lose data or order.
    Refused {
        /// What differs.
        what: String,
        /// What mending it would do, and what can be done instead.
        why: String,
    },
    /// Something to know; nothing is done about it.
    Note {
        /// What.
        what: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topic = &self.topic;
        match &self.change {
            Change::Create { partitions, replication, settings } => {
                write!(f, "+ {topic}: {partitions} partitions, replication {replication}")?;
                settings.iter().try_for_each(|(key, value)| write!(f, ", {key}={value}"))
            }
            Change::Set { key, from, to } => write!(f, "~ {topic}: {key} {from} -> {to}"),
            Change::Grow { from, to } => write!(f, "~ {topic}: partitions {from} -> {to}"),
            Change::Refused { what, why } => write!(f, "! {topic}: {what}: {why}"),
            Change::Note { what } => write!(f, "  {topic}: {what}"),
        }
    }
}

/// The steps that lead from what is to what is declared, in the order of the declarations; notes last.
#[must_use]
pub fn diff(specs: &[TopicSpec], shape: &Shape, state: &ClusterState) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut notes = Vec::new();
    for spec in specs {
        let topic = shape.names.full_name(&spec.name);
        let changes = match state.topics.get(&topic) {
            Some(now) => compare(spec, shape, now),
            None => vec![create(spec, shape, state.brokers.len())],
        };
        for change in changes {
            let step = Step { topic: topic.clone(), change };
            if matches!(step.change, Change::Note { .. }) { notes.push(step) } else { steps.push(step) }
        }
    }
    let known = |name: &str| specs.iter().any(|spec| shape.names.full_name(&spec.name) == name);
    for name in state.topics.keys().filter(|name| !known(name)) {
        let what = "is not declared; it is left alone".to_owned();
        notes.push(Step { topic: name.clone(), change: Change::Note { what } });
    }
    steps.into_iter().chain(notes).collect()
}

fn create(spec: &TopicSpec, shape: &Shape, brokers: usize) -> Change {
    let replication = shape.replication_on(brokers);
    Change::Create {
        partitions: spec.partitions(shape.lanes),
        replication,
        settings: spec.settings(min_insync_replicas(replication)),
    }
}

fn compare(spec: &TopicSpec, shape: &Shape, now: &TopicState) -> Vec<Change> {
    let mut changes = Vec::new();
    changes.extend(compare_partitions(spec, shape, now));
    if let Some(wanted) = shape.replication
        && wanted != now.replication
    {
        let what = format!(
            "replication is {}, not {wanted}; move the replicas with Kafka's kafka-reassign-partitions",
            now.replication
        );
        changes.push(Change::Note { what });
    }
    for (key, to) in spec.settings(min_insync_replicas(now.replication)) {
        let from = now.settings.get(&key).map(|setting| setting.value.clone()).unwrap_or_default();
        if from == to {
            continue;
        }
        changes.push(match loss(&key, &from, spec).filter(|_| !shape.allow_loss) {
            Some(why) => Change::Refused { what: format!("{key} {from} -> {to}"), why },
            None => Change::Set { key, from, to },
        });
    }
    changes
}

fn compare_partitions(spec: &TopicSpec, shape: &Shape, now: &TopicState) -> Option<Change> {
    let (from, to) = (now.partitions, spec.partitions(shape.lanes));
    let what = format!("partitions {from} -> {to}");
    if from == to {
        None
    } else if from > to {
        let why = "Kafka can't take partitions away without their records; create the topic anew under another prefix \
                   and ingest again, or set kafka.lanes to what there is";
        Some(Change::Refused { what, why: why.into() })
    } else if spec.partitions == Partitions::Routers {
        Some(Change::Grow { from, to })
    } else {
        let why = "documents would move to other lanes and leave their old copies and their order behind; keep \
                   kafka.lanes as it is, or choose another prefix and ingest again";
        Some(Change::Refused { what, why: why.into() })
    }
}

/// Why a change of this setting would lose records; nothing when it would not.
fn loss(key: &str, from: &str, spec: &TopicSpec) -> Option<String> {
    let with = "; --allow-loss does it all the same";
    match key {
        "cleanup.policy" => {
            let what = match spec.cleanup {
                Cleanup::Compact => "all but the last record of each key",
                Cleanup::Delete => "records older than the retention, though they are the only copy",
            };
            Some(format!("Kafka would remove {what}{with}"))
        }
        "retention.ms" => {
            let infinite = |ms: i64| if ms < 0 { i64::MAX } else { ms };
            let to = spec.settings(1).get(key).and_then(|ms| ms.parse().ok()).map(infinite)?;
            let from = from.parse().ok().map(infinite)?;
            (to < from).then(|| format!("Kafka would remove records that are kept now{with}"))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::Setting;

    fn spec(partitions: Partitions, cleanup: Cleanup, days: Option<u32>) -> TopicSpec {
        TopicSpec {
            name: "t".into(),
            schema: None,
            partitions,
            cleanup,
            retention_days: days,
            max_compaction_lag_days: None,
            max_message_bytes: None,
        }
    }

    fn shape() -> Shape {
        Shape { names: TopicNames::new("weir."), lanes: 12, replication: None, allow_loss: false }
    }

    fn cluster(partitions: i32, settings: &[(&str, &str)]) -> ClusterState {
        let set = |(key, value): &(&str, &str)| ((*key).to_owned(), Setting { value: (*value).to_owned(), own: true });
        let topic = TopicState { partitions, replication: 1, settings: settings.iter().map(set).collect() };
        ClusterState { brokers: vec![1], topics: [("weir.t".to_owned(), topic)].into() }
    }

    const WEEK: &[(&str, &str)] =
        &[("cleanup.policy", "delete"), ("retention.ms", "604800000"), ("min.insync.replicas", "1")];

    fn refused(steps: &[Step]) -> bool {
        steps.iter().any(|step| matches!(step.change, Change::Refused { .. }))
    }

    #[test]
    fn what_matches_needs_nothing() {
        let week = spec(Partitions::Lanes, Cleanup::Delete, Some(7));
        assert_eq!(diff(&[week], &shape(), &cluster(12, WEEK)), []);
    }

    #[test]
    fn what_would_lose_records_is_refused() {
        let day = spec(Partitions::Lanes, Cleanup::Delete, Some(1));
        assert!(refused(&diff(std::slice::from_ref(&day), &shape(), &cluster(12, WEEK))));
        let allowed = Shape { allow_loss: true, ..shape() };
        assert!(!refused(&diff(&[day], &allowed, &cluster(12, WEEK))));
        let compact = spec(Partitions::Lanes, Cleanup::Compact, None);
        assert!(refused(&diff(&[compact], &shape(), &cluster(12, WEEK))));
        let month = spec(Partitions::Lanes, Cleanup::Delete, Some(30));
        assert!(!refused(&diff(&[month], &shape(), &cluster(12, WEEK))));
    }

    #[test]
    fn lanes_are_never_added_or_removed_not_even_when_loss_is_allowed() {
        let week = spec(Partitions::Lanes, Cleanup::Delete, Some(7));
        let allowed = Shape { allow_loss: true, ..shape() };
        assert!(refused(&diff(std::slice::from_ref(&week), &allowed, &cluster(24, WEEK))));
        assert!(refused(&diff(&[week], &allowed, &cluster(6, WEEK))));
        let entry = spec(Partitions::Routers, Cleanup::Delete, Some(7));
        let steps = diff(&[entry], &shape(), &cluster(6, WEEK));
        assert!(matches!(steps.first().unwrap().change, Change::Grow { from: 6, to: 12 }));
    }

    #[test]
    fn a_cluster_of_three_keeps_three_copies_of_which_one_may_fail() {
        let week = spec(Partitions::Lanes, Cleanup::Delete, Some(7));
        let state = ClusterState { brokers: vec![1, 2, 3], topics: BTreeMap::new() };
        let steps = diff(&[week], &shape(), &state);
        let Change::Create { replication, settings, .. } = &steps.first().unwrap().change else { unreachable!() };
        assert_eq!(*replication, 3);
        assert_eq!(settings.get("min.insync.replicas").unwrap(), "2");
    }
}
