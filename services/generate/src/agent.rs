//! Questions for which a model may call tools, in turns, within bounds.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use metrics::{counter, histogram};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use weir_contracts::{AnswerStatus, DocumentId};
use weir_llm::tools::{Arithmetic, HttpTool, HttpToolConfig, InvalidTool, SameName, Tool, ToolError, Toolbox};
use weir_llm::{
    AgentConfig, Bounds, Chain, ChatRequest, InvalidAgent, Message, Run, Stop, ToolCall, ToolSpec, ToolStep,
};
use weir_stage::{LaneState, StageError};

use crate::answering::{Answering, Instead, failed};
use crate::ask::Ask;
use crate::case::Case;
use crate::cite::cited;
use crate::draft::{Draft, Timings};
use crate::journal::KEPT_BYTES;
use crate::metric;
use crate::modelled::complete;
use crate::prompt::{numbered, parts};
use crate::recall::Key;
use crate::retrieve::{Passage, Retrieve, Wanted, fitting};
use crate::stream::Streamer;

/// Passages of a document that a model gets at once, at most.
const DOCUMENT_PASSAGES: usize = 40;
/// The tools that every agent has.
const SEARCH: &str = "search_documents";
const READ: &str = "get_document";

/// Section `[agent]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSection {
    /// How far a model may go with one question.
    pub bounds: AgentConfig,
    /// Questions with tools that are worked on side by side, of those that `generate.concurrency` allows; others wait.
    pub concurrency: NonZeroUsize,
    /// Version of the prompt `agent`.
    pub prompt_version: String,
    /// Further tools: requests that a model may send, `[[agent.http]]`.
    pub http: Vec<HttpToolConfig>,
}

const DEFAULT_CONCURRENCY: NonZeroUsize = match NonZeroUsize::new(8) {
    Some(questions) => questions,
    None => NonZeroUsize::MIN,
};

impl Default for AgentSection {
    fn default() -> Self {
        Self {
            bounds: AgentConfig::default(),
            concurrency: DEFAULT_CONCURRENCY,
            prompt_version: "v1".into(),
            http: Vec::new(),
        }
    }
}

