//! How long a template's tags are, found before it is compiled: folding the constants of an expression takes time in
//! the square of its operators, a minute for `1~1~1~...` of 64 KiB.
//!
//! Tags begin and end here exactly where the engine's lexer has them, up to the first error it would find, so that no
//! operator can hide. `raw` blocks, whose inside is text, are refused: no chat template needs one.

use crate::TextError;

/// Names, numbers, strings and signs in one tag.
const TOKENS: usize = 512;

/// Refuses templates with a tag of too many tokens.
pub(super) fn check(file: &str, template: &str) -> Result<(), TextError> {
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        rest = &rest[start + 1..];
        let end = match rest.as_bytes().first() {
            Some(b'#') => {
                let after = rest.find("#}").map_or(rest.len(), |end| end + 2);
                rest = &rest[after..];
                continue;
            }
            Some(b'%') => b'%',
            Some(b'{') => b'}',
            _ => continue,
        };
        let (length, tokens) = scan_tag(&rest.as_bytes()[1..], end);
        let (tag, after) = rest[1..].split_at(length);
        let line = || template[..template.len() - rest.len()].matches('\n').count() + 1;
        if tokens > TOKENS {
            return Err(TextError::TemplateTagTooLong { file: file.to_owned(), line: line(), limit: TOKENS });
        }
        let first = tag.trim_start_matches(['-', '+']).trim_start();
        if end == b'%' && first.split(|c: char| !c.is_alphanumeric()).next() == Some("raw") {
            let message = format!("raw blocks are not supported (line {})", line());
            return Err(TextError::Template { file: file.to_owned(), message });
        }
        rest = after;
    }
    Ok(())
}

/// Bytes and tokens of the tag whose inside begins `body` and which ends in `end` and a brace. An end within brackets or
/// a string is none.
fn scan_tag(body: &[u8], end: u8) -> (usize, usize) {
    let (mut at, mut tokens, mut balance) = (0, 0, 0i64);
    while let Some(&byte) = body.get(at) {
        match byte {
            _ if balance == 0 && byte == end && body.get(at + 1) == Some(&b'}') => return (at, tokens),
            b'(' | b'[' | b'{' => balance += 1,
            b')' | b']' | b'}' => balance -= 1,
            b'"' | b'\'' => {
                at += 1;
                while let Some(&inner) = body.get(at).filter(|&&inner| inner != byte) {
                    at += if inner == b'\\' { 2 } else { 1 };
                }
            }
            _ => {}
        }
        // A word counts once, where it begins.
        let continues = is_word(byte) && at > 0 && body.get(at - 1).copied().is_some_and(is_word);
        tokens += usize::from(!byte.is_ascii_whitespace() && !continues);
        at += 1;
    }
    (body.len(), tokens)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(body: &str, end: char) -> (usize, usize) {
        scan_tag(body.as_bytes(), end as u8)
    }

    #[test]
    fn tags_end_where_the_lexer_ends_them() {
        assert_eq!(tag(" a + b }} c", '}'), (7, 3));
        assert_eq!(tag(" {'a': {}} }}", '}'), (11, 6));
        assert_eq!(tag(" '}}' }}", '}'), (6, 1));
        assert_eq!(tag(r#" "\"}}" }}"#, '}'), (8, 1));
        assert_eq!(tag(" x[(1)] %}", '%'), (8, 6));
        assert_eq!(tag(" x }} %}", '%'), (8, 5));
        assert_eq!(tag(" 'unfinished", '}'), (12, 1));
        assert_eq!(tag(r" 'a\", '}'), (4, 1));
    }

    #[test]
    fn long_tags_and_raw_blocks_are_found_wherever_they_stand() {
        let long = "1~".repeat(TOKENS);
        for before in ["", "{# {{ #}", "{ {", "{{ '{{' }}", "{{ {'}}': {}} }}", "{% set x = '%}' %}", "#}"] {
            let refused = |template: String| check("t", &template).expect_err(before);
            let expected = TextError::TemplateTagTooLong { file: "t".to_owned(), line: 2, limit: TOKENS };
            assert_eq!(refused(format!("{before}\n{{{{ {long}1 }}}}")), expected);
            assert_eq!(refused(format!("{before}\n{{% if {long}1 %}}")), expected);
            let message = "raw blocks are not supported (line 2)".to_owned();
            let expected = TextError::Template { file: "t".to_owned(), message };
            assert_eq!(refused(format!("{before}\n{{%-  raw -%}}")), expected);
        }
        assert_eq!(check("t", &format!("{{# {long} #}}{long}{{ {long} }}")), Ok(()));
    }
}
