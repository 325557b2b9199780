//! ONNX files made by hand, true and false ones: a writer of the wire format.

use std::path::PathBuf;

/// Writes `bytes` as model.onnx into a folder of its own.
pub fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn integer(field: u64, value: i64) -> Vec<u8> {
    [varint(field << 3), varint(value as u64)].concat()
}

fn message(field: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn text(field: u64, value: &str) -> Vec<u8> {
    message(field, value.as_bytes())
}

fn float(field: u64, value: f32) -> Vec<u8> {
    [varint(field << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

#[derive(Clone)]
pub enum Attribute {
    Integer(i64),
    Float(f32),
    Text(String),
    Integers(Vec<i64>),
}

impl Attribute {
    fn bytes(&self, name: &str) -> Vec<u8> {
        let (value, kind) = match self {
            Attribute::Float(v) => (float(2, *v), 1),
            Attribute::Integer(v) => (integer(3, *v), 2),
            Attribute::Text(v) => (text(4, v), 3),
            Attribute::Integers(v) => (v.iter().flat_map(|&v| integer(8, v)).collect(), 7),
        };
        [text(1, name), value, integer(20, kind)].concat()
    }
}

#[derive(Clone)]
pub struct Node {
    operator: String,
    name: String,
    domain: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    attributes: Vec<(String, Attribute)>,
}

impl Node {
    pub fn new(operator: &str, inputs: &[&str], outputs: &[&str]) -> Node {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Node { operator: operator.into(), name: String::new(), domain: String::new(), inputs: names(inputs), outputs: names(outputs), attributes: Vec::new() }
    }

    pub fn named(self, name: &str) -> Node {
        Node { name: name.into(), ..self }
    }

    pub fn of(self, domain: &str) -> Node {
        Node { domain: domain.into(), ..self }
    }

    pub fn with(mut self, name: &str, value: Attribute) -> Node {
        self.attributes.push((name.into(), value));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.inputs.iter().flat_map(|name| text(1, name)).collect();
        bytes.extend(self.outputs.iter().flat_map(|name| text(2, name)));
        bytes.extend([text(3, &self.name), text(4, &self.operator), text(7, &self.domain)].concat());
        bytes.extend(self.attributes.iter().flat_map(|(name, value)| message(5, &value.bytes(name))));
        bytes
    }
}

/// Values of a tensor and how they stand in the file.
#[derive(Clone, Debug)]
pub enum Numbers {
    F32(Vec<f32>),
    RawF32(Vec<f32>),
    F64(Vec<f64>),
    RawF64(Vec<f64>),
    F16(Vec<u16>),
    RawF16(Vec<u16>),
    BF16(Vec<u16>),
    I64(Vec<i64>),
    RawI64(Vec<i64>),
    I32(Vec<i32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    /// f32 in another file: its name, offset and length.
    External(String, usize, usize),
}

impl Numbers {
    /// The number of the element type and the fields of the values.
    fn fields(&self) -> (i64, Vec<u8>) {
        let packed = |field: u64, values: &[i64]| message(field, &values.iter().flat_map(|&v| varint(v as u64)).collect::<Vec<_>>());
        let bits = |values: &[u16]| values.iter().map(|&v| i64::from(v)).collect::<Vec<_>>();
        match self {
            Numbers::F32(v) => (1, message(4, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())),
            Numbers::RawF32(v) => (1, message(9, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())),
            Numbers::F64(v) => (11, message(10, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())),
            Numbers::RawF64(v) => (11, message(9, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())),
            Numbers::F16(v) => (10, packed(5, &bits(v))),
            Numbers::RawF16(v) => (10, message(9, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())),
            Numbers::BF16(v) => (16, packed(5, &bits(v))),
            Numbers::I64(v) => (7, packed(7, v)),
            Numbers::RawI64(v) => (7, message(9, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())),
            Numbers::I32(v) => (6, packed(5, &v.iter().map(|&v| i64::from(v)).collect::<Vec<_>>())),
            Numbers::U8(v) => (2, message(9, v)),
            Numbers::I8(v) => (3, packed(5, &v.iter().map(|&v| i64::from(v)).collect::<Vec<_>>())),
            Numbers::External(location, offset, length) => {
                let entry = |key: &str, value: String| message(13, &[text(1, key), text(2, &value)].concat());
                let entries = [entry("location", location.clone()), entry("offset", offset.to_string()), entry("length", length.to_string())];
                (1, [entries.concat(), integer(14, 1)].concat())
            }
        }
    }
}

/// A graph under construction.
pub struct Graph {
    opset: i64,
    fields: Vec<u8>,
}

impl Graph {
    pub fn new(opset: i64) -> Graph {
        Graph { opset, fields: Vec::new() }
    }

    /// Numbers are sizes, other words symbols.
    fn port(&mut self, field: u64, name: &str, kind: i64, sizes: &[&str]) -> &mut Graph {
        let size = |size: &&str| message(1, &size.parse::<i64>().map_or_else(|_| text(2, size), |size| integer(1, size)));
        let shape: Vec<u8> = sizes.iter().flat_map(size).collect();
        let tensor = [integer(1, kind), message(2, &shape)].concat();
        let value = [text(1, name), message(2, &message(1, &tensor))].concat();
        self.fields.extend(message(field, &value));
        self
    }

    pub fn input(&mut self, name: &str, sizes: &[&str]) -> &mut Graph {
        self.port(11, name, 1, sizes)
    }

    pub fn integer_input(&mut self, name: &str, sizes: &[&str]) -> &mut Graph {
        self.port(11, name, 7, sizes)
    }

    pub fn output(&mut self, name: &str, sizes: &[&str]) -> &mut Graph {
        self.port(12, name, 1, sizes)
    }

    pub fn node(&mut self, node: Node) -> &mut Graph {
        self.fields.extend(message(1, &node.bytes()));
        self
    }

    pub fn tensor(&mut self, name: &str, dims: &[i64], numbers: Numbers) -> &mut Graph {
        let (kind, values) = numbers.fields();
        let dims: Vec<u8> = dims.iter().flat_map(|&d| integer(1, d)).collect();
        self.fields.extend(message(5, &[dims, integer(2, kind), text(8, name), values].concat()));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let opset = message(8, &integer(2, self.opset));
        [integer(1, 8), text(2, "naevus"), message(7, &self.fields), opset].concat()
    }
}
