//! A stack and services that belong to this process: they end with it, however it ends.

use std::collections::BTreeMap;

use color_eyre::eyre::{WrapErr, eyre};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir_stack::{Stack, StackConfig};

use crate::context::Context;
use crate::fleet::{self, Ports};
use crate::progress::Activity;
use crate::{supervise, up};

/// Everything, running.
pub struct Session {
    context: Context,
    stack: Stack,
    services: JoinHandle<color_eyre::Result<()>>,
    stop: CancellationToken,
    folder: tempfile::TempDir,
}

impl Session {
    /// Starts everything in a new folder on free ports, and waits until it is ready.
    ///
    /// # Errors
    /// When something does not come up; what was started is ended again.
    pub async fn start(context: &Context) -> color_eyre::Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-demo-").tempdir()?;
        let config = StackConfig {
            kafka: !context.external.kafka,
            registry: !context.external.registry,
            qdrant: !context.external.qdrant,
            ports: weir_stack::Ports::Free,
            ..StackConfig::local(folder.path())
        };
        let activity = Activity::start("starting Kafka, schema registry and Qdrant", context.json);
        let stack = Stack::start(config).await?;
        drop(activity);
        let context = context.on_stack(folder.path(), &stack.endpoints())?;
        up::prepare(&context).await?;
        let plan = up::plan(&context, &BTreeMap::new(), Ports::Free)?;
        plan.write(&context.data)?;
        let stop = CancellationToken::new();
        let (data, stopped) = (context.data.clone(), stop.clone());
        let services = tokio::spawn(async move { supervise::supervise(&data, stopped.cancelled_owned()).await });
        let mut session = Self { context, stack, services, stop, folder };
        let names: Vec<_> = plan.instances.iter().map(|instance| instance.name.clone()).collect();
        if let Err(error) = session.ready(&names).await {
            let _ = session.end(true).await;
            return Err(error);
        }
        Ok(session)
    }

    async fn ready(&mut self, names: &[String]) -> color_eyre::Result<()> {
        // The state appears with the supervisor's first turn.
        while fleet::FleetState::running(&self.context.data).is_none() {
            if self.services.is_finished() {
                let ended = (&mut self.services).await.wrap_err("the supervisor of the services broke off")?;
                return Err(ended.err().unwrap_or_else(|| eyre!("the supervisor of the services ended")));
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        up::wait_until_ready(&self.context, names).await.map(drop)
    }

    /// Where everything is.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Ends everything in order and removes the folder; keeps the folder with its logs when `keep`.
    ///
    /// # Errors
    /// When the services did not end as they should.
    pub async fn end(self, keep: bool) -> color_eyre::Result<()> {
        self.stop.cancel();
        let services = self.services.await;
        self.stack.stop().await;
        if keep {
            eprintln!("The logs stay in {}.", self.folder.keep().display());
        } else {
            self.folder.close().wrap_err("can't remove the demo's folder")?;
        }
        services.wrap_err("the supervisor of the services broke off")?
    }
}
