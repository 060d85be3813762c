//! A stage to answer with: passages from memory, providers that do as a script says, and the state of one lane.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use futures::future::BoxFuture;
use weir_contracts::{
    Answer, AnswerToken, DocumentId, Lane, Question, Record, RequestId, Revision, Tenant, TenantId, Topic, Usage,
};
use weir_generate::config::GenerateConfig;
use weir_generate::{
    AgentSection, Agents, Answering, Meaning, Parts, Passage, Prompts, Rerank, Retrieve, RetrieveError, Tenants,
    TokenSink, Wanted,
};
use weir_llm::testing::FakeProvider;
use weir_llm::{Chain, LlmConfig, PriceConfig, ProviderConfig, RetryConfig, TimeoutConfig};
use weir_models::ModelConfig;
use weir_stage::{ConcurrentStage, Coordinates, Delivery, Headers, LaneState, LaneView, MemoryLane, Outcome};
use weir_vectors::{Hit, VectorError};

/// Lanes there are.
pub const LANES: i32 = 12;

/// Milliseconds since the Unix epoch, for every test.
pub const NOW: u64 = 1_700_000_000_000;

/// Tenant, filter and limit of each search.
pub type Searches = Arc<Mutex<Vec<(String, BTreeMap<String, String>, usize)>>>;

#[derive(Clone)]
pub struct Memory {
    documents: Vec<(&'static str, &'static str)>,
    away: Arc<AtomicBool>,
    erased: Arc<AtomicBool>,
    revised: Arc<AtomicBool>,
    searches: Searches,
}

impl Retrieve for Memory {
    async fn retrieve(&self, wanted: &Wanted<'_>) -> Result<Vec<Passage>, RetrieveError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(VectorError::Unavailable { call: "search", reason: "away".into() }.into());
        }
        let search = (wanted.tenant.to_string(), wanted.filter.clone(), wanted.limit);
        self.searches.lock().unwrap().push(search);
        let words = |text: &str| text.to_lowercase().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let question = words(wanted.question);
        let mut passages: Vec<Passage> = self
            .documents
            .iter()
            .map(|(document, text)| {
                let hit = Hit {
                    document: DocumentId::parse(*document).unwrap(),
                    revision: Revision::from_ordinal(7 + i64::from(self.revised.load(Ordering::Relaxed))),
                    ordinal: 0,
                    start: 10,
                    end: 10 + i64::try_from(text.len()).unwrap(),
                    title: None,
                    heading_path: Vec::new(),
                    text: (*text).to_owned(),
                    score: 0.0,
                };
                let shared = words(text).iter().filter(|word| question.contains(word)).count();
                Passage { hit, similarity: Some(f64::from(u32::try_from(shared).unwrap()) / 10.0) }
            })
            .collect();
        passages.sort_by(|a, b| b.similarity.partial_cmp(&a.similarity).unwrap());
        passages.truncate(wanted.limit);
        Ok(passages)
    }

    async fn document(
        &self,
        tenant: &TenantId,
        filter: &BTreeMap<String, String>,
        document: &DocumentId,
        limit: usize,
    ) -> Result<Vec<Passage>, RetrieveError> {
        let wanted = Wanted { tenant, filter, question: "", vector: &[], limit: usize::MAX };
        let all = self.retrieve(&wanted).await?;
        Ok(all.into_iter().filter(|passage| passage.hit.document == *document).take(limit).collect())
    }

    async fn all_shown(&self, _: &TenantId, _: &[&DocumentId]) -> Result<bool, RetrieveError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(VectorError::Unavailable { call: "read heads", reason: "away".into() }.into());
        }
        Ok(!self.erased.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
pub struct Tokens {
    pub taken: Mutex<Vec<(AnswerToken, Lane)>>,
    pub refuses: AtomicBool,
}

impl TokenSink for Tokens {
    fn publish<'a>(&'a self, token: AnswerToken, lane: Lane, _: Option<&'a [u8]>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            if self.refuses.load(Ordering::Relaxed) {
                return Err("Kafka is away".into());
            }
            self.taken.lock().unwrap().push((token, lane));
            Ok(())
        })
    }
}

impl Tokens {
    pub fn text(&self, attempt: i32) -> String {
        let taken = self.taken.lock().unwrap();
        let mine: Vec<_> = taken.iter().filter(|(token, _)| token.attempt == attempt).collect();
        let sequences: Vec<i32> = mine.iter().map(|(token, _)| token.sequence).collect();
        assert_eq!(sequences, (0..i32::try_from(mine.len()).unwrap()).collect::<Vec<_>>());
        mine.iter().map(|(token, _)| token.delta.as_str()).collect()
    }
}

pub struct House {
    pub stage: Answering<Memory>,
    pub tokens: Arc<Tokens>,
    /// The vector store is away.
    pub away: Arc<AtomicBool>,
    /// Its documents are erased.
    pub erased: Arc<AtomicBool>,
    /// Its documents are of another revision.
    pub revised: Arc<AtomicBool>,
    pub searches: Searches,
    pub lane: Arc<MemoryLane>,
}

pub const MILL: &str = "The mill at Ulm was built in 1912. Its wheel is made of oak.";
pub const SHIP: &str = "A ship was launched in Kiel. It carried coal to Bergen.";

