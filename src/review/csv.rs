//! Records of CSV (RFC 4180) that a spreadsheet reads as texts and never as formulas.

/// What makes a spreadsheet calculate a cell, in both widths.
const FORMULA: [char; 10] = ['=', '+', '-', '@', '\t', '\r', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'];

/// One record with its end of line.
pub(crate) fn record<'a>(fields: impl IntoIterator<Item = &'a str>) -> String {
    let fields: Vec<String> = fields.into_iter().map(field).collect();
    format!("{}\r\n", fields.join(","))
}

/// A field. Spreadsheets take what follows an apostrophe for a text.
fn field(text: &str) -> String {
    let calculates = text.trim_start_matches(' ').starts_with(FORMULA);
    let text = if calculates { format!("'{text}") } else { text.to_owned() };
    match calculates || text.contains(['"', ',', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_quoted_where_it_must_be() {
        assert_eq!(record(["a", "", "b c"]), "a,,b c\r\n");
        assert_eq!(
            record(["a,b", "say \"so\"", "two\nlines"]),
            "\"a,b\",\"say \"\"so\"\"\",\"two\nlines\"\r\n"
        );
    }

    #[test]
    fn what_callers_are_called_is_never_a_formula() {
        let hostile = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\u{ff1d}1"];
        for text in hostile {
            assert_eq!(record([text]), format!("\"'{text}\"\r\n"));
        }
        assert_eq!(record(["=cmd|'/C calc'!A0,\"x\""]), "\"'=cmd|'/C calc'!A0,\"\"x\"\"\"\r\n");
        assert_eq!(record(["a=1", "ann@example.com"]), "a=1,ann@example.com\r\n");
    }
}
