//! A reader of the pickles that torch.save writes: a stack machine that knows tensors and plain containers, and refuses every
//! other opcode and global by name. No code is run: a global is a word of a table, and a call of one is a tensor, a container or an error.
//! Source: CPython's Lib/pickletools.py (the opcodes) and torch/serialization.py (persistent ids).
//!
//! Values stand in a list and speak of each other by number: loops and depth cost nothing, and memory is linear in the pickle's length.

use std::collections::HashMap;

use safetensors::tensor::Dtype;

use crate::weights::json::shorten;
use crate::weights::torch::globals::{self, Global};

/// Most axes of a tensor.
const MAX_AXES: usize = 16;

/// Number of a value.
pub(crate) type Ref = usize;

/// A value. Texts are parts of the pickle.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node<'a> {
    /// Nothing that a tensor is made of, in words.
    Other(&'static str),
    Bool(bool),
    Int(i64),
    Text(&'a str),
    List(Vec<Ref>),
    Tuple(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Box<Tensor<'a>>),
    /// Made by a global that is a leftover of training.
    Leftover(&'static str),
}

/// A block of values that tensors share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Storage<'a> {
    /// None: `count` is in bytes.
    pub dtype: Option<Dtype>,
    pub key: &'a str,
    pub count: usize,
    /// Of a view of another storage (old files): first element.
    pub start: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor<'a> {
    pub storage: Storage<'a>,
    pub dtype: Dtype,
    pub start: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What a pickle holds.
pub(crate) struct Tree<'a> {
    pub nodes: Vec<Node<'a>>,
    pub root: Ref,
    /// Bytes up to and with its STOP.
    pub bytes: usize,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Ref>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<usize, Ref>,
    /// Entries that may still be copied.
    copies_left: usize,
}

type Fact<T> = Result<T, String>;

/// Reads the pickle at the start of `bytes`. An error is a fact that lacks its place.
pub(crate) fn read(bytes: &[u8]) -> Fact<Tree<'_>> {
    let mut machine = Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), copies_left: bytes.len() };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Tree { nodes: machine.nodes, root, bytes: machine.at }),
            Err(fact) => return Err(format!("pickle: byte {at}: {fact}")),
        }
    }
}

impl<'a> Machine<'a> {
    /// Runs one opcode; gives the result at STOP.
    fn step(&mut self) -> Fact<Option<Ref>> {
        let opcode = self.take(1)?[0];
        match opcode {
            0x80 => self.protocol()?,
            0x95 => self.take(8).map(|_| ())?,
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop().map(|_| ())?,
            b'1' => self.above_mark().map(|_| ())?,
            b'2' => self.top().map(|top| self.stack.push(top))?,
            b'N' => self.push(Node::Other("None")),
            0x88 | 0x89 => self.push(Node::Bool(opcode == 0x88)),
            b'J' | b'K' | b'M' | b'I' | 0x8a | 0x8b => self.integer(opcode)?,
            b'G' => self.take(8).map(|_| self.push(Node::Other("a float")))?,
            b'F' => self.line().map(|_| self.push(Node::Other("a float")))?,
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e => self.text_or_bytes(opcode)?,
            b']' => self.push(Node::List(Vec::new())),
            b')' => self.push(Node::Tuple(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            b'l' => self.above_mark().map(|items| self.push(Node::List(items)))?,
            b't' => self.above_mark().map(|items| self.push(Node::Tuple(items)))?,
            b'd' => self.above_mark().and_then(pairs).map(|pairs| self.push(Node::Dict(pairs)))?,
            0x85..=0x87 => self.tuple(usize::from(opcode) - 0x84)?,
            b'a' => self.pop().and_then(|item| self.extend(vec![item]))?,
            b'e' => self.above_mark().and_then(|items| self.extend(items))?,
            b's' => self.set_item()?,
            b'u' => self.above_mark().and_then(pairs).and_then(|pairs| self.set(pairs))?,
            b'h' | b'j' | b'g' => self.get(opcode)?,
            b'q' | b'r' | b'p' | 0x94 => self.put(opcode)?,
            b'c' => self.global()?,
            0x93 => self.stack_global()?,
            b'R' | 0x81 => self.call()?,
            0x92 => self.pop().and_then(|_| self.call())?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            other => return Err(format!("opcode {}, expected those of tensors and plain containers", opcode_name(other))),
        }
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Fact<&'a [u8]> {
        let taken = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("the pickle ends where {count} more bytes are expected"))?;
        self.at += count;
        Ok(taken)
    }

    /// A little-endian length of `bytes` bytes.
    fn unsigned(&mut self, bytes: usize) -> Fact<usize> {
        let taken = self.take(bytes)?;
        let value = taken.iter().rev().fold(0u64, |value, &b| value << 8 | u64::from(b));
        usize::try_from(value).map_err(|_| format!("length {value}, expected less than the file"))
    }

    fn line(&mut self) -> Fact<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(4096).position(|&b| b == b'\n').ok_or("a line without end, expected at most 4096 bytes")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a line that is not UTF-8 text".to_string())
    }

