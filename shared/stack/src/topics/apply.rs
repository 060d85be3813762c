//! Making a cluster match.

use std::collections::BTreeMap;

use super::{Change, Shape, Step, TopicSpec, diff};
use crate::cluster::{Cluster, ClusterError, CreateTopic};

/// The cluster was not made to match.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Something would lose data, so nothing was done at all.
    #[error("nothing was changed, because this would lose data or order:{}", listed(.0))]
    Refused(Vec<Step>),
    /// The cluster would not.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

fn listed(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("\n  {step}")).collect()
}

/// Makes the cluster match the declarations and says what was done. All or nothing is decided before anything is
/// done: one refused step refuses all.
///
/// # Errors
/// When a step would lose data, or the cluster does not answer or refuses.
pub async fn apply(cluster: &Cluster, specs: &[TopicSpec], shape: &Shape) -> Result<Vec<Step>, ApplyError> {
    let state = cluster.state(shape.names.prefix()).await?;
    let steps = diff(specs, shape, &state);
    let refused: Vec<Step> =
        steps.iter().filter(|step| matches!(step.change, Change::Refused { .. })).cloned().collect();
    if !refused.is_empty() {
        return Err(ApplyError::Refused(refused));
    }
    let mut new = Vec::new();
    let mut settings: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for step in &steps {
        match &step.change {
            Change::Create { partitions, replication, settings } => new.push(CreateTopic {
                name: step.topic.clone(),
                partitions: *partitions,
                replication: *replication,
                settings: settings.clone(),
            }),
            Change::Set { key, to, .. } => {
                settings.entry(&step.topic).or_default().insert(key.clone(), to.clone());
            }
            Change::Grow { to, .. } => cluster.grow(&step.topic, *to).await?,
            Change::Refused { .. } | Change::Note { .. } => {}
        }
    }
    cluster.create(&new).await?;
    for (topic, changes) in settings {
        let now = state.topics.get(topic).cloned().unwrap_or_default();
        cluster.alter(topic, &now, &changes).await?;
    }
    Ok(steps)
}
