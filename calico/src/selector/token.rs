//! The words of the selector language.
//!
//! Operators such as `contains` are words only after a label: everywhere else they are label names.

use super::SelectorError;

const LONGEST_LABEL: usize = 512;

/// A word, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Label(String),
    Text(String),
    Has(String),
    All,
    Operator(Operator),
    Not,
    And,
    Or,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    Comma,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    In,
    NotIn,
    Contains,
    StartsWith,
    EndsWith,
}

/// Splits a selector; the last token is always [`Kind::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, SelectorError> {
    let mut scanner = Scanner { text, at: 0 };
    let mut tokens: Vec<Token> = Vec::new();
    loop {
        scanner.skip_blanks();
        let at = scanner.at;
        let after_label = matches!(tokens.last(), Some(Token { kind: Kind::Label(_), .. }));
        let kind = scanner.next(after_label)?;
        let end = kind == Kind::End;
        tokens.push(Token { kind, at });
        if end {
            return Ok(tokens);
        }
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    fn eat(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn next(&mut self, after_label: bool) -> Result<Kind, SelectorError> {
        let symbols = [
            ("(", Kind::LeftParen),
            (")", Kind::RightParen),
            ("{", Kind::LeftBrace),
            ("}", Kind::RightBrace),
            (",", Kind::Comma),
            ("==", Kind::Operator(Operator::Equal)),
            ("!=", Kind::Operator(Operator::NotEqual)),
            ("!", Kind::Not),
            ("&&", Kind::And),
            ("||", Kind::Or),
        ];
        for (symbol, kind) in symbols {
            if self.eat(symbol) {
                return Ok(kind);
            }
        }
        match self.rest().chars().next() {
            None => Ok(Kind::End),
            Some(quote @ ('"' | '\'')) => self.string(quote),
            Some('=') => Err(self.expected("==")),
            Some('&') => Err(self.expected("&&")),
            Some('|') => Err(self.expected("||")),
            Some(_) if after_label => self.operator(),
            Some(_) => self.word(),
        }
    }

    fn string(&mut self, quote: char) -> Result<Kind, SelectorError> {
        let at = self.at;
        let rest = &self.text[at + 1..];
        let length = rest.find(quote).ok_or(SelectorError::Unterminated { at })?;
        self.at += length + 2;
        Ok(Kind::Text(rest[..length].to_owned()))
    }

    fn operator(&mut self) -> Result<Kind, SelectorError> {
        let operators: [(&[&str], Operator); 5] = [
            (&["contains"], Operator::Contains),
            (&["starts", "with"], Operator::StartsWith),
            (&["ends", "with"], Operator::EndsWith),
            (&["not", "in"], Operator::NotIn),
            (&["in"], Operator::In),
        ];
        for (words, operator) in operators {
            if self.eat_words(words) {
                return Ok(Kind::Operator(operator));
            }
        }
        Err(self.expected("an operator after the label"))
    }

    /// Takes all the words, with any blanks between them, if the last one ends there.
    fn eat_words(&mut self, words: &[&str]) -> bool {
        let start = self.at;
        for (place, word) in words.iter().enumerate() {
            if place > 0 {
                self.skip_blanks();
            }
            if !self.eat(word) {
                self.at = start;
                return false;
            }
        }
        if self.rest().starts_with(is_label_char) {
            self.at = start;
            return false;
        }
        true
    }

    fn word(&mut self) -> Result<Kind, SelectorError> {
        if self.eat("has(") {
            self.skip_blanks();
            let label = self.label()?;
            self.close()?;
            return Ok(Kind::Has(label));
        }
        if self.eat("all(") || self.eat("global(") {
            self.close()?;
            return Ok(Kind::All);
        }
        Ok(Kind::Label(self.label()?))
    }

    fn close(&mut self) -> Result<(), SelectorError> {
        self.skip_blanks();
        if self.eat(")") { Ok(()) } else { Err(self.expected(")")) }
    }

    fn label(&mut self) -> Result<String, SelectorError> {
        let rest = self.rest();
        let length = rest.find(|c| !is_label_char(c)).unwrap_or(rest.len());
        if length == 0 {
            return Err(self.expected("a label"));
        }
        if length > LONGEST_LABEL {
            return Err(SelectorError::LabelTooLong { at: self.at, length });
        }
        let label = rest[..length].to_owned();
        self.at += length;
        Ok(label)
    }

    fn expected(&self, expected: &'static str) -> SelectorError {
        let found = match self.rest().chars().next() {
            Some(c) => format!("{c:?}"),
            None => "the end".to_owned(),
        };
        SelectorError::Expected { expected, found, at: self.at }
    }
}

fn is_label_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}
