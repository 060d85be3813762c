//! Tools that a model may call, and its calls, which arrive in pieces.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::Finish;
use crate::error::CallError;

/// Most tool calls of one turn; an answer with more is malformed.
pub const MAX_TOOL_CALLS: usize = 16;

/// Most bytes of arguments of one tool call; an answer with more is malformed.
pub const MAX_ARGUMENTS_BYTES: usize = 64 << 10;

/// Most bytes of an id, and of a name. Those in use have about 30.
const MAX_NAME_BYTES: usize = 256;

/// A tool that a model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// Its name: letters, digits, `_` and `-`, 1 to 64 of them.
    pub name: String,
    /// What it does and when it is of use, for the model.
    pub description: String,
    /// JSON schema of its parameters, an object.
    pub parameters: Value,
}

/// A call that a model asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What its result refers to. Providers promise no more than that it is unique within the turn.
    pub id: String,
    /// Name of the tool; nobody has checked whether there is one.
    pub name: String,
    /// The arguments as the model wrote them: meant to be a JSON object, but not checked.
    pub arguments: String,
}

impl ToolCall {
    /// Bytes of all that a model has to write for it.
    pub(crate) fn bytes(&self) -> usize {
        self.id.len() + self.name.len() + self.arguments.len()
    }
}

/// Of a tool call, what one payload says.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Piece {
    /// Which of the turn's calls it belongs to. Some servers leave it out and send each call in one piece.
    pub(crate) index: Option<usize>,
    id: Option<String>,
    #[serde(default)]
    function: Function,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

impl Piece {
    /// Bytes that a model wrote for it. Ids are the server's.
    pub(crate) fn bytes(&self) -> usize {
        let part = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        part(&self.function.name) + part(&self.function.arguments)
    }
}

/// The calls of a turn, as far as they have arrived.
#[derive(Debug, Default)]
pub(crate) struct Calls(Vec<(Option<usize>, ToolCall)>);

impl Calls {
    /// Adds a piece to the call it belongs to.
    pub(crate) fn take(&mut self, piece: Piece) -> Result<(), CallError> {
        let malformed = |reason| Err(CallError::Malformed { reason });
        let Piece { index, id, function } = piece;
        let call = self.place(index, id.as_deref())?;
        // Whoever repeats id and name with each piece says the same again.
        for (field, value) in [(&mut call.id, id), (&mut call.name, function.name)] {
            if field.is_empty() {
                *field = value.unwrap_or_default();
            }
            if field.len() > MAX_NAME_BYTES {
                return malformed("a tool call with an id or a name of over 256 bytes");
            }
        }
        call.arguments.push_str(&function.arguments.unwrap_or_default());
        if call.arguments.len() > MAX_ARGUMENTS_BYTES {
            return malformed("a tool call with over 64 KiB of arguments");
        }
        Ok(())
    }

    /// The call with this index. Without one, an id that is not the last call's begins another call.
    fn place(&mut self, index: Option<usize>, id: Option<&str>) -> Result<&mut ToolCall, CallError> {
        let found = match index {
            Some(_) => self.0.iter().position(|(at, _)| *at == index),
            None => {
                let same = |last: &ToolCall| id.is_none_or(|id| id.is_empty() || id == last.id);
                self.0.last().is_some_and(|(_, last)| same(last)).then(|| self.0.len().saturating_sub(1))
            }
        };
        let at = found.unwrap_or(self.0.len());
        if at >= MAX_TOOL_CALLS {
            return Err(CallError::Malformed { reason: "more than 16 tool calls" });
        }
        if found.is_none() {
            self.0.push((index, ToolCall { id: String::new(), name: String::new(), arguments: String::new() }));
        }
        // There is one at `at` by now.
        self.0.get_mut(at).map(|(_, call)| call).ok_or(CallError::Malformed { reason: "more than 16 tool calls" })
    }

