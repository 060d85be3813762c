//! What a person sees who sets something right, or wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Write;

use serde::{Deserialize, Serialize};
use weir_runner::{KafkaConfig, RegistryConfig, RunnerConfig};
use weir_service::{Common, HttpConfig, Invalid, ServiceConfig, Sources, TelemetryConfig, load, render_config};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    kafka: KafkaConfig,
    registry: RegistryConfig,
    runner: RunnerConfig,
    http: HttpConfig,
    telemetry: TelemetryConfig,
    chunk: ChunkConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kafka: KafkaConfig::default(),
            registry: RegistryConfig::default(),
            runner: RunnerConfig { max_batch_records: 7, ..RunnerConfig::default() },
            http: HttpConfig::default(),
            telemetry: TelemetryConfig::default(),
            chunk: ChunkConfig::default(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ChunkConfig {
    max_tokens: u16,
    overlap: u16,
    name: Option<String>,
}

impl Default for ChunkConfig {
    fn default() -> Self {
        Self { max_tokens: 256, overlap: 32, name: None }
    }
}

impl ServiceConfig for Config {
    const NAME: &'static str = "chunk";
    const ABOUT: &'static str = "A test.";
    const PORT: u16 = 9102;

    fn common(&self) -> Common<'_> {
        Common {
            kafka: &self.kafka,
            registry: &self.registry,
            runner: &self.runner,
            http: &self.http,
            telemetry: &self.telemetry,
        }
    }

    fn validate(&self) -> Result<(), Invalid> {
        if self.chunk.overlap >= self.chunk.max_tokens {
            return Err(Invalid::new("chunk.overlap", "must be less than chunk.max_tokens"));
        }
        Ok(())
    }
}

struct Case {
    sources: Sources,
    _file: Option<tempfile::NamedTempFile>,
}

impl Case {
    fn new() -> Self {
        Self { sources: Sources::default(), _file: None }
    }

    fn file(mut self, text: &str) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        self.sources.file = Some(file.path().to_owned());
        self._file = Some(file);
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn set(mut self, argument: &str) -> Self {
        self.sources.settings.push(argument.into());
        self
    }

    fn config(&self) -> Config {
        load::<Config>(&self.sources).unwrap_or_else(|error| panic!("{error}")).config
    }

    fn error(&self) -> String {
        let error = load::<Config>(&self.sources).err().expect("an error").to_string();
        match &self.sources.file {
            Some(path) => error.replace(&path.display().to_string(), "weir.toml"),
            None => error,
        }
    }

    fn printed(&self) -> String {
        render_config(&load::<Config>(&self.sources).unwrap_or_else(|error| panic!("{error}"))).unwrap()
    }
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let case = Case::new().file("[kafka]\nbrokers = 'file:1'\nlanes = 3\n[chunk]\nmax_tokens = 100");
    assert_eq!(case.config().kafka.brokers, "file:1");
    assert_eq!(case.config().chunk.overlap, 32, "the default");
    let case = case.variable("WEIR_KAFKA__BROKERS", "variable:1");
    assert_eq!(case.config().kafka.brokers, "variable:1");
    assert_eq!(case.config().kafka.lanes, 3, "keys beside it stay");
    let case = case.set("kafka.brokers=set:1");
    assert_eq!(case.config().kafka.brokers, "set:1");
}

#[test]
fn a_services_own_default_of_a_common_key_survives_when_its_neighbour_is_set() {
    let config = Case::new().set("runner.instance=a").config();
    assert_eq!(config.runner.instance, "a");
    assert_eq!(config.runner.max_batch_records, 7);
}

