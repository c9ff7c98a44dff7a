//! The grammar of the selector language: `||` binds least, then `&&`, then `!`.

use super::token::{Kind, Operator, Token};
use super::{Node, SelectorError, Test};

/// Calico has no limit; a selector of a hostile user must not exhaust the stack.
const DEEPEST: usize = 64;

/// Reads a whole selector; one without words matches everything.
pub(super) fn selector(tokens: &[Token]) -> Result<Node, SelectorError> {
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    if *parser.peek() == Kind::End {
        return Ok(Node::All);
    }
    let root = parser.any_of()?;
    match parser.peek() {
        Kind::End => Ok(root),
        _ => Err(parser.expected("&&, || or the end")),
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &Kind {
        self.tokens.get(self.at).map_or(&Kind::End, |token| &token.kind)
    }

    fn eat(&mut self, kind: &Kind) -> bool {
        let found = self.peek() == kind;
        self.at += usize::from(found);
        found
    }

    fn any_of(&mut self) -> Result<Node, SelectorError> {
        let mut nodes = vec![self.all_of()?];
        while self.eat(&Kind::Or) {
            nodes.push(self.all_of()?);
        }
        Ok(one_or(nodes, Node::Or))
    }

    fn all_of(&mut self) -> Result<Node, SelectorError> {
        let mut nodes = vec![self.term()?];
        while self.eat(&Kind::And) {
            nodes.push(self.term()?);
        }
        Ok(one_or(nodes, Node::And))
    }

    fn term(&mut self) -> Result<Node, SelectorError> {
        let mut negated = false;
        while self.eat(&Kind::Not) {
            negated = !negated;
        }
        let node = match self.peek().clone() {
            Kind::All => self.take(Node::All),
            Kind::Has(label) => self.take(Node::Has(label)),
            Kind::Label(label) => {
                self.at += 1;
                Node::Value(label, self.test()?)
            }
            Kind::LeftParen => self.parenthesised()?,
            _ => return Err(self.expected("a label, has(), all() or a parenthesis")),
        };
        Ok(if negated { Node::Not(Box::new(node)) } else { node })
    }

    fn take(&mut self, node: Node) -> Node {
        self.at += 1;
        node
    }

    fn parenthesised(&mut self) -> Result<Node, SelectorError> {
        if self.depth == DEEPEST {
            return Err(SelectorError::TooDeep { at: self.position(), most: DEEPEST });
        }
        self.at += 1;
        self.depth += 1;
        let node = self.any_of()?;
        self.depth -= 1;
        if self.eat(&Kind::RightParen) { Ok(node) } else { Err(self.expected(")")) }
    }

    fn test(&mut self) -> Result<Test, SelectorError> {
        let Kind::Operator(operator) = *self.peek() else {
            return Err(self.expected("an operator after the label"));
        };
        self.at += 1;
        Ok(match operator {
            Operator::Equal => Test::Equal(self.text()?),
            Operator::NotEqual => Test::NotEqual(self.text()?),
            Operator::Contains => Test::Contains(self.text()?),
            Operator::StartsWith => Test::StartsWith(self.text()?),
            Operator::EndsWith => Test::EndsWith(self.text()?),
            Operator::In => Test::In(self.set()?),
            Operator::NotIn => Test::NotIn(self.set()?),
        })
    }

    fn text(&mut self) -> Result<String, SelectorError> {
        match self.peek().clone() {
            Kind::Text(text) => {
                self.at += 1;
                Ok(text)
            }
            _ => Err(self.expected("a string in quotes")),
        }
    }

    /// A set may be empty, and its last value may be followed by a comma.
    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        if !self.eat(&Kind::LeftBrace) {
            return Err(self.expected("a set in braces"));
        }
        let mut values = Vec::new();
        while let Kind::Text(value) = self.peek().clone() {
            self.at += 1;
            values.push(value);
            if !self.eat(&Kind::Comma) {
                break;
            }
        }
        if self.eat(&Kind::RightBrace) { Ok(values) } else { Err(self.expected("}")) }
    }

    fn position(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |token| token.at)
    }

    fn expected(&self, expected: &'static str) -> SelectorError {
        let found = match self.peek() {
            Kind::Label(label) => format!("label {label:?}"),
            Kind::Text(text) => format!("string {text:?}"),
            Kind::Has(label) => format!("has({label})"),
            Kind::All => "all()".to_owned(),
            Kind::Operator(_) => "an operator".to_owned(),
            Kind::Not => "!".to_owned(),
            Kind::And => "&&".to_owned(),
            Kind::Or => "||".to_owned(),
            Kind::LeftParen => "(".to_owned(),
            Kind::RightParen => ")".to_owned(),
            Kind::LeftBrace => "{".to_owned(),
            Kind::RightBrace => "}".to_owned(),
            Kind::Comma => "a comma".to_owned(),
            Kind::End => "the end".to_owned(),
        };
        SelectorError::Expected { expected, found, at: self.position() }
    }
}

fn one_or(mut nodes: Vec<Node>, join: fn(Vec<Node>) -> Node) -> Node {
    match nodes.pop() {
        Some(only) if nodes.is_empty() => only,
        last => {
            nodes.extend(last);
            join(nodes)
        }
    }
}
