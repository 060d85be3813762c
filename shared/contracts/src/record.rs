//! What can travel as the value of a Kafka record.

use std::sync::OnceLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are not a record, or a record could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A schema is not valid Avro; a defect of the program or of what is registered.
    #[error("schema {name} is not valid Avro: {source}")]
    Schema {
        /// Name of the schema.
        name: String,
        /// What Avro says.
        source: Box<apache_avro::Error>,
    },
    /// Bytes do not fit the schema.
    #[error("bytes do not decode as {name}: {source}")]
    Decode {
        /// Name of the schema.
        name: &'static str,
        /// What Avro says.
        source: Box<apache_avro::Error>,
    },
    /// A value does not fit the schema; a defect of the program.
    #[error("value does not encode as {name}: {source}")]
    Encode {
        /// Name of the schema.
        name: &'static str,
        /// What Avro says.
        source: Box<apache_avro::Error>,
    },
}

/// A schema of `schemas/`, parsed once.
#[derive(Debug)]
pub struct SchemaDef {
    name: &'static str,
    json: &'static str,
    parsed: OnceLock<Schema>,
}

impl SchemaDef {
    /// A schema by its file name and text.
    #[must_use]
    pub const fn new(name: &'static str, json: &'static str) -> Self {
        Self { name, json, parsed: OnceLock::new() }
    }

    /// File name without `.avsc`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The text of the file.
    #[must_use]
    pub fn json(&self) -> &'static str {
        self.json
    }

    /// The parsed schema.
    ///
    /// # Errors
    /// When the text is not valid Avro.
    pub fn schema(&self) -> Result<&Schema, CodecError> {
        if let Some(schema) = self.parsed.get() {
            return Ok(schema);
        }
        let schema = Schema::parse_str(self.json)
            .map_err(|source| CodecError::Schema { name: self.name.to_owned(), source: Box::new(source) })?;
        Ok(self.parsed.get_or_init(|| schema))
    }

    /// Whether this schema reads all that was written with the one whose text is `writer` (BACKWARD); an error says
    /// why not.
    ///
    /// # Errors
    /// When it does not, or one of them is not valid Avro.
    pub fn reads(&self, writer: &str) -> Result<(), String> {
        let writer = Schema::parse_str(writer).map_err(|error| format!("the writer's schema is not valid: {error}"))?;
        let own = self.schema().map_err(|error| error.to_string())?;
        match SchemaCompatibility::can_read(&writer, own) {
            Ok(Compatibility::Full) => Ok(()),
            Ok(Compatibility::Partial) => Err("it reads some of what was written, not all".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A value a topic carries.
pub trait Record: Sized + Send + Sync + 'static {
    /// Its schema; none for records that travel as plain bytes, unframed.
    fn schema() -> Option<&'static SchemaDef>;

    /// Appends the body, without the frame.
    ///
    /// # Errors
    /// When the value does not fit the schema.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads the body, written with `writer` (this record's own schema when none), resolved to this record's schema.
    ///
    /// # Errors
    /// When the bytes do not fit.
    fn decode(writer: Option<&Schema>, body: &[u8]) -> Result<Self, CodecError>;
}

/// A record of a type that is known only when the program runs.
pub trait AnyRecord: Send + Sync {
    /// Its schema, as in [`Record::schema`].
    fn schema(&self) -> Option<&'static SchemaDef>;

    /// Appends the body, without the frame.
    ///
    /// # Errors
    /// When the value does not fit the schema.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;
}

impl<R: Record> AnyRecord for R {
    fn schema(&self) -> Option<&'static SchemaDef> {
        R::schema()
    }

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        Record::encode(self, out)
    }
}

/// Bytes as they are: no schema, no frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw(pub Vec<u8>);

impl Record for Raw {
    fn schema() -> Option<&'static SchemaDef> {
        None
    }

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&self.0);
        Ok(())
    }

    fn decode(_: Option<&Schema>, body: &[u8]) -> Result<Self, CodecError> {
        Ok(Self(body.to_vec()))
    }
}

/// Writes `value` as Avro.
pub(crate) fn encode_avro<T: Serialize>(
    def: &'static SchemaDef,
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let fail = |source| CodecError::Encode { name: def.name, source: Box::new(source) };
    let writer = GenericDatumWriter::builder(def.schema()?).build().map_err(fail)?;
    writer.write_ser(out, value).map_err(fail)?;
    Ok(())
}

/// Reads a value that was written with `writer`, resolved to `def`.
pub(crate) fn decode_avro<T: DeserializeOwned>(
    def: &'static SchemaDef,
    writer: Option<&Schema>,
    mut body: &[u8],
) -> Result<T, CodecError> {
    let fail = |source| CodecError::Decode { name: def.name, source: Box::new(source) };
    let reader = def.schema()?;
    match writer {
        Some(writer) if writer != reader => {
            let datum = GenericDatumReader::builder(writer).reader_schema(reader).build().map_err(fail)?;
            let value = datum.read_value(&mut body).map_err(fail)?;
            apache_avro::from_value(&value).map_err(fail)
        }
        _ => {
            let datum = GenericDatumReader::builder(reader).build().map_err(fail)?;
            datum.read_deser(&mut body).map_err(fail)
        }
    }
}
