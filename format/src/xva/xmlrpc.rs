//! XML-RPC values, as xapi writes them to `ova.xml`: text, arrays and structs.
//!
//! The text may come from anywhere: nesting and the number of values are bounded, and no entity but those of
//! XML itself is known, so nothing expands. Source: the XML-RPC specification; xapi leaves strings and
//! integers untagged.

use std::borrow::Cow;
use std::ops::Range;

use quick_xml::Reader;
use quick_xml::events::Event;

/// Values inside values. xapi's go 8 deep.
const DEPTH_MAX: usize = 32;
/// Values in all: each takes some 100 bytes of memory.
const VALUES_MAX: usize = 1 << 19;

/// A value, and where its element stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value<'a> {
    /// The bytes from `<value>` to `</value>`.
    pub span: Range<usize>,
    /// What it is.
    pub kind: ValueKind<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ValueKind<'a> {
    /// A string, a number, a date, a truth value: whatever stands there as text.
    Scalar(Cow<'a, str>),
    Array(Vec<Value<'a>>),
    Struct(Vec<(Cow<'a, str>, Value<'a>)>),
}

/// A text that is no XML-RPC value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of ova.xml: {problem}")]
pub struct XmlError {
    /// Where, in bytes from its start.
    pub at: u64,
    /// What is wrong there.
    pub problem: XmlProblem,
}

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XmlProblem {
    /// Not UTF-8.
    #[error("it is not UTF-8")]
    Utf8,
    /// Not XML.
    #[error("it is not well-formed XML: {0}")]
    Syntax(String),
    /// Another element or text than XML-RPC has there.
    #[error("{found} stands where {expected} is expected")]
    Unexpected {
        /// What XML-RPC has there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A document type, which could define entities.
    #[error("it has a document type, which no XVA needs")]
    DocumentType,
    /// Not one of XML's own.
    #[error("the entity &{0}; is none of XML's own")]
    Entity(String),
    /// Too deep.
    #[error("values are nested more than {DEPTH_MAX} deep")]
    Depth,
    /// Too much.
    #[error("there are more than {VALUES_MAX} values")]
    Count,
}

impl<'a> Value<'a> {
    /// Reads a text that is one value.
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, XmlError> {
        let text = std::str::from_utf8(text).map_err(|error| XmlError {
            at: error.valid_up_to() as u64,
            problem: XmlProblem::Utf8,
        })?;
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        let mut parser = Parser {
            reader,
            at: 0,
            values: 0,
        };
        parser.open("value")?;
        let value = parser.value(0, 0)?;
        match parser.next_solid()? {
            Token::End => Ok(value),
            found => Err(parser.unexpected("the end of the text", &found)),
        }
    }

    /// The member of a struct.
    pub(super) fn member(&self, name: &str) -> Option<&Value<'a>> {
        match &self.kind {
            ValueKind::Struct(members) => {
                let found = members.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            ValueKind::Scalar(text) => Some(text),
            _ => None,
        }
    }

    /// The values of an array.
    pub(super) fn array(&self) -> Option<&[Value<'a>]> {
        match &self.kind {
            ValueKind::Array(values) => Some(values),
            _ => None,
        }
    }
}

/// What the grammar sees: comments and the prolog are left out.
#[derive(Debug)]
enum Token<'a> {
    Open(String),
    Close(String),
    Text(Cow<'a, str>),
    End,
}

impl Token<'_> {
    fn is_space(&self) -> bool {
        matches!(self, Token::Text(text) if text.trim_ascii().is_empty())
    }
}

struct Parser<'a> {
    reader: Reader<&'a [u8]>,
    /// Where the last token began.
    at: u64,
    values: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, problem: XmlProblem) -> XmlError {
        XmlError {
            at: self.at,
            problem,
        }
    }

    fn unexpected(&self, expected: &'static str, found: &Token<'_>) -> XmlError {
        let found = match found {
            Token::Open(name) => format!("<{name}>"),
            Token::Close(name) => format!("</{name}>"),
            Token::Text(_) => "text".to_owned(),
            Token::End => "the end of the text".to_owned(),
        };
        self.error(XmlProblem::Unexpected { expected, found })
    }

    fn next(&mut self) -> Result<Token<'a>, XmlError> {
        loop {
            self.at = self.reader.buffer_position();
            let event = self.reader.read_event().map_err(|error| XmlError {
                at: self.reader.error_position(),
                problem: XmlProblem::Syntax(error.to_string()),
            })?;
            let syntax = |error: &dyn std::fmt::Display| XmlError {
                at: self.at,
                problem: XmlProblem::Syntax(error.to_string()),
            };
            return Ok(match event {
                Event::Start(start) => Token::Open(name_of(start.name().as_ref())),
                Event::End(end) => Token::Close(name_of(end.name().as_ref())),
                Event::Text(text) => Token::Text(text.decode().map_err(|error| syntax(&error))?),
                Event::CData(text) => Token::Text(text.decode().map_err(|error| syntax(&error))?),
                Event::GeneralRef(entity) => {
                    let name = entity.decode().map_err(|error| syntax(&error))?;
                    let char = match entity.resolve_char_ref() {
                        Ok(Some(char)) => Some(char),
                        Ok(None) => predefined(&name),
                        Err(error) => return Err(syntax(&error)),
                    };
                    match char {
                        Some(char) => Token::Text(Cow::Owned(char.to_string())),
                        None => return Err(self.error(XmlProblem::Entity(shortened(&name)))),
                    }
                }
                Event::Eof => Token::End,
                Event::DocType(_) => return Err(self.error(XmlProblem::DocumentType)),
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => continue,
                Event::Empty(_) => unreachable!("empty elements are expanded"),
            });
        }
    }

    /// The next token that is not white space.
    fn next_solid(&mut self) -> Result<Token<'a>, XmlError> {
        loop {
            let token = self.next()?;
            if !token.is_space() {
                return Ok(token);
            }
        }
    }

    fn open(&mut self, name: &'static str) -> Result<(), XmlError> {
        match self.next_solid()? {
            Token::Open(found) if found == name => Ok(()),
            found => Err(self.unexpected(name, &found)),
        }
    }

    fn close(&mut self, name: &'static str) -> Result<(), XmlError> {
        match self.next_solid()? {
            Token::Close(found) if found == name => Ok(()),
            found => Err(self.unexpected(name, &found)),
        }
    }

    /// Text up to the end of the element.
    fn text(&mut self, mut text: Cow<'a, str>, name: &str) -> Result<Cow<'a, str>, XmlError> {
        loop {
            match self.next()? {
                Token::Text(more) if text.is_empty() => text = more,
                Token::Text(more) => text.to_mut().push_str(&more),
                Token::Close(found) if found == name => return Ok(text),
                found => return Err(self.unexpected("text", &found)),
            }
        }
    }

    /// What follows `<value>`, which begins at `start`, up to its end.
    fn value(&mut self, start: u64, depth: usize) -> Result<Value<'a>, XmlError> {
        self.values += 1;
        if depth >= DEPTH_MAX {
            return Err(self.error(XmlProblem::Depth));
        }
        if self.values > VALUES_MAX {
            return Err(self.error(XmlProblem::Count));
        }
        let mut token = self.next()?;
        let mut space = Cow::Borrowed("");
        if token.is_space()
            && let Token::Text(text) = token
        {
            space = text;
            token = self.next()?;
        }
        let kind = match token {
            Token::Close(name) if name == "value" => {
                return Ok(self.finished(start, ValueKind::Scalar(space)));
            }
            Token::Text(text) => {
                let text = match space.is_empty() {
                    true => text,
                    false => Cow::Owned(format!("{space}{text}")),
                };
                let text = self.text(text, "value")?;
                return Ok(self.finished(start, ValueKind::Scalar(text)));
            }
            Token::Open(name) => match name.as_str() {
                "array" => ValueKind::Array(self.array(depth)?),
                "struct" => ValueKind::Struct(self.members(depth)?),
                "string" | "i4" | "i8" | "int" | "boolean" | "double" | "dateTime.iso8601"
                | "base64" | "nil" => ValueKind::Scalar(self.text(Cow::Borrowed(""), &name)?),
                _ => return Err(self.unexpected("a type of XML-RPC", &Token::Open(name))),
            },
            found => return Err(self.unexpected("a value", &found)),
        };
        self.close("value")?;
        Ok(self.finished(start, kind))
    }

    fn finished(&self, start: u64, kind: ValueKind<'a>) -> Value<'a> {
        Value {
            span: start as usize..self.reader.buffer_position() as usize,
            kind,
        }
    }

    fn array(&mut self, depth: usize) -> Result<Vec<Value<'a>>, XmlError> {
        self.open("data")?;
        let mut values = Vec::new();
        loop {
            match self.next_solid()? {
                Token::Open(name) if name == "value" => {
                    values.push(self.value(self.at, depth + 1)?);
                }
                Token::Close(name) if name == "data" => break,
                found => return Err(self.unexpected("<value>", &found)),
            }
        }
        self.close("array")?;
        Ok(values)
    }

    fn members(&mut self, depth: usize) -> Result<Vec<(Cow<'a, str>, Value<'a>)>, XmlError> {
        let mut members = Vec::new();
        loop {
            match self.next_solid()? {
                Token::Open(name) if name == "member" => {}
                Token::Close(name) if name == "struct" => return Ok(members),
                found => return Err(self.unexpected("<member>", &found)),
            }
            self.open("name")?;
            let name = self.text(Cow::Borrowed(""), "name")?;
            self.open("value")?;
            let value = self.value(self.at, depth + 1)?;
            self.close("member")?;
            members.push((name, value));
        }
    }
}

