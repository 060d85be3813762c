//! The command line that every service has.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::{ServiceConfig, Sources};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) sources: Sources,
    pub(crate) action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Run,
    PrintConfig,
    PrintMetrics,
}

pub(crate) fn command<C: ServiceConfig>() -> Command {
    let binary = format!("weir-{}", C::NAME);
    let examples = format!(
        "Examples:\n  {binary} --config weir.toml\n  \
         WEIR_KAFKA__BROKERS=kafka:9092 {binary} --set http.listen=0.0.0.0:{port}\n  \
         WEIR_KAFKA__PROPERTIES='security.protocol=SASL_SSL,sasl.mechanism=SCRAM-SHA-512' {binary} --print-config\n\n\
         Each key of a section can be set in the file, by the variable WEIR_<SECTION>__<KEY>, and by --set; the later \
         of these wins.\nExit status: 0 after SIGTERM or SIGINT, 1 when the service cannot start or go on, 2 for a wrong \
         command line.",
        port = C::PORT
    );
    Command::new(C::NAME)
        .bin_name(&binary)
        .display_name(&binary)
        .version(env!("CARGO_PKG_VERSION"))
        .about(C::ABOUT)
        .after_help(examples)
        .max_term_width(120)
        .arg(
            Arg::new("config")
                .long("config")
                .env("WEIR_CONFIG")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("TOML file with the configuration; one file may serve all services"),
        )
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("SECTION.KEY=VALUE")
                .action(ArgAction::Append)
                .help("Sets one key, over file and environment; may be repeated"),
        )
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Prints the configuration in force, without secrets, and ends"),
        )
        .arg(Arg::new("print-metrics").long("print-metrics").action(ArgAction::SetTrue).hide(true))
}

pub(crate) fn read(matches: &ArgMatches, environment: Vec<(String, String)>) -> Arguments {
    let action = if matches.get_flag("print-config") {
        Action::PrintConfig
    } else if matches.get_flag("print-metrics") {
        Action::PrintMetrics
    } else {
        Action::Run
    };
    let settings = matches.get_many::<String>("set").unwrap_or_default().cloned().collect();
    let file = matches.get_one::<PathBuf>("config").filter(|path| !path.as_os_str().is_empty()).cloned();
    Arguments { sources: Sources { file, environment, settings }, action }
}
