//! The stack of a test in containers, from the official images that docker-compose.yml names.
//!
//! They share the network of the host: everything listens on 127.0.0.1, on the ports and with the settings that the
//! processes of a [`weir_stack::Stack`] have. That takes a Docker engine of this machine, on Linux.

use std::mem::ManuallyDrop;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testcontainers::core::Mount;
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt as _};
use weir_stack::{Blueprint, Planned, StackConfig, properties_file};

/// Where the versions of the images are.
const COMPOSE: &str = include_str!("../../../docker-compose.yml");
/// Which containers belong together: those of one stack.
const STACK_LABEL: &str = "weir-test-stack";
const SERVICE_LABEL: &str = "weir-test-service";
/// Where the official image looks for a broker's properties, and where it may keep its data.
const BROKER_CONFIG: &str = "/mnt/shared/config";
const BROKER_DATA: &str = "/var/lib/kafka/data";
/// How long a service may take to answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a service gets to end when asked, s.
const GRACE: i32 = 10;

/// Kafka, registry and Qdrant in containers.
pub struct Containers {
    config: StackConfig,
    brokers: Vec<Container>,
    registry: Option<Container>,
    qdrant: Option<Container>,
    _reaper: Reaper,
}

impl Containers {
    /// Starts them, and returns when every service has answered a real request. Images are pulled the first time.
    pub async fn start(config: StackConfig) -> Result<Self, String> {
        let version = docker(&["version", "--format", "{{.Server.Version}}"]);
        version.map_err(|error| format!("WEIR_TEST_STACK=containers needs a Docker engine: {error}"))?;
        let plan = Blueprint::draw(&config, Path::new(BROKER_DATA)).map_err(|error| error.to_string())?;
        let reaper = Reaper::start(&config.data)?;
        let mut brokers = Vec::new();
        for planned in plan.brokers {
            let folder = config.data.join(&planned.name);
            share(&folder, "server.properties", &properties_file(&planned.settings))
                .map_err(|error| format!("{}: {error}", folder.display()))?;
            let request = image("apache/kafka")?
                .with_env_var("CLUSTER_ID", &plan.cluster_id)
                .with_env_var("KAFKA_HEAP_OPTS", format!("-Xmx{}m", config.broker_heap_mib))
                .with_mount(Mount::bind_mount(folder.display().to_string(), BROKER_CONFIG));
            brokers.push(Container::create(&reaper, planned, request).await?);
        }
        for broker in &brokers {
            broker.answered().await?;
        }
        let registry = reaper.run(plan.registry, "apicurio/apicurio-registry").await?;
        let qdrant = reaper.run(plan.qdrant, "qdrant/qdrant").await?;
        Ok(Self { config, brokers, registry, qdrant, _reaper: reaper })
    }

    pub fn config(&self) -> &StackConfig {
        &self.config
    }

    pub fn kafka_brokers(&self) -> String {
        let addresses: Vec<&str> = self.brokers.iter().map(|broker| broker.planned.address.as_str()).collect();
        addresses.join(",")
    }

    pub fn registry_url(&self) -> String {
        self.registry.as_ref().map(|registry| registry.planned.address.clone()).unwrap_or_default()
    }

    pub fn qdrant_url(&self) -> String {
        self.qdrant.as_ref().map(|qdrant| qdrant.planned.address.clone()).unwrap_or_default()
    }

    pub fn kill_broker(&self, index: usize) -> Result<(), String> {
        // SIGKILL, unless it is told otherwise; returns when the broker is gone.
        docker(&["kill", self.broker(index)?.running.id()]).map(drop)
    }

    pub async fn restart_broker(&self, index: usize) -> Result<(), String> {
        let broker = self.broker(index)?;
        broker.stop().await?;
        broker.start().await
    }

    pub async fn stop_qdrant(&self) {
        if let Some(qdrant) = &self.qdrant {
            qdrant.stop().await.expect("Qdrant's container stops");
        }
    }

    pub async fn start_qdrant(&self) -> Result<(), String> {
        self.qdrant.as_ref().ok_or("this stack has no Qdrant")?.start().await
    }

    fn broker(&self, index: usize) -> Result<&Container, String> {
        self.brokers.get(index).ok_or_else(|| format!("there is no broker {index}: there are {}", self.brokers.len()))
    }
}

struct Container {
    planned: Planned,
    /// The reaper removes it. Its own way of doing so needs the runtime of the test, which has ended by then.
    running: ManuallyDrop<ContainerAsync<GenericImage>>,
}

