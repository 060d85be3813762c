//! docker-compose.yml, the Dockerfile and Prometheus' configuration say what the programs understand. No Docker is
//! needed: each program is asked with `--print-config`, under the environment that its container gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod programs;

use std::collections::{BTreeMap, BTreeSet};

use programs::{SERVICES, output, read, run};
use regex::Regex;
use serde_yaml_ng::Value;

/// Containers of images that are not ours, and the ports their own documentation names.
const OFFICIAL: &[(&str, &[u16])] = &[
    ("kafka", &[9092, 19092]),
    ("registry", &[8081]),
    ("qdrant", &[6333, 6334]),
    ("prometheus", &[9090]),
    ("grafana", &[3000]),
];

struct Compose(Value);

impl Compose {
    fn read() -> Self {
        let mut value: Value = serde_yaml_ng::from_str(&read("docker-compose.yml")).unwrap();
        // What is merged may merge something itself; one call goes one level deep.
        for _ in 0..3 {
            value.apply_merge().unwrap();
        }
        Self(value)
    }

    fn containers(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0["services"].as_mapping().unwrap().iter().map(|(name, container)| (name.as_str().unwrap(), container))
    }

    fn container(&self, name: &str) -> &Value {
        &self.0["services"][name]
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_sequence().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// What the container gets: the image's variables, then its own.
fn environment(container: &Value) -> BTreeMap<String, String> {
    let mut variables = image_environment();
    for (name, value) in container["environment"].as_mapping().into_iter().flatten() {
        let value = value.as_str().unwrap_or_else(|| panic!("{name:?}: write values as text"));
        variables.insert(name.as_str().unwrap().to_owned(), value.to_owned());
    }
    variables
}

/// `ENV` of the Dockerfile.
fn image_environment() -> BTreeMap<String, String> {
    let dockerfile = read("Dockerfile").replace("\\\n", " ");
    let pair = Regex::new(r"([A-Z][A-Z0-9_]*)=(\S+)").unwrap();
    dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("ENV "))
        .flat_map(|line| pair.captures_iter(line).map(|found| (found[1].to_owned(), found[2].to_owned())))
        .collect()
}

fn printed(service: &str, container: &Value) -> toml::Table {
    let program = format!("weir-{service}");
    run(&program, &["--print-config"], &environment(container)).parse().unwrap()
}

#[test]
fn every_service_has_a_container_that_runs_its_program() {
    let compose = Compose::read();
    for service in SERVICES {
        assert_eq!(strings(&compose.container(service)["command"]), [format!("weir-{service}")]);
    }
    let ours: BTreeSet<&str> =
        compose.containers().filter(|(_, container)| !container["build"].is_null()).map(|(name, _)| name).collect();
    let expected: BTreeSet<&str> = SERVICES.iter().copied().chain(["setup", "cli"]).collect();
    assert_eq!(ours, expected);
}

/// Each variable reaches the key it names: a slip would be refused by the program, a variable of another program
/// would not show.
#[test]
fn every_variable_arrives_in_the_configuration() {
    let compose = Compose::read();
    for service in SERVICES {
        let container = compose.container(service);
        let config = printed(service, container);
        let own = container["environment"].as_mapping().unwrap();
        for (name, value) in own {
            let (name, value) = (name.as_str().unwrap(), value.as_str().unwrap());
            let path =
                name.strip_prefix("WEIR_").unwrap_or_else(|| panic!("{service}: what is {name}?")).to_lowercase();
            let (section, key) = path.split_once("__").unwrap();
            let shown = config
                .get(section)
                .and_then(|table| table.get(key))
                .unwrap_or_else(|| panic!("{service} has no {section}.{key}, set by {name}"));
            let shown = shown.as_str().map_or_else(|| shown.to_string(), str::to_owned);
            assert_eq!(shown, value, "{service}: {name}");
        }
    }
}

#[test]
fn a_variable_that_no_program_knows_would_be_noticed() {
    let compose = Compose::read();
    let mut variables = environment(compose.container("chunk"));
    variables.insert("WEIR_KAFKA__BROKER".into(), "kafka:19092".into());
    let refused = output("weir-chunk", &["--print-config"], &variables);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("did you mean brokers"));
}