fn name_of(name: &[u8]) -> String {
    shortened(&String::from_utf8_lossy(name))
}

/// Names in messages are no longer than this.
fn shortened(name: &str) -> String {
    name.chars().take(40).collect()
}

fn predefined(name: &str) -> Option<char> {
    Some(match name {
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        "apos" => '\'',
        "quot" => '"',
        _ => return None,
    })
}

/// `text` as it stands in XML.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    let is_special = |c: char| matches!(c, '<' | '>' | '&' | '\'' | '"') || c.is_control();
    if !text.contains(is_special) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' => escaped.push(c),
            // XML 1.0 has no way to write the others.
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text_of(xml: &str) -> String {
        Value::parse(xml.as_bytes())
            .unwrap_or_else(|error| panic!("{xml}: {error}"))
            .text()
            .unwrap_or_else(|| panic!("{xml} is a scalar"))
            .to_owned()
    }

    #[test]
    fn scalars_are_tagged_or_not() {
        for (xml, expected) in [
            ("<value>a b</value>", "a b"),
            ("<value> a </value>", " a "),
            ("<value/>", ""),
            ("<value></value>", ""),
            ("<value>  </value>", "  "),
            ("<value><string>x</string></value>", "x"),
            ("<value> <i4>7</i4> </value>", "7"),
            ("<value><boolean>1</boolean></value>", "1"),
            ("<value>&lt;&amp;&#65;&#x42;&quot;</value>", "<&AB\""),
            ("<value><![CDATA[<x>]]></value>", "<x>"),
            ("<?xml version=\"1.0\"?>\n<!-- c --><value>x</value>\n", "x"),
        ] {
            assert_eq!(text_of(xml), expected, "{xml}");
        }
    }

    #[test]
    fn spans_cover_the_element() {
        let xml = "<value><struct><member><name>a</name><value>1</value></member>\
                   <member><name>b</name> <value><array><data><value/></data></array></value></member>\
                   </struct></value>";
        let value = Value::parse(xml.as_bytes()).unwrap();
        let span = |value: &Value<'_>| xml[value.span.clone()].to_owned();
        assert_eq!(span(&value), xml);
        assert_eq!(span(value.member("a").unwrap()), "<value>1</value>");
        let array = value.member("b").unwrap();
        assert_eq!(span(&array.array().unwrap()[0]), "<value/>");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let deep = format!(
            "{}{}",
            "<value><array><data>".repeat(DEPTH_MAX + 1),
            "</data></array></value>".repeat(DEPTH_MAX + 1)
        );
        for (xml, expected) in [
            ("", "the end of the text stands where value is expected"),
            ("<value>", ""),
            ("<value>x</value>y", "text stands where the end of the text"),
            ("<value><b>x</b></value>", "<b> stands where a type"),
            ("<value>x<b/></value>", "<b> stands where text"),
            ("<value>x</array>", "not well-formed"),
            ("<value>&big;</value>", "the entity &big; is none"),
            (
                "<!DOCTYPE v [<!ENTITY a \"b\">]><value>&a;</value>",
                "document type",
            ),
            (
                "<value><struct><value/></struct></value>",
                "<value> stands where <member>",
            ),
            ("<value>\u{1}&#x110000;</value>", "not well-formed"),
            (deep.as_str(), "nested more than 32 deep"),
        ] {
            let error = Value::parse(xml.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{xml}: {error}");
        }
        assert_eq!(Value::parse(b"<value>\xff").unwrap_err().at, 7);
    }

    proptest! {
        #[test]
        fn escaped_text_is_read_back(text in "[ -~äß\n]{0,40}") {
            let xml = format!("<value>{}</value>", escape(&text));
            prop_assert_eq!(text_of(&xml), text);
        }
    }
}
