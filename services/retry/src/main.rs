//! Returns records to their stages after a delay.

use std::process::ExitCode;

use weir_contracts::RETRY_TIERS;
use weir_retry::Return;
use weir_retry::config::Config;

fn main() -> ExitCode {
    weir_service::main::<Config, _, _>(|_, service| async move {
        let [one, two, four, eight] = RETRY_TIERS.map(|(topic, _)| service.run_stage(topic.name(), topic, Return));
        tokio::try_join!(one, two, four, eight)?;
        Ok(())
    })
}
