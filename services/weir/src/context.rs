//! What every subcommand starts from: flags, environment, configuration file and the running local stack, merged.

use std::path::{Path, PathBuf};

use clap::ArgAction;
use color_eyre::eyre::{WrapErr, eyre};
use serde::de::DeserializeOwned;
use toml::{Table, Value};
use weir_contracts::TenantId;
use weir_runner::{KafkaConfig, RegistryConfig};
use weir_stack::Endpoints;

/// Who acts where nobody is named.
const DEFAULT_TENANT: &str = "default";

/// Flags that every subcommand takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Where things are")]
pub struct GlobalArgs {
    /// Kafka bootstrap servers, `host:port,host:port`, instead of the local stack's.
    #[arg(long, global = true, value_name = "SERVERS", env = "WEIR_KAFKA__BROKERS")]
    pub kafka: Option<String>,
    /// A librdkafka property, for example `-X security.protocol=SASL_SSL`; may be repeated.
    #[arg(short = 'X', long = "kafka-property", global = true, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub kafka_properties: Vec<String>,
    /// Prefix of topics and consumer groups.
    #[arg(long, global = true, env = "WEIR_KAFKA__PREFIX")]
    pub prefix: Option<String>,
    /// URL of the schema registry (Confluent's API), instead of the local stack's.
    #[arg(long, global = true, value_name = "URL", env = "WEIR_REGISTRY__URL")]
    pub registry: Option<String>,
    /// User of the schema registry.
    #[arg(long, global = true, value_name = "USER", env = "WEIR_REGISTRY__USERNAME")]
    pub registry_user: Option<String>,
    /// Password of that user; better given by the environment.
    #[arg(long, global = true, value_name = "PASSWORD", env = "WEIR_REGISTRY__PASSWORD", hide_env_values = true)]
    pub registry_password: Option<String>,
    /// URL of Qdrant's gRPC, instead of the local stack's.
    #[arg(long, global = true, value_name = "URL", env = "WEIR_QDRANT__URL")]
    pub qdrant: Option<String>,
    /// API key of Qdrant; better given by the environment.
    #[arg(long, global = true, value_name = "KEY", env = "WEIR_QDRANT__API_KEY", hide_env_values = true)]
    pub qdrant_api_key: Option<String>,
    /// Configuration file (TOML), the same as the services read.
    #[arg(long, global = true, value_name = "FILE", env = "WEIR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder of the local stack.
    #[arg(long, global = true, value_name = "DIR", env = "WEIR_DATA", default_value = ".weir")]
    pub data: PathBuf,
    /// Tenant to act as [default: default].
    #[arg(long, global = true, env = "WEIR_TENANT")]
    pub tenant: Option<TenantId>,
    /// Print JSON for scripts instead of text.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What a subcommand works with.
#[derive(Debug)]
pub struct Context {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// How to reach the schema registry.
    pub registry: RegistryConfig,
    /// Tenant to act as.
    pub tenant: TenantId,
    /// The tenant that was named, if one was: commands that look at all tenants look at this one only.
    pub only_tenant: Option<TenantId>,
    /// Print JSON instead of text.
    pub json: bool,
    /// Folder of the local stack.
    pub data: PathBuf,
    /// The configuration file, if one was named.
    pub config_file: Option<PathBuf>,
    /// Which of the three the user named: the rest is (or would be) the local stack's.
    pub external: External,
    sections: Table,
}

/// Which servers the user named, by flag, environment or configuration file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct External {
    /// Kafka.
    pub kafka: bool,
    /// The schema registry.
    pub registry: bool,
    /// Qdrant.
    pub qdrant: bool,
}

impl Context {
    /// Merges, the first that speaks wins: flags, environment (`WEIR_<SECTION>__<KEY>`), configuration file, the
    /// running local stack, defaults.
    ///
    /// # Errors
    /// When the file can't be read or a section has an unknown key or a wrong value.
    pub fn load(args: GlobalArgs) -> color_eyre::Result<Self> {
        let mut sections = args.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        overlay_environment(&mut sections, std::env::vars());
        overlay_flags(&mut sections, &args)?;
        let named = |section: &str, key: &str| {
            sections.get(section).and_then(Value::as_table).is_some_and(|table| table.contains_key(key))
        };
        let external = External {
            kafka: named("kafka", "brokers"),
            registry: named("registry", "url"),
            qdrant: named("qdrant", "url"),
        };
        fill_from_stack(&mut sections, &args.data);
        let tenant = match &args.tenant {
            Some(tenant) => tenant.clone(),
            None => TenantId::parse(DEFAULT_TENANT)?,
        };
        Ok(Self {
            kafka: section(&sections, "kafka")?,
            registry: section(&sections, "registry")?,
            tenant,
            only_tenant: args.tenant,
            json: args.json,
            data: args.data,
            config_file: args.config,
            external,
            sections,
        })
    }

