//! The bounds against models that keep to nothing.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::{ChatRequest, EstimateConfig, Message, PriceConfig};

fn bounds(config: AgentConfig) -> Bounds {
    Bounds::new(config).unwrap()
}

fn tokens(input: u64, output: u64) -> TokenUsage {
    TokenUsage { input, output, ..TokenUsage::default() }
}

fn used(usage: TokenUsage, usd: f64) -> Call {
    Call {
        provider: "p".into(),
        model: "m".into(),
        attempt: 1,
        status: "ok",
        usage,
        cost: Usd(usd),
        latency: Duration::ZERO,
    }
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() }
}

fn result(text: &str) -> Result<String, ToolError> {
    Ok(text.to_owned())
}

#[test]
fn turns_end_at_their_cap() {
    let mut bounds = bounds(AgentConfig { max_turns: 2, ..AgentConfig::default() });
    for left in [2, 1] {
        assert_eq!(bounds.turns_left(), left);
        bounds.before_turn(&tokens(10, 10), NanoUsd::ZERO).unwrap();
        bounds.after_turn(&[]);
    }
    let stop = bounds.before_turn(&tokens(10, 10), NanoUsd::ZERO).unwrap_err();
    assert_eq!((stop.reason(), stop.to_string()), ("turns", "the model has had its 2 turns".to_owned()));
}

#[test]
fn a_call_that_could_exceed_the_tokens_is_stopped_before_it_leaves() {
    let mut bounds = bounds(AgentConfig { max_total_tokens: 2_000, ..AgentConfig::default() });
    bounds.before_turn(&tokens(500, 500), NanoUsd::ZERO).unwrap();
    bounds.after_turn(&[used(tokens(400, 100), 0.0)]);
    assert_eq!(bounds.tokens(), 500);
    // What the tools returned makes the next call too large.
    let stop = bounds.clone().before_turn(&tokens(1_001, 500), NanoUsd::ZERO).unwrap_err();
    assert_eq!((stop.reason(), &stop), ("tokens", &Stop::Tokens { used: 500, next: 1_501, most: 2_000 }));
    assert_eq!(stop.to_string(), "the next call may take 1501 tokens, and 500 of 2000 are used");
    bounds.before_turn(&tokens(1_000, 500), NanoUsd::ZERO).unwrap();
    assert_eq!(bounds.tokens(), 2_000);
}

#[test]
fn money_ends_like_tokens() {
    let mut bounds = bounds(AgentConfig { max_usd: Some(0.10), ..AgentConfig::default() });
    let cents = |cents: u64| NanoUsd(cents * 10_000_000);
    bounds.before_turn(&tokens(1, 1), cents(6)).unwrap();
    bounds.after_turn(&[used(tokens(1, 1), 0.04)]);
    let stop = bounds.clone().before_turn(&tokens(1, 1), cents(7)).unwrap_err();
    assert_eq!(
        (stop.reason(), stop.to_string()),
        ("cost", "the next call may cost 0.07 USD, and 0.04 USD of 0.10 USD are spent".to_owned())
    );
    bounds.before_turn(&tokens(1, 1), cents(6)).unwrap();
    assert_eq!(bounds.cost(), cents(10));
}

#[test]
fn a_turn_whose_end_nobody_told_stays_charged() {
    let mut bounds = bounds(AgentConfig::default());
    bounds.before_turn(&tokens(1_000, 500), NanoUsd(7)).unwrap();
    bounds.before_turn(&tokens(100, 50), NanoUsd(1)).unwrap();
    bounds.after_turn(&[used(tokens(80, 20), 0.0)]);
    assert_eq!((bounds.tokens(), bounds.cost(), bounds.turns_left()), (1_600, NanoUsd(7), 6));
}

#[test]
fn further_calls_of_a_turn_fit_too_or_are_not_made() {
    let mut bounds = bounds(AgentConfig { max_total_tokens: 2_500, ..AgentConfig::default() });
    bounds.before_turn(&tokens(500, 500), NanoUsd::ZERO).unwrap();
    bounds.before_another_call(&tokens(500, 500), NanoUsd::ZERO).unwrap();
    assert!(bounds.before_another_call(&tokens(500, 500), NanoUsd::ZERO).is_err());
    bounds.after_turn(&[used(tokens(500, 0), 0.0), used(tokens(500, 100), 0.0)]);
    assert_eq!((bounds.tokens(), bounds.turns_left()), (1_100, 7));
}