impl Container {
    async fn create(
        reaper: &Reaper,
        planned: Planned,
        request: ContainerRequest<GenericImage>,
    ) -> Result<Self, String> {
        let request = request
            .with_network("host")
            .with_label(STACK_LABEL, &reaper.stack)
            .with_label(SERVICE_LABEL, &planned.name);
        let running = request.start().await.map_err(|error| format!("the container of {}: {error}", planned.name))?;
        Ok(Self { planned, running: ManuallyDrop::new(running) })
    }

    /// Starts it again as it was: its data lies in it.
    async fn start(&self) -> Result<(), String> {
        let started = ContainerAsync::start(&self.running).await;
        started.map_err(|error| format!("starting {}: {error}", self.planned.name))?;
        self.answered().await
    }

    /// Harmless when it does not run.
    async fn stop(&self) -> Result<(), String> {
        let stopped = self.running.stop_with_timeout(Some(GRACE)).await;
        stopped.map_err(|error| format!("stopping {}: {error}", self.planned.name))
    }

    async fn answered(&self) -> Result<(), String> {
        let begin = Instant::now();
        while let Err(reason) = self.planned.probe.ask().await {
            let runs = self.running.is_running().await.map_err(|error| error.to_string())?;
            if !runs || begin.elapsed() > PATIENCE {
                let what = if runs { "does not answer" } else { "has ended" };
                let said = docker(&["logs", "--tail", "20", self.running.id()]).unwrap_or_else(|error| error);
                return Err(format!("the container of {} {what} ({reason}). It said:\n{said}", self.planned.name));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

/// A shell that waits at the other end of a pipe, which the kernel closes whenever the test program ends: then it
/// keeps the logs of the containers and removes them.
struct Reaper {
    /// Marks the containers it is for.
    stack: String,
    shell: Child,
}

const REAPER: &str = r#"
cat >/dev/null
for id in $(docker ps --all --quiet --filter "label=weir-test-stack=$1"); do
    name=$(docker inspect --format '{{index .Config.Labels "weir-test-service"}}' "$id")
    docker logs "$id" >"$2/$name.log" 2>&1
    docker rm --force --volumes "$id"
done
"#;

impl Reaper {
    fn start(folder: &Path) -> Result<Self, String> {
        let stack = format!("{}-{:x}", std::process::id(), rand::random::<u32>());
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(REAPER).arg("weir-reaper").arg(&stack).arg(folder);
        // A process group of its own: Ctrl-C ends the test program, and then it is needed.
        shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = shell.spawn().map_err(|error| format!("the shell that removes containers: {error}"))?;
        Ok(Self { stack, shell })
    }

    /// Runs a service that needs nothing but its environment.
    async fn run(&self, planned: Option<Planned>, name: &str) -> Result<Option<Container>, String> {
        let Some(planned) = planned else { return Ok(None) };
        let request = ContainerRequest::from(image(name)?);
        let request = planned.settings.iter().fold(request, |request, (key, value)| request.with_env_var(key, value));
        let container = Container::create(self, planned, request).await?;
        container.answered().await?;
        Ok(Some(container))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // It ends by itself.
        let _ = self.shell.wait();
    }
}

/// The image of this name, in the version that docker-compose.yml has.
fn image(name: &str) -> Result<GenericImage, String> {
    let images = COMPOSE.lines().filter_map(|line| line.trim().strip_prefix("image: "));
    let mut tags = images.filter_map(|image| image.strip_prefix(name)?.strip_prefix(':'));
    tags.next().map(|tag| GenericImage::new(name, tag)).ok_or_else(|| format!("docker-compose.yml has no {name}"))
}

/// Writes a file that the user of a container can read, whoever that is.
fn share(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    let file = folder.join(name);
    std::fs::write(&file, text)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))
}

/// Asks Docker's command line; what it said, on either stream.
fn docker(arguments: &[&str]) -> Result<String, String> {
    let command = arguments.first().copied().unwrap_or_default();
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("the program `docker` can't be run: {error}"))?;
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).trim().to_owned()).join("\n");
    if output.status.success() { Ok(said) } else { Err(format!("`docker {command}` says: {}", said.trim())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_has_its_version_in_the_compose_file() {
        for name in ["apache/kafka", "apicurio/apicurio-registry", "qdrant/qdrant"] {
            assert!(image(name).is_ok(), "{name}");
        }
        assert!(image("apache").is_err());
    }
}