    /// A section of the configuration as its type, for example `qdrant` as `weir_vectors::QdrantConfig`: file,
    /// environment and flags merged.
    ///
    /// # Errors
    /// When a key is unknown or a value has the wrong type.
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> color_eyre::Result<T> {
        section(&self.sections, name)
    }

    /// The same on a stack that was just started in folder `data`: its servers stand in for those that were not named.
    ///
    /// # Errors
    /// As [`Context::load`].
    pub fn on_stack(&self, data: &Path, endpoints: &Endpoints) -> color_eyre::Result<Self> {
        let mut sections = self.sections.clone();
        for (named, section, key, value) in [
            (self.external.kafka, "kafka", "brokers", &endpoints.kafka),
            (self.external.registry, "registry", "url", &endpoints.registry),
            (self.external.qdrant, "qdrant", "url", &endpoints.qdrant),
        ] {
            if let (false, Some(value)) = (named, value) {
                set(&mut sections, section, key, Value::String(value.clone()));
            }
        }
        Ok(Self {
            kafka: section(&sections, "kafka")?,
            registry: section(&sections, "registry")?,
            tenant: self.tenant.clone(),
            only_tenant: self.only_tenant.clone(),
            json: self.json,
            data: data.to_path_buf(),
            config_file: self.config_file.clone(),
            external: self.external,
            sections,
        })
    }

    /// Everything that was configured, as one TOML document a service can be started with.
    #[must_use]
    pub fn sections(&self) -> &Table {
        &self.sections
    }
}

fn section<T: DeserializeOwned>(sections: &Table, name: &str) -> color_eyre::Result<T> {
    let value = sections.get(name).cloned().unwrap_or_else(|| Value::Table(Table::new()));
    value.try_into().wrap_err_with(|| format!("section [{name}] of the configuration is not valid"))
}

fn read_file(path: &Path) -> color_eyre::Result<Table> {
    let text = std::fs::read_to_string(path)
        .wrap_err_with(|| format!("can't read the configuration file {}", path.display()))?;
    text.parse().wrap_err_with(|| format!("{} is not valid TOML", path.display()))
}

/// The environment's `WEIR_<SECTION>__<KEY>`; numbers and booleans are taken as such.
fn overlay_environment(sections: &mut Table, variables: impl Iterator<Item = (String, String)>) {
    for (name, text) in variables {
        let Some((section, key)) = name.strip_prefix("WEIR_").and_then(|rest| rest.split_once("__")) else { continue };
        // Kafka's properties have dots and no underscores; variables can't have dots.
        if let ("KAFKA", Some(property)) = (section, key.strip_prefix("PROPERTIES__")) {
            add_properties(sections, [(property.to_lowercase().replace('_', "."), text)]);
            continue;
        }
        // All at once, as the services take them: `name=value,name=value`.
        if (section, key) == ("KAFKA", "PROPERTIES") {
            let entries = text.split(',').filter_map(|entry| entry.split_once('='));
            add_properties(sections, entries.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())));
            continue;
        }
        // What lies deeper, such as a provider's key, is the services' own: they inherit the environment.
        if key.contains("__") {
            continue;
        }
        let value = match (text.parse::<i64>(), text.parse::<f64>(), text.parse::<bool>()) {
            (Ok(number), ..) => Value::Integer(number),
            (_, Ok(number), _) => Value::Float(number),
            (.., Ok(flag)) => Value::Boolean(flag),
            _ => Value::String(text),
        };
        set(sections, &section.to_lowercase(), &key.to_lowercase(), value);
    }
}

