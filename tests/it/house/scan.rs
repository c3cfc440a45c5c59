//! Just enough of Rust's grammar to find the paths in a file: comments and strings are skipped,
//! `use` groups are unfolded, `super` and inline modules are followed.

/// Something that a rule may be about.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// The first name after `crate::`, also where it was reached by `super::`.
    CratePath(String),
    /// Any path of two or more names, as it is written.
    Path(Vec<String>),
    /// The value of `feature = "…"`.
    Feature(String),
    /// The path, with `/`, of a module in a file of its own that only tests are compiled with.
    TestFile(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Name(String),
    Text(String),
    PathSeparator,
    Sign(char),
}

/// What a file of the module `module` (names from the crate's root on) holds, by line.
pub(crate) fn scan(source: &str, module: &[&str]) -> Vec<(usize, Found)> {
    let tokens = tokens(source);
    let mut scanner = Scanner { tokens: &tokens, at: 0, module: owned(module), found: Vec::new() };
    scanner.items();
    scanner.found
}

struct Scanner<'a> {
    tokens: &'a [(usize, Token)],
    at: usize,
    /// Where we are, inline modules included.
    module: Vec<String>,
    found: Vec<(usize, Found)>,
}

impl<'a> Scanner<'a> {
    fn items(&mut self) {
        // For every open brace: whether it is that of an inline module.
        let mut braces = Vec::new();
        // Whether the item that we are at the beginning of has `#[cfg(test)]`.
        let mut for_tests = false;
        while let Some(token) = self.peek(0) {
            match token {
                Token::Sign('#') => for_tests |= self.attribute(),
                Token::Name(word) if word == "mod" => {
                    match (self.peek(1), self.peek(2)) {
                        (Some(Token::Name(name)), Some(Token::Sign('{'))) => {
                            self.module.push(name.clone());
                            braces.push(true);
                            for_tests = false;
                            self.at += 2;
                        }
                        (Some(Token::Name(name)), Some(Token::Sign(';'))) if for_tests => {
                            let path =
                                [self.module.as_slice(), std::slice::from_ref(name)].concat().join("/");
                            self.report(Found::TestFile(path));
                        }
                        _ => {}
                    }
                    self.at += 1;
                }
                Token::Name(word) if word == "feature" => {
                    if let (Some(Token::Sign('=')), Some(Token::Text(value))) = (self.peek(1), self.peek(2)) {
                        self.report(Found::Feature(value.clone()));
                    }
                    self.at += 1;
                }
                Token::Name(_) | Token::PathSeparator => self.path(&[]),
                Token::Sign(sign) => {
                    match sign {
                        '{' => braces.push(false),
                        '}' if braces.pop() == Some(true) => drop(self.module.pop()),
                        _ => {}
                    }
                    for_tests &= !matches!(sign, '{' | '}' | ';');
                    self.at += 1;
                }
                Token::Text(_) => self.at += 1,
            }
        }
    }

    /// Steps over the `#`, and tells whether `[cfg(test)]` follows. What an attribute says is read as
    /// all else is, but for this one.
    fn attribute(&mut self) -> bool {
        self.at += 1;
        let cfg_test = ["[", "cfg", "(", "test", ")", "]"];
        let is = (0..cfg_test.len()).all(|i| match self.peek(i) {
            Some(Token::Name(name)) => name == cfg_test[i],
            Some(Token::Sign(sign)) => cfg_test[i].starts_with(*sign),
            _ => false,
        });
        if is {
            self.at += cfg_test.len();
        }
        is
    }

    /// Reads a path, `prefix` being what stood before its group, and reports it.
    fn path(&mut self, prefix: &[String]) {
        let mut names = prefix.to_vec();
        let line = self.tokens[self.at].0;
        if self.peek(0) == Some(&Token::PathSeparator) {
            self.at += 1;
        }
        loop {
            match self.peek(0) {
                Some(Token::Name(name)) => names.push(name.clone()),
                Some(Token::Sign('{')) if !names.is_empty() => return self.group(&names),
                Some(Token::Sign('*')) if !names.is_empty() => names.push("*".into()),
                // The turbofish `a::<T>`: its types are read as paths of their own.
                _ => break,
            }
            self.at += 1;
            if self.peek(0) != Some(&Token::PathSeparator) {
                break;
            }
            self.at += 1;
        }
        self.report_path(line, names);
    }

    /// `{a, b::c, d::{e}}` after `names::`.
    fn group(&mut self, names: &[String]) {
        self.at += 1;
        while let Some(token) = self.peek(0) {
            match token {
                Token::Sign('}') => {
                    self.at += 1;
                    return;
                }
                Token::Name(word) if word == "as" => self.at += 2,
                Token::Name(_) | Token::Sign('{') => self.path(names),
                _ => self.at += 1,
            }
        }
    }

