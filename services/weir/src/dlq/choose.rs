//! Which dead letters are meant: ids and filters as flags.

use std::collections::BTreeSet;
use std::time::Duration;

use color_eyre::eyre::bail;
use weir_runner::{DeadLetter, Filter};

use crate::context::Context;
use crate::pipeline;
use crate::progress::now_millis;

/// Flags that choose dead letters; all that are given must hold.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which dead letters")]
pub struct Choice {
    /// Ids, or beginnings of ids that name one each.
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Only those of this stage, for example extract.
    #[arg(long)]
    stage: Option<String>,
    /// Only those of the tenant given by --tenant.
    #[arg(long)]
    only_tenant: bool,
    /// Only those that failed with this class of error, for example too-large.
    #[arg(long)]
    class: Option<String>,
    /// Only those about this document.
    #[arg(long, value_name = "ID")]
    document: Option<String>,
    /// Only those rejected longer ago than this: 90s, 15m, 2h, 7d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<Duration>,
    /// Only those rejected since then: 90s, 15m, 2h, 7d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    newer_than: Option<Duration>,
    /// Only those whose error says this; case does not matter.
    #[arg(long)]
    text: Option<String>,
}

impl Choice {
    /// A single one, by the beginning of its id.
    #[must_use]
    pub fn one(id: &str) -> Self {
        Self {
            ids: vec![id.to_owned()],
            stage: None,
            only_tenant: false,
            class: None,
            document: None,
            older_than: None,
            newer_than: None,
            text: None,
        }
    }

    /// The stages whose dead letters may be meant.
    ///
    /// # Errors
    /// When there is no stage of this name.
    pub fn stages(&self) -> color_eyre::Result<Vec<String>> {
        let all = stages();
        let Some(name) = &self.stage else { return Ok(all) };
        if !all.contains(name) {
            bail!("there is no stage {name}; stages are {}", all.join(", "));
        }
        Ok(vec![name.clone()])
    }

    /// The filter that the flags make.
    #[must_use]
    pub fn filter(&self, context: &Context) -> Filter {
        let ago = |age: Duration| now_millis().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        Filter {
            ids: self.ids.clone(),
            tenant: self.only_tenant.then(|| context.tenant.clone()),
            class: self.class.clone(),
            document: self.document.clone(),
            before: self.older_than.map(ago),
            since: self.newer_than.map(ago),
            text: self.text.clone(),
            parked: None,
        }
    }

    /// Refuses a command that changes something and says nothing of what: a forgotten filter must not mean everything.
    ///
    /// # Errors
    /// When nothing was chosen.
    pub fn demand(&self, all: bool, context: &Context) -> color_eyre::Result<()> {
        if !all && self.stage.is_none() && self.filter(context).is_everything() {
            bail!("say which dead letters: ids, or filters such as --stage and --class, or --all");
        }
        Ok(())
    }

    /// Holds each id against what was found.
    ///
    /// # Errors
    /// When an id names none, or several.
    pub fn each_id_names_one<'a>(&self, found: impl Iterator<Item = &'a DeadLetter>) -> color_eyre::Result<()> {
        let found: BTreeSet<String> = found.map(DeadLetter::id).collect();
        for id in &self.ids {
            match found.iter().filter(|other| other.starts_with(id.as_str())).count() {
                0 => bail!("no dead letter has an id that begins with {id}; see `weir dlq list`"),
                1 => {}
                _ if found.contains(id) => {}
                _ => bail!("several dead letters have ids that begin with {id}; give more of it"),
            }
        }
        Ok(())
    }
}

/// Every stage that may have dead letters.
pub fn stages() -> Vec<String> {
    pipeline::stages().map(|stage| stage.name.to_owned()).collect()
}

/// Parses `90s`, `15m`, `2h`, `7d`.
///
/// # Errors
/// When it is written otherwise.
pub fn age(text: &str) -> Result<Duration, String> {
    let help = || format!("{text} is no age; write for example 90s, 15m, 2h or 7d");
    let unit = text.chars().next_back().ok_or_else(help)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(help()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| help())?;
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_people_say_them() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800)] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "7", "d", "2 h", "2y", "-1h", "1ss"] {
            assert!(age(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_stage_that_has_a_dead_letter_topic_is_known() {
        let known = stages();
        for stage in ["route-documents", "extract", "index", "eval", "retry.1s", "retry.8s"] {
            assert_eq!(known.iter().filter(|name| *name == stage).count(), 1, "{stage}");
        }
    }
}
