//! The points of the collection, straight from Qdrant.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use color_eyre::eyre::WrapErr;
use qdrant_client::Qdrant;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::{PointId, ScrollPointsBuilder, Value};

use crate::model::Shown;

const PAGE: u32 = 1_000;
const ANSWER: Duration = Duration::from_secs(20);

/// What says which revision of a document can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Revision.
    pub revision: i64,
    /// Whether it deletes the document.
    pub deleted: bool,
    /// Chunks it has.
    pub chunks: i64,
}

/// A chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Id of its point.
    pub id: String,
    /// Revision.
    pub revision: i64,
    /// Text.
    pub text: String,
}

/// All points.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Points {
    /// Heads by `tenant/document`; several only if something is broken.
    pub heads: HashMap<String, Vec<Head>>,
    /// Chunks by `tenant/document`.
    pub chunks: HashMap<String, Vec<Chunk>>,
    /// Points that are neither.
    pub strange: Vec<String>,
}

impl Points {
    /// Every point there is now.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn read(url: &str, collection: &str) -> color_eyre::Result<Self> {
        let client = Qdrant::from_url(url).timeout(ANSWER).skip_compatibility_check().build()?;
        let mut points = Self::default();
        let mut offset: Option<PointId> = None;
        loop {
            let mut request = ScrollPointsBuilder::new(collection).limit(PAGE).with_payload(true).with_vectors(false);
            if let Some(offset) = offset {
                request = request.offset(offset);
            }
            let page = client.scroll(request).await.wrap_err("reading the points")?;
            for point in page.result {
                points.add(point.id.as_ref(), &point.payload);
            }
            offset = page.next_page_offset;
            if offset.is_none() {
                return Ok(points);
            }
        }
    }

    /// Reads until the points are as `wanted`, or `limit` has passed: what heads leave behind goes later.
    ///
    /// # Errors
    /// When Qdrant does not answer.
    pub async fn settle(
        url: &str,
        collection: &str,
        wanted: &HashMap<String, Shown>,
        limit: Duration,
    ) -> color_eyre::Result<Self> {
        let begun = Instant::now();
        loop {
            let points = Self::read(url, collection).await?;
            if points.differences(wanted).is_empty() || begun.elapsed() > limit {
                return Ok(points);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn add(&mut self, id: Option<&PointId>, payload: &HashMap<String, Value>) {
        let kind = |name: &str| payload.get(name).and_then(|value| value.kind.as_ref());
        let text = |name: &str| match kind(name) {
            Some(Kind::StringValue(text)) => text.clone(),
            _ => String::new(),
        };
        let number = |name: &str| match kind(name) {
            Some(Kind::IntegerValue(number)) => *number,
            _ => -1,
        };
        let id = match id.and_then(|id| id.point_id_options.as_ref()) {
            Some(PointIdOptions::Uuid(uuid)) => uuid.clone(),
            Some(PointIdOptions::Num(number)) => number.to_string(),
            None => String::new(),
        };
        let subject = format!("{}/{}", text("tenant"), text("document"));
        match text("kind").as_str() {
            "head" => self.heads.entry(subject).or_default().push(Head {
                revision: number("revision"),
                deleted: kind("deleted") == Some(&Kind::BoolValue(true)),
                chunks: number("chunks"),
            }),
            "chunk" => {
                self.chunks.entry(subject).or_default().push(Chunk {
                    id,
                    revision: number("revision"),
                    text: text("text"),
                });
            }
            other => self.strange.push(format!("{id} of {subject} is a {other:?}")),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.heads.values().map(Vec::len).sum::<usize>() + self.chunks.values().map(Vec::len).sum::<usize>()
    }

    /// Where the points differ from what documents must show: one head each, and the chunks of that revision only.
    #[must_use]
    pub fn differences(&self, wanted: &HashMap<String, Shown>) -> Vec<String> {
        let mut differences = self.strange.clone();
        for (subject, shown) in wanted {
            let heads = self.heads.get(subject).map_or(&[][..], Vec::as_slice);
            let chunks = self.chunks.get(subject).map_or(&[][..], Vec::as_slice);
            let expected = Head {
                revision: shown.revision,
                deleted: shown.text.is_none(),
                chunks: i64::from(shown.text.is_some()),
            };
            if *heads != [expected.clone()] {
                differences.push(format!("{subject}: its head is {heads:?}, must be {expected:?}"));
            }
            let texts: Vec<(i64, &str)> = chunks.iter().map(|chunk| (chunk.revision, chunk.text.as_str())).collect();
            let wanted: Vec<(i64, &str)> = shown.text.iter().map(|text| (shown.revision, text.as_str())).collect();
            if texts != wanted {
                differences.push(format!("{subject}: its chunks are {texts:?}, must be {wanted:?}"));
            }
        }
        let stranger = |subject: &&String| !wanted.contains_key(*subject);
        for subject in self.heads.keys().chain(self.chunks.keys()).filter(stranger) {
            differences.push(format!("{subject}: points of a document that was never accepted"));
        }
        differences.sort();
        differences
    }
}
