//! A provider of language models that answers, or fails, as it is told.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use weir_llm::testing::{Behaviour, FakeProvider};

/// A provider of language models that answers, or fails, as it is told. It speaks the chat completions of OpenAI, without
/// a model.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Port to serve on; 0 picks a free one, which is printed.
    #[arg(long, value_name = "PORT", default_value_t = 8089)]
    port: u16,
    /// Address to serve on. Everybody who reaches it may tell the provider what to do.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// What it does with every request, once the script is over.
    #[arg(long, value_name = "JSON", default_value = r#"{"kind":"quote"}"#)]
    behaviour: Behaviour,
    /// A file with a JSON list of behaviours, one for each of the first requests.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Honour Idempotency-Key: a finished request is answered again without charge.
    #[arg(long)]
    idempotency: bool,
}

const EXAMPLES: &str = r#"Examples:
  weir-fake-provider
  weir-fake-provider --behaviour '{"kind": "answer", "with": "Built in 1912 [1]."}'
  weir-fake-provider --behaviour '{"kind": "slow", "with":
      {"from_ms": 200, "to_ms": 900, "then": {"kind": "quote"}}}'
  weir-fake-provider --behaviour '{"kind": "mix", "with": {"seed": 7, "of": [
      [9, {"kind": "quote"}],
      [1, {"kind": "status", "with": {"status": 429, "retry_after": "2"}}]]}}'
  weir-fake-provider --script outage.json --idempotency

When it is ready it prints one line to standard output:
  weir-fake-provider ready on http://127.0.0.1:8089/v1

Point Weir at it:
  [llm.providers.fake]
  base_url = "http://127.0.0.1:8089/v1"
  model = "fake"

What it has done and charged, what it does from now on, what it does with the next requests,
an outage, and books and script forgotten:
  curl localhost:8089/control/books
  curl localhost:8089/control/behaviour -d '{"kind": "hang"}'
  curl localhost:8089/control/script -d '[{"kind": "reset"}]'
  curl localhost:8089/control/down -d '{"down": true}'
  curl -X POST localhost:8089/control/reset

A behaviour it does not know is answered with those it knows.
SIGTERM and SIGINT end it with status 0."#;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-fake-provider: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let script = arguments.script.as_ref().map_or(Ok(Vec::new()), |file| {
        let json = std::fs::read(file).map_err(|error| format!("can't read {}: {error}", file.display()))?;
        Behaviour::list(&json).map_err(|error| format!("{} is no script: {error}", file.display()))
    })?;
    // Before it listens: who sees an open port may send a signal.
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else { return Err("can't listen for signals".into()) };
    let address = SocketAddr::new(arguments.host, arguments.port);
    let provider = FakeProvider::start_on(address, arguments.behaviour)
        .await
        .map_err(|error| format!("can't listen on {address}: {error}; choose another port with --port"))?;
    provider.script(script);
    provider.set_idempotency(arguments.idempotency);
    println!("weir-fake-provider ready on {}", provider.base_url());
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    let sums = provider.books().sums;
    eprintln!(
        "weir-fake-provider: {} calls, {} charged: {} tokens in, {} out",
        sums.calls, sums.charged_calls, sums.input_tokens, sums.output_tokens
    );
    Ok(())
}