#[test]
fn the_same_call_is_answered_from_memory_however_it_is_written() {
    let mut bounds = bounds(AgentConfig::default());
    let first = call("1", "search", r#"{"query": "mill", "top": 3, "with": {"b": [1, 2], "a": null}}"#);
    assert_eq!(bounds.before_tool(&first), Ok(ToolStep::Run));
    assert_eq!(bounds.after_tool(&first, &result("1912")), "1912");
    let again = call("2", "search", r#"{"with":{"a":null,"b":[1.0,2]},"top":3.0,"query":"mill"}"#);
    assert_eq!(bounds.before_tool(&again), Ok(ToolStep::Known("1912".into())));
    for other in [
        call("3", "search", r#"{"query": "mill", "top": 4, "with": {"b": [1, 2], "a": null}}"#),
        call("4", "search", r#"{"query": "mill", "top": 3, "with": {"b": [2, 1], "a": null}}"#),
        call("5", "open", &first.arguments),
        call("6", "search", "{\"query\": "),
        call("7", "search", ""),
    ] {
        assert_eq!(bounds.before_tool(&other), Ok(ToolStep::Run), "{other:?}");
    }
    bounds.after_tool(&call("7", "search", " "), &result("empty"));
    assert_eq!(bounds.before_tool(&call("8", "search", "{}")), Ok(ToolStep::Known("empty".into())));
}

#[test]
fn a_repeated_id_is_answered_from_memory_unless_it_is_another_call() {
    let mut bounds = bounds(AgentConfig::default());
    let first = call("call_0", "search", "{}");
    assert_eq!(bounds.before_tool(&first), Ok(ToolStep::Run));
    bounds.after_tool(&first, &result("1912"));
    assert_eq!(bounds.before_tool(&first), Ok(ToolStep::Known("1912".into())));
    assert_eq!(bounds.before_tool(&call("call_0", "search", r#"{"page": 2}"#)), Ok(ToolStep::Run));
}

#[test]
fn the_next_owner_makes_a_call_again_whose_result_nobody_told_and_it_counts_once() {
    let mut bounds = bounds(AgentConfig { max_tool_calls: 1, ..AgentConfig::default() });
    let first = call("1", "search", "{}");
    assert_eq!(bounds.before_tool(&first), Ok(ToolStep::Run));
    let mut next: Bounds = serde_json::from_str(&serde_json::to_string(&bounds).unwrap()).unwrap();
    assert_eq!(next, bounds);
    for _ in 0..5 {
        assert_eq!(next.before_tool(&first), Ok(ToolStep::Run));
    }
    let stop = next.before_tool(&call("2", "search", "{\"x\": 1}")).unwrap_err();
    assert_eq!((stop.reason(), stop.to_string()), ("tool-calls", "the model has called its 1 tools".to_owned()));
}

#[test]
fn a_model_that_runs_in_circles_is_stopped_in_the_third_round() {
    for length in 1..=4 {
        let mut bounds = bounds(AgentConfig { max_tool_calls: 256, ..AgentConfig::default() });
        let mut made = 0;
        let stop = loop {
            let call = call(&made.to_string(), "search", &format!("{{\"page\": {}}}", made % length));
            match bounds.before_tool(&call) {
                Ok(ToolStep::Run) => drop(bounds.after_tool(&call, &result("nothing"))),
                Ok(ToolStep::Known(_)) => {}
                Err(stop) => break stop,
            }
            made += 1;
        };
        assert_eq!((stop.reason(), made), ("loop", 2 * length), "a cycle of {length}");
        assert!(stop.to_string().starts_with("loop: the model calls search"), "{stop}");
    }
}

#[test]
fn what_failed_in_passing_may_be_tried_again_and_a_wrong_call_is_remembered() {
    let mut bounds = bounds(AgentConfig::default());
    let late = call("1", "search", "{}");
    assert_eq!(bounds.before_tool(&late), Ok(ToolStep::Run));
    let shown = bounds.after_tool(&late, &Err(ToolError::timed_out("it took too long")));
    assert_eq!(shown, "error: it took too long");
    assert_eq!(bounds.before_tool(&call("2", "search", "{}")), Ok(ToolStep::Run));
    let wrong = call("3", "search", "[]");
    assert_eq!(bounds.before_tool(&wrong), Ok(ToolStep::Run));
    bounds.after_tool(&wrong, &Err(ToolError::invalid("no object")));
    assert_eq!(bounds.before_tool(&wrong), Ok(ToolStep::Known("error: no object".into())));
}

#[test]
fn a_result_is_shown_up_to_its_cap() {
    let mut bounds = bounds(AgentConfig { max_tool_result_bytes: 256, ..AgentConfig::default() });
    let first = call("1", "search", "{}");
    assert_eq!(bounds.before_tool(&first), Ok(ToolStep::Run));
    let shown = bounds.after_tool(&first, &result(&"x".repeat(1_000)));
    assert!(shown.len() <= 256 && shown.ends_with("more bytes were cut off here]"), "{shown}");
    assert_eq!(bounds.before_tool(&first), Ok(ToolStep::Known(shown)));
}

#[test]
fn settings_out_of_range_are_refused_with_their_key() {
    let good = AgentConfig::default();
    good.check().unwrap();
    for (key, config) in [
        ("max_turns", AgentConfig { max_turns: 0, ..good }),
        ("max_turns", AgentConfig { max_turns: 65, ..good }),
        ("max_tool_calls", AgentConfig { max_tool_calls: 257, ..good }),
        ("max_tokens_per_turn", AgentConfig { max_tokens_per_turn: 0, ..good }),
        ("max_tokens_per_turn", AgentConfig { max_tokens_per_turn: 40_001, ..good }),
        ("max_usd", AgentConfig { max_usd: Some(0.0), ..good }),
        ("max_usd", AgentConfig { max_usd: Some(f64::NAN), ..good }),
        ("max_tool_result_bytes", AgentConfig { max_tool_result_bytes: 255, ..good }),
    ] {
        let error = config.check().unwrap_err();
        assert!(error.to_string().starts_with(&format!("{key} must")), "{error}");
    }
    assert!(toml::from_str::<AgentConfig>("max_turn = 3").is_err());
}

/// What a scripted model does in a turn.
#[derive(Debug, Clone)]
struct Turn {
    /// Tool, argument and id of each call, from few of each.
    calls: Vec<(u8, u8, u8)>,
    text: usize,
    result: usize,
    /// Of the most that the call can take, percent.
    takes: u64,
    /// Whether its owner dies before it knows what the call took.
    dies: bool,
}

fn turn() -> impl Strategy<Value = Turn> {
    let calls = vec((0u8..3, 0u8..6, 0u8..8), 0..4);
    (calls, 0usize..2_000, 0usize..20_000, 0u64..=100, 0u8..8).prop_map(|(calls, text, result, takes, dies)| Turn {
        calls,
        text,
        result,
        takes,
        dies: dies == 0,
    })
}

proptest! {
    #[test]
    fn whatever_a_model_does_it_ends_within_its_turns_and_its_tokens(
        script in vec(turn(), 1..12),
        max_turns in 1u32..20,
        max_tool_calls in 0u32..20,
        max_total_tokens in 1_024u64..80_000,
    ) {
        let config = AgentConfig { max_turns, max_tool_calls, max_total_tokens, ..AgentConfig::default() };
        let price = PriceConfig { input_per_million: 3.0, output_per_million: 15.0, ..PriceConfig::default() };
        let mut bounds = bounds(config);
        let mut messages = vec![Message::user("when was the mill built")];
        let (mut turns, mut sum, mut runs) = (0, 0, 0);
        // A model that never answers: its script begins anew.
        'turns: for turn in script.iter().cycle() {
            let request = ChatRequest {
                messages: messages.clone(),
                max_tokens: config.max_tokens_per_turn,
                ..ChatRequest::default()
            };
            let most = EstimateConfig::default().upper_bound(&request);
            if bounds.before_turn(&most, most.charge(&price)).is_err() {
                break;
            }
            turns += 1;
            prop_assert!(turns <= max_turns);
            prop_assert!(bounds.tokens() <= max_total_tokens);
            bounds = serde_json::from_str(&serde_json::to_string(&bounds).unwrap()).unwrap();
            if turn.dies {
                sum += most.input + most.output;
                continue;
            }
            let usage = tokens(most.input * turn.takes / 100, most.output * turn.takes / 100);
            sum += usage.input + usage.output;
            bounds.after_turn(&[used(usage, 0.0)]);
            prop_assert_eq!(bounds.tokens(), sum);
            messages.push(Message::assistant("x".repeat(turn.text), Vec::new()));
            for (tool, argument, id) in &turn.calls {
                let call = call(&id.to_string(), &tool.to_string(), &argument.to_string());
                let shown = match bounds.before_tool(&call) {
                    Ok(ToolStep::Known(known)) => known,
                    Ok(ToolStep::Run) => {
                        runs += 1;
                        bounds.after_tool(&call, &result(&"y".repeat(turn.result)))
                    }
                    Err(_) => break 'turns,
                };
                prop_assert!(shown.len() <= config.max_tool_result_bytes);
                messages.push(Message::tool(call.id, shown));
            }
        }
        prop_assert!(sum <= max_total_tokens);
        prop_assert!(runs <= max_tool_calls);
    }
}
