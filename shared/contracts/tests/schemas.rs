//! Holds `schemas/` to the Rust types, and both to every released version.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use apache_avro::Schema;
use apache_avro::schema::Name;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde_json::Value as Json;
use weir_contracts::{
    Answer, AnswerToken, ChunkBatch, Document, DocumentRequest, DocumentStatus, EmbeddingBatch, Evaluation, Job,
    LaneStop, Question, Record, RequestOutcome, Tenant, Usage, schemas,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas")
}

/// Names without extension of the files of a folder with this extension.
fn names(folder: &Path, extension: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|found| found == extension));
    files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

fn schema(path: &Path) -> Schema {
    Schema::parse_str(&fs::read_to_string(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn released() -> Vec<PathBuf> {
    let versions: Vec<_> =
        fs::read_dir(folder().join("released")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!versions.is_empty(), "no released version to hold anything against");
    versions
}

/// The record of this name somewhere in a schema.
fn named<'a>(name: &Name, within: &'a Schema) -> Option<&'a Schema> {
    match within {
        Schema::Record(record) if record.name == *name => Some(within),
        Schema::Record(record) => record.fields.iter().find_map(|field| named(name, &field.schema)),
        Schema::Array(array) => named(name, &array.items),
        Schema::Map(map) => named(name, &map.types),
        Schema::Union(union) => union.variants().iter().find_map(|variant| named(name, variant)),
        _ => None,
    }
}

/// A JSON example as a value of the schema, which is a part of `root`.
fn value(json: &Json, schema: &Schema, root: &Schema) -> Value {
    match (schema, json) {
        (Schema::Ref { name }, _) => value(json, named(name, root).expect("a record of that name"), root),
        (Schema::Union(union), _) => {
            let wanted = union.variants().iter().position(|variant| matches!(variant, Schema::Null) == json.is_null());
            let index = wanted.expect("null, or a branch that is not");
            Value::Union(u32::try_from(index).unwrap(), Box::new(value(json, &union.variants()[index], root)))
        }
        (Schema::Null, Json::Null) => Value::Null,
        (Schema::Boolean, Json::Bool(flag)) => Value::Boolean(*flag),
        (Schema::Int, Json::Number(number)) => Value::Int(i32::try_from(number.as_i64().unwrap()).unwrap()),
        (Schema::Long, Json::Number(number)) => Value::Long(number.as_i64().unwrap()),
        (Schema::Double, Json::Number(number)) => Value::Double(number.as_f64().unwrap()),
        (Schema::String, Json::String(text)) => Value::String(text.clone()),
        (Schema::Bytes, Json::String(text)) => {
            Value::Bytes(text.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect())
        }
        (Schema::Enum(symbols), Json::String(text)) => {
            let index = symbols.symbols.iter().position(|symbol| symbol == text).expect("a known symbol");
            Value::Enum(u32::try_from(index).unwrap(), text.clone())
        }
        (Schema::Array(array), Json::Array(items)) => {
            Value::Array(items.iter().map(|item| value(item, &array.items, root)).collect())
        }
        (Schema::Map(map), Json::Object(entries)) => {
            Value::Map(entries.iter().map(|(key, entry)| (key.clone(), value(entry, &map.types, root))).collect())
        }
        (Schema::Record(record), Json::Object(entries)) => {
            let fields: BTreeSet<_> = record.fields.iter().map(|field| field.name.as_str()).collect();
            assert_eq!(fields, entries.keys().map(String::as_str).collect(), "fields of {}", record.name);
            let field = |field: &apache_avro::schema::RecordField| {
                (field.name.clone(), value(&entries[&field.name], &field.schema, root))
            };
            Value::Record(record.fields.iter().map(field).collect())
        }
        (schema, json) => panic!("{json} is no {schema:?}"),
    }
}

/// An example, encoded with the schema that lies beside it.
fn encoded(folder: &Path, name: &str) -> (Schema, Vec<u8>) {
    let schema = schema(&folder.join(format!("{name}.avsc")));
    let text = fs::read_to_string(folder.join(format!("examples/{name}.json"))).unwrap();
    let example = value(&serde_json::from_str(&text).unwrap(), &schema, &schema);
    let mut body = Vec::new();
    let writer = GenericDatumWriter::builder(&schema).build().unwrap();
    writer.write_value(&mut body, example).unwrap_or_else(|error| panic!("{name}: {error}"));
    (schema, body)
}

/// The type reads the example, writes the same bytes, and has exactly the schema's fields.
fn holds<T: Record + Serialize + PartialEq + Debug>() -> &'static str {
    let name = T::schema().unwrap().name();
    let (schema, body) = encoded(&folder(), name);
    let record = T::decode(None, &body).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut again = Vec::new();
    record.encode(&mut again).unwrap();
    // Not the bytes: the order of a map's entries has no meaning.
    assert_eq!(again.len(), body.len(), "{name} changes when it is read and written");
    assert_eq!(T::decode(None, &again).unwrap(), record, "{name} changes when it is written and read");
    let Schema::Record(fields) = &schema else { panic!("{name} is no record") };
    let Json::Object(own) = serde_json::to_value(&record).unwrap() else { panic!("{name} is no struct") };
    let fields: BTreeSet<_> = fields.fields.iter().map(|field| field.name.clone()).collect();
    assert_eq!(own.keys().cloned().collect::<BTreeSet<_>>(), fields, "fields of {name}");

    for version in released() {
        if version.join(format!("{name}.avsc")).exists() {
            let (writer, body) = encoded(&version, name);
            T::decode(Some(&writer), &body).unwrap_or_else(|error| panic!("{name} of {}: {error}", version.display()));
        }
    }
    name
}