    /// Bytes that a model has written for them.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, call)| call.name.len() + call.arguments.len()).sum()
    }

    /// Why the turn ends, and its calls. What the limit of tokens has cut is no call: half of its arguments may be
    /// missing.
    pub(crate) fn finish(self, reason: &str) -> Result<(Finish, Vec<ToolCall>), CallError> {
        let calls: Vec<ToolCall> = self.0.into_iter().map(|(_, call)| call).collect();
        match reason {
            "length" => Ok((Finish::Length, Vec::new())),
            "tool_calls" if calls.is_empty() => {
                Err(CallError::Malformed { reason: "an end with tool calls, but no tool call" })
            }
            _ if calls.iter().any(|call| call.id.is_empty() || call.name.is_empty()) => {
                Err(CallError::Malformed { reason: "a tool call without id or name" })
            }
            // Some servers say that they stopped, and call tools all the same.
            _ if calls.is_empty() => Ok((Finish::Stop, calls)),
            _ => Ok((Finish::ToolCalls, calls)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn piece(index: impl Into<Option<usize>>, id: &str, name: &str, arguments: &str) -> Piece {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Piece { index: index.into(), id: some(id), function: Function { name: some(name), arguments: some(arguments) } }
    }

    fn together(pieces: impl IntoIterator<Item = Piece>) -> Result<Vec<(String, String, String)>, CallError> {
        let mut calls = Calls::default();
        for piece in pieces {
            calls.take(piece)?;
        }
        let (_, calls) = calls.finish("tool_calls")?;
        Ok(calls.into_iter().map(|call| (call.id, call.name, call.arguments)).collect())
    }

    fn call(id: &str, name: &str, arguments: &str) -> (String, String, String) {
        (id.into(), name.into(), arguments.into())
    }

    #[test]
    fn pieces_are_put_together_by_index_however_they_are_mixed() {
        let pieces = [
            piece(0, "a", "add", ""),
            piece(1, "b", "sub", "{"),
            piece(0, "", "", "{\"x\""),
            piece(1, "b", "sub", "}"),
            piece(0, "", "", ":1}"),
        ];
        assert_eq!(together(pieces).unwrap(), [call("a", "add", "{\"x\":1}"), call("b", "sub", "{}")]);
    }

    #[test]
    fn without_an_index_an_id_begins_a_call() {
        let pieces = [piece(None, "a", "add", "{"), piece(None, "", "", "}"), piece(None, "b", "add", "{}")];
        assert_eq!(together(pieces).unwrap(), [call("a", "add", "{}"), call("b", "add", "{}")]);
    }

    #[test]
    fn what_has_no_id_or_no_name_or_is_too_much_is_malformed() {
        let long = "x".repeat(MAX_ARGUMENTS_BYTES);
        assert!(together([piece(0, "a", "add", &long)]).is_ok());
        assert!(together((0..MAX_TOOL_CALLS).map(|at| piece(at, "a", "add", ""))).is_ok());
        for pieces in [
            vec![piece(0, "", "add", "{}")],
            vec![piece(0, "a", "", "{}")],
            vec![piece(0, &long, "add", "")],
            vec![piece(0, "a", "add", &long), piece(0, "", "", "x")],
            (0..=MAX_TOOL_CALLS).map(|at| piece(at, "a", "add", "")).collect(),
            vec![],
        ] {
            assert!(matches!(together(pieces), Err(CallError::Malformed { .. })));
        }
    }

    #[test]
    fn calls_that_the_limit_of_tokens_cut_are_not_given_out() {
        let mut calls = Calls::default();
        calls.take(piece(0, "a", "add", "{\"x\": 1")).unwrap();
        assert_eq!(calls.finish("length").unwrap(), (Finish::Length, Vec::new()));
    }

    #[test]
    fn calls_make_an_end_with_tool_calls_whatever_the_server_says() {
        let mut calls = Calls::default();
        calls.take(piece(0, "a", "add", "{}")).unwrap();
        assert_eq!(calls.finish("stop").unwrap().0, Finish::ToolCalls);
        assert_eq!(Calls::default().finish("stop").unwrap().0, Finish::Stop);
    }
}
