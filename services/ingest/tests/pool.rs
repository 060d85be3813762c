//! Hostile documents, and processes that hang, crash or are killed: each costs one document.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Write as _;
use std::time::{Duration, Instant};

use weir_ingest::config::IngestConfig;
use weir_ingest::formats::{Extracted, Hint, Limits, Refusal};
use weir_ingest::pool::{Pool, PoolError, WorkerCommand};
use weir_ingest::worker::{ARGUMENT, GREETING};

fn limits() -> Limits {
    IngestConfig::default().limits()
}

fn real(workers: usize) -> Pool {
    Pool::new(workers, WorkerCommand::new(env!("CARGO_BIN_EXE_weir-ingest"), [ARGUMENT]))
}

/// A worker that greets as a real one does, and then runs this shell command in place of reading documents.
fn scripted(then: &str) -> Pool {
    let length = char::from(u8::try_from(GREETING.len()).unwrap());
    let greeting = format!("{length}\\000\\000\\000{}", std::str::from_utf8(GREETING).unwrap());
    let greeting = greeting.replace(length, &format!("\\{:03o}", GREETING.len()));
    Pool::new(1, WorkerCommand::new("/bin/sh", ["-c", &format!("printf '{greeting}'; {then}")]))
}

async fn read(pool: &Pool, bytes: &[u8], limits: &Limits) -> Result<Result<Extracted, Refusal>, PoolError> {
    pool.extract(bytes, &Hint::default(), limits).await
}

async fn works(pool: &Pool) {
    let page = b"<html><body><p>A page after the storm.</p></body></html>";
    let document = read(pool, page, &limits()).await.unwrap().unwrap();
    assert_eq!(document.text, "A page after the storm.");
}

/// A PDF whose only page has this content, and an entry that leads back to itself.
fn pdf(content: &str, page: &str) -> Vec<u8> {
    pdf_of(content.as_bytes(), "", page)
}

/// The same with content in any form; `stream` says which.
fn pdf_of(content: &[u8], stream: &str, page: &str) -> Vec<u8> {
    let mut out = b"%PDF-1.4\n".to_vec();
    let mut offsets = Vec::new();
    let head = format!("<< /Length {} {stream} >>\nstream\n", content.len());
    let objects: [&[u8]; 5] = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        &format!("<< /Type /Page /Parent 2 0 R /Contents 4 0 R {page} >>").into_bytes(),
        &[head.as_bytes(), content, b"\nendstream"].concat(),
        b"<< /Type /XObject /Subtype /Form /Length 5 /Resources << /XObject << /X 5 0 R >> >> >>\nstream\n/X Do\nendstream",
    ];
    for (number, object) in objects.iter().enumerate() {
        offsets.push(out.len());
        writeln!(out, "{} 0 obj", number + 1).unwrap();
        out.extend_from_slice(object);
        out.extend_from_slice(b"\nendobj\n");
    }
    let table = out.len();
    writeln!(out, "xref\n0 {}\n0000000000 65535 f ", objects.len() + 1).unwrap();
    for offset in offsets {
        writeln!(out, "{offset:010} 00000 n ").unwrap();
    }
    writeln!(out, "trailer << /Size {} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF", objects.len() + 1).unwrap();
    out
}

#[tokio::test]
async fn a_document_that_overflows_the_stack_costs_itself_only() {
    let pool = real(1);
    works(&pool).await;
    // A form that draws itself, without end.
    let endless = pdf("/X Do", "/MediaBox [0 0 9 9] /Resources << /XObject << /X 5 0 R >> >>");
    let refusal = read(&pool, &endless, &limits()).await.unwrap().unwrap_err();
    assert_eq!(refusal.class(), "parser-crash", "{refusal}");
    assert!(refusal.to_string().contains("ended the parser"), "{refusal}");
    works(&pool).await;
}

#[tokio::test]
async fn a_document_that_wants_all_memory_costs_itself_only() {
    let pool = real(1);
    let small = Limits { max_memory: 256 << 20, max_expanded_bytes: 1 << 30, max_nesting: 1000, ..limits() };
    // Every tag becomes a node of a few hundred bytes.
    let page = format!("<html><body>{}", "<i></i>".repeat(4 << 20));
    let refusal = read(&pool, page.as_bytes(), &small).await.unwrap().unwrap_err();
    assert_eq!(refusal.class(), "parser-crash", "{refusal}");
    works(&pool).await;
}