#[test]
fn every_example_of_every_version_decodes_into_todays_types_and_round_trips() {
    let held: BTreeSet<&str> = [
        holds::<DocumentRequest>(),
        holds::<Document>(),
        holds::<ChunkBatch>(),
        holds::<EmbeddingBatch>(),
        holds::<RequestOutcome>(),
        holds::<DocumentStatus>(),
        holds::<Question>(),
        holds::<Answer>(),
        holds::<AnswerToken>(),
        holds::<Evaluation>(),
        holds::<Usage>(),
        holds::<Tenant>(),
        holds::<LaneStop>(),
        holds::<Job>(),
    ]
    .into();
    let known: BTreeSet<&str> = schemas().iter().map(|schema| schema.name()).collect();
    assert_eq!(held, known, "a schema without its line above");
    assert_eq!(names(&folder(), "avsc"), known.iter().map(ToString::to_string).collect(), "files and SCHEMAS");
    assert_eq!(names(&folder().join("examples"), "json"), names(&folder(), "avsc"), "examples and schemas");
}

#[test]
fn todays_schemas_read_what_every_released_version_wrote() {
    for version in released() {
        for name in names(&version, "avsc") {
            let old = schema(&version.join(format!("{name}.avsc")));
            let new = schema(&folder().join(format!("{name}.avsc")));
            let fits = SchemaCompatibility::can_read(&old, &new);
            let fits = fits.unwrap_or_else(|error| panic!("{name} can't read version {}: {error}", version.display()));
            assert_eq!(fits, Compatibility::Full, "{name} of {}", version.display());
        }
    }
}

/// The check above can fail: a field that old records lack and that has no default.
#[test]
fn a_new_field_without_a_default_is_noticed() {
    let text = fs::read_to_string(folder().join("tenant.avsc")).unwrap();
    let old = Schema::parse_str(&text).unwrap();
    let mut json: Json = serde_json::from_str(&text).unwrap();
    let field = serde_json::json!({ "name": "region", "type": "string" });
    json["fields"].as_array_mut().unwrap().push(field);
    let new = Schema::parse(&json).unwrap();
    assert!(SchemaCompatibility::can_read(&old, &new).is_err());
}

#[test]
fn every_field_is_documented_and_optional_ones_have_a_default() {
    fn look(name: &str, schema: &Schema) {
        match schema {
            Schema::Record(record) => {
                for field in &record.fields {
                    let full = format!("{name}.{}", field.name);
                    assert!(field.doc.as_ref().is_some_and(|doc| !doc.is_empty()), "{full} has no doc");
                    if matches!(field.schema, Schema::Union(_)) {
                        assert!(field.default.is_some(), "{full} is optional and has no default");
                    }
                    look(&full, &field.schema);
                }
            }
            Schema::Array(array) => look(name, &array.items),
            Schema::Map(map) => look(name, &map.types),
            Schema::Union(union) => union.variants().iter().for_each(|variant| look(name, variant)),
            _ => {}
        }
    }
    for name in names(&folder(), "avsc") {
        look(&name, &schema(&folder().join(format!("{name}.avsc"))));
    }
}
