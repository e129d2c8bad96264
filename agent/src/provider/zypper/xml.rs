//! XML, element by element: nothing is kept that nobody asks for, and nothing may be larger than it has reason to be. Pure.

use std::io::{self, BufRead, Read};

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

/// Longest tag or text: a description of a package is some kilobytes.
const MAX_EVENT: u64 = 4 << 20;

/// Most bytes of a document. Tumbleweed's list of packages is a third of a gigabyte.
const MAX_DOCUMENT: u64 = 4 << 30;

/// Most elements that are open at once: repositories' indexes and zypper's answers have less than ten.
const MAX_DEPTH: usize = 64;

/// A part of a document.
pub(super) enum Node<'a> {
    Open(Tag<'a>),
    /// An element ends; with the text in it that is not in elements within.
    Close {
        name: &'a str,
        text: &'a str,
    },
}

/// The begin of an element.
pub(super) struct Tag<'a>(&'a BytesStart<'a>);

impl Tag<'_> {
    /// Without its prefix.
    pub(super) fn name(&self) -> &str {
        self.0.local_name().into_inner()
    }

    /// An attribute, empty where it is not there.
    pub(super) fn attribute(&self, name: &str) -> Result<String, String> {
        match self.0.try_get_attribute(name).map_err(|error| error.to_string())? {
            None => Ok(String::new()),
            Some(attribute) => attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .map(std::borrow::Cow::into_owned)
                .map_err(|error| format!("attribute {name}: {error}")),
        }
    }
}

/// Tells `each` every element of the document, in its order.
pub(super) fn walk(input: impl BufRead, mut each: impl FnMut(Node<'_>) -> Result<(), String>) -> Result<(), String> {
    let mut reader = Reader::from_reader(Bounded { input, event: MAX_EVENT, document: MAX_DOCUMENT });
    let mut buffer = Vec::new();
    // Of each element that is open.
    let mut texts: Vec<String> = Vec::new();
    loop {
        buffer.clear();
        reader.get_mut().event = MAX_EVENT;
        let at = reader.buffer_position();
        let wrong = |why: &dyn std::fmt::Display| format!("byte {at}: {why}");
        let event = reader.read_event_into(&mut buffer).map_err(|error| wrong(&error))?;
        match event {
            Event::Start(start) => {
                each(Node::Open(Tag(&start))).map_err(|why| wrong(&why))?;
                if texts.len() == MAX_DEPTH {
                    return Err(wrong(&format!("more than {MAX_DEPTH} elements in each other")));
                }
                texts.push(String::new());
            }
            Event::Empty(start) => {
                each(Node::Open(Tag(&start))).map_err(|why| wrong(&why))?;
                let name = start.local_name();
                each(Node::Close { name: name.into_inner(), text: "" }).map_err(|why| wrong(&why))?;
            }
            Event::End(end) => {
                let text = texts.pop().unwrap_or_default();
                let name = end.local_name();
                each(Node::Close { name: name.into_inner(), text: text.trim() }).map_err(|why| wrong(&why))?;
            }
            Event::Text(text) => add(&mut texts, &text.xml10_content()).map_err(|why| wrong(&why))?,
            Event::CData(text) => add(&mut texts, &text.xml10_content()).map_err(|why| wrong(&why))?,
            Event::GeneralRef(reference) => {
                let character = reference.resolve_char_ref().map_err(|error| wrong(&error))?;
                let name = reference.into_inner();
                let resolved = match character {
                    Some(character) => character.to_string(),
                    None => quick_xml::escape::resolve_predefined_entity(&name)
                        .map(str::to_owned)
                        .ok_or_else(|| wrong(&format!("unknown entity &{name};")))?,
                };
                add(&mut texts, &resolved).map_err(|why| wrong(&why))?;
            }
            Event::Eof if texts.is_empty() => return Ok(()),
            Event::Eof => return Err(wrong(&"ends within an element")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

fn add(texts: &mut [String], more: &str) -> Result<(), String> {
    // Of all elements that are open: each could have one.
    let open: usize = texts.iter().map(String::len).sum();
    if (open + more.len()) as u64 > MAX_EVENT {
        return Err("a text is too long".to_owned());
    }
    // Between the elements of a document are line breaks only.
    let Some(text) = texts.last_mut() else { return Ok(()) };
    text.push_str(more);
    Ok(())
}

/// Ends with an error where more is read than may be.
struct Bounded<R> {
    input: R,
    event: u64,
    document: u64,
}

impl<R: BufRead> BufRead for Bounded<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = self.event.min(self.document);
        let buffer = self.input.fill_buf()?;
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other("is larger than it has reason to be"));
        }
        Ok(&buffer[..buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX))])
    }

    fn consume(&mut self, amount: usize) {
        self.event = self.event.saturating_sub(amount as u64);
        self.document = self.document.saturating_sub(amount as u64);
        self.input.consume(amount);
    }
}

impl<R: BufRead> Read for Bounded<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(to)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(document: &str) -> Result<Vec<String>, String> {
        let mut told = Vec::new();
        walk(document.as_bytes(), |node| {
            told.push(match node {
                Node::Open(tag) => format!("<{} {}", tag.name(), tag.attribute("a")?),
                Node::Close { name, text } => format!("{name} {text}"),
            });
            Ok(())
        })?;
        Ok(told)
    }

    #[test]
    fn elements_come_with_their_own_text_and_without_prefixes() {
        let document = "<?xml version='1.0'?>\n<x a='1 &amp; 2'><rpm:y>b &lt;&#99;<z/> d</rpm:y><![CDATA[<e>]]></x>";
        assert_eq!(told(document).unwrap(), ["<x 1 & 2", "<y ", "<z ", "z ", "y b <c d", "x <e>"]);
    }

    #[test]
    fn what_is_no_document_or_too_large_is_refused() {
        for odd in ["<x>", "<x></y>", "<x>&nothing;</x>", "<x a='&nothing;'/>"] {
            assert!(told(odd).is_err(), "{odd}");
        }
        let long = "a".repeat(usize::try_from(MAX_EVENT).unwrap() + 1);
        assert!(told(&format!("<x>{long}</x>")).unwrap_err().contains("larger than it has reason"));
        let pieces = "aaaa&amp;".repeat(usize::try_from(MAX_EVENT).unwrap() / 4);
        assert!(told(&format!("<x>{pieces}</x>")).unwrap_err().contains("too long"));
    }
}
