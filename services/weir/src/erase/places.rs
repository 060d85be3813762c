//! Every place where a copy of a document may lie, and what becomes of it there.

use std::collections::BTreeMap;
use std::time::Duration;

use color_eyre::eyre::{WrapErr, eyre};
use serde::Serialize;
use toml::Value;
use weir_contracts::{DocumentId, RETRY_TIERS, RETURNING, TenantId, Topic, dead_letter_topic};
use weir_runner::{Extent, Filter, extent};
use weir_stack::Cluster;
use weir_vectors::{QdrantConfig, VectorStore};

use super::documents::Documents;
use super::fate::{Fate, Policy};
use crate::context::Context;
use crate::progress::now_millis;
use crate::{dead_letters, pipeline, tail};

const TIMEOUT: Duration = Duration::from_secs(10);
/// What was under way when the index said deleted (an answer that was being written) is written within this time.
const UNDER_WAY_MS: i64 = 600_000;
/// The indexer's own default of `index.sweep_interval_s`.
const SWEEP_S: i64 = 900;
/// The broker's own default of `log.retention.check.interval.ms`.
const CHECK_MS: i64 = 300_000;

/// A place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Where.
    pub place: String,
    /// What of a document lies there.
    pub holds: &'static str,
    /// What becomes of it.
    #[serde(flatten)]
    pub fate: Fate,
}

/// Whose copies are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// One of its documents; none: all.
    pub document: Option<&'a DocumentId>,
}

/// Looks at every place.
///
/// # Errors
/// When Kafka can't be asked.
pub async fn look(scope: Scope<'_>, documents: &Documents, context: &Context) -> color_eyre::Result<Vec<Place>> {
    let now = now_millis();
    let deleted_at = documents.deleted_at(now);
    let topics = Topics::read(context).await?;
    let place = |place: &str, holds, fate| Place { place: place.to_owned(), holds, fate };
    let mut places = vec![
        place("deletion", "-", pending(documents)),
        place("Qdrant: points", "text, vectors", points(scope, deleted_at, now, context).await),
        place(
            "Qdrant: heads",
            "ids",
            remains(
                "one point for each document, and one for each of which a revision failed: ids and revision, so that \
                 nothing older comes back",
            ),
        ),
    ];
    let before = deleted_at.saturating_add(UNDER_WAY_MS);
    for (topic, holds) in [
        (Topic::DOCUMENT_REQUESTS, "original bytes"),
        (Topic::REQUESTS, "original bytes"),
        (Topic::CHUNKS, "text"),
        (Topic::EMBEDDINGS, "text, vectors"),
    ] {
        places.push(place(topic.name(), holds, topics.passing(topic.name(), before, now).await?));
    }
    let texts = match documents.texts {
        0 => Fate::Gone,
        _ => topics.policy(Topic::DOCUMENTS.name())?.map_or(Fate::Gone, |policy| policy.fate(deleted_at)),
    };
    places.push(place(Topic::DOCUMENTS.name(), "text", texts));
    // Nothing writes a null record after it: the fence is to stay.
    let fence = "the record that says deleted stays: ids, revision, and the metadata that the deletion named";
    places.push(place("documents: deletions", "ids", remains(fence)));
    places.push(place("retry.*, *.again", "records of every step", topics.detours(now).await?));
    places.push(place("answers, answer-tokens", "what was cited", topics.answers(before, now).await?));
    places.push(place("dlq.*: outstanding", "rejected records", outstanding(scope, context).await?));
    places.push(place("dlq.*: discarded, replayed", "rejected records", topics.discarded(now).await?));
    let tables = "the latest state and the outcomes of requests (these until retention.ms): ids, and reasons in words";
    places.push(place("document-status, request-outcomes", "ids", remains(tables)));
    let state = "revision and that it is deleted; hashes of earlier contents go with compaction";
    places.push(place("extract-state, ingest's disk", "hashes", remains(state)));
    let answers = "answers to earlier questions, which are not given any more: each goes when its time is over \
                   (generate.cache_stale_s, idempotency_window_s) and its lane has later questions, then with compaction";
    places.push(place("answer-state, generate's disk", "answers, what was cited", remains(answers)));
    let cache = "on each instance's disk, under hashed keys and without text, until newer ones push them out \
                 (embed.cache_mib); to have them gone at once, stop the instance and remove its embed.cache_dir";
    places.push(place("embed's cache", "vectors", remains(cache)));
    let originals = "what requests named by content_uri, what consumers of answers stored, and backups";
    places.push(place("outside Weir", "originals", Fate::Elsewhere { why: originals.into() }));
    Ok(places)
}

