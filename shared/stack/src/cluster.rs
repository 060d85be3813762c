//! Questions to a Kafka cluster, and changes to it: the admin side.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, OwnedResourceSpecifier,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// How long the cluster gets for one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a change of a topic may take until the brokers tell of it.
const PROPAGATION: Duration = Duration::from_secs(5);

/// How long a new partition may take until its leader serves it; a loaded broker makes a few a second.
const SERVED: Duration = Duration::from_secs(60);

/// How long a client that can't connect is listened to.
const LISTEN: Duration = Duration::from_secs(3);

/// The cluster did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Kafka at {brokers} can't {action}: {reason}")]
pub struct ClusterError {
    /// Bootstrap servers.
    pub brokers: String,
    /// What was asked.
    pub action: String,
    /// What it or the client said.
    pub reason: String,
    /// The cluster's own code, where it gave one.
    pub code: Option<RDKafkaErrorCode>,
}

/// A topic as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicState {
    /// How many.
    pub partitions: i32,
    /// Replicas of each partition (of the first, should they differ).
    pub replication: i32,
    /// Every setting in force.
    pub settings: BTreeMap<String, Setting>,
}

/// One setting of a topic or broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its value.
    pub value: String,
    /// Whether it was set for this very topic.
    pub own: bool,
}

/// A cluster as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Ids of the brokers.
    pub brokers: Vec<i32>,
    /// Topics this user may see, by full name.
    pub topics: BTreeMap<String, TopicState>,
}

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateTopic {
    /// Full name.
    pub name: String,
    /// Partitions.
    pub partitions: i32,
    /// Replicas of each.
    pub replication: i32,
    /// Settings that differ from the broker's defaults.
    pub settings: BTreeMap<String, String>,
}

/// Remembers what librdkafka complained of, instead of printing it: when a request times out, that is why.
#[derive(Debug, Clone, Default)]
pub struct Complaints(Arc<Mutex<Option<String>>>);

impl Complaints {
    /// The latest.
    #[must_use]
    pub fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Complaints {
    fn note(&self, reason: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }
}

impl ClientContext for Complaints {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // "All brokers are down" follows every other complaint and says less.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.note(reason.to_owned());
        }
    }
}

impl rdkafka::consumer::ConsumerContext for Complaints {}

impl rdkafka::producer::ProducerContext for Complaints {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &rdkafka::producer::DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.note(error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string()));
        }
    }
}

/// A connection to a cluster.
pub struct Cluster {
    brokers: String,
    config: ClientConfig,
    admin: Arc<AdminClient<Complaints>>,
}

impl Cluster {
    /// A connection; nothing is asked yet.
    ///
    /// # Errors
    /// When a property is not valid.
    pub fn connect(brokers: &str, properties: &BTreeMap<String, String>) -> Result<Self, ClusterError> {
        let config = client_config(brokers, properties);
        let admin = config.create_with_context(Complaints::default()).map_err(|error| ClusterError {
            brokers: brokers.to_owned(),
            action: "be reached".into(),
            reason: error.to_string(),
            code: None,
        })?;
        Ok(Self { brokers: brokers.to_owned(), config, admin: Arc::new(admin) })
    }

    /// Brokers and topics whose name begins with `prefix`, with their settings.
    ///
    /// # Errors
    /// When no broker answers, or this user may not describe the topics.
    pub async fn state(&self, prefix: &str) -> Result<ClusterState, ClusterError> {
        let mut state = self.metadata(prefix).await?;
        let names: Vec<String> = state.topics.keys().cloned().collect();
        let wanted: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        for (resource, settings) in self.settings("describe the topics' settings", &wanted).await? {
            if let OwnedResourceSpecifier::Topic(name) = resource
                && let Some(topic) = state.topics.get_mut(&name)
            {
                topic.settings = settings;
            }
        }
        Ok(state)
    }

    /// Brokers and topics, without settings.
    ///
    /// # Errors
    /// When no broker answers.
    pub async fn metadata(&self, prefix: &str) -> Result<ClusterState, ClusterError> {
        const ACTION: &str = "be asked for its topics";
        let metadata = match self.fetch().await {
            Ok(metadata) => metadata,
            Err(error) => {
                let mut failure = self.fail(ACTION, &error);
                if let Some(complaint) = self.complaint().await {
                    failure.reason = complaint;
                }
                return Err(failure);
            }
        };
        let topics = metadata.topics().iter().filter(|topic| topic.name().starts_with(prefix));
        let count = |length: usize| i32::try_from(length).unwrap_or(i32::MAX);
        Ok(ClusterState {
            brokers: metadata.brokers().iter().map(|broker| broker.id()).collect(),
            topics: topics
                .map(|topic| {
                    let partitions = topic.partitions();
                    let replication = partitions.first().map_or(0, |partition| count(partition.replicas().len()));
                    let state =
                        TopicState { partitions: count(partitions.len()), replication, settings: BTreeMap::new() };
                    (topic.name().to_owned(), state)
                })
                .collect(),
        })
    }