/// Agents can't be had like this.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A bound is out of its range.
    #[error("agent.bounds.{0}")]
    Bounds(#[from] InvalidAgent),
    /// A tool can't work.
    #[error("agent.http: {0}")]
    Tool(#[from] InvalidTool),
    /// Two tools have one name.
    #[error("agent.http: {0}")]
    SameName(#[from] SameName),
}

/// What agents work with.
#[derive(Debug, Clone)]
pub struct Agents {
    bounds: AgentConfig,
    places: Arc<Semaphore>,
    tools: Toolbox,
    prompt_version: String,
}

impl Agents {
    /// Agents with these settings.
    ///
    /// # Errors
    /// When a setting can't work.
    pub fn new(section: &AgentSection) -> Result<Self, AgentError> {
        section.bounds.check()?;
        let mut tools: Vec<Arc<dyn Tool>> = vec![Arc::new(Arithmetic)];
        for config in &section.http {
            if [SEARCH, READ].contains(&config.name.as_str()) {
                return Err(SameName { name: config.name.clone() }.into());
            }
            tools.push(Arc::new(HttpTool::new(config.clone())?));
        }
        let places = Arc::new(Semaphore::new(section.concurrency.get()));
        Ok(Self {
            bounds: section.bounds,
            places,
            tools: Toolbox::new(tools)?,
            prompt_version: section.prompt_version.clone(),
        })
    }

    /// Version of the prompt, within its template.
    pub(crate) fn prompt_version(&self) -> &str {
        &self.prompt_version
    }

    fn specs(&self) -> Vec<ToolSpec> {
        let text = |description: &str| json!({ "type": "string", "description": description });
        let tool = |name: &str, description: &str, argument: &str, value: Value| ToolSpec {
            name: name.to_owned(),
            description: description.to_owned(),
            parameters: json!({
                "type": "object",
                "properties": { argument: value },
                "required": [argument],
                "additionalProperties": false,
            }),
        };
        let mut specs = vec![
            tool(
                SEARCH,
                "Finds passages of the documents, best first.",
                "query",
                text("What to look for, in plain words."),
            ),
            tool(
                READ,
                "Gives the passages of one document from its beginning.",
                "document",
                text("Id of the document, as search results name it."),
            ),
        ];
        specs.extend(self.tools.specs());
        specs
    }
}

/// How far an agent is; a part of the question's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentJournal {
    /// The conversation so far.
    messages: Vec<Message>,
    /// Calls of tools that the model waits for.
    pending: Vec<ToolCall>,
    /// Passages by number, from 1.
    passages: Vec<Passage>,
    bounds: Bounds,
    /// Turns that have begun.
    turns: u32,
}

impl AgentJournal {
    /// Whether another turn might not fit into the journal.
    fn is_too_large(&self) -> bool {
        serde_json::to_vec(self).is_ok_and(|bytes| bytes.len() > KEPT_BYTES)
    }
}

impl<R: Retrieve> Answering<R> {
    /// What a model says in the end that may call tools, or what there is when a bound stops it. Each step is committed before
    /// the next: whoever takes the question over goes on where it was.
    pub(crate) async fn with_tools(
        &self,
        case: &mut Case<'_>,
        state: LaneState<'_>,
        chain: &Chain,
        passages: Vec<Passage>,
        mut timings: Timings,
    ) -> Result<Result<Draft, Instead>, StageError> {
        let ask = case.ask;
        // They wait in turn; nobody closes it.
        let _place = self.parts.agents.places.acquire().await;
        let mut agent = match case.journal.agent.take() {
            Some(agent) => agent,
            None => match self.begin(ask, passages) {
                Ok(agent) => agent,
                Err(instead) => return Ok(Err(instead)),
            },
        };
        let working = Instant::now();
        let mut streamer = Streamer::start(Arc::clone(&self.parts.tokens), ask.origin());
        let ended = self.turns(case, state, chain, &mut agent, &mut streamer).await?;
        let streamed = streamer.finish().await;
        timings.step("agent", working.elapsed());
        histogram!(metric::AGENT_TURNS).record(f64::from(agent.turns));
        let reason = match ended {
            Ended::Answered => {
                let reply = case.journal.reply.clone().unwrap_or_default();
                let attempt = if streamed { reply.attempt } else { 0 };
                let draft = complete(&reply, &agent.passages, attempt);
                return Ok(Ok(Draft { timings, prompt_version: ask.version.to_string(), ..draft }));
            }
            Ended::Instead(instead) => return Ok(Err(instead)),
            Ended::Stopped(stop) => {
                counter!(metric::AGENT_STOPS, "reason" => stop.reason()).increment(1);
                stop.to_string()
            }
            Ended::Unanswered(reason) => reason,
        };
        self.partial(ask, &agent, timings, reason).await
    }

    fn begin(&self, ask: &Ask<'_>, passages: Vec<Passage>) -> Result<AgentJournal, Instead> {
        let messages = self.parts.prompts.messages(&ask.version, ask.text(), &passages);
        let messages = messages.map_err(|error| Instead::Reject(failed(&error)))?;
        let bounds = Bounds::new(self.parts.agents.bounds).map_err(|error| Instead::Reject(failed(&error)))?;
        Ok(AgentJournal { messages, pending: Vec::new(), passages, bounds, turns: 0 })
    }

    async fn turns(
        &self,
        case: &mut Case<'_>,
        state: LaneState<'_>,
        chain: &Chain,
        agent: &mut AgentJournal,
        streamer: &mut Streamer,
    ) -> Result<Ended, StageError> {
        loop {
            if let Some(reply) = case.journal.reply.clone() {
                if reply.tool_calls.is_empty() {
                    return Ok(Ended::Answered);
                }
                case.journal.reply = None;
                agent.messages.push(Message::assistant(reply.text, reply.tool_calls.clone()));
                agent.pending = reply.tool_calls;
                case.journal.agent = Some(agent.clone());
            }
            if let Some(stop) = self.call_tools(case, state, agent).await? {
                return Ok(Ended::Stopped(stop));
            }
            if let Some(expired) = self.expired(case.ask, "while a model was answering") {
                return Ok(Ended::Instead(Instead::Draft(Box::new(expired))));
            }
            if agent.is_too_large() {
                return Ok(Ended::Unanswered("the conversation became longer than can be kept".to_owned()));
            }
            let request = self.request(case, agent);
            let (most, cost) = chain.most(&request);
            if let Err(stop) = agent.bounds.before_turn(&most, cost) {
                return Ok(Ended::Stopped(stop));
            }
            agent.turns += 1;
            case.journal.agent = Some(agent.clone());
            let first = case.journal.next_attempt();
            let Run { reply, calls } = self.call(case, state, chain, &request, first, streamer).await?;
            agent.bounds.after_turn(&calls);
            case.journal.agent = Some(agent.clone());
            if let Some(refusal) = case.stopped()? {
                return Ok(match case.journal.calls.is_empty() {
                    true => Ended::Instead(Instead::OverLimit(refusal)),
                    false => Ended::Unanswered(refusal.to_string()),
                });
            }
            case.record().await?;
            if let Err(exhausted) = reply {
                return Ok(Ended::Unanswered(exhausted.to_string()));
            }
        }
    }

    fn request(&self, case: &Case<'_>, agent: &AgentJournal) -> ChatRequest {
        let ask = case.ask;
        let (template, version) = parts(&ask.version);
        let remaining = ask.deadline.and_then(|deadline| deadline.remaining(self.now()));
        ChatRequest {
            messages: agent.messages.clone(),
            max_tokens: self.parts.agents.bounds.max_tokens_per_turn,
            temperature: self.temperature(&ask.version),
            deadline: remaining.map(|left| tokio::time::Instant::now() + left),
            idempotency_key: Some(format!("{}-{}", self.call_key(case), agent.turns)),
            tenant: Some(ask.question.tenant.to_string()),
            prompt_template: Some(template.to_owned()),
            prompt_version: Some(version.to_owned()),
            tools: self.parts.agents.specs(),
        }
    }

    /// Makes the calls that the model waits for, one after another; each result is written down before the next. Gives why
    /// the model may not go on.
    async fn call_tools(
        &self,
        case: &mut Case<'_>,
        state: LaneState<'_>,
        agent: &mut AgentJournal,
    ) -> Result<Option<Stop>, StageError> {
        while let Some(call) = agent.pending.first().cloned() {
            let shown = match agent.bounds.before_tool(&call) {
                Err(stop) => return Ok(Some(stop)),
                Ok(ToolStep::Known(result)) => result,
                Ok(ToolStep::Run) => {
                    // What leaves the house is written down before.
                    if ![SEARCH, READ].contains(&call.name.as_str()) {
                        case.journal.agent = Some(agent.clone());
                        case.record().await?;
                        state.committed().await?;
                        state.hold_lease().await?;
                    }
                    let result = self.run_tool(case.ask, &call, &mut agent.passages).await;
                    agent.bounds.after_tool(&call, &result)
                }
            };
            agent.messages.push(Message::tool(call.id, shown));
            agent.pending.remove(0);
            case.journal.agent = Some(agent.clone());
            case.record().await?;
        }
        Ok(None)
    }

    async fn run_tool(&self, ask: &Ask<'_>, call: &ToolCall, passages: &mut Vec<Passage>) -> Result<String, ToolError> {
        let limit = self.parts.chain.as_ref().map(|chain| chain.timeouts().tool()).unwrap_or_default();
        let work = async {
            let argument = |name: &str| -> Result<String, ToolError> {
                let arguments: Value = serde_json::from_str(&call.arguments)
                    .map_err(|error| ToolError::invalid(format!("the arguments are no JSON: {error}")))?;
                let value = arguments.get(name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
                value.map(str::to_owned).ok_or_else(|| ToolError::invalid(format!("it needs {name:?}, a text")))
            };
            let found = match call.name.as_str() {
                SEARCH => self.search_for(ask, &argument("query")?).await?,
                READ => self.read(ask, &argument("document")?).await?,
                _ => return self.other_tool(ask, call).await,
            };
            Ok(told(found, passages))
        };
        let result = match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(ToolError::timed_out(format!("it took longer than {} s", limit.as_secs()))),
        };
        let outcome = result.as_ref().map_or_else(|error| error.kind.name(), |_| "ok");
        // Models make names up; metrics know those there are.
        let known = [SEARCH, READ].contains(&call.name.as_str()) || self.parts.agents.tools.get(&call.name).is_some();
        let tool = if known { call.name.clone() } else { "unknown".to_owned() };
        counter!(metric::TOOL_CALLS, "tool" => tool, "result" => outcome).increment(1);
        result
    }

    /// Calls a tool that is not about the documents, or gives what it said before where that still holds.
    async fn other_tool(&self, ask: &Ask<'_>, call: &ToolCall) -> Result<String, ToolError> {
        let tools = &self.parts.agents.tools;
        let reusable = tools.get(&call.name).and_then(Tool::reusable_for).map(|length| (result_key(ask, call), length));
        if let Some((key, _)) = &reusable
            && let Some((result, _)) = self.tool_results.last(key, Instant::now())
        {
            counter!(metric::TOOL_RESULTS_REUSED, "tool" => call.name.clone()).increment(1);
            return Ok(result);
        }
        let result = tools.call(call).await?;
        if let Some((key, length)) = reusable {
            self.tool_results.note(key, result.clone(), length, Instant::now());
        }
        Ok(result)
    }

    async fn search_for(&self, ask: &Ask<'_>, query: &str) -> Result<Vec<Passage>, ToolError> {
        let vector = self.vector(query).await.map_err(|error| ToolError::failed(error.to_string()))?;
        let wanted = Wanted {
            tenant: &ask.question.tenant,
            filter: &ask.question.filter,
            question: query,
            vector: &vector,
            limit: self.parts.config.top_k,
        };
        self.retrieve(&wanted).await.map_err(|_| ToolError::failed("the search does not answer"))
    }

    async fn read(&self, ask: &Ask<'_>, document: &str) -> Result<Vec<Passage>, ToolError> {
        let document = DocumentId::parse(document).map_err(|error| ToolError::invalid(error.to_string()))?;
        let (tenant, filter) = (&ask.question.tenant, &ask.question.filter);
        let found = self.parts.retrieve.document(tenant, filter, &document, DOCUMENT_PASSAGES).await;
        let found = found.map_err(|_| ToolError::failed("the documents can't be read now"))?;
        if found.is_empty() {
            return Err(ToolError::invalid("there is no such document"));
        }
        Ok(fitting(found, KEPT_BYTES))
    }

    /// What there is when the model had to stop: what it said last, or sentences of what was found.
    async fn partial(
        &self,
        ask: &Ask<'_>,
        agent: &AgentJournal,
        timings: Timings,
        reason: String,
    ) -> Result<Result<Draft, Instead>, StageError> {
        let said = agent.messages.iter().rev().find(|message| message.is_said_by_model());
        let draft = match said {
            Some(message) => {
                let text = message.content.clone();
                let citations = cited(&text, &agent.passages);
                Draft { timings, ..Draft::with_text(AnswerStatus::Incomplete, text, citations) }
            }
            None => match self.extract(ask, &agent.passages, timings).await {
                Ok(draft) => Draft { status: AnswerStatus::Incomplete, ..draft },
                Err(instead) => return Ok(Err(instead)),
            },
        };
        Ok(Ok(Draft { reason: Some(reason), prompt_version: ask.version.to_string(), ..draft }))
    }
}

/// By what the result of a tool is remembered; it belongs to the tenant.
fn result_key(ask: &Ask<'_>, call: &ToolCall) -> Key {
    // The order in which a model names arguments makes no difference.
    let arguments: Option<BTreeMap<String, Value>> = serde_json::from_str(&call.arguments).ok();
    let arguments = arguments.and_then(|arguments| serde_json::to_string(&arguments).ok());
    let arguments = arguments.as_deref().unwrap_or(&call.arguments);
    weir_contracts::length_prefixed_hash(&[
        ask.question.tenant.as_str().as_bytes(),
        call.name.as_bytes(),
        arguments.as_bytes(),
    ])
}

/// How the turns ended.
enum Ended {
    /// With an answer, which is in the journal.
    Answered,
    /// A bound was hit.
    Stopped(Stop),
    /// No model answered.
    Unanswered(String),
    Instead(Instead),
}

/// Passages for the model, with the numbers to cite them by; one that it has already keeps its number.
fn told(found: Vec<Passage>, passages: &mut Vec<Passage>) -> String {
    if found.is_empty() {
        return "nothing was found".to_owned();
    }
    let mut text = String::new();
    for passage in found {
        let place = |one: &Passage| (one.hit.document.clone(), one.hit.revision, one.hit.ordinal);
        let at = match passages.iter().position(|known| place(known) == place(&passage)) {
            Some(at) => at,
            None => {
                passages.push(passage.clone());
                passages.len() - 1
            }
        };
        text.push_str(&numbered(at + 1, &passage));
    }
    text
}
