//! What a check found.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Weir works; there is something to know.
    Warn,
    /// Weir does not work, or not as promised.
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// `kafka`, `registry`, `qdrant` or `model`.
    pub area: &'static str,
    /// What was looked at.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub says: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// Findings of one area, in order.
#[derive(Debug)]
pub struct Findings {
    area: &'static str,
    list: Vec<Finding>,
}

impl Findings {
    /// None yet.
    #[must_use]
    pub fn of(area: &'static str) -> Self {
        Self { area, list: Vec::new() }
    }

    /// As it should be.
    pub fn ok(&mut self, check: &'static str, says: impl Into<String>) {
        self.push(check, Level::Ok, says.into(), None);
    }

    /// Something to know.
    pub fn warn(&mut self, check: &'static str, says: impl Into<String>, fix: impl Into<String>) {
        self.push(check, Level::Warn, says.into(), Some(fix.into()));
    }

    /// Something that must be mended.
    pub fn fail(&mut self, check: &'static str, says: impl Into<String>, fix: impl Into<String>) {
        self.push(check, Level::Fail, says.into(), Some(fix.into()));
    }

    fn push(&mut self, check: &'static str, level: Level, says: String, fix: Option<String>) {
        self.list.push(Finding { area: self.area, check, level, says, fix });
    }

    /// All of them.
    #[must_use]
    pub fn done(self) -> Vec<Finding> {
        self.list
    }
}
