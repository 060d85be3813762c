//! What was written since the engine's last flush.
//!
//! A flush of the engine is dozens of calls of `msync` and `fsync`; here a write becomes durable by one. What is in the
//! journal is written once more when the collection is opened after a kill, in its order. The flush before may have
//! reached the disk as a whole or in part, so writes must lead to the same end from there, too: those of Weir do, since
//! its points have ids that their content decides, its heads only move forward, and what it removes is older than a
//! revision.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use qdrant_edge::UpdateOperation;
use rmp_serde::{Deserializer, Serializer};
use serde::{Deserialize as _, Serialize as _};
use tonic::Status;

use crate::refusal::internal;

/// Bytes that make a flush worth while: they are written again after a kill.
const LARGE: u64 = 8 << 20;
/// Bytes of memory that stay between two writes.
const KEPT: usize = 1 << 20;
/// The length of a record and the checksum of its bytes, each in four bytes, the lowest first.
const HEADER: usize = 8;

/// The file, and what is not in it yet.
pub struct Journal {
    file: File,
    length: u64,
    unwritten: Vec<u8>,
}

impl Journal {
    /// Opens or makes the file. What is in it, in its order; a record that a kill cut short was never answered for.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<UpdateOperation>)> {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (mut operations, mut rest) = (Vec::new(), bytes.as_slice());
        while let Some((record, after)) = split_record(rest) {
            operations.push(decode(record).map_err(io::Error::other)?);
            rest = after;
        }
        let length = file.seek(SeekFrom::Current(-i64::try_from(rest.len()).map_err(io::Error::other)?))?;
        file.set_len(length)?;
        Ok((Self { file, length, unwritten: Vec::new() }, operations))
    }

    /// Takes a write that the engine took. It is durable after the next [`Journal::sync`].
    pub fn append(&mut self, record: &Record) {
        self.unwritten.extend_from_slice(&record.length.to_le_bytes());
        self.unwritten.extend_from_slice(&crc32fast::hash(&record.bytes).to_le_bytes());
        self.unwritten.extend_from_slice(&record.bytes);
    }

    /// Brings what was taken to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.unwritten)?;
        self.length += count(&self.unwritten);
        self.unwritten.clear();
        self.unwritten.shrink_to(KEPT);
        self.file.sync_data()
    }

    /// Forgets everything: the engine has flushed it.
    pub fn clear(&mut self) -> io::Result<()> {
        self.unwritten.clear();
        self.length = 0;
        self.file.set_len(0)?;
        self.file.rewind()
    }

    /// Whether it is time for the engine to flush.
    pub fn is_large(&self) -> bool {
        self.length + count(&self.unwritten) >= LARGE
    }
}

/// A write as it is in the journal.
pub struct Record {
    length: u32,
    bytes: Vec<u8>,
}

impl Record {
    /// MessagePack with names, and with ids as text: the engine's types are told apart by what they look like.
    pub fn of(operation: &UpdateOperation) -> Result<Self, Status> {
        let mut bytes = Vec::new();
        operation
            .serialize(&mut Serializer::new(&mut bytes).with_struct_map().with_human_readable())
            .map_err(internal)?;
        let length = u32::try_from(bytes.len()).map_err(internal)?;
        Ok(Self { length, bytes })
    }
}

fn count(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// The first record, if it is there whole, and what follows.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let [a, b, c, d, checksum @ ..] = *header;
    let (record, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?)?;
    // After a loss of power a file may end with zeros, which are a record of no bytes.
    (!record.is_empty() && crc32fast::hash(record) == u32::from_le_bytes(checksum)).then_some((record, rest))
}

