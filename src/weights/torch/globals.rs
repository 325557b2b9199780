//! The names that a pickle of tensors may speak of. A name is only compared: nothing is imported and nothing is called.

use safetensors::tensor::Dtype;

/// What a global is to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    OrderedDict,
    /// `_rebuild_tensor(storage, offset, size, stride)`; v2 has more arguments that do not matter here.
    RebuildTensor,
    /// With the element type as the seventh argument: the storage has none.
    RebuildTensorV3,
    /// `_rebuild_parameter(data, ...)`.
    RebuildParameter,
    Size,
    /// Its result is no weight: `torch.device`.
    Device,
    /// None: bytes without a type.
    Storage(Option<Dtype>),
    Dtype(Dtype),
    /// One of [`LEFTOVERS`].
    Leftover(&'static str),
}

/// Names that training scripts leave in a checkpoint beside its state dict. They become values that nobody looks into; one that
/// stands where a tensor is wanted is an error.
const LEFTOVERS: [&str; 35] = [
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "argparse.Namespace",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.StringNode",
    "omegaconf.nodes.BooleanNode",
    "typing.Any",
    "collections.defaultdict",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "builtins.str",
    "__builtin__.dict",
    "__builtin__.list",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
    "torch.torch_version.TorchVersion",
];

const TABLE: [(&str, Global); 46] = [
    ("collections.OrderedDict", Global::OrderedDict),
    ("torch._utils._rebuild_tensor", Global::RebuildTensor),
    ("torch._utils._rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils._rebuild_tensor_v3", Global::RebuildTensorV3),
    ("torch._utils._rebuild_parameter", Global::RebuildParameter),
    ("torch._utils._rebuild_parameter_with_state", Global::RebuildParameter),
    ("torch.Size", Global::Size),
    ("torch.device", Global::Device),
    ("torch.FloatStorage", Global::Storage(Some(Dtype::F32))),
    ("torch.DoubleStorage", Global::Storage(Some(Dtype::F64))),
    ("torch.HalfStorage", Global::Storage(Some(Dtype::F16))),
    ("torch.BFloat16Storage", Global::Storage(Some(Dtype::BF16))),
    ("torch.LongStorage", Global::Storage(Some(Dtype::I64))),
    ("torch.IntStorage", Global::Storage(Some(Dtype::I32))),
    ("torch.ShortStorage", Global::Storage(Some(Dtype::I16))),
    ("torch.CharStorage", Global::Storage(Some(Dtype::I8))),
    ("torch.ByteStorage", Global::Storage(Some(Dtype::U8))),
    ("torch.BoolStorage", Global::Storage(Some(Dtype::BOOL))),
    ("torch.cuda.FloatStorage", Global::Storage(Some(Dtype::F32))),
    ("torch.cuda.DoubleStorage", Global::Storage(Some(Dtype::F64))),
    ("torch.cuda.HalfStorage", Global::Storage(Some(Dtype::F16))),
    ("torch.cuda.BFloat16Storage", Global::Storage(Some(Dtype::BF16))),
    ("torch.cuda.LongStorage", Global::Storage(Some(Dtype::I64))),
    ("torch.cuda.IntStorage", Global::Storage(Some(Dtype::I32))),
    ("torch.cuda.ByteStorage", Global::Storage(Some(Dtype::U8))),
    ("torch.cuda.BoolStorage", Global::Storage(Some(Dtype::BOOL))),
    ("torch.UntypedStorage", Global::Storage(None)),
    ("torch.storage.UntypedStorage", Global::Storage(None)),
    ("torch.storage._UntypedStorage", Global::Storage(None)),
    ("torch.float32", Global::Dtype(Dtype::F32)),
    ("torch.float", Global::Dtype(Dtype::F32)),
    ("torch.float64", Global::Dtype(Dtype::F64)),
    ("torch.double", Global::Dtype(Dtype::F64)),
    ("torch.float16", Global::Dtype(Dtype::F16)),
    ("torch.half", Global::Dtype(Dtype::F16)),
    ("torch.bfloat16", Global::Dtype(Dtype::BF16)),
    ("torch.int64", Global::Dtype(Dtype::I64)),
    ("torch.long", Global::Dtype(Dtype::I64)),
    ("torch.int32", Global::Dtype(Dtype::I32)),
    ("torch.int16", Global::Dtype(Dtype::I16)),
    ("torch.int8", Global::Dtype(Dtype::I8)),
    ("torch.uint8", Global::Dtype(Dtype::U8)),
    ("torch.uint16", Global::Dtype(Dtype::U16)),
    ("torch.uint32", Global::Dtype(Dtype::U32)),
    ("torch.uint64", Global::Dtype(Dtype::U64)),
    ("torch.bool", Global::Dtype(Dtype::BOOL)),
];

/// The global `module.name`; None: it is refused.
pub(crate) fn find(module: &str, name: &str) -> Option<Global> {
    let is = |full: &str| full.strip_prefix(module).and_then(|rest| rest.strip_prefix('.')) == Some(name);
    let known = TABLE.iter().find(|(full, _)| is(full)).map(|(_, global)| *global);
    known.or_else(|| LEFTOVERS.iter().find(|full| is(full)).map(|full| Global::Leftover(full)))
}