fn overlay_flags(sections: &mut Table, args: &GlobalArgs) -> color_eyre::Result<()> {
    let flags = [
        ("kafka", "brokers", &args.kafka),
        ("kafka", "prefix", &args.prefix),
        ("registry", "url", &args.registry),
        ("registry", "username", &args.registry_user),
        ("registry", "password", &args.registry_password),
        ("qdrant", "url", &args.qdrant),
        ("qdrant", "api_key", &args.qdrant_api_key),
    ];
    for (section, key, value) in flags {
        if let Some(value) = value {
            set(sections, section, key, Value::String(value.clone()));
        }
    }
    for property in &args.kafka_properties {
        let (key, value) = property
            .split_once('=')
            .ok_or_else(|| eyre!("-X {property}: write KEY=VALUE, for example -X security.protocol=SASL_SSL"))?;
        add_properties(sections, [(key.trim().to_owned(), value.to_owned())]);
    }
    Ok(())
}

/// Adds properties of Kafka's client to those that are there.
fn add_properties(sections: &mut Table, added: impl IntoIterator<Item = (String, String)>) {
    let configured = sections.get("kafka").and_then(|kafka| kafka.get("properties")).and_then(Value::as_table);
    let mut properties = configured.cloned().unwrap_or_default();
    properties.extend(added.into_iter().map(|(name, value)| (name, Value::String(value))));
    set(sections, "kafka", "properties", Value::Table(properties));
}

/// Addresses of the local stack when one runs in `data` and nothing else was named.
fn fill_from_stack(sections: &mut Table, data: &Path) {
    let Some(endpoints) = weir_stack::running(data) else { return };
    let found = [
        ("kafka", "brokers", endpoints.kafka),
        ("registry", "url", endpoints.registry),
        ("qdrant", "url", endpoints.qdrant),
    ];
    for (section, key, value) in found {
        let named = sections.get(section).and_then(|table| table.get(key)).is_some();
        if let (Some(value), false) = (value, named) {
            set(sections, section, key, Value::String(value));
        }
    }
}

/// Sets `[section] key = value`, also when the section was something else than a table.
fn set(parent: &mut Table, section: &str, key: &str, value: Value) {
    match parent.entry(section).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(table) => {
            table.insert(key.to_owned(), value);
        }
        other => *other = Value::Table(Table::from_iter([(key.to_owned(), value)])),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        global: GlobalArgs,
    }

    fn flags(args: &[&str]) -> GlobalArgs {
        Program::parse_from([&["weir"], args].concat()).global
    }

    fn merged(file: &str, environment: &[(&str, &str)], args: &[&str]) -> color_eyre::Result<KafkaConfig> {
        let mut sections: Table = file.parse()?;
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        overlay_environment(&mut sections, environment);
        overlay_flags(&mut sections, &flags(args))?;
        section(&sections, "kafka")
    }

    const FILE: &str = "[kafka]\nbrokers = \"file:1\"\nlanes = 4\nproperties = { \"client.rack\" = \"a\" }\n";

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        assert_eq!(merged(FILE, &[], &[]).unwrap().brokers, "file:1");
        let environment = [("WEIR_KAFKA__BROKERS", "environment:1"), ("WEIR_KAFKA__LANES", "6")];
        let kafka = merged(FILE, &environment, &[]).unwrap();
        assert_eq!((kafka.brokers.as_str(), kafka.lanes), ("environment:1", 6));
        assert_eq!(merged(FILE, &environment, &["--kafka", "flag:1"]).unwrap().brokers, "flag:1");
    }

    #[test]
    fn properties_of_all_sources_are_merged() {
        let environment = [("WEIR_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL")];
        let kafka = merged(FILE, &environment, &["-X", "sasl.username=me", "-X", "client.rack=b"]).unwrap();
        let expected = [("client.rack", "b"), ("sasl.username", "me"), ("security.protocol", "SSL")];
        assert!(kafka.properties.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected));
        let at_once = [("WEIR_KAFKA__PROPERTIES", "security.protocol=SSL, sasl.username=me")];
        let kafka = merged("", &at_once, &[]).unwrap();
        let expected = [("sasl.username", "me"), ("security.protocol", "SSL")];
        assert!(kafka.properties.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected));
        let deeper = [("WEIR_KAFKA__DEEPER__KEY", "1")];
        assert!(merged(FILE, &deeper, &[]).is_ok(), "not this program's");
        assert!(merged(FILE, &[], &["-X", "nonsense"]).unwrap_err().to_string().contains("KEY=VALUE"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = merged("[kafka]\nbroker = \"a\"\n", &[], &[]).unwrap_err();
        assert!(format!("{error:?}").contains("broker"), "{error:?}");
    }
}
