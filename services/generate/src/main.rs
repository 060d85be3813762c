//! Answers questions with citations.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use weir_contracts::Topic;
use weir_generate::config::Config;
use weir_generate::{
    Agents, Answering, HttpReranker, KafkaTokens, Meaning, Parts, Prompts, Rerank, RouteQuestions, Store, Tenants,
};
use weir_llm::Chain;
use weir_runner::{Concurrency, Order, Publisher};
use weir_vectors::VectorStore;

fn main() -> ExitCode {
    weir_service::main::<Config, _, _>(|config, service| async move {
        let meaning = Meaning::load(&config.model).await?;
        let store = Store::new(VectorStore::connect(&config.qdrant)?, meaning.model_id());
        let publisher = Publisher::new(&config.kafka, service.registry())?;
        let concurrency = Concurrency { records: config.generate.concurrency, order: Order::Free };
        let answering = Answering::new(Parts {
            prompts: Prompts::load(config.generate.prompts_dir.as_deref())?,
            chain: Chain::new(&config.llm)?,
            retrieve: store,
            rerank: HttpReranker::new(&config.rerank)?.map(|reranker| Arc::new(reranker) as Arc<dyn Rerank>),
            meaning,
            tokens: Arc::new(KafkaTokens::new(publisher)),
            tenants: Tenants::follow(&config.kafka, service.registry()),
            agents: Agents::new(&config.agent)?,
            lanes: config.kafka.lanes,
            config: config.generate,
            clock: Arc::new(SystemTime::now),
        })?;
        let route = RouteQuestions::new(config.kafka.lanes);
        tokio::try_join!(
            service.run_stage("route-questions", Topic::QUESTIONS, route),
            service.run_concurrent_stage("answer", Topic::ASKS, answering, concurrency),
        )?;
        Ok(())
    })
}
