//! Tools that a model may call, and the box a loop keeps them in.

mod address;
mod arithmetic;
mod http;
mod lookup;
mod template;
mod truncate;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;

pub use address::is_public;
pub use arithmetic::{Arithmetic, ArithmeticError, evaluate};
pub use http::{HttpTool, HttpToolConfig, InvalidTool};
pub use truncate::truncate;

use crate::tool_call::{ToolCall, ToolSpec};

/// Whose fault it is that a tool gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolErrorKind {
    /// The model's: the same arguments fail again.
    InvalidArguments,
    /// The tool's, or that of what it asked.
    Failed,
    /// It took too long.
    TimedOut,
}

impl ToolErrorKind {
    /// Its name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArguments => "invalid-arguments",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
        }
    }
}

/// Why a tool gave no result: a sentence for the model, which may do better or do without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ToolError {
    /// Whose fault it is.
    pub kind: ToolErrorKind,
    /// What is wrong and what would be right. Names neither addresses nor secrets.
    pub message: String,
}

impl ToolError {
    /// The arguments can't be used.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: ToolErrorKind::InvalidArguments, message: message.into() }
    }

    /// The tool, or what it asked, failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { kind: ToolErrorKind::Failed, message: message.into() }
    }

    /// It took too long.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self { kind: ToolErrorKind::TimedOut, message: message.into() }
    }
}

/// Something a model may call.
pub trait Tool: Send + Sync {
    /// What a model is told of it.
    fn spec(&self) -> ToolSpec;

    /// Its result for these arguments, for the model. It ends in bounded time by itself.
    ///
    /// # Errors
    /// In a sentence for the model.
    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>>;

    /// How long a result may be given again for the same arguments, to whoever may see it; none: not at all.
    fn reusable_for(&self) -> Option<Duration>;
}

/// Two tools have the same name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are two tools named {name:?}; a model could not tell them apart")]
pub struct SameName {
    /// The name.
    pub name: String,
}

/// Tools by name.
#[derive(Clone, Default)]
pub struct Toolbox(BTreeMap<String, Arc<dyn Tool>>);

impl std::fmt::Debug for Toolbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Toolbox").field(&self.0.keys()).finish()
    }
}

impl Toolbox {
    /// A box with these.
    ///
    /// # Errors
    /// When two of them have the same name.
    pub fn new(tools: impl IntoIterator<Item = Arc<dyn Tool>>) -> Result<Self, SameName> {
        let mut by_name = BTreeMap::new();
        for tool in tools {
            let name = tool.spec().name;
            if by_name.insert(name.clone(), tool).is_some() {
                return Err(SameName { name });
            }
        }
        Ok(Self(by_name))
    }

    /// What a model is told of the tools, in the order of their names.
    #[must_use]
    pub fn specs(&self) -> Vec<ToolSpec> {
        self.0.values().map(|tool| tool.spec()).collect()
    }

    /// The tool of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&dyn Tool> {
        self.0.get(name).map(AsRef::as_ref)
    }

    /// Does what the model asks for.
    ///
    /// # Errors
    /// When there is no such tool, its arguments are no JSON object, or the tool fails.
    pub async fn call(&self, call: &ToolCall) -> Result<String, ToolError> {
        let Some(tool) = self.get(&call.name) else {
            let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
            return Err(ToolError::invalid(match names.as_slice() {
                [] => "there is no such tool; none can be called".to_owned(),
                names => format!("there is no such tool; there are: {}", names.join(", ")),
            }));
        };
        tool.call(&arguments(&call.arguments)?).await
    }
}

/// Models leave out the arguments of a tool that needs none.
fn arguments(text: &str) -> Result<Value, ToolError> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    match serde_json::from_str(text) {
        Ok(arguments @ Value::Object(_)) => Ok(arguments),
        Ok(_) => Err(ToolError::invalid("the arguments must be a JSON object")),
        Err(error) => Err(ToolError::invalid(format!("the arguments are no valid JSON: {error}"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall { id: "c".into(), name: name.into(), arguments: arguments.into() }
    }

    #[tokio::test]
    async fn a_model_is_told_what_is_wrong_with_its_call() {
        let toolbox = Toolbox::new([Arc::new(Arithmetic) as Arc<dyn Tool>]).unwrap();
        assert_eq!(toolbox.call(&call("arithmetic", r#"{"expression": "1 + 1"}"#)).await.unwrap(), "2");
        for (name, arguments, words) in [
            ("search", "{}", "there are: arithmetic"),
            ("arithmetic", "{\"expression\": ", "no valid JSON"),
            ("arithmetic", "[1]", "must be a JSON object"),
            ("arithmetic", "", "expression"),
        ] {
            let error = toolbox.call(&call(name, arguments)).await.unwrap_err();
            assert_eq!(error.kind, ToolErrorKind::InvalidArguments);
            assert!(error.message.contains(words), "{error}");
        }
        assert!(Toolbox::default().call(&call("x", "{}")).await.unwrap_err().message.contains("none can be called"));
    }

    #[test]
    fn two_tools_of_one_name_are_refused() {
        let same = Toolbox::new([Arc::new(Arithmetic) as Arc<dyn Tool>, Arc::new(Arithmetic)]).unwrap_err();
        assert_eq!(same.name, "arithmetic");
    }
}