fn remains(why: &str) -> Fate {
    Fate::Remains { why: why.to_owned() }
}

fn pending(documents: &Documents) -> Fate {
    match documents.pending().count() {
        0 => Fate::Gone,
        count => Fate::Outstanding {
            why: format!("{count} documents are not deleted yet; times below count from now"),
            cure: "weir erase --wait; `weir lag` shows where records wait".into(),
        },
    }
}

async fn points(scope: Scope<'_>, deleted_at: i64, now: i64, context: &Context) -> Fate {
    let counted = async {
        let config: QdrantConfig = context.section("qdrant")?;
        let count = VectorStore::connect(&config)?.count_all(scope.tenant, scope.document).await?;
        color_eyre::Result::<_>::Ok((count, config.delete_grace_ms))
    };
    let (count, grace) = match counted.await {
        Ok((0, _)) => return Fate::Gone,
        Ok((count, grace)) => (count, i64::try_from(grace).unwrap_or(i64::MAX)),
        Err(error) => {
            let cure = "weir doctor; then the same again".to_owned();
            return Fate::Outstanding { why: format!("points can't be counted: {error:#}"), cure };
        }
    };
    let removed = deleted_at.saturating_add(grace);
    if removed > now {
        return Fate::By { at: removed, why: format!("{count} points; qdrant.delete_grace_ms ({grace})") };
    }
    let index = context.sections().get("index").and_then(|index| index.get("sweep_interval_s"));
    swept(count, index.and_then(Value::as_integer).unwrap_or(SWEEP_S), now)
}

/// What was written too late to be removed with its head, or whose removal was lost, a sweep finds.
fn swept(count: u64, interval_s: i64, now: i64) -> Fate {
    if interval_s <= 0 {
        return Fate::Unbounded {
            why: format!("{count} points, and index.sweep_interval_s is 0: nothing looks for what was left"),
            cure: "set index.sweep_interval_s".into(),
        };
    }
    let why = format!("{count} points; the sweep that begins within index.sweep_interval_s ({interval_s} s)");
    Fate::By { at: now.saturating_add(interval_s.saturating_mul(1_000)), why }
}

async fn outstanding(scope: Scope<'_>, context: &Context) -> color_eyre::Result<Fate> {
    let stages: Vec<String> = pipeline::stages().map(|stage| stage.name.to_owned()).collect();
    let filter = Filter {
        tenant: Some(scope.tenant.clone()),
        document: scope.document.map(|document| document.as_str().to_owned()),
        ..Filter::default()
    };
    let count = dead_letters::list(context, &stages, &filter).await?.len();
    if count == 0 {
        return Ok(Fate::Gone);
    }
    let document = scope.document.map(|document| format!(" --document '{document}'")).unwrap_or_default();
    Ok(Fate::Outstanding {
        why: format!("{count} dead letters; they never expire"),
        cure: format!("weir dlq discard --tenant {} --only-tenant{document}", scope.tenant),
    })
}

/// The topics of the live cluster.
struct Topics<'a> {
    context: &'a Context,
    settings: BTreeMap<String, BTreeMap<String, String>>,
    check_interval_ms: i64,
}

