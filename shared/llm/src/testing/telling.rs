//! How an answer leaves: at once or with pauses, whole or broken off.

use std::future::pending;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;

use super::answer::Answer;
use super::books::Fate;
use super::call::Call;
use super::connection::Reset;
use super::request::Request;

/// How an answer that breaks off ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Reset,
    Clean,
    Silence,
}

/// The manner of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Manner {
    /// Before every piece.
    pub(super) pause: Duration,
    /// After how many pieces it breaks off, and how; it does not when there is none.
    pub(super) breaks: Option<(usize, Ending)>,
}

/// A body that is being sent.
struct Telling {
    call: Call,
    left: std::vec::IntoIter<Piece>,
    pause: Duration,
    ending: Option<Ending>,
    reset: Reset,
    answer: Option<Answer>,
}

struct Piece {
    bytes: String,
    /// None for what is no part of an answer.
    tokens: Option<u64>,
}

/// Gives this answer.
pub(super) async fn tell(answer: Answer, manner: Manner, request: &Request, call: Call, reset: Reset) -> Response {
    call.answer(&answer);
    let mut deltas = answer.deltas();
    let ending = manner.breaks.map(|(pieces, ending)| {
        deltas.truncate(pieces);
        ending
    });
    if request.stream {
        let event = |event: String, tokens| Piece { bytes: format!("data: {event}\n\n"), tokens: Some(tokens) };
        let mut pieces: Vec<_> = deltas.iter().map(|delta| event(answer.event(delta), answer.piece_tokens)).collect();
        if ending.is_none() {
            pieces.extend(answer.last_events(request.stream_usage).into_iter().map(|last| event(last, 0)));
        }
        call.respond(200);
        let telling =
            Telling { call, left: pieces.into_iter(), pause: manner.pause, ending, reset, answer: Some(answer) };
        return ([(header::CONTENT_TYPE, "text/event-stream")], telling.into_body()).into_response();
    }
    for _ in deltas {
        wait(manner.pause).await;
        call.generate(answer.piece_tokens);
    }
    let mut body = answer.whole();
    if ending.is_some() {
        body.truncate(body.floor_char_boundary(body.len() / 2));
    }
    send(call, StatusCode::OK, "application/json", Piece { bytes: body, tokens: Some(0) }, ending, reset, Some(answer))
}

/// Gives a response that is no answer.
pub(super) fn refuse(call: Call, status: StatusCode, content_type: &'static str, body: String) -> Response {
    send(call, status, content_type, Piece { bytes: body, tokens: None }, None, Reset::default(), None)
}

fn send(
    call: Call,
    status: StatusCode,
    content_type: &'static str,
    body: Piece,
    ending: Option<Ending>,
    reset: Reset,
    answer: Option<Answer>,
) -> Response {
    call.respond(status.as_u16());
    let length = body.bytes.len();
    let telling = Telling { call, left: vec![body].into_iter(), pause: Duration::ZERO, ending, reset, answer };
    let mut response = (status, [(header::CONTENT_TYPE, content_type)], telling.into_body()).into_response();
    if ending.is_none() {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

impl Telling {
    fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut telling| async move {
            let piece = telling.next().await?;
            Some((piece, telling))
        }))
    }

    async fn next(&mut self) -> Option<io::Result<String>> {
        let Some(piece) = self.left.next() else { return self.break_off().await };
        if let Some(tokens) = piece.tokens {
            if tokens > 0 {
                wait(self.pause).await;
            }
            self.call.generate(tokens);
        }
        // Nobody asks for what comes after the last piece of a body whose length is known.
        if self.ending.is_none() && self.left.len() == 0 {
            self.call.end(Fate::Finished, self.answer.take());
        }
        Some(Ok(piece.bytes))
    }

    async fn break_off(&mut self) -> Option<io::Result<String>> {
        match self.ending.take()? {
            Ending::Reset => {
                // What was said leaves first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.call.end(Fate::BrokenOff, None);
                self.reset.set();
                Some(Err(io::ErrorKind::ConnectionReset.into()))
            }
            Ending::Clean => {
                self.call.end(Fate::BrokenOff, None);
                None
            }
            Ending::Silence => pending().await,
        }
    }
}

/// A timer takes a millisecond even for nothing.
async fn wait(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}
