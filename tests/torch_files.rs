//! Files of torch.save: what PyTorch wrote is read to the bit, and what is broken, lying or malicious is one error that names it,
//! without a panic, an allocation by a claim, or a long wait. No code of a pickle is ever run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use naevus::base::array::relative_rms;
use naevus::models::recognise;
use naevus::weights::{self, Store};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch").join(name)
}

#[test]
fn every_form_is_read_to_the_bit() {
    let names = ["types.pt", "types.th", "views.pt", "views.th", "lightning.ckpt", "parameters.pth", "parallel-cuda.th", "averaged.pth", "module.bin"];
    for name in names {
        let (store, expected) = (Store::open(&golden(name)).unwrap(), Store::open(&golden(&format!("{name}.safetensors"))).unwrap());
        assert_eq!(store.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{name}");
        for tensor in expected.names() {
            assert_eq!(store.array(tensor).unwrap(), expected.array(tensor).unwrap(), "{name}: {tensor}");
        }
    }
}

#[test]
fn what_is_left_alone_is_told() {
    let store = Store::open(&golden("lightning.ckpt")).unwrap();
    assert!(store.skipped().contains(&"epoch: the integer 3".to_string()), "{:?}", store.skipped());
    assert_eq!(store.own_name("0.weight"), Some("state_dict.0.weight"));
    let store = Store::open(&golden("parallel-cuda.th")).unwrap();
    assert_eq!(store.own_name("0.weight"), Some("state_dict.module.0.weight"));
    assert!(store.skipped().contains(&"`module.` before every name".to_string()) && store.skipped().contains(&"best_prec1: a tensor".to_string()));
    let store = Store::open(&golden("averaged.pth")).unwrap();
    assert_eq!(store.skipped(), ["params: a dict of 7"]);
}

#[test]
fn folders_and_indexes_of_torch_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden("module.bin"), dir.path().join("pytorch_model-1.bin")).unwrap();
    let names: Vec<String> = Store::open(&golden("module.bin")).unwrap().names().map(|n| format!("\"{n}\": \"pytorch_model-1.bin\"")).collect();
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), format!("{{\"weight_map\": {{{}}}}}", names.join(","))).unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().names().count(), 7);
    for (file, from) in [
        ("pytorch_model.fp16.bin", "types.pt"),
        ("diffusion_pytorch_model.fp16.safetensors", "views.pt.safetensors"),
        ("diffusion_pytorch_model.bin", "views.th"),
        ("model.safetensors", "module.bin.safetensors"),
    ] {
        if file.contains("fp16") {
            std::fs::remove_file(dir.path().join("pytorch_model.bin.index.json")).ok();
        }
        std::fs::copy(golden(from), dir.path().join(file)).unwrap();
        let expected = Store::open(&golden(from)).unwrap();
        assert!(Store::open(dir.path()).unwrap().names().eq(expected.names()), "{file} is not preferred");
    }
}

/// An entry of a zip archive: name, bytes, method, and the size that is claimed.
struct Entry<'a> {
    name: &'a str,
    bytes: &'a [u8],
    method: u16,
    claim: u32,
}

fn entry<'a>(name: &'a str, bytes: &'a [u8]) -> Entry<'a> {
    Entry { name, bytes, method: 0, claim: bytes.len() as u32 }
}

/// A zip archive.
fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for e in entries {
        let (at, name) = (out.len() as u32, e.name.as_bytes());
        let fields = |method: u16| [&[20, 0, 0, 0][..], &method.to_le_bytes(), &[0; 8], &e.claim.to_le_bytes(), &e.claim.to_le_bytes()].concat();
        let name_len = (name.len() as u16).to_le_bytes();
        out.extend([b"PK\x03\x04", fields(e.method).as_slice(), &name_len, &[0, 0], name, e.bytes].concat());
        directory.extend([b"PK\x01\x02\x14\x00", fields(e.method).as_slice(), &name_len, &[0; 12], &at.to_le_bytes(), name].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (start, bytes) = (out.len() as u32, directory.len() as u32);
    [out.as_slice(), &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &bytes.to_le_bytes(), &start.to_le_bytes(), &[0, 0]].concat()
}

fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[entry("m/data.pkl", pickle), entry("m/byteorder", b"little"), entry("m/data/0", &[0; 16])])
}