#[test]
fn one_file_serves_all_services() {
    let case = Case::new().file("[embed]\nanything = 1\n[qdrant]\nurl = 'x'\n[chunk]\noverlap = 5");
    assert_eq!(case.config().chunk.overlap, 5);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name_and_its_place() {
    let error = Case::new().file("[kafka]\nbrokes = 'a:1'").error();
    assert_eq!(
        error,
        "unknown key kafka.brokes (file weir.toml): did you mean brokers?; valid here: brokers, prefix, lanes, properties"
    );
    let error = Case::new().variable("WEIR_CHUNK__MAX_TOKEN", "1").error();
    assert!(
        error.starts_with(
            "unknown key chunk.max_token (environment variable WEIR_CHUNK__MAX_TOKEN): did you mean max_tokens?"
        ),
        "{error}"
    );
    let error = Case::new().set("chunk.zzzzzz=1").error();
    assert!(error.starts_with("unknown key chunk.zzzzzz (--set); valid here: max_tokens"), "{error}");
}

#[test]
fn an_unknown_section_is_refused_with_the_nearest_name() {
    assert_eq!(
        Case::new().file("[kakfa]\nlanes = 1").error(),
        "unknown section [kakfa] (file weir.toml): did you mean kafka?"
    );
    assert_eq!(
        Case::new().variable("WEIR_CHUNKS__OVERLAP", "1").error(),
        "unknown section [chunks] (environment variable WEIR_CHUNKS__OVERLAP): did you mean chunk?"
    );
}

#[test]
fn a_variable_with_one_underscore_too_few_is_not_ignored() {
    let error = Case::new().variable("WEIR_KAFKA_BROKERS", "a:1").error();
    assert!(error.contains("WEIR_KAFKA_BROKERS") && error.contains("WEIR_KAFKA__BROKERS"), "{error}");
    Case::new().variable("WEIR_CONFIG", "x").variable("WEIR_TEST_STACK", "containers").config();
}

#[test]
fn a_wrong_value_names_its_key_and_place() {
    let error = Case::new().variable("WEIR_CHUNK__OVERLAP", "many").error();
    assert!(error.starts_with("chunk.overlap (environment variable WEIR_CHUNK__OVERLAP): "), "{error}");
    assert!(error.contains("many"), "{error}");
    let error = Case::new().file("[chunk]\noverlap = 256").error();
    assert_eq!(error, "chunk.overlap (file weir.toml): must be less than chunk.max_tokens");
    let error = Case::new().set("kafka.lanes=0").error();
    assert_eq!(error, "kafka.lanes (--set): must be at least 1");
    let error = Case::new().set("telemetry.log=info,=[").error();
    assert!(error.starts_with("telemetry.log (--set): "), "{error}");
}

#[test]
fn text_that_looks_like_a_number_stays_text_where_text_is_wanted() {
    let case = Case::new()
        .variable("WEIR_REGISTRY__USERNAME", "007")
        .variable("WEIR_REGISTRY__PASSWORD", "12345")
        .variable("WEIR_CHUNK__NAME", "2026-01-01");
    let config = case.config();
    assert_eq!(config.registry.username.as_deref(), Some("007"));
    assert_eq!(config.registry.password.as_deref(), Some("12345"));
    assert_eq!(config.chunk.name.as_deref(), Some("2026-01-01"));
}

#[test]
fn kafka_properties_can_be_set_in_every_layer() {
    let expected = |config: Config| {
        assert_eq!(config.kafka.properties["security.protocol"], "SASL_SSL");
        assert_eq!(config.kafka.properties["sasl.username"], "5");
    };
    expected(Case::new().file("[kafka.properties]\n'security.protocol' = 'SASL_SSL'\n'sasl.username' = '5'").config());
    expected(Case::new().variable("WEIR_KAFKA__PROPERTIES", "security.protocol=SASL_SSL, sasl.username=5").config());
    expected(
        Case::new()
            .variable("WEIR_KAFKA__PROPERTIES", "{'security.protocol' = 'SASL_SSL', 'sasl.username' = '5'}")
            .config(),
    );
    expected(
        Case::new()
            .variable("WEIR_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SASL_SSL")
            .variable("WEIR_KAFKA__PROPERTIES__SASL_USERNAME", "5")
            .config(),
    );
    expected(
        Case::new().set("kafka.properties.security.protocol=SASL_SSL").set("kafka.properties.sasl.username=5").config(),
    );
}

#[test]
fn the_printed_configuration_says_where_values_come_from_and_hides_secrets() {
    let printed = Case::new()
        .file("[kafka]\nlanes = 4\n[embed]\nx = 1")
        .variable("WEIR_REGISTRY__USERNAME", "u")
        .variable("WEIR_REGISTRY__PASSWORD", "very-secret")
        .variable("WEIR_KAFKA__PROPERTIES", "sasl.password=also-secret,sasl.username=me")
        .set("http.listen=0.0.0.0")
        .printed();
    assert!(!printed.contains("secret\""), "{printed}");
    assert!(printed.contains("\"sasl.password\" = \"<redacted>\""), "{printed}");
    assert!(printed.contains("properties.\"sasl.username\" = \"me\" # environment variable WEIR_KAFKA__PROPERTIES"));
    assert!(printed.contains("password = \"<redacted>\" # environment variable WEIR_REGISTRY__PASSWORD"), "{printed}");
    assert!(printed.contains("listen = \"0.0.0.0:9102\" # --set"), "{printed}");
    assert!(printed.contains("max_tokens = 256\n"), "{printed}");
    assert!(!printed.contains("[embed]"), "{printed}");
    let parsed: toml::Table = printed.parse().expect("valid TOML");
    assert_eq!(parsed["kafka"]["lanes"].as_integer(), Some(4));
    assert_eq!(parsed["kafka"]["properties"]["sasl.username"].as_str(), Some("me"));
}

#[test]
fn a_printed_configuration_can_be_read_again() {
    let printed = Case::new().set("kafka.lanes=5").set("kafka.properties.client.id=x").printed();
    let again = Case::new().file(&printed).config();
    assert_eq!(again.kafka.lanes, 5);
    assert_eq!(again.kafka.properties["client.id"], "x");
}

#[test]
fn a_file_that_is_missing_or_broken_is_named() {
    let mut case = Case::new();
    case.sources.file = Some("/does/not/exist.toml".into());
    assert!(case.error().starts_with("cannot read weir.toml: No such file"), "{}", case.error());
    assert!(Case::new().file("[kafka").error().starts_with("weir.toml is not valid TOML: "));
    assert!(Case::new().set("lanes=1").error().contains("is not of the form section.key=value"));
}
