//! What the commands for people share: secrets are read without showing them, and what strangers wrote is shown
//! without letting it steer the terminal.
//!
//! Secrets come from a file or standard input, never from an argument, which every process of the machine could read.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use crate::api::ServerReference;

/// Bytes of the largest secret that is read.
const MAX: u64 = 64 * 1024;

/// Reads one line from a file, or from standard input: a terminal is asked with the prompt and shows nothing.
///
/// # Errors
/// When it cannot be read, is empty, or is more than one line of text.
pub(crate) fn read_secret(file: Option<&Path>, prompt: &str) -> anyhow::Result<SecretString> {
    let mut bytes = Zeroizing::new(Vec::new());
    match file {
        Some(path) => {
            let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            let read = file.take(MAX + 1).read_to_end(&mut bytes);
            read.with_context(|| format!("cannot read {}", path.display()))?;
        }
        None if io::stdin().is_terminal() => {
            ask(prompt, &mut bytes).context("cannot read from the terminal")?
        }
        None => {
            let read = io::stdin().lock().take(MAX + 1).read_to_end(&mut bytes);
            read.context("cannot read standard input")?;
        }
    }
    one_line(&bytes).map(SecretString::from)
}

/// Whether standard input is a person.
pub(crate) fn asks_a_person() -> bool {
    io::stdin().is_terminal()
}

fn one_line(bytes: &[u8]) -> anyhow::Result<&str> {
    ensure!(bytes.len() as u64 <= MAX, "the input is larger than {MAX} bytes");
    let Ok(text) = std::str::from_utf8(bytes) else { bail!("the input is not text in UTF-8") };
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    ensure!(!text.is_empty(), "the input is empty");
    ensure!(!text.contains(['\n', '\r']), "the input has more than one line");
    Ok(text)
}

fn ask(prompt: &str, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut screen = io::stderr();
    write!(screen, "{prompt}: ")?;
    screen.flush()?;
    let quiet = Quiet::begin()?;
    let read = io::stdin().lock().take(MAX + 1).read_until(b'\n', bytes);
    drop(quiet);
    writeln!(screen)?;
    read.map(|_| ())
}

/// While this lives, the terminal does not show what is typed.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.0) {
            eprintln!("cannot make the terminal show what is typed again ({error}): try `stty echo`");
        }
    }
}

/// What strangers chose must not steer the terminal of the person who reads it, nor fill it.
pub(crate) fn visible(text: &str, most: usize) -> String {
    let plain = |c: char| if c.is_control() || is_format(c) { '\u{fffd}' } else { c };
    let short: String = text.chars().take(most).map(plain).collect();
    if text.chars().nth(most).is_some() { format!("{short}…") } else { short }
}

/// Characters that reorder or hide text.
fn is_format(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Writes names and values, one pair a line, the values below each other.
pub(crate) fn write_pairs(pairs: &[(&str, String)], output: &mut dyn Write) -> io::Result<()> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in pairs {
        writeln!(output, "{name:width$}   {value}")?;
    }
    output.flush()
}

/// Writes a table: the rows below their titles, the cells below each other. The cells are fit to be shown.
pub(crate) fn write_table<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    output: &mut dyn Write,
) -> io::Result<()> {
    let rows: Vec<_> = std::iter::once(titles.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(output, "{}", cells.collect::<Vec<_>>().join("   ").trim_end())?;
    }
    output.flush()
}

/// A server as people name it on a command line: `NAMESPACE/NAME`.
pub(crate) fn parse_server(text: &str) -> Result<ServerReference, String> {
    let plain = |part: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.len() <= 63 && part.chars().all(fits)
    };
    match text.split_once('/') {
        Some((namespace, name)) if plain(namespace) && plain(name) => {
            Ok(ServerReference { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err("expected NAMESPACE/NAME, such as agents/ops".to_owned()),
    }
}

/// A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// When the answer could not be written for another reason.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("failed to write the answer"),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(content: &[u8]) -> anyhow::Result<String> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        fs::write(&path, content).expect("it is written");
        read_secret(Some(&path), "Secret").map(|secret| secret.expose_secret().to_owned())
    }

    #[test]
    fn a_secret_is_one_line_without_its_end() {
        for content in ["s3cret", "s3cret\n", "s3cret\r\n"] {
            assert_eq!(read(content.as_bytes()).expect("it is read"), "s3cret");
        }
        assert_eq!(read(b" blanks stay ").expect("it is read"), " blanks stay ");
        for content in [&b""[..], b"\n", b"a\nb", b"a\n\n", b"\xff", &[b'a'; 70_000]] {
            let error = read(content).expect_err("it is refused").to_string();
            assert!(error.starts_with("the input "), "{error}");
        }
        assert!(read_secret(Some(Path::new("/nowhere/key")), "Key").is_err());
    }

    #[test]
    fn what_strangers_wrote_cannot_steer_the_terminal() {
        assert_eq!(visible("\u{1b}[2Jann\u{202e}", 60), "\u{fffd}[2Jann\u{fffd}");
        assert_eq!(visible("abcdef", 3), "abc…");
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure() {
        assert!(written(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(written(Err(io::ErrorKind::StorageFull.into())).is_err());
    }
}
