//! An ONNX graph: protobuf, tensors, attributes, shapes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| naevus_fuzz::load_file("model.onnx", bytes));