fn decode(record: &[u8]) -> Result<UpdateOperation, rmp_serde::decode::Error> {
    UpdateOperation::deserialize(&mut Deserializer::new(record).with_human_readable())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::collections::HashMap;

    use qdrant_edge::external::ordered_float::OrderedFloat;
    use qdrant_edge::{
        Condition, ConditionalInsertOperation, CreateIndex, FieldCondition, FieldIndexOperations, Filter,
        HasIdCondition, JsonPath, Payload, PayloadFieldSchema, PayloadOps, PayloadSchemaType, PointId,
        PointInsertOperations, PointOperations, PointStructPersisted, Range, SetPayloadOp, SparseVector, UpdateMode,
        VectorPersisted, VectorStructPersisted,
    };
    use uuid::Uuid;

    use super::*;

    fn ids() -> Vec<PointId> {
        vec![PointId::NumId(u64::MAX), PointId::Uuid(Uuid::from_u128(7 << 90 | 3))]
    }

    fn points() -> PointInsertOperations {
        let payload = serde_json::json!({"revision": 7, "share": 0.1, "tenant": "a", "tags": [null, true, {"b": "c"}]});
        let point = |id| PointStructPersisted {
            id,
            vector: VectorStructPersisted::Named(HashMap::from([
                ("dense".to_owned(), VectorPersisted::Dense(vec![0.1, -1.0, f32::MIN_POSITIVE])),
                ("text".to_owned(), VectorPersisted::Sparse(SparseVector::new(vec![1, 9], vec![0.5, 1.0]).unwrap())),
            ])),
            payload: Some(Payload(payload.as_object().unwrap().clone())),
        };
        PointInsertOperations::PointsList(ids().into_iter().map(point).collect())
    }

    fn filter() -> Filter {
        let path: JsonPath = "revision".parse().unwrap();
        let below = Range { lt: Some(OrderedFloat(7.3)), ..Range::default() };
        let mut filter = Filter::new_must(Condition::Field(FieldCondition::new_range(path, below)));
        filter.must_not = Some(vec![Condition::HasId(ids().into_iter().collect::<HasIdCondition>())]);
        filter
    }

    /// One of each kind that the server writes.
    fn operations() -> Vec<UpdateOperation> {
        let point = UpdateOperation::PointOperation;
        let payload = SetPayloadOp {
            payload: Payload::default(),
            points: Some(ids()),
            filter: Some(filter()),
            key: Some("a.b".parse().unwrap()),
        };
        let field_schema = Some(PayloadFieldSchema::FieldType(PayloadSchemaType::Keyword));
        let index = CreateIndex { field_name: "tenant".parse().unwrap(), field_schema };
        vec![
            point(PointOperations::UpsertPoints(points())),
            point(PointOperations::UpsertPointsConditional(ConditionalInsertOperation {
                points_op: points(),
                condition: filter(),
                update_mode: Some(UpdateMode::InsertOnly),
            })),
            point(PointOperations::DeletePoints { ids: ids() }),
            point(PointOperations::DeletePointsByFilter(filter())),
            UpdateOperation::PayloadOperation(PayloadOps::SetPayload(payload)),
            UpdateOperation::FieldIndexOperation(FieldIndexOperations::CreateIndex(index)),
            UpdateOperation::FieldIndexOperation(FieldIndexOperations::DeleteIndex("tenant".parse().unwrap())),
        ]
    }

    fn append_all(journal: &mut Journal, operations: &[UpdateOperation]) {
        for operation in operations {
            journal.append(&Record::of(operation).unwrap());
        }
    }

    #[test]
    fn every_kind_of_write_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, before) = Journal::open(&path).unwrap();
        assert!(before.is_empty());
        append_all(&mut journal, &operations());
        journal.sync().unwrap();
        drop(journal);
        let (mut journal, found) = Journal::open(&path).unwrap();
        assert_eq!(found, operations());
        append_all(&mut journal, &operations());
        journal.sync().unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, [operations(), operations()].concat());
        journal.clear().unwrap();
        append_all(&mut journal, &operations()[2..3]);
        journal.sync().unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, operations()[2..3]);
    }

    #[test]
    fn a_record_that_was_cut_short_or_changed_ends_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        append_and_sync(&path);
        let whole = std::fs::read(&path).unwrap();
        for cut in [1, 5, whole.len() / 3] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut journal, found) = Journal::open(&path).unwrap();
            assert!(found.len() < operations().len() && operations().starts_with(&found));
            append_all(&mut journal, &operations()[..1]);
            journal.sync().unwrap();
            let found = Journal::open(&path).unwrap().1;
            assert_eq!(found.last(), operations().first(), "what follows is found");
        }
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, operations()[..operations().len() - 1]);
    }

    #[test]
    fn zeros_behind_the_records_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        append_and_sync(&path);
        let padded = [std::fs::read(&path).unwrap(), vec![0; 4096]].concat();
        std::fs::write(&path, padded).unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, operations());
    }

    fn append_and_sync(path: &Path) {
        let (mut journal, _) = Journal::open(path).unwrap();
        append_all(&mut journal, &operations());
        journal.sync().unwrap();
    }
}