impl<'a> Topics<'a> {
    async fn read(context: &'a Context) -> color_eyre::Result<Self> {
        let cluster = Cluster::connect(&context.kafka.brokers, &context.kafka.properties)?;
        let state = cluster.state(&context.kafka.prefix).await?;
        // Who may not describe brokers gets the default, which almost nobody changes.
        let broker = match state.brokers.first() {
            Some(id) => cluster.broker_settings(*id).await.unwrap_or_default(),
            None => BTreeMap::new(),
        };
        let interval = broker.get("log.retention.check.interval.ms").and_then(|setting| setting.value.parse().ok());
        let values = |settings: BTreeMap<String, weir_stack::Setting>| {
            settings.into_iter().map(|(name, setting)| (name, setting.value)).collect()
        };
        let settings = state.topics.into_iter().map(|(name, topic)| (name, values(topic.settings))).collect();
        Ok(Self { context, settings, check_interval_ms: interval.unwrap_or(CHECK_MS) })
    }

    /// What a topic says of its records; nothing where there is no such topic.
    fn policy(&self, name: &str) -> color_eyre::Result<Option<Policy>> {
        let full = self.context.kafka.topics().full_name(name);
        let Some(settings) = self.settings.get(&full) else { return Ok(None) };
        Policy::of(&full, settings, self.check_interval_ms).map(Some).map_err(|reason| eyre!(reason))
    }

    /// What a topic holds, seen from a point in time.
    async fn extent(&self, name: &str, time: i64) -> color_eyre::Result<Extent> {
        let kafka = &self.context.kafka;
        let full = kafka.topics().full_name(name);
        let measured = tail::settled(|| {
            let (kafka, full) = (kafka.clone(), full.clone());
            let measured = tokio::task::spawn_blocking(move || extent(&kafka, &full, time, TIMEOUT));
            async { color_eyre::Result::<_>::Ok(measured.await.wrap_err("the measurement was interrupted")??) }
        });
        measured.await
    }

    /// A topic through which copies pass: the newest one was written before `before`.
    async fn passing(&self, name: &str, before: i64, now: i64) -> color_eyre::Result<Fate> {
        let Some(policy) = self.policy(name)? else { return Ok(Fate::Gone) };
        let time = before.min(now);
        Ok(match self.extent(name, time).await? {
            Extent::Earlier => policy.fate(time),
            Extent::Empty => Fate::Gone,
            // What is younger than the deletion is somebody else's, unless it still is the time of both.
            Extent::Later if before <= now => Fate::Gone,
            Extent::Later => policy.fate(now),
        })
    }

    /// Where records wait to come back: whatever lies there now may be one of them.
    async fn detours(&self, now: i64) -> color_eyre::Result<Fate> {
        let tiers = RETRY_TIERS.iter().map(|(topic, _)| topic.name());
        let mut fates = Vec::new();
        for name in tiers.chain(RETURNING.iter().map(|(_, topic)| topic.name())) {
            fates.push(self.passing(name, now, now).await?);
        }
        Ok(Fate::longest(fates))
    }

    async fn answers(&self, before: i64, now: i64) -> color_eyre::Result<Fate> {
        let mut fates = Vec::new();
        for topic in [Topic::ANSWERS, Topic::ANSWER_TOKENS] {
            fates.push(self.passing(topic.name(), before, now).await?);
        }
        Ok(Fate::longest(fates))
    }

    /// Dead letters that are not outstanding any more lie in their topics until these are compacted.
    async fn discarded(&self, now: i64) -> color_eyre::Result<Fate> {
        let mut fates = Vec::new();
        for stage in pipeline::stages() {
            let name = dead_letter_topic(stage.name);
            let Some(policy) = self.policy(&name)? else { continue };
            if self.extent(&name, now).await? != Extent::Empty {
                fates.push(policy.fate(now));
            }
        }
        Ok(Fate::longest(fates))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_sweep_what_was_left_has_no_bound() {
        assert!(!swept(3, 0, 1_000).is_settled());
        assert!(matches!(swept(3, 900, 1_000), Fate::By { at: 901_000, .. }));
    }
}
