//! `weir`: the command line of the pipeline.

mod ask;
mod collect;
mod completions;
mod context;
mod dead_letters;
mod demo;
mod dlq;
mod doctor;
mod down;
mod erase;
mod eval;
mod exit;
mod fleet;
mod ingest;
mod jobs;
mod lag;
mod lanes;
mod ledger;
mod pipeline;
mod progress;
mod questions;
mod schemas;
mod send;
mod stack;
mod status;
mod supervise;
mod tail;
mod tenants;
mod topics;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::context::{Context, GlobalArgs};

const EXAMPLES: &str = "\
Examples:
  weir up                                  start everything on this machine
  weir ingest docs/ 'notes/**/*.md'        send documents and wait until they can be found
  weir ask \"What is a lane?\"              ask about them
  weir stack up                            start Kafka, the schema registry and Qdrant on this machine
  weir topics diff                         show how the cluster differs from topics/*.toml
  weir doctor --kafka broker:9093 -X security.protocol=SASL_SSL -X sasl.mechanism=PLAIN \\
              -X sasl.username=me -X sasl.password=secret
  weir completions bash > ~/.local/share/bash-completion/completions/weir";

/// Documents in, cited answers out: a pipeline on Kafka that keeps its word when things break.
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_help = EXAMPLES, propagate_version = true, subcommand_required = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// One variant for each module of this program; a module has `Args` and `run`.
#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything on this machine: Kafka, schema registry, Qdrant, and all services.
    Up(up::Args),
    /// End what `weir up` started. The data stays.
    Down(down::Args),
    /// Documents in, five questions, cited answers out, on a stack that ends with it.
    Demo(demo::Args),
    /// Send documents, and wait until they are searchable.
    Ingest(ingest::Args),
    /// Ask a question; the answer comes with what it rests on.
    Ask(ask::Args),
    /// What became of a document; without one, how everything is.
    Status(status::Args),
    /// How good retrieval and answers are on a labelled set.
    Eval(eval::Args),
    /// How far each stage is behind, in records and seconds.
    Lag(lag::Args),
    /// What was rejected, and why.
    Dlq(dlq::Args),
    /// Delete documents, and say by when the last copy of them is gone.
    Erase(erase::Args),
    /// Lanes that are stopped because too much was rejected, and letting them go on.
    Lanes(lanes::Args),
    /// What tenants may use: limits, prices, and what becomes of a question over a limit.
    Tenants(tenants::Args),
    /// Where a question is on its way to an answer.
    Questions(questions::Args),
    /// Long pieces of work: bulk ingest and replays, and who does them.
    Jobs(jobs::Args),
    /// Start, stop and look at Kafka, the schema registry and Qdrant on this machine.
    Stack(stack::Args),
    /// Make the topics of the cluster match topics/*.toml.
    Topics(topics::Args),
    /// Register the schemas of schemas/*.avsc, or check them against what is registered.
    Schemas(schemas::Args),
    /// Check brokers, rights, limits, topics, registry, Qdrant and model, and say what to fix.
    Doctor(doctor::Args),
    /// What `weir up` leaves running: it starts the services, and starts again what fails.
    #[command(hide = true)]
    SuperviseServices(supervise::Args),
    /// Print a completion script for a shell.
    Completions(completions::Args),
}

impl Command {
    /// Whether it works on servers that run already.
    fn needs_servers(&self) -> bool {
        !matches!(self, Self::Up(_) | Self::Demo(_) | Self::Stack(_) | Self::Doctor(_))
    }

    async fn run(self, context: &Context) -> color_eyre::Result<ExitCode> {
        match self {
            Self::Up(args) => up::run(args, context).await,
            Self::Down(args) => down::run(args, context).await,
            Self::Demo(args) => demo::run(args, context).await,
            Self::Ingest(args) => ingest::run(args, context).await,
            Self::Ask(args) => ask::run(args, context).await,
            Self::Status(args) => status::run(args, context).await,
            Self::Eval(args) => eval::run(args, context).await,
            Self::Lag(args) => lag::run(args, context).await,
            Self::Dlq(args) => dlq::run(args, context).await,
            Self::Erase(args) => erase::run(args, context).await,
            Self::Lanes(args) => lanes::run(args, context).await,
            Self::Tenants(args) => tenants::run(args, context).await,
            Self::Questions(args) => questions::run(args, context).await,
            Self::Jobs(args) => jobs::run(args, context).await,
            Self::Stack(args) => stack::run(args, context).await,
            Self::Topics(args) => topics::run(args, context).await,
            Self::Schemas(args) => schemas::run(args, context).await,
            Self::Doctor(args) => doctor::run(args, context).await,
            Self::SuperviseServices(args) => supervise::run(args, context).await,
            Self::Completions(args) => completions::run(args, context).await,
        }
    }
}

fn main() -> ExitCode {
    // Before anything makes a TLS client. Fails only when another provider is installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let json = cli.global.json;
    exit::report(json, start(cli))
}

fn start(cli: Cli) -> color_eyre::Result<ExitCode> {
    exit::install()?;
    let context = Context::load(cli.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let needs_servers = cli.command.needs_servers();
    let code = runtime.block_on(cli.command.run(&context));
    // Blocking calls into Kafka's client may still wait for a broker that is gone; nobody needs their result.
    runtime.shutdown_background();
    code.map_err(|error| if needs_servers { exit::explain(error, &context) } else { error })
}