/// A pickled text.
fn text(value: &str) -> Vec<u8> {
    [b"X", (value.len() as u32).to_le_bytes().as_slice(), value.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08", value.to_le_bytes().as_slice()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", items.concat().as_slice(), b"t"].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().map(|&v| int(v)).collect::<Vec<_>>())
}

/// A pickled tensor in storage 0 of four floats.
fn tensor(storage: &str, count: i64, start: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let id = tuple(&[text("storage"), format!("ctorch\n{storage}\n").into_bytes(), text("0"), text("cpu"), int(count)]);
    let arguments = tuple(&[[id, b"Q".to_vec()].concat(), int(start), ints(shape), ints(strides), b"\x89".to_vec(), b"N".to_vec()]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n", arguments.as_slice(), b"R"].concat()
}

/// A pickle of a dict.
fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"\x80\x02}(", items.as_slice(), b"u."].concat()
}

fn whole() -> Vec<u8> {
    tensor("FloatStorage", 4, 0, &[2, 2], &[2, 1])
}

/// Opens and reads; the error, None when all was accepted.
fn attempt(what: &str, bytes: &[u8]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    std::fs::write(&path, bytes).unwrap();
    let start = Instant::now();
    let read = || Store::open(&path).and_then(|store| store.names().try_for_each(|name| store.array(name).map(|_| ())));
    let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| panic!("{what}: panicked"));
    assert!(start.elapsed() < Duration::from_secs(5), "{what}: took {:?}", start.elapsed());
    let error = result.err()?.to_string();
    assert!(error.contains("model.pt") && !error.contains('\n') && error.len() < 2000, "{what}: {error}");
    Some(error)
}

fn refused(what: &str, bytes: &[u8], want: &str) {
    let error = attempt(what, bytes).unwrap_or_else(|| panic!("{what} was accepted"));
    assert!(error.contains(want), "{what}: {error}, expected {want}");
}

#[test]
fn code_is_refused_by_name() {
    assert_eq!(attempt("a tensor", &archive(&dict(&[("w", whole())]))), None);
    let system = [&b"cos\nsystem\n"[..], &tuple(&[text("true")]), b"R"].concat();
    refused("os.system", &archive(&dict(&[("w", whole()), ("x", system.clone())])), "global `os.system`, expected those of tensors and plain containers");
    refused("os.system alone", &archive(&[b"\x80\x02", system.as_slice(), b"."].concat()), "pickle: byte 2: global `os.system`");
    let stack_global = [b"\x80\x04", text("builtins").as_slice(), &text("eval"), b"\x93", &tuple(&[text("1")]), b"R."].concat();
    refused("eval", &archive(&stack_global), "global `builtins.eval`");
    refused("INST", &archive(b"\x80\x02(ios\nsystem\n."), "opcode INST (0x69)");
    refused("OBJ", &archive(b"\x80\x02(cos\nsystem\no."), "global `os.system`");
    refused("EXT1", &archive(b"\x80\x02\x82\x01."), "opcode EXT (0x82)");
    refused("PERSID", &archive(b"\x80\x02Pabc\n."), "opcode PERSID (0x50)");
    refused("a call of a text", &archive(&[b"\x80\x02", text("os").as_slice(), b")R."].concat()), "a call of the text `os`, expected a global");
    for class in ["Float8_e4m3fnStorage", "QInt8Storage", "ComplexFloatStorage"] {
        refused(class, &archive(&dict(&[("w", tensor(class, 4, 0, &[4], &[1]))])), &format!("global `torch.{class}`"));
    }
    for opcode in 0..=255u8 {
        attempt(&format!("opcode {opcode:#x}"), &archive(&[0x80, 2, b'}', opcode, 1, 1, 1, b'.']));
    }
}

#[test]
fn leftovers_of_training_are_opaque() {
    let leftover = [&b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)R}"[..], &text("a"), b"K\x01sb"].concat();
    let scalar = [&b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"[..], &text("f8"), b"\x85R", &text("raw"), b"\x86R"].concat();
    let beside = dict(&[("callbacks", leftover.clone()), ("score", scalar.clone()), ("state_dict", [&b"}"[..], &text("w"), &whole(), b"s"].concat())]);
    assert_eq!(attempt("beside the state dict", &archive(&beside)), None);
    let want = "w: is a pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint, expected a tensor";
    refused("in place of a tensor", &archive(&dict(&[("v", whole()), ("w", leftover)])), want);
    refused("no tensor at all", &archive(&dict(&[("w", scalar)])), "w: is a numpy.core.multiarray.scalar, expected a tensor");
    refused("numbers only", &archive(&dict(&[("epoch", int(3))])), "holds no tensors, expected a state dict; there is epoch: the integer 3");
}