    fn push(&mut self, node: Node<'a>) {
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
    }

    fn top(&self) -> Fact<Ref> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| "nothing on the stack, expected a value".to_string())
    }

    fn pop(&mut self) -> Fact<Ref> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Takes everything above the last mark.
    fn above_mark(&mut self) -> Fact<Vec<Ref>> {
        let mark = self.marks.pop().ok_or("no mark on the stack, expected one")?;
        Ok(self.stack.split_off(mark))
    }

    fn protocol(&mut self) -> Fact<()> {
        match self.take(1)?[0] {
            0..=5 => Ok(()),
            other => Err(format!("protocol {other}, expected at most 5")),
        }
    }

    fn integer(&mut self, opcode: u8) -> Fact<()> {
        let node = match opcode {
            b'K' => Node::Int(self.unsigned(1)? as i64),
            b'M' => Node::Int(self.unsigned(2)? as i64),
            b'J' => Node::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            b'I' => match self.line()? {
                "00" => Node::Bool(false),
                "01" => Node::Bool(true),
                text => Node::Int(text.parse().map_err(|_| format!("`{}`, expected an integer", shorten(text)))?),
            },
            _ => {
                let count = self.unsigned(if opcode == 0x8a { 1 } else { 4 })?;
                long(self.take(count)?)
            }
        };
        self.push(node);
        Ok(())
    }

    fn text_or_bytes(&mut self, opcode: u8) -> Fact<()> {
        let length = match opcode {
            0x8c | b'U' | b'C' => 1,
            b'X' | b'T' | b'B' => 4,
            _ => 8,
        };
        let count = self.unsigned(length)?;
        let bytes = self.take(count)?;
        let node = match (opcode, std::str::from_utf8(bytes)) {
            (b'B' | b'C' | 0x8e, _) => Node::Other("bytes"),
            (_, Ok(text)) => Node::Text(text),
            (b'T' | b'U', Err(_)) => Node::Other("bytes"),
            (_, Err(_)) => return Err("a text that is not UTF-8".to_string()),
        };
        self.push(node);
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> Fact<()> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Fact<Vec<Ref>>>()?;
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn extend(&mut self, items: Vec<Ref>) -> Fact<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::List(list) => list.extend(items),
            Node::Leftover(_) => {}
            other => return Err(format!("items for {}, expected a list", words(other))),
        }
        Ok(())
    }

    fn set_item(&mut self) -> Fact<()> {
        let (value, key) = (self.pop()?, self.pop()?);
        self.set(vec![(key, value)])
    }

    fn set(&mut self, pairs: Vec<(Ref, Ref)>) -> Fact<()> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::Dict(dict) => dict.extend(pairs),
            Node::Leftover(_) => {}
            other => return Err(format!("items for {}, expected a dict", words(other))),
        }
        Ok(())
    }

    fn memo_key(&mut self, opcode: u8) -> Fact<usize> {
        match opcode {
            b'h' | b'q' => self.unsigned(1),
            b'j' | b'r' => self.unsigned(4),
            0x94 => Ok(self.memo.len()),
            _ => self.line()?.parse().map_err(|_| "a memo key that is no number".to_string()),
        }
    }

    fn get(&mut self, opcode: u8) -> Fact<()> {
        let key = self.memo_key(opcode)?;
        let found = *self.memo.get(&key).ok_or_else(|| format!("memo {key} is empty, expected a value that was put there"))?;
        self.stack.push(found);
        Ok(())
    }

    fn put(&mut self, opcode: u8) -> Fact<()> {
        let (key, top) = (self.memo_key(opcode)?, self.top()?);
        self.memo.insert(key, top);
        Ok(())
    }

    fn global(&mut self) -> Fact<()> {
        let (module, name) = (self.line()?, self.line()?);
        self.push_global(module, name)
    }

    fn stack_global(&mut self) -> Fact<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.nodes[module], &self.nodes[name]) {
            (&Node::Text(module), &Node::Text(name)) => self.push_global(module, name),
            (module, name) => Err(format!("a global of {} and {}, expected two texts", words(module), words(name))),
        }
    }

    fn push_global(&mut self, module: &str, name: &str) -> Fact<()> {
        let global = globals::find(module, name);
        let global = global.ok_or_else(|| {
            let name = shorten(&format!("{module}.{name}"));
            format!("global `{name}`, expected those of tensors and plain containers, as of torch.save(model.state_dict())")
        })?;
        self.push(Node::Global(global));
        Ok(())
    }

    /// What a global makes of its arguments.
    fn call(&mut self) -> Fact<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let global = match self.nodes[callable] {
            Node::Global(global) => global,
            Node::Leftover(name) => Global::Leftover(name),
            ref other => return Err(format!("a call of {}, expected a global", words(other))),
        };
        if let Global::Leftover(name) = global {
            self.push(Node::Leftover(name));
            return Ok(());
        }
        let arguments = match &self.nodes[arguments] {
            Node::Tuple(items) if items.len() <= MAX_AXES => items.clone(),
            other => return Err(format!("a call with {}, expected a tuple of at most {MAX_AXES}", words(other))),
        };
        let node = match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => Node::Dict(Vec::new()),
            (Global::OrderedDict, [items]) => self.ordered_dict(*items)?,
            (Global::RebuildTensor, [storage, start, size, stride, ..]) => self.tensor(*storage, *start, *size, *stride, None)?,
            (Global::RebuildTensorV3, [storage, start, size, stride, _, _, dtype, ..]) => self.tensor(*storage, *start, *size, *stride, Some(*dtype))?,
            (Global::RebuildParameter, [data, ..]) => {
                self.stack.push(*data);
                return Ok(());
            }
            (Global::Size, [size]) => {
                let size = self.numbers(*size)?;
                let first = self.nodes.len();
                self.nodes.extend(size.iter().map(|&d| Node::Int(d as i64)));
                Node::Tuple((first..first + size.len()).collect())
            }
            (Global::Device, _) => Node::Other("a torch.device"),
            (global, arguments) => return Err(format!("a call of {global:?} with {} arguments, expected those of torch.save", arguments.len())),
        };
        self.push(node);
        Ok(())
    }

    /// A dict of a list of pairs, as Python 2 wrote it.
    fn ordered_dict(&mut self, items: Ref) -> Fact<Node<'a>> {
        let wrong = || "a call of OrderedDict, expected a list of pairs".to_string();
        let Node::List(items) = &self.nodes[items] else { return Err(wrong()) };
        self.copies_left = self.copies_left.checked_sub(items.len()).ok_or("more copies than the pickle has bytes")?;
        let pair = |item: &Ref| match &self.nodes[*item] {
            Node::List(pair) | Node::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(wrong()),
        };
        items.iter().map(pair).collect::<Fact<_>>().map(Node::Dict)
    }

    fn tensor(&self, storage: Ref, start: Ref, size: Ref, stride: Ref, dtype: Option<Ref>) -> Fact<Node<'a>> {
        let Node::Storage(storage) = self.nodes[storage] else { return Err(format!("a tensor of {}, expected a storage", words(&self.nodes[storage]))) };
        let dtype = match dtype.map(|dtype| &self.nodes[dtype]) {
            Some(Node::Global(Global::Dtype(dtype))) => Some(*dtype),
            Some(other) => return Err(format!("a tensor of type {}, expected a dtype", words(other))),
            None => storage.dtype,
        };
        let dtype = dtype.ok_or("a tensor without type in an untyped storage")?;
        let (shape, strides) = (self.numbers(size)?, self.numbers(stride)?);
        let start = self.number(start)?;
        Ok(Node::Tensor(Box::new(Tensor { storage, dtype, start, shape, strides })))
    }

    fn number(&self, number: Ref) -> Fact<usize> {
        match &self.nodes[number] {
            Node::Int(v) => usize::try_from(*v).map_err(|_| format!("{v} in a tensor's size, stride or offset, expected 0 or more")),
            other => Err(format!("{} in a tensor's size, stride or offset, expected an integer", words(other))),
        }
    }

    fn numbers(&self, tuple: Ref) -> Fact<Vec<usize>> {
        match &self.nodes[tuple] {
            Node::Tuple(items) | Node::List(items) if items.len() <= MAX_AXES => items.iter().map(|item| self.number(*item)).collect(),
            other => Err(format!("size or stride {}, expected a tuple of at most {MAX_AXES}", words(other))),
        }
    }

    /// Attributes of a dict (`_metadata` of a state dict) do not matter; those of other values would.
    fn build(&mut self) -> Fact<()> {
        self.pop()?;
        match &self.nodes[self.top()?] {
            Node::Dict(_) | Node::Leftover(_) => Ok(()),
            other => Err(format!("attributes for {}, expected a dict", words(other))),
        }
    }

    /// `('storage', type, key, location, count)`, and in old files None or `(key, first element, count)` of a view. The device
    /// that a storage was saved on does not matter.
    fn persistent(&mut self) -> Fact<()> {
        let id = self.pop()?;
        let wrong = || "a persistent id, expected ('storage', type, key, location, count)".to_string();
        let Node::Tuple(items) = &self.nodes[id] else { return Err(wrong()) };
        let of = |item: &Ref| &self.nodes[*item];
        let [tag, kind, key, _, count, rest @ ..] = items.as_slice() else { return Err(wrong()) };
        let kind = match (of(tag), of(kind)) {
            (Node::Text("storage"), Node::Global(Global::Storage(dtype))) => *dtype,
            (Node::Text("storage"), other) => return Err(format!("a storage of type {}, expected one of torch's", words(other))),
            (Node::Text(tag), _) => return Err(format!("persistent id `{}`, expected `storage`", shorten(tag))),
            _ => return Err(wrong()),
        };
        let Node::Text(key) = *of(key) else { return Err(wrong()) };
        let start = match rest.first().map(of) {
            None | Some(Node::Other("None")) => 0,
            Some(Node::Tuple(view)) if view.len() == 3 => self.number(view[1])?,
            Some(_) => return Err(wrong()),
        };
        let storage = Storage { dtype: kind, key, count: self.number(*count)?, start };
        self.push(Node::Storage(storage));
        Ok(())
    }
}

