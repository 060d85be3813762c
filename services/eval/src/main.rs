//! Scores answers: citation validity and groundedness.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use weir_contracts::Topic;
use weir_eval::Score;
use weir_eval::config::Config;

fn main() -> ExitCode {
    weir_service::main::<Config, _, _>(|_, service| async move {
        let score = Score::new(Arc::new(SystemTime::now));
        service.run_stage("eval", Topic::ANSWERS, score).await?;
        Ok(())
    })
}