#[test]
fn tensors_outside_of_their_storage_are_refused() {
    const M: i64 = i64::MAX;
    let rows: [(i64, i64, &[i64], &[i64]); 9] = [
        (4, 1, &[2, 2], &[2, 1]),
        (4, 0, &[5], &[1]),
        (4, 0, &[2, 2], &[M, 1]),
        (4, 0, &[M, M], &[1, 1]),
        (4, 0, &[1 << 40], &[0]),
        (4, M, &[1], &[1]),
        (4, 0, &[2, 2], &[1]),
        (4, 4, &[1], &[1]),
        (4, 0, &[M, 0, M], &[M, M]),
    ];
    for (count, start, shape, strides) in rows {
        let bytes = archive(&dict(&[("w", tensor("FloatStorage", count, start, shape, strides))]));
        refused(&format!("{start} {shape:?} {strides:?}"), &bytes, "tensor `w`: shape");
    }
    let w = |storage: &str, count, start, shape: &[i64], strides: &[i64]| archive(&dict(&[("w", tensor(storage, count, start, shape, strides))]));
    refused("a lying count", &w("FloatStorage", 1 << 60, 0, &[1], &[1]), "its storage `0` has 16 bytes, expected 1152921504606846976 elements of 4");
    refused("another type", &w("DoubleStorage", 4, 0, &[1], &[1]), "its storage `0` has 16 bytes, expected 4 elements of 8");
    refused("a negative stride", &w("FloatStorage", 4, 3, &[2], &[-1]), "-1 in a tensor's size, stride or offset");
    refused("a negative size", &w("FloatStorage", 4, 3, &[-2], &[1]), "-2 in a tensor's size");
    refused("many axes", &w("FloatStorage", 4, 0, &[1; 17], &[1; 17]), "a tuple of at most 16");
    refused("no storage", &zip(&[entry("m/data.pkl", &dict(&[("w", whole())]))]), "its storage `0` is not in the file");
    assert_eq!(attempt("an empty tensor", &w("FloatStorage", 4, 0, &[0, 7], &[7, 1])), None);
}

