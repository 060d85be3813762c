//! Tables as text: comma-, semicolon-, tab- or bar-separated values.

use super::structure::{Structure, one_line};
use super::{Extracted, Refusal};

const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// The delimiter, if the text is a table: at least three rows (two if somebody said so) of the same two or more cells.
pub(crate) fn delimiter(text: &str, said: bool) -> Option<u8> {
    let rows_needed = if said { 1 } else { 3 };
    DELIMITERS
        .into_iter()
        .filter_map(|delimiter| {
            let mut reader = reader(text, delimiter);
            let (mut rows, mut uneven, mut columns, mut prose) = (0usize, 0usize, 0usize, 0usize);
            for record in reader.records().take(200) {
                let Ok(record) = record else { break };
                if rows == 0 {
                    columns = record.len();
                }
                rows += 1;
                uneven += usize::from(record.len() != columns);
                // Prose split at its commas has cells that begin with a blank; tables hardly ever do.
                prose += usize::from(!said && record.iter().skip(1).any(|cell| cell.starts_with(' ')));
            }
            let even = uneven * 20 <= rows && columns >= 2 && rows >= rows_needed;
            (even && prose * 2 <= rows && (said || delimiter != b'|')).then_some((columns, delimiter))
        })
        .max_by_key(|(columns, _)| *columns)
        .map(|(_, delimiter)| delimiter)
}

fn reader(text: &str, delimiter: u8) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(text.as_bytes())
}

/// One line a row. With a row of names above, each cell carries its column's name, so that a row makes sense alone.
pub(crate) fn extract(text: &str, delimiter: u8) -> Result<Extracted, Refusal> {
    let text = text.trim_start_matches('\u{feff}');
    let mut rows = Vec::new();
    for record in reader(text, delimiter).records() {
        let record = record.map_err(|error| Refusal::broken("table", error))?;
        let cells: Vec<String> = record.iter().map(one_line).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            rows.push(cells);
        }
    }
    let names = rows.first().filter(|first| rows.len() > 1 && is_header(first)).cloned();
    let mut table = String::with_capacity(text.len());
    if let Some(names) = &names {
        table.push_str(&names.join(" | "));
        table.push('\n');
    }
    for row in rows.iter().skip(usize::from(names.is_some())) {
        let cells = row.iter().enumerate().filter(|(_, cell)| !cell.is_empty());
        let mut first = true;
        for (column, cell) in cells {
            if !first {
                table.push_str(" | ");
            }
            first = false;
            if let Some(name) = names.as_ref().and_then(|names| names.get(column)).filter(|name| !name.is_empty()) {
                table.push_str(name);
                table.push_str(": ");
            }
            table.push_str(cell);
        }
        table.push('\n');
    }
    let mut structure = Structure::default();
    structure.table(&table);
    Ok(structure.finish(None))
}

/// Names: all there, none a number, all different, all short.
fn is_header(row: &[String]) -> bool {
    let name = |cell: &String| {
        cell.chars().any(char::is_alphabetic) && cell.parse::<f64>().is_err() && cell.chars().count() <= 60
    };
    let mut sorted: Vec<&String> = row.iter().collect();
    sorted.sort();
    sorted.dedup();
    sorted.len() == row.len() && row.iter().all(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_carry_the_names_of_their_columns() {
        let text = "city;river;km\nBonn;Rhine;\"1,233\"\nWien;\"Donau;\nDanube\";2857\n";
        assert_eq!(delimiter(text, false), Some(b';'));
        let document = extract(text, b';').unwrap();
        assert_eq!(
            document.text,
            "city | river | km\ncity: Bonn | river: Rhine | km: 1,233\ncity: Wien | river: Donau; Danube | km: 2857"
        );
    }

    #[test]
    fn numbers_alone_have_no_header() {
        let document = extract("1,2\n3,4\n", b',').unwrap();
        assert_eq!(document.text, "1 | 2\n3 | 4");
    }
}
