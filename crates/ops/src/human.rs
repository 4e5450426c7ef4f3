//! Text for people: tables, durations, sizes.

use serde_json::Value;

use crate::{Cell, Column};

/// Rows under a header, each column as wide as its widest cell, two spaces between, no trailing spaces.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |at: usize| rows.iter().filter_map(move |row| row.get(at).map(String::as_str));
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(at, title)| cells(at).chain([*title]).map(|text| text.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: Vec<&str>| {
        let padded = row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(header.to_vec());
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    [head].into_iter().chain(body).collect::<Vec<_>>().join("\n")
}

/// A table drawn from JSON rows.
#[must_use]
pub fn json_table(columns: &[Column], rows: &[Value]) -> String {
    let header: Vec<&str> = columns.iter().map(|column| column.title).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|column| cell(row.pointer(column.pointer), column.cell)).collect())
        .collect();
    table(&header, &rows)
}

/// One line per field of an object that says anything.
#[must_use]
pub fn fields(value: &Value) -> String {
    let Some(object) = value.as_object() else { return text(value) };
    lines(object.iter().map(|(name, value)| (name.replace('_', " "), text(value))))
}

/// One line per column that says anything of a JSON value.
#[must_use]
pub fn record(columns: &[Column], value: &Value) -> String {
    lines(columns.iter().map(|column| (column.title.to_owned(), cell(value.pointer(column.pointer), column.cell))))
}

fn lines(named: impl Iterator<Item = (String, String)>) -> String {
    let shown: Vec<_> = named.filter(|(_, value)| !value.is_empty()).collect();
    let width = shown.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    shown.iter().map(|(name, value)| format!("{name:<width$}  {value}")).collect::<Vec<_>>().join("\n")
}

fn cell(value: Option<&Value>, cell: Cell) -> String {
    let number = value.and_then(Value::as_u64);
    match (cell, number) {
        (Cell::Duration, Some(ms)) => duration(ms),
        (Cell::Mebibytes, Some(mib)) => mebibytes(mib),
        _ => value.map(text).unwrap_or_default(),
    }
}

/// A JSON value in a line.
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => one_line(text),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(object) => {
            object.iter().map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// The text with control characters (which could move the cursor of whoever looks) replaced.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Milliseconds as the two largest units: `850ms`, `12s`, `5m12s`, `3h4m`, `2d7h`.
#[must_use]
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Mebibytes as MiB, GiB or TiB.
#[must_use]
pub fn mebibytes(mib: u64) -> String {
    match mib {
        0..1_024 => format!("{mib} MiB"),
        1_024..1_048_576 => format!("{:.1} GiB", mib as f64 / 1_024.0),
        _ => format!("{:.1} TiB", mib as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_line_up() {
        const COLUMNS: &[Column] = &[
            Column::plain("NAME", "/name"),
            Column::duration("AGE", "/age_ms"),
            Column { title: "MEMORY", pointer: "/memory_mib", cell: Cell::Mebibytes },
            Column::plain("REASON", "/why/reason"),
        ];
        let rows = [
            json!({"name": "a", "age_ms": 312_000, "memory_mib": 1536, "why": {"reason": "none\u{1b}[2J"}}),
            json!({"name": "longer", "age_ms": 5, "memory_mib": 80}),
        ];
        assert_eq!(
            json_table(COLUMNS, &rows),
            "NAME    AGE    MEMORY   REASON\na       5m12s  1.5 GiB  none [2J\nlonger  5ms    80 MiB"
        );
        assert_eq!(fields(&json!({"b_c": [1, 2], "a": null})), "b c  1,2");
        assert_eq!(record(COLUMNS, &rows[1]), "NAME    longer\nAGE     5ms\nMEMORY  80 MiB");
    }

    #[test]
    fn durations_show_two_units() {
        for (ms, expect) in [
            (0, "0ms"),
            (999, "999ms"),
            (59_999, "59s"),
            (3_599_000, "59m59s"),
            (86_399_000, "23h59m"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(duration(ms), expect);
        }
    }
}
