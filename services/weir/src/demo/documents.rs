//! Documents the demo makes itself, one of each format, with text of its own, and the questions they answer.
//!
//! The places and people in them do not exist.

use std::path::Path;

use color_eyre::eyre::WrapErr;

use super::questions::Expected;
use super::{docx, html, pdf};

/// A question and where its answer must come from.
const ASKED: [(&str, &str); 5] = [
    (HANDBOOK, "How often does the keeper of Harrow Point have to change the oil of the rotation gear?"),
    (RETURNS, "Within how many days can a customer return an opened coffee machine?"),
    (OBSERVATORY, "On which evening of the week may visitors look through the great refractor?"),
    (TARIFF, "What does a fishing boat pay for one night at the quay in Lüders Harbour?"),
    (HANDBOOK, "How long does one winding of the weight keep the lens of Harrow Point turning?"),
];

const HANDBOOK: &str = "made/lighthouse-handbook.pdf";
const RETURNS: &str = "made/returns-policy.docx";
const OBSERVATORY: &str = "made/observatory-visits.html";
const TARIFF: &str = "made/harbour-tariff.txt";
/// A document nobody can read without its password; the pipeline must say so.
pub const LOCKED: &str = "made/locked-report.pdf";

/// The questions the made documents answer.
#[must_use]
pub fn questions() -> [Expected; 5] {
    ASKED.map(|(document, question)| Expected { question: question.to_owned(), document: document.to_owned() })
}

/// Writes the documents under `folder`; their paths in it are their ids.
///
/// # Errors
/// When a file can't be written.
pub fn write(folder: &Path) -> color_eyre::Result<()> {
    let docx = docx::document("Returns at Brightwater Appliances", RETURNS_TEXT).wrap_err("can't make a DOCX")?;
    let files: [(&str, Vec<u8>); 5] = [
        (HANDBOOK, pdf::document("Handbook of the Harrow Point Light", HANDBOOK_TEXT)),
        (RETURNS, docx),
        (OBSERVATORY, html::page("Visiting the Observatory on Mount Selby", OBSERVATORY_TEXT).into_bytes()),
        (TARIFF, windows_1252(TARIFF_TEXT)),
        (LOCKED, pdf::locked("Report on Something Secret")),
    ];
    for (name, bytes) in files {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, bytes).wrap_err_with(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// Western European text as old Windows programs write it: one byte a character.
fn windows_1252(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| match c {
            '€' => 0x80,
            '–' => 0x96,
            c => u8::try_from(u32::from(c)).unwrap_or(b'?'),
        })
        .collect()
}

/// Paragraphs; a line that begins with # is a heading.
const HANDBOOK_TEXT: &[&str] = &[
    "# The light",
    "The light of Harrow Point stands 31 metres above the sea and shows two white flashes every fifteen seconds. \
     On a clear night it is seen from nineteen nautical miles. The lamp burns from half an hour before sunset to \
     half an hour after sunrise, and in fog by day as well.",
    "The lens was ground in 1908 and has twelve panels. It is dusted every morning with a soft brush and washed \
     with spirit on the first Monday of the month. Nobody touches the glass with bare hands.",
    "# The rotation gear",
    "The lens turns on four bronze wheels, driven by a motor of half a horsepower. The keeper changes the oil of \
     the rotation gear every six weeks, and always after a storm in which the gear ran for more than three nights \
     without rest. Old oil is kept in the blue drum and taken ashore by the supply boat.",
    "When the motor fails, the weight is wound up by hand. One winding keeps the lens turning for two hours and \
     forty minutes, so two people are needed to keep the light through a winter night.",
    "# The fog horn",
    "The horn sounds one long blast every ninety seconds when the church of Saint Anne can no longer be seen from \
     the gallery. It is tested at noon on Saturdays, with a warning to the school beforehand.",
    "# The log",
    "Every change of oil, every cleaning of the lens and every hour of fog is written into the log with the name of \
     the keeper. The log is shown to the inspector, who comes in April and in September.",
];

const RETURNS_TEXT: &[&str] = &[
    "# What can be returned",
    "Appliances that were not opened can be returned within sixty days, in any of our shops or by post. We refund \
     the price in the way it was paid.",
    "# Opened appliances",
    "An opened coffee machine can be returned within fourteen days, provided that it was cleaned and that the water \
     tank is empty. Kettles and toasters that were opened can be returned within twenty-one days.",
    "We keep ten percent of the price of an opened appliance when parts or packaging are missing.",
    "# What can't be returned",
    "Filters, milk hoses and other parts that touch food can't be returned once their seal is broken. Gift cards \
     are not refunded.",
    "# Repairs",
    "A repair under guarantee takes nine working days on average. For the time of the repair we lend an appliance \
     of the same kind, if one is at hand.",
];

const OBSERVATORY_TEXT: &[&str] = &[
    "# Opening hours",
    "The Observatory on Mount Selby welcomes visitors all year round. The exhibition in the old meridian hall is \
     open every day except Monday, from ten in the morning to five in the afternoon, and tells how the hill was \
     chosen, how the dome was carried up in forty carts, and what was found with it in a hundred and thirty years.",
    "# The great refractor",
    "Visitors may look through the great refractor on Thursday evenings, from nightfall until eleven, when the sky \
     is clear. The refractor has an aperture of fifty-one centimetres and a focal length of almost eight metres; it \
     shows the rings of Saturn, the moons of Jupiter and double stars that no eye can part. On all other evenings \
     the instrument belongs to the astronomers and the dome is closed.",
    "Groups of more than eight people write to the office two weeks ahead, because the stairs to the dome are \
     narrow and only twelve people fit around the telescope. Children under six may come along but get cold sooner \
     than they expect: the dome is never heated.",
    "# How to get there",
    "The rack railway leaves the valley station every forty minutes, for the last time at half past eleven at \
     night. The road is closed for cars above the inn; from there it is a walk of half an hour through the larch \
     wood. In winter the path is lit but not cleared of snow.",
    "# Tickets",
    "The exhibition costs seven euros, an evening at the telescope twelve. Who lives in the valley pays half. If \
     clouds come up, tickets for the evening stay valid for a year.",
];

const TARIFF_TEXT: &str = "Lüders Harbour – Tariff\n\n\
    All prices are for one night and contain water, electricity up to five kilowatt hours, and the use of the \
    showers.\n\n\
    A fishing boat pays 14 € for one night at the quay, whatever its length. A sailing yacht pays 2 € for each \
    metre of its length. A ferry pays 85 € and has the north pier for itself.\n\n\
    Who stays longer than a week pays only five nights of seven. Who comes in distress pays nothing until the \
    storm is over.\n\n\
    The harbour master collects the fee between six and seven in the evening. His hut has a green door.\n";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_question_is_about_a_document_that_is_written() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        for expected in questions() {
            assert!(dir.path().join(&expected.document).is_file(), "{}", expected.document);
        }
        assert!(dir.path().join(LOCKED).is_file());
    }

    #[test]
    fn the_tariff_is_not_utf_8() {
        let bytes = windows_1252(TARIFF_TEXT);
        assert!(std::str::from_utf8(&bytes).is_err());
        assert!(!bytes.contains(&b'?'));
    }
}