    /// The settings of a broker.
    ///
    /// # Errors
    /// When it does not answer, or this user may not describe it.
    pub async fn broker_settings(&self, id: i32) -> Result<BTreeMap<String, Setting>, ClusterError> {
        let action = format!("describe the settings of broker {id}");
        let all = self.settings(&action, &[ResourceSpecifier::Broker(id)]).await?;
        Ok(all.into_iter().next().map(|(_, settings)| settings).unwrap_or_default())
    }

    async fn settings(
        &self,
        action: &str,
        resources: &[ResourceSpecifier<'_>],
    ) -> Result<Vec<(OwnedResourceSpecifier, BTreeMap<String, Setting>)>, ClusterError> {
        if resources.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.admin.describe_configs(resources, &options()).await;
        let answers = answers.map_err(|error| self.fail(action, &error))?;
        let mut all = Vec::with_capacity(answers.len());
        for answer in answers {
            let resource = answer.map_err(|code| self.fail_code(action, code))?;
            let settings = resource.entries.into_iter().filter_map(|entry| {
                let own = entry.source == ConfigSource::DynamicTopic;
                Some((entry.name, Setting { value: entry.value?, own }))
            });
            all.push((resource.specifier, settings.collect()));
        }
        Ok(all)
    }

    /// Creates topics, and waits until each partition is served. One that exists is left as it is.
    ///
    /// # Errors
    /// When one can't be created; others may have been.
    pub async fn create(&self, topics: &[CreateTopic]) -> Result<(), ClusterError> {
        if topics.is_empty() {
            return Ok(());
        }
        self.request_create(topics, &options()).await?;
        let partitions = topics.iter().map(|topic| (topic.name.clone(), topic.partitions)).collect();
        self.wait_until_served("create topics", partitions).await
    }

    /// Asks whether a topic could be created, without creating it.
    ///
    /// # Errors
    /// When it could not.
    pub async fn may_create(&self, topic: CreateTopic) -> Result<(), ClusterError> {
        self.request_create(&[topic], &options().validate_only(true)).await
    }

    async fn request_create(&self, topics: &[CreateTopic], options: &AdminOptions) -> Result<(), ClusterError> {
        let new: Vec<_> = topics
            .iter()
            .map(|topic| {
                let base = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication));
                topic.settings.iter().fold(base, |new, (key, value)| new.set(key, value))
            })
            .collect();
        let answers = self.admin.create_topics(&new, options).await;
        for answer in answers.map_err(|error| self.fail("create topics", &error))? {
            match answer {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(self.fail_code(&format!("create topic {name}"), code)),
            }
        }
        Ok(())
    }

    async fn fetch(&self) -> Result<rdkafka::metadata::Metadata, KafkaError> {
        let admin = Arc::clone(&self.admin);
        let answer = tokio::task::spawn_blocking(move || admin.inner().fetch_metadata(None, TIMEOUT)).await;
        answer.unwrap_or(Err(KafkaError::Canceled))
    }

    /// Why brokers can't be reached: the admin client only says that it waited, so another client is listened to.
    async fn complaint(&self) -> Option<String> {
        let config = self.config.clone();
        let listening = tokio::task::spawn_blocking(move || {
            let complaints = Complaints::default();
            let listener: BaseProducer<Complaints> = config.create_with_context(complaints.clone()).ok()?;
            let begin = Instant::now();
            while complaints.last().is_none() && begin.elapsed() < LISTEN {
                // It connects in order to ask; the answer does not matter.
                let _ = listener.client().fetch_metadata(None, LISTEN / 10);
                listener.poll(LISTEN / 100);
            }
            complaints.last()
        });
        listening.await.ok().flatten()
    }

    /// Asks the leaders of all partitions of `topics` (name, how many) for offsets until each answers. The controller names leaders
    /// before these have made the partitions, and a record sent in between is refused.
    async fn wait_until_served(&self, action: &str, topics: Vec<(String, i32)>) -> Result<(), ClusterError> {
        let consumer: BaseConsumer<Complaints> = self
            .config
            .create_with_context(Complaints::default())
            .map_err(|error: KafkaError| self.fail(action, &error))?;
        let asking = tokio::task::spawn_blocking(move || {
            let begin = Instant::now();
            loop {
                match unserved(&consumer, &topics) {
                    None => return None,
                    late if begin.elapsed() >= SERVED => return late,
                    Some(_) => std::thread::sleep(Duration::from_millis(50)),
                }
            }
        });
        match asking.await {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(self.fail_reason(action, reason, None)),
            Err(error) => Err(self.fail_reason(action, error.to_string(), None)),
        }
    }

    /// Changes settings of a topic; those it has of its own besides stay.
    ///
    /// librdkafka's request replaces all of them, so what is not to change is sent along: of two changes of the same
    /// topic at the same moment one may be lost, and the next `diff` shows it.
    ///
    /// # Errors
    /// When it may not, or a value is not valid.
    pub async fn alter(
        &self,
        name: &str,
        now: &TopicState,
        changes: &BTreeMap<String, String>,
    ) -> Result<(), ClusterError> {
        let own = now.settings.iter().filter(|(_, setting)| setting.own).map(|(key, setting)| (key, &setting.value));
        let merged: BTreeMap<&String, &String> = own.chain(changes).collect();
        let request = merged
            .into_iter()
            .fold(AlterConfig::new(ResourceSpecifier::Topic(name)), |request, (key, value)| request.set(key, value));
        let action = format!("change the settings of {name}");
        let answers = self.admin.alter_configs(&[request], &options()).await;
        for answer in answers.map_err(|error| self.fail(&action, &error))? {
            answer.map_err(|(_, code)| self.fail_code(&action, code))?;
        }
        self.wait_until_set(name, changes).await
    }

    /// The controller has taken a change before every broker tells of it.
    async fn wait_until_set(&self, name: &str, changes: &BTreeMap<String, String>) -> Result<(), ClusterError> {
        let deadline = Instant::now() + PROPAGATION;
        let action = format!("read the settings of {name}");
        loop {
            let all = self.settings(&action, &[ResourceSpecifier::Topic(name)]).await?;
            let settings = all.into_iter().next().map(|(_, settings)| settings).unwrap_or_default();
            let is = |key: &String| settings.get(key).map(|now| &now.value);
            if changes.iter().all(|(key, value)| is(key) == Some(value)) || Instant::now() >= deadline {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Adds partitions to a topic, up to `total`, and waits until each is served.
    ///
    /// # Errors
    /// When it may not.
    pub async fn grow(&self, name: &str, total: i32) -> Result<(), ClusterError> {
        let action = format!("add partitions to {name}");
        let total = usize::try_from(total).unwrap_or_default();
        let answers = self.admin.create_partitions(&[NewPartitions::new(name, total)], &options()).await;
        for answer in answers.map_err(|error| self.fail(&action, &error))? {
            answer.map_err(|(_, code)| self.fail_code(&action, code))?;
        }
        self.wait_until_served(&action, vec![(name.to_owned(), i32::try_from(total).unwrap_or(i32::MAX))]).await
    }

    fn fail(&self, action: &str, error: &KafkaError) -> ClusterError {
        let code = error.rdkafka_error_code();
        self.fail_reason(action, code.map_or_else(|| error.to_string(), |code| code.to_string()), code)
    }

    fn fail_code(&self, action: &str, code: RDKafkaErrorCode) -> ClusterError {
        self.fail_reason(action, code.to_string(), Some(code))
    }

    fn fail_reason(&self, action: &str, reason: String, code: Option<RDKafkaErrorCode>) -> ClusterError {
        ClusterError { brokers: self.brokers.clone(), action: action.to_owned(), reason, code }
    }
}

/// What is wrong with the first partition that its leader does not serve yet.
fn unserved(consumer: &BaseConsumer<Complaints>, topics: &[(String, i32)]) -> Option<String> {
    let mut wanted = TopicPartitionList::new();
    for (topic, partitions) in topics {
        for partition in 0..*partitions {
            // The field holds a time here: the first record since 1970.
            if let Err(error) = wanted.add_partition_offset(topic, partition, Offset::Offset(0)) {
                return Some(error.to_string());
            }
        }
    }
    let answers = match consumer.offsets_for_times(wanted, TIMEOUT) {
        Ok(answers) => answers,
        Err(error) => return Some(error.to_string()),
    };
    let elements = answers.elements();
    elements.iter().find_map(|partition| {
        let error = partition.error().err()?;
        Some(format!("partition {} of {} is not served yet: {error}", partition.partition(), partition.topic()))
    })
}

/// A client's configuration: the user's properties win.
#[must_use]
pub fn client_config(brokers: &str, properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("client.id", "weir");
    for (key, value) in properties {
        config.set(key, value);
    }
    config
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}
