//! A schema registry for tests that need one and nothing else of the stack.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Starts one, which registers whatever it is asked for; its URL.
pub fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let schemas = Arc::new(Mutex::new(Vec::new()));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let schemas = Arc::clone(&schemas);
            std::thread::spawn(move || answer(stream, &schemas));
        }
    });
    url
}

fn answer(mut stream: TcpStream, schemas: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let head: Vec<String> = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let length = head.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let path = head.first()?.split(' ').nth(1)?;
    let mut schemas = schemas.lock().unwrap();
    let asked: Option<usize> = path.strip_prefix("/schemas/ids/").and_then(|id| id.parse().ok());
    let answer = match asked {
        Some(id) => json!({ "schema": schemas.get(id - 1)? }),
        None => {
            let body: Value = serde_json::from_slice(&body).ok()?;
            let schema = body["schema"].as_str()?.to_owned();
            if !schemas.contains(&schema) {
                schemas.push(schema.clone());
            }
            json!({ "id": schemas.iter().position(|known| *known == schema)? + 1 })
        }
    };
    let answer = answer.to_string();
    let kind = "Content-Type: application/json\r\nConnection: close";
    write!(stream, "HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).ok()
}