/// A zlib stream that unfolds to about `bytes` zeros, some 160 times as long as itself: one literal, then references of
/// 258 bytes to it, in the codes that deflate has for those who bring none.
fn zeros(bytes: usize) -> Vec<u8> {
    let mut stream = vec![0x78, 0x9c];
    let (mut byte, mut used) = (0u8, 0);
    let mut push = |bits: &str| {
        for bit in bits.bytes() {
            byte |= (bit - b'0') << used;
            used += 1;
            if used == 8 {
                stream.push(byte);
                (byte, used) = (0, 0);
            }
        }
    };
    // The last block, fixed codes; the literal 0.
    push("110");
    push("00110000");
    for _ in 0..bytes / 258 {
        // Length 258, distance 1.
        push("1100010100000");
    }
    push("0000000");
    // To the end of the byte; the checksum is missing, as in many files.
    push("0000000");
    stream
}

#[tokio::test]
async fn a_pdf_that_unfolds_without_end_costs_itself_only() {
    let pool = real(1);
    let small = Limits { max_memory: 256 << 20, ..limits() };
    let bomb = zeros(1 << 30);
    assert!(bomb.len() < small.max_bytes);
    let refusal =
        read(&pool, &pdf_of(&bomb, "/Filter /FlateDecode", "/MediaBox [0 0 9 9]"), &small).await.unwrap().unwrap_err();
    assert!(["parser-crash", "broken", "timeout"].contains(&refusal.class()), "{refusal}");
    works(&pool).await;
}

#[tokio::test]
async fn work_without_end_is_stopped() {
    let quick = Limits { max_seconds: 1, ..limits() };
    for command in ["while :; do :; done", "exec sleep 1000"] {
        let begun = Instant::now();
        // The shell sets no limit on its own processor time; elapsed time stops both.
        let refusal = read(&scripted(command), b"text", &quick).await.unwrap().unwrap_err();
        assert_eq!(refusal, Refusal::Timeout { seconds: 1 });
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

#[tokio::test]
async fn processor_time_is_limited_for_each_document() {
    let pool = real(1);
    let quick = Limits { max_seconds: 1, max_nesting: 1000, ..limits() };
    // Misnested tags make the parser rebuild its formatting elements again and again.
    let page = format!("<html><body>{}", "<a><b><i><p>".repeat(400_000));
    let answer = read(&pool, page.as_bytes(), &quick).await.unwrap();
    assert!(matches!(answer, Err(Refusal::Timeout { .. } | Refusal::TooDeep { .. })), "{answer:?}");
    works(&pool).await;
}

#[tokio::test]
async fn a_worker_killed_from_outside_is_not_the_documents_fault() {
    let quick = Limits { max_seconds: 3, ..limits() };
    let error = read(&scripted("read line; kill -TERM $$"), b"text\n", &quick).await.unwrap_err();
    assert!(error.to_string().contains("told to stop"), "{error}");
    let refusal = read(&scripted("read line; kill -SEGV $$"), b"text\n", &quick).await.unwrap().unwrap_err();
    assert_eq!(refusal.class(), "parser-crash");
    let refusal = read(&scripted("read line; kill -KILL $$"), b"text\n", &quick).await.unwrap().unwrap_err();
    assert!(refusal.to_string().contains("killed by the system"), "{refusal}");
}

#[tokio::test]
async fn a_worker_that_does_not_start_is_not_the_documents_fault() {
    for command in [WorkerCommand::new("/nonexistent/weir-ingest", [ARGUMENT]), WorkerCommand::new("/bin/true", [])] {
        let error = read(&Pool::new(1, command), b"text", &limits()).await.unwrap_err();
        assert!(error.to_string().contains("does not start"), "{error}");
    }
}

#[tokio::test]
async fn many_documents_share_few_workers() {
    let pool = real(2);
    let pages: Vec<String> = (0..40).map(|n| format!("<html><body><p>Page {n}.</p></body></html>")).collect();
    let limits = limits();
    let all = pages.iter().map(|page| read(&pool, page.as_bytes(), &limits));
    for (number, document) in futures::future::join_all(all).await.into_iter().enumerate() {
        assert_eq!(document.unwrap().unwrap().text, format!("Page {number}."));
    }
}