#[test]
fn pickles_that_bite_their_tail_are_refused() {
    let pickle = |body: &[u8]| archive(&[b"\x80\x02", body, b"."].concat());
    refused("a list in itself", &pickle(b"]q\x00h\x00a"), "expected at most 1048576 entries, nested at most 16 deep");
    refused("a dict in itself", &pickle(&[b"}q\x00", text("model").as_slice(), b"h\x00s"].concat()), "nested at most 16 deep");
    refused("deep nesting", &pickle(&[b"]".repeat(1 << 20), b"a".repeat((1 << 20) - 1)].concat()), "nested at most 16 deep");
    let laughs: Vec<u8> = (0..15).flat_map(|_| [b"(".to_vec(), b"h\x00".repeat(16), b"lq\x00".to_vec()].concat()).collect();
    refused("a billion laughs", &pickle(&[b"]q\x00", laughs.as_slice()].concat()), "expected at most 1048576 entries");
    refused("an absent memo", &pickle(b"h\x07"), "memo 7 is empty");
    refused("an empty stack", &pickle(b"0"), "nothing on the stack");
    refused("no mark", &pickle(b"t"), "no mark on the stack");
    refused("a value below the mark", &pickle(b"](a"), "nothing on the stack");
    refused("a key without value", &pickle(b"}(K\x01u"), "a key without value");
    refused("a text of 4 GiB", &pickle(b"X\xff\xff\xff\xff"), "the pickle ends where 4294967295 more bytes");
    refused("a text of 16 EiB", &pickle(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff"), "more bytes are expected");
    refused("an integer of 2 GiB", &pickle(b"\x8b\xff\xff\xff\x7f"), "more bytes are expected");
    refused("no STOP", &archive(b"\x80\x02}"), "the pickle ends");
    refused("a later protocol", &archive(b"\x80\x09}."), "protocol 9, expected at most 5");
    refused("a name twice", &archive(&dict(&[("w", whole()), ("w", whole())])), "tensor `w` stands there twice");
    let joined = dict(&[("a.b", whole()), ("a", [&b"}"[..], &text("b"), &whole(), b"s"].concat())]);
    refused("two paths of one name", &archive(&joined), "tensor `a.b` stands there twice");
}

#[test]
fn lying_archives_are_refused() {
    let pickle = dict(&[("w", whole())]);
    let data = entry("m/data.pkl", &pickle);
    let zeros = [0; 16];
    let with = |extra: Entry| zip(&[entry("m/data.pkl", &pickle), entry("m/data/0", &zeros), extra]);
    refused("a name twice", &with(entry("m/data/0", &zeros)), "zip: entry `m/data/0` stands there twice");
    refused("an absolute name", &with(entry("/etc/passwd", b"x")), "zip: entry `/etc/passwd`, expected a name within the archive");
    refused("a name outside", &with(entry("m/../../x", b"x")), "expected a name within the archive");
    refused("a compressed entry", &with(Entry { method: 8, ..entry("m/x", b"x") }), "zip: entry `m/x`: is compressed with method 8, expected stored bytes");
    refused("a claim of 4 GiB", &with(Entry { claim: 0xffff_fffe, ..entry("m/x", b"x") }), "zip: entry `m/x`: 4294967294 bytes at");
    refused("zip64 without sizes", &with(Entry { claim: 0xffff_ffff, ..entry("m/x", b"x") }), "sizes of more than 4 GiB are missing");
    refused("overlapping entries", &zip(&[Entry { claim: 400, ..entry("m/a", b"") }, entry("m/data.pkl", &[b'x'; 500])]), "overlap");
    refused("two pickles", &with(entry("n/data.pkl", b"x")), "zip: 2 entries end in data.pkl, expected one");
    refused("another zip", &zip(&[entry("hello.txt", b"x")]), "zip: 0 entries end in data.pkl");
    refused("TorchScript", &with(entry("m/constants.pkl", b"x")), "is a TorchScript archive");
    refused("big-endian", &with(entry("m/byteorder", b"big")), "byte order `big`, expected little");
    refused("a lying length", &zip(&[Entry { claim: 5, ..data }]), "the pickle ends");
    let mut far = zip(&[entry("m/data.pkl", &pickle)]);
    let end = far.len() - 22;
    far[end + 16..end + 20].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    refused("a directory behind the end", &far, "zip: directory of");
    far[end + 8..end + 20].fill(0xff);
    refused("full fields without a zip64 record", &far, "zip: directory of 4294967295 bytes at 4294967295");
    let locator = [&b"PK\x06\x07\0\0\0\0"[..], &u64::MAX.to_le_bytes(), &[1, 0, 0, 0], &far[end..]].concat();
    refused("a zip64 record nowhere", &[&far[..end], &locator].concat(), "zip: no zip64 record at byte 18446744073709551615");
}

#[test]
fn cut_and_flipped_files_are_errors_or_other_values() {
    for name in ["types.pt", "types.th", "lightning.ckpt", "views.pt"] {
        let whole = std::fs::read(golden(name)).unwrap();
        for cut in (0..whole.len()).step_by(whole.len() / 97 + 1) {
            assert!(attempt(&format!("{name} cut at {cut}"), &whole[..cut]).is_some(), "{name} cut at {cut} was accepted");
        }
        for at in (0..whole.len()).step_by(whole.len() / 307 + 1) {
            for flip in [0x01, 0x40, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                attempt(&format!("{name}: byte {at} changed by {flip:#x}"), &bytes);
            }
        }
    }
    refused("more after the last storage", &[std::fs::read(golden("types.th")).unwrap().as_slice(), &[0]].concat(), "1 bytes after the last storage");
    refused("a pickle of something else", b"\x80\x04\x95\x10\x01\0\0\0\0\0\0}.", "does not begin with PyTorch's magic number");
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    refused("tar", &tar, "is a tar archive");
}

/// Names and shapes of a ResNet for CIFAR with a block of 2, 4 and 8 channels in each layer, and 3 classes.
fn small_resnet() -> Vec<(String, Vec<i64>)> {
    fn conv(all: &mut Vec<(String, Vec<i64>)>, module: &str, number: usize, outputs: i64, inputs: i64) {
        all.push((format!("{module}conv{number}.weight"), vec![outputs, inputs, 3, 3]));
        all.extend(["weight", "bias", "running_mean", "running_var"].map(|field| (format!("{module}bn{number}.{field}"), vec![outputs])));
    }
    let mut all = Vec::new();
    conv(&mut all, "", 1, 2, 3);
    for (layer, inputs, outputs) in [(1, 2, 2), (2, 2, 4), (3, 4, 8)] {
        conv(&mut all, &format!("layer{layer}.0."), 1, outputs, inputs);
        conv(&mut all, &format!("layer{layer}.0."), 2, outputs, outputs);
    }
    all.extend([("linear.weight".to_string(), vec![3, 8]), ("linear.bias".to_string(), vec![3])]);
    all
}

/// A pickled dict.
fn inner(items: &[(String, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", items.as_slice(), b"u"].concat()
}

/// The pickled state dict of [`small_resnet`] with `wrapper` before every name, and what stands beside it.
fn state(wrapper: &str, beside: &[&str]) -> Vec<u8> {
    let tensor = |shape: &[i64]| {
        let strides: Vec<i64> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        tensor("FloatStorage", 576, 0, shape, &strides)
    };
    let own = small_resnet().into_iter().map(|(name, shape)| (format!("{wrapper}{name}"), tensor(&shape)));
    inner(&own.chain(beside.iter().map(|name| (name.to_string(), tensor(&[3])))).collect::<Vec<_>>())
}

/// Writes a checkpoint to `path`.
fn write(path: &Path, root: &[u8]) {
    let ones: Vec<u8> = (0..576).flat_map(|_| 1f32.to_le_bytes()).collect();
    let pickle = [b"\x80\x02", root, b"."].concat();
    std::fs::write(path, zip(&[entry("m/data.pkl", &pickle), entry("m/byteorder", b"little"), entry("m/data/0", &ones)])).unwrap();
}

fn pair(key: &str, value: Vec<u8>) -> (String, Vec<u8>) {
    (key.to_string(), value)
}

#[test]
fn what_training_puts_around_a_model_is_taken_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("best.ckpt");
    let under = |key: &str, state: Vec<u8>| inner(&[pair("epoch", int(3)), pair(key, state)]);
    let lightning = state("model.", &["criterion.weight", "val_auc.thresholds"]);
    let rows: [(&str, Vec<u8>, &[&str]); 12] = [
        ("a state dict", state("", &[]), &[]),
        ("DataParallel", state("module.", &[]), &[]),
        ("state_dict", under("state_dict", state("module.", &[])), &[]),
        ("model", under("model", state("", &[])), &[]),
        ("model_state_dict", under("model_state_dict", state("", &[])), &[]),
        ("model_state", under("model_state", state("_orig_mod.", &[])), &[]),
        ("net", under("net", state("net.", &[])), &[]),
        ("Lightning", under("state_dict", lightning), &["criterion.weight", "val_auc.thresholds"]),
        ("Lightning and DataParallel", under("state_dict", state("model.module.", &[])), &[]),
        ("another attribute", under("state_dict", state("backbone.", &["loss_fn.weight"])), &["loss_fn.weight"]),
        ("averaged weights", under("model_ema", state("module.", &["n_averaged"])), &["n_averaged"]),
        ("a wrapper in a wrapper", under("model", under("state_dict", state("", &[]))), &[]),
    ];
    for (what, root, dropped) in rows {
        write(&path, &root);
        let found = recognise(&path).unwrap();
        assert_eq!(found.name(), "ResNet classifier", "{what}");
        let model = found.load().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(model.dropped(), dropped, "{what}");
    }
    write(&path, &inner(&[pair("state_dict_ema", state("", &[])), pair("state_dict", state("model.", &["more.weight"]))]));
    assert!(recognise(&path).unwrap().load().is_ok(), "averaged weights go before those of the last step");
}

#[test]
fn what_else_stands_beside_a_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("best.ckpt");
    let error = |root: Vec<u8>| {
        write(&path, &root);
        recognise(&path).and_then(|found| found.load()).err().unwrap().to_string()
    };
    let two = error(state("model.", &["teacher.weight"]));
    assert!(two.contains("its tensors (model, teacher) are of no known architecture, expected a config.json beside them"), "{two}");
    let own = error(state("", &["attention.weight"]));
    assert!(own.contains("classifier: unused attention.weight"), "{own}");
    let whole = error([&b"ctorchvision.models.resnet\nResNet\n)R"[..], &state("", &[]), b"b"].concat());
    assert!(whole.contains("global `torchvision.models.resnet.ResNet`") && whole.contains("state_dict()"), "{whole}");
}

#[test]
fn a_configuration_beside_or_in_a_file_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("best.ckpt");
    let architecture = |at: &Path| {
        let facts = recognise(at).and_then(|found| found.load()).map_err(|e| e.to_string())?.facts();
        Ok::<_, String>(facts.into_iter().find(|(name, _)| *name == "architecture").unwrap().1.as_str().map(String::from))
    };
    // timm's training script and PyTorch's example for ImageNet note it.
    write(&path, &inner(&[pair("arch", text("resnet20")), pair("state_dict", state("module.", &[]))]));
    assert_eq!(architecture(&path), Ok(Some("resnet20".to_string())));
    write(&path, &inner(&[pair("arch", text("alexnet")), pair("state_dict", state("module.", &[]))]));
    assert_eq!(architecture(&path), Ok(None));
    let config = dir.path().join("config.json");
    std::fs::write(&config, r#"{"architecture": "resnet32", "num_classes": 3}"#).unwrap();
    write(&path, &inner(&[pair("state_dict", state("model.", &["criterion.weight"]))]));
    for at in [dir.path(), &path, &config] {
        assert_eq!(architecture(at), Ok(Some("resnet32".to_string())), "{}", at.display());
    }
    std::fs::write(&config, r#"{"architecture": "resnet32", "num_classes": 4}"#).unwrap();
    assert!(architecture(&path).unwrap_err().contains("linear.weight"));
    // One of another model, which lies there by chance.
    std::fs::write(&config, r#"{"architecture": "densenet121"}"#).unwrap();
    assert_eq!(architecture(&path), Ok(None));
    std::fs::copy(&path, dir.path().join("last.ckpt")).unwrap();
    let error = architecture(dir.path()).unwrap_err();
    assert!(error.contains("or one file of another name; it holds best.ckpt, last.ckpt"), "{error}");
}

#[test]
fn weights_made_by_others_are_recognised() {
    let external = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/external");
    if !external.is_dir() {
        println!("skipped: ../shared absent");
        return;
    }
    // Thousands of parameters as their authors publish them.
    let rows = [
        ("cifar10_resnet/resnet20-12fca82f.th", "ResNet classifier", "classifier", 270),
        ("cifar10_resnet/resnet56-4bfd9763.th", "ResNet classifier", "classifier", 850),
        ("taef2/taef2_encoder.pth", "half of a TAESD autoencoder", "vae-encoder", 1340),
        ("taef2/taef2_decoder.pth", "half of a TAESD autoencoder", "vae-decoder", 1340),
        ("taesana/taesana_encoder.pth", "half of a TAESD autoencoder", "vae-encoder", 1260),
    ];
    for (file, name, component, thousands) in rows {
        let found = recognise(&external.join(file)).unwrap();
        let model = found.load().unwrap();
        let names: Vec<&str> = model.components().into_iter().map(|c| c.name()).collect();
        assert_eq!((found.name().as_str(), names.as_slice()), (name, &[component][..]), "{file}");
        assert!(model.parameters().abs_diff(thousands * 1000) < 10_000, "{file}: {} parameters", model.parameters());
    }
}

/// `naevus forward`, as a user calls it; tools/external_classifiers.py made the numbers with PyTorch in float64.
#[test]
fn published_cifar_resnets_are_pytorchs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (external, golden) = (root.join("../shared/reference/external/cifar10_resnet"), root.join("tests/external/classifiers.safetensors"));
    if !external.is_dir() {
        println!("skipped: ../shared absent");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (inputs, out) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let told = Store::open(&golden).unwrap();
    weights::write(&inputs, [("pixel_values", &told.array("pixel_values").unwrap())]).unwrap();
    for file in ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"] {
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_naevus"))
            .args(["--quiet", "--device", "cpu", "forward", "--component", "classifier", "--model"])
            .arg(external.join(file))
            .arg("--inputs")
            .arg(&inputs)
            .arg("--out")
            .arg(&out)
            .status()
            .unwrap();
        assert!(status.success(), "{file}: {status}");
        let (ours, told) = (Store::open(&out).unwrap().array("logits").unwrap(), told.array(&format!("{file}/logits")).unwrap());
        let error = relative_rms(&ours.data, &told.data);
        println!("{file}: relative rms {error:.1e}");
        assert!(ours.dims() == [4, 10] && ours.dims() == told.dims() && error <= 1e-5, "{file}: {error:e}");
    }
}