pub async fn house(providers: &[&FakeProvider]) -> House {
    Plan { providers, ..Plan::default() }.build().await
}

/// A house that is not as usual.
#[derive(Default)]
pub struct Plan<'a> {
    pub providers: &'a [&'a FakeProvider],
    pub tenants: Vec<Tenant>,
    pub config: GenerateConfig,
    pub agent: AgentSection,
    pub rerank: Option<Arc<dyn Rerank>>,
    /// Whether the providers honour idempotency keys.
    pub idempotent: bool,
    /// The lane's state as an owner before left it.
    pub lane: Arc<MemoryLane>,
}

impl Plan<'_> {
    pub async fn build(self) -> House {
        let providers = self.providers;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let llm = LlmConfig {
            chain: Vec::new(),
            providers: providers
                .iter()
                .enumerate()
                .map(|(at, provider)| {
                    let config = ProviderConfig {
                        base_url: provider.base_url(),
                        model: "model".into(),
                        price: PriceConfig {
                            input_per_million: 1.0,
                            output_per_million: 1.0,
                            ..PriceConfig::default()
                        },
                        honours_idempotency: self.idempotent,
                        ..ProviderConfig::default()
                    };
                    (format!("p{at}"), config)
                })
                .collect(),
            timeouts: TimeoutConfig {
                connect_ms: 100,
                first_token_ms: 400,
                between_tokens_ms: 200,
                inference_ms: 1_000,
                ..TimeoutConfig::default()
            },
            // What a question does when a provider fails for good shows without them, and sooner.
            retries: RetryConfig { max: 0, ..RetryConfig::default() },
            ..LlmConfig::default()
        };
        let [away, erased, revised] = std::array::from_fn(|_| Arc::new(AtomicBool::new(false)));
        let tokens = Arc::new(Tokens::default());
        let searches = Searches::default();
        let documents = vec![("mill.md", MILL), ("ship.md", SHIP)];
        let stage = Answering::new(Parts {
            prompts: Prompts::load(None).unwrap(),
            chain: Chain::new(&llm).unwrap(),
            retrieve: Memory {
                documents,
                away: Arc::clone(&away),
                erased: Arc::clone(&erased),
                revised: Arc::clone(&revised),
                searches: Arc::clone(&searches),
            },
            rerank: self.rerank,
            meaning: Meaning::load(&ModelConfig::test()).await.unwrap(),
            tokens: Arc::clone(&tokens) as Arc<dyn TokenSink>,
            tenants: Tenants::fixed(self.tenants),
            agents: Agents::new(&self.agent).unwrap(),
            lanes: LANES,
            config: self.config,
            clock: Arc::new(|| UNIX_EPOCH + Duration::from_millis(NOW)),
        })
        .unwrap();
        House { stage, tokens, away, erased, revised, searches, lane: self.lane }
    }
}

/// Where the questions of the tenant are answered.
pub fn home() -> Lane {
    Lane::of(b"acme", LANES)
}

pub fn question(id: &str, text: &str) -> Question {
    Question {
        request_id: RequestId::parse(id).unwrap(),
        tenant: TenantId::parse("acme").unwrap(),
        question: text.to_owned(),
        deadline: None,
        idempotency_key: None,
        feature: Some("search".into()),
        filter: BTreeMap::new(),
        prompt_version: None,
        top_k: None,
        agent: false,
        created_at: i64::try_from(NOW).unwrap() - 40,
    }
}

pub fn delivery(record: Question) -> Delivery<Question> {
    static OFFSETS: AtomicI64 = AtomicI64::new(0);
    let offset = OFFSETS.fetch_add(1, Ordering::Relaxed);
    let at = Coordinates { topic: Arc::from("weir.asks"), lane: home(), offset };
    Delivery { record, at, key: None, headers: Headers::default(), timestamp: 5 }
}

pub fn written<T: Record>(outcome: &Outcome, topic: Topic) -> Vec<T> {
    outcome
        .outputs()
        .iter()
        .filter(|output| output.topic == topic)
        .map(|output| {
            let mut body = Vec::new();
            output.record.as_ref().unwrap().encode(&mut body).unwrap();
            T::decode(None, &body).unwrap()
        })
        .collect()
}

pub fn answer(outcome: &Outcome) -> Answer {
    let mut answers = written(outcome, Topic::ANSWERS);
    assert_eq!(answers.len(), 1, "every ask gets exactly one answer");
    answers.remove(0)
}

impl House {
    pub fn state(&self) -> LaneState<'_> {
        LaneState::new(self.lane.as_ref() as &dyn LaneView, i64::try_from(NOW).unwrap())
    }

    pub async fn ask(&self, question: Question) -> (Answer, Vec<Usage>) {
        let outcome = self.outcome(&delivery(question)).await;
        (answer(&outcome), written(&outcome, Topic::USAGE))
    }

    /// What becomes of a question in the end.
    pub async fn outcome(&self, delivery: &Delivery<Question>) -> Outcome {
        let outcome = self.stage.process(delivery, self.state()).await.unwrap();
        self.lane.conclude(outcome, i64::try_from(NOW).unwrap()).unwrap()
    }
}
