//! A child's output, byte by byte into lines of bounded length.

/// The longest line that is kept, in bytes. etcd's longest lines quote a whole flag list or a stack.
pub const LINE_MAX: usize = 16 * 1024;

/// Splits bytes into lines. What is longer than [`LINE_MAX`] is cut and marked; memory stays bounded.
#[derive(Debug, Default)]
pub struct LineSplitter {
    partial: Vec<u8>,
    /// Bytes of the present line that were not kept.
    cut: usize,
}

impl LineSplitter {
    /// Takes more output and hands every line that it ends to `line`.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        let mut parts = bytes.split(|b| *b == b'\n').peekable();
        while let Some(part) = parts.next() {
            let room = LINE_MAX - self.partial.len();
            let kept = part.get(..room).unwrap_or(part);
            self.partial.extend_from_slice(kept);
            self.cut += part.len() - kept.len();
            if parts.peek().is_some() {
                self.end(&mut line);
            }
        }
    }

    /// The output is over: what stands there without a line end is a line too.
    pub fn finish(&mut self, mut line: impl FnMut(&str)) {
        self.end(&mut line);
    }

    fn end(&mut self, line: &mut impl FnMut(&str)) {
        let mut text = String::from_utf8_lossy(&self.partial).into_owned();
        if self.cut > 0 {
            text.push_str(&format!(" ... ({} more bytes)", self.cut));
        }
        let text = text.trim_end();
        if !text.is_empty() {
            line(text);
        }
        self.partial.clear();
        self.cut = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
        for chunk in chunks {
            splitter.push(chunk, |line| lines.push(line.to_owned()));
        }
        splitter.finish(|line| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn lines_are_found_across_reads() {
        assert_eq!(split(&[b"a\nb", b"c\r\n", b"\n\n", b"d"]), ["a", "bc", "d"]);
        assert_eq!(split(&[b"\xff\xfe\n"]), ["\u{fffd}\u{fffd}"]);
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let long = vec![b'x'; LINE_MAX + 5];
        let lines = split(&[&long, &long, b"\nnext\n"]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with(&format!("x ... ({} more bytes)", LINE_MAX + 10)), "{}", lines[0].len());
        assert_eq!(lines[1], "next");
    }

    proptest! {
        #[test]
        fn how_the_output_is_cut_into_reads_does_not_matter(text in "[a-c\n]{0,200}", size in 1usize..20) {
            let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
            let want: Vec<_> = text.split('\n').filter(|l| !l.is_empty()).map(str::to_owned).collect();
            prop_assert_eq!(split(&chunks), want);
        }

        #[test]
        fn memory_is_bounded(sizes in proptest::collection::vec((0usize..40_000, any::<bool>()), 0..8)) {
            let mut splitter = LineSplitter::default();
            for (size, ends) in sizes {
                splitter.push(&vec![b'x'; size], |_| {});
                splitter.push(if ends { b"\n" } else { b"" }, |_| {});
                prop_assert!(splitter.partial.len() <= LINE_MAX);
            }
        }
    }
}
