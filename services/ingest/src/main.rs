//! Routes document requests into lanes and extracts their text.

use std::process::ExitCode;

use weir_contracts::Topic;
use weir_ingest::{Config, Extract, Route, worker};

fn main() -> ExitCode {
    if worker::is_wanted() {
        return worker::run();
    }
    weir_service::main::<Config, _, _>(|config, service| async move {
        let route = Route::new(config.kafka.lanes);
        let extract = Extract::new(&config)?;
        tokio::try_join!(
            service.run_stage("route-documents", Topic::DOCUMENT_REQUESTS, route),
            service.run_stage("extract", Topic::REQUESTS, extract),
        )?;
        Ok(())
    })
}
