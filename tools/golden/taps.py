"""Outputs of a model's modules, by module path."""

import torch


def record(model, wanted, call):
    """The result of `call(model)` and the first tensor that each wanted module returned."""
    taps, handles = {}, []

    def keep(path):
        def hook(_module, _inputs, output):
            taps[path] = output[0] if isinstance(output, tuple) else output

        return hook

    for path, module in model.named_modules():
        if wanted(path, module):
            handles.append(module.register_forward_hook(keep(path)))
    with torch.no_grad():
        result = call(model)
    for handle in handles:
        handle.remove()
    return result, taps