#[test]
fn health_is_checked_and_scraped_where_it_is_served() {
    let compose = Compose::read();
    let prometheus: Value = serde_yaml_ng::from_str(&read("deploy/prometheus/prometheus.yml")).unwrap();
    let jobs = prometheus["scrape_configs"].as_sequence().unwrap();
    assert_eq!(jobs.len(), SERVICES.len());
    let probed = Regex::new(r"/dev/tcp/127\.0\.0\.1/(\d+)").unwrap();
    for service in SERVICES {
        let container = compose.container(service);
        let config = printed(service, container);
        let listen = config["http"]["listen"].as_str().unwrap();
        let port = listen.strip_prefix("0.0.0.0:").unwrap_or_else(|| panic!("{service} listens on {listen}"));
        let check = strings(&container["healthcheck"]["test"]).join(" ");
        assert_eq!(&probed.captures(&check).unwrap()[1], port, "{service}: health check");
        assert!(check.contains("GET /readyz "), "{check}");
        let job = jobs.iter().find(|job| job["job_name"] == *service).unwrap_or_else(|| panic!("{service}: no job"));
        let discovery = &job["dns_sd_configs"][0];
        assert_eq!(strings(&discovery["names"]), [*service]);
        assert_eq!(discovery["port"].as_u64().unwrap().to_string(), port, "{service}: Prometheus");
        // Without a container's setting, the port is the same: one number for each service everywhere.
        let by_default: toml::Table =
            run(&format!("weir-{service}"), &["--print-config"], &BTreeMap::new()).parse().unwrap();
        assert_eq!(by_default["http"]["listen"].as_str().unwrap(), format!("127.0.0.1:{port}"), "{service}");
    }
}

/// Every address in our containers is that of a container, at a port it listens on.
#[test]
fn addresses_lead_to_containers() {
    let compose = Compose::read();
    let address = Regex::new(r"(?:^|//|,)([a-z][a-z-]*):(\d+)").unwrap();
    for (name, container) in compose.containers() {
        for (variable, value) in container["environment"].as_mapping().into_iter().flatten() {
            let (variable, value) = (variable.as_str().unwrap(), value.as_str().unwrap());
            let is_address = variable.starts_with("WEIR_") || variable.ends_with("BOOTSTRAP_SERVERS");
            for found in address.captures_iter(value).filter(|_| is_address) {
                let port: u16 = found[2].parse().unwrap();
                let known = OFFICIAL.iter().find(|(target, _)| *target == &found[1]);
                let (_, ports) = known.unwrap_or_else(|| panic!("{name}: {variable} leads to {}", &found[1]));
                assert!(ports.contains(&port), "{name}: {variable}: {} does not listen on {port}", &found[1]);
            }
        }
    }
    let kafka = environment(compose.container("kafka"));
    for port in [9092, 19092] {
        assert!(kafka["KAFKA_LISTENERS"].contains(&format!("://:{port}")), "{port}");
    }
    assert_eq!(environment(compose.container("registry"))["QUARKUS_HTTP_PORT"], "8081");
}

#[test]
fn official_images_are_pinned_and_open_on_this_machine_only() {
    let compose = Compose::read();
    let version = Regex::new(r"^v?\d+\.\d+\.\d+$").unwrap();
    for (name, ports) in OFFICIAL {
        let container = compose.container(name);
        let image = container["image"].as_str().unwrap();
        let tag = image.split_once(':').unwrap_or_else(|| panic!("{image} is not pinned")).1;
        assert!(version.is_match(tag), "{image} is not pinned to a version");
        for published in strings(&container["ports"]) {
            let port: Vec<&str> = published.split(':').collect();
            assert_eq!(port[0], "127.0.0.1", "{name}: {published}");
            assert_eq!(port[1], port[2], "{name}: the same port inside and outside");
            assert!(ports.contains(&port[2].parse().unwrap()), "{name}: {published}");
        }
    }
}

/// What is tested with the local stack runs in the containers.
#[test]
fn kafka_and_the_registry_are_the_versions_of_the_local_stack() {
    let compose = Compose::read();
    for (container, pom) in [("kafka", "kafka"), ("registry", "apicurio")] {
        let image = compose.container(container)["image"].as_str().unwrap();
        let version = image.split_once(':').unwrap().1;
        let pom = read(&format!("deploy/dev/{pom}/pom.xml"));
        assert!(
            pom.contains(&format!("<version>{version}</version>")),
            "{image} is not the version of {container}'s pom"
        );
    }
}

#[test]
fn every_container_that_needs_something_waits_for_it() {
    let compose = Compose::read();
    for service in SERVICES {
        let waits = compose.container(service)["depends_on"].as_mapping().unwrap();
        assert_eq!(waits["setup"]["condition"], "service_completed_successfully", "{service}");
        let uses_qdrant = environment(compose.container(service)).contains_key("WEIR_QDRANT__URL");
        assert_eq!(waits.contains_key("qdrant"), uses_qdrant, "{service}");
        let knows_qdrant = printed(service, compose.container(service)).contains_key("qdrant");
        assert_eq!(knows_qdrant, uses_qdrant, "{service}: a section [qdrant] and an address go together");
    }
}

