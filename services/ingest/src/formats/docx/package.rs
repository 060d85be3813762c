//! The archive a document is packed in, with limits on what it unfolds to.

use std::io::{Cursor, Read};

use zip::ZipArchive;
use zip::result::ZipError;

use super::{WHAT, xml};
use crate::formats::{Limits, Refusal, encoding};

/// What small parts may unfold to whatever their ratio: XML of a few lines repeats itself.
const SLACK: u64 = 256 << 10;

/// An open archive.
pub(super) struct Package<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    limits: Limits,
    /// Bytes unfolded so far.
    unfolded: usize,
}

impl<'a> Package<'a> {
    /// Opens an archive.
    pub fn open(bytes: &'a [u8], limits: Limits) -> Result<Self, Refusal> {
        let archive = ZipArchive::new(Cursor::new(bytes)).map_err(refusal)?;
        Ok(Self { archive, limits, unfolded: 0 })
    }

    /// The part that holds the text: named by the package's relations, else where Word puts it.
    pub fn main_part(&mut self) -> Result<String, Refusal> {
        let usual = "word/document.xml".to_owned();
        let Some(relations) = self.part("_rels/.rels")? else { return Ok(usual) };
        let mut target = None;
        xml::walk(&relations, &self.limits, |node| {
            if let xml::Node::Open(element) = node
                && element.is("Relationship")
                && element.attribute("Type").is_some_and(|kind| kind.ends_with("/officeDocument"))
            {
                target = element.attribute("Target");
            }
            Ok(())
        })?;
        Ok(target.map_or(usual, |target| target.trim_start_matches('/').to_owned()))
    }

    /// A part in the same folder as another one.
    pub fn beside(&mut self, part: &str, name: &str) -> Result<Option<String>, Refusal> {
        let folder = part.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        self.part(&format!("{folder}{name}"))
    }

    /// A part as text; none if there is no such part.
    pub fn part(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        let exact = self.archive.index_for_name(name);
        let is_same = |known: &str| known.replace('\\', "/").eq_ignore_ascii_case(name);
        let same = || self.archive.file_names().position(|known| known.is_ok_and(|known| is_same(&known)));
        let Some(index) = exact.or_else(same) else { return Ok(None) };
        let file = self.archive.by_index(index).map_err(refusal)?;
        let ratio = u64::try_from(self.limits.max_expansion_ratio).unwrap_or(u64::MAX);
        let by_ratio = file.compressed_size().saturating_mul(ratio).saturating_add(SLACK);
        let left = self.limits.max_expanded_bytes.saturating_sub(self.unfolded);
        let limit = by_ratio.min(u64::try_from(left).unwrap_or(u64::MAX));
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| Refusal::broken(WHAT, error))?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
            return Err(Refusal::Expands { what: WHAT.into(), limit: usize::try_from(limit).unwrap_or(usize::MAX) });
        }
        self.unfolded = self.unfolded.saturating_add(bytes.len());
        let text = encoding::decode(&bytes, None).or_else(|| bytes.is_empty().then(String::new));
        text.map(Some).ok_or_else(|| Refusal::broken(WHAT, format_args!("its part {name:?} is not XML")))
    }
}

fn refusal(error: ZipError) -> Refusal {
    match error {
        ZipError::InvalidPassword => Refusal::Encrypted { what: WHAT.into() },
        ZipError::UnsupportedArchive(why) if why.to_lowercase().contains("password") => {
            Refusal::Encrypted { what: WHAT.into() }
        }
        error => Refusal::broken(WHAT, error),
    }
}