    fn report_path(&mut self, line: usize, names: Vec<String>) {
        if names.len() < 2 {
            return;
        }
        let path = if names[0] == "self" { &names[1..] } else { &names[..] };
        let supers = path.iter().take_while(|name| *name == "super").count();
        let used = if path[0] == "crate" {
            path.get(1).cloned()
        } else if supers > 0 {
            // `super::` from a file two modules deep stays in its room; from one deep it is the root.
            let from = &self.module[..self.module.len().saturating_sub(supers)];
            from.first().or(path.get(supers)).cloned()
        } else {
            None
        };
        if let Some(used) = used {
            self.found.push((line, Found::CratePath(used)));
        }
        self.found.push((line, Found::Path(names)));
    }

    fn peek(&self, ahead: usize) -> Option<&'a Token> {
        self.tokens.get(self.at + ahead).map(|(_, token)| token)
    }

    fn report(&mut self, found: Found) {
        self.found.push((self.tokens[self.at].0, found));
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Names, strings, `::` and single signs, each with its line; comments are left out.
fn tokens(source: &str) -> Vec<(usize, Token)> {
    let mut tokens = Vec::new();
    let mut rest = source;
    let mut line = 1;
    while let Some(c) = rest.chars().next() {
        let (length, token) = token(rest, c);
        tokens.extend(token.map(|token| (line, token)));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// The length of what stands first, and what it is unless it is to be skipped.
fn token(rest: &str, c: char) -> (usize, Option<Token>) {
    if rest.starts_with("//") {
        (rest.find('\n').unwrap_or(rest.len()), None)
    } else if rest.starts_with("/*") {
        (block_comment(rest), None)
    } else if let Some(length) = raw_string(rest) {
        (length, Some(Token::Text(String::new())))
    } else if c == '"' {
        let end = 1 + closing_quote(&rest[1..], '"');
        (end, Some(Token::Text(rest[1..end - 1].to_owned())))
    } else if c == '\'' {
        (quote(rest), None)
    } else if rest.starts_with("::") {
        (2, Some(Token::PathSeparator))
    } else if c.is_alphabetic() || c == '_' {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        (end, Some(Token::Name(rest[..end].to_owned())))
    } else if c.is_ascii_digit() {
        (rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()), None)
    } else {
        (c.len_utf8(), (!c.is_whitespace()).then_some(Token::Sign(c)))
    }
}

/// Comments nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// `r"…"`, `r#"…"#`, `br"…"` and so on.
fn raw_string(rest: &str) -> Option<usize> {
    let body = ["br", "cr", "r"].iter().find_map(|start| rest.strip_prefix(start))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let text = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = text.find(&end).map_or(text.len(), |at| at + end.len());
    Some(rest.len() - text.len() + length)
}

/// The length up to and with the closing quote, escapes skipped.
fn closing_quote(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// A character (`'"'`, `'\n'`) or a lifetime (`'a`): the length to skip.
fn quote(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => 1 + closing_quote(&rest[1..], '\''),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str, module: &[&str]) -> Vec<String> {
        let found = scan(source, module).into_iter();
        found
            .filter_map(
                |(_, found)| if let Found::Path(names) = found { Some(names.join("::")) } else { None },
            )
            .collect()
    }

    #[test]
    fn groups_are_unfolded() {
        let source = "use a::{b, c::{d, e as f}, self};";
        assert_eq!(paths(source, &[]), ["a::b", "a::c::d", "a::c::e", "a::self"]);
    }

    #[test]
    fn what_is_no_code_is_skipped() {
        let source = r##"// a::b
            /* a::b /* a::b */ a::b */ fn f<'a>() { let _ = ("a::b", r#"a::"b"#, '"', '\''); x::y() }"##;
        assert_eq!(paths(source, &[]), ["x::y"]);
    }

    #[test]
    fn generic_arguments_are_paths_of_their_own() {
        assert_eq!(paths("f::<a::B>(c::D::<E>::f)", &[]), ["a::B", "c::D"]);
    }

    #[test]
    fn files_of_tests_are_found() {
        let source =
            "#[cfg(test)] mod a; mod b; #[cfg(test)] #[path = \"x\"] pub(crate) mod c; #[cfg(test)] mod d {}
            #[cfg(test)] use e::f; mod g; #[cfg(feature = \"h\")] mod i; mod j { #[cfg(test)] mod k; }";
        let found = scan(source, &["m"]).into_iter();
        let files: Vec<String> = found
            .filter_map(|(_, found)| if let Found::TestFile(path) = found { Some(path) } else { None })
            .collect();
        assert_eq!(files, ["m/a", "m/c", "m/j/k"]);
    }
}
