//! `weir dlq replay ID --edit`: a record as JSON in an editor, and back into its schema.

use std::path::Path;
use std::process::Command;

use apache_avro::Schema;
use color_eyre::eyre::{WrapErr, bail, ensure, eyre};
use serde_json::Value;
use weir_contracts::{
    Answer, ChunkBatch, CodecError, Document, DocumentRequest, EmbeddingBatch, Question, Record, frame, unframe,
};
use weir_runner::{DeadLetters, Plan, Registry};

use super::choose::Choice;
use super::editable::Editable;
use super::look;
use crate::context::Context;
use crate::tail;

/// Lets somebody edit the record of one dead letter; the plan replays what was made of it.
///
/// # Errors
/// When not one dead letter is meant, its bytes are no record, or what was made of it is none.
pub async fn edited(choice: &Choice, context: &Context) -> color_eyre::Result<Plan> {
    ensure!(choice.ids.len() == 1, "--edit opens one dead letter: give its id");
    let registry = tail::registry(context)?;
    let letter = look::one(choice, context).await?;
    let stage = letter.stage.to_string();
    let opened = Opened::decode(&registry, letter.value().unwrap_or_default()).await.wrap_err_with(|| {
        format!(
            "dead letter {} can't be edited as a record; `weir dlq export {} --output FILE`, repair the bytes, and \
             `weir dlq import FILE`",
            letter.id(),
            letter.id()
        )
    })?;
    let before = serde_json::to_string_pretty(&opened.json)?;
    let file = tempfile::Builder::new().prefix("weir-dead-letter-").suffix(".json").tempfile()?;
    std::fs::write(file.path(), format!("{before}\n"))?;
    open_editor(file.path())?;
    let after = std::fs::read_to_string(file.path()).wrap_err("the edited text can't be read")?;
    if after.trim() == before {
        bail!("nothing was changed, and nothing replayed; to replay it as it is, leave out --edit");
    }
    match opened.encode(&stage, &after) {
        Ok(value) => Ok(DeadLetters::of(&context.kafka, &stage).plan_edited(letter, value)),
        Err(error) => {
            // What somebody has written is not thrown away.
            let (_, kept) = file.keep()?;
            Err(error.wrap_err(format!("nothing was replayed; the edited text is kept in {}", kept.display())))
        }
    }
}

/// A record that is being edited.
struct Opened {
    id: u32,
    schema: std::sync::Arc<Schema>,
    json: Value,
}

impl Opened {
    async fn decode(registry: &Registry, bytes: &[u8]) -> color_eyre::Result<Self> {
        let (id, mut body) = unframe(bytes)?;
        let schema = registry.schema(id).await?;
        let reader = apache_avro::reader::datum::GenericDatumReader::builder(&schema).build()?;
        let value = reader.read_value(&mut body).wrap_err("its bytes do not fit their schema")?;
        ensure!(body.is_empty(), "{} bytes are left behind the record", body.len());
        let json = Editable::new(&schema).show(&value).map_err(|reason| eyre!(reason))?;
        Ok(Self { id, schema, json })
    }

    /// The bytes of what was made of it, held against its schema and the type its stage reads.
    fn encode(&self, stage: &str, text: &str) -> color_eyre::Result<Vec<u8>> {
        let json: Value = serde_json::from_str(text).wrap_err("this is not JSON")?;
        for name in ["tenant", "document"] {
            if json.get(name) != self.json.get(name) {
                bail!("{name} was changed: a dead letter keeps its key and its lane, so it can't move to another");
            }
        }
        let value = Editable::new(&self.schema)
            .read(&json)
            .map_err(|reason| eyre!(reason))
            .wrap_err("it does not fit its schema")?;
        let mut body = Vec::new();
        let writer = apache_avro::writer::datum::GenericDatumWriter::builder(&self.schema).build()?;
        writer.write_value(&mut body, value).wrap_err("it does not fit its schema")?;
        check(stage, &self.schema, &body).wrap_err_with(|| format!("{stage} could not read it"))?;
        let mut bytes = Vec::with_capacity(body.len() + 5);
        frame(self.id, &mut bytes);
        bytes.append(&mut body);
        Ok(bytes)
    }
}

/// Whether a stage can read this.
fn check(stage: &str, schema: &Schema, body: &[u8]) -> Result<(), CodecError> {
    fn reads<R: Record>(schema: &Schema, body: &[u8]) -> Result<(), CodecError> {
        R::decode(Some(schema), body).map(drop)
    }
    match stage {
        "route-documents" | "extract" => reads::<DocumentRequest>(schema, body),
        "chunk" => reads::<Document>(schema, body),
        "embed" => reads::<ChunkBatch>(schema, body),
        "index" => reads::<EmbeddingBatch>(schema, body),
        "route-questions" | "answer" => reads::<Question>(schema, body),
        "eval" => reads::<Answer>(schema, body),
        _ => Ok(()),
    }
}

/// Opens a file in the user's editor, which may be a command with arguments, and waits until it is closed.
fn open_editor(file: &Path) -> color_eyre::Result<()> {
    let named = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let editor = named.ok_or_else(|| eyre!("set EDITOR to the editor of your choice, for example EDITOR=nano"))?;
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file)
        .status()
        .wrap_err_with(|| format!("can't start the editor {editor}"))?;
    ensure!(status.success(), "the editor {editor} ended with {status}: nothing was replayed");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::sync::Arc;

    use super::*;

    fn opened() -> Opened {
        let schema = Schema::parse_str(
            r#"{"type": "record", "name": "R", "fields": [
                {"name": "tenant", "type": "string"},
                {"name": "pages", "type": "int"},
                {"name": "content", "type": ["null", "bytes"], "default": null}
            ]}"#,
        )
        .unwrap();
        let json = serde_json::json!({ "tenant": "acme", "pages": 900, "content": { "base64": "/wA=" } });
        Opened { id: 7, schema: Arc::new(schema), json }
    }

    #[test]
    fn an_edited_record_keeps_its_schema_and_what_was_not_touched() {
        let text = opened().json.to_string().replace("900", "9");
        let bytes = opened().encode("custom", &text).unwrap();
        let (id, mut body) = unframe(&bytes).unwrap();
        assert_eq!(id, 7);
        let opened = opened();
        let reader = apache_avro::reader::datum::GenericDatumReader::builder(&opened.schema).build().unwrap();
        let value = reader.read_value(&mut body).unwrap();
        let back = Editable::new(&opened.schema).show(&value).unwrap();
        assert_eq!(back.to_string(), text);
    }

    #[test]
    fn an_invalid_edit_says_what_is_wrong() {
        for (from, to, said) in [
            ("{", "[", "not JSON"),
            ("900", "\"many\"", "pages"),
            ("900", "3000000000", "pages"),
            ("acme", "other", "tenant was changed"),
            ("\"pages\"", "\"sheets\"", "sheets"),
            ("/wA=", "/w*=", "content"),
        ] {
            let text = opened().json.to_string().replace(from, to);
            let Err(error) = opened().encode("custom", &text) else { panic!("{text} was taken") };
            let all: Vec<String> = error.chain().map(ToString::to_string).collect();
            assert!(all.join(": ").contains(said), "{said} is not in {all:?}");
        }
        let text = opened().json.to_string().replace("900", "9");
        assert!(opened().encode("extract", &text).is_err(), "the stage could not read it");
    }
}
