//! Words and bytes of others, as they may stand in a message: without line breaks, escape sequences or megabytes.

use std::fmt::{self, Write};

/// Text: what is no letter or sign is escaped, and a long one is cut.
pub(crate) struct Words<'a>(pub(crate) &'a str);

/// Bytes: escaped, and of many only the first.
pub(crate) struct Payload<'a>(pub(crate) &'a [u8]);

/// In the place of what is not to be shown at all; nothing in the place of nothing.
pub(crate) struct Secret<'a>(pub(crate) &'a str);

/// So many characters of a text are shown. A key of etcd's and what a server says are shorter.
const MOST_CHARS: usize = 1000;
/// So many bytes of a value.
const MOST_BYTES: usize = 64;

/// The text of a value, of which only the beginning is kept.
pub(crate) fn text(value: &[u8]) -> String {
    let shown = &value[..value.len().min(MOST_BYTES)];
    let mut text = String::from_utf8_lossy(shown).into_owned();
    if shown.len() < value.len() {
        let _ = write!(text, "… ({} bytes)", value.len());
    }
    text
}

/// What a server said, of which only the beginning is kept.
pub(crate) fn bounded(said: &str) -> String {
    match said.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}… ({} bytes)", &said[..end], said.len()),
        None => said.to_owned(),
    }
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(MOST_CHARS) {
            match c {
                '"' | '\'' | '\\' => f.write_char(c)?,
                c => write!(f, "{}", c.escape_debug())?,
            }
        }
        match chars.as_str() {
            "" => Ok(()),
            _ => write!(f, "… ({} bytes)", self.0.len()),
        }
    }
}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(MOST_BYTES)];
        write!(f, "b\"{}\"", shown.escape_ascii())?;
        match shown.len() < self.0.len() {
            true => write!(f, "… ({} bytes)", self.0.len()),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "(secret)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_not_done() {
        let said = "gone\n2026-01-01 ERROR all is lost\r\u{1b}[2J\u{202e}txt\0 \"it's\" C:\\ grüße 鍵";
        let shown = Words(said).to_string();
        assert_eq!(
            shown,
            "gone\\n2026-01-01 ERROR all is lost\\r\\u{1b}[2J\\u{202e}txt\\0 \"it's\" C:\\ grüße 鍵"
        );
    }

    #[test]
    fn what_is_long_is_cut() {
        let long = "é".repeat(2_000_000);
        assert!(Words(&long).to_string().ends_with("é… (4000000 bytes)"));
        assert!(Words(&long).to_string().len() < 3000 && bounded(&long).len() < 3000);
        assert!(format!("{:?}", Payload(long.as_bytes())).len() < 300 && text(long.as_bytes()).len() < 300);
        let whole = "é".repeat(MOST_CHARS);
        assert_eq!((Words(&whole).to_string(), bounded(&whole)), (whole.clone(), whole));
        assert_eq!(format!("{:?}", Payload(b"a\n\xff")), "b\"a\\n\\xff\"");
    }
}