/// Services that keep state or a cache, and where: on a volume, in a folder that the image makes for the user it runs as.
#[test]
fn state_survives_its_container() {
    let compose = Compose::read();
    let stateful = ["ingest", "embed", "generate"];
    let made = read("Dockerfile").replace("\\\n", " ");
    for service in SERVICES {
        let container = compose.container(service);
        let folder = printed(service, container)["runner"]["state_dir"].as_str().unwrap().to_owned();
        assert!(Regex::new(&format!(r"mkdir -p [^&]*{folder}\b")).unwrap().is_match(&made), "{service}: {folder}");
        let mounted = strings(&container["volumes"]).iter().any(|volume| *volume == format!("state:{folder}"));
        assert_eq!(mounted, stateful.contains(service), "{service}: {folder}");
    }
}

/// Commands of the command line in the file exist as they are written there.
#[test]
fn commands_of_the_command_line_exist() {
    let compose = Compose::read();
    let script = strings(&compose.container("setup")["command"]).join("\n");
    let command = Regex::new(r"\bweir ((?:[a-z-]+ ?)+)").unwrap();
    let commands: Vec<String> = command.captures_iter(&script).map(|found| found[1].trim().to_owned()).collect();
    assert_eq!(commands, ["topics apply", "schemas push"]);
    for command in &commands {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        run("weir", &arguments, &environment(compose.container("setup")));
    }
    assert_eq!(strings(&compose.container("cli")["entrypoint"]), ["weir"]);
    run("weir", &["ask", "--help"], &environment(compose.container("cli")));
}

#[test]
fn the_image_has_every_program_the_containers_run_and_only_builds_those() {
    let dockerfile = read("Dockerfile").replace("\\\n", " ");
    let package = Regex::new(r" -p (weir[a-z-]*)").unwrap();
    let built: BTreeSet<String> = package.captures_iter(&dockerfile).map(|found| found[1].to_owned()).collect();
    let run: BTreeSet<String> =
        SERVICES.iter().map(|service| format!("weir-{service}")).chain(["weir".to_owned()]).collect();
    assert_eq!(built, run);
    let copied = dockerfile.split("for program in ").nth(1).unwrap().split(';').next().unwrap();
    let copied: BTreeSet<String> = copied.split_whitespace().map(str::to_owned).collect();
    assert_eq!(copied, run);
}

#[test]
fn base_images_are_arguments_with_the_toolchain_of_the_repository() {
    let dockerfile = read("Dockerfile");
    let toolchain: toml::Table = read("rust-toolchain.toml").parse().unwrap();
    let version = toolchain["toolchain"]["channel"].as_str().unwrap().rsplit_once('.').unwrap().0.to_owned();
    let from: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert_eq!(from, ["${BUILD_IMAGE} AS build", "${BASE_IMAGE}"]);
    assert!(dockerfile.contains(&format!("ARG BUILD_IMAGE=rust:{version}-bookworm\n")));
    let compose = read("docker-compose.yml");
    assert!(compose.contains(&format!("BUILD_IMAGE: ${{WEIR_BUILD_IMAGE:-rust:{version}-bookworm}}")));
    assert!(compose.contains("BASE_IMAGE: ${WEIR_BASE_IMAGE:-debian:bookworm-slim}"));
}

/// Folders that containers mount or images copy are in the repository.
#[test]
fn mounted_and_copied_folders_exist() {
    let compose = Compose::read();
    let volumes: BTreeSet<&str> =
        compose.0["volumes"].as_mapping().unwrap().keys().map(|name| name.as_str().unwrap()).collect();
    for (name, container) in compose.containers() {
        for volume in strings(&container["volumes"]) {
            let source = volume.split(':').next().unwrap();
            let exists = match source.strip_prefix("./") {
                Some(folder) => programs::root().join(folder).is_dir(),
                None => volumes.contains(source),
            };
            assert!(exists, "{name}: {volume}");
        }
    }
    for line in read("Dockerfile").lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from")) {
        let source = line.split_whitespace().nth(1).unwrap();
        assert!(programs::root().join(source).exists(), "{line}");
    }
}

/// What the programs compile in reaches the build of the image.
#[test]
fn nothing_that_is_compiled_in_is_kept_from_the_image() {
    let ignored: Vec<String> = read(".dockerignore").lines().map(str::to_owned).collect();
    let folder = Regex::new(r#"include_(?:str|bytes)!\((?:concat!\()?"(?:\.\./)+([a-z]+(?:/[a-z]+)?)"#).unwrap();
    let mut pending = vec![programs::root().join("services"), programs::root().join("shared")];
    let mut included = BTreeSet::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            included.extend(folder.captures_iter(&text).map(|found| found[1].to_owned()));
        }
    }
    assert!(included.contains("deploy/dev"), "{included:?}");
    for included in included {
        let top = included.split('/').next().unwrap();
        assert!(!ignored.iter().any(|line| *line == included || line == top), "{included} is in .dockerignore");
    }
}
