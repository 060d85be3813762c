//! Avro as JSON that a person can edit, without loss, and back under its schema: every complaint names the place.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::Name;
use apache_avro::types::Value as Avro;
use serde_json::{Map, Value, json};
use weir_runner::PortableBytes;

/// Both directions for one schema. Bytes are `{"text": …}` or `{"base64": …}`; what may be missing is null; in a union of
/// several types the value says which branch it is.
pub struct Editable<'s> {
    schema: &'s Schema,
    named: HashMap<Name, &'s Schema>,
}

impl<'s> Editable<'s> {
    /// For records of this schema.
    #[must_use]
    pub fn new(schema: &'s Schema) -> Self {
        let mut named = HashMap::new();
        collect(schema, &mut named);
        Self { schema, named }
    }

    /// A record as JSON.
    ///
    /// # Errors
    /// When something in it has no form that a person could edit.
    pub fn show(&self, value: &Avro) -> Result<Value, String> {
        self.to_json(self.schema, value, "the record")
    }

    /// The record that JSON says.
    ///
    /// # Errors
    /// When it does not fit the schema.
    pub fn read(&self, json: &Value) -> Result<Avro, String> {
        self.to_avro(self.schema, json, "the record")
    }

    fn resolve(&self, schema: &'s Schema, at: &str) -> Result<&'s Schema, String> {
        match schema {
            Schema::Ref { name } => {
                self.named.get(name).copied().ok_or_else(|| format!("{at}: its schema refers to an unknown type"))
            }
            other => Ok(other),
        }
    }

    fn to_json(&self, schema: &'s Schema, value: &Avro, at: &str) -> Result<Value, String> {
        let finite = |number: f64| match number.is_finite() {
            true => Ok(json!(number)),
            false => Err(format!("{at}: {number} can't be written as JSON")),
        };
        match (self.resolve(schema, at)?, value) {
            (_, Avro::Null) => Ok(Value::Null),
            (_, Avro::Boolean(flag)) => Ok(json!(flag)),
            (_, Avro::Int(number)) => Ok(json!(number)),
            (_, Avro::Long(number)) => Ok(json!(number)),
            (_, Avro::Float(number)) => finite(f64::from(*number)),
            (_, Avro::Double(number)) => finite(*number),
            (_, Avro::String(text) | Avro::Enum(_, text)) => Ok(json!(text)),
            (_, Avro::Bytes(bytes) | Avro::Fixed(_, bytes)) => {
                serde_json::to_value(PortableBytes::readable(bytes)).map_err(|error| format!("{at}: {error}"))
            }
            (Schema::Array(array), Avro::Array(items)) => {
                let items = items.iter().enumerate();
                items.map(|(n, item)| self.to_json(&array.items, item, &format!("{at}[{n}]"))).collect()
            }
            (Schema::Map(map), Avro::Map(entries)) => {
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by_key(|(name, _)| name.as_str());
                let shown = sorted
                    .into_iter()
                    .map(|(name, value)| Ok((name.clone(), self.to_json(&map.types, value, &below(at, name))?)));
                Ok(Value::Object(shown.collect::<Result<Map<_, _>, String>>()?))
            }
            (Schema::Record(record), Avro::Record(fields)) => {
                let shown = record.fields.iter().zip(fields).map(|(field, (name, value))| {
                    Ok((name.clone(), self.to_json(&field.schema, value, &below(at, name))?))
                });
                Ok(Value::Object(shown.collect::<Result<Map<_, _>, String>>()?))
            }
            (Schema::Union(union), Avro::Union(index, value)) => {
                let branch = usize::try_from(*index).ok().and_then(|index| union.variants().get(index));
                let branch = branch.ok_or_else(|| format!("{at}: its union has no branch {index}"))?;
                let shown = self.to_json(branch, value, at)?;
                let plain = matches!(branch, Schema::Null) || several(union.variants()).is_none();
                Ok(if plain { shown } else { json!({ "branch": index, "value": shown }) })
            }
            (other, _) => Err(format!("{at}: a field of this type can't be edited ({other:?})")),
        }
    }

    fn to_avro(&self, schema: &'s Schema, json: &Value, at: &str) -> Result<Avro, String> {
        let wanted = |what: &str| format!("{at}: {what} is wanted, not {}", brief(json));
        let whole = || json.as_i64().ok_or_else(|| wanted("a whole number"));
        match self.resolve(schema, at)? {
            Schema::Null => json.is_null().then_some(Avro::Null).ok_or_else(|| wanted("null")),
            Schema::Boolean => json.as_bool().map(Avro::Boolean).ok_or_else(|| wanted("true or false")),
            Schema::Int => match i32::try_from(whole()?) {
                Ok(number) => Ok(Avro::Int(number)),
                Err(_) => Err(wanted("a whole number of 32 bits")),
            },
            Schema::Long => whole().map(Avro::Long),
            Schema::Float => {
                let number = json.as_f64().ok_or_else(|| wanted("a number"))?;
                // The text of a number is the shortest that is this number: nothing is lost on the way.
                number.to_string().parse().map(Avro::Float).map_err(|_| wanted("a number of 32 bits"))
            }
            Schema::Double => json.as_f64().map(Avro::Double).ok_or_else(|| wanted("a number")),
            Schema::String => json.as_str().map(|text| Avro::String(text.into())).ok_or_else(|| wanted("a text")),
            Schema::Bytes => bytes(json, at).map(Avro::Bytes),
            Schema::Fixed(fixed) => match bytes(json, at)? {
                bytes if bytes.len() == fixed.size => Ok(Avro::Fixed(fixed.size, bytes)),
                bytes => Err(format!("{at}: {} bytes are wanted, not {}", fixed.size, bytes.len())),
            },
            Schema::Enum(symbols) => {
                let text = json.as_str().ok_or_else(|| wanted("a text"))?;
                let index = symbols.symbols.iter().position(|symbol| symbol == text);
                let index = index.and_then(|index| u32::try_from(index).ok());
                let index = index.ok_or_else(|| wanted(&format!("one of {}", symbols.symbols.join(", "))))?;
                Ok(Avro::Enum(index, text.to_owned()))
            }
            Schema::Array(array) => {
                let items = json.as_array().ok_or_else(|| wanted("a list"))?.iter().enumerate();
                let items = items.map(|(n, item)| self.to_avro(&array.items, item, &format!("{at}[{n}]")));
                Ok(Avro::Array(items.collect::<Result<_, _>>()?))
            }
            Schema::Map(map) => {
                let entries = json.as_object().ok_or_else(|| wanted("an object"))?.iter();
                let entries =
                    entries.map(|(name, value)| Ok((name.clone(), self.to_avro(&map.types, value, &below(at, name))?)));
                Ok(Avro::Map(entries.collect::<Result<_, String>>()?))
            }
            Schema::Record(record) => {
                let object = json.as_object().ok_or_else(|| wanted("an object"))?;
                let names: Vec<&str> = record.fields.iter().map(|field| field.name.as_str()).collect();
                if let Some(unknown) = object.keys().find(|name| !names.contains(&name.as_str())) {
                    return Err(format!("{at}: there is no field {unknown}; fields are {}", names.join(", ")));
                }
                let fields = record.fields.iter().map(|field| {
                    let at = below(at, &field.name);
                    let value = object.get(&field.name).ok_or_else(|| format!("{at} is missing"))?;
                    Ok((field.name.clone(), self.to_avro(&field.schema, value, &at)?))
                });
                Ok(Avro::Record(fields.collect::<Result<_, String>>()?))
            }
            Schema::Union(union) => self.branch(union.variants(), json, at),
            other => Err(format!("{at}: a field of this type can't be edited ({other:?})")),
        }
    }

    fn branch(&self, variants: &'s [Schema], json: &Value, at: &str) -> Result<Avro, String> {
        let null = variants.iter().position(|variant| matches!(variant, Schema::Null));
        let (index, json) = match (json, null, several(variants)) {
            (Value::Null, Some(null), _) => (null, json),
            (_, null, None) => (usize::from(null == Some(0)), json),
            (_, _, Some(count)) => {
                let index = json.get("branch").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
                let help = || format!(r#"{at}: write {{"branch": N, "value": …}}, N being one of its {count} types"#);
                (index.ok_or_else(help)?, json.get("value").ok_or_else(help)?)
            }
        };
        let variant = variants.get(index).ok_or_else(|| format!("{at}: it has no type {index}"))?;
        let number = u32::try_from(index).map_err(|error| format!("{at}: {error}"))?;
        Ok(Avro::Union(number, Box::new(self.to_avro(variant, json, at)?)))
    }
}

/// How many types a union has, if it has several beside null.
fn several(variants: &[Schema]) -> Option<usize> {
    let null = variants.iter().filter(|variant| matches!(variant, Schema::Null)).count();
    (variants.len() - null > 1).then_some(variants.len())
}

fn bytes(json: &Value, at: &str) -> Result<Vec<u8>, String> {
    let read: Result<PortableBytes, _> = serde_json::from_value(json.clone());
    let help = |error| format!(r#"{at}: bytes are written {{"text": "…"}} or {{"base64": "…"}}: {error}"#);
    read.map(PortableBytes::into_bytes).map_err(help)
}

/// The types a schema names, for those that refer to them.
fn collect<'s>(schema: &'s Schema, named: &mut HashMap<Name, &'s Schema>) {
    if let (Some(name), false) = (schema.name(), matches!(schema, Schema::Ref { .. })) {
        named.insert(name.clone(), schema);
    }
    match schema {
        Schema::Record(record) => record.fields.iter().for_each(|field| collect(&field.schema, named)),
        Schema::Array(array) => collect(&array.items, named),
        Schema::Map(map) => collect(&map.types, named),
        Schema::Union(union) => union.variants().iter().for_each(|variant| collect(variant, named)),
        _ => {}
    }
}

fn below(at: &str, name: &str) -> String {
    if at == "the record" { name.to_owned() } else { format!("{at}.{name}") }
}

/// The beginning of a value, for a complaint.
fn brief(json: &Value) -> String {
    crate::progress::shorten(&json.to_string(), 40)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    fn schema() -> Schema {
        Schema::parse_str(
            r#"{"type": "record", "name": "R", "fields": [
                {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["a", "b"]}},
                {"name": "other", "type": ["null", "Kind"], "default": null},
                {"name": "number", "type": "long"},
                {"name": "ratio", "type": "float"},
                {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 2}},
                {"name": "vectors", "type": {"type": "array", "items": "bytes"}},
                {"name": "tags", "type": {"type": "map", "values": "string"}},
                {"name": "any", "type": ["null", "string", "long"], "default": null}
            ]}"#,
        )
        .unwrap()
    }

    fn record() -> Avro {
        let text = |text: &str| Avro::String(text.to_owned());
        Avro::Record(
            [
                ("kind", Avro::Enum(1, "b".into())),
                ("other", Avro::Union(1, Box::new(Avro::Enum(0, "a".into())))),
                ("number", Avro::Long(i64::MAX)),
                ("ratio", Avro::Float(0.1)),
                ("hash", Avro::Fixed(2, vec![0, 0xff])),
                ("vectors", Avro::Array(vec![Avro::Bytes(b"text".to_vec()), Avro::Bytes(vec![0xc3, 0x28])])),
                ("tags", Avro::Map([("team".to_owned(), text("legal"))].into())),
                ("any", Avro::Union(2, Box::new(Avro::Long(5)))),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        )
    }

    #[test]
    fn nothing_is_lost_on_the_way_through_json() {
        let schema = schema();
        let editable = Editable::new(&schema);
        let json = editable.show(&record()).unwrap();
        let text = serde_json::to_string_pretty(&json).unwrap();
        let back = editable.read(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(back, record(), "{text}");
        assert!(back.validate(&schema));
    }

    #[test]
    fn a_complaint_names_the_place() {
        let schema = schema();
        let editable = Editable::new(&schema);
        for (pointer, wrong, said) in [
            ("/kind", json!("c"), "kind: one of a, b is wanted"),
            ("/number", json!(1.5), "number: a whole number is wanted, not 1.5"),
            ("/hash", json!({ "text": "abc" }), "hash: 2 bytes are wanted, not 3"),
            ("/vectors/1", json!("abc"), "vectors[1]: bytes are written"),
            ("/tags/team", json!(null), "tags.team: a text is wanted, not null"),
            ("/any", json!("abc"), "any: write {\"branch\""),
        ] {
            let mut json = editable.show(&record()).unwrap();
            *json.pointer_mut(pointer).unwrap() = wrong;
            let Err(complaint) = editable.read(&json) else { panic!("{json} was taken") };
            assert!(complaint.starts_with(said), "{complaint}");
        }
        let mut json = editable.show(&record()).unwrap();
        json.as_object_mut().unwrap().remove("number");
        assert_eq!(editable.read(&json), Err("number is missing".into()));
    }
}
