//! A guest's console as lines: bounded, valid text, whatever the guest writes.

use base::limits::CONSOLE_LINE_BYTES_MAX;

/// Cuts a stream of bytes into lines. Ends of line are `\n`, with or without `\r` before it; a line longer than
/// [`CONSOLE_LINE_BYTES_MAX`] is split; bytes that are not UTF-8 become U+FFFD. Control characters are kept: whoever
/// shows a line on a terminal must expect them.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Takes in `bytes` and hands each line that is complete to `line`.
    pub(crate) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let mut rest = part;
            while self.partial.len() + rest.len() > CONSOLE_LINE_BYTES_MAX {
                // The end of line of a line that just fits needs no line of its own.
                let (head, tail) = rest.split_at(CONSOLE_LINE_BYTES_MAX - self.partial.len());
                self.partial.extend_from_slice(head);
                rest = tail;
                if matches!(rest, b"\n" | b"\r\n") {
                    break;
                }
                line(self.take());
            }
            self.partial.extend_from_slice(rest);
            if rest.last() == Some(&b'\n') {
                line(self.take());
            }
        }
    }

    /// The line begun and not ended, at the end of the stream.
    pub(crate) fn finish(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let bytes = std::mem::take(&mut self.partial);
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let line = String::from_utf8_lossy(text).into_owned();
        // A replacement has three bytes and may stand for one: a line of nothing else would outgrow its bound.
        if line.len() > CONSOLE_LINE_BYTES_MAX { line.replace('\u{fffd}', "?") } else { line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(parts: &[&[u8]]) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for part in parts {
            splitter.push(part, |line| lines.push(line));
        }
        lines.extend(splitter.finish());
        lines
    }

    #[test]
    fn lines_end_as_terminals_and_files_end_them() {
        assert_eq!(split(&[b"one\r\ntwo\n\nfo", b"ur"]), ["one", "two", "", "four"]);
        assert_eq!(split(&[b"a\r", b"\nb"]), ["a", "b"]);
        assert_eq!(split(&[b"bad \xff byte\n"]), ["bad \u{fffd} byte"]);
        assert_eq!(split(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_long_line_is_split_at_the_bound_and_not_before() {
        let max = CONSOLE_LINE_BYTES_MAX;
        let text = "x".repeat(max);
        for end in ["\n", "\r\n", ""] {
            assert_eq!(split(&[format!("{text}{end}").as_bytes()]), [text.as_str()], "{end:?}");
        }
        let lines = split(&["x".repeat(2 * max + 3).as_bytes()]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [max, max, 3]);
    }

    #[test]
    fn a_line_of_nothing_but_damage_keeps_its_bound() {
        let lines = split(&[&vec![0xff; CONSOLE_LINE_BYTES_MAX]]);
        assert_eq!(lines, ["?".repeat(CONSOLE_LINE_BYTES_MAX)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_bytes_in_any_pieces_give_bounded_lines_and_lose_nothing(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'x')], 0..40_000),
            cut in 0.0f64..1.0,
        ) {
            let at = (bytes.len() as f64 * cut) as usize;
            let whole = split(&[&bytes]);
            prop_assert_eq!(&split(&[&bytes[..at], &bytes[at..]]), &whole);
            prop_assert!(whole.iter().all(|line| line.len() <= CONSOLE_LINE_BYTES_MAX));
            let ascii = |text: &[u8]| text.iter().filter(|byte| byte.is_ascii_alphabetic()).count();
            prop_assert_eq!(whole.iter().map(|line| ascii(line.as_bytes())).sum::<usize>(), ascii(&bytes));
        }
    }
}