/// A little-endian two's complement integer.
fn long(bytes: &[u8]) -> Node<'static> {
    if bytes.len() > 8 {
        return Node::Other("an integer of more than 64 bits");
    }
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut all = [fill; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(all))
}

fn pairs(items: Vec<Ref>) -> Fact<Vec<(Ref, Ref)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() { Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()) } else { Err("a key without value".to_string()) }
}

/// A value as errors show it.
pub(crate) fn words(node: &Node) -> String {
    match node {
        Node::Other(what) => what.to_string(),
        Node::Bool(_) => "a bool".to_string(),
        Node::Int(v) => format!("the integer {v}"),
        Node::Text(text) => format!("the text `{}`", shorten(text)),
        Node::List(items) => format!("a list of {}", items.len()),
        Node::Tuple(items) => format!("a tuple of {}", items.len()),
        Node::Dict(items) => format!("a dict of {}", items.len()),
        Node::Global(Global::Leftover(name)) | Node::Leftover(name) => format!("a {name}"),
        Node::Global(global) => format!("the global {global:?}"),
        Node::Storage(_) => "a storage".to_string(),
        Node::Tensor(_) => "a tensor".to_string(),
    }
}

/// Names of the opcodes that are refused.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'L' => "LONG",
        0x82..=0x84 => "EXT",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{opcode:#04x}"),
    };
    format!("{name} ({opcode:#04x})")
}
